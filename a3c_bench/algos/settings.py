"""The settings of every algorithm, their ranges and what cannot go together, as far as this is known without torch.

An algorithm's file shows them as its own (`from a3c_bench.algos.paac import PAACConfig`). They stand apart from it so
that `--help`, `--cfg` and bad input wait neither for torch nor for a simulator: nothing here may import either.

What a value is, conf/algo/<name>.yaml says, with its source; the defaults here are the same, as a test makes sure.
Those of Q-learners are in `settings_q`, of PGQL in `settings_pgql`, of who learns in several passes in
`settings_passes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from a3c_bench.algos.settings_passes import PPOConfig, PQNConfig, check_ppo, check_pqn
from a3c_bench.algos.settings_pgql import PGQLConfig, check_pgql
from a3c_bench.algos.settings_q import (
    DQNConfig,
    GorilaConfig,
    NStepQConfig,
    OneStepQConfig,
    OneStepSarsaConfig,
    StaleConfig,
    check_async_q,
    check_dqn,
    check_gorila,
)
from a3c_bench.algos.settings_q import GorilaReplayConfig as GorilaReplayConfig
from a3c_bench.core.adjustment import Sizes
from a3c_bench.core.names import ACTOR_CRITIC_REDUCTIONS
from a3c_bench.errors import ConfigError
from a3c_bench.schema import Config, OptimizerConfig, check_actor_critic, option, section


def check_correction(config: Config) -> None:
    """Raises ConfigError for two corrections at once, and for what no actor-critic can do."""
    check_actor_critic(config)
    if config.algo.ratio_clip is not None and config.advantage.kind == "vtrace":
        raise ConfigError(
            f"algo.ratio_clip={config.algo.ratio_clip} and advantage=vtrace both correct for lag: say one of them."
        )


# --- PAAC -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What is known of an algorithm without torch."""

    config_class: type  # as that of Algorithm
    check: Callable[[Any], None] = lambda config: None  # (Config): raises ConfigError; no simulator, no torch
    computes: bool = False  # it has its callables made by `core.compiled`, as config.compute says
    forks: bool = False  # its work is done by processes of the fork server
    ranks: bool = False  # a run of it may be several processes that train together, on one machine or on many


@dataclass(frozen=True)
class ForcedLagConfig:
    """Lag that is set: the samples of an update were chosen by theta as it was some updates before."""

    updates: int = option(0, at_least=0)  # k
    distribution: str = option("fixed", choices=("fixed", "uniform"))  # k each time, or 0 to 2 k, k on average
    of: str = option("samples", choices=("samples", "gradients"))  # gradient: of theta; or of who acted, late


@dataclass(frozen=True)
class PAACConfig:
    """Settings of PAAC; conf/algo/paac.yaml gives their sources."""

    name: str = "paac"
    n_envs: int = option(32, at_least=1)  # n_e
    t_max: int = option(5, at_least=1)  # agent steps per environment and update
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    entropy_weight: float = option(0.01, at_least=0.0)  # beta
    value_weight: float = option(0.25, at_least=0.0)  # of (R - V)^2
    loss_reduction: str = option("mean_over_envs", choices=ACTOR_CRITIC_REDUCTIONS)
    log_epsilon: float = option(0.0, at_least=0.0)  # log(pi + epsilon), as in GA3C
    ratio_clip: float | None = option(None, above=0.0)  # epsilon of the clipped surrogate, as in PPO; null: none
    lag: ForcedLagConfig = section(ForcedLagConfig)
    overlap: bool = False  # the next rollout is gathered while the last one is learnt from: a lag of exactly 1
    stale_bootstrap: bool = False  # with lag, returns end with V of who acted; false: of theta as it learns
    alternate: bool = False  # half of the environments simulate while the policy answers the other half
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(lr=0.0224, initial_square=1.0, max_grad_norm=40.0))


def check_paac(config: Config) -> None:
    """Raises ConfigError for what PAAC cannot do."""
    check_correction(config)
    options: PAACConfig = config.algo
    if options.overlap and options.lag.updates > 0:
        raise ConfigError(
            f"algo.overlap=true has a lag of exactly 1 update: say algo.lag.updates=0 with it, or algo.overlap=false "
            f"with algo.lag.updates={options.lag.updates}."
        )
    if options.lag.of == "gradients" and (options.overlap or options.stale_bootstrap):
        key = "overlap" if options.overlap else "stale_bootstrap"
        raise ConfigError(
            f"algo.lag.of=gradients and algo.{key}=true contradict each other: who acted gives gradient and bootstrap "
            f"with the first, theta gives the gradient with the second; say one of them."
        )
    if options.alternate and options.n_envs < 2:
        raise ConfigError(f"algo.alternate=true needs two halves: say algo.n_envs=2 or more, not {options.n_envs}.")


