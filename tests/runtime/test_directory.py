"""Run directories: whole rows, whole files, one process, one configuration."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from a3c_bench.errors import RunDirectoryError
from a3c_bench.runtime import directory
from a3c_bench.runtime.directory import (
    CsvFile,
    RunDirectory,
    differing_keys,
    read_status,
    replace_file,
    runs_below,
)
from a3c_bench.schema import PRESENTATION_KEYS, Config, LoggerConfig, WandbConfig

ROOT = Path(__file__).parents[2]
CONFIG = {"algo": {"name": "paac", "n_envs": 2, "optimizer": {"lr": 1e-5}}, "seed": 0, "root": "runs"}
HOLD = """
import sys
from pathlib import Path
from a3c_bench.runtime.directory import RunDirectory
held = RunDirectory(Path(sys.argv[1]), {"seed": 0})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


@contextmanager
def opened(path: Path, config: Mapping[str, Any] = CONFIG) -> Iterator[RunDirectory]:
    held = RunDirectory(path, config)
    try:
        yield held
    finally:
        held.close()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_rows_follow_one_header(table: Path) -> None:
    first = CsvFile(table, ["frames", "loss"])
    first.append([{"frames": 1, "loss": 0.5}, {"frames": 2}])
    first.append([])
    size = first.size
    first.close()
    second = CsvFile(table, ["frames", "loss"], size)
    second.append([{"loss": None, "frames": 3}])
    second.close()
    assert table.read_text() == "frames,loss\n1,0.5\n2,\n3,\n"


def test_a_table_of_an_older_version_keeps_its_columns(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    first = CsvFile(table, ["frames", "gone", "loss"])
    first.append([{"frames": 1, "gone": 2, "loss": 3}])
    size = first.size
    first.close()
    second = CsvFile(table, ["loss", "frames", "new"], size)
    second.append([{"frames": 4, "loss": 5, "new": 6}])
    second.close()
    assert table.read_text() == "frames,gone,loss\n1,2,3\n4,,5\n"


def test_reopening_drops_what_came_after_the_checkpoint(table: Path) -> None:
    first = CsvFile(table, ["frames"])
    first.append([{"frames": 1}])
    size = first.size
    first.append([{"frames": 2}])
    first.close()
    with table.open("a") as file:
        file.write("3")  # and half a row
    second = CsvFile(table, ["frames"], size)
    assert second.size == size
    second.append([{"frames": 20}])
    second.close()
    assert table.read_text() == "frames\n1\n20\n"


def test_size_zero_starts_anew(table: Path) -> None:
    table.write_text("old,columns\n1,2\n")
    CsvFile(table, ["frames"]).close()
    assert table.read_text() == "frames\n"


def test_a_table_shorter_than_its_checkpoint_is_refused_and_kept(table: Path) -> None:
    table.write_text("frames\n1\n")
    with pytest.raises(RunDirectoryError, match=r"metrics\.csv is shorter than its checkpoint says"):
        CsvFile(table, ["frames"], size=1000)
    assert table.read_text() == "frames\n1\n"


def test_an_unknown_column_is_an_error_and_writes_nothing(table: Path) -> None:
    rows = CsvFile(table, ["frames"])
    with pytest.raises(KeyError, match="steps"):
        rows.append([{"frames": 1}, {"frames": 2, "steps": 3}])
    rows.close()
    assert table.read_text() == "frames\n"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, ""),
        (True, "True"),
        (123_456_789, "123456789"),
        (0.1 + 0.2, "0.3"),
        (1e-12, "1e-12"),
        (12_345_678.9, "12345678.9"),
        (-12_345_678.9, "-12345678.9"),
        (float("nan"), "nan"),
        ("sample", "sample"),
        ("a, b", '"a, b"'),
    ],
)
def test_cells(table: Path, value: Any, written: str) -> None:
    rows = CsvFile(table, ["x", "y"])
    rows.append([{"x": value, "y": 1}])
    rows.close()
    assert table.read_text() == f"x,y\n{written},1\n"


@pytest.mark.parametrize("text", ["a, b", 'a "quoted" word', '"', "two\nlines", 'all, "of"\nthem'])
def test_any_text_is_read_back(table: Path, text: str) -> None:
    rows = CsvFile(table, ["x", "y"])
    rows.append([{"x": text, "y": 1}])
    rows.close()
    with table.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": text, "y": "1"}]


class FullDisk(io.FileIO):
    """Takes `room` more bytes, in part of a write if need be, then has no space left."""

    room = 1 << 30

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(self.room, len(data))
        self.room -= taken
        return super().write(data[:taken])


def test_a_full_disk_leaves_whole_rows(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "open", lambda path, mode, buffering: FullDisk(path, mode), raising=False)
    rows = CsvFile(table, ["frames"])
    disk: Any = rows._file
    rows.append([{"frames": 1}])
    for room in range(5):
        disk.room = room
        with pytest.raises(OSError, match="No space left"):
            rows.append([{"frames": 22}, {"frames": 33}])
        assert table.read_text() == "frames\n1\n"
        assert rows.size == len("frames\n1\n")
    disk.room = 6
    rows.append([{"frames": 22}, {"frames": 33}])
    rows.close()
    assert table.read_text() == "frames\n1\n22\n33\n"


