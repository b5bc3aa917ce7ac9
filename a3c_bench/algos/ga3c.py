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
there are a bound (max_lag_updates), V-trace (advantage=vtrace) and a lock-step mode without any lag (synchronous).

N_A, N_P and N_T are fixed, or adjusted while it runs (`core.adjustment`).
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from a3c_bench import build
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.settings import GA3CConfig, acting_batch, first_sizes, largest_sizes
from a3c_bench.core.adjustment import Adjuster, Sizes
from a3c_bench.core.lag import Stamp, age
from a3c_bench.core.networks import ActorCritic, sample_actions
from a3c_bench.core.optim import FlatParameters, SharedOptimizerState
from a3c_bench.core.rollout import Batch, divergence
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.parallel.crew import Crew, Member
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.ledger import Report
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config

SECONDS_BETWEEN_POLLS = 0.02


class Experience:
    """Rollouts in main memory, allocated once: an agent fills a slot, a trainer reads it and sets it free.

    Args:
        n_slots: S.
        t_max: T, steps of a rollout at most.
        envs: for the shape of an observation and the number of actions.
        network: for the size of its state.
    """

    def __init__(self, n_slots: int, t_max: int, envs: VectorEnv, network: ActorCritic) -> None:
        self.t_max = t_max
        self.lengths = np.zeros(n_slots, dtype=np.int64)  # steps so far
        self.observations = np.zeros((t_max, n_slots, *envs.observation_shape), dtype=envs.observation_dtype)
        self.state = np.zeros((n_slots, network.state_size), dtype=np.float32)  # of an LSTM, before the first step
        self.actions = np.zeros((t_max, n_slots), dtype=np.int64)
        self.log_probs = np.zeros((t_max, n_slots, envs.n_actions), dtype=np.float32)  # of the policy that acted
        self.rewards = np.zeros((t_max, n_slots), dtype=np.float32)
        self.terminated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.truncated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.bootstrap = np.zeros(n_slots, dtype=np.float32)  # V of the state after the last step, when it was seen
        self.stamps = np.zeros((t_max, n_slots, 3))  # version, frames and seconds when each action was chosen
        self._free = deque(range(n_slots))

    def slot(self) -> int:
        """A free slot; there are enough for all who may hold one."""
        slot = self._free.popleft()
        self.lengths[slot] = 0
        return slot

    def set_free(self, slots: Sequence[int]) -> None:
        """Nobody reads these any more."""
        self._free.extend(slots)

    def batch(self, slots: Sequence[int], device: torch.device) -> Batch:
        """The rollouts [B] in these slots, padded at their ends to the longest."""
        lengths = self.lengths[slots]
        steps = slice(0, int(lengths.max()))
        ends, columns = lengths - 1, np.arange(len(slots))
        terminated = np.zeros((int(lengths.max()), len(slots)), dtype=bool)
        truncated = terminated.copy()
        terminated[ends, columns] = self.terminated[slots]
        # A rollout that goes on elsewhere ends like a truncated one: with the value of the state after it.
        truncated[ends, columns] = ~self.terminated[slots]
        parts = (
            self.observations[steps, slots],
            self.state[slots],
            self.actions[steps, slots],
            self.log_probs[steps, slots],
            self.rewards[steps, slots],
            terminated,
            truncated,
            np.arange(len(terminated))[:, None] < lengths,
            self.bootstrap[slots],
            lengths,
        )
        return Batch(*(_to_device(torch.from_numpy(part), device) for part in parts))


TrainingQueue = queue.Queue[list[int]]  # of slots


