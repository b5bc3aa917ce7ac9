"""Workers that take turns in this process: what they compute depends on no clock, so that it can be compared."""

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from a3c_bench.parallel.tokens import Tokens

TURNS_AT_A_TIME = 40  # of each worker between two looks of the parent


class Turn:
    """A worker's `Link`: it runs in a thread of its own, but only while the parent waits for it."""

    def __init__(self, main: Callable[..., None], arguments: Sequence[Any]) -> None:
        self.report: Callable[[], Any] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        self._goes_on = True
        self._error: BaseException | None = None
        self._mine, self._parents = threading.Semaphore(0), threading.Semaphore(0)

        def life() -> None:
            self._mine.acquire()
            try:
                main(self, *arguments)
            except BaseException as error:  # for the parent to raise
                self._error = error
            self._parents.release()

        self._thread = threading.Thread(target=life, daemon=True)
        self._thread.start()
        self.take()  # until it is ready

    def going(
        self,
        report: Callable[[], Any],
        resume: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
    ) -> bool:
        """As that of `Link`; the parent takes the report."""
        self.report, self.resume = report, resume
        self._parents.release()
        self._mine.acquire()
        return self._goes_on

    def take(self) -> None:
        """Lets the worker take one turn."""
        self._mine.release()
        self._parents.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Lets it go."""
        self._goes_on = False
        self.take()
        self._thread.join()


class WorkersInTurn:
    """`Workers`, but one works at a time: a turn of the first, one of the second, and so on."""

    def __init__(
        self,
        main: Callable[..., None],
        arguments: Sequence[Sequence[Any]],
        handle: Callable[[Any], None],
        silence_seconds: float,
        names: Sequence[str] | None = None,
    ) -> None:
        self._handle = handle
        self._workers = [Turn(main, own) for own in arguments]

    def poll(self, timeout: float) -> None:
        """So many turns of each, and what they report; through a pickle, as between processes."""
        for _ in range(TURNS_AT_A_TIME):
            for worker in self._workers:
                worker.take()
        self._report()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """They always stand still."""
        self._report()
        yield
        for worker in self._workers:
            worker.resume()

    def __enter__(self) -> "WorkersInTurn":
        return self

    def __exit__(self, *error: Any) -> None:
        for worker in self._workers:
            worker.end()

    def _report(self) -> None:
        for worker in self._workers:
            self._handle(pickle.loads(pickle.dumps(worker.report())))


def take_turns(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    """Runs by these modules have their workers in this process, and nobody waits for a token that is not there."""
    take = Tokens.take
    monkeypatch.setattr(Tokens, "take", lambda tokens, timeout: take(tokens, 0.0))
    for module in modules:
        monkeypatch.setattr(module, "Workers", WorkersInTurn)
