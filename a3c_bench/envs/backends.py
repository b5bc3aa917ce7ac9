"""What simulates a task, EnvPool or Gymnasium, and what each says of it: the one module that knows both.

Either takes a second to import, and a run needs one of them: so each is imported when it is asked.
"""

from collections.abc import Sequence

from a3c_bench.envs.simulation import Simulation
from a3c_bench.envs.spec import ATARI, GYMNASIUM, EnvSpec, refuse_atari_keys, uses_gymnasium
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig


def find_spec(config: EnvConfig) -> EnvSpec:
    """What this task is.

    Raises:
        ConfigError: a task that is not known or not of the supported kind, or a key without effect.
    """
    if uses_gymnasium(config):
        from a3c_bench.envs import gymnasium

        _refuse_what_envpool_alone_has(config)
        return gymnasium.describe(config)
    from a3c_bench.envs import envpool

    return envpool.describe(config)


def episode_limit_frames(config: EnvConfig) -> int | None:
    """The frames after which a game is truncated: the configured cap, or else the environment's own."""
    if config.max_episode_frames is not None:
        return config.max_episode_frames
    if uses_gymnasium(config):
        return find_spec(config).limit_agent_steps
    from a3c_bench.envs import envpool

    return envpool.own_limit_frames(config)


def atari_games() -> list[str]:
    """The games there are, e.g. "Pong"."""
    from a3c_bench.envs import envpool

    return envpool.atari_games()


def simulate(spec: EnvSpec, seeds: Sequence[int], n_threads: int, render: bool, batch_size: int) -> Simulation:
    """On EnvPool's threads, or (Gymnasium) in the thread that asks."""
    if spec.backend == GYMNASIUM:
        from a3c_bench.envs.gymnasium import InPlace

        return InPlace(spec, seeds, render, batch_size)
    from a3c_bench.envs.envpool import Threads

    return Threads(spec, seeds, n_threads, render, batch_size)


def _refuse_what_envpool_alone_has(config: EnvConfig) -> None:
    if config.game is not None or config.id == ATARI:
        raise ConfigError("Atari games are EnvPool's, with their protocol: leave env.backend=gymnasium out.")
    refuse_atari_keys(config)