# --- A3C --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class A3CConfig:
    """Settings of A3C; conf/algo/a3c.yaml gives their sources."""

    name: str = "a3c"
    n_workers: int | None = option(None, at_least=1)  # processes; null: the cores this process may use
    envs_per_worker: int = option(1, at_least=1)
    t_max: int = option(5, at_least=1)  # agent steps per environment and update
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    entropy_weight: float = option(0.01, at_least=0.0)  # beta
    value_weight: float = option(0.25, at_least=0.0)  # of (R - V)^2
    loss_reduction: str = option("sum", choices=ACTOR_CRITIC_REDUCTIONS)
    log_epsilon: float = option(0.0, at_least=0.0)  # log(pi + epsilon), as in GA3C
    ratio_clip: float | None = option(None, above=0.0)  # epsilon of the clipped surrogate, as in PPO; null: none
    shared_statistics: bool = True  # one RMSProp accumulator for all workers, or one each
    lock: bool = False  # for comparison: one worker at a time reads or changes theta
    stale: StaleConfig = section(StaleConfig)
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(lr=7e-4, max_grad_norm=40.0))


def check_a3c(config: Config) -> None:
    """Raises ConfigError for what A3C cannot do."""
    check_correction(config)
    if config.device != "cpu":
        raise ConfigError(f"algo=a3c runs its workers on CPU cores: device={config.device} is for algo=ga3c or paac.")


# --- GA3C -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdjustConfig:
    """GA3C's dynamic adjustment of its numbers of agents, predictors and trainers."""

    enabled: bool = False
    window_seconds: float = option(20.0, above=0.0)  # a trial runs for so long
    max_agents: int | None = option(None, at_least=1)  # null: twice n_agents
    max_predictors: int = option(8, at_least=1)
    max_trainers: int = option(8, at_least=1)
    max_mean_lag_updates: float | None = option(None, at_least=0.0)  # of sizes that are kept; null: only tps count


_MOST_PARAMETERS_IN_TURNS = 50_000  # of two hidden layers of 200 units, say; nips has 680,000


@dataclass(frozen=True)
class GA3CConfig:
    """Settings of GA3C; conf/algo/ga3c.yaml gives their sources."""

    name: str = "ga3c"
    n_agents: int = option(32, at_least=1)  # N_A
    n_predictors: int = option(2, at_least=1)  # N_P
    n_trainers: int = option(2, at_least=1)  # N_T
    prediction_batch: int | None = option(None, at_least=1)  # agents predicted at once; null: n_agents / 4
    min_training_batch: int = option(1, at_least=1)  # samples; rollouts are merged until there are so many
    training_queue_size: int = option(100, at_least=1)  # rollouts
    t_max: int = option(5, at_least=1)  # agent steps per rollout
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    entropy_weight: float = option(0.01, at_least=0.0)  # beta
    value_weight: float = option(0.5, at_least=0.0)  # of (R - V)^2
    loss_reduction: str = option("sum", choices=ACTOR_CRITIC_REDUCTIONS)
    log_epsilon: float = option(1e-6, at_least=0.0)  # log(pi + epsilon)
    ratio_clip: float | None = option(None, above=0.0)  # epsilon of the clipped surrogate, as in PPO; null: none
    stale_bootstrap: bool = True  # returns end with V of who acted; false: of theta as it learns
    max_lag_updates: int | None = option(None, at_least=0)  # when a trainer takes a sample; null: no bound
    lag_control: str = option("discard", choices=("discard", "pace"))  # of older samples, or of who would make them
    synchronous: bool = False  # lock step, without lag: the control experiment
    take_turns: bool | None = None  # one thread at a time predicts or learns; null: with a small network on a CPU
    adjust: AdjustConfig = section(AdjustConfig)
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(lr=3e-4, anneal=False, initial_square=1.0))


