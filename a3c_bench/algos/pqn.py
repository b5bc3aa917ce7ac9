"""PQN: parallelised Q-network (Gallici et al. 2025, arXiv:2407.04811), Q-learning on PAAC's wiring.

    EnvPool (n_envs environments, lock step)
        | s_t [n_envs, ...]                 ^ a_t [n_envs]: argmax Q, or anything with probability epsilon
        v                                   |
    Q, one batch forward -------------------+      t_max times
        |
        v  s, a, r, max Q  [t_max, n_envs]
    targets of Q(lambda), once
        |
        v  n_epochs times: shuffled, in n_minibatches parts
    half the squared error -> an update of theta from each part

No replay and no target network: layer normalisation (network.layer_norm) is to keep Q from running away. As in PPO, the
j-th update from a rollout learns from samples that are j updates old; how far the policy has moved since is told of the
epsilon-greedy one.

An "update" is one minibatch's.
"""

import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.lockstep import add_up, lag_figures, wire
from a3c_bench.algos.settings_passes import PQNConfig
from a3c_bench.core.minibatches import at, mask_of, shuffled
from a3c_bench.core.networks import EpsilonGreedy
from a3c_bench.core.optim import GradientVariance
from a3c_bench.core.pqn import PQNLearner, q_lambda
from a3c_bench.core.q_learning import ValueCheck
from a3c_bench.core.rollout import Batch, Rollout
from a3c_bench.core.schedules import linear
from a3c_bench.runtime.seeding import GeneratorState, Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config


class PQN:
    """Acts for t_max steps, then learns from them in several passes.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PQNConfig = config.algo
        options = self.options
        self.session = session
        self.measure_lag = config.lag.enabled
        self.wiring = wiring = wire(config, session, build.make_q_network)
        self.network, self.parameters, compute = wiring.network, wiring.parameters, wiring.compute
        self.gradient_variance = GradientVariance()
        self.policy = EpsilonGreedy(self.network, torch.ones((), device=wiring.device))
        self.learner = PQNLearner(
            self.policy,
            self.parameters,
            build.make_optimizer(options.optimizer, self.parameters.values, compute),
            max_grad_norm=options.optimizer.max_grad_norm,
            compute=compute,
        )
        self.value_check = ValueCheck(options.n_envs, options.gamma)
        self.shuffling = torch_generator(wiring.device, sequence(config.seed, Stream.MINIBATCHES))
        self.actor = wiring.actor(self.policy, options.t_max, session, values_every=1)

    def update(self) -> None:
        """t_max steps in every environment, and the updates from them."""
        self.learn(self.act())

    def act(self) -> Rollout:
        """t_max steps in every environment, with the epsilon of their beginning."""
        assert isinstance(self.policy.epsilon, Tensor)
        self.policy.epsilon.fill_(self.epsilon)
        return self.actor.act()

    @property
    def epsilon(self) -> float:
        """The probability of exploring now."""
        options, frames = self.options, self.session.counters.frames
        return linear(options.epsilon_start, options.epsilon_end, frames, options.epsilon_horizon_frames)

    def learn(self, rollout: Rollout) -> None:
        """n_epochs passes over a rollout."""
        options, batch = self.options, rollout.batch()
        self.session.meet()
        assert batch.values is not None
        self.check_values(batch, batch.values)
        max_q = torch.cat([batch.values, batch.bootstrap.unsqueeze(0)])
        outcomes = batch.rewards, max_q, batch.terminated, batch.truncated
        estimate = q_lambda(*outcomes, options.gamma, options.q_lambda)
        learning_rate = self.wiring.learning_rate_at(self.session.counters.frames)
        for _ in range(options.n_epochs):
            sizes = (rollout.length, options.n_envs, options.n_minibatches)
            for places in shuffled(*sizes, whole_envs=False, generator=self.shuffling).unbind():
                part, part_estimate = at(places, batch, estimate)
                self.step(rollout, places, part, part_estimate.returns, learning_rate)

    def check_values(self, batch: Batch, max_q: Tensor) -> None:
        """Notes max Q [T, B] beside what was really obtained, of the episodes that ended in a rollout."""
        parts = max_q, batch.rewards, batch.terminated, batch.truncated, batch.valid
        for row in zip(*(part.cpu().numpy() for part in parts), strict=True):
            total_q, total_return, n_states = self.value_check.add(*row)
            if n_states:
                self.session.ratio("max_q", total_q, n_states)
                self.session.ratio("discounted_return", total_return, n_states)

    def step(self, rollout: Rollout, places: Tensor, batch: Batch, targets: Tensor, learning_rate: float) -> None:
        """One update of theta, from the samples at these places of a rollout."""
        session = self.session
        found = self.learner.differentiate(batch, targets)
        add_up(session, self.parameters, found.divisor)
        figures = found.figures() | self.gradient_variance.add(self.parameters.gradients)
        if self.measure_lag:  # just before the update
            mask = mask_of(places, found.mask, rollout.length, self.options.n_envs)
            figures |= lag_figures(session, rollout, batch, found, session.stamp(), mask, rollout.complete_at)
        gradient_norm = self.learner.apply(learning_rate)
        session.updated(figures | {"gradient_norm": gradient_norm, "learning_rate": learning_rate}, found.fit)
        session.timer.lap("train")

    def gauges(self) -> dict[str, float]:
        """Columns of metrics.csv."""
        return {"epsilon": self.epsilon}

    def close(self) -> None:
        """Ends the environments."""
        self.wiring.close()


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    pqn = PQN(config, session)
    session.gauges = pqn.gauges
    session.begin(
        network=pqn.network,
        optimizer=pqn.learner.optimizer,
        action_generator=GeneratorState(pqn.wiring.generator),
        shuffling=GeneratorState(pqn.shuffling),
    )
    try:
        while session.running():
            pqn.update()
    finally:
        pqn.close()


def workload(config: Config) -> Workload:
    """A rollout is learnt from in n_epochs passes of n_minibatches parts."""
    options: PQNConfig = config.algo
    return Workload(options.n_envs, options.t_max, n_epochs=options.n_epochs, n_minibatches=options.n_minibatches)


ALGORITHM = Algorithm(PQNConfig, train, workload=workload, make_network=build.make_q_network)
