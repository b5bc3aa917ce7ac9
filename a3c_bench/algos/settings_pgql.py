"""The settings of PGQL, half of which are PAAC's and half a Q-learner's; `settings` says what holds for all."""

from dataclasses import dataclass

from a3c_bench.core.names import ACTOR_CRITIC_REDUCTIONS, Q_REDUCTIONS
from a3c_bench.errors import ConfigError
from a3c_bench.schema import Config, OptimizerConfig, ReplayConfig, check_actor_critic, check_replay, option, section


@dataclass(frozen=True)
class PGQLConfig:
    """Settings of PGQL; conf/algo/pgql.yaml gives their sources."""

    name: str = "pgql"
    n_envs: int = option(32, at_least=1)  # n_e
    t_max: int = option(5, at_least=1)  # agent steps per environment and update of the actor-critic
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    entropy_weight: float = option(0.01, above=0.0)  # beta of the actor-critic, and alpha of Q~
    value_weight: float = option(0.25, at_least=0.0)  # of (R - V)^2
    loss_reduction: str = option("mean_over_envs", choices=ACTOR_CRITIC_REDUCTIONS)
    eta: float | None = option(None, at_least=0.0, at_most=1.0)  # steps of (1 - eta) lr and eta lr; null: the next key
    q_learning_rate_ratio: float = option(0.5, at_least=0.0)  # of a step from the replay to one of the actor-critic
    q_updates_per_policy_update: int = option(1, at_least=1)
    q_loss_reduction: str = option("mean", choices=Q_REDUCTIONS)  # over the batch from the replay
    shared_statistics: bool = True  # one accumulator of RMSProp for both kinds of updates, or one each
    n_step: int = option(1, at_least=1)  # rewards in a residual before the value stands for the rest
    replay: ReplayConfig = section(lambda: ReplayConfig(100_000, 10_000))
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(lr=0.0224, initial_square=1.0, max_grad_norm=40.0))


def check_pgql(config: Config) -> None:
    """Raises ConfigError for what PGQL cannot do."""
    check_actor_critic(config)
    if learning_rate_shares(config.algo)[1] > 0.0:
        check_replay(config)
    if config.network.lstm_size is not None:
        raise ConfigError(
            f"network.lstm_size={config.network.lstm_size} is for algorithms without a replay, which holds no LSTM "
            "states: say algo=paac with it."
        )
    if config.advantage.kind == "q":
        raise ConfigError("advantage=q has no V, of which algo=pgql makes its Q-values: say advantage=nstep.")
    every = config.lag.gradient_cosine_every_updates
    if every is not None:
        raise ConfigError(
            f"lag.gradient_cosine_every_updates={every} is for actor-critics alone: algo=pgql learns from a replay "
            "too, whose samples are not meant to be fresh."
        )


def learning_rate_shares(options: PGQLConfig) -> tuple[float, float]:
    """What the learning rate is multiplied by for an update of the actor-critic, and for one from the replay."""
    if options.eta is None:
        return 1.0, options.q_learning_rate_ratio
    return 1.0 - options.eta, options.eta
