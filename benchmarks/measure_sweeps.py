"""What sweeps cost beside the training; for a machine that does nothing else.

    python benchmarks/measure_sweeps.py local           two at a time against one after the other: at most 1.2 x sum / 2
    python benchmarks/measure_sweeps.py side_by_side    two runs on a core each against one alone on a core
    python benchmarks/measure_sweeps.py thousand        SLURM with 1,000 runs: submission, status, the command again

The last one starts a SLURM of its own (see tests/launch/one_node.py) and holds the jobs, so that nothing else runs
while it measures; then it lets some no-op runs go, to see what the start of a run costs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "launch")]

from a3c_bench.runtime.directory import read_status  # noqa: E402

NO_OP = ("algo=paac", "algo.n_envs=1", "network.hidden_sizes=[1]", "budget.frames=1", "evaluation.n_games=1",
         "evaluation.n_envs=1", "evaluation.max_episode_frames=1", "progress=false")  # fmt: skip


def command(*words: str) -> tuple[float, str]:
    """Seconds that a command takes, and what it says."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start, done.stdout


def sweep(root: Path, *words: str) -> tuple[float, str]:
    """The same of a sweep."""
    return command("-m", "a3c_bench.run", *words, f"root={root}")


def statuses(root: Path) -> list[dict[str, object]]:
    """Of all runs below."""
    return [read_status(file.parent) for file in root.rglob("status.json")]


def local(root: Path) -> None:
    """The headline sweep, one at a time and two at a time, each run on one core."""
    words = ("+sweeps=headline", "budget.frames=100_000", "hydra/launcher=local", "hydra.launcher.cores_per_run=1")
    alone, _ = sweep(root / "alone", *words, "hydra.launcher.runs_at_once=1")
    both, _ = sweep(root / "both", *words, "hydra.launcher.runs_at_once=2")
    print(f"one at a time {alone:.1f} s, two at a time {both:.1f} s: {both / (alone / 2):.2f} x the half (at most 1.2)")


def side_by_side(root: Path) -> None:
    """Frames per second of PAAC on a core, alone and beside another."""
    words = ("-m", "algo=paac", "env=pong", "budget.frames=40_000", "evaluation.n_games=1", "evaluation.n_envs=1",
             "hydra/launcher=local", "hydra.launcher.cores_per_run=1")  # fmt: skip
    speeds = []
    for name, seeds, at_once in (("alone", "0", 1), ("both", "0,1", 2)):
        sweep(root / name, *words, f"seed={seeds}", f"hydra.launcher.runs_at_once={at_once}")
        speeds.append(mean(float(s["frames"]) / float(s["wall_seconds"]) for s in statuses(root / name)))  # type: ignore[arg-type]
    print(f"alone {speeds[0]:,.0f} frames/s, each of two {speeds[1]:,.0f}: {100 * speeds[1] / speeds[0]:.0f}%")


def thousand(root: Path) -> None:
    """1,000 runs in the queue, and what looking at them costs; then a few of them run."""
    from one_node import SEARCH, OneNode

    node = OneNode.start(max_array_size=2000)
    os.environ |= {"SLURM_CONF": str(node.conf), "PATH": SEARCH}
    try:
        n_runs, n_started = 1000, 8
        words = ("-m", *NO_OP, f"seed=range(0,{n_runs})", "hydra/launcher=slurm_cpu", "hydra.launcher.detach=true",
                 "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
                 "+hydra.launcher.additional_parameters.hold=true")  # fmt: skip
        idle, _ = command("-c", "import a3c_bench.run, a3c_bench.train")
        submission, _ = sweep(root, *words)
        (folder,) = root.glob("default/.submitit")
        job = next(iter(folder.glob("*_submission.sh"))).name.split("_")[0]
        looking, _ = command("-m", "sweeps.status", str(root))
        again, said = sweep(root, *words)
        assert f"{n_runs} queued; 0 to start" in said, said
        subprocess.run(["scontrol", "release", f"{job}_[0-{n_started - 1}]"], check=True)
        start = time.perf_counter()
        while sum(status.get("state") == "finished" for status in statuses(root)) < n_started:
            time.sleep(0.5)
        each = (time.perf_counter() - start) * 2 / n_started  # two at once
        subprocess.run(["scancel", job], check=True)
    finally:
        node.stop()
    print(f"imports alone        {idle:7.1f} s")
    print(f"submission           {submission:7.1f} s, {1e3 * submission / n_runs:.0f} ms for each run")
    print(f"sweeps.status        {looking:7.1f} s")
    print(f"the same command     {again:7.1f} s, {1e3 * again / n_runs:.0f} ms for each run")
    print(f"a no-op run          {each:7.1f} s of one core: start and end of a run")
    total = (submission + looking + again) / n_runs
    print(f"below 1% of the compute where a run takes more than {100 * total:.0f} core-seconds")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("local", "side_by_side", "thousand"))
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as place:
        {"local": local, "side_by_side": side_by_side, "thousand": thousand}[what](Path(place))


if __name__ == "__main__":
    main()
