"""The settings of the Q-learners; `settings` has the others', and says what holds for both."""

from dataclasses import dataclass

from a3c_bench.core.names import Q_REDUCTIONS
from a3c_bench.envs.spec import uses_gymnasium
from a3c_bench.errors import ConfigError
from a3c_bench.schema import Config, OptimizerConfig, ReplayConfig, check_q_network, check_replay, option, section


@dataclass(frozen=True)
class StaleConfig:
    """What is done about gradients that others' updates have made stale."""

    aware: bool = False  # steps of lr / (1 + staleness)
    delay_compensation: float = option(0.0, at_least=0.0)  # lambda of g + lambda g^2 (theta_now - theta_then)


def check_q_learner(config: Config) -> None:
    """Raises ConfigError for what no learner from a replay can do."""
    check_q_network(config)
    check_replay(config)
    if config.advantage.kind != "nstep":
        raise ConfigError(f"advantage={config.advantage.kind} is for actor-critics: say algo.n_step=2 or more here.")
    every = config.lag.gradient_cosine_every_updates
    if every is not None:
        raise ConfigError(
            f"lag.gradient_cosine_every_updates={every} is for actor-critics: algo={config.algo.name} learns from a "
            "replay, whose samples are not meant to be fresh."
        )


# --- DQN --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN; conf/algo/dqn.yaml gives their sources."""

    name: str = "dqn"
    n_envs: int = option(1, at_least=1)
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    n_step: int = option(1, at_least=1)  # rewards before the value stands for the rest
    double: bool = False
    prioritized: bool = False
    priority_exponent: float = option(0.6, above=0.0)  # alpha; prioritized
    importance_exponent: float = option(0.4, at_least=0.0, at_most=1.0)  # beta, to 1 over the budget; prioritized
    update_period_agent_steps: int = option(4, at_least=1)
    target_period_agent_steps: int = option(10_000, at_least=1)
    overlap: bool = False  # updates are made while the environments take their next step
    td_error_clip: float | None = option(1.0, above=0.0)  # null: the squared error everywhere
    loss_reduction: str = option("sum", choices=Q_REDUCTIONS)
    epsilon_start: float = option(1.0, at_least=0.0, at_most=1.0)
    epsilon_end: float = option(0.1, at_least=0.0, at_most=1.0)
    epsilon_horizon_agent_steps: int = option(1_000_000, at_least=1)  # from where learning starts
    replay: ReplayConfig = section(ReplayConfig)
    optimizer: OptimizerConfig = section(
        lambda: OptimizerConfig(lr=2.5e-4, anneal=False, epsilon=0.01, decay=0.95, centered=True)
    )


def check_dqn(config: Config) -> None:
    """Raises ConfigError for what cannot run."""
    if config.algo.prioritized and config.budget.frames is None:
        raise ConfigError("algo.prioritized=true needs budget.frames, over which its importance weights become exact.")
    in_place = config.env.simulate != "processes" or config.algo.n_envs == 1  # see build.make_envs
    if config.algo.overlap and uses_gymnasium(config.env) and in_place:
        raise ConfigError(
            "algo.overlap=true needs environments that simulate by themselves: EnvPool's, or Gymnasium's with "
            "env.simulate=processes and algo.n_envs=2 or more."
        )
    check_q_learner(config)


# --- Gorila -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GorilaReplayConfig(ReplayConfig):
    """Replays of bundles."""

    kind: str = option("local", choices=("local", "global"))  # one per bundle, or one for all


@dataclass(frozen=True)
class GorilaConfig:
    """Settings of Gorila; conf/algo/gorila.yaml gives their sources."""

    name: str = "gorila"
    n_learners: int | None = option(None, at_least=1)  # null: the cores this process may use
    n_actors: int | None = option(None, at_least=1)  # null: as many as learners, all in bundles
    n_shards: int = option(1, at_least=1)
    shard_ranks: int = option(1, at_least=1)  # of several ranks, so many have shards
    envs_per_actor: int = option(1, at_least=1)
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    n_step: int = option(1, at_least=1)
    double: bool = False
    update_period_agent_steps: int = option(4, at_least=1)  # agent steps per gradient
    target_period_updates: int = option(60_000, at_least=1)
    refresh_period_agent_steps: int = option(100, at_least=1)  # of an actor's copy of theta, in its own steps
    max_staleness_updates: int | None = option(50, at_least=0)  # older gradients are dropped; null: none
    max_loss_deviations: float | None = option(10.0, above=0.0)  # gradients of larger losses are dropped; null: none
    td_error_clip: float | None = option(1.0, above=0.0)
    loss_reduction: str = option("sum", choices=Q_REDUCTIONS)
    epsilon_start: float = option(1.0, at_least=0.0, at_most=1.0)
    epsilon_end: float = option(0.1, at_least=0.0, at_most=1.0)
    epsilon_horizon_updates: int = option(1_000_000, at_least=1)
    replay: GorilaReplayConfig = section(GorilaReplayConfig)
    stale: StaleConfig = section(StaleConfig)
    optimizer: OptimizerConfig = section(
        lambda: OptimizerConfig(
            kind="adagrad", lr=1e-3, anneal=False, epsilon=1e-6, decay=0.95, centered=True, initial_square=0.1
        )
    )


