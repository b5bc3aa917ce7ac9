"""What tests leave in shared memory is found, and nothing else."""

import subprocess
import sys
import time
from multiprocessing import get_context

import torch
from leftovers import SHARED_MEMORY, left_behind

# In the background, so that it is no child of this process any more; until its standard input ends.
OTHER = """
import os, sys
from multiprocessing import get_context
if os.fork():
    os._exit(0)
lock = get_context("spawn").Lock()
print(lock._semlock.name, flush=True)
sys.stdin.read()
"""


def test_semaphores_of_another_program_are_its_own() -> None:
    before = set(SHARED_MEMORY.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip().lstrip("/")
        other.wait()  # the process that forked it
        semaphore = SHARED_MEMORY / f"sem.{name}"
        assert semaphore.exists()
        assert semaphore not in left_behind(before, patience=0.0)
        assert semaphore.exists()


def test_a_semaphore_that_this_process_keeps_is_found() -> None:
    before = set(SHARED_MEMORY.iterdir())
    lock = get_context("spawn").Lock()
    semaphore = SHARED_MEMORY / f"sem.{lock._semlock.name.lstrip('/')}"  # type: ignore[attr-defined]
    assert semaphore in left_behind(before, patience=0.3)
    del lock
    assert semaphore not in left_behind(before, patience=5.0)


def test_a_file_that_nobody_has_open_is_found_until_it_is_gone() -> None:
    before = set(SHARED_MEMORY.iterdir())
    left = SHARED_MEMORY / f"torch_{time.time_ns()}_1_0"
    left.write_bytes(b"left")
    try:
        assert left in left_behind(before, patience=0.0)
        assert left not in left_behind({*before, left}, patience=0.0)
    finally:
        left.unlink()
    assert left not in left_behind(before, patience=0.0)


def test_what_a_child_keeps_is_ours() -> None:
    before = set(SHARED_MEMORY.iterdir())
    left = SHARED_MEMORY / f"psm_{time.time_ns()}"
    script = "import sys; file = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            assert left in left_behind(before, patience=0.0)
        finally:
            left.unlink()


def test_shared_tensors_leave_nothing() -> None:
    before = set(SHARED_MEMORY.iterdir())
    shared = torch.zeros(8).share_memory_()
    assert left_behind(before, patience=0.0) == set()
    assert shared.is_shared()
