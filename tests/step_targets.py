"""Steps of benchmarks/gpu.py that come to no good; apart from the tests, which import torch."""

import os
import subprocess
import sys
import time

from benchmarks.gpu import Job, Step


def hang(step: Step, job: Job) -> None:
    """Has written a result and started a child when its limit comes."""
    job.tell(child=subprocess.Popen(["sleep", "600"]).pid)
    job.runs.mkdir(parents=True)
    (job.runs / "metrics.csv").write_text("frames,mean_return_100_games,loss\n100,,0.5\n200,7.5,nan\n")
    time.sleep(600)


def fail(step: Step, job: Job) -> None:
    """Ends badly, and its child goes on."""
    os.setsid()
    job.tell(child=subprocess.Popen(["sleep", "600"]).pid)
    job.log.parent.mkdir()
    job.log.write_text("Traceback\nOSError: no such thing\n\n")
    sys.exit(3)
