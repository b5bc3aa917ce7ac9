"""PPO: proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), on PAAC's wiring.

    EnvPool (n_envs environments, lock step)
        | s_t [n_envs, ...]                 ^ a_t [n_envs]
        v                                   |
    policy and value, one batch forward ----+      t_max times
        |
        v  s, a, r, log mu, V  [t_max, n_envs]
    psi and returns, estimated once
        |
        v  n_epochs times: shuffled, in n_minibatches parts
    clipped surrogate -> loss -> an update of theta from each part

The j-th update from a rollout learns from samples that theta chose j updates before: a lag that each rollout begins
without, and that the clip is there for. With one epoch, one minibatch, and neither value clip nor normalised
advantages, it is PAAC (arXiv:2205.09123 says so of A2C).

An "update" is one minibatch's.
"""

import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.lockstep import add_up, lag_figures, note, wire
from a3c_bench.algos.settings_passes import PPOConfig
from a3c_bench.core.advantages import Estimate
from a3c_bench.core.lag import policy_divergence
from a3c_bench.core.learning import Backward
from a3c_bench.core.minibatches import at, mask_of, shuffled
from a3c_bench.core.optim import GradientVariance
from a3c_bench.core.ppo import PPOLearner, normalised
from a3c_bench.core.rollout import Batch, Rollout
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.seeding import GeneratorState, Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config


class PPO:
    """Acts for t_max steps, then learns from them in several passes.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PPOConfig = config.algo
        options = self.options
        self.session = session
        self.measure_lag = config.lag.enabled
        self.wiring = wiring = wire(config, session, build.make_network)
        self.network, self.parameters, compute = wiring.network, wiring.parameters, wiring.compute
        self.gradient_variance = GradientVariance()
        self.estimator = build.make_estimator(config, options.gamma)
        self.estimate = compute.fixed(self.estimate_once, wiring.device)
        self.learner = PPOLearner(
            self.network,
            self.parameters,
            build.make_optimizer(options.optimizer, self.parameters.values, compute),
            entropy_weight=options.entropy_weight,
            value_weight=options.value_weight,
            ratio_clip=options.ratio_clip,
            value_clip=options.value_clip,
            normalise=options.normalise_advantages and session.peers.size == 1,  # else by the samples of all ranks
            max_grad_norm=options.optimizer.max_grad_norm,
            compute=compute,
        )
        self.shuffling = torch_generator(wiring.device, sequence(config.seed, Stream.MINIBATCHES))
        self.actor = wiring.actor(self.network, options.t_max, session, values_every=1)

    def update(self) -> None:
        """t_max steps in every environment, and the updates from them."""
        self.learn(self.actor.act())

    def learn(self, rollout: Rollout) -> None:
        """n_epochs passes over a rollout, or fewer if the policy has moved too far."""
        options, batch = self.options, rollout.batch()
        self.session.meet()
        psi = self.estimate(batch)
        learning_rate = self.wiring.learning_rate_at(self.session.counters.frames)
        has_memory = self.network.lstm is not None
        for _ in range(options.n_epochs):
            sizes = (rollout.length, options.n_envs, options.n_minibatches)
            for places in shuffled(*sizes, has_memory, self.shuffling).unbind():
                part, part_psi = at(places, batch, psi)
                found = self.step(rollout, places, part, part_psi, learning_rate)
            if options.target_kl_nats is not None and self.mean_kl(part, found) > options.target_kl_nats:
                break

    @torch.no_grad()
    def estimate_once(self, batch: Batch) -> Estimate:
        """psi and returns of a rollout, from the values that theta had while it acted."""
        assert batch.values is not None
        values = torch.cat([batch.values, batch.bootstrap.unsqueeze(0)])
        outcomes = [batch.rewards, values, batch.terminated, batch.truncated]
        if self.estimator.corrects:  # for nothing: who acted is theta
            outcomes.append(torch.zeros_like(batch.rewards))
        return self.estimator(*outcomes)

    def step(self, rollout: Rollout, places: Tensor, batch: Batch, psi: Estimate, learning_rate: float) -> Backward:
        """One update of theta, from the samples at these places of a rollout."""
        session = self.session
        if self.options.normalise_advantages and session.peers.size > 1:
            advantages = normalised(psi.advantages, batch.valid & psi.usable, session.peers.total)
            psi = psi._replace(advantages=advantages)
        found = self.learner.differentiate(batch, psi)
        add_up(session, self.parameters, found.loss.divisor)
        figures = found.figures() | self.gradient_variance.add(self.parameters.gradients)
        if self.measure_lag:  # just before the update
            mask = mask_of(places, found.mask, rollout.length, self.options.n_envs)
            figures |= lag_figures(session, rollout, batch, found, session.stamp(), mask, rollout.complete_at)
        gradient_norm = self.learner.apply(learning_rate)
        note(session, found, figures | {"gradient_norm": gradient_norm, "learning_rate": learning_rate})
        return found

    def mean_kl(self, batch: Batch, found: Backward) -> float:
        """KL(mu, pi) in nats just before an update, mean over its samples; waits for the device."""
        kl, _ = policy_divergence(batch.log_probs, found.log_probs, batch.actions)
        of_samples = kl[found.mask]
        if self.session.peers.size == 1:
            return float(of_samples.mean())
        summed, n_samples = self.session.peers.total(torch.stack([of_samples.sum(), found.mask.sum()])).unbind()
        return float(summed / n_samples)

    def close(self) -> None:
        """Ends the environments."""
        self.wiring.close()


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    ppo = PPO(config, session)
    session.begin(
        network=ppo.network,
        optimizer=ppo.learner.optimizer,
        action_generator=GeneratorState(ppo.wiring.generator),
        shuffling=GeneratorState(ppo.shuffling),
    )
    try:
        while session.running():
            ppo.update()
    finally:
        ppo.close()


def check(config: Config) -> None:
    """Raises ConfigError for an advantage of another package that cannot be estimated once for a rollout by itself."""
    build.check_keeps_no_past(config)
    if build.make_estimator(config, config.algo.gamma).values_actions:
        raise ConfigError(
            f"advantage={config.advantage.kind} has a psi that changes with each update, and algo=ppo estimates psi "
            "once for a rollout."
        )


def workload(config: Config) -> Workload:
    """A rollout is learnt from in n_epochs passes of n_minibatches parts."""
    options: PPOConfig = config.algo
    return Workload(options.n_envs, options.t_max, n_epochs=options.n_epochs, n_minibatches=options.n_minibatches)


ALGORITHM = Algorithm(PPOConfig, train, check, workload)
