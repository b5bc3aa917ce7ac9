"""The ranks of a job of SLURM: where they meet, and what each task does."""

import logging
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from a3c_bench.config import compose
from a3c_bench.errors import ConfigError, RankError
from a3c_bench.launch import rendezvous, slurm
from a3c_bench.launch.job import Job
from a3c_bench.launch.rendezvous import FileRendezvous
from a3c_bench.parallel.ranks import Place
from a3c_bench.runtime.directory import RunDirectory, read_job, read_status, read_yaml, write_status
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import Config


@pytest.fixture(scope="module")
def paac() -> Config:
    return compose(["algo=paac"])


# --- where they meet --------------------------------------------------------------------------------------------------


def test_a_rank_that_comes_first_waits(tmp_path: Path) -> None:
    first, second = (FileRendezvous(tmp_path / "file", "job 7 start 1", host) for host in ("10.0.0.1", "10.0.0.2"))
    FileRendezvous(tmp_path / "file", "job 7 start 0", "10.0.0.9").publish(1)  # of an earlier start
    later = threading.Timer(0.1, first.publish, [4711])
    later.start()
    assert second.find(20.0) == ("10.0.0.1", 4711)
    later.join()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    first.forget()
    assert list(tmp_path.iterdir()) == []


def test_nobody_comes(tmp_path: Path) -> None:
    FileRendezvous(tmp_path / "file", "another start", "10.0.0.9").publish(1)
    with pytest.raises(RankError, match=r"^Rank 0 did not say within 0 seconds where it listens, in .*file\.$"):
        FileRendezvous(tmp_path / "file", "this start", "10.0.0.2").find(0.0)


def test_rank_0_calls_it_off(tmp_path: Path) -> None:
    meeting = FileRendezvous(tmp_path / "file", "this start", "10.0.0.1")
    meeting.call_off("latest.pt is damaged.")
    with pytest.raises(RankError, match=r"^Rank 0 failed: latest.pt is damaged\.$"):
        meeting.find(20.0)


def test_every_start_has_a_token_of_its_own() -> None:
    task = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    others = [{}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_ARRAY_TASK_ID": "2"}, {"SLURM_JOB_ID": "9"}]
    assert len({rendezvous.token(task | other) for other in others}) == 4
    assert rendezvous.token(task) == rendezvous.token(dict(task))


def test_the_address_that_the_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def towards(host: str) -> str:
        asked.append(host)
        if host == "nowhere":
            raise OSError(-2, "Name or service not known")
        return f"address towards {host}"

    monkeypatch.setattr(rendezvous, "_address_towards", towards)

    def address(nodes: str, here: str, **more: str) -> str:
        return rendezvous.address({"SLURM_JOB_NODELIST": nodes, "SLURMD_NODENAME": here} | more)

    assert address("n1", "n1") == "127.0.0.1"
    assert address("n[1-3]", "n1") == "address towards n3"
    assert address("n[1-3]", "n3") == "address towards n1"
    assert address("n1,nowhere", "n1", SLURM_LAUNCH_NODE_IPADDR="10.0.0.1") == "address towards 10.0.0.1"
    with pytest.raises(RankError, match=r"^The node nowhere of this job has no address: Name or service not known\.$"):
        address("n1,nowhere", "n1")
    assert asked == ["n3", "n1", "nowhere", "10.0.0.1", "nowhere"]


def test_the_interface_of_an_address() -> None:
    assert rendezvous._address_towards("127.0.0.1") == "127.0.0.1"
    assert rendezvous.interface_with("127.0.0.1") == "lo"
    assert rendezvous.interface_with("192.0.2.77") is None  # of a network for examples


# --- the job ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`task(i)` makes this process task i of two, of a job on two nodes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def become(index: int) -> None:
        said = {
            **{"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": f"n{index + 1}"},
            **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": "0"},
        }
        for name, value in said.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(slurm, "this_job", lambda: None)
    monkeypatch.setattr(rendezvous, "_address_towards", lambda host: "127.0.0.1")
    yield become
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("submitit").propagate = True


@pytest.fixture
def run(tmp_path: Path, paac: Config) -> Path:
    """A directory with a configuration of two ranks."""
    RunDirectory(tmp_path, asdict(replace(paac, ranks=2))).close()
    return tmp_path


def test_each_task_is_a_rank_and_rank_0_keeps_the_books(
    task: Callable[[int], None], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Place] = []

    def train(config: Config, directory: Path, stop: StopRequest, place: Place) -> dict[str, Any]:
        places.append(place)
        if place.index == 0:
            place.rendezvous.publish(4711)
        assert place.rendezvous.find(20.0) == ("127.0.0.1", 4711)
        return {"state": "preempted", "stop_signal": "SIGUSR2"}

    monkeypatch.setattr("a3c_bench.train.train", train)
    task(0)
    with pytest.raises(SystemExit) as left:
        Job(on_slurm=True)(str(run))
    assert left.value.code == 140
    assert read_job(run)["nodes"] == "n[1-2]"
    assert read_status(run)["stop_reason"] == "unknown"  # nobody answers here
    assert not (run / rendezvous.FILE).exists()
    before = {path: path.read_text() for path in run.glob("*.json")}
    places[0].rendezvous.publish(4711)  # as it was while they trained
    task(1)
    Job(on_slurm=True)(str(run))
    assert {path: path.read_text() for path in run.glob("*.json")} == before
    assert [(place.index, place.size, place.local_index, place.local_size, place.node) for place in places] == [
        (0, 2, 0, 1, "n1"),
        (1, 2, 0, 1, "n2"),
    ]
    assert {place.interface for place in places} == {"lo"}


@pytest.mark.parametrize("rank_0_is_there", [True, False])
def test_a_failure_is_noted_by_rank_0_or_by_those_who_outlive_it(
    task: Callable[[int], None], run: Path, monkeypatch: pytest.MonkeyPatch, rank_0_is_there: bool
) -> None:
    def train(config: Config, directory: Path, stop: StopRequest, place: Place) -> dict[str, Any]:
        raise RankError("Rank 0 on n1 died, or cannot be reached.")

    monkeypatch.setattr("a3c_bench.train.train", train)
    write_status(run, state="running")
    held = RunDirectory(run, read_yaml(run / "config.yaml"))
    if not rank_0_is_there:
        held.close()
    task(1)
    with pytest.raises(SystemExit) as left:
        Job(on_slurm=True)(str(run))
    assert left.value.code == 1
    status = read_status(run)
    if rank_0_is_there:
        assert (status["state"], status.get("error")) == ("running", None)
        held.close()
    else:
        assert (status["state"], status["error"]) == ("failed", "RankError: Rank 0 on n1 died, or cannot be reached.")


def test_rank_0_that_cannot_start_sends_the_others_home(
    task: Callable[[int], None], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Config, directory: Path, stop: StopRequest, place: Place) -> dict[str, Any]:
        if place.index == 0:
            raise ConfigError("device=cuda was asked for, but torch finds no CUDA GPU here: say device=cpu.")
        place.rendezvous.find(20.0)
        raise AssertionError("Nobody was to be found.")

    monkeypatch.setattr("a3c_bench.train.train", train)
    for index, status in ((0, 2), (1, 1)):
        task(index)
        with pytest.raises(SystemExit) as left:
            Job(on_slurm=True)(str(run))
        assert left.value.code == status
    assert "no CUDA GPU" in read_status(run)["error"]
