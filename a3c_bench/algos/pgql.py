"""PGQL: policy gradient and Q-learning (O'Donoghue, Munos, Kavukcuoglu and Mnih 2017, arXiv:1611.01626).

PAAC's wiring, and beside it a replay of the same steps:

    EnvPool (n_e environments in lock step)
        | s_t [n_e, ...]                    ^ a_t [n_e]
        v                                   |
    policy and value, one batch forward ----+      t_max times
        |                         |
        v  s, a, r, V             v  s, a, r
    returns -> loss           replay: the newest steps
        |                         |  a batch, after each update of the actor-critic
        v                         v
    update of theta,          delta = r + gamma max_b Q~(s', b) - Q~(s, a)
    step lr                   update of theta along delta grad (log pi(a | s) + V(s)), step 0.5 lr

Both updates change the same policy and value; Q~ = alpha (log pi + H) + V is what these say of Q (`core.pgql`). Without
the right half (algo.eta=0, or algo.q_learning_rate_ratio=0) it is PAAC.

The left half learns from what theta itself has just chosen: its lag is 0. A sample from the replay is as old as it is,
counted in updates of both halves.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.lockstep import lag_figures, note, wire
from a3c_bench.algos.settings_pgql import PGQLConfig, learning_rate_shares
from a3c_bench.core.lag import Stamp
from a3c_bench.core.optim import GradientVariance
from a3c_bench.core.pgql import ResidualLearner
from a3c_bench.core.rollout import Rollout
from a3c_bench.core.transfer import Transfer
from a3c_bench.envs import Step
from a3c_bench.errors import ConfigError
from a3c_bench.replays import ReplayNote, allocate_in, check_replays, make_replay, replay_files
from a3c_bench.runtime.seeding import GeneratorState, NumpyGeneratorState, Stream, sequence
from a3c_bench.runtime.session import Part, Session
from a3c_bench.schema import Config


class PGQL:
    """Act for t_max steps, learn from them, then learn from the replay.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PGQLConfig = config.algo
        options = self.options
        self.session = session
        self.measure_lag = config.lag.enabled
        self.wiring = wiring = wire(config, session, build.make_network)
        self.network, self.parameters = wiring.network, wiring.parameters
        self.gradient_variance = GradientVariance()
        self.policy_share, self.q_share = learning_rate_shares(options)
        self.learner = build.make_actor_critic_learner(config, self.network, self.parameters, compute=wiring.compute)
        self.q_optimizer = self.learner.optimizer
        if not options.shared_statistics:
            self.q_optimizer = build.make_optimizer(options.optimizer, self.parameters.values, wiring.compute)
        self.q_learner = ResidualLearner(
            self.network,
            self.parameters,
            self.q_optimizer,
            alpha=options.entropy_weight,
            value_weight=options.value_weight,
            reduction=options.q_loss_reduction,
            max_grad_norm=options.optimizer.max_grad_norm,
            compute=wiring.compute,
        )
        (envs,) = wiring.envs
        files = replay_files(config, envs, session.directory, (options.n_envs,))
        self.replay = make_replay(config, envs, options.n_envs, allocate=allocate_in(files))
        self.sampling = np.random.default_rng(sequence(config.seed, Stream.REPLAY))
        self.to_device = Transfer(wiring.device, beside=True)
        self.env_ids = np.arange(options.n_envs)
        self.n_stored = 0  # agent steps that the replay has taken, or had when this attempt began
        self.actor = wiring.actor(
            self.network,
            options.t_max,
            session,
            values_every=config.lag.divergence_every_updates if self.measure_lag else 0,
            witness=self.store if self.q_share > 0.0 else None,
        )

    def start(self) -> None:
        """To be called once a checkpoint has been loaded, if there is one, and before the first update."""
        self.n_stored = len(self.replay)
        self.replay.start(self.actor.observations.cpu().numpy())

    def store(self, actions: NDArray[np.int64], step: Step, stamp: Stamp) -> None:
        """Puts one step of every environment into the replay."""
        outcome = (step.rewards, step.terminated, step.truncated, step.valid)
        self.replay.add(self.env_ids, step.observations, actions, *outcome, stamp, self.session.frames)
        self.n_stored += int(np.count_nonzero(step.valid))

    def update(self) -> None:
        """t_max steps in every environment, an update of theta from them, and those from the replay."""
        self.learn(self.actor.act())
        if self.q_share > 0.0 and self.learns_q:
            for _ in range(self.options.q_updates_per_policy_update):
                self.learn_q()

    def learn(self, rollout: Rollout) -> None:
        """One update of theta as an actor-critic, from what theta chose."""
        session, learner, batch = self.session, self.learner, rollout.batch()
        found = learner.differentiate(batch)
        figures = found.figures() | self.gradient_variance.add(self.parameters.gradients)
        if self.measure_lag:  # just before the update
            figures |= lag_figures(session, rollout, batch, found, session.stamp())
        learning_rate = self.policy_share * self.wiring.learning_rate_at(session.counters.frames)
        gradient_norm = learner.apply(learning_rate)
        note(session, found, figures | {"gradient_norm": gradient_norm, "learning_rate": learning_rate})

    @property
    def learns_q(self) -> bool:
        """Whether the replay has been filled: at first, and anew after a stop if it does not outlive one."""
        return self.n_stored >= self.options.replay.learning_starts_agent_steps and len(self.replay) > 0

    def learn_q(self) -> None:
        """One update of theta as Q-values, from the replay."""
        session, learner = self.session, self.q_learner
        sample = self.replay.sample(self.options.replay.batch_size, self.sampling)
        found = learner.differentiate(sample.to(self.to_device))
        if self.measure_lag:  # just before the update
            session.lag.add(**sample.lag(session.stamp()))
        norm: Tensor = learner.apply(self.q_share * self.wiring.learning_rate_at(session.counters.frames))
        session.updated({"td_error": found.td_errors.abs().mean(), "gradient_norm_q": norm})
        session.timer.lap("train")

    def gauges(self) -> dict[str, float]:
        """Columns of metrics.csv."""
        return {"replay_agent_steps": len(self.replay)}


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    pgql = PGQL(config, session)
    session.gauges = pgql.gauges
    parts: dict[str, Part] = {} if config.algo.shared_statistics else {"q_optimizer": pgql.q_optimizer}
    try:
        session.begin(
            network=pgql.network,
            optimizer=pgql.learner.optimizer,
            action_generator=GeneratorState(pgql.wiring.generator),
            sampling=NumpyGeneratorState(pgql.sampling),
            replay=pgql.replay,
            replays=ReplayNote([pgql.replay]),
            **parts,
        )
        pgql.start()
        while session.running():
            pgql.update()
    finally:
        pgql.wiring.close()


def check(config: Config) -> None:
    """Raises ConfigError for a replay that cannot be held, and for an advantage of another package that needs a Q."""
    if build.make_estimator(config, config.algo.gamma).values_actions:
        raise ConfigError(f"advantage={config.advantage.kind} has no V, of which algo=pgql makes its Q-values.")
    check_replays(config, config.algo.n_envs)


def workload(config: Config) -> Workload:
    """The actor-critic's batches, as PAAC's; updates from the replay come on top."""
    options: PGQLConfig = config.algo
    mapped = (options.n_envs,) if options.replay.storage == "memmap" else ()
    return Workload(options.n_envs, options.t_max, mapped_replays=mapped)


ALGORITHM = Algorithm(PGQLConfig, train, check, workload)
