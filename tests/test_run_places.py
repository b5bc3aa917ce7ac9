"""Where a run lives: the path that its configuration and its words give."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, TINY, write
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from a3c_bench.config import compose, compose_points, compose_sweep, from_hydra, run_directory
from a3c_bench.envs.spec import ATARI
from a3c_bench.runtime.directory import RunDirectory
from a3c_bench.schema import Config


def place(config: Config, overrides: Sequence[str]) -> str:
    return str(run_directory(config, overrides))


LEVELS: list[tuple[list[str], str]] = [  # what was said, and the part of the path for it
    ([], ""),
    (["algo=paac", "env=cartpole", "env.id=CartPole-v1", "env.game=null"], ""),
    (["progress=false", "calibrate=true", "checkpoint_interval_seconds=5", "logger=wandb"], ""),
    (["logger.wandb.mode=online", "logger.wandb.tags=[a]", "retry_diverged=true"], ""),
    (["evaluation.n_games=2", "budget.frames=4000", "metrics_interval_frames=10", "lag.enabled=false"], ""),
    (["algo.n_envs=64"], "algo.n_envs=64/"),
    (["++algo.n_envs=64"], "algo.n_envs=64/"),
    (["algo.n_envs=3", "algo.n_envs=64"], "algo.n_envs=64/"),
    (["network=nature", "algo.t_max=7", "algo=paac"], "algo.t_max=7,network=nature/"),
    (["algo.t_max=7", "network=nature"], "algo.t_max=7,network=nature/"),
    (["network.hidden_sizes=[64, 64]", "device=cuda:0"], "device=cuda:0,network.hidden_sizes=[64,64]/"),
    (["device=a/b"], "device=a_b/"),
    (["env.reward_clip=1"], "env.reward_clip=1/"),
    (["env.reward_clip=1.0"], "env.reward_clip=1/"),
    (["algo.optimizer.lr=1e-3"], "algo.optimizer.lr=0.001/"),
    (["algo.optimizer.lr=0.00100"], "algo.optimizer.lr=0.001/"),
    (["algo.optimizer.lr=0.00001"], "algo.optimizer.lr=1e-05/"),
    (["network.shared_trunk=true"], "network.shared_trunk=True/"),
    (["network.shared_trunk=True"], "network.shared_trunk=True/"),
    (["network.shared_trunk=yes"], "network.shared_trunk=True/"),
    (["algo.optimizer.max_grad_norm=null"], "algo.optimizer.max_grad_norm=null/"),
]


@pytest.fixture(scope="module")
def configs() -> list[Config]:
    """Of LEVELS, composed together."""
    fixed = ["root=r", "name=n", "seed=3"]
    compose([])  # registers the schemas
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        master = hydra_compose("config", overrides=fixed, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        points = compose_points(loader, master, [[*overrides, *fixed] for overrides, _ in LEVELS])
    return [from_hydra(point) for point in points]


@pytest.mark.parametrize("i", range(len(LEVELS)), ids=[" ".join(overrides) for overrides, _ in LEVELS])
def test_paths(i: int, configs: list[Config]) -> None:
    overrides, level = LEVELS[i]
    assert place(configs[i], overrides) == f"r/n/CartPole-v1/paac/{level}seed3"


def test_paths_leave_out_what_is_hydras(tiny: Config) -> None:
    words = ["hydra/launcher=submitit_slurm", "hydra.verbose=true", "+sweeps=headline", "~algo.n_envs"]
    assert place(tiny, words) == "runs/default/CartPole-v1/paac/algo.n_envs/seed0"


@pytest.mark.parametrize(
    ("name", "level"), [("tiny", ""), ("mine", "experiment=tiny/")], ids=["of its own", "that says nothing of it"]
)
def test_paths_tell_experiments_apart(name: str, level: str, tiny: Config) -> None:
    assert place(replace(tiny, name=name), ["experiment=tiny"]) == f"runs/{name}/CartPole-v1/paac/{level}seed0"


def test_one_run_has_one_directory_however_it_is_started(cli: Callable[..., Any], tmp_path: Path) -> None:
    """The words alone, and as a point of a sweep, which gives Hydra's spelling."""
    words = [*TINY, "algo.optimizer.lr=1e-3", "network.shared_trunk=false", f"root={tmp_path}", "progress=false"]
    assert cli(*words).exit_status == 0
    (directory,) = (file.parent for file in tmp_path.rglob("config.yaml"))
    ended = cli("-m", *words, "seed=0")
    assert ended.exit_status == 0, ended
    assert "is finished already" in ended.stdout
    assert [file.parent for file in tmp_path.rglob("config.yaml")] == [directory]


