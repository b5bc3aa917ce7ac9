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
there are a bound (max_lag_updates), kept by discarding or by holding agents back (lag_control; core.pacing), V-trace
(advantage=vtrace) and a lock-step mode without any lag (synchronous).

N_A, N_P and N_T are fixed, or adjusted while it runs (`core.adjustment`).
"""

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from a3c_bench import build
from a3c_bench.acting.policy import HostPolicy, Policy
from a3c_bench.acting.slots import Agents, Experience, Prediction
from a3c_bench.algos import Algorithm, Workload, settings
from a3c_bench.algos.settings import GA3CConfig, acting_batch, first_sizes, largest_sizes, rows_needed, slots_needed
from a3c_bench.core.adjustment import Adjuster, Sizes
from a3c_bench.core.compiled import Compute, padded
from a3c_bench.core.lag import effective_sample_size
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters, SharedOptimizerState
from a3c_bench.core.pacing import Pacing, Unpaced
from a3c_bench.core.rollout import divergence
from a3c_bench.core.transfer import Transfer
from a3c_bench.envs import Step, find_spec
from a3c_bench.fresh import NoComparison, make_comparison
from a3c_bench.parallel.crew import Crew, Member, own_stream, wait_for_own_stream
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.training_queue import TrainingQueue
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config

SECONDS_BETWEEN_POLLS = 0.02


class Predictor:
    """One predictor thread.

    Args:
        config: of the run.
        agents: of everybody.
        network: shows theta.
        tally: of everybody.
        writer: its row there.
        seed: of the actions.
        compute: how its policy runs.
    """

    def __init__(
        self,
        config: Config,
        agents: Agents,
        network: ActorCritic,
        tally: Tally,
        writer: int,
        seed: np.random.SeedSequence,
        compute: Compute,
    ) -> None:
        self.budget_frames = config.budget.frames or float("inf")
        self.agents = agents
        self.network = network
        self.tally = tally
        self.device = resolve_device(config.device)
        policy = Policy(network, torch_generator(self.device, seed), compute=compute)
        self.policy = HostPolicy(policy, agents.batch_size if compute.fixes_shapes else 0)
        self.notes = Notes(tally, writer)
        self.timer = self.notes.timer

    def run(self, member: Member, training: TrainingQueue, receiving: threading.Lock) -> None:
        """Serves whichever agents have finished a step. Only one thread at a time may be `receiving`."""
        member.report, member.resume = self.report, self.timer.start
        with own_stream(self.device):
            self.timer.start()
            while member.going() and not self.spent:
                with receiving:
                    step = self.agents.receive()
                self.timer.lap("simulate")
                with member.turn():
                    self.timer.lap("wait")
                    rollouts = self.turn(step)
                    self.timer.lap("predict")
                if rollouts is None:
                    self.agents.pacing.wait(SECONDS_BETWEEN_POLLS)
                training.put(member, [[slot] for slot in rollouts or ()])
                self.timer.lap("wait")

    def run_in_lock_step(self, member: Member, training: TrainingQueue) -> None:
        """All agents for t_max steps, then one update from all of them, then on."""
        rollouts: list[int] = []
        n_turns = 0
        member.report, member.resume = self.report, self.timer.start
        with own_stream(self.device):
            self.timer.start()
            while member.going() and not self.spent:
                step = self.agents.receive()
                self.timer.lap("simulate")
                self.answer(step)
                prediction = self.predict(step)
                round_is_over = n_turns > 0 and n_turns % self.agents.experience.t_max == 0
                begun = self.lengths(step) > 0
                rollouts += self.complete(step, prediction, step.ended | (round_is_over & begun))
                self.timer.lap("predict")
                if round_is_over and rollouts:  # there are none if nothing but phantoms went on
                    training.put(member, [rollouts])
                    rollouts = []
                    while training.unfinished and member.going():
                        time.sleep(0.0002)
                    self.timer.lap("wait")
                    prediction = self.predict(step)  # theta is another now
                self.act(step, prediction)
                n_turns += 1
                self.timer.lap("predict")

    def turn(self, step: Step) -> list[int] | None:
        """Sends the agents of a step on their way; gives the slots of completed rollouts; None: all are held back."""
        self.answer(step)
        step = self.agents.wake(step)
        if not len(step.env_ids):
            return None
        prediction = self.predict(step)
        full = self.lengths(step) == self.agents.experience.t_max
        rollouts = self.complete(step, prediction, step.ended | full)
        self.act(step, prediction)
        return rollouts

    @property
    def spent(self) -> bool:
        """Whether the frames of the budget are simulated: predictors end then, in lock step always at one place."""
        return self.tally.frames >= self.budget_frames

    def answer(self, step: Step) -> None:
        """Keeps and counts what the environments answered."""
        self.notes.count(self.agents.answer(step), step.episodes)

    def predict(self, step: Step) -> Prediction:
        """Theta's view of the observations of a step, and actions drawn from it."""
        stamp = self.tally.stamp()
        return Prediction.of(self.policy(step.observations, self.agents.state[step.env_ids]), stamp)

    def lengths(self, step: Step) -> NDArray[np.int64]:
        """How long the rollouts [B] of a step's agents are."""
        agents = self.agents
        return agents.experience.lengths[agents.slots[step.env_ids]]

    def complete(self, step: Step, prediction: Prediction, complete: NDArray[np.bool_]) -> list[int]:
        """The slots of the rollouts [B] that are complete."""
        return self.agents.complete(step, prediction.values, complete, self.tally.version)

    def act(self, step: Step, prediction: Prediction) -> None:
        """Sends the agents on their way, but for those that are parked."""
        self.notes.ratio("prediction_batch", len(step.env_ids), 1)
        going = self.agents.park(step, prediction.stamp.version)
        self.notes.ratio("n_agents_held_back", self.agents.n_held_back, self.agents.pacing.held_back)
        env_ids, observations = step.env_ids, step.observations
        if going is not None:
            env_ids, observations, prediction = env_ids[going], observations[going], prediction.only(going)
        if len(env_ids):
            self.agents.choose(env_ids, observations, prediction)
            self.agents.send(prediction.actions.astype(np.int32), env_ids)

    def report(self) -> WorkerReport:
        """What turns brought since the last call."""
        return self.notes.take().with_share("share_predictors_wait", ("simulate", "wait"))


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
        fresh: samples to compare with.
        compute: how its learner runs.
        n_rollouts: it mostly learns from at once.
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
        fresh: NoComparison,
        compute: Compute,
        n_rollouts: int,
    ) -> None:
        self.options: GA3CConfig = config.algo
        self.experience = experience
        self.measure_lag = config.lag.enabled
        self.device = resolve_device(config.device)
        self.network = network
        self.parameters = FlatParameters(network, theta)
        self.learner = build.make_actor_critic_learner(
            config, network, self.parameters, None, self.options.log_epsilon, self.options.ratio_clip, compute
        )
        self.to_device = Transfer(self.device)
        self.unit = n_rollouts if compute.fixes_shapes else 0
        statistics.lend(self.learner.optimizer)
        self.learning_rate_at = build.make_schedule(config)
        self.fresh = fresh
        self.tally = tally
        self.notes = Notes(tally, writer)
        self.timer = self.notes.timer

    def run(self, member: Member, training: TrainingQueue) -> None:
        """Learns from rollouts as they come, merged until there are enough samples; in lock step from each round."""
        member.report, member.resume, self.learner.aside = self.report, self.timer.start, member.aside
        with own_stream(self.device), closing(self.fresh):
            self.timer.start()
            while member.going():
                items = training.gather(member)
                if not items:
                    return
                slots = [slot for item in items for slot in item]
                with member.turn():
                    self.timer.lap("wait")
                    self.learn(slots, training.depth)
                    wait_for_own_stream(self.device)  # before other threads read what it found
                self.experience.set_free(slots)
                training.done(items)
                self.timer.lap("train")

    def report(self) -> WorkerReport:
        """What updates showed since the last call."""
        return self.notes.take().with_share("share_trainers_wait", ("wait",))

    def learn(self, slots: Sequence[int], queue_depth: int = 0) -> None:
        """One update of theta from the rollouts in these slots, unless every sample is too old."""
        options, tally, notes, learner = self.options, self.tally, self.notes, self.learner
        version = tally.version
        batch = self.experience.batch(slots, self.to_device, self.unit)
        if not options.stale_bootstrap:
            bootstrap = learner.values(*self.experience.ends(slots, self.to_device, self.unit))
            batch = batch._replace(bootstrap=bootstrap)
        valid = young = self.experience.valid(slots)  # [T, B]
        if options.max_lag_updates is not None and options.lag_control == "discard":
            young = self.experience.chosen_since(slots, version - options.max_lag_updates)
        keep = young
        if learner.estimate.needs_end:
            keep = young & (self.experience.terminated | self.experience.truncated)[slots]
        found = learner.differentiate(batch, self.to_device("keep", padded(keep, *batch.valid.shape)))
        # keep is found.mask (of a rollout estimators can use all or nothing), known without waiting for the device.
        learns = bool(keep.any())
        if learns:
            wait_for_own_stream(self.device)  # the gradient is there, so that the stamp is that of the step
        now = tally.stamp()
        learning_rate = self.learning_rate_at(now.frames)
        if learns:
            self.fresh.keep(self.parameters.gradients, self.parameters.values)
            gradient_norm = learner.apply(learning_rate)
            wait_for_own_stream(self.device)  # before it is counted
            tally.add(notes.writer, updates=1)
        n_samples, n_young = int(valid.sum()), int(young.sum())
        notes.ratio("discarded_share", n_samples - n_young, n_samples)
        notes.ratio("unusable_share", n_young - int(keep.sum()), n_samples)
        if not learns:
            return
        figures = found.figures() | {
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "training_batch": float(n_samples),
            "training_queue_depth": queue_depth,
        }
        if self.measure_lag:
            stale = np.array([now.version - version])
            diverged = divergence(batch, found.log_probs, found.mask, found.values)
            ages = self.experience.lag(slots, keep, version, now)
            notes.lag.add(**ages, **diverged, gradient_staleness_updates=stale)
            figures |= effective_sample_size(diverged) | self.fresh.cosine()
        notes.updated(figures, found.fit)
        notes.ratio("clip_share", *found.cut)


