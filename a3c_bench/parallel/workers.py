"""Worker processes: they report, stand still when asked, and never outlive the run; a fault in one ends it in seconds.

The parent's side is `Workers`, the worker's `Link`. They share one integer in shared memory (what to do) and a pipe per
worker (what was done). There is no lock between them that a killed worker could leave locked.

Workers are forked from a process that has imported torch once, for all of them (`fork_server`).
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch import multiprocessing as mp

from a3c_bench.errors import WorkerError
from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.runtime.machine import allow_many_files, die_with_parent, usable_cores
from a3c_bench.runtime.signals import STOP_SIGNALS

_RUN, _STOP = 0, -1  # orders; a number above 0 is a pause. Each has its own: one may follow another at once
SECONDS_BETWEEN_REPORTS = 0.1
_SECONDS_TO_GET_READY = 120.0  # by a worker that has a core: Python, torch, environments, on a busy machine
_SECONDS_TO_DIE = 2.0


_LENGTH = 8  # bytes that say how long a message is


def write_message(pipe: Connection, message: Any) -> None:
    """Puts a message into a pipe, for the `Inbox` at its other end."""
    content = bytes(ForkingPickler.dumps(message))
    left = memoryview(len(content).to_bytes(_LENGTH, "big") + content)
    while left:
        left = left[os.write(pipe.fileno(), left) :]


class Inbox:
    """Reads a pipe and never waits: its writer may have been stopped in the middle of a message.

    Args:
        pipe: the end that reads.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._bytes = bytearray()  # the beginning of a message

    def take(self) -> list[Any]:
        """The messages that are there as a whole.

        Raises:
            EOFError: the writer has gone, and left no whole message that was not taken.
        """
        messages: list[Any] = []
        while self._pipe.poll():
            piece = os.read(self._pipe.fileno(), 1 << 16)
            if not piece and not messages:
                raise EOFError
            if not piece:
                break
            self._bytes += piece
            while (end := self._end) <= len(self._bytes):
                messages.append(pickle.loads(self._bytes[_LENGTH:end]))
                del self._bytes[:end]
        return messages

    @property
    def _end(self) -> int:
        """Where the message ends that has begun; it is whole if that has been read."""
        return _LENGTH + int.from_bytes(self._bytes[:_LENGTH], "big") if len(self._bytes) >= _LENGTH else _LENGTH


class Link:
    """The worker's end. Made by `Workers`."""

    def __init__(self, order: Tensor, reports: Connection, traces: Connection) -> None:
        self._order = order
        self._reports = reports
        self._traces = traces
        self._reported_at = 0.0

    def going(
        self,
        report: Callable[[], Any],
        resume: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
    ) -> bool:
        """To be asked between updates: sends a report when one is due, waits while paused, says whether to go on.

        Args:
            report: gives what happened since its last call.
            resume: called after a pause.
            settle: called before a pause, and before the end; others may stand still from then on.
        """
        order = int(self._order)
        if order != _RUN:
            settle()
        if order != _RUN or time.monotonic() - self._reported_at >= SECONDS_BETWEEN_REPORTS:
            self._send("report", report())
        while order > 0:
            self._send("standing")
            pause = order
            while (order := int(self._order)) == pause:
                self._leave_with_parent()
                time.sleep(0.001)
            resume()
        return order == _RUN

    def run(self, main: Callable[..., None], arguments: Sequence[Any]) -> None:
        """The life of a worker process."""
        leave_stops_to_the_parent()
        self._leave_with_parent()
        faulthandler.register(signal.SIGUSR1, file=self._traces.fileno())  # the parent asks a silent worker where it is
        try:
            self._send("started")
            main(self, *arguments)
            self._send("done")
        except BaseException:
            self._send("raised", traceback.format_exc())

    def _send(self, kind: str, content: Any = None) -> None:
        try:
            write_message(self._reports, (kind, content))
        except OSError:  # there is no parent any more
            os._exit(1)
        self._reported_at = time.monotonic()

    @staticmethod
    def _leave_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():
            os._exit(1)


class _Worker:
    """What the parent knows of one worker."""

    def __init__(self, name: str, process: BaseProcess, reports: Connection, traces: Connection) -> None:
        self.name = name
        self.process = process
        self.reports = reports
        self.inbox = Inbox(reports)
        self.traces = traces
        self.started = False
        self.ready = False  # it has asked at least once whether to go on
        self.standing = False
        self.done = False
        self.silent_seconds = 0.0


