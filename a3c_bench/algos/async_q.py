"""Asynchronous one-step Q-learning, one-step SARSA and n-step Q-learning (Mnih et al. 2016, arXiv:1602.01783).

As A3C, without a policy: N worker processes share theta and the statistics of RMSProp in memory, change them without a
lock, and share the target network theta^- too. There is no replay: what many workers see at one moment differs enough.

    worker i:  theta' <- theta                                    (synchronise)
               s, a, r for up to t_max steps under theta', epsilon-greedily, with an epsilon of its own        (act)
               d theta <- gradient of sum 1/2 (y - Q(s, a))^2 at theta'                                        (learn)
               theta <- theta - RMSProp(d theta), at once         (Hogwild: others may have changed theta meanwhile)
               theta^- <- theta, if the frames of all have passed a multiple of target_period_frames

    one_step_q       y = r + gamma max_b Q^-(s', b)                                       (algorithm 1)
    one_step_sarsa   y = r + gamma Q^-(s', a')          a' is drawn once, and then taken  (section 4)
    n_step_q         y = r + gamma r' + ... + gamma^n max_b Q^-(s_T, b)                   (algorithm S2)

    parent:    counts, records, evaluates, saves, stops; it takes no part in learning

A terminal s' has no value; one where a time limit cut the game has. The one-step methods of the paper act at theta
itself; here they have a copy as n-step Q has, so that one policy acts in a rollout and the lag of a sample is defined.

Switches beyond the paper: double (van Hasselt et al. 2016); dueling (Wang et al. 2016) is the network's.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from a3c_bench import build
from a3c_bench.acting.q_actor import QActor
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.settings_q import AsyncQConfig, NStepQConfig, OneStepQConfig, OneStepSarsaConfig
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.rollout import Rollout
from a3c_bench.core.schedules import linear
from a3c_bench.core.staleness import compensate_delay, step_for
from a3c_bench.envs import find_spec
from a3c_bench.parallel.hogwild import SharedModel, SharedTarget
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.workers import Link, Workers
from a3c_bench.runtime.machine import usable_cores, use_cores
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config

log = logging.getLogger(__name__)


class Worker:
    """One actor-learner.

    Args:
        config: of the run.
        shared: theta and what goes with it.
        target: theta^-.
        index: i.
        attempt: of the run; each has games of its own.
    """

    def __init__(self, config: Config, shared: SharedModel, target: SharedTarget, index: int, attempt: int) -> None:
        self.options: AsyncQConfig = config.algo
        self.shared = shared
        self.target = target
        self.notes = Notes(shared.tally, index)
        self.measures_lag = config.lag.enabled
        self.epsilon_end = final_epsilons(self.options, n_workers_of(self.options), config.seed)[index]
        device = torch.device("cpu")
        seed = sequence(config.seed, Stream.ENVIRONMENTS, attempt, index)
        self.envs = build.make_envs(config, self.options.envs_per_worker, seed, n_threads=1)
        self.network = build.make_q_network(config, self.envs, device)  # theta'
        self.parameters = FlatParameters(self.network)
        target_network = build.make_q_network(config, self.envs, device)
        self.target_parameters = FlatParameters(target_network)  # a copy of theta^-
        self.target_version: int | None = None
        self.is_sarsa = isinstance(self.options, OneStepSarsaConfig)
        self.learner = build.make_q_rollout_learner(
            config,
            self.network,
            target_network,
            self.parameters,
            shared.theta,
            n_step=isinstance(self.options, NStepQConfig),
            double=isinstance(self.options, OneStepQConfig | NStepQConfig) and self.options.double,
        )
        shared.state.lend(self.learner.optimizer)
        self.learning_rate_at = build.make_schedule(config)
        self.actor = QActor(
            self.envs,
            self.network,
            np.random.default_rng(sequence(config.seed, Stream.ACTIONS, attempt, index)),
            self.options.t_max,
            self.options.gamma,
            self.notes,
            draws_ahead=self.is_sarsa,
        )

    def update(self) -> None:
        """Synchronises, acts, learns: one update of theta."""
        self.synchronise()
        self.learn(self.actor.act(epsilon_at(self.options, self.epsilon_end, self.notes.frames)))

    def synchronise(self) -> None:
        """theta' <- theta."""
        self.notes.version = self.shared.fetch(self.parameters.values.data)
        self.notes.timer.lap("predict")

    def learn(self, rollout: Rollout) -> None:
        """The gradient at theta', applied to theta; and then theta^-, if it is due."""
        notes, shared, learner, stale = self.notes, self.shared, self.learner, self.options.stale
        if self.target_version != self.target.version:
            self.target_version = self.target.fetch(self.target_parameters.values.data)
        batch = rollout.batch()
        observations = rollout.observations[: rollout.length + 1]
        found = learner.differentiate(batch, observations, self.actor.next_actions() if self.is_sarsa else None)
        gradient_norm = learner.clip()
        with shared.exclusively():
            now = shared.tally.stamp()
            assert notes.version is not None
            staleness = now.version - notes.version
            compensate_delay(
                self.parameters.gradients, shared.theta, self.parameters.values.data, stale.delay_compensation
            )
            learning_rate = step_for(self.learning_rate_at(now.frames), staleness, stale.aware)
            learner.step(learning_rate)
            shared.tally.add(notes.writer, updates=1)
            self.target.renew(shared.theta, shared.tally.frames)
        if self.measures_lag:
            ages = rollout.lag(now, batch.valid, taken=rollout.complete_at)  # at once
            notes.lag.add(**ages, gradient_staleness_updates=np.array([staleness]))
        notes.updated(found.figures() | {"gradient_norm": gradient_norm, "learning_rate": learning_rate})
        notes.timer.lap("train")


