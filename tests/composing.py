"""Configurations composed of conf/, and files of it, for the tests of configuration."""

import functools
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from a3c_bench.config import compose, config_directory
from a3c_bench.schema import Config

CONF = config_directory()
TINY = (
    "budget.frames=120",
    "algo.n_envs=2",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "evaluation.max_episode_frames=200",
    "metrics_interval_frames=40",
    "n_torch_threads=1",
    "progress=false",
)


@functools.cache
def composed(*words: str) -> Config:
    """What conf/ as it is gives for these words; composed once, as nobody can change it."""
    return compose(words)


def said(file: Path) -> dict[str, Any]:
    """What a file of conf/ sets."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in content.items() if key != "defaults"}


def write(file: Path, n_envs: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# @package _global_\nalgo:\n  n_envs: {n_envs}\n")
