"""Runs of several ranks: how many the launchers and torchrun start, and what each gets."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import SlurmExecutor

from a3c_bench.config import compose
from a3c_bench.errors import ConfigError, RankError
from a3c_bench.launch import cluster, job, slurm, sweep
from a3c_bench.launch.local import Slot, slots
from a3c_bench.launch.options import LocalOptions, SlurmOptions, check_local, check_slurm
from a3c_bench.launch.points import Point
from a3c_bench.launch.ranks import with_ranks
from a3c_bench.launch.slurm import ThisJob, ThisTask, hosts, parse_job
from a3c_bench.runtime import machine
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import Config
from a3c_bench.train import joined

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def paac() -> Config:
    return compose(["algo=paac"])


# --- how many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LocalOptions(), 1),
        (LocalOptions(ranks=3), 3),
        (SlurmOptions(), 1),
        (SlurmOptions(nodes=2), 2),
        (SlurmOptions(nodes=2, ranks_per_node=3), 6),
        (SlurmOptions(gpus_per_node=4), 4),
        (SlurmOptions(nodes=2, gpus_per_node=4), 8),
        (SlurmOptions(nodes=2, gpus_per_node=4, ranks_per_node=2), 4),
        (SlurmOptions(gpus_per_node=4, ranks_per_node=1), 1),
        (SlurmOptions(gres="gpu:a100:2"), 2),
        (SlurmOptions(gres="gpu:3,lustre:1"), 3),
        (SlurmOptions(gres="gpu:a100", nodes=2), 2),
        (SlurmOptions(gres="lustre:4"), 1),
    ],
)
def test_the_launcher_says_how_many(paac: Config, options: LocalOptions | SlurmOptions, expected: int) -> None:
    (check_local if isinstance(options, LocalOptions) else check_slurm)(options)  # type: ignore[arg-type]
    assert with_ranks(paac, options, ["seed=0"]) == replace(paac, ranks=expected)


def test_the_command_line_may_say_it_too(paac: Config) -> None:
    two = replace(paac, ranks=2)
    assert with_ranks(two, LocalOptions(), ["ranks=2"]) == two
    assert with_ranks(two, LocalOptions(ranks=2), ["ranks=2"]) == two
    assert with_ranks(two, SlurmOptions(nodes=2), ["ranks=2"]) == two


@pytest.mark.parametrize(
    ("ranks", "words", "options", "sentence"),
    [
        (3, ["ranks=3"], LocalOptions(ranks=2), "ranks=3 contradicts hydra.launcher.ranks=2: say one of them."),
        (1, ["ranks=1"], LocalOptions(ranks=2), "ranks=1 contradicts hydra.launcher.ranks=2: say one of them."),
        (
            2,
            ["ranks=2"],
            SlurmOptions(),
            "ranks=2 contradicts hydra.launcher.nodes=1, which starts 1 rank on each: leave ranks out, or say "
            "hydra.launcher.ranks_per_node=2.",
        ),
        (
            4,
            [],  # a file of the configuration says so
            SlurmOptions(nodes=2, gpus_per_node=4),
            "ranks=4 contradicts hydra.launcher.nodes=2, which starts 4 ranks on each (one for each GPU): leave ranks "
            "out, or say hydra.launcher.ranks_per_node=2.",
        ),
    ],
)
def test_two_that_contradict_each_other(
    paac: Config, ranks: int, words: list[str], options: LocalOptions | SlurmOptions, sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        with_ranks(replace(paac, ranks=ranks), options, words)
    assert str(refused.value) == sentence


def test_an_algorithm_without_ranks_is_refused() -> None:
    dqn = compose(["algo=dqn"])
    with pytest.raises(
        ConfigError, match=r"^algo=dqn does not train on several ranks: .*; leave hydra.launcher.ranks=2 out\.$"
    ):
        with_ranks(dqn, LocalOptions(ranks=2), [])
    with pytest.raises(ConfigError, match=r"say hydra.launcher.nodes=1 and hydra.launcher.ranks_per_node=1"):
        with_ranks(dqn, SlurmOptions(gpus_per_node=2), [])
    assert with_ranks(dqn, SlurmOptions(gpus_per_node=2, ranks_per_node=1), []).ranks == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SlurmOptions(nodes=0), "hydra.launcher.nodes=0"),
        (SlurmOptions(ranks_per_node=0), "hydra.launcher.ranks_per_node=0"),
        (SlurmOptions(gpus_per_node=3, ranks_per_node=2), "cannot share the 3 GPUs of a node"),
        (SlurmOptions(gpus_per_node=1, ranks_per_node=2), "say hydra.launcher.gpus_per_node=2"),
    ],
)
def test_what_slurm_cannot_be_asked(options: SlurmOptions, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_slurm(options)


def test_ranks_of_this_machine_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match=r"hydra.launcher.ranks=0"):
        check_local(LocalOptions(ranks=0))


@pytest.mark.parametrize(
    ("options", "n_cores", "expected"),
    [
        (LocalOptions(ranks=2), 2, [Slot((0, 1), ())]),  # one at once, so that each rank has a core
        (LocalOptions(ranks=2), 4, [Slot((0, 1), ()), Slot((2, 3), ())]),
        (LocalOptions(ranks=4), 2, [Slot((0, 1), ())]),
        (LocalOptions(ranks=2, cores_per_run=1), 2, [Slot((0,), ()), Slot((1,), ())]),
    ],
)
def test_a_core_for_each_rank(options: LocalOptions, n_cores: int, expected: list[Slot]) -> None:
    assert slots(options, range(n_cores), []) == expected


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """The points that a launcher was given, which starts nothing."""
    found: list[Point] = []

    def launch(points: Sequence[Point], *rest: Any) -> int:
        found.extend(points)
        return 0

    monkeypatch.setattr(sweep, "launch_local", launch)
    monkeypatch.setattr(sweep, "launch_slurm", launch)
    return found


def test_each_point_has_its_own_number(cli: Cli, launched: list[Point], tmp_path: Path) -> None:
    assert cli("-m", f"root={tmp_path}", "ranks=1,2", "hydra/launcher=local").exit_status == 0
    assert [point.config.ranks for point in launched] == [1, 2]
    assert [point.directory.parent.name for point in launched] == ["paac", "ranks=2"]


def test_the_number_is_a_part_of_the_directory(cli: Cli, launched: list[Point], tmp_path: Path) -> None:
    words = ("hydra/launcher=slurm_gpu", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4")
    assert cli("-m", f"root={tmp_path}", "seed=0,1", *words).exit_status == 0
    assert [point.config.ranks for point in launched] == [8, 8]
    assert {point.directory.parent.name for point in launched} == {"ranks=8"}


def test_a_contradiction_is_one_sentence(cli: Cli, launched: list[Point], tmp_path: Path) -> None:
    ended = cli("-m", f"root={tmp_path}", "ranks=1,2", "hydra/launcher=local", "hydra.launcher.ranks=2")
    assert ended.exit_status == 2
    assert ended.stderr == "a3c_bench: ranks=1 contradicts hydra.launcher.ranks=2: say one of them.\n"
    assert launched == []


# --- what SLURM is asked, and what each task gets ---------------------------------------------------------------------


def test_the_script_asks_for_nodes_and_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SlurmExecutor, "affinity", lambda *_: 2)
    options = SlurmOptions(nodes=2, gpus_per_node=4, cpus_per_task=3, mem_gb=5)
    text = cluster._executor(options, tmp_path, "x")._make_submission_file_text("run", "1")
    lines = set(text.splitlines())
    asked = {"nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=3", "mem=5GB"}
    assert {f"#SBATCH --{one}" for one in asked} <= lines
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1" in srun.split()
    assert "--cpus-per-task=3" in srun.split()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("n1", ["n1"]),
        ("n[1-2]", ["n1", "n2"]),
        ("gpu[08-10,12],login", ["gpu08", "gpu09", "gpu10", "gpu12", "login"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
    ],
)
def test_lists_of_nodes(nodes: str, expected: list[str]) -> None:
    assert hosts(nodes) == expected


def test_the_cores_of_each_node() -> None:
    line = (
        "JobState=RUNNING JOB_GRES=(null)   Nodes=n[1,3] CPU_IDs=0-1 Mem=1 GRES=   Nodes=n2 CPU_IDs=4,6 Mem=1 GRES= "
        "MinCPUsNode=1 Requeue=1"
    )
    found = {node: parse_job(line, node) for node in ("n1", "n2", "n3", "n4")}
    assert {node: one.cpu_ids for node, one in found.items() if one} == {
        "n1": (0, 1),
        "n2": (4, 6),
        "n3": (0, 1),
        "n4": (),
    }


@pytest.mark.parametrize(
    ("cpu_ids", "usable", "task", "expected"),
    [
        ((0, 1, 2, 3), range(8), ThisTask(0, 2, 0, 2), {0, 1}),  # counted, bound to nothing
        ((0, 1, 2, 3), range(8), ThisTask(1, 2, 1, 2), {2, 3}),
        ((0, 1, 2, 3), range(4, 8), ThisTask(1, 2, 1, 2), {6, 7}),  # the job is bound, its tasks are not
        ((0, 1, 2, 3), (4, 5), ThisTask(1, 2, 1, 2), None),  # each task is bound
        ((2, 3), range(8), ThisTask(), {2, 3}),
        ((2, 3), (2, 3), ThisTask(), None),
        ((), range(8), ThisTask(), None),  # nobody knows
    ],
)
def test_a_task_keeps_to_its_own_cores(
    monkeypatch: pytest.MonkeyPatch, cpu_ids: tuple[int, ...], usable: Sequence[int], task: ThisTask, expected: Any
) -> None:
    kept: list[set[int]] = []
    monkeypatch.setattr(slurm, "this_job", lambda: ThisJob("RUNNING", 0, False, None, cpu_ids))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(usable))
    monkeypatch.setattr(machine, "keep_to_cores", kept.append)
    job._keep_to_own_cores(task)
    assert kept == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("given", "task", "expected"),
    [
        ("0,1,2,3", ThisTask(1, 2, 1, 2), "2,3"),
        ("4,5", ThisTask(3, 4, 1, 2), "5"),
        ("7", ThisTask(1, 2, 1, 2), "7"),  # SLURM shows each task its own
        ("0,1", ThisTask(), "0,1"),
        ("", ThisTask(1, 2, 1, 2), ""),
    ],
)
def test_a_task_sees_its_own_gpus(monkeypatch: pytest.MonkeyPatch, given: str, task: ThisTask, expected: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    job._keep_to_own_gpus(task)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_cores_and_gpus_are_shared_out() -> None:
    assert machine.shared_out([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert machine.shared_out([3, 5], 3) == [[3], [5], [3]]
    assert machine.shared_out([], 2) == [[], []]


def test_each_rank_needs_a_gpu_of_its_own() -> None:
    sentence = r"^ranks=3 with device=cuda takes a GPU for each, but the run has 2 GPUs\.$"
    with pytest.raises(ConfigError, match=sentence):
        machine.check_gpus("cuda", 3, 2)
    machine.check_gpus("cuda", 2, 2)
    machine.check_gpus("cpu", 3, 2)
    machine.check_gpus("cuda", 1, 0)  # which resolve_device refuses in its own words


def test_more_ranks_than_gpus_are_refused_before_any_starts(monkeypatch: pytest.MonkeyPatch, paac: Config) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (
        pytest.raises(ConfigError, match="but the run has 1 GPU"),
        joined(replace(paac, ranks=2, device="cuda"), None, StopRequest()),
    ):
        pass
    monkeypatch.setattr(sweep, "check_points", lambda *points, **where: None)
    point = Point(Path("nowhere"), replace(paac, ranks=2, device="cuda"))
    with pytest.raises(ConfigError, match="but the run has 1 GPU"):
        sweep.launch_local([point], LocalOptions(), Path("nowhere"))
    assert not Path("nowhere").exists()


def test_too_few_cores_are_told(
    monkeypatch: pytest.MonkeyPatch, paac: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "check_points", lambda *points, **where: None)
    monkeypatch.setattr(sweep, "_prepare", lambda points: [])
    monkeypatch.setattr(sweep, "_wait", lambda *rest: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for ranks in (2, 3):
        sweep.launch_local([Point(tmp_path / "run", replace(paac, ranks=ranks))], LocalOptions(), tmp_path)
    assert [record.message for record in caplog.records] == ["3 ranks of a run share 2 cores."]


def test_which_task_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.this_task() == ThisTask(0, 1, 0, 1, "")
    said = {"NTASKS": "6", "PROCID": "4", "LOCALID": "1", "STEP_NUM_NODES": "2"}
    for name, value in said.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert slurm.this_task() == ThisTask(4, 6, 1, 3, "n2")
    assert not slurm.this_task().leads


# --- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`torchrun(index, size)` makes this process one of its ranks."""

    def start(index: int, size: int) -> None:
        said = {"RANK": index, "WORLD_SIZE": size, "LOCAL_RANK": index, "LOCAL_WORLD_SIZE": size}
        for name, value in ({"TORCHELASTIC_RUN_ID": "x"} | said).items():
            monkeypatch.setenv(name, str(value))

    yield start
    logging.disable(logging.NOTSET)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path]]:
    """What `train` was called with, which ends with SIGTERM at once."""
    calls: list[tuple[Config, Path]] = []

    def train(config: Config, directory: Path) -> dict[str, Any]:
        calls.append((config, directory))
        logging.getLogger("a3c_bench").info("Something to tell.")
        return {"state": "preempted", "stop_signal": "SIGTERM"}

    monkeypatch.setattr("a3c_bench.train.train", train)
    return calls


