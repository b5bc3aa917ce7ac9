"""GA3C: A3C on one copy of the parameters, with queues (Babaeizadeh et al. 2017, arXiv:1611.06256).

    N_A agents, simulated by EnvPool's threads, each for itself
        |  whichever B agents have finished a step          ^ actions
        v  (EnvPool's asynchronous mode: the prediction     |
    N_P predictor threads      queue)                       |
        |  batch forward under theta as it is now ----------+
        |  t_max steps of an agent, or until its episode ends
        v
    training queue (bounded)
        |  rollouts, until there are min_training_batch samples
        v
    N_T trainer threads: gradient of one batch at theta as it is now, applied at once

Between an action and the update that learns from it theta changes: that is the lag, made of the rollout's own length,
the wait in the queue and the trainers' work. The paper meets it with an epsilon in the logarithm. Beyond the paper
there are a bound (max_lag_updates) and V-trace (correction), and a lock-step mode without any lag (synchronous).
"""

import queue
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from a3c_bench import build
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.core.advantages import VTrace
from a3c_bench.core.losses import REDUCTIONS
from a3c_bench.core.networks import ActorCritic, sample_actions
from a3c_bench.core.optim import FlatParameters, SharedStatistics, set_learning_rate
from a3c_bench.core.rollout import Batch, actor_critic_backward, divergence
from a3c_bench.envs import Episode, Step, VectorEnv
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.clock import PhaseTimer
from a3c_bench.runtime.crew import Crew, Member
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.runtime.session import PHASES, Session
from a3c_bench.schema import Config, OptimizerConfig, option, section

NEED_THE_END = ("monte_carlo", "baseline")  # estimators that cannot use a rollout which goes on elsewhere


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
    loss_reduction: str = option("sum", choices=REDUCTIONS)
    log_epsilon: float = option(1e-6, at_least=0.0)  # log(pi + epsilon)
    max_lag_updates: int | None = option(None, at_least=0)  # older samples are discarded; null: none are
    correction: str = option("none", choices=("none", "vtrace"))
    rho_bar: float = option(1.0, above=0.0)  # of V-trace
    c_bar: float = option(1.0, above=0.0)  # of V-trace
    synchronous: bool = False  # lock step, without lag: the control experiment
    optimizer: OptimizerConfig = section(OptimizerConfig)


class Experience(NamedTuple):
    """One agent's rollout of L steps; its last one may end the episode."""

    observations: Tensor  # [L, ...]
    state: Tensor  # [S], of an LSTM, before the first step
    actions: Tensor  # [L]
    log_probs: Tensor  # [L, A], of the policy that acted
    rewards: Tensor  # [L]
    terminated: bool
    truncated: bool
    bootstrap: Tensor  # scalar, V of the state after the last step, when it was seen
    stamps: NDArray[np.float64]  # [L, 3]: version, frames and seconds when each action was chosen


TrainingQueue = queue.Queue[list[Experience]]


def merge(experiences: list[Experience], device: torch.device) -> Batch:
    """One batch [T, B] of B rollouts, padded at their ends to the longest."""
    lengths = torch.tensor([len(e.actions) for e in experiences])
    columns, ends = torch.arange(len(experiences)), lengths - 1

    def pad(parts: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(parts)

    truncated = torch.zeros((int(lengths.max()), len(experiences)), dtype=torch.bool)
    terminated = truncated.clone()
    terminated[ends, columns] = torch.tensor([e.terminated for e in experiences])
    # A rollout that goes on elsewhere ends like a truncated one: with the value of the state after it.
    truncated[ends, columns] = torch.tensor([not e.terminated for e in experiences])
    batch = Batch(
        pad([e.observations for e in experiences]),
        torch.stack([e.state for e in experiences]),
        pad([e.actions for e in experiences]),
        pad([e.log_probs for e in experiences]),
        pad([e.rewards for e in experiences]),
        terminated,
        truncated,
        torch.arange(len(truncated)).unsqueeze(1) < lengths,
        torch.stack([e.bootstrap for e in experiences]),
        lengths,
    )
    if device.type == "cpu":
        return batch
    return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in batch if part is not None))


