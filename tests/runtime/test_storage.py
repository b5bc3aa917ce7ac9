"""Room for large arrays: what the machine and its control groups leave, and files that outlive their process."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from a3c_bench.errors import ConfigError
from a3c_bench.runtime import storage

GIB = 1 << 30
FLOATS = np.dtype(np.float32)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `proc` and `cgroup` of a machine that has 8 GiB left."""
    for name in ("_PROC", "_CGROUPS"):
        monkeypatch.setattr(storage, name, tmp_path / name)
    write(tmp_path / "_PROC" / "meminfo", f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_machine_decides(machine: Path) -> None:
    assert storage.available_memory_bytes() == 8 * GIB
    write(machine / "_PROC" / "self" / "cgroup", "0::/\n")
    assert storage.available_memory_bytes() == 8 * GIB
    (machine / "_PROC" / "meminfo").unlink()
    assert storage.available_memory_bytes() is None


def test_the_narrowest_control_group_decides(machine: Path) -> None:
    """Version 2: a job without a limit of its own, in a user's slice of 4 GiB. Page cache can be had back."""
    write(machine / "_PROC" / "self" / "cgroup", "0::/slice/job\n")
    write(machine / "_CGROUPS" / "slice" / "job" / "memory.max", "max\n")
    write(machine / "_CGROUPS" / "slice" / "job" / "memory.current", f"{GIB}\n")
    write(machine / "_CGROUPS" / "slice" / "memory.max", f"{4 * GIB}\n")
    write(machine / "_CGROUPS" / "slice" / "memory.current", f"{3 * GIB}\n")
    assert storage.available_memory_bytes() == GIB
    write(machine / "_CGROUPS" / "slice" / "memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert storage.available_memory_bytes() == 3 * GIB


def test_control_groups_of_version_1(machine: Path) -> None:
    """As in a container, which sees its own group as the root and knows nothing of the name outside."""
    write(machine / "_PROC" / "self" / "cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    write(machine / "_CGROUPS" / "memory" / "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(machine / "_CGROUPS" / "memory" / "memory.usage_in_bytes", f"{GIB}\n")
    assert storage.available_memory_bytes() == GIB


def test_too_little_memory_is_one_sentence(machine: Path) -> None:
    storage.check_memory(8 * GIB, "the replay", "make it smaller")
    words = (
        "the replay needs 8,589,934,593 bytes of memory, but only 8,589,934,592 are available here: make it smaller."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        storage.check_memory(8 * GIB + 1, "the replay", "make it smaller")


def test_this_machine_says_something() -> None:
    available = storage.available_memory_bytes()
    assert available is None or 0 <= available < 1 << 60


def test_too_little_disk(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    free = shutil.disk_usage(tmp_path).free
    storage.check_disk(1 << 20, directory, "the replay", "make it smaller")
    with pytest.raises(ConfigError, match=r"^the replay needs [\d,]+ bytes in .*: make it smaller\.$"):
        storage.check_disk(2 * free, directory, "the replay", "make it smaller")
    assert not directory.exists()


def test_files_that_are_there_are_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    array = storage.mapped_files(tmp_path)("x", (1 << 16,), FLOATS)
    array[:] = 1.0
    array.flush()
    storage.check_disk(array.nbytes, tmp_path, "the replay", "make it smaller")
    with pytest.raises(ConfigError):
        storage.check_disk(array.nbytes + (1 << 20), tmp_path, "the replay", "make it smaller")


def test_mapped_files_keep_what_was_written(tmp_path: Path) -> None:
    allocate = storage.mapped_files(tmp_path / "new" / "directory")
    array = allocate("numbers", (3, 2), FLOATS)
    assert not array.any()
    array[1] = 7.0
    del array
    assert allocate("numbers", (3, 2), FLOATS).tolist() == [[0.0, 0.0], [7.0, 7.0], [0.0, 0.0]]
    assert [file.name for file in (tmp_path / "new" / "directory").iterdir()] == ["numbers.npy"]


@pytest.mark.parametrize(("shape", "dtype"), [((3,), FLOATS), ((4,), np.dtype(np.int64))])
def test_mapped_files_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...], dtype: "np.dtype") -> None:
    allocate = storage.mapped_files(tmp_path)
    allocate("numbers", (4,), FLOATS)
    with pytest.raises(ValueError, match=r"numbers\.npy holds float32 of shape \(4,\)"):
        allocate("numbers", shape, dtype)