@pytest.mark.parametrize(
    ("words", "key"),
    [(("evaluation.policy=sample,greedy",), "evaluation.policy"), (("budget.frames=200,400",), "budget.frames")],
)
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_points_that_would_be_one_run_are_refused(
    words: Sequence[str], key: str, launcher: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    others = [word for word in TINY if not word.startswith(key)]
    ended = cli("-m", *others, *words, f"root={tmp_path}/runs", f"hydra/launcher={launcher}")
    assert ended.exit_status == 2
    place = f"{tmp_path}/runs/default/CartPole-v1/paac/algo.n_envs=2,n_torch_threads=1/seed0"
    assert ended.stderr == (
        f"a3c_bench: Two points of the sweep are the same run, {place}: they differ in {key} alone, with which a run "
        f"only goes on; give each a name of its own: 'name=mine-${{{key}}}'.\n"
    )
    assert not list(tmp_path.rglob("config.yaml"))
    if launcher == "basic":  # the way out, which knows of none
        _, points = compose_sweep([*others, *words, f"name=mine-${{{key}}}"])
        assert len({run_directory(config, overrides) for overrides, config in points}) == 2


def test_points_that_differ_in_their_experiment_alone_are_two_runs(own_conf: Path) -> None:
    for i in (3, 4):
        write(own_conf / "experiment" / f"mine{i}.yaml", i)
    _, points = compose_sweep(["experiment=mine3,mine4", "root=r"])
    assert [str(run_directory(config, overrides)) for overrides, config in points] == [
        f"r/default/CartPole-v1/paac/experiment=mine{i}/seed0" for i in (3, 4)
    ]


@pytest.mark.parametrize("level", ["algo.optimizer.lr=1e-3", "algo.optimizer.lr=1e-3,budget.frames=4000"])
def test_a_directory_of_an_older_version_stays_a_runs_place(level: str, tmp_path: Path) -> None:
    words = level.split(",")
    config = compose([*words, f"root={tmp_path}"])
    new = run_directory(config, words)
    assert new.parent.name == "algo.optimizer.lr=0.001"
    old = new.parents[1] / level / "seed0"
    RunDirectory(old, asdict(replace(config, seed=1))).close()
    assert run_directory(config, words) == new  # it holds another run
    shutil.rmtree(old)
    RunDirectory(old, asdict(config)).close()
    assert run_directory(config, words) == old
    assert run_directory(config, ["algo.optimizer.lr=0.001"]) == new  # typed otherwise, it was another directory


def test_paths_name_the_game(tiny: Config) -> None:
    pong = replace(tiny, env=replace(tiny.env, id=ATARI, game="Pong"))
    assert place(pong, ["env=pong"]) == "runs/default/Pong/paac/seed0"
    slash = replace(tiny, env=replace(tiny.env, id="phys2d/CartPole-v1"))
    assert place(slash, []) == "runs/default/phys2d_CartPole-v1/paac/seed0"


def test_paths_tell_what_is_seen(tiny: Config) -> None:
    config = replace(tiny, env=replace(tiny.env, observed=(0, 2)))
    assert run_directory(config, []).parts[-3] == f"{tiny.env.id}-sees-0-2"


def test_many_overrides_still_have_a_short_name_of_their_own(tiny: Config) -> None:
    many = [f"algo.setting_number_{i}=value{i}" for i in range(30)]
    others = [*many[:-1], "algo.setting_number_29=another"]
    first, second = run_directory(tiny, many), run_directory(tiny, others)
    assert first != second
    assert run_directory(tiny, many[::-1]) == first
    for path in (first, second):
        assert len(path.parent.name) == 150
        assert path.parent.name.startswith("algo.setting_number_0=value0,")
        assert path.parent.parent == run_directory(tiny, []).parent
