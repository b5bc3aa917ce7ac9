"""What a test leaves in shared memory, told from what other programs of this machine keep there."""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from a3c_bench.runtime.machine import family

SHARED_MEMORY = Path("/dev/shm")


def left_behind(before: Collection[Path], patience: float) -> set[Path]:
    """Files in /dev/shm that were not there before, that this user made and that no program uses but this one.

    What others use is theirs: other tests beside this one, and programs that have nothing to do with us.

    Args:
        before: what lay there at first.
        patience: seconds that a file has to vanish.
    """
    until = time.monotonic() + patience
    while (left := _unclaimed(set(SHARED_MEMORY.iterdir()) - set(before))) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def _unclaimed(files: set[Path]) -> set[Path]:
    if not files:
        return set()
    ours = set(family(os.getpid()))
    others = (int(entry.name) for entry in Path("/proc").glob("[0-9]*") if int(entry.name) not in ours)
    claimed = {inode for pid in others for inode in _used_by(pid)}
    return {path for path in files if _is_ours(path, claimed)}


def _used_by(pid: int) -> Iterator[int]:
    """Inodes of the files in shared memory that a process has mapped or open; semaphores are mapped by another name."""
    with suppress(OSError):  # it ended meanwhile, or is another user's
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if f" {SHARED_MEMORY}/" in line:
                yield int(line.split()[4])
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink().is_relative_to(SHARED_MEMORY):
                    yield descriptor.stat().st_ino


def _is_ours(path: Path, claimed: Collection[int]) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and status.st_ino not in claimed