class Agents:
    """Where each agent is. One belongs to whichever thread has received it, so that nothing of it is locked.

    Args:
        envs: an agent each.
        network: for the size of its state.
        experience: they fill.
        n_agents: N_A, so many work; the others are parked.
    """

    def __init__(self, envs: VectorEnv, network: ActorCritic, experience: Experience, n_agents: int) -> None:
        self.envs = envs
        self.experience = experience
        self.n_wanted = n_agents
        self.n_working = envs.n_envs
        self.slots = np.array([experience.slot() for _ in range(envs.n_envs)])  # of their present rollouts
        self.state = np.zeros((envs.n_envs, network.state_size), dtype=np.float32)  # of the network, now
        self._parked: list[tuple[int, NDArray[Any]]] = []  # with what they saw last
        self._parking = threading.Lock()

    def answer(self, step: Step) -> None:
        """Keeps what the environments answered to the last actions."""
        slots = self.slots[step.env_ids[step.valid]]
        self.experience.rewards[self.experience.lengths[slots], slots] = step.rewards[step.valid]
        self.experience.lengths[slots] += 1
        self.state[step.env_ids[~step.valid]] = 0.0  # new games

    def complete(self, step: Step, values: NDArray[np.float32], complete: NDArray[np.bool_]) -> list[int]:
        """The slots of agents whose rollouts are complete [B], with the values of where they lead; they begin anew."""
        agents, experience = step.env_ids[complete], self.experience
        slots = self.slots[agents]
        experience.terminated[slots] = (step.terminated & step.valid)[complete]
        experience.truncated[slots] = (step.truncated & step.valid)[complete]
        experience.bootstrap[slots] = values[complete]
        self.slots[agents] = [experience.slot() for _ in slots]
        return slots.tolist()

    def choose(self, ids: NDArray[np.int32], observations: NDArray[Any], prediction: "Prediction") -> None:
        """Keeps the actions chosen for the observations [B, ...] of some agents, and the network's state after them."""
        experience = self.experience
        slots = self.slots[ids]
        rows = experience.lengths[slots]
        fresh = rows == 0
        experience.state[slots[fresh]] = self.state[ids[fresh]]
        self.state[ids] = prediction.state
        experience.observations[rows, slots] = observations
        experience.actions[rows, slots] = prediction.actions
        experience.log_probs[rows, slots] = prediction.log_probs
        experience.stamps[rows, slots] = prediction.stamp

    def park(self, step: Step) -> NDArray[np.bool_]:
        """Which agents [B] of a step go on; while too many work, those at the start of a rollout do not."""
        going = np.ones(len(step.env_ids), dtype=bool)
        if self.n_working > self.n_wanted:
            with self._parking:
                for i in np.flatnonzero(self.experience.lengths[self.slots[step.env_ids]] == 0):
                    if self.n_working > self.n_wanted:
                        going[i] = False
                        self.n_working -= 1
                        self._parked.append((int(step.env_ids[i]), step.observations[i].copy()))
        return going

    def wake(self, step: Step) -> Step:
        """The step, and with it parked agents that are to work again, as if they had just been received."""
        if self.n_working >= self.n_wanted:
            return step
        with self._parking:
            n = min(self.n_wanted - self.n_working, len(self._parked))
            woken, self._parked = self._parked[:n], self._parked[n:]
            self.n_working += n
        if not woken:
            return step
        ids, observations = zip(*woken, strict=True)
        nothing = np.zeros(n, dtype=bool)
        return Step(
            np.append(step.env_ids, np.array(ids, dtype=np.int32)),
            np.concatenate([step.observations, np.stack(observations)]),
            np.append(step.rewards, np.zeros(n, dtype=np.float32)),
            np.append(step.terminated, nothing),
            np.append(step.truncated, nothing),
            np.append(step.valid, nothing),
            step.episodes,
        )


class Prediction(NamedTuple):
    """What theta says of B agents, in main memory."""

    log_probs: NDArray[np.float32]  # [B, A]
    values: NDArray[np.float32]  # [B]
    actions: NDArray[np.int64]  # [B]
    state: NDArray[np.float32]  # [B, S]
    stamp: Stamp

    def of(self, chosen: NDArray[np.bool_]) -> "Prediction":
        """For some agents only."""
        log_probs, values, actions, state, stamp = self
        return Prediction(log_probs[chosen], values[chosen], actions[chosen], state[chosen], stamp)