@dataclass
class Counts:
    """Global counters; each thread adds to a slot of its own, so that none is lost."""

    frame_skip: int
    budget_frames: float = float("inf")
    agent_steps: dict[str, int] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Updates applied to theta so far."""
        return sum(list(self.updates.values()))

    @property
    def frames(self) -> int:
        """Frames simulated so far."""
        return sum(list(self.agent_steps.values())) * self.frame_skip

    @property
    def spent(self) -> bool:
        """Whether the frames of the budget are simulated: predictors end then, in lock step always at one place."""
        return self.frames >= self.budget_frames

    def stamp(self) -> tuple[int, int, float]:
        """Version, frames and seconds now."""
        return self.version, self.frames, time.perf_counter()


class Predicted(NamedTuple):
    """Report of a predictor."""

    n_agent_steps: int
    episodes: list[Episode]
    seconds: dict[str, float]


class Trained(NamedTuple):
    """Report of a trainer."""

    metrics: dict[str, Any]  # scalars
    fit: tuple[Tensor, Tensor, Tensor]
    lag: dict[str, Any]
    updated: bool  # False if every sample was discarded
    seconds: dict[str, float]


class Agents:
    """What the agents are in the middle of. Each belongs to whichever thread has received it, so nothing is locked.

    Args:
        envs: N_A of them.
        network: for the size of its state.
        t_max: T.
    """

    def __init__(self, envs: VectorEnv, network: ActorCritic, t_max: int) -> None:
        n = envs.n_envs
        self.envs = envs
        self.t_max = t_max
        frame_dtype = torch.from_numpy(np.empty(0, dtype=envs.observation_dtype)).dtype
        self.observations = torch.zeros((n, t_max, *envs.observation_shape), dtype=frame_dtype)
        self.actions = torch.zeros((n, t_max), dtype=torch.int64)
        self.log_probs = torch.zeros((n, t_max, envs.n_actions))
        self.rewards = np.zeros((n, t_max), dtype=np.float32)
        self.stamps = np.zeros((n, t_max, 3))
        self.lengths = np.zeros(n, dtype=np.int64)  # steps so far of each agent's rollout
        self.state = torch.zeros((n, network.state_size))  # now
        self.first_state = torch.zeros((n, network.state_size))  # before the rollout's first step

    def answer(self, step: Step) -> None:
        """Keeps what the environments answered to the last actions."""
        ids = step.env_ids[step.valid]
        self.rewards[ids, self.lengths[ids]] = step.rewards[step.valid]
        self.lengths[ids] += 1
        if not step.valid.all():  # new games
            self.state[torch.from_numpy(step.env_ids[~step.valid]).long()] = 0.0

    def take(self, env_id: int, terminated: bool, truncated: bool, bootstrap: Tensor) -> Experience:
        """An agent's rollout, which begins anew."""
        n = int(self.lengths[env_id])
        self.lengths[env_id] = 0
        return Experience(
            self.observations[env_id, :n].clone(),
            self.first_state[env_id].clone(),
            self.actions[env_id, :n].clone(),
            self.log_probs[env_id, :n].clone(),
            torch.from_numpy(self.rewards[env_id, :n].copy()),
            terminated,
            truncated,
            bootstrap,
            self.stamps[env_id, :n].copy(),
        )

    def choose(self, step: Step, prediction: "Prediction") -> None:
        """Keeps the actions chosen for the observations of a step, and the network's state after them."""
        ids = torch.from_numpy(step.env_ids).long()
        rows = torch.from_numpy(self.lengths[step.env_ids])
        fresh = ids[rows == 0]
        self.first_state[fresh] = self.state[fresh]
        self.state[ids] = prediction.state
        self.observations[ids, rows] = torch.from_numpy(step.observations)
        self.actions[ids, rows] = prediction.actions
        self.log_probs[ids, rows] = prediction.log_probs
        self.stamps[step.env_ids, rows.numpy()] = prediction.stamp


