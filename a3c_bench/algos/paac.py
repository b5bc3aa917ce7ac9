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
and recorded like everybody's.
"""

from a3c_bench import build
from a3c_bench.acting.actor import Actor
from a3c_bench.algos import Algorithm
from a3c_bench.algos.settings import PAACConfig
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters, GradientVariance
from a3c_bench.core.rollout import Rollout, divergence
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import GeneratorState, Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config


class PAAC:
    """The two halves of the algorithm: act for t_max steps, then learn from them.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PAACConfig = config.algo
        device = resolve_device(config.device)
        self.session = session
        self.measure_lag = config.lag.enabled
        self.envs = build.make_envs(
            config, self.options.n_envs, sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
        )
        self.network: ActorCritic = build.make_network(config, self.envs, device)
        self.parameters = FlatParameters(self.network)
        self.gradient_variance = GradientVariance()
        self.learner = build.make_actor_critic_learner(config, self.network, self.parameters)
        self.learning_rate_at = build.make_schedule(config)
        self.generator = torch_generator(device, sequence(config.seed, Stream.ACTIONS))
        self.actor = Actor(self.envs, self.network, self.generator, self.options.t_max, device, session)

    def update(self) -> None:
        """t_max steps in every environment under the current policy, and one update from them."""
        rollout = self.actor.act()
        self.learn(rollout)

    def learn(self, rollout: Rollout) -> None:
        """One update of theta."""
        session, learner = self.session, self.learner
        batch = rollout.batch()
        found = learner.differentiate(batch)
        figures = found.figures() | self.gradient_variance.add(self.parameters.gradients)
        gradient_norm = learner.clip()
        if self.measure_lag:  # just before the update
            session.lag.add(
                **rollout.lag(session.stamp(), found.mask), **divergence(batch, found.log_probs, found.mask)
            )
        learning_rate = self.learning_rate_at(session.counters.frames)
        learner.step(learning_rate)
        session.updated(figures | {"gradient_norm": gradient_norm, "learning_rate": learning_rate}, found.fit)
        session.ratio("unusable_share", *found.unusable)
        session.timer.lap("train")


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    paac = PAAC(config, session)
    session.begin(
        network=paac.network, optimizer=paac.learner.optimizer, action_generator=GeneratorState(paac.generator)
    )
    try:
        while session.running():
            paac.update()
    finally:
        paac.envs.close()


ALGORITHM = Algorithm(PAACConfig, train)
