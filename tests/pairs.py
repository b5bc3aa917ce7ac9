"""For tests of what several processes do together: their parts in one process, each in a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from a3c_bench.parallel.remote import Meeting

SECONDS_TO_MEET = 60.0


@contextmanager
def meeting() -> Iterator[Meeting]:
    """A store where bundles and shards find each other."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=SECONDS_TO_MEET), False)
    yield Meeting("127.0.0.1", store.port, "attempt 1", "lo")
    del store


def side_by_side(*makers: Callable[[], Any]) -> list[Any]:
    """What each gives, all called at once."""
    made: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, make=make: made.update({i: make()}), daemon=True)
        for i, make in enumerate(makers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS_TO_MEET)
    return [made[i] for i in range(len(makers))]