@pytest.mark.parametrize(("index", "status"), [(0, 143), (1, 0)])
def test_torchrun_says_how_many_and_rank_0_speaks(
    cli: Cli,
    torchrun: Callable[..., None],
    trained: list[tuple[Config, Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    index: int,
    status: int,
) -> None:
    torchrun(index, 2)
    kept: list[list[int]] = []
    monkeypatch.setattr(machine, "keep_to_cores", kept.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    ended = cli(f"root={tmp_path}")
    assert kept == [[2 * index, 2 * index + 1]]
    assert [(config.ranks, directory.parent.name) for config, directory in trained] == [(2, "ranks=2")]
    assert ended.exit_status == status
    assert ("Stopped by SIGTERM and saved" in ended.stdout) is (index == 0)
    assert bool(ended.stdout) is (index == 0)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("-m", "seed=0,1"),
            "torchrun starts the ranks of one run: leave -m out, or say -m hydra.launcher.ranks=... without it.",
        ),
        (("ranks=3",), "ranks=3 contradicts torchrun, which starts 2: leave ranks out."),
        (("algo.n_envs=0",), "algo.n_envs=0 must be at least 1."),
    ],
)
def test_what_torchrun_cannot_start(
    cli: Cli,
    torchrun: Callable[..., None],
    trained: list[tuple[Config, Path]],
    index: int,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    torchrun(index, 2)
    ended = cli(*words)
    assert ended.exit_status == 2
    assert ended.stderr == (f"a3c_bench: {sentence}\n" if index == 0 else "")
    assert trained == []


def test_a_rank_that_fails_says_who_it_is(
    cli: Cli, torchrun: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train(config: Config, directory: Path) -> dict[str, Any]:
        raise RankError("Rank 0 on n1 died, or cannot be reached.")

    monkeypatch.setattr("a3c_bench.train.train", train)
    torchrun(1, 2)
    ended = cli(f"root={tmp_path}")
    assert ended.exit_status == 1
    assert ended.stderr == "a3c_bench: rank 1: Rank 0 on n1 died, or cannot be reached.\n"