class Staff:
    """Starts threads and lets them go, until there are as many as wanted; and what they share.

    Args:
        config: of the run.
        session: of it.
    """

    def __init__(self, config: Config, session: Session) -> None:
        options: GA3CConfig = config.algo
        self.config = config
        self.compute = build.make_compute(config)
        self.attempt = session.attempt
        self.device = resolve_device(config.device)
        self.spec = find_spec(config.env)
        self.network: ActorCritic = build.make_network(config, self.spec, self.device)  # shows theta; predictors' own
        self.theta = FlatParameters(self.network).values.detach()
        self.statistics = SharedOptimizerState(build.make_optimizer(options.optimizer, nn.Parameter(self.theta)))
        self.tally = Tally(rows_needed(options), config.env.frame_skip, session.clock)
        self.pacing = make_pacing(options, self.tally)
        n_slots, keeps_ends = slots_needed(options), not options.stale_bootstrap
        self.experience = Experience(n_slots, options.t_max, self.spec, self.network, self.pacing, keeps_ends)
        seed = sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
        n_agents, batch_size = largest_sizes(options).n_agents, acting_batch(options)
        # Who are held back may be too few for a batch: the others come one by one then.
        self.envs = build.make_envs(config, n_agents, seed, batch_size=1 if self.pacing.held_back else batch_size)
        self.agents = Agents(self.envs, self.network, self.experience, options.n_agents, batch_size)
        n_samples = 1 if options.synchronous else options.min_training_batch  # in lock step a round is a batch
        self.training = TrainingQueue(options.training_queue_size, self.pacing, self.experience.lengths, n_samples)
        self.receiving = threading.Lock()
        self.predictors: list[Member] = []
        self.trainers: list[Member] = []
        self._n_hired = 0

    @property
    def sizes(self) -> Sizes:
        """How many there are to be; who was let go may still be finishing."""
        return Sizes(self.agents.n_wanted, len(self.predictors), len(self.trainers))

    def resize(self, sizes: Sizes, crew: Crew) -> None:
        """Makes it so many, in this crew."""
        self.agents.n_wanted = sizes.n_agents
        while len(self.predictors) < sizes.n_predictors:
            predictor = self.make_predictor()
            work = partial(predictor.run, training=self.training, receiving=self.receiving)
            if self.config.algo.synchronous:
                work = partial(predictor.run_in_lock_step, training=self.training)
            self.predictors.append(crew.start(f"predictor {self._n_hired}", work))
        while len(self.trainers) < sizes.n_trainers:
            work = partial(self.make_trainer().run, training=self.training)
            self.trainers.append(crew.start(f"trainer {self._n_hired}", work))
        for members, n in ((self.predictors, sizes.n_predictors), (self.trainers, sizes.n_trainers)):
            while len(members) > n:
                members.pop().dismissed = True

    def make_predictor(self) -> Predictor:
        """Another one."""
        writer = self._hire()
        seed = sequence(self.config.seed, Stream.ACTIONS, self.attempt, self._n_hired)
        return Predictor(self.config, self.agents, self.network, self.tally, writer, seed, self.compute)

    def make_trainer(self) -> Trainer:
        """Another one, with a network of its own that shows theta."""
        config, options, writer = self.config, self.config.algo, self._hire()
        network = build.make_network(config, self.spec, self.device)
        n_envs = options.n_agents if options.synchronous else -(-options.min_training_batch // options.t_max)
        fresh = make_comparison(config, n_envs, self.device, (self.attempt, self._n_hired), n_threads=1)
        shared = (self.experience, network, self.theta, self.statistics, self.tally)
        return Trainer(config, *shared, writer, fresh, self.compute, n_envs)

    def _hire(self) -> int:
        """The row of the newest thread: whoever had it before was let go long ago."""
        self._n_hired += 1
        return self._n_hired % rows_needed(self.config.algo)


def make_pacing(options: GA3CConfig, tally: Tally) -> Unpaced:
    """Who says when agents may begin rollouts."""
    if options.lag_control == "discard":
        return Unpaced()
    assert options.max_lag_updates is not None  # check_ga3c
    n_slots, bound = slots_needed(options), options.max_lag_updates
    return Pacing(n_slots, options.t_max, options.min_training_batch, bound, lambda: tally.version)


def make_adjuster(config: Config, attempt: int) -> Adjuster | None:
    """The dynamic adjustment, if it is on."""
    options: GA3CConfig = config.algo
    if not options.adjust.enabled:
        return None
    low = Sizes(acting_batch(options), 1, 1)
    generator = np.random.default_rng(sequence(config.seed, Stream.ADJUSTMENT, attempt))
    seconds, bound = options.adjust.window_seconds, options.adjust.max_mean_lag_updates
    return Adjuster(first_sizes(options), low, largest_sizes(options), seconds, generator, bound)


def assemble(config: Config, session: Session) -> Staff:
    """All of a run but its threads."""
    return Staff(config, session)


def train(config: Config, session: Session) -> None:
    """Starts the threads and keeps the record of what they do."""
    torch.set_num_threads(config.n_torch_threads or 1)  # each thread here has one core at most
    staff = assemble(config, session)
    adjuster = make_adjuster(config, session.attempt)
    session.gauges = lambda: staff.sizes._asdict()

    def take(report: WorkerReport) -> None:
        session.take(report)
        if adjuster:
            for samples in report.lags:
                adjuster.learnt(samples["lag_updates"])

    try:
        patience = staff.compute.patience(config.worker_silence_seconds)
        with Crew(take, patience, settings.takes_turns(config.algo, staff.device.type, len(staff.theta))) as crew:
            with crew.standstill():
                adjusting = {"adjuster": adjuster} if adjuster else {}
                session.begin(network=staff.network, statistics=staff.statistics, **adjusting)
                staff.resize(adjuster.sizes if adjuster else first_sizes(config.algo), crew)
                staff.tally.begin(session.counters.agent_steps, session.counters.updates)
                if staff.device.type == "cuda":
                    torch.cuda.synchronize(staff.device)  # theta is there before other streams read it
                staff.envs.start()
                if session.is_over:
                    crew.stop()
            while session.running(crew.standstill):
                crew.poll(SECONDS_BETWEEN_POLLS)
                window = adjuster.look(session.wall_seconds, session.counters.updates) if adjuster else None
                if adjuster and window:
                    session.adjusted(window)
                    staff.resize(adjuster.sizes, crew)
    finally:
        staff.envs.close()


def workload(config: Config) -> Workload:
    """A predictor's batch, as if it were trained on alone."""
    return Workload(acting_batch(config.algo), config.algo.t_max)


ALGORITHM = Algorithm(GA3CConfig, train, build.check_keeps_no_past, workload)
