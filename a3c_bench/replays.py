"""Replays: where they live, how large they are, and whether they fit."""

import logging
from collections.abc import Sequence
from pathlib import Path

from a3c_bench.build import Shapes
from a3c_bench.core.arrays import Allocate, in_memory
from a3c_bench.core.replay import Replay
from a3c_bench.core.sum_tree import SumTree
from a3c_bench.envs import find_spec
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.storage import check_disk, check_memory, mapped_files
from a3c_bench.schema import Config, ReplayConfig

log = logging.getLogger(__name__)
REMEDY = "lower algo.replay.capacity_agent_steps"


def check_replays(config: Config, n_envs: int, n_replays: int = 1) -> None:
    """Checks whether algo.replay can be held; `schema.check_replay` has checked the rest.

    Args:
        config: algo.replay and what makes the shapes.
        n_envs: whose steps a replay takes.
        n_replays: there are to be.

    Raises:
        ConfigError: it is too small for n_steps, or too large for the memory.
    """
    options: ReplayConfig = config.algo.replay
    capacity = options.capacity_agent_steps
    spec = find_spec(config.env)
    rows, needed = _rows_per_env(config, n_envs), _stack(config, spec) + config.algo.n_step
    if rows < needed:
        raise ConfigError(
            f"algo.replay.capacity_agent_steps={capacity} leaves {rows} for each of {n_envs} environments, "
            f"and algo.n_step={config.algo.n_step} needs at least {needed}."
        )
    n_bytes = replay_bytes(config, spec, n_envs)
    what = f"a replay of {capacity:,} agent steps" + (f", {n_replays} times," if n_replays > 1 else "")
    if options.storage == "memory":
        check_memory(n_replays * n_bytes, what, f"{REMEDY}, or say algo.replay.storage=memmap")
    else:  # `replay_files` checks the disk, when the directory is known
        check_memory(n_replays * SumTree.bytes_needed(n_envs * rows), f"the index of {what}", REMEDY)


def replay_files(config: Config, envs: Shapes, run: Path, n_envs: tuple[int, ...]) -> Path | None:
    """The directory of the replays that outlive a run, below the run's own; None where they live in memory.

    Args:
        config: algo.replay.storage decides.
        envs: like those whose steps are stored.
        run: the run directory.
        n_envs: of each replay, the environments whose steps it takes.

    Raises:
        ConfigError: the disk has not the room.
    """
    if config.algo.replay.storage != "memmap":
        return None
    files, what = run / "replay", "the replay" if len(n_envs) == 1 else "the replays"
    check_disk(sum(replay_bytes(config, envs, n) for n in n_envs), files, what, REMEDY)
    return files


def allocate_in(files: Path | None) -> Allocate:
    """Gives the arrays of a replay: in the files of this directory, or in memory."""
    return in_memory if files is None else mapped_files(files)


def make_replay(
    config: Config,
    envs: Shapes,
    n_envs: int,
    priority_exponent: float = 0.0,
    allocate: Allocate = in_memory,
    allocate_state: Allocate = in_memory,
) -> Replay:
    """The replay of N environments like these, as algo.replay, algo.n_step and algo.gamma say.

    Raises:
        ConfigError: files of another shape are in its place.
    """
    try:
        return Replay(
            _rows_per_env(config, n_envs),
            n_envs,
            envs.observation_shape,
            envs.observation_dtype,
            stack=_stack(config, envs),
            n_step=config.algo.n_step,
            gamma=config.algo.gamma,
            priority_exponent=priority_exponent,
            allocate=allocate,
            allocate_state=allocate_state,
        )
    except ValueError as error:
        raise ConfigError(f"{error}.") from error


class ReplayNote:
    """Says in checkpoints, and when a run goes on, what became of the replays."""

    def __init__(self, replays: Sequence[Replay]) -> None:
        self._replays = replays

    def state_dict(self) -> dict[str, str]:
        """What the other parts of a checkpoint do not say."""
        if self._replays[0].persistent:
            return {"kept": f"{sum(map(len, self._replays))} agent steps in replay/"}
        return {"kept": "none: they were in memory"}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Tells it; the replays themselves have been loaded, if they outlived the stop."""
        log.info("Replays kept: %s.", state["kept"])


def replay_bytes(config: Config, envs: Shapes, n_envs: int) -> int:
    """What a full replay of N environments like these takes."""
    shape, dtype = envs.observation_shape, envs.observation_dtype
    return Replay.bytes_needed(_rows_per_env(config, n_envs), n_envs, shape, dtype, stack=_stack(config, envs))


def _rows_per_env(config: Config, n_envs: int) -> int:
    return -(-config.algo.replay.capacity_agent_steps // n_envs)


def _stack(config: Config, envs: Shapes) -> int:
    return config.env.frame_stack if envs.is_atari else 1
