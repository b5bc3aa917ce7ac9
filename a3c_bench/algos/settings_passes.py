"""The settings of PPO and PQN, which learn from a rollout in several passes; `settings` says what holds for all."""

from dataclasses import dataclass

from a3c_bench.errors import ConfigError
from a3c_bench.schema import Config, OptimizerConfig, check_actor_critic, check_q_network, option, section


def check_passes(config: Config) -> None:
    """Raises ConfigError for minibatches of different sizes, and for gradients that nobody can compare."""
    options = config.algo
    n_samples = options.n_envs * options.t_max
    if n_samples % options.n_minibatches:
        raise ConfigError(
            f"algo.n_minibatches={options.n_minibatches} does not divide the {n_samples} samples of a rollout "
            f"(algo.n_envs={options.n_envs} times algo.t_max={options.t_max})."
        )
    every = config.lag.gradient_cosine_every_updates
    if every is not None:
        raise ConfigError(
            f"lag.gradient_cosine_every_updates={every} compares updates from whole rollouts: algo={config.algo.name} "
            "learns from minibatches."
        )


# --- PPO --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; conf/algo/ppo.yaml gives their sources."""

    name: str = "ppo"
    n_envs: int = option(8, at_least=1)
    t_max: int = option(128, at_least=1)  # agent steps per environment and rollout
    n_epochs: int = option(4, at_least=1)  # passes over a rollout
    n_minibatches: int = option(4, at_least=1)  # updates per pass
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    ratio_clip: float = option(0.1, above=0.0)  # epsilon of the clipped surrogate
    value_clip: float | None = option(0.1, above=0.0)  # V moves so far from what it was while acting; null: freely
    normalise_advantages: bool = True  # in each minibatch: mean 0, standard deviation 1
    target_kl_nats: float | None = option(None, above=0.0)  # beyond it a rollout's passes end; null: never
    entropy_weight: float = option(0.01, at_least=0.0)  # beta
    value_weight: float = option(0.25, at_least=0.0)  # of (R - V)^2
    optimizer: OptimizerConfig = section(
        lambda: OptimizerConfig(kind="adam", lr=2.5e-4, epsilon=1e-5, max_grad_norm=0.5)
    )


def check_ppo(config: Config) -> None:
    """Raises ConfigError for what PPO cannot do."""
    check_actor_critic(config)
    check_passes(config)
    options: PPOConfig = config.algo
    if config.network.lstm_size is not None and options.n_envs % options.n_minibatches:
        raise ConfigError(
            f"algo.n_minibatches={options.n_minibatches} does not divide algo.n_envs={options.n_envs}: with an LSTM a "
            "minibatch is made of whole environments."
        )
    if options.normalise_advantages and options.n_minibatches == options.n_envs * options.t_max:
        raise ConfigError(
            f"algo.n_minibatches={options.n_minibatches} leaves one sample for each, whose normalised advantage is 0: "
            "say fewer, or algo.normalise_advantages=false."
        )
    if config.advantage.kind == "vtrace":
        raise ConfigError(
            "advantage=vtrace corrects for lag, as algo.ratio_clip of algo=ppo does: say advantage=gae or nstep."
        )
    if config.advantage.kind == "total_reward":
        raise ConfigError(
            "advantage=total_reward needs what an episode brought before a rollout, which algo=ppo does not keep: say "
            "advantage=monte_carlo."
        )
    if config.advantage.kind == "q":
        raise ConfigError(
            "advantage=q has a psi that changes with each update, and algo=ppo estimates psi once for a rollout: say "
            "advantage=gae or nstep."
        )


# --- PQN --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PQNConfig:
    """Settings of PQN; conf/algo/pqn.yaml gives their sources."""

    name: str = "pqn"
    n_envs: int = option(128, at_least=1)
    t_max: int = option(32, at_least=1)  # agent steps per environment and rollout
    n_epochs: int = option(2, at_least=1)  # passes over a rollout
    n_minibatches: int = option(32, at_least=1)  # updates per pass
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    q_lambda: float = option(0.65, at_least=0.0, at_most=1.0)
    epsilon_start: float = option(1.0, above=0.0, at_most=1.0)
    epsilon_end: float = option(0.001, above=0.0, at_most=1.0)  # not 0: the lag in nats would be infinite
    epsilon_horizon_frames: int = option(20_000_000, at_least=1)
    optimizer: OptimizerConfig = section(
        lambda: OptimizerConfig(kind="radam", lr=2.5e-4, anneal=False, epsilon=1e-8, max_grad_norm=10.0)
    )


def check_pqn(config: Config) -> None:
    """Raises ConfigError for what PQN cannot do."""
    check_q_network(config)
    check_passes(config)
    if config.advantage.kind != "nstep":
        raise ConfigError(
            f"advantage={config.advantage.kind} is for actor-critics: algo=pqn has algo.q_lambda, from 0 (one step) to "
            "1 (as many as a rollout has)."
        )