class Predictor:
    """One predictor thread.

    Args:
        config: of the run.
        agents: of everybody.
        network: shows theta.
        tally: of everybody.
        writer: its row there.
        seed: of the actions.
    """

    def __init__(
        self,
        config: Config,
        agents: Agents,
        network: ActorCritic,
        tally: Tally,
        writer: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self.budget_frames = config.budget.frames or float("inf")
        self.agents = agents
        self.network = network
        self.tally = tally
        self.device = resolve_device(config.device)
        self.generator = torch_generator(self.device, seed)
        self.notes = Notes(tally, writer)
        self.timer = self.notes.timer

    def run(self, member: Member, training: TrainingQueue, receiving: threading.Lock) -> None:
        """Serves whichever agents have finished a step. Only one thread at a time may be `receiving`."""
        member.resume = self.timer.start
        with own_stream(self.device):
            self.timer.start()
            while member.going() and not self.spent:
                with receiving:
                    step = self.agents.envs.receive()
                self.timer.lap("simulate")
                self.answer(step)
                step = self.agents.wake(step)
                prediction = self.predict(step)
                rollouts = self.complete(step, prediction, _ended(step) | self.full(step))
                self.act(step, prediction)
                self.timer.lap("predict")
                for slot in rollouts:
                    member.put(training, [slot])
                self.timer.lap("wait")
                self.report(member, step)

    def run_in_lock_step(self, member: Member, training: TrainingQueue) -> None:
        """All agents for t_max steps, then one update from all of them, then on."""
        rollouts: list[int] = []
        n_turns = 0
        member.resume = self.timer.start
        with own_stream(self.device):
            self.timer.start()
            while member.going() and not self.spent:
                step = self.agents.envs.receive()
                self.timer.lap("simulate")
                self.answer(step)
                prediction = self.predict(step)
                round_is_over = n_turns > 0 and n_turns % self.agents.experience.t_max == 0
                begun = self.lengths(step) > 0
                rollouts += self.complete(step, prediction, _ended(step) | (round_is_over & begun))
                self.timer.lap("predict")
                if round_is_over and rollouts:  # there are none if nothing but phantoms went on
                    member.put(training, rollouts)
                    rollouts = []
                    while training.unfinished_tasks and member.going():
                        time.sleep(0.0002)
                    self.timer.lap("wait")
                    prediction = self.predict(step)  # theta is another now
                self.act(step, prediction)
                n_turns += 1
                self.timer.lap("predict")
                self.report(member, step)

    @property
    def spent(self) -> bool:
        """Whether the frames of the budget are simulated: predictors end then, in lock step always at one place."""
        return self.tally.frames >= self.budget_frames

    def answer(self, step: Step) -> None:
        """Keeps and counts what the environments answered."""
        self.agents.answer(step)
        self.notes.count(int(step.valid.sum()), step.episodes)

    @torch.no_grad()
    def predict(self, step: Step) -> Prediction:
        """Theta's view of the observations of a step, and actions drawn from it."""
        stamp = self.tally.stamp()
        observations = _to_device(torch.from_numpy(step.observations), self.device)
        state = _to_device(torch.from_numpy(self.agents.state[step.env_ids]), self.device)
        log_probs, values, state = self.network(observations, state)
        actions = sample_actions(log_probs, self.generator)
        log_probs, values, actions, state = (part.cpu() for part in (log_probs, values, actions, state))
        return Prediction(log_probs.numpy(), values.numpy(), actions.numpy(), state.numpy(), stamp)

    def lengths(self, step: Step) -> NDArray[np.int64]:
        """How long the rollouts [B] of a step's agents are."""
        agents = self.agents
        return agents.experience.lengths[agents.slots[step.env_ids]]

    def full(self, step: Step) -> NDArray[np.bool_]:
        """Which of them [B] are full."""
        return self.lengths(step) == self.agents.experience.t_max

    def complete(self, step: Step, prediction: Prediction, complete: NDArray[np.bool_]) -> list[int]:
        """The slots of the rollouts [B] that are complete."""
        return self.agents.complete(step, prediction.values, complete) if complete.any() else []

    def act(self, step: Step, prediction: Prediction) -> None:
        """Sends the agents on their way, but for those that are parked."""
        going = self.agents.park(step)
        if not going.all():
            prediction = prediction.of(going)
        env_ids = step.env_ids[going]
        if len(env_ids):
            self.agents.choose(env_ids, step.observations[going], prediction)
            self.agents.envs.send(prediction.actions.astype(np.int32), env_ids)

    def report(self, member: Member, step: Step) -> None:
        """Tells what a turn brought."""
        self.notes.ratio("prediction_batch", len(step.env_ids), 1)
        member.report(_with_share(self.notes.take(), "share_predictors_wait", ("simulate", "wait")))


class Trainer:
    """One trainer thread. Its network shows theta, its gradients are its own.

    Args:
        config: of the run.
        experience: to learn from.
        network: shows theta; of this trainer alone.
        theta: [P].
        statistics: of the optimiser, shared by all trainers.
        tally: of everybody.
        writer: its row there.
    """

    def __init__(
        self,
        config: Config,
        experience: Experience,
        network: ActorCritic,
        theta: Tensor,
        statistics: SharedOptimizerState,
        tally: Tally,
        writer: int,
    ) -> None:
        self.options: GA3CConfig = config.algo
        self.experience = experience
        self.measure_lag = config.lag.enabled
        self.device = resolve_device(config.device)
        self.network = network
        self.parameters = FlatParameters(network, theta)
        self.learner = build.make_actor_critic_learner(
            config, network, self.parameters, log_epsilon=self.options.log_epsilon
        )
        statistics.lend(self.learner.optimizer)
        self.learning_rate_at = build.make_schedule(config)
        self.tally = tally
        self.notes = Notes(tally, writer)
        self.timer = self.notes.timer

    def run(self, member: Member, training: TrainingQueue) -> None:
        """Learns from rollouts as they come, merged until there are enough samples; in lock step from each round."""
        min_samples = 1 if self.options.synchronous else self.options.min_training_batch
        member.resume = self.timer.start
        with own_stream(self.device):
            self.timer.start()
            while member.going():
                slots: list[int] = []
                n_items = 0
                while self.experience.lengths[slots].sum() < min_samples:
                    item = member.get(training)
                    if item is None:
                        return
                    slots += item
                    n_items += 1
                self.timer.lap("wait")
                self.learn(slots, training.qsize())
                self.experience.set_free(slots)
                for _ in range(n_items):
                    training.task_done()
                self.timer.lap("train")
                member.report(_with_share(self.notes.take(), "share_trainers_wait", ("wait",)))

    def learn(self, slots: Sequence[int], queue_depth: int = 0) -> None:
        """One update of theta from the rollouts in these slots, unless every sample is too old."""
        options, tally, notes, learner = self.options, self.tally, self.notes, self.learner
        version = tally.version
        batch = self.experience.batch(slots, self.device)
        stamps = self.experience.stamps[: len(batch.valid), slots]  # [T, B, 3]
        valid = np.arange(len(stamps))[:, None] < self.experience.lengths[slots]  # [T, B]
        young = valid
        if options.max_lag_updates is not None:
            young = valid & (version - stamps[..., 0] <= options.max_lag_updates)
        keep = young
        if learner.estimate.needs_end:
            keep = young & (self.experience.terminated | self.experience.truncated)[slots]
        found = learner.differentiate(batch, keep=torch.from_numpy(keep).to(self.device))
        gradient_norm = learner.clip()
        # keep is found.mask (of a rollout estimators can use all or nothing), known without waiting for the device.
        learns = bool(keep.any())
        if learns:
            self._wait_for_device()  # the gradient is there, so that the stamp is that of the step
        now = tally.stamp()
        learning_rate = self.learning_rate_at(now.frames)
        if learns:
            learner.step(learning_rate)
            self._wait_for_device()  # before it is counted
            tally.add(notes.writer, updates=1)
        if learns and self.measure_lag:
            stale = np.array([now.version - version])
            kl = divergence(batch, found.log_probs, found.mask)
            notes.lag.add(**age(stamps[keep], now), **kl, gradient_staleness_updates=stale)
        n_samples, n_young = int(valid.sum()), int(young.sum())
        notes.ratio("discarded_share", n_samples - n_young, n_samples)
        notes.ratio("unusable_share", n_young - int(keep.sum()), n_samples)
        if learns:
            figures = {
                "gradient_norm": gradient_norm,
                "learning_rate": learning_rate,
                "training_batch": float(n_samples),
                "training_queue_depth": queue_depth,
            }
            notes.updated(found.figures() | figures, found.fit)

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _with_share(report: Report, column: str, phases: Sequence[str]) -> Report:
    """The report, with the share of its time that these phases took."""
    report.ratios[column] = sum(report.seconds[phase] for phase in phases), sum(report.seconds.values())
    return report


def _ended(step: Step) -> NDArray[np.bool_]:
    return step.valid & (step.terminated | step.truncated)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """As it is on a CPU; else copied through pinned memory, so that the thread need not wait."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU, the work of the thread that enters this runs beside that of others."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()  # type: ignore[no-untyped-call]


class Staff:
    """Starts threads and lets them go, until there are as many as wanted.

    Args:
        config: of the run.
        crew: they join.
        envs: of the agents.
        session: gets what they report.
    """

    def __init__(self, config: Config, crew: Crew, envs: VectorEnv, session: Session) -> None:
        options: GA3CConfig = config.algo
        self.config, self.crew, self.envs = config, crew, envs
        self.attempt = session.attempt
        self.device = resolve_device(config.device)
        self.network: ActorCritic = build.make_network(config, envs, self.device)  # shows theta; predictors share it
        self.theta = FlatParameters(self.network).values.detach()
        self.statistics = SharedOptimizerState(build.make_optimizer(options.optimizer, nn.Parameter(self.theta)))
        self.tally = Tally(_rows_needed(options), config.env.frame_skip, session.clock)
        self.experience = Experience(slots_needed(options), options.t_max, envs, self.network)
        self.agents = Agents(envs, self.network, self.experience, options.n_agents)
        self.training: TrainingQueue = queue.Queue(options.training_queue_size)
        self.receiving = threading.Lock()
        self.predictors: list[Member] = []
        self.trainers: list[Member] = []
        self._n_hired = 0

    @property
    def sizes(self) -> Sizes:
        """How many there are to be; who was let go may still be finishing."""
        return Sizes(self.agents.n_wanted, len(self.predictors), len(self.trainers))

    def resize(self, sizes: Sizes) -> None:
        """Makes it so many."""
        self.agents.n_wanted = sizes.n_agents
        while len(self.predictors) < sizes.n_predictors:
            self.predictors.append(self._hire_predictor())
        while len(self.trainers) < sizes.n_trainers:
            self.trainers.append(self._hire_trainer())
        for members, n in ((self.predictors, sizes.n_predictors), (self.trainers, sizes.n_trainers)):
            while len(members) > n:
                members.pop().dismissed = True

    def _hire_predictor(self) -> Member:
        name = self._name("predictor")
        seed = sequence(self.config.seed, Stream.ACTIONS, self.attempt, self._n_hired)
        predictor = Predictor(self.config, self.agents, self.network, self.tally, self._writer, seed)
        if self.config.algo.synchronous:
            return self.crew.start(name, partial(predictor.run_in_lock_step, training=self.training))
        return self.crew.start(name, partial(predictor.run, training=self.training, receiving=self.receiving))

    def _hire_trainer(self) -> Member:
        name = self._name("trainer")
        network = build.make_network(self.config, self.envs, self.device)
        trainer = Trainer(self.config, self.experience, network, self.theta, self.statistics, self.tally, self._writer)
        return self.crew.start(name, partial(trainer.run, training=self.training))

    def _name(self, kind: str) -> str:
        self._n_hired += 1
        return f"{kind} {self._n_hired}"

    @property
    def _writer(self) -> int:
        """The row of the newest thread: whoever had it before was let go long ago."""
        return self._n_hired % _rows_needed(self.config.algo)


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


def _rows_needed(options: GA3CConfig) -> int:
    """Of the tally: threads that there may be, and several times as many that were let go and may still finish."""
    most = largest_sizes(options)
    return 4 * (most.n_predictors + most.n_trainers)


def make_adjuster(config: Config, attempt: int) -> Adjuster | None:
    """The dynamic adjustment, if it is on."""
    options: GA3CConfig = config.algo
    if not options.adjust.enabled:
        return None
    low = Sizes(acting_batch(options), 1, 1)
    generator = np.random.default_rng(sequence(config.seed, Stream.ADJUSTMENT, attempt))
    return Adjuster(first_sizes(options), low, largest_sizes(options), options.adjust.window_seconds, generator)


def train(config: Config, session: Session) -> None:
    """Starts the threads and keeps the record of what they do."""
    options: GA3CConfig = config.algo
    torch.set_num_threads(config.n_torch_threads or 1)  # each thread here has one core at most
    seed = sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
    most = largest_sizes(options)
    envs = build.make_envs(config, most.n_agents, seed, batch_size=acting_batch(options))
    adjuster = make_adjuster(config, session.attempt)
    try:
        with Crew(session.take, config.worker_silence_seconds) as crew:
            staff = Staff(config, crew, envs, session)
            session.gauges = lambda: staff.sizes._asdict()
            with crew.standstill():
                adjusting = {"adjuster": adjuster} if adjuster else {}
                session.begin(network=staff.network, statistics=staff.statistics, **adjusting)
                staff.resize(adjuster.sizes if adjuster else first_sizes(options))
                staff.tally.begin(session.counters.agent_steps, session.counters.updates)
                if staff.device.type == "cuda":
                    torch.cuda.synchronize(staff.device)  # theta is there before other streams read it
                envs.start()
                if session.is_over:
                    crew.stop()
            while session.running(crew.standstill):
                crew.poll(SECONDS_BETWEEN_POLLS)
                window = adjuster.look(session.wall_seconds, session.counters.updates) if adjuster else None
                if adjuster and window:
                    session.adjusted(window)
                    staff.resize(adjuster.sizes)
    finally:
        envs.close()


def workload(config: Config) -> Workload:
    """A predictor's batch, as if it were trained on alone."""
    return Workload(acting_batch(config.algo), config.algo.t_max)


ALGORITHM = Algorithm(GA3CConfig, train, workload=workload)