class Prediction(NamedTuple):
    """What theta says of B agents, in main memory."""

    log_probs: Tensor  # [B, A]
    values: Tensor  # [B]
    actions: Tensor  # [B]
    state: Tensor  # [B, S]
    stamp: tuple[int, int, float]


class Predictor:
    """One predictor thread.

    Args:
        config: of the run.
        agents: of everybody.
        network: shows theta.
        counts: of everybody.
        name: of the thread.
        seed: of the actions.
    """

    def __init__(
        self,
        config: Config,
        agents: Agents,
        network: ActorCritic,
        counts: Counts,
        name: str,
        seed: np.random.SeedSequence,
    ) -> None:
        self.t_max = config.algo.t_max
        self.agents = agents
        self.network = network
        self.counts = counts
        self.name = name
        self.device = resolve_device(config.device)
        self.generator = torch_generator(self.device, seed)
        self.timer = PhaseTimer(*PHASES)
        counts.agent_steps[name] = 0

    def run(self, member: Member, training: TrainingQueue, receiving: threading.Lock) -> None:
        """Serves whichever agents have finished a step. Only one thread at a time may be `receiving`."""
        self.timer.start()
        while member.going() and not self.counts.spent:
            with receiving:
                step = self.agents.envs.receive()
            self.timer.lap("simulate")
            self.answer(step)
            prediction = self.predict(step)
            full = self.agents.lengths[step.env_ids] == self.t_max
            rollouts = self.take(step, prediction, _ended(step) | full)
            self.act(step, prediction)
            self.timer.lap("predict")
            for rollout in rollouts:
                member.put(training, [rollout])
            self.timer.lap("wait")
            member.report(Predicted(int(step.valid.sum()), step.episodes, self.timer.take()))

    def run_in_lock_step(self, member: Member, training: TrainingQueue) -> None:
        """All agents for t_max steps, then one update from all of them, then on."""
        rollouts: list[Experience] = []
        n_turns = 0
        self.timer.start()
        while member.going() and not self.counts.spent:
            step = self.agents.envs.receive()
            self.timer.lap("simulate")
            self.answer(step)
            prediction = self.predict(step)
            round_is_over = n_turns > 0 and n_turns % self.t_max == 0
            begun = self.agents.lengths[step.env_ids] > 0
            rollouts += self.take(step, prediction, _ended(step) | (round_is_over & begun))
            self.timer.lap("predict")
            if round_is_over:
                member.put(training, rollouts)
                rollouts = []
                while training.unfinished_tasks and member.going():
                    time.sleep(0.0002)
                self.timer.lap("wait")
                prediction = self.predict(step)  # theta is another now
            self.act(step, prediction)
            n_turns += 1
            self.timer.lap("predict")
            member.report(Predicted(int(step.valid.sum()), step.episodes, self.timer.take()))

    def answer(self, step: Step) -> None:
        """Keeps and counts what the environments answered."""
        self.agents.answer(step)
        self.counts.agent_steps[self.name] += int(step.valid.sum())

    @torch.no_grad()
    def predict(self, step: Step) -> Prediction:
        """Theta's view of the observations of a step, and actions drawn from it."""
        stamp = self.counts.stamp()
        observations = torch.from_numpy(step.observations).to(self.device)
        state = self.agents.state[torch.from_numpy(step.env_ids).long()].to(self.device)
        log_probs, values, state = self.network(observations, state)
        actions = sample_actions(log_probs, self.generator)
        return Prediction(log_probs.cpu(), values.cpu(), actions.cpu(), state.cpu(), stamp)

    def take(self, step: Step, prediction: Prediction, complete: NDArray[np.bool_]) -> list[Experience]:
        """The rollouts [B] that are complete."""
        return [
            self.agents.take(
                int(step.env_ids[i]),
                bool(step.terminated[i] & step.valid[i]),
                bool(step.truncated[i] & step.valid[i]),
                prediction.values[i],
            )
            for i in np.flatnonzero(complete)
        ]

    def act(self, step: Step, prediction: Prediction) -> None:
        """Sends the agents on their way."""
        self.agents.choose(step, prediction)
        self.agents.envs.send(prediction.actions.numpy().astype(np.int32), step.env_ids)


