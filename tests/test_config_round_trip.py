"""A run directory gives its configuration back, and refuses what is damaged."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import composed

from a3c_bench.algos.paac import PAACConfig
from a3c_bench.config import compose, load_config
from a3c_bench.errors import RunDirectoryError
from a3c_bench.runtime.directory import RunDirectory
from a3c_bench.schema import Config, EnvConfig


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=pong", "seed=3"],
        ["env=pong", "logger=wandb", "logger.wandb.tags=[a,b]", "algo.optimizer.lr=1e-12"],
        ["network.hidden_sizes=[5]", "env.reward_clip=2.5", "budget.target_return=-1e9", "env.max_episode_frames=7"],
        ["name='a b: #c'", "logger.wandb.entity=null", "device=cpu", "env.n_threads=1"],
    ],
)
def test_a_run_directory_gives_its_configuration_back(overrides: list[str], tmp_path: Path) -> None:
    config = compose(overrides)
    RunDirectory(tmp_path, asdict(config)).close()
    assert load_config(tmp_path) == config
    RunDirectory(tmp_path, asdict(load_config(tmp_path))).close()  # nothing differs


def test_a_configuration_made_in_python_comes_back(tiny: Config, tmp_path: Path) -> None:
    RunDirectory(tmp_path, asdict(tiny)).close()
    loaded = load_config(tmp_path)
    assert isinstance(loaded.algo, PAACConfig)
    assert isinstance(loaded.env, EnvConfig)
    assert replace(loaded, network=tiny.network, logger=tiny.logger) == tiny
    assert list(loaded.network.hidden_sizes) == list(tiny.network.hidden_sizes)
    RunDirectory(tmp_path, asdict(loaded)).close()


def test_a_configuration_is_plain_and_frozen() -> None:
    config = composed()
    yaml.safe_dump(asdict(config))  # no OmegaConf in it
    with pytest.raises(AttributeError, match="cannot assign"):
        config.algo.n_envs = 1


def break_value(content: dict[str, Any]) -> None:
    content["algo"]["n_envs"] = 0


def break_key(content: dict[str, Any]) -> None:
    content["algo"]["n_workers"] = 3


def break_algorithm(content: dict[str, Any]) -> None:
    del content["algo"]["name"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_value, r"config\.yaml does not fit this version: algo\.n_envs=0 must be at least 1\."),
        (break_key, r"config\.yaml does not fit this version: algo\.n_workers is not a key of the configuration"),
        (break_algorithm, r"is no run directory: it has no readable config\.yaml\."),
    ],
)
def test_a_damaged_configuration(damage: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(asdict(composed())))
    damage(content)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RunDirectoryError, match=sentence) as refused:
        load_config(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"a: [", b"\xff\xfe", b"algo: 3"])
def test_no_run_directory(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        load_config(tmp_path)