class Workers:
    """N processes. They start paused: set up what they need, and stand still until the first release.

    Args:
        main: run in each as main(link, *arguments); must be importable, and is to loop while link.going(...).
        arguments: of each worker.
        handle: called in the parent with each report.
        silence_seconds: a worker that says nothing for so long ends the run. One that is still making ready has two
            minutes, and so many times longer as there are more workers than cores: it may say nothing until it is.
        names: of each worker, for messages; by default "worker 0" and so on.
        together: with other processes like this one, asked again and again whether something holds here; says whether
            it holds for all of them. So they stand still, and see their workers leave, at once.
    """

    def __init__(
        self,
        main: Callable[..., None],
        arguments: Sequence[Sequence[Any]],
        handle: Callable[[Any], None],
        silence_seconds: float,
        names: Sequence[str] | None = None,
        together: Callable[[bool], bool] = bool,
    ) -> None:
        names = names or [f"worker {index}" for index in range(len(arguments))]
        allow_many_files()
        self._handle = handle
        self._together = together
        self._silence_seconds = silence_seconds
        self._seconds_to_get_ready = max(_seconds_to_get_ready(len(arguments)), silence_seconds)
        self._n_pauses = 1
        self._order = torch.ones(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._workers: list[_Worker] = []
        self._looked_at = time.monotonic()
        context = mp.get_context("forkserver")
        try:
            start_fork_server()
            for name, own_arguments in zip(names, arguments, strict=True):
                reports, reports_end = context.Pipe(duplex=False)
                traces, traces_end = context.Pipe(duplex=False)
                link = Link(self._order, reports_end, traces_end)
                process = context.Process(
                    target=link.run, args=(main, own_arguments), name=f"a3c_bench {name}", daemon=True
                )
                process.start()
                reports_end.close()  # so that the pipe ends with the worker
                traces_end.close()
                self._workers.append(_Worker(name.capitalize(), process, reports, traces))
        except BaseException:
            self._end()
            raise

    def poll(self, timeout: float) -> None:
        """Hands over the reports that have come, or come within `timeout` seconds.

        Raises:
            WorkerError: a worker raised, died or went silent.
        """
        living = [worker for worker in self._workers if not worker.done]
        ready = wait([worker.reports for worker in living], timeout)
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, 1.0), now  # if this process slept, they may not have
        for worker in living:
            if worker.reports in ready:
                self._read(worker)
            else:
                worker.silent_seconds += passed
                patience = self._silence_seconds if worker.ready else self._seconds_to_get_ready
                if worker.silent_seconds > patience and not worker.standing:
                    raise WorkerError(f"{worker.name} said nothing for {patience:g} seconds.\n"
                                      f"{self._where_it_is(worker)}")  # fmt: skip

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """While entered, no worker does anything, and all they did has been reported.

        Raises:
            WorkerError: as `poll`.
        """
        if int(self._order) == _RUN:  # else it is the pause in which they start
            self._n_pauses += 1
            self._order.fill_(self._n_pauses)
        while not self._together(all(worker.standing or worker.done for worker in self._workers)):
            self.poll(0.1)
        yield
        for worker in self._workers:
            worker.standing, worker.silent_seconds = False, 0.0
        if int(self._order) != _STOP:
            self._order.fill_(_RUN)

    @property
    def ready(self) -> bool:
        """Whether all of them have come so far as to ask whether to go on."""
        return all(worker.ready for worker in self._workers)

    def stop(self) -> None:
        """The workers end when they are done with what they are at; from a standstill, without another update."""
        self._order.fill_(_STOP)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets the workers finish their update and report it; after an error, ends them at once."""
        try:
            if error is None:
                self.stop()
                while not self._together(all(worker.done for worker in self._workers)):
                    self.poll(0.1)
        finally:
            self._end()

    def _read(self, worker: _Worker) -> None:
        worker.silent_seconds = 0.0
        try:
            messages = worker.inbox.take()
        except (EOFError, OSError):
            raise WorkerError(f"{worker.name} {how_it_died(worker.process)}.") from None
        for kind, content in messages:
            if kind == "started":
                worker.started = True
            elif kind == "standing":
                worker.ready = worker.standing = True
            elif kind == "done":
                worker.done = True
            elif kind == "raised":
                raise WorkerError(f"{worker.name} raised {content.strip().splitlines()[-1]}\n{content}")
            else:
                self._handle(content)

    @staticmethod
    def _where_it_is(worker: _Worker) -> str:
        """The stack of a silent worker, which its faulthandler writes into a pipe when asked by SIGUSR1."""
        if worker.started and worker.process.pid is not None:
            os.kill(worker.process.pid, signal.SIGUSR1)
            if worker.traces.poll(_SECONDS_TO_DIE):
                time.sleep(0.1)  # until it is whole
                return os.read(worker.traces.fileno(), 1 << 16).decode(errors="replace")
        return "It did not say where it is."

    def _end(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive() and not worker.done:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_SECONDS_TO_DIE)
            if worker.process.is_alive():  # done, but stuck on its way out
                worker.process.kill()
                worker.process.join()
            worker.process.close()
            worker.reports.close()
            worker.traces.close()
        self._workers = []


def _seconds_to_get_ready(n_workers: int) -> float:
    return _SECONDS_TO_GET_READY * max(1.0, n_workers / usable_cores())


def how_it_died(process: BaseProcess) -> str:
    """For messages, of a process whose pipe has ended."""
    process.join(_SECONDS_TO_DIE)
    status = process.exitcode
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def leave_stops_to_the_parent() -> None:
    """How a process begins that `start_fork_server`'s forks: deaf to stop signals, and ended with its parent.

    Stop signals are sent to the whole group, or by SLURM to all of a job; the parent decides.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    die_with_parent()
