"""Every preset of conf/ composes, says what it promises, and trains."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, TINY, composed, said
from omegaconf import OmegaConf

from a3c_bench.algos import algorithm_names, find_algorithm, find_settings
from a3c_bench.config import compose, compose_sweep
from a3c_bench.envs.spec import ATARI
from a3c_bench.errors import ConfigError
from a3c_bench.launch.options import LocalOptions, SlurmOptions
from a3c_bench.runtime.directory import plain
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, check
from a3c_bench.train import check_run, check_settings, settings_in_words, train


def presets(group: str) -> list[str]:
    """The options of a group, as its files say."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def differences(config: Any, wanted: dict[str, Any], path: str = "") -> list[str]:
    """Keys of `wanted` that have another value in the configuration."""
    found = []
    for key, value in wanted.items():
        there = getattr(config, key)
        if isinstance(value, dict):
            found += differences(there, value, f"{path}{key}.")
        elif there != value:
            found.append(f"{path}{key}: {there!r}, not {value!r}")
    return found


def game_of(env: str) -> list[str]:
    """What must be said beside env=<env>."""
    return ["env.game=Qbert"] if env == ATARI else []


@pytest.mark.parametrize("env", presets("env"))
def test_an_environment_composes_and_is_made(env: str) -> None:
    config = composed(f"env={env}", *game_of(env))
    check_run(config)
    wanted = said(CONF / "env" / f"{env}.yaml")
    if env == ATARI:
        wanted["env"]["game"] = "Qbert"
    assert differences(config, wanted) == []
    if config.env.game is not None:
        assert (config.env.frame_skip, config.network.kind, config.budget.frames) == (4, "nips", 320_000_000)
    else:
        assert (config.env.frame_skip, config.network.kind) == (1, "small" if env == "minigrid" else "mlp")


@pytest.mark.parametrize("group", ["network", "advantage", "logger"])
def test_a_group_composes(group: str) -> None:
    for name in presets(group):
        config = compose([f"{group}={name}"])
        check(config)
        assert differences(getattr(config, group), said(CONF / group / f"{name}.yaml")) == []


@pytest.mark.parametrize("words", ["[wandb,tensorboard]", "[tensorboard,wandb]", "[wandb,files,tensorboard,files]"])
def test_loggers_combine_in_any_order(words: str) -> None:
    logger = compose([f"logger={words}"]).logger
    assert (logger.wandb.mode, logger.wandb.project, logger.tensorboard) == ("offline", "a3c_bench", True)
    assert compose([f"logger={words}", "logger.wandb.mode=online"]).logger.wandb.mode == "online"


def test_one_logger_and_none() -> None:
    chosen = {words: compose([f"logger={words}"]).logger for words in ("wandb", "[tensorboard]", "files", "[]")}
    found = {words: (logger.wandb.mode, logger.tensorboard) for words, logger in chosen.items()}
    off = ("disabled", False)
    assert found == {"wandb": ("offline", False), "[tensorboard]": ("disabled", True), "files": off, "[]": off}


@pytest.mark.parametrize("name", presets("experiment"))
def test_an_experiment_composes_and_trains(name: str, tmp_path: Path) -> None:
    config = composed(f"experiment={name}")
    check_run(config)
    assert differences(config, said(CONF / "experiment" / f"{name}.yaml")) == []
    assert "python -m a3c_bench.run" in (CONF / "experiment" / f"{name}.yaml").read_text()
    for algo in presets(f"experiment/{name}"):
        tuned = compose([f"experiment={name}", f"algo={algo}"])
        assert differences(tuned, said(CONF / "experiment" / name / f"{algo}.yaml")) == []
        check_run(tuned)
    status = train(compose([f"experiment={name}", *TINY]), tmp_path)
    assert status["state"] == "finished"
    assert status["frames"] >= 120


TUNED = [
    (env.name, algo)
    for env in sorted((CONF / "settings" / "tuned").iterdir())
    for algo in presets(f"settings/tuned/{env.name}")
]


@pytest.mark.parametrize(("env", "algo"), TUNED)
def test_what_is_tuned_for_an_environment_belongs_to_it_alone(env: str, algo: str) -> None:
    """It is found by the environment's name, is said by its own, and the paper's settings are one word away."""
    network = ["network=mlp_lstm"] if env == "cartpole_positions" else []
    config = compose([f"env={env}", f"algo={algo}", *network])
    check_run(config)
    assert differences(config, said(CONF / "settings" / "tuned" / env / f"{algo}.yaml")) == []
    assert config.tuned_for == config.env.name
    assert settings_in_words(config).startswith(f"{algo} tuned for {config.env.name}; settings=paper, ")
    paper = composed(f"algo={algo}", f"env={env}", *network, "settings=paper")
    assert differences(paper.algo, said(CONF / "algo" / f"{algo}.yaml")) == []
    assert paper.tuned_for is None
    assert settings_in_words(paper).startswith(f"the paper's (conf/algo/{algo}.yaml)")
    refused = f"tuned for {config.env.name}, and this is MountainCar-v0: say settings=paper"
    with pytest.raises(ConfigError, match=refused):
        check_settings(replace(config, env=EnvConfig(id="MountainCar-v0")))