def n_workers_of(options: AsyncQConfig) -> int:
    """A worker per core, unless their number is said."""
    return options.n_workers or usable_cores()


def final_epsilons(options: AsyncQConfig, n_workers: int, seed: int) -> list[float]:
    """The epsilon at which each worker ends, by the shares of them that are to end there.

    Places in (0, 1), one in each n-th part, are drawn together: no epsilon has a worker more or less than its share,
    rounded up or down, and over many seeds each has its share exactly. Workers have them in the order of the list.
    """
    offset = np.random.default_rng(sequence(seed, Stream.EPSILON)).random()
    places = (np.arange(n_workers) + offset) / n_workers
    which = np.searchsorted(np.cumsum(options.epsilon_shares)[:-1], places, side="right")
    return [options.epsilon_ends[index] for index in which]


def epsilon_at(options: AsyncQConfig, end: float, frames: int) -> float:
    """The probability of exploring, of a worker that ends at `end`, when the whole run has simulated so many frames."""
    return linear(options.epsilon_start, end, frames, options.epsilon_horizon_frames)


def worker_main(
    link: Link, config: Config, shared: SharedModel, target: SharedTarget, index: int, attempt: int
) -> None:
    """The life of worker i."""
    use_cores(1)
    worker = Worker(config, shared, target, index, attempt)
    try:
        while link.going(worker.notes.report, worker.notes.timer.start):
            worker.update()
    finally:
        worker.envs.close()


def train(config: Config, session: Session) -> None:
    """Starts the workers and keeps the record of what they do."""
    options: AsyncQConfig = config.algo
    n_workers = n_workers_of(options)
    if n_workers == 1:
        log.warning(
            "algo=%s trains with one worker, and so without lag: say algo.n_workers=2 or more, or give it more cores.",
            options.name,
        )
    network, shared, target = assemble(config, session)
    ends = final_epsilons(options, n_workers, config.seed)
    session.gauges = lambda: {"epsilon": mean_epsilon(options, ends, session.counters.frames)}
    arguments = [(config, shared.for_worker(i), target, i, session.attempt) for i in range(n_workers)]
    with Workers(worker_main, arguments, session.take, config.worker_silence_seconds) as workers:
        with workers.standstill():  # until all are ready
            shared.tally.begin(session.counters.agent_steps, session.counters.updates)
            parts = {f"statistics_{i}": part for i, part in enumerate(shared.states)}
            session.begin(network=network, target=target, **parts)
            if session.is_over:
                workers.stop()
        while session.running(workers.standstill):
            workers.poll(0.1)


def mean_epsilon(options: AsyncQConfig, ends: Sequence[float], frames: int) -> float:
    """Over the workers, for metrics.csv."""
    return sum(epsilon_at(options, end, frames) for end in ends) / len(ends)


def assemble(config: Config, session: Session) -> tuple[QNetwork, SharedModel, SharedTarget]:
    """All of a run but its workers: the network that shows theta to the parent, and what they share."""
    options: AsyncQConfig = config.algo
    n_workers = n_workers_of(options)
    network = build.make_q_network(config, find_spec(config.env), torch.device("cpu"))
    tally = Tally(n_workers, config.env.frame_skip, session.clock).share()
    optimizer = partial(build.make_optimizer, options.optimizer)
    shared = SharedModel.of(network, optimizer, tally, n_workers, options.shared_statistics, options.lock)
    return network, shared, SharedTarget(shared.theta, options.target_period_frames)


def resolve(config: Config, cores: int) -> Config:
    """With a worker per core, unless their number is said."""
    return replace(config, algo=replace(config.algo, n_workers=config.algo.n_workers or cores))


def workload(config: Config) -> Workload:
    """A worker's batches; an update learns from what was acted."""
    options: AsyncQConfig = config.algo
    batch = options.envs_per_worker * options.t_max
    double = isinstance(options, OneStepQConfig | NStepQConfig) and options.double
    return Workload(options.envs_per_worker, options.t_max, n_workers_of(options), batch, batch, double)


def _algorithm(config_class: type[AsyncQConfig]) -> Algorithm:
    return Algorithm(config_class, train, workload=workload, make_network=build.make_q_network, resolve=resolve)


ONE_STEP_Q, ONE_STEP_SARSA, N_STEP_Q = map(_algorithm, (OneStepQConfig, OneStepSarsaConfig, NStepQConfig))
