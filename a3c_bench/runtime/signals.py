"""Being told to stop: SIGTERM, SIGINT and SLURM's SIGUSR2 ask a run to save and leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """While entered, remembers the first stop signal; a second SIGINT interrupts at once.

    Signals are delivered to the main thread only: elsewhere this does nothing, and a run can be stopped by `request`.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
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


@contextmanager
def held_back() -> Iterator[None]:
    """While entered, stop signals wait; a process that is started here begins with them waiting too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