def acting_batch(options: GA3CConfig) -> int:
    """Agents whose actions a predictor chooses at once."""
    if options.synchronous:
        return options.n_agents
    return options.prediction_batch or max(1, options.n_agents // 4)


def takes_turns(options: GA3CConfig, device_type: str, n_parameters: int) -> bool:
    """Whether one thread at a time predicts or learns: on a CPU few parameters leave all bound by the interpreter."""
    small = device_type == "cpu" and n_parameters <= _MOST_PARAMETERS_IN_TURNS
    return small if options.take_turns is None else options.take_turns


def first_sizes(options: GA3CConfig) -> Sizes:
    """At the start, and all the time unless they are adjusted."""
    if options.synchronous:
        return Sizes(options.n_agents, 1, 1)
    return Sizes(options.n_agents, options.n_predictors, options.n_trainers)


def largest_sizes(options: GA3CConfig) -> Sizes:
    """That there may ever be."""
    first, adjust = first_sizes(options), options.adjust
    if not adjust.enabled:
        return first
    return Sizes(adjust.max_agents or 2 * first.n_agents, adjust.max_predictors, adjust.max_trainers)


def slots_needed(options: GA3CConfig) -> int:
    """Rollouts in the making, in predictors' hands, in the queue and in trainers' hands, at most."""
    most = largest_sizes(options)
    if options.synchronous:
        return most.n_agents * (options.t_max + 2)  # a round in which every step ends an episode
    # Agents are sent on before their rollouts are queued, so that a predictor may hold an agent's last one while
    # another takes the next. Who is dismissed may still hold some when another is hired.
    members = 2 if options.adjust.enabled else 1
    in_predictors = members * most.n_predictors * acting_batch(options)
    in_trainers = members * most.n_trainers * options.min_training_batch  # each of one step
    return most.n_agents + in_predictors + options.training_queue_size + in_trainers


def rows_needed(options: GA3CConfig) -> int:
    """Of the tally: threads that there may be, and several times as many that were let go and may still finish."""
    most = largest_sizes(options)
    return 4 * (most.n_predictors + most.n_trainers)


def check_ga3c(config: Config) -> None:
    """Raises ConfigError for what cannot run."""
    check_correction(config)
    options: GA3CConfig = config.algo
    if config.advantage.kind == "total_reward":
        raise ConfigError(
            "advantage=total_reward needs what an episode brought before a rollout, which algo=ga3c does not keep: say "
            "advantage=monte_carlo."
        )
    most = options.n_agents * options.t_max
    if options.min_training_batch > most:
        raise ConfigError(
            f"algo.min_training_batch={options.min_training_batch} is more than all {options.n_agents} agents produce "
            f"in t_max={options.t_max} steps: say at most {most}."
        )
    if options.prediction_batch is not None and options.prediction_batch > options.n_agents:
        raise ConfigError(
            f"algo.prediction_batch={options.prediction_batch} is more than there are agents ({options.n_agents})."
        )
    if options.lag_control == "pace" and options.synchronous:
        raise ConfigError("algo.synchronous=true has no lag to pace: say algo.lag_control=discard with it.")
    if options.lag_control == "pace" and options.max_lag_updates is None:
        raise ConfigError("algo.lag_control=pace needs a bound: say algo.max_lag_updates=4, or another number.")
    if options.adjust.enabled and options.synchronous:
        raise ConfigError("algo.synchronous=true has one thread of each kind: say algo.adjust.enabled=false with it.")
    bound = options.adjust.max_mean_lag_updates
    if bound is not None and not (options.adjust.enabled and config.lag.enabled):
        missing = "lag" if options.adjust.enabled else "algo.adjust"
        raise ConfigError(f"algo.adjust.max_mean_lag_updates={bound:g} has no effect without {missing}.enabled=true.")
    most_there_are = largest_sizes(options)
    if acting_batch(options) == most_there_are.n_agents and most_there_are.n_predictors > 1:
        # EnvPool takes it for lock step then, and counts wrongly when one thread receives before another has sent.
        raise ConfigError(
            f"Predicting all {most_there_are.n_agents} agents at once leaves a second predictor without any: "
            "say algo.n_predictors=1 or a smaller algo.prediction_batch."
        )
    for kind, first, most in zip(Sizes._fields, first_sizes(options), most_there_are, strict=True):
        if first > most:
            raise ConfigError(f"algo.{kind}={first} is more than algo.adjust.{kind.replace('n_', 'max_')}={most}.")


SETTINGS = {
    "a3c": Settings(A3CConfig, check_a3c, forks=True),
    "dqn": Settings(DQNConfig, check_dqn, computes=True),
    "ga3c": Settings(GA3CConfig, check_ga3c, computes=True),
    "gorila": Settings(GorilaConfig, check_gorila, forks=True, ranks=True),
    "n_step_q": Settings(NStepQConfig, check_async_q, forks=True),
    "one_step_q": Settings(OneStepQConfig, check_async_q, forks=True),
    "one_step_sarsa": Settings(OneStepSarsaConfig, check_async_q, forks=True),
    "paac": Settings(PAACConfig, check_paac, computes=True, ranks=True),
    "pgql": Settings(PGQLConfig, check_pgql, computes=True),
    "ppo": Settings(PPOConfig, check_ppo, computes=True, ranks=True),
    "pqn": Settings(PQNConfig, check_pqn, computes=True, ranks=True),
}
