"""Worker processes: reports, standstill, and every way in which one can fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from a3c_bench.errors import WorkerError
from a3c_bench.parallel import workers as workers_module
from a3c_bench.parallel.workers import Inbox, Link, Workers, write_message

N = 2


def count(link: Link, counts: Tensor, index: int, action: Callable[[int], None] | None = None) -> None:
    """Counts to a million, and reports what it counted."""
    counted = 0

    def report() -> int:
        nonlocal counted
        result, counted = counted, 0
        return result

    while link.going(report):
        counted += 1
        counts[index] += 1
        if action is not None and counts[index] > 200:
            action(index)
        time.sleep(0.001)


def raise_error(index: int) -> None:
    if index == 1:
        raise ZeroDivisionError("one over nothing")


def kill_itself(index: int) -> None:
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def leave(index: int) -> None:
    if index == 1:
        os._exit(3)


def hang_here(index: int) -> None:
    if index == 1:
        time.sleep(600)


def freeze(index: int) -> None:
    if index == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def raise_at_start(link: Link, counts: Tensor, index: int) -> None:
    raise_error(index)
    count(link, counts, index)


def hang_at_start(link: Link, counts: Tensor, index: int) -> None:
    hang_here(index)
    count(link, counts, index)


def die_at_start(link: Link, counts: Tensor, index: int) -> None:
    kill_itself(index)
    count(link, counts, index)


def children() -> set[str]:
    """Processes of this one that are not gone, zombies included, without multiprocessing's own helpers."""
    table = subprocess.run(
        ["ps", "-ww", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True
    ).stdout
    lines = [line.strip() for line in table.splitlines()]
    return {
        line for line in lines if not any(word in line for word in ("resource_tracker", "forkserver", "ps -ww --ppid"))
    }


def shared_counts() -> Tensor:
    counts: Tensor = torch.zeros(N, dtype=torch.int64).share_memory_()
    return counts


@pytest.fixture(autouse=True)
def leaves_nothing(leaves_no_shared_memory: None) -> Any:
    processes = children()
    yield
    assert children() <= processes


def test_every_count_is_reported_and_a_standstill_is_one() -> None:
    counts, reported = shared_counts(), []
    with Workers(count, [(counts, i) for i in range(N)], reported.append, 10.0) as workers:
        with workers.standstill():
            assert counts.sum() == 0  # they start paused
        for _ in range(3):
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                workers.poll(0.05)
            with workers.standstill():
                before = counts.clone()
                assert before.sum() == sum(reported)
                time.sleep(0.1)
                assert torch.equal(counts, before)
        assert counts.min() > 50
    assert counts.sum() == sum(reported)  # the last reports came too


def test_pauses_may_follow_each_other_at_once() -> None:
    """A worker that slept through the moment between two knows the second from the first."""
    counts = shared_counts()
    with Workers(count, [(counts, i) for i in range(N)], lambda report: None, 2.0) as workers:
        for _ in range(20):
            for _ in range(3):
                with workers.standstill():
                    before = counts.clone()
                    time.sleep(0.002)
                    assert torch.equal(counts, before)
            workers.poll(0.01)
        until = time.monotonic() + 10.0
        while torch.equal(counts, before):
            workers.poll(0.05)
            assert time.monotonic() < until


def note_resumptions(link: Link, counts: Tensor, index: int) -> None:
    def resume() -> None:
        counts[index] += 1

    while link.going(lambda: None, resume):
        time.sleep(0.001)


def test_a_worker_is_told_when_a_pause_is_over() -> None:
    counts = shared_counts()
    with Workers(note_resumptions, [(counts, i) for i in range(N)], lambda report: None, 10.0) as workers:
        for _ in range(3):
            with workers.standstill():
                pass
            workers.poll(0.05)
        with workers.standstill():
            assert counts.tolist() == [3, 3]


def run_until_it_fails(main: Callable[..., None], action: Callable[[int], None] | None) -> tuple[str, float]:
    """The message, and the seconds from the first release to it."""
    counts = shared_counts()
    arguments = [(counts, i) if action is None else (counts, i, action) for i in range(N)]
    started = time.monotonic()
    with pytest.raises(WorkerError) as caught, Workers(main, arguments, lambda report: None, 1.5) as workers:  # noqa: PT012
        with workers.standstill():
            started = time.monotonic()
        while True:
            workers.poll(0.1)
            assert time.monotonic() - started < 30
    return str(caught.value), time.monotonic() - started


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (raise_error, ["Worker 1 raised ZeroDivisionError: one over nothing", "in raise_error"]),
        (kill_itself, ["Worker 1 was killed by SIGKILL"]),
        (leave, ["Worker 1 ended with exit status 3"]),
        (hang_here, ["Worker 1 said nothing for", "in hang_here"]),
        (freeze, ["Worker 1 said nothing for", "did not say where it is"]),
    ],
)
def test_a_fault_midway_ends_the_run_with_the_workers_own_words(
    action: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if action is freeze:
        monkeypatch.setattr(workers_module, "_SECONDS_TO_DIE", 0.2)  # so long it is asked where it is
    message, seconds = run_until_it_fails(count, action)
    assert all(word in message for word in words), message
    assert seconds < 15


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (raise_at_start, ["Worker 1 raised ZeroDivisionError", "in raise_at_start"]),
        (hang_at_start, ["Worker 1 said nothing for 4 seconds", "in hang_at_start"]),
        (die_at_start, ["Worker 1 was killed by SIGKILL"]),
    ],
)
def test_a_fault_at_the_start_too(main: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if main is hang_at_start:
        monkeypatch.setattr(workers_module, "_SECONDS_TO_GET_READY", 4.0)
        monkeypatch.setattr(workers_module, "usable_cores", lambda: N)
    message, _ = run_until_it_fails(main, None)
    assert all(word in message for word in words), message


def make_ready_for_long(link: Link, counts: Tensor, index: int) -> None:
    time.sleep(2.0)
    count(link, counts, index)


def test_workers_may_take_longer_to_get_ready_than_to_be_found_silent() -> None:
    counts, reported = shared_counts(), []
    with Workers(make_ready_for_long, [(counts, i) for i in range(N)], reported.append, 0.7) as workers:
        with workers.standstill():
            assert reported == [0, 0]
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            workers.poll(0.05)
    assert sum(reported) > 0


@pytest.mark.parametrize(("n_workers", "seconds"), [(1, 120.0), (2, 120.0), (8, 480.0)])
def test_workers_that_share_cores_have_longer(monkeypatch: pytest.MonkeyPatch, n_workers: int, seconds: float) -> None:
    monkeypatch.setattr(workers_module, "usable_cores", lambda: 2)
    assert workers_module._seconds_to_get_ready(n_workers) == seconds


def test_an_error_of_the_parent_ends_the_workers() -> None:
    def raise_key_error(report: int) -> None:
        raise KeyError

    with pytest.raises(KeyError), Workers(count, [(shared_counts(), 0)], raise_key_error, 10.0) as workers:
        workers.poll(60.0)


PARENT = """
import os, sys, time
from multiprocessing import forkserver, resource_tracker
sys.path[:0] = sys.argv[1:]
from test_workers import count, shared_counts
from a3c_bench.parallel import workers
from a3c_bench.runtime.signals import STOP_SIGNALS, StopRequest


def stop_all(moment):
    for sent in STOP_SIGNALS:
        os.killpg(0, sent)
    time.sleep(0.2)
    helpers = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
    print(moment, *(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in helpers), flush=True)


if __name__ == "__main__":
    with StopRequest():
        workers.start_fork_server()
        stop_all("starting")
        with workers.Workers(count, [(shared_counts(), i) for i in range(2)], lambda report: None, 60.0) as made:
            stop_all("forking")
            with made.standstill():
                stop_all("standing")
            made.poll(0.1)
            stop_all("running")
            with made.standstill():
                print(*(worker.process.pid for worker in made._workers), flush=True)
            while True:
                made.poll(0.1)
"""


def test_workers_outlive_stop_signals_to_the_whole_group_but_not_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        for moment in ("starting", "forking", "standing", "running"):
            assert parent.stdout.readline() == f"{moment} True True\n"
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_workers_stand_still_and_leave_together_with_those_of_other_processes() -> None:
    """Here all do at once, for there are none; the others say so when they are asked for the third time."""
    asked: list[bool] = []

    def together(holds: bool) -> bool:
        asked.append(holds)
        return len(asked) % 3 == 0

    with Workers(count, [], lambda report: None, 10.0, together=together) as workers, workers.standstill():
        assert asked == [True] * 3
    assert asked == [True] * 6


def test_a_worker_settles_before_it_says_that_it_stands_or_ends() -> None:
    order, reports, read = torch.zeros(1, dtype=torch.int64), *Pipe()
    link, inbox, said = Link(order, reports, reports), Inbox(read), list[Any]()

    def settle() -> None:
        said.extend([*inbox.take(), "settled"])

    assert link.going(lambda: None, settle=settle)
    order.fill_(-1)
    assert not link.going(lambda: None, settle=settle)
    said += inbox.take()
    assert said == [("report", None), "settled", ("report", None)]


def test_nobody_waits_for_the_rest_of_a_message() -> None:
    """A worker may be stopped while it writes what a pipe cannot hold at once."""
    read, written = Pipe(duplex=False)
    inbox, messages = Inbox(read), [("report", bytes(200_000)), ("report", {"a": 1.0})]
    took: list[Any] = []
    writer = threading.Thread(target=lambda: [write_message(written, message) for message in messages])
    writer.start()
    while len(took) < 2:
        took += inbox.take()
    assert took == messages
    writer.join()
    whole, copied = Pipe(duplex=False)
    write_message(copied, ("report", "x" * 100))
    sent = os.read(whole.fileno(), 1000)
    for piece, found in ((sent[:3], []), (sent[3:50], []), (sent[50:] + sent[:9], [("report", "x" * 100)])):
        os.write(written.fileno(), piece)
        assert inbox.take() == found
    os.write(written.fileno(), sent[9:])
    written.close()
    assert inbox.take() == [("report", "x" * 100)]
    with pytest.raises(EOFError):
        inbox.take()
