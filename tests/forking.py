"""Runs in processes of their own that are forked from one which has imported all they need.

An import of torch takes several times as long as a small run. What a run does is the same as in a process that has been
started anew, `python -m a3c_bench.run`, but for what comes before `main`: signals that come while Python still imports.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_TO_START = 240.0  # on a busy machine

# Reads a line for each run: its words, its environment, some lines of Python to run first, and a folder for its output
# and its exit status. Each has a parent of its own that waits for it, so that several may run at once.
SERVER = """
import json, os, sys, traceback
import a3c_bench.run
import a3c_bench.train, a3c_bench.build, a3c_bench.envs.envpool, torch._dynamo
from a3c_bench.algos import a3c, async_q, dqn, ga3c, gorila, paac


def run(words, environment, setup, folder):
    os.setsid()
    for number, name in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["a3c_bench.run", *words]
    status = 70
    try:
        exec(setup, {})
        a3c_bench.run.main()
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


for line in sys.stdin:
    request = json.loads(line)
    if os.fork() == 0:
        process = os.fork()
        if process == 0:
            run(**request)
        print(process, flush=True)
        left = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with open(f"{request['folder']}/left", "w") as file:
            file.write(f"{left}\\n")
        os._exit(0)
    while True:  # parents that are done
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                break
        except ChildProcessError:
            break
"""


class Forked:
    """A run's process; what one asks a `subprocess.Popen` for."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._folder = folder

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        with suppress(FileNotFoundError):
            if (text := (self._folder / "left").read_text()).endswith("\n"):
                self.returncode = int(text)
        return self.returncode

    def wait(self, timeout: float = SECONDS_TO_START) -> int:
        """Its exit status, when it has ended."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("the run", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = SECONDS_TO_START) -> tuple[str, str]:
        """What it said, when it has ended: stdout and stderr."""
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, sent: int) -> None:
        """To the process alone."""
        os.kill(self.pid, sent)

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return (self._folder / "out").read_text()

    @property
    def stderr(self) -> str:
        """The same on stderr."""
        return (self._folder / "err").read_text()


class ForkingServer:
    """The process that forks; it is started with the first run."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._n_runs = 0
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def start(self, words: Sequence[str], setup: str = "") -> Forked:
        """A run, in a session of its own, with the environment of this process.

        Args:
            setup: Python to run in its process first.
        """
        with self._one_at_a_time:
            return self._start(words, setup)

    def _start(self, words: Sequence[str], setup: str) -> Forked:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        folder = self._place / str(self._n_runs)
        folder.mkdir()
        for name in ("out", "err"):
            (folder / name).touch()
        self._n_runs += 1
        request = {"words": list(words), "environment": dict(os.environ), "setup": setup, "folder": str(folder)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), folder)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(SECONDS_TO_START)


def end(process: Forked) -> None:
    """Ends a run and all of its session, if it has not ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
