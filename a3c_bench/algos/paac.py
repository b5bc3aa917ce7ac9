"""PAAC: parallel advantage actor-critic (Clemente, Castejon and Chandra 2017, arXiv:1705.04862).

One copy of the parameters, n_e environments in lock step:

    EnvPool (n_e environments, n_w threads)
        | s_t [n_e, ...]                    ^ a_t [n_e]
        v                                   |
    policy and value, one batch forward ----+      t_max times
        |
        v  s, a, r, V  [t_max, n_e]
    returns -> loss -> one synchronous update of theta -> again

Every action is chosen by the parameters that the next update changes, so the lag is 0 updates, always; it is measured
and recorded like everybody's. Beyond the paper the lag can be set, so that two runs differ in nothing else:

    algo.lag.updates=k      who acts is theta as it was k updates ago (`acting.past`): theta_v learns from what
                            theta_{v-k} chose
    algo.overlap=true       act:    |  r_1, theta_0  |  r_2, theta_1  |  r_3, theta_2  |
                            learn:  |  r_0           |  r_1           |  r_2           |   the next rollout is gathered
                            while the last one is learnt from: the same numbers as with k = 1, in less time
    algo.alternate=true     act:    |  half 1  |  half 2  |  half 1  | ...     one half simulates while the policy
                            answers the other (`acting.actor`); the lag stays what it is

With a lag only the policy is old. The value with which returns end is theta's, as all others are; with
algo.stale_bootstrap=true it is that of who acted, as in GA3C. With algo.lag.of=gradients all is old: who acted gives
the gradient too, as an A3C worker does, so that pi = mu where it is taken, and theta gets it k updates late.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from a3c_bench import build
from a3c_bench.acting.past import PastParameters, n_kept
from a3c_bench.algos import Algorithm
from a3c_bench.algos.lockstep import add_up, lag_figures, note, wire
from a3c_bench.algos.settings import PAACConfig
from a3c_bench.core.lag import Stamp
from a3c_bench.core.learning import Backward
from a3c_bench.core.optim import FlatParameters, GradientVariance
from a3c_bench.core.rollout import Batch, Rollout
from a3c_bench.envs import find_spec
from a3c_bench.envs.spec import uses_gymnasium
from a3c_bench.errors import ConfigError
from a3c_bench.fresh import make_comparison
from a3c_bench.parallel.crew import own_stream, wait_for_own_stream
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.runtime.seeding import GeneratorState, NumpyGeneratorState, Stream, sequence
from a3c_bench.runtime.session import Part, Session
from a3c_bench.runtime.storage import check_memory
from a3c_bench.schema import Config


class PAAC:
    """The two halves of the algorithm: act for t_max steps, then learn from them.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PAACConfig = config.algo
        options = self.options
        self.session = session
        self.measure_lag = config.lag.enabled
        self.wiring = wiring = wire(config, session, build.make_network, halves=options.alternate)
        self.envs, self.network, self.parameters = wiring.envs, wiring.network, wiring.parameters
        self.gradient_variance = GradientVariance()
        self.learner = build.make_actor_critic_learner(
            config, self.network, self.parameters, None, options.log_epsilon, options.ratio_clip, wiring.compute
        )
        self.lag_generator = np.random.default_rng(sequence(config.seed, Stream.LAG))
        self.past: PastParameters | None = None  # None: theta itself acts
        acts = self.network
        if options.overlap or options.lag.updates > 0:
            acts = build.make_network(config, self.envs[0], wiring.device)
            theta, acting = self.parameters.values.data, FlatParameters(acts).values.data
            lag = options.lag
            self.past = PastParameters(theta, acting, lag.updates, lag.distribution, self.lag_generator)
        self.late = self.past if options.lag.of == "gradients" else None  # who acted differentiates too
        self.values_end = self.past is not None and self.late is None and not options.stale_bootstrap
        self.ahead = Ahead(config, session, wiring.device) if options.overlap else None
        ledger = self.ahead.notes if self.ahead else session
        self.actor = wiring.actor(
            acts,
            options.t_max,
            ledger,
            n_rollouts=2 if options.overlap else 1,
            values_every=config.lag.divergence_every_updates if self.measure_lag else 0,
            values_end=not self.values_end,
        )
        self.fresh = make_comparison(config, options.n_envs, wiring.device, (session.attempt,), peers=session.peers)

    def update(self) -> None:
        """t_max steps in every environment, and one update from them or from those before."""
        self.learn(self.ahead.exchange(self.choose_policy, self.actor.act) if self.ahead else self.act())

    def act(self) -> Rollout:
        """t_max steps in every environment, under the policy whose turn it is."""
        self.session.version = self.choose_policy()
        rollout = self.actor.act()
        self.session.version = None  # what is learnt is theta
        return rollout

    def choose_policy(self) -> int | None:
        """Makes up who acts next; gives its version, if it is a copy of theta."""
        return self.past.choose(self.session.counters.updates) if self.past else None

    def learn(self, rollout: Rollout) -> None:
        """One update of theta."""
        session, learner = self.session, self.learner
        session.meet()
        if self.values_end:
            rollout.bootstrap = learner.values(rollout.observations[rollout.length], rollout.end_state)
        batch = rollout.batch()
        with self.late.in_place() if self.late else nullcontext():
            found = learner.differentiate(batch)
        add_up(session, self.parameters, found.loss.divisor)
        figures = found.figures() | self.gradient_variance.add(self.parameters.gradients)
        if self.measure_lag:  # just before the update
            figures |= lag_figures(session, rollout, *self.seen_now(batch, found), self.now())
        learning_rate = self.wiring.learning_rate_at(session.counters.frames)
        self.fresh.keep(self.parameters.gradients, self.parameters.values)
        gradient_norm = learner.apply(learning_rate)
        if self.ahead:
            self.ahead.notes.tally.add(self.ahead.notes.writer, updates=1)  # for who acts meanwhile
        figures |= self.fresh.cosine()
        note(session, found, figures | {"gradient_norm": gradient_norm, "learning_rate": learning_rate})

    def seen_now(self, batch: Batch, found: Backward) -> tuple[Batch, Backward]:
        """The same as theta sees it that is about to be updated, where another one has differentiated it."""
        if self.late is None:
            return batch, found
        with torch.no_grad():
            log_probs, values = self.network.unroll(batch.observations, batch.state, ~batch.valid)
        return batch._replace(values=found.values), found._replace(log_probs=log_probs, values=values)

    def now(self) -> Stamp:
        """Where the run stands: with the frames of the rollout that is being gathered, which are not counted yet."""
        stamp = self.session.stamp()
        return stamp._replace(frames=self.ahead.notes.tally.frames) if self.ahead else stamp

    def close(self) -> None:
        """Ends whatever acts and simulates."""
        if self.ahead:
            self.ahead.close()
        self.wiring.close()
        self.fresh.close()