def test_an_experiment_tuned_for_one_game_is_not_taken_to_another() -> None:
    """`experiment=pong env=breakout` would have Pong's background subtracted from Breakout's frames."""
    with pytest.raises(ConfigError, match="tuned for Pong, and this is Breakout"):
        check_settings(compose(["experiment=pong", "env=breakout"]))
    check_settings(compose(["experiment=pong", "env=breakout", "tuned_for=Breakout"]))
    check_settings(compose(["experiment=pong", "env=atari", "env.game=Pong"]))


@pytest.mark.parametrize("env", ["cartpole", "catch", "lunarlander"])
def test_matched_algorithms_differ_in_their_wiring_alone(env: str) -> None:
    """As many environments, a step of as much per environment of a batch, and whatever else both have."""
    words = ["experiment=matched", f"env={env}"]
    paac, a3c, ga3c = (compose([*words, f"algo={algo}"]) for algo in ("paac", "a3c", "ga3c"))
    assert paac.algo.n_envs == a3c.algo.n_workers * a3c.algo.envs_per_worker == ga3c.algo.n_agents == 32
    n_rollouts = {"paac": paac.algo.n_envs, "a3c": a3c.algo.envs_per_worker}
    n_rollouts["ga3c"] = ga3c.algo.min_training_batch // ga3c.algo.t_max
    same = ("t_max", "gamma", "entropy_weight", "value_weight", "loss_reduction", "ratio_clip")
    for config in (a3c, ga3c):
        check_run(config)
        assert config.tuned_for is None
        per_rollout = config.algo.optimizer.lr / n_rollouts[config.algo.name]
        assert per_rollout == pytest.approx(paac.algo.optimizer.lr / n_rollouts["paac"])
        assert [getattr(config.algo, key) for key in same] == [getattr(paac.algo, key) for key in same]
        steps = [(run.algo.optimizer.max_grad_norm, run.algo.optimizer.anneal) for run in (config, paac)]
        assert steps[0] == steps[1]
        assert (config.env, config.network, config.advantage) == (paac.env, paac.network, paac.advantage)


@pytest.mark.parametrize("algo", presets("algo"))
def test_an_algorithm_is_said_in_full(algo: str) -> None:
    """Every setting stands in its file, and arrives unless something tunes it."""
    wanted = said(CONF / "algo" / f"{algo}.yaml")
    config = compose([f"algo={algo}", "env=pong"])
    assert differences(config.algo, wanted) == []
    assert set(wanted) == {item.name for item in fields(find_algorithm(algo).config_class)}
    assert algo in algorithm_names()


# The defaults of Python, where an algorithm's YAML brings more than its own section.
BESIDE = {"ppo": ("advantage=nstep",), "pqn": ("network.layer_norm=null",)}


@pytest.mark.parametrize("algo", algorithm_names())
def test_python_begins_with_the_values_of_conf(algo: str) -> None:
    """All of them, but for the budget, which each environment brings."""
    words = (f"algo={algo}", "env=cartpole", "settings=paper", *BESIDE.get(algo, ()))
    by_hand = Config(algo=find_settings(algo).config_class(), budget=BudgetConfig(frames=150_000))
    assert plain(asdict(by_hand)) == plain(asdict(composed(*words)))


@pytest.mark.parametrize(("name", "options"), [("local", LocalOptions), ("slurm_cpu", SlurmOptions)])
def test_a_launcher_is_said_in_full_and_python_begins_with_it(name: str, options: type[Any]) -> None:
    in_full = {item.name for item in fields(options)} - {"_target_"}
    assert set(said(CONF / "hydra" / "launcher" / f"{name}.yaml")) == in_full
    hydra, _ = compose_sweep([f"hydra/launcher={name}", "seed=0,1"])
    assert plain(asdict(options())) == plain(OmegaConf.to_container(hydra.launcher))


def test_an_experiment_tunes_one_algorithm_and_the_plain_environment_keeps_the_papers_settings() -> None:
    tuned, plain = composed("experiment=pong").algo, composed("env=pong").algo
    assert (tuned.n_envs, tuned.loss_reduction, tuned.optimizer.lr) == (16, "mean", 7e-4)
    assert (plain.n_envs, plain.loss_reduction, plain.optimizer.lr) == (32, "mean_over_envs", 0.0224)
    assert composed().algo == plain


@pytest.mark.parametrize(
    "overrides",
    [
        ["env=catch", "advantage=gae"],
        ["env=cartpole", "advantage=baseline", "algo.t_max=50", "budget.frames=1200"],
        ["env=cartpole", "advantage=monte_carlo", "algo.t_max=50", "budget.frames=1200"],
        ["env=lunarlander", "network.shared_trunk=false", "advantage=td", "algo.loss_reduction=sum"],
        ["env=catch", "advantage=q", "network.lstm_size=8"],
        ["env=pong", "network=nature"],
        ["env=cartpole", "budget.frames=null", "budget.wall_clock_seconds=0.3", "algo.optimizer.anneal=false"],
    ],
)
def test_it_trains(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*TINY, *overrides])
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    assert status["frames"] >= (config.budget.frames or 1)
    assert status["final"]["evaluation_games"] == 1