class Trainer:
    """One trainer thread. Its network shows theta, its gradients are its own.

    Args:
        config: of the run.
        network: shows theta; of this trainer alone.
        theta: [P].
        statistics: of the optimiser, shared by all trainers.
        counts: of everybody.
        name: of the thread.
    """

    def __init__(
        self,
        config: Config,
        network: ActorCritic,
        theta: Tensor,
        statistics: SharedStatistics,
        counts: Counts,
        name: str,
    ) -> None:
        self.options: GA3CConfig = config.algo
        self.needs_end = config.advantage.kind in NEED_THE_END
        self.measure_lag = config.lag.enabled
        self.device = resolve_device(config.device)
        self.network = network
        self.parameters = FlatParameters(network, theta)
        self.optimizer = build.make_optimizer(self.options.optimizer, self.parameters.values)
        statistics.lend(self.optimizer)
        self.learning_rate_at = build.make_schedule(config)
        self.estimate = build.make_estimator(config, self.options.gamma)
        self.vtrace = None
        if self.options.correction == "vtrace":
            self.vtrace = VTrace(self.options.gamma, self.options.rho_bar, self.options.c_bar)
        self.counts = counts
        self.name = name
        self.timer = PhaseTimer(*PHASES)
        counts.updates[name] = 0

    def run(self, member: Member, training: TrainingQueue) -> None:
        """Learns from rollouts as they come, merged until there are enough samples."""
        self.timer.start()
        while member.going():
            experiences: list[Experience] = []
            n_items = n_samples = 0
            while n_samples < self.options.min_training_batch:
                item = member.get(training)
                if item is None:
                    return
                n_items += 1
                n_samples += sum(len(e.actions) for e in item)
                experiences += item
            self.timer.lap("wait")
            depth = training.qsize()
            trained = self.learn(experiences)
            for _ in range(n_items):
                training.task_done()
            self.timer.lap("train")
            trained.metrics.update(training_queue_depth=depth, training_batch=n_samples)
            member.report(trained._replace(seconds=self.timer.take()))

    def learn(self, experiences: list[Experience]) -> Trained:
        """One update of theta, unless every sample is too old."""
        options, counts = self.options, self.counts
        version = counts.version
        batch = merge(experiences, self.device)
        stamps = np.concatenate([e.stamps for e in experiences])  # [n, 3], rollout after rollout
        keep = None
        discarded = 0.0
        if options.max_lag_updates is not None:
            fresh = version - stamps[:, 0] <= options.max_lag_updates
            discarded = 1.0 - float(fresh.mean())
            keep = _by_step(fresh, batch).to(self.device)
        if self.needs_end:
            ended = torch.tensor([e.terminated or e.truncated for e in experiences], device=self.device)
            keep = ended.expand_as(batch.valid) if keep is None else keep & ended
        self.parameters.zero_gradients()
        found = actor_critic_backward(
            self.network,
            batch,
            self.estimate,
            entropy_weight=options.entropy_weight,
            value_weight=options.value_weight,
            reduction=options.loss_reduction,
            log_epsilon=options.log_epsilon,
            keep=keep,
            vtrace=self.vtrace,
        )
        gradient_norm = self.parameters.clip_gradients(options.optimizer.max_grad_norm)
        learning_rate = self.learning_rate_at(counts.frames)
        set_learning_rate(self.optimizer, learning_rate)
        mask = found.mask.cpu()
        updated = bool(mask.any())
        lag: dict[str, Any] = {}
        if updated and self.measure_lag:
            now = counts.stamp()
            learnt = mask.T[(torch.arange(mask.shape[0]) < _lengths(batch).unsqueeze(1))].numpy()
            lags = np.array(now) - stamps[learnt]
            lag = {"lag_updates": lags[:, 0], "lag_frames": lags[:, 1], "lag_seconds": lags[:, 2]}
            lag["gradient_staleness_updates"] = np.array([now[0] - version])
            lag |= divergence(batch, found.log_probs, found.mask)
        if updated:
            self.optimizer.step()
            counts.updates[self.name] += 1
        metrics = found.figures() | {
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "discarded_share": discarded,
        }
        return Trained(metrics, found.fit, lag, updated, {})


