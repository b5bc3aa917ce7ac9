"""Being told to stop: SIGTERM, SIGINT, SIGHUP and SLURM's SIGUSR2 ask a run to save and leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class StopRequest:
    """While entered, remembers the first stop signal; a second SIGINT interrupts at once.

    SIGHUP stays ignored where it was: that is what nohup does. SIGTERM and SIGUSR2 do not: SLURM's jobs begin with them
    ignored, so that none is lost before this handler is there.

    Signals are delivered to the main thread only: elsewhere this does nothing, and a run can be stopped by `request`.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not _is_ignored(number)]
            self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def request(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks the run to stop, as that signal would."""
        self.signal = self.signal or number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(signal.Signals(number))


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def held_back() -> Iterator[None]:
    """While entered, stop signals wait; a process that is started here begins with them waiting too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """While entered, and no `StopRequest` is, Ctrl-C ends the process as SIGTERM does: at once, without a traceback.

    A SIGINT that somebody else handles or ignores stays theirs.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
