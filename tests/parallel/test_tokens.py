"""Tokens: counted between processes, waited for no longer than asked, and without a name."""

import time
from typing import Any

import torch
from torch import multiprocessing as mp

from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.parallel.tokens import Tokens


def test_tokens_are_counted() -> None:
    tokens = Tokens(2)
    assert [tokens.take(0.0) for _ in range(3)] == [True, True, False]
    tokens.give()
    assert [tokens.take(0.0) for _ in range(2)] == [True, False]


def test_one_waits_no_longer_than_asked() -> None:
    start = time.monotonic()
    assert not Tokens(0).take(0.1)
    assert 0.1 <= time.monotonic() - start < 2.0


def test_a_lock_is_given_back_after_an_error() -> None:
    lock = Tokens(1)
    try:
        with lock:
            assert not lock.take(0.0)
            raise KeyError
    except KeyError:
        pass
    assert lock.take(0.0)


def count_up(lock: Tokens, go: Tokens, tally: Any) -> None:
    assert go.take(60.0)
    for _ in range(2000):
        with lock:
            tally[0] += 1  # read, add and write: not whole without the lock


def test_processes_take_turns() -> None:
    lock, go, tally = Tokens(1), Tokens(0), torch.zeros(1, dtype=torch.int64).share_memory_()
    start_fork_server()
    context = mp.get_context("forkserver")  # which has imported torch already
    processes = [context.Process(target=count_up, args=(lock, go, tally)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        go.give()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert int(tally[0]) == 4000