class Ahead:
    """Gathers the next rollout in a thread of its own. Its steps are counted when it is their turn to be learnt from.

    Args:
        config: of the run.
        session: of it.
        device: that acts.
    """

    def __init__(self, config: Config, session: Session, device: torch.device) -> None:
        self.session = session
        self.device = device
        self.notes = Notes(Tally(1, config.env.frame_skip, session.clock, session.peers.size), 0)
        self.thread = ThreadPoolExecutor(1, "a3c_bench actor")
        self.stream = own_stream(device)  # one for all rollouts: what is freed there is found again there alone
        self.next: Future[tuple[Rollout, WorkerReport]] | None = None

    def exchange(self, choose_policy: Callable[[], int | None], act: Callable[[], Rollout]) -> Rollout:
        """The rollout that was gathered meanwhile; the one after it is begun."""
        if self.next is None:
            self.notes.tally.begin(self.session.counters.agent_steps, self.session.counters.updates)
            self.begin(choose_policy, act)
        assert self.next is not None
        rollout, report = self.next.result()
        self.session.timer.lap("wait")
        self.session.take(report)
        self.begin(choose_policy, act)
        return rollout

    def begin(self, choose_policy: Callable[[], int | None], act: Callable[[], Rollout]) -> None:
        """Lets the thread act under theta as it is now."""
        self.notes.version = choose_policy()
        wait_for_own_stream(self.device)  # until the copy of theta is there
        self.next = self.thread.submit(self.gather, act)

    def gather(self, act: Callable[[], Rollout]) -> tuple[Rollout, WorkerReport]:
        """What the thread does."""
        self.notes.timer.start()
        with self.stream:
            rollout = act()
            wait_for_own_stream(self.device)
        return rollout, self.notes.take()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """While entered, nobody acts."""
        if self.next is not None:
            self.next.exception()  # waits; `exchange` raises it
        yield

    def close(self) -> None:
        """Ends the thread when it is done with its rollout, of which nobody will hear."""
        self.thread.shutdown()


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    paac = PAAC(config, session)
    parts: dict[str, Part] = {"action_generator": GeneratorState(paac.wiring.generator)}
    if config.algo.lag.updates > 0:
        assert paac.past is not None
        parts |= {"past": paac.past, "lag_generator": NumpyGeneratorState(paac.lag_generator)}
    session.begin(network=paac.network, optimizer=paac.learner.optimizer, **parts)
    try:
        while session.running(paac.ahead.standstill if paac.ahead else nullcontext):
            paac.update()
    finally:
        paac.close()


def check(config: Config) -> None:
    """Raises ConfigError for more versions of theta than the memory holds, and for halves that cannot alternate."""
    if config.algo.alternate and uses_gymnasium(config.env) and config.env.simulate != "processes":
        raise ConfigError(
            "algo.alternate=true has nothing to do where environments are simulated by who acts: say "
            "env.simulate=processes with it."
        )
    lag = config.algo.lag
    if lag.updates == 0:
        return
    network = build.make_network(config, find_spec(config.env), torch.device("cpu"))
    n_values, n_versions = sum(p.numel() for p in network.parameters()), n_kept(lag.updates, lag.distribution)
    what = f"A lag of {lag.updates} updates keeps {n_versions:,} versions of {n_values:,} parameters, which"
    check_memory(4 * n_values * n_versions, what, "say a smaller algo.lag.updates")


ALGORITHM = Algorithm(PAACConfig, train, check)
