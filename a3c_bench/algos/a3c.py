"""A3C: asynchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, algorithm S3).

N worker processes share the parameters theta and the statistics of RMSProp in memory, and change them without a lock:

    worker i:  theta' <- theta                                    (synchronise)
               s, a, r, V for up to t_max steps under theta'      (act, in an environment of its own)
               d theta <- gradient of the loss at theta'          (learn)
               theta <- theta - RMSProp(d theta), at once         (Hogwild: others may have changed theta meanwhile)

    parent:    counts, records, evaluates, saves, stops; it takes no part in learning

What a worker learns from was chosen by theta', which is as old as its rollout is long: the updates that the others
applied meanwhile are the lag of every sample, and the staleness of the gradient.
"""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.acting.actor import Actor
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.settings import A3CConfig
from a3c_bench.core.lag import effective_sample_size
from a3c_bench.core.learning import Backward
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.rollout import Batch, Rollout, divergence
from a3c_bench.core.staleness import compensate_delay, step_for
from a3c_bench.envs import find_spec
from a3c_bench.fresh import make_comparison
from a3c_bench.parallel.hogwild import SharedModel
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.workers import Link, Workers
from a3c_bench.runtime.machine import usable_cores, use_cores
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config

log = logging.getLogger(__name__)


class Worker:
    """One actor-learner.

    Args:
        config: of the run.
        shared: theta and what goes with it.
        index: i.
        attempt: of the run; each has games of its own.
    """

    def __init__(self, config: Config, shared: SharedModel, index: int, attempt: int) -> None:
        self.options: A3CConfig = config.algo
        self.shared = shared
        self.notes = Notes(shared.tally, index)
        self.n_updates = 0
        self.lag = config.lag
        device = torch.device("cpu")
        seed = sequence(config.seed, Stream.ENVIRONMENTS, attempt, index)
        self.envs = build.make_envs(config, self.options.envs_per_worker, seed, n_threads=1)
        self.network: ActorCritic = build.make_network(config, self.envs, device)  # theta'
        self.parameters = FlatParameters(self.network)
        self.shared_network: ActorCritic = build.make_network(config, self.envs, device)  # theta
        FlatParameters(self.shared_network, shared.theta)
        self.learner = build.make_actor_critic_learner(
            config, self.network, self.parameters, shared.theta, self.options.log_epsilon, self.options.ratio_clip
        )
        shared.state.lend(self.learner.optimizer)
        self.learning_rate_at = build.make_schedule(config)
        generator = torch_generator(device, sequence(config.seed, Stream.ACTIONS, attempt, index))
        self.actor = Actor(
            self.envs, self.network, generator, self.options.t_max, device, self.notes, end_with_episode=True
        )
        self.fresh = make_comparison(
            config, self.options.envs_per_worker, device, (attempt, index), n_threads=1, end_with_episode=True
        )

    def update(self) -> None:
        """Synchronises, acts, learns: one update of theta."""
        self.synchronise()
        self.learn(self.actor.act())

    def synchronise(self) -> None:
        """theta' <- theta."""
        self.notes.version = self.shared.fetch(self.parameters.values.data)
        self.notes.timer.lap("predict")

    def learn(self, rollout: Rollout) -> None:
        """The gradient at theta', applied to theta."""
        notes, shared, learner = self.notes, self.shared, self.learner
        batch = rollout.batch()
        found = learner.differentiate(batch)
        gradient_norm = learner.clip()
        with shared.exclusively():
            diverged = self._divergence(batch, found)  # a forward pass, while which others go on: so before the stamp
            now = shared.tally.stamp()
            assert notes.version is not None
            staleness, stale = now.version - notes.version, self.options.stale
            compensate_delay(
                self.parameters.gradients, shared.theta, self.parameters.values.data, stale.delay_compensation
            )
            learning_rate = step_for(self.learning_rate_at(now.frames), staleness, stale.aware)
            self.fresh.keep(self.parameters.gradients, shared.theta)
            learner.step(learning_rate)
            shared.tally.add(notes.writer, updates=1)
        if self.lag.enabled:
            old = np.array([staleness])
            ages = rollout.lag(now, found.mask, taken=rollout.complete_at)  # at once
            notes.lag.add(**ages, **diverged, gradient_staleness_updates=old)
        self.n_updates += 1
        figures = found.figures() | {"gradient_norm": gradient_norm, "learning_rate": learning_rate}
        figures |= effective_sample_size(diverged) | self.fresh.cosine()
        notes.updated(figures, found.fit)
        notes.ratio("unusable_share", *found.unusable)
        notes.ratio("clip_share", *found.cut)
        notes.timer.lap("train")

    @torch.no_grad()
    def _divergence(self, batch: Batch, found: Backward) -> dict[str, Tensor]:
        """Of the policy that acted from theta's, per sample of this gradient; of one update in so many."""
        if not self.lag.enabled or self.n_updates % self.lag.divergence_every_updates:
            return {}
        log_probs, values = self.shared_network.unroll(batch.observations, batch.state, ~batch.valid)
        return divergence(batch._replace(values=found.values), log_probs, found.mask, values)  # theta' acted


def worker_main(link: Link, config: Config, shared: SharedModel, index: int, attempt: int) -> None:
    """The life of worker i."""
    use_cores(1)
    worker = Worker(config, shared, index, attempt)
    try:
        while link.going(worker.notes.report, worker.notes.timer.start):
            worker.update()
    finally:
        worker.envs.close()
        worker.fresh.close()


def train(config: Config, session: Session) -> None:
    """Starts the workers and keeps the record of what they do."""
    options: A3CConfig = config.algo
    n_workers = options.n_workers or usable_cores()
    if n_workers == 1:
        log.warning(
            "A3C trains with one worker, and so without lag: say algo.n_workers=2 or more, or give it more cores."
        )
    network, shared = assemble(config, session)
    arguments = [(config, shared.for_worker(index), index, session.attempt) for index in range(n_workers)]
    with Workers(worker_main, arguments, session.take, config.worker_silence_seconds) as workers:
        with workers.standstill():  # until all are ready
            shared.tally.begin(session.counters.agent_steps, session.counters.updates)
            parts = {f"statistics_{i}": part for i, part in enumerate(shared.states)}
            session.begin(network=network, **parts)
            if session.is_over:
                workers.stop()
        while session.running(workers.standstill):
            workers.poll(0.1)


def assemble(config: Config, session: Session) -> tuple[ActorCritic, SharedModel]:
    """All of a run but its workers: the network that shows theta to the parent, and what they share."""
    options: A3CConfig = config.algo
    n_workers = options.n_workers or usable_cores()
    network: ActorCritic = build.make_network(config, find_spec(config.env), torch.device("cpu"))
    tally = Tally(n_workers, config.env.frame_skip, session.clock).share()
    optimizer = partial(build.make_optimizer, options.optimizer)
    return network, SharedModel.of(network, optimizer, tally, n_workers, options.shared_statistics, options.lock)


def resolve(config: Config, cores: int) -> Config:
    """With a worker per core, unless their number is said."""
    return replace(config, algo=replace(config.algo, n_workers=config.algo.n_workers or cores))


def workload(config: Config) -> Workload:
    """A worker's batches."""
    options: A3CConfig = config.algo
    return Workload(options.envs_per_worker, options.t_max, options.n_workers or usable_cores())


ALGORITHM = Algorithm(A3CConfig, train, workload=workload, resolve=resolve)
