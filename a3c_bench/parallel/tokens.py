"""A semaphore between processes without a name that a killed run could leave in /dev/shm, as multiprocessing's do."""

import os
import select
import time
from contextlib import suppress
from multiprocessing import reduction
from types import TracebackType
from typing import Any


class Tokens:
    """A pipe that holds a byte for each token. With one token it is a lock: `with tokens: ...`.

    Known elsewhere as a counting semaphore.

    Made by the parent, which hands it to workers when it starts them.

    Args:
        n_tokens: at the start; there are never to be more than some thousands.
    """

    def __init__(self, n_tokens: int) -> None:
        self._out, self._in = os.pipe()
        self._prepare()
        os.write(self._in, bytes(n_tokens))

    def _prepare(self) -> None:
        os.set_blocking(self._out, False)  # several may have seen the one token that is there
        self._arrival = select.poll()
        self._arrival.register(self._out, select.POLLIN)

    def take(self, timeout: float) -> bool:
        """Takes a token, waiting for one for `timeout` seconds; says whether there was one."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(BlockingIOError):
                os.read(self._out, 1)
                return True
            left = deadline - time.monotonic()
            if left <= 0.0:
                return False
            self._arrival.poll(1000.0 * left)

    def give(self) -> None:
        """Puts a token in."""
        os.write(self._in, b"\0")

    def __enter__(self) -> None:
        while not self.take(1.0):
            pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give()

    def __del__(self) -> None:
        for end in (self._out, self._in):
            with suppress(OSError):
                os.close(end)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._out), reduction.DupFd(self._in)

    def __setstate__(self, ends: Any) -> None:
        self._out, self._in = (end.detach() for end in ends)
        self._prepare()