def _ended(step: Step) -> NDArray[np.bool_]:
    return step.valid & (step.terminated | step.truncated)


def _lengths(batch: Batch) -> Tensor:
    assert batch.lengths is not None
    return batch.lengths.cpu()


def _by_step(of_samples: NDArray[np.bool_], batch: Batch) -> Tensor:
    """[T, B] of flags that come rollout after rollout."""
    parts = torch.split(torch.from_numpy(of_samples), _lengths(batch).tolist())
    return nn.utils.rnn.pad_sequence(list(parts))


def check(config: Config) -> None:
    """Raises ConfigError for what cannot run."""
    options: GA3CConfig = config.algo
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
    if options.correction == "vtrace" and config.advantage.kind != "nstep":
        raise ConfigError(f"algo.correction=vtrace corrects n-step returns: not advantage={config.advantage.kind}.")


def train(config: Config, session: Session) -> None:
    """Starts the threads and keeps the record of what they do."""
    options: GA3CConfig = config.algo
    device = resolve_device(config.device)
    torch.set_num_threads(config.n_torch_threads or 1)  # each thread here has one core at most
    batch_size = workload(config).acting_batch
    seed = sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
    envs = build.make_envs(config, options.n_agents, seed, batch_size=batch_size)
    network: ActorCritic = build.make_network(config, envs, device)
    theta = FlatParameters(network).values.detach()
    statistics = SharedStatistics(build.make_optimizer(options.optimizer, nn.Parameter(theta)))
    counts = Counts(config.env.frame_skip, config.budget.frames or float("inf"))
    training: TrainingQueue = queue.Queue(options.training_queue_size)
    receiving = threading.Lock()
    agents = Agents(envs, network, options.t_max)

    def record(report: Predicted | Trained) -> None:
        session.timer.add(report.seconds)
        if isinstance(report, Predicted):
            session.count(report.n_agent_steps, report.episodes)
        elif report.updated:
            session.updated(report.metrics, report.fit)
            session.lag.add(**report.lag)

    try:
        with Crew(record, config.worker_silence_seconds) as crew:
            for i in range(1 if options.synchronous else options.n_predictors):
                name, stream = f"predictor {i}", sequence(config.seed, Stream.ACTIONS, session.attempt, i)
                predictor = Predictor(config, agents, network, counts, name, stream)
                if options.synchronous:
                    crew.start(name, partial(predictor.run_in_lock_step, training=training))
                else:
                    crew.start(name, partial(predictor.run, training=training, receiving=receiving))
            for i in range(1 if options.synchronous else options.n_trainers):
                name = f"trainer {i}"
                own_network = build.make_network(config, envs, device)
                trainer = Trainer(config, own_network, theta, statistics, counts, name)
                crew.start(name, partial(trainer.run, training=training))
            with crew.standstill():
                session.restore(network=network, statistics=statistics)
                counts.agent_steps["before"] = session.counters.agent_steps
                counts.updates["before"] = session.counters.updates
                envs.start()
            while session.running(crew.standstill):
                crew.poll(0.1)
    finally:
        envs.close()


def workload(config: Config) -> Workload:
    """A predictor's batch, as if it were trained on alone."""
    options: GA3CConfig = config.algo
    asynchronous = options.prediction_batch or max(1, options.n_agents // 4)
    return Workload(options.n_agents if options.synchronous else asynchronous, options.t_max)


ALGORITHM = Algorithm(GA3CConfig, train, check, workload)
