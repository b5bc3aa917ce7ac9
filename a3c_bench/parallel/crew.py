"""Threads that work together: they report, stand still when asked, and a fault in one ends the run in seconds.

The same face as `parallel.workers`, for threads of this process.
"""

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any

import torch

from a3c_bench.errors import WorkerError

_SECONDS_TO_GET_READY = 120.0  # by a thread that starts, on a busy machine
_SECONDS_TO_END = 2.0
SECONDS_BETWEEN_REPORTS = 0.02  # as often as who records looks for them
SECONDS_TO_WAIT = 0.05  # for others, before looking whether to pause or stop


class Member:
    """One thread's hold on its crew. Made by `Crew.start`."""

    def __init__(self, crew: "Crew", name: str) -> None:
        self.name = name
        self.stands_in: int | None = None  # the pause that this one waits in, or waited in last
        self.ready = False  # it has asked at least once whether to go on
        self.dismissed = False  # set it to let this one go, after its turn
        self.heard = True  # since the crew last looked
        self.silent_seconds = 0.0
        self.report: Callable[[], Any] | None = None  # gives what was done since its last call, for the crew's `handle`
        self.resume: Callable[[], None] = lambda: None  # called after a pause
        self.thread: threading.Thread
        self._crew = crew
        self._reported_at = 0.0

    def going(self) -> bool:
        """To be asked at every turn: reports if it is time, waits while the crew is paused, says whether to go on."""
        return self.awake() and not self.dismissed

    def awake(self) -> bool:
        """Waits while the crew is paused; False if it is to end. One that is dismissed finishes its turn first."""
        crew = self._crew
        self.ready = self.heard = True
        if time.monotonic() - self._reported_at >= SECONDS_BETWEEN_REPORTS:
            self.tell()
        while (pause := crew.pause) and not crew.stopped.is_set():
            self.tell()
            self.stands_in = pause
            while crew.pause == pause and not crew.stopped.is_set():
                time.sleep(0.001)
            self.resume()
        self.heard = True
        return not crew.stopped.is_set()

    def tell(self) -> None:
        """Hands a report to the crew, which takes it in the thread that polls."""
        if self.report is not None:
            self._crew.reports.put(self.report())
            self._reported_at = time.monotonic()

    def acquire(self, lock: threading.Lock) -> bool:
        """Takes a lock as soon as it is free; False if this one is to end first."""
        while self.going():
            if lock.acquire(timeout=SECONDS_TO_WAIT):
                return True
        return False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work that, in a crew that takes turns, one at a time does. Never wait for another thread inside."""
        self._begin_turn(may_pause=True)
        try:
            yield
        finally:
            self._end_turn()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within a turn, work for which the interpreter is not needed: others have theirs meanwhile."""
        self._end_turn()
        try:
            yield
        finally:
            self._begin_turn(may_pause=False)  # an update that is half done is brought to its end

    def _begin_turn(self, may_pause: bool) -> None:
        turns = self._crew.turns
        while turns is not None and not turns.acquire(timeout=SECONDS_TO_WAIT):
            self.heard = True
            if may_pause:
                self.awake()

    def _end_turn(self) -> None:
        if self._crew.turns is not None:
            self._crew.turns.release()


class Crew:
    """Threads that are started, paused and stopped together; paused at first, until the first standstill ends.

    Known elsewhere as a thread group, or a supervisor.

    Args:
        handle: called with each report, in the thread that polls.
        silence_seconds: a thread that is not heard of for so long ends the run; two minutes, while it starts.
        takes_turns: one thread at a time does the work of `Member.turn`. Torch lets go of the interpreter in each
            operation, so that of two threads each waits for the other all the time if their operations are short.
    """

    def __init__(self, handle: Callable[[Any], None], silence_seconds: float, takes_turns: bool = False) -> None:
        self.turns = threading.Lock() if takes_turns else None
        self.pause = 1  # 0 while all run. Each pause has a number of its own: one may follow another at once
        self._n_pauses = 1
        self.stopped = threading.Event()
        self.reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handle = handle
        self._silence_seconds = silence_seconds
        self._seconds_to_get_ready = max(_SECONDS_TO_GET_READY, silence_seconds)
        self._members: list[Member] = []
        self._looked_at = time.monotonic()

    def start(self, name: str, main: Callable[[Member], None]) -> Member:
        """Starts a thread that runs main(member), and is to loop while member.going()."""
        member = Member(self, name)

        def life() -> None:
            try:
                main(member)
                member.tell()
            except BaseException:
                self.reports.put(_Raised(name, traceback.format_exc()))

        member.thread = threading.Thread(target=life, name=f"a3c_bench {name}", daemon=True)
        self._members.append(member)
        member.thread.start()
        return member

    def poll(self, timeout: float) -> None:
        """Hands over the reports that come within `timeout` seconds.

        Raises:
            WorkerError: a thread raised, or went silent.
        """
        time.sleep(timeout)  # to wake at every report would take the interpreter from those who work
        with suppress(queue.Empty):
            while True:
                self._take(self.reports.get_nowait())
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, 1.0), now  # if this process slept, so did they
        self._members = [member for member in self._members if member.thread.is_alive()]
        for member in self._members:
            present = member.heard or member.stands_in == self.pause
            member.silent_seconds = 0.0 if present else member.silent_seconds + passed
            member.heard = False
            patience = self._silence_seconds if member.ready else self._seconds_to_get_ready
            if member.silent_seconds > patience:
                raise WorkerError(f"The {member.name} said nothing for {patience:g} seconds.\n"
                                  f"{_where_it_is(member)}")  # fmt: skip

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """While entered, no thread does anything, and all they did has been handed over.

        Raises:
            WorkerError: as `poll`.
        """
        if not self.pause:  # else it is the pause in which they start
            self._n_pauses += 1
            self.pause = self._n_pauses
        while not all(member.stands_in == self.pause for member in self._members):
            self.poll(0.001)
        while not self.reports.empty():
            self.poll(0.0)
        yield
        self.pause = 0

    def stop(self) -> None:
        """The threads end when they are done with what they are at; from a standstill, without another update."""
        self.stopped.set()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets the threads finish what they are at; after an error, those that hang are left behind."""
        self.stop()
        while error is None and any(member.thread.is_alive() for member in self._members):
            self.poll(0.01)
        for member in self._members:
            member.thread.join(_SECONDS_TO_END)
        while error is None and not self.reports.empty():
            self.poll(0.0)

    def _take(self, report: Any) -> None:
        if isinstance(report, _Raised):
            last = report.trace.strip().splitlines()[-1]
            raise WorkerError(f"The {report.name} raised {last}\n{report.trace}")
        self._handle(report)


class _Raised:
    """A thread's last report."""

    def __init__(self, name: str, trace: str) -> None:
        self.name = name
        self.trace = trace


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU, the work of the thread that enters this runs beside that of others."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()  # type: ignore[no-untyped-call]


def wait_for_own_stream(device: torch.device) -> None:
    """Until the GPU has done what this thread has asked of it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _where_it_is(member: Member) -> str:
    frame = sys._current_frames().get(member.thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "It did not say where it is."
