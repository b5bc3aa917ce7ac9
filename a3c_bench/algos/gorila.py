"""Gorila-lite: distributed deep Q-learning (Nair et al. 2015, arXiv:1507.04296) on one machine, or on several.

    bundle i:  actor    s, a, r under a copy of theta that is refreshed now and then, epsilon-greedily
                  |
                  v
               replay   its own, or one for all bundles
                  |
                  v
               learner  theta' <- fetch;  d theta <- gradient of DQN's loss at theta';  push
                              ^                                                           |
    shard s:   theta_s <- theta_s - AdaGrad(d theta_s), for each gradient that comes  <---+
               theta^-_s <- theta_s, once in target_period_updates;  drops gradients that are too old

    parent:    counts, records, evaluates, saves, stops; it takes no part in learning

A process with an index below n_actors has an actor, one below n_learners a learner: with as many of the one as of the
other (the paper's mode) all are bundles. Learners send a gradient when the shards have taken their last, and never wait
for its application by the others: by then theta has changed, and that is the staleness of the gradient. On one machine
fetch and push go through shared memory (`parallel.transport`); with ranks=2 or more each rank has such bundles, the
first of them have the shards, and fetch and push cross the network (`parallel.remote`).
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from a3c_bench import build
from a3c_bench.acting.explorer import Explorer
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.settings_q import GorilaConfig
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.optim import FlatParameters, SharedOptimizerState, set_learning_rate
from a3c_bench.core.outliers import LossWatch
from a3c_bench.core.replay import Replay, lag_of
from a3c_bench.core.schedules import linear
from a3c_bench.core.staleness import compensate_delay, step_for
from a3c_bench.envs import find_spec
from a3c_bench.errors import ConfigError
from a3c_bench.parallel.arrays import SharedArrays
from a3c_bench.parallel.bundles import Leader, Roles, Shared, no_older, report_of
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.remote import meeting_at
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.tokens import Tokens
from a3c_bench.parallel.transport import Push, SharedServer
from a3c_bench.parallel.workers import Link
from a3c_bench.replays import ReplayNote, allocate_in, check_replays, make_replay, replay_files
from a3c_bench.runtime.machine import usable_cores, use_cores
from a3c_bench.runtime.peers import ALONE, Peers
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.runtime.session import Part, Session
from a3c_bench.schema import Config

_SECONDS_TO_WAIT = 0.02  # for others, before looking up
MOST_LEARNERS, MOST_SHARDS = 100, 48  # two files of each learner in each shard, four of each shard in each bundle


# --- who there is -----------------------------------------------------------------------------------------------------


def make_roles(options: GorilaConfig, peers: Peers = ALONE) -> Roles:
    """With the numbers that are not said filled in."""
    n_actors, n_learners = _sizes(options, usable_cores())
    one_replay, places = options.replay.kind == "global", (peers.index, peers.size, options.shard_ranks)
    return Roles(n_actors, n_learners, options.n_shards, options.envs_per_actor, one_replay, *places)


def _sizes(options: GorilaConfig, cores: int) -> tuple[int, int]:
    """Actors and learners: a bundle per core, unless their numbers are said."""
    n_learners = options.n_learners or min(cores, MOST_LEARNERS)
    return options.n_actors or n_learners, n_learners


def resolve(config: Config, cores: int) -> Config:
    """With as many bundles as cores, unless their number is said."""
    n_actors, n_learners = _sizes(config.algo, cores)
    return replace(config, algo=replace(config.algo, n_actors=n_actors, n_learners=n_learners))


def open_replay(config: Config, shared: Shared, index: int, envs: build.Shapes) -> Replay:
    """A replay as a process sees it: the parent to make and save it, and each of its users."""
    allocate = allocate_in(shared.files and shared.files / str(index))
    if shared.files is None and index in shared.locks:
        allocate = shared.replays[index]
    return make_replay(config, envs, shared.roles.n_envs(index), 0.0, allocate, shared.replays[index])


# --- the bundles ------------------------------------------------------------------------------------------------------


class BundleActor:
    """The part of a bundle that acts, under a copy of theta."""

    def __init__(self, bundle: "Bundle") -> None:
        config, shared, index = bundle.config, bundle.shared, bundle.index
        self.options: GorilaConfig = config.algo
        self.notes = bundle.notes
        device = torch.device("cpu")
        network = build.make_q_network(config, bundle.envs, device)
        self.parameters = FlatParameters(network)
        self.transport = bundle.transport
        self.explorer = Explorer(
            bundle.envs,
            network,
            bundle.replay,
            np.random.default_rng(sequence(config.seed, Stream.ACTIONS, bundle.attempt, bundle.number)),
            self.options.gamma,
            device,
            self.notes,
            first_env_id=index // shared.roles.n_replays * self.options.envs_per_actor,
            exclusively=shared.exclusively(bundle.replay_index),
        )
        self.n_since_refresh = self.options.refresh_period_agent_steps

    def step(self) -> None:
        """One step of its environments."""
        if self.n_since_refresh >= self.options.refresh_period_agent_steps:
            self.n_since_refresh = 0
            self.notes.version = int(self.transport.fetch(self.parameters.values.data)[0])
        self.n_since_refresh += self.explorer.step(epsilon_at(self.options, self.transport.version))


class BundleLearner:
    """The part of a bundle that computes gradients and sends them."""

    def __init__(self, bundle: "Bundle") -> None:
        config, shared, index = bundle.config, bundle.shared, bundle.index
        self.options: GorilaConfig = config.algo
        self.index, self.notes, self.replay = index, bundle.notes, bundle.replay
        self.tally = shared.tally
        self.exclusively = shared.exclusively(bundle.replay_index)
        device = torch.device("cpu")
        self.network = build.make_q_network(config, bundle.envs, device)
        self.parameters = FlatParameters(self.network)
        self.target_network = build.make_q_network(config, bundle.envs, device)
        self.target_parameters = FlatParameters(self.target_network)
        self.q_learner = build.make_q_learner(config, self.network, self.target_network, self.parameters, steps=False)
        self.target_versions: Sequence[int] | None = None
        self.transport, self.crosses = bundle.transport, shared.meeting is not None
        self.learning_rate_at = build.make_schedule(config)
        self.watch = LossWatch(self.options.max_loss_deviations)
        self.sampling = np.random.default_rng(sequence(config.seed, Stream.REPLAY, bundle.attempt, bundle.number))

    def learn(self) -> None:
        """One gradient; sent, unless its loss is an outlier. There has to be room in the transport."""
        options, notes = self.options, self.notes
        self.tally.add(self.index, updates=1)
        if self.target_versions != self.transport.target_versions:
            self.target_versions = self.transport.fetch(self.target_parameters.values.data, target=True).tolist()
        versions = self.transport.fetch(self.parameters.values.data)
        if self.crosses:
            notes.timer.lap("communicate")
        with self.exclusively:
            sample = self.replay.sample(options.replay.batch_size, self.sampling)
        found = self.q_learner.differentiate(sample)
        gradient_norm = self.q_learner.clip()
        learning_rate = self.learning_rate_at(self.tally.frames)
        figures = {"gradient_norm": gradient_norm, "learning_rate": learning_rate}
        notes.updated(found.figures() | figures, n_updates=0)
        outlier = self.watch.is_outlier(float(found.loss))
        notes.ratio("discarded_outlier_share", outlier, 1)
        if not outlier:
            theta = self.parameters.values.data if options.stale.delay_compensation else None
            self.transport.push(self.parameters.gradients, versions, sample.origins(), theta)
        notes.timer.lap("train")


class Bundle:
    """A process beside the shards: an actor, a learner, or both.

    Args:
        config: of the run.
        shared: theta and what goes with it.
        index: of the process, on its rank.
        attempt: of the run.
    """

    def __init__(self, config: Config, shared: Shared, index: int, attempt: int) -> None:
        roles = shared.roles
        self.config, self.shared, self.index, self.attempt = config, shared, index, attempt
        self.number = roles.number(index)
        self.options: GorilaConfig = config.algo
        self.transport = shared.transport(index)
        self.replay_index = index % roles.n_replays
        self.notes = Notes(shared.tally, index)
        self.envs = build.make_envs(
            config, roles.envs_per_actor, sequence(config.seed, Stream.ENVIRONMENTS, attempt, self.number), n_threads=1
        )
        self.replay = open_replay(config, shared, self.replay_index, self.envs)
        self.actor = BundleActor(self) if index < roles.n_actors else None
        self.learner = BundleLearner(self) if index < roles.n_learners else None
        n_others = len([user for user in roles.users(self.replay_index) if user != index and user < roles.n_learners])
        self.slack = 2 * n_others  # gradients that actors leave to other processes, so that none has to wait

    def work(self) -> None:
        """A gradient if one is due, else a step; or a wait for those who are behind."""
        n_due = 0
        if len(self.replay) > 0:
            n_due = self.shared.n_gradients_due(self.replay_index, self.options.update_period_agent_steps)
        if self.learner is not None and n_due > 0:
            if self.transport.room(_SECONDS_TO_WAIT):
                self.notes.timer.lap(self.shared.waiting)
                self.learner.learn()
        elif self.actor is not None and n_due <= self.slack:
            self.actor.step()
        else:
            time.sleep(0.001)
            self.notes.timer.lap("wait")


def epsilon_at(options: GorilaConfig, version: int) -> float:
    """The probability of exploring after so many updates."""
    return linear(options.epsilon_start, options.epsilon_end, version, options.epsilon_horizon_updates)


# --- the parameter server ---------------------------------------------------------------------------------------------


class Shard:
    """Owns a part of theta and what the optimiser remembers of it; applies gradients one by one as they come.

    Args:
        config: of the run.
        shared: theta and what goes with it.
        index: s.
    """

    def __init__(self, config: Config, shared: Shared, index: int) -> None:
        self.options: GorilaConfig = config.algo
        self.shared = shared
        self.counts_updates = index == 0  # one of them does, and measures their lag: all get the same gradients
        self.measures_lag = config.lag.enabled and self.counts_updates
        self.notes = Notes(shared.tally, shared.roles.n_bundles)
        self.port = shared.port(index)
        self.theta = nn.Parameter(self.port.theta)
        self.optimizer = build.make_optimizer(self.options.optimizer, self.theta)
        shared.statistics[index].lend(self.optimizer)
        self.learning_rate_at = build.make_schedule(config)

    def serve(self) -> None:
        """One gradient, if one comes soon."""
        push = self.port.receive(_SECONDS_TO_WAIT)
        self.notes.timer.lap("wait")
        if push is None:
            return
        staleness = self.port.version - push.version
        limit = self.options.max_staleness_updates
        too_stale = limit is not None and staleness > limit
        self.notes.ratio("discarded_stale_share", too_stale, 1)
        if not too_stale:
            self._apply(push, staleness)
        self.port.done(push)
        self.notes.timer.lap("train")

    def _apply(self, push: Push, staleness: int) -> None:
        stale = self.options.stale
        self.notes.updated({}, n_updates=int(self.counts_updates))
        self.theta.grad = push.gradient
        with self.port.publish(self.options.target_period_updates):
            now = no_older(self.shared.tally.stamp(self.port.version), push)  # with the lock: others go on meanwhile
            if push.theta is not None:
                compensate_delay(push.gradient, self.theta, push.theta, stale.delay_compensation)
            learning_rate = step_for(self.learning_rate_at(now.frames), staleness, stale.aware)
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()
        if self.measures_lag:
            self.notes.lag.add(
                **lag_of(push.samples, now, push.version), gradient_staleness_updates=np.array([staleness])
            )


def worker_main(link: Link, config: Config, shared: Shared, index: int, attempt: int) -> None:
    """The life of a process: of bundle i, or of a shard of this rank, which come after the bundles."""
    use_cores(1)
    n_bundles = shared.roles.n_bundles
    if index >= n_bundles:
        shard = Shard(config, shared, shared.roles.shards[index - n_bundles])
        while link.going(lambda: report_of(shard.notes, shard.port), shard.notes.timer.start):
            shard.serve()
        shard.port.leave()
        return
    bundle = Bundle(config, shared, index, attempt)
    notes, transport = bundle.notes, bundle.transport
    try:
        while link.going(lambda: report_of(notes, transport), notes.timer.start, transport.settle):
            bundle.work()
        transport.leave()
    finally:
        bundle.envs.close()


# --- the parent -------------------------------------------------------------------------------------------------------


def assemble(config: Config, session: Session) -> tuple[QNetwork, Shared, list[Replay]]:
    """All of a run but its processes: the network that shows theta, what they share, and their replays."""
    options: GorilaConfig = config.algo
    roles, spec = make_roles(options, session.peers), find_spec(config.env)
    network = build.make_q_network(config, spec, torch.device("cpu"))
    theta = FlatParameters(network).values.detach().share_memory_()  # type: ignore[no-untyped-call]
    keeps_theta = options.stale.delay_compensation > 0.0
    n_mailboxes = roles.n_learners if roles.n_ranks == 1 else 0
    server = SharedServer(theta, roles.n_shards, n_mailboxes, (options.replay.batch_size, 4), keeps_theta)
    optimizers = [build.make_optimizer(options.optimizer, nn.Parameter(theta[part])) for part in server.parts]
    shared = Shared(
        roles,
        server,
        {shard: SharedOptimizerState(optimizer) for shard, optimizer in enumerate(optimizers)},
        tally=Tally(roles.n_bundles, config.env.frame_skip, session.clock, roles.n_ranks).share(),
        waits=torch.zeros(roles.n_replays, dtype=torch.int64).share_memory_(),  # type: ignore[no-untyped-call]
        replays={i: SharedArrays() for i in range(roles.n_replays)},
        locks={i: Tokens(1) for i in range(roles.n_replays) if len(roles.users(i)) > 1},
        files=replay_files(config, spec, session.directory, tuple(map(roles.n_envs, range(roles.n_replays)))),
        meeting=None if roles.n_ranks == 1 else meeting_at(session.peers.address, f"{session.peers.name}, bundles"),
    )
    return network, shared, [open_replay(config, shared, i, spec) for i in range(roles.n_replays)]


def train(config: Config, session: Session) -> None:
    """Starts the processes and keeps the record of what they do."""
    options: GorilaConfig = config.algo
    network, shared, replays = assemble(config, session)
    leader = Leader(session, shared, replays)
    session.gauges = lambda: {
        "epsilon": epsilon_at(options, session.counters.updates),
        "replay_agent_steps": leader.n_stored,
    }
    with leader.processes(worker_main) as workers:
        with workers.standstill():  # until all are ready
            parts: dict[str, Part] = {f"statistics_{i}": part for i, part in shared.statistics.items()}
            parts |= {f"replay_{i}": replay for i, replay in enumerate(replays) if replay.persistent}
            parts |= {"replays": ReplayNote(replays)} if session.peers.index == 0 else {}
            session.begin(network=network, server=shared.server, **parts)
            shared.tally.begin(session.counters.agent_steps, 0)
            shared.wait_until_filled(replays, options.replay.learning_starts_agent_steps)
            if session.is_over:
                workers.stop()
        while session.running(workers.standstill):
            workers.poll(0.1)
            leader.meet()


def check(config: Config) -> None:
    """Raises ConfigError for what cannot run."""
    roles = make_roles(config.algo)
    if roles.n_learners > MOST_LEARNERS or roles.n_shards > MOST_SHARDS:
        raise ConfigError(
            f"algo.n_learners={roles.n_learners} with algo.n_shards={roles.n_shards} would share more files than a "
            f"process can be handed: say at most {MOST_LEARNERS} and {MOST_SHARDS}."
        )
    check_replays(config, roles.n_envs(0), roles.n_replays)


def workload(config: Config) -> Workload:
    """A bundle's batches."""
    options: GorilaConfig = config.algo
    roles = make_roles(options)
    mapped = options.replay.storage == "memmap"
    return Workload(
        options.envs_per_actor,
        1,
        roles.n_bundles,
        replayed_batch=options.replay.batch_size,
        update_period_agent_steps=options.update_period_agent_steps,
        double=options.double,
        mapped_replays=tuple(roles.n_envs(i) for i in range(roles.n_replays)) if mapped else (),
    )


ALGORITHM = Algorithm(GorilaConfig, train, check, workload, build.make_q_network, resolve)