def check_gorila(config: Config) -> None:
    """Raises ConfigError for what cannot run."""
    if config.device != "cpu":
        raise ConfigError(f"algo=gorila runs its bundles on CPU cores: device={config.device} is for algo=dqn.")
    options: GorilaConfig = config.algo
    if options.shard_ranks > min(config.ranks, options.n_shards):
        raise ConfigError(
            f"algo.shard_ranks={options.shard_ranks} needs as many shards and ranks: say at most "
            f"{min(config.ranks, options.n_shards)} with algo.n_shards={options.n_shards} and ranks={config.ranks}."
        )
    if config.ranks > 1 and options.replay.storage == "memmap":
        raise ConfigError(
            "algo.replay.storage=memmap keeps replays in the run directory, which rank 0 alone has: with "
            f"ranks={config.ranks} say algo.replay.storage=memory."
        )
    check_q_learner(config)


# --- asynchronous Q-learning ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsyncQConfig:
    """What the asynchronous Q-learners have in common; conf/algo/one_step_q.yaml gives the sources."""

    name: str = ""
    n_workers: int | None = option(None, at_least=1)  # processes; null: the cores this process may use
    envs_per_worker: int = option(1, at_least=1)
    t_max: int = option(5, at_least=1)  # agent steps per environment and update
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    target_period_frames: int = option(40_000, at_least=1)  # of all workers together
    td_error_clip: float | None = option(None, above=0.0)  # null: the squared error everywhere
    loss_reduction: str = option("sum", choices=Q_REDUCTIONS)  # over the samples of a rollout
    epsilon_start: float = option(1.0, at_least=0.0, at_most=1.0)
    epsilon_ends: tuple[float, ...] = option((0.1, 0.01, 0.5), at_least=0.0, at_most=1.0)  # a worker has one of these
    epsilon_shares: tuple[float, ...] = option((0.4, 0.3, 0.3), at_least=0.0, at_most=1.0)  # of the workers
    epsilon_horizon_frames: int = option(4_000_000, at_least=1)  # of all workers together
    shared_statistics: bool = True  # one RMSProp accumulator for all workers, or one each
    lock: bool = False  # for comparison: one worker at a time reads or changes theta
    stale: StaleConfig = section(StaleConfig)
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(lr=7e-4))


@dataclass(frozen=True)
class OneStepSarsaConfig(AsyncQConfig):
    """Settings of asynchronous one-step SARSA: the action that is then taken stands for the rest."""

    name: str = "one_step_sarsa"


@dataclass(frozen=True)
class OneStepQConfig(AsyncQConfig):
    """Settings of asynchronous one-step Q-learning."""

    name: str = "one_step_q"
    double: bool = False


@dataclass(frozen=True)
class NStepQConfig(AsyncQConfig):
    """Settings of asynchronous n-step Q-learning; n is what is left of a rollout."""

    name: str = "n_step_q"
    double: bool = False


def check_async_q(config: Config) -> None:
    """Raises ConfigError for what no asynchronous Q-learner can do."""
    options: AsyncQConfig = config.algo
    name = f"algo={options.name}"
    if config.device != "cpu":
        raise ConfigError(f"{name} runs its workers on CPU cores: device={config.device} is for algo=dqn.")
    if config.network.lstm_size is not None:
        raise ConfigError(
            f"network.lstm_size={config.network.lstm_size} is for actor-critics: {name} has feed-forward networks, "
            "as in the paper."
        )
    check_q_network(config)
    if config.advantage.kind != "nstep":
        raise ConfigError(f"advantage={config.advantage.kind} is for actor-critics: {name} has none.")
    every = config.lag.gradient_cosine_every_updates
    if every is not None:
        raise ConfigError(f"lag.gradient_cosine_every_updates={every} is for actor-critics: {name} is none.")
    ends, shares = options.epsilon_ends, options.epsilon_shares
    if len(ends) != len(shares) or abs(sum(shares) - 1.0) > 1e-6:
        raise ConfigError(
            f"algo.epsilon_shares=[{','.join(map(str, shares))}] must be as many as algo.epsilon_ends "
            f"({len(ends)}), and add up to 1."
        )