# --- whole files ----------------------------------------------------------------------------------------------------


def test_replacing_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    replace_file(file, "one é")
    assert file.read_text() == "one é"
    replace_file(file, b"two")
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    file = tmp_path / "x"
    file.write_text("old")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory.os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    replace_file(file, json.dumps([0] * 20_000))
    seen: set[int] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            content = json.loads(file.read_text())
            assert content == [content[0]] * 20_000
            seen.add(content[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 30):
            replace_file(file, json.dumps([number] * 20_000))
        assert reader.is_alive()
    finally:
        over.set()
        reader.join()
    assert len(seen) > 1


# --- directories ----------------------------------------------------------------------------------------------------


def test_a_new_directory(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b", {"sizes": (1, 2), "lr": 1e-5, "clip": None}) as held:
        assert yaml.safe_load((held.path / "config.yaml").read_text()) == {"sizes": [1, 2], "lr": 1e-5, "clip": None}
        assert held.latest_checkpoint == held.path / "checkpoint" / "latest.pt"
        assert held.best_checkpoint.parent.is_dir()
        assert held.read_status() == {}


def test_status_keeps_other_keys(tmp_path: Path) -> None:
    with opened(tmp_path) as held:
        held.write_status(state="running", attempts=1)
        held.write_status(state="finished")
        status = read_status(tmp_path)
    assert status.pop("updated_at").endswith("Z")
    assert status == {"state": "finished", "attempts": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_broken_status_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) == {}


def test_held_by_one_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(RunDirectoryError, match="Another process is running in"):
        RunDirectory(tmp_path, CONFIG)
    with opened(tmp_path):
        pass


def test_held_by_another_process_until_it_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match="Another process is running in"):
            RunDirectory(tmp_path, {"seed": 0})
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        with opened(tmp_path, {"seed": 0}):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_a_refused_directory_is_let_go(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(RunDirectoryError):
        RunDirectory(tmp_path, CONFIG | {"seed": 1})
    with opened(tmp_path):
        pass


def test_another_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    before = (tmp_path / "config.yaml").read_bytes()
    other = {"algo": {"name": "paac", "n_envs": 4, "optimizer": {"lr": 1e-4}}, "seed": 0, "root": "runs", "new": None}
    with pytest.raises(RunDirectoryError) as refused:
        RunDirectory(tmp_path, other)
    assert "(algo.n_envs: 2 there, 4 asked; algo.optimizer.lr: 1e-05 there, 0.0001 asked)" in str(refused.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_five_differing_keys_are_named(tmp_path: Path) -> None:
    with opened(tmp_path, {f"key{i}": 0 for i in range(8)}):
        pass
    with pytest.raises(RunDirectoryError, match=r"key4: 0 there, 1 asked and 3 more\)"):
        RunDirectory(tmp_path, {f"key{i}": 1 for i in range(8)})


def test_presentation_may_differ(tmp_path: Path, tiny: Config) -> None:
    other = replace(
        tiny,
        root="elsewhere",
        name="other",
        progress=True,
        calibrate=True,
        checkpoint_interval_seconds=7.0,
        worker_silence_seconds=7.0,
        rank_silence_seconds=7.0,
        retry_diverged=True,
        tuned_for="CartPole-v1",
        logger=LoggerConfig(wandb=WandbConfig(mode="offline"), tensorboard=True),
    )
    changed = {key for key in asdict(tiny) if asdict(tiny)[key] != asdict(other)[key]}
    assert changed == set(PRESENTATION_KEYS)
    with opened(tmp_path, asdict(tiny)):
        pass
    with opened(tmp_path, asdict(other)):
        pass
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["name"] == "other"  # for the attempts to come


def test_differing_keys() -> None:
    there = {"a": 1, "b": {"c": 2, "d": [1, 2], "progress": 1}, "gone": 5}
    asked = {"a": 1, "b": {"c": 3, "d": [1, 2], "progress": 2}, "new": {"x": 1}}
    assert differing_keys(there, asked) == [
        ("b.c", 2, 3),
        ("b.progress", 1, 2),
        ("gone", 5, None),
        ("new", None, {"x": 1}),
    ]


def test_foreign_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("mine\n")
    with pytest.raises(RunDirectoryError, match=r"holds results but no config\.yaml"):
        RunDirectory(tmp_path, CONFIG)
    assert not (tmp_path / "config.yaml").exists()
    assert (tmp_path / "results.csv").read_text() == "mine\n"


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"a: [", b"\xff\xfe\x00"])
def test_a_broken_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"config\.yaml is not a configuration"):
        RunDirectory(tmp_path, CONFIG)


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be written: Not a directory"):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunDirectoryError, match="cannot be written: Permission denied"):
            RunDirectory(tmp_path / "run", CONFIG)
    finally:
        tmp_path.chmod(0o700)


def test_runs_below_a_directory_are_found_through_links_and_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "config.yaml").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "link_again").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "loop").symlink_to(root)
    assert runs_below(root) == [root / "link"]
    assert runs_below(tmp_path / "elsewhere") == [tmp_path / "elsewhere" / "a", tmp_path / "elsewhere" / "b"]
