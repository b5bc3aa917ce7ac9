"""The typed configuration, as plain frozen dataclasses: what every module below `config.py` sees.

Each field says which values it takes; `check` walks any of these dataclasses and reports the first value outside its
range in one sentence. What only makes sense together (a network and an observation, say) is checked in `train.py`,
where both are known.

conf/ says what the values of a run are; the defaults here are the same, as a test makes sure.
"""

import difflib
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from a3c_bench import plugins
from a3c_bench.errors import ConfigError


def option(
    default: Any,
    *,
    choices: Sequence[Any] | None = None,
    others: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a default and the range of values it accepts; `others` is a group of more choices, which
    other packages add.
    """
    limits = {
        "choices": choices,
        "others": others,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
    }
    return field(default=default, metadata=limits)


def section(make: Callable[[], Any]) -> Any:
    """A dataclass field that is a dataclass itself, with all its defaults."""
    return field(default_factory=make)


def check(config: Any, path: str = "") -> None:
    """Checks every value of a (nested) dataclass against the range its field declares.

    Raises:
        ConfigError: names the first key outside its range, its value and what it may be.
    """
    for item in fields(config):
        key, value = f"{path}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check(value, f"{key}.")
            continue
        for single in value if isinstance(value, list | tuple) else [value]:
            _check_value(key, single, item.metadata)


def _check_value(key: str, value: Any, limits: Any) -> None:
    if value is None or not limits:
        return
    choices = limits["choices"]
    if choices is not None and value not in choices and limits["others"] is not None:
        choices = (*choices, *plugins.names(limits["others"]))
    if choices is not None and value not in choices:
        raise ConfigError(f"{key}={value} is not known: choose one of {', '.join(map(str, choices))}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a finite number.")
    for name, words, broken in (
        ("at_least", "at least", operator.lt),
        ("above", "greater than", operator.le),
        ("at_most", "at most", operator.gt),
        ("below", "less than", operator.ge),
    ):
        bound = limits[name]
        if bound is not None and broken(value, bound):
            raise ConfigError(f"{key}={value} must be {words} {bound}.")


_NEAR_ENOUGH = 0.6  # of two names that share 3 letters in 5; below, a guess helps less than the list


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """The known names that look most like `name`, or all of them when there are few, as the end of a sentence."""
    by_letters = {other.lower(): other for other in known}
    scores = {low: difflib.SequenceMatcher(None, name.lower(), low).ratio() for low in by_letters}
    best = max(scores.values(), default=0.0)
    near = [low for low, score in scores.items() if score >= max(_NEAR_ENOUGH, best - 0.15)]
    found = [by_letters[low] for low in sorted(near, key=lambda low: -scores[low])[:count]]
    if not found and len(known) <= 20:
        return f"choose one of {', '.join(known)}."
    return f"did you mean {' or '.join(found)}?" if found else "see the documentation for the names."


@dataclass(frozen=True)
class StepTimeConfig:
    """Time that is added to each agent step of training, as if an environment took so long; `envs.step_time`."""

    distribution: str = option("none", choices=("none", "constant", "exponential", "lognormal"))
    mean_seconds: float | None = option(None, above=0.0)  # per agent step and environment
    deviation_seconds: float | None = option(None, above=0.0)  # lognormal: standard deviation


@dataclass(frozen=True)
class EnvConfig:
    """One task and everything that changes what is simulated, learnt from or counted."""

    id: str = "CartPole-v1"  # EnvPool's name; "atari" with a `game`; module:Name of a Gymnasium environment
    backend: str | None = option(None, choices=("envpool", "gymnasium"))  # null: EnvPool; Gymnasium for module:Name
    simulate: str | None = option(None, choices=("in_place", "processes"))  # Gymnasium's; null: in place
    game: str | None = None  # Atari only: "Pong", "SpaceInvaders", ...
    frame_skip: int = option(1, at_least=1)  # frames per agent step
    max_episode_frames: int | None = option(None, at_least=1)  # truncates an episode; null: the environment's own limit
    reward_clip: float | None = option(None, above=0.0)  # learning reward clipped to [-c, c]; scores never are
    life_loss_terminal: bool = False  # a lost life ends the return that is learnt from, never the game
    sticky_action_probability: float = option(0.0, at_least=0.0, below=1.0)
    noop_max: int = option(30, at_least=1)  # 1 to noop_max no-op frames at the start of a game
    fire_reset: bool = False
    full_action_space: bool = False
    frame_stack: int = option(4, at_least=1)
    image_height: int = option(84, at_least=36)
    image_width: int = option(84, at_least=36)
    grayscale: bool = True
    observed: tuple[int, ...] | None = option(None, at_least=0)  # entries of a vector that the agent sees; null: all
    observed_key: str | None = None  # the one array that the agent sees, where several are shown
    n_threads: int | None = option(None, at_least=1)  # to simulate (or processes); null: usable cores; workers have 1
    step_time: StepTimeConfig = section(StepTimeConfig)  # not of evaluation games

    @property
    def name(self) -> str:
        """What the task is called in paths and figures: the game, or the environment with what is seen of it."""
        key = [] if self.observed_key is None else [self.observed_key]
        seen = [*key, *map(str, self.observed or ())]
        return "-".join([self.game or self.id, *(["sees"] if seen else []), *seen])


NETWORK_KINDS = ("mlp", "small", "nips", "nature")


@dataclass(frozen=True)
class NetworkConfig:
    """The function approximator: a policy head and a value head on one trunk, or on two; or a head of Q-values."""

    kind: str = option("mlp", choices=NETWORK_KINDS, others=plugins.NETWORKS)
    hidden_sizes: tuple[int, ...] = option((64, 64), at_least=1)  # of the mlp; the others are as published
    activation: str = option("tanh", choices=("tanh", "relu"))  # of the mlp; the others use relu
    initialisation: str = option("orthogonal", choices=("orthogonal", "fan_in"))
    shared_trunk: bool = True  # of an actor-critic
    dueling: bool = False  # Q-learners: V and A apart (Wang et al. 2016)
    channels_last: bool = False  # memory layout of the convolutions
    lstm_size: int | None = option(None, at_least=1)  # units of an LSTM before the heads; null: feed-forward
    input_mean: float = 0.0  # subtracted from the observations, from frames after their scaling to [0, 1]
    input_std: float = option(1.0, above=0.0)  # what the observations are divided by then
    layer_norm: str | None = option(None, choices=("features", "channels"))  # before each activation, over [C, H, W] or
    # over C at each place; null: none
    bf16: bool = False  # hidden layers compute in bfloat16; LSTM, heads and what they give, and parameters, are float32
    compile: bool = False  # torch.compile; on a CPU it needs a C++ compiler


ADVANTAGE_KINDS = ("nstep", "gae", "td", "total_reward", "monte_carlo", "baseline", "q", "vtrace")


@dataclass(frozen=True)
class AdvantageConfig:
    """What multiplies grad log pi: psi in the policy-gradient theorem."""

    kind: str = option("nstep", choices=ADVANTAGE_KINDS, others=plugins.ADVANTAGES)
    gae_lambda: float = option(0.95, at_least=0.0, at_most=1.0)  # gae only
    rho_bar: float = option(1.0, above=0.0)  # vtrace only: importance ratios are cut here, in psi and in the targets
    c_bar: float = option(1.0, above=0.0)  # vtrace only: and here, in how far later rewards are believed
    q_baseline: bool = True  # q only: psi is Q(s, a) - sum_b pi(b | s) Q(s, b); false: Q(s, a) itself


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser. Its epsilon, clip and learning rate belong to the loss reduction that stands beside it.

    Each algorithm says its own values; these defaults are no algorithm's.
    """

    kind: str = option("rmsprop", choices=("rmsprop", "adam", "radam", "adagrad"))
    lr: float = option(7e-4, above=0.0)
    lr_range: tuple[float, float] | None = option(None, above=0.0)  # draw lr log-uniformly from here, by the seed
    anneal: bool = True  # linearly to 0 over budget.frames, on the global frame counter
    epsilon: float = option(0.1, above=0.0)
    decay: float = option(0.99, at_least=0.0, below=1.0)  # rmsprop: of the squared gradients (and their mean)
    epsilon_inside_root: bool = True  # rmsprop: g / sqrt(s + eps), or g / (sqrt(s) + eps)
    initial_square: float = option(0.0, at_least=0.0)  # rmsprop, adagrad: accumulator at the start; TensorFlow's was 1
    centered: bool = False  # rmsprop: s minus the squared mean gradient
    beta1: float = option(0.9, at_least=0.0, below=1.0)  # adam, radam
    beta2: float = option(0.999, at_least=0.0, below=1.0)  # adam, radam
    max_grad_norm: float | None = option(None, above=0.0)  # global norm, before the optimiser; null: no clipping


@dataclass(frozen=True)
class ReplayConfig:
    """A replay memory, as `dqn`, `gorila` and `pgql` use it."""

    capacity_agent_steps: int = option(1_000_000, at_least=1)  # a game takes one for each step, and one
    learning_starts_agent_steps: int = option(50_000, at_least=1)  # so many are stored before anything is learnt
    batch_size: int = option(32, at_least=1)  # steps drawn for an update
    storage: str = option("memory", choices=("memory", "memmap"))  # memmap: files in the run directory, which last


@dataclass(frozen=True)
class BudgetConfig:
    """When a run ends: at the first of these that is reached."""

    frames: int | None = option(None, at_least=1)
    wall_clock_seconds: float | None = option(None, above=0.0)  # training time, over all attempts
    target_return: float | None = None  # mean return of the last 100 training games


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation protocol: whole games from no-op starts, unclipped, in environments of their own."""

    interval_frames: int | None = option(None, at_least=1)  # null: at the end only
    n_games: int = option(30, at_least=1)
    n_envs: int = option(10, at_least=1)
    policy: str = option("sample", choices=("sample", "greedy"))  # sample: from pi; of Q-networks, epsilon-greedily
    epsilon: float = option(0.05, at_least=0.0, at_most=1.0)  # of that; 0.05 in Mnih et al. 2015
    max_episode_frames: int | None = option(108_000, at_least=1)  # 30 minutes of Atari


@dataclass(frozen=True)
class LagConfig:
    """Measuring the policy lag of every sample that enters an update."""

    enabled: bool = True
    # a3c: KL, ratio and value_lag of one update in so many; paac, pgql: value_lag of one; the others: of every one
    divergence_every_updates: int = option(16, at_least=1)
    gradient_cosine_every_updates: int | None = option(None, at_least=1)  # beside fresh samples; null: not


@dataclass(frozen=True)
class ComputeConfig:
    """How act, differentiate and apply are run (`core.compiled`); of dqn, ga3c, paac, pgql, ppo and pqn."""

    compile: bool = False  # torch.compile; on a CPU it needs a C++ compiler
    cuda_graphs: bool = False  # captured once, replayed ever after; on a GPU only


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; `offline` needs no account."""

    mode: str = option("disabled", choices=("disabled", "offline", "online"))
    project: str = "a3c_bench"
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoggerConfig:
    """Loggers beside the CSV files, which are always written."""

    wandb: WandbConfig = section(WandbConfig)
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """One run. `algo` is the configuration of the algorithm that `algo.name` names in the registry."""

    algo: Any
    name: str = "default"  # of the sweep: runs/<name>/...
    root: str = "runs"
    tuned_for: str | None = None  # env.name that settings beside the papers' were tuned for; null: the papers' alone
    seed: int = option(0, at_least=0)
    ranks: int = option(1, at_least=1)  # processes that train together, each with algo.n_envs environments of its own
    device: str = "cpu"
    n_torch_threads: int | None = option(None, at_least=1)  # null: 1 for mlp and ga3c, else all cores; workers have 1
    env: EnvConfig = section(EnvConfig)
    network: NetworkConfig = section(NetworkConfig)
    advantage: AdvantageConfig = section(AdvantageConfig)
    budget: BudgetConfig = section(BudgetConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    lag: LagConfig = section(LagConfig)
    compute: ComputeConfig = section(ComputeConfig)
    logger: LoggerConfig = section(LoggerConfig)
    metrics_interval_frames: int = option(10_000, at_least=1)  # one row of metrics.csv and lag.csv
    checkpoint_interval_seconds: float = option(60.0, above=0.0)
    worker_silence_seconds: float = option(10.0, above=0.0)  # of a worker: it ends the run
    rank_silence_seconds: float = option(30.0, above=0.0)  # of a rank: it ends the run on all of them
    calibrate: bool = False  # measure this machine's serial bound first, and report the share of it that was reached
    progress: bool = True
    retry_diverged: bool = False  # start a run again that has diverged; else the same command leaves it alone


def check_actor_critic(config: Config) -> None:
    """Raises ConfigError for a network that is no actor-critic."""
    if config.network.dueling:
        raise ConfigError(f"network.dueling=true is for Q-networks: algo={config.algo.name} has a policy and a value.")


def check_q_network(config: Config) -> None:
    """Raises ConfigError for a network that is no Q-network."""
    options = config.network
    if options.lstm_size is not None:
        raise ConfigError(f"network.lstm_size={options.lstm_size} is for actor-critics: Q-networks have no memory.")
    if not options.shared_trunk:
        raise ConfigError("network.shared_trunk=false is for actor-critics: a Q-network has one trunk.")


def check_replay(config: Config) -> None:
    """Raises ConfigError for an algo.replay from which nothing can be learnt; whether it fits, its user finds out."""
    options: ReplayConfig = config.algo.replay
    capacity, batch_size = options.capacity_agent_steps, options.batch_size
    if capacity < batch_size:
        raise ConfigError(f"algo.replay.capacity_agent_steps={capacity} is smaller than a batch of {batch_size}.")
    if config.budget.frames is not None:
        budget = config.budget.frames // config.env.frame_skip
        if options.learning_starts_agent_steps >= budget:
            raise ConfigError(
                f"algo.replay.learning_starts_agent_steps={options.learning_starts_agent_steps} is not below the "
                f"budget of {budget} agent steps: nothing would be learnt."
            )


# Keys that change neither what is computed nor where it is kept: a run may be resumed with other values of these.
# `device`, `network.compile` and `compute` are none of them: they round otherwise, and a run is of one rounding.
PRESENTATION_KEYS = (
    "root",
    "name",
    "tuned_for",
    "progress",
    "retry_diverged",
    "logger",
    "calibrate",
    "checkpoint_interval_seconds",
    "worker_silence_seconds",
    "rank_silence_seconds",
)

# Keys that only watch a run, or say how long it is: they are in no path, and a run goes on with other values of these.
# A budget does change what is computed where something is annealed over it: docs/metrics.md says how.
WATCHING_KEYS = ("evaluation", "lag", "metrics_interval_frames", "budget")
