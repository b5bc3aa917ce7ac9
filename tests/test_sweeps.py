"""The named sweeps: what they are, their tiny variants, and how fast they are composed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from a3c_bench import config as config_module
from a3c_bench import train as train_module
from a3c_bench.algos import algorithm_names, find_settings
from a3c_bench.calibration import calibrate
from a3c_bench.config import compose, compose_points, compose_sweep, config_directory, from_hydra, sweeps_directory
from a3c_bench.errors import ConfigError
from a3c_bench.launch.points import Point, check_points
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import Config

Cli = Callable[..., Any]
SWEEPS = sorted(file.stem for file in sweeps_directory().glob("*.yaml"))
KNOWN = ",".join(algorithm_names())
# How many runs the issue of each sweep is, with the algorithms that are known here.
N_RUNS = {
    "headline": 9,
    "forced_lag": 80,
    "forced_lag_pong": 10,
    "lag_vs_lr": 175,
    "wirings": 30,
    "lag_vs_agents": 15,
    "stragglers": 36,
    "speedup_vs_workers": 15,
    "speedup_q_methods": 45,
    "async_methods": 12,
    "n_envs": 15,
    "advantages": 120,
    "lr_sensitivity": 50,
    "throughput": len(algorithm_names()),
}
ON_ATARI = ["a3c", "dqn", "ga3c", "gorila", "n_step_q", "one_step_q", "one_step_sarsa", "paac", "pgql", "ppo", "pqn"]
ATARI = {"atari_paac_games": len(ON_ATARI) * 12 * 3, "atari57": len(ON_ATARI) * 57 * 5}


def test_they_are_all_there() -> None:
    assert set(SWEEPS) == set(N_RUNS) | set(ATARI)
    assert {file.stem for file in (sweeps_directory() / "tiny").glob("*.yaml")} - {"settings"} == set(SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_first_lines_say_what_one_needs(name: str) -> None:
    lines = (sweeps_directory() / f"{name}.yaml").read_text().splitlines()
    head = "\n".join(lines[:8])
    assert lines[0].startswith(f"# python -m a3c_bench.run +sweeps={name} ")
    for word in ("# Purpose: ", "# Cost: ", "# Draw: python -m analysis."):
        assert word in head
    module = re.search(r"# Draw: python -m (analysis\.\w+) runs/(\w+)", head)
    assert module is not None
    assert module.group(2) == name
    assert (sweeps_directory().parent / Path(*module.group(1).split("."))).with_suffix(".py").exists()


@pytest.mark.parametrize("name", sorted(N_RUNS))
def test_how_many_runs(name: str) -> None:
    hydra, points = compose_sweep([f"+sweeps={name}"])
    assert len(points) == N_RUNS[name]
    assert {config.name for _, config in points} == {name}
    assert hydra.mode.name == "MULTIRUN"


@pytest.mark.parametrize("name", sorted(ATARI))
def test_the_algorithms_on_atari(name: str) -> None:
    content = yaml.safe_load((sweeps_directory() / f"{name}.yaml").read_text())
    params = content["hydra"]["sweeper"]["params"]
    algorithms, games, seeds = (params[key].split(",") for key in ("algo", "env.game", "seed"))
    assert algorithms == ON_ATARI
    assert len(algorithms) * len(set(games)) * len(seeds) == ATARI[name]
    _, points = compose_sweep([f"+sweeps={name}", "algo=paac", "seed=0"])
    assert [config.env.game for _, config in points] == games
    _, points = compose_sweep([f"+sweeps={name}", "env.game=Pong", "seed=0"])
    assert [config.device for _, config in points] == [
        "cpu" if find_settings(one).forks else "cuda" for one in ON_ATARI
    ]


def test_the_learning_rate_grows_with_the_environments() -> None:
    _, points = compose_sweep(["+sweeps=n_envs", "seed=0"])
    rates = {config.algo.n_envs: config.algo.optimizer.lr for _, config in points}
    assert rates == {n: pytest.approx(0.0007 * n) for n in (16, 32, 64, 128, 256)}


def test_step_times_differ_in_their_spread_alone() -> None:
    _, points = compose_sweep(["+sweeps=stragglers", "algo=paac,ga3c", "seed=0"])
    times = {(t := config.env.step_time).distribution: (t.mean_seconds, t.deviation_seconds) for _, config in points}
    assert times == {
        "none": (None, None),
        "constant": (0.005, None),
        "exponential": (0.005, None),
        "lognormal": (0.005, 0.015),
    }


N_TINY_RUNS = {  # of a tiny variant
    "headline": 3,
    "forced_lag": 2,
    "forced_lag_pong": 1,
    "lag_vs_lr": 2,
    "wirings": 3,
    "lag_vs_agents": 4,
    "stragglers": 2,
    "speedup_vs_workers": 2,
    "speedup_q_methods": 2,
    "async_methods": 2,
    "n_envs": 2,
    "advantages": 6,
    "lr_sensitivity": 2,
    "throughput": 2,
    "atari_paac_games": len(algorithm_names()),
    "atari57": 4,
}
# The others take seconds; these train all algorithms on Atari games, calibrate, or start many threads.
LONG_ONES = {"async_methods", "atari57", "atari_paac_games", "lag_vs_agents", "throughput"}
TINY_ONES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG_ONES else name for name in SWEEPS]


@pytest.mark.parametrize("name", TINY_ONES)
def test_the_tiny_variant_runs_to_its_end(cli: Cli, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "calibrate", lambda config: calibrate(config, 1, 0.05))  # 15 s as it is
    ended = cli(f"+sweeps=tiny/{name}", f"root={tmp_path}")
    assert (ended.exit_status, ended.stderr) == (0, "")
    runs = list(tmp_path.glob(f"tiny_{name}/**/status.json"))
    assert len(runs) == N_TINY_RUNS[name]
    assert {read_status(run.parent)["state"] for run in runs} == {"finished"}
    assert all(read_status(run.parent)["frames"] >= 200 for run in runs)
    if name == "throughput":
        assert all("calibration" in read_status(run.parent) for run in runs)


# --- composing fast -------------------------------------------------------------------------------------------------


POINTS = (
    ("seed=3", "algo=paac"),
    ("algo=a3c", "env=pong", "network=nips", "algo.t_max=7"),
    ("algo.optimizer.lr=1e-3", "algo=ga3c", "budget.frames=null"),
    ("network.hidden_sizes=[8,9]", "advantage=gae", "advantage.gae_lambda=0.5"),
    ("experiment=pong", "algo=paac", "algo.n_envs=8"),
    ("logger.wandb.tags=[a,b]", "+sweeps=n_envs", "algo.n_envs=16"),
    ("env=atari", "env.game=Qbert"),
)


@pytest.fixture(scope="module")
def composed_together() -> dict[tuple[str, ...], Config]:
    """Each of POINTS, and each with another seed: in one sweep, so that they share what they choose alike."""
    points = [("seed=1",), *((*point, "seed=5") for point in POINTS), *POINTS]
    compose(["seed=0"])  # registers the schemas
    with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        from hydra import compose as hydra_compose

        loader = GlobalHydra.instance().config_loader()
        master = hydra_compose("config", return_hydra_config=True)
        found = compose_points(loader, master, points)
    return dict(zip(points, map(from_hydra, found), strict=True))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: " ".join(point))
def test_points_are_what_hydra_composes(
    point: tuple[str, ...], composed_together: dict[tuple[str, ...], Config]
) -> None:
    """Beside others, so that the shared composition is not changed by the first that uses it."""
    assert composed_together[point] == compose(point)
    assert composed_together[*point, "seed=5"] == compose([*point, "seed=5"])


def test_a_bad_point_is_told_as_ever() -> None:
    with pytest.raises(ConfigError, match=r"algo.n_env is not a key of the configuration: did you mean n_envs"):
        compose_sweep(["seed=0,1", "algo.n_env=3"])
    with pytest.raises(ConfigError, match="algo=dqm is not known"):
        compose_sweep(["seed=0,1", "algo=paac,dqm"])


def test_two_points_of_one_directory_are_refused() -> None:
    config = compose([])
    with pytest.raises(ConfigError, match="Two points of the sweep are the same run, x: leave one out"):
        check_points([Point(Path("x"), config), Point(Path("x"), config)], on_this_machine=True)


def test_seeds_share_a_composition_and_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[int] = []
    real = config_module.compose_points

    def counted(loader: Any, master: Any, points: Sequence[Sequence[str]]) -> Any:
        composed.append(len(points))
        return real(loader, master, points)

    monkeypatch.setattr(config_module, "compose_points", counted)
    _, points = compose_sweep(["+sweeps=atari57", "algo=paac,a3c", "env.game=Pong,Qbert"])
    assert composed == [4]
    assert len(points) == 20
    monkeypatch.setattr(re, "fullmatch", lambda pattern, text: None)  # no word is known for a seed: each is composed
    _, slow = compose_sweep(["+sweeps=atari57", "algo=paac,a3c", "env.game=Pong,Qbert"])
    monkeypatch.undo()
    assert composed[1:] == [20]
    assert [config for _, config in points] == [config for _, config in slow]
    _, points = compose_sweep(["seed=3,4", "name=x${seed}"])
    assert [(config.seed, config.name) for _, config in points] == [(3, "x3"), (4, "x4")]
