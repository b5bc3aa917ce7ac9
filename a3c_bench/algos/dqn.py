"""DQN: deep Q-learning from a replay (Mnih et al. 2015), with what was added to it.

One process, n_envs environments in lock step (one in the paper):

    EnvPool
        | s_t [n_envs, ...]                 ^ a_t [n_envs]: argmax Q, or anything with probability epsilon
        v                                   |
    Q, one batch forward -------------------+
        |
        v  s, a, r; a frame each, stacks are rebuilt
    replay: the newest million steps
        |
        v  a batch, once in update_period agent steps
    y = r + gamma max Q^-(s')  -> Huber loss of y - Q(s, a) -> one update of theta

    theta^- <- theta, once in target_period agent steps

Switches: double (van Hasselt et al. 2016), prioritized (Schaul et al. 2016), n_step; dueling (Wang et al. 2016) is the
network's.

A sample was chosen by a policy that is long gone: the lag is the time it has lain in the replay.

Beyond the paper, algo.overlap=true: the updates that fell due are made while the environments take their next step,
whose actions theta chose just before. Each update learns from what it would learn from otherwise; who acts is older by
what fell due with one step.

    send a_t -> updates that fell due with step t - 1 -> receive s_{t+1}, store it
"""

import logging
from typing import Any

import numpy as np

from a3c_bench import build
from a3c_bench.acting.explorer import Chosen, Explorer
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.settings_q import DQNConfig
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.schedules import linear
from a3c_bench.core.transfer import Transfer
from a3c_bench.replays import allocate_in, check_replays, make_replay, replay_files
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import NumpyGeneratorState, Stream, sequence
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config

log = logging.getLogger(__name__)
PRIORITY_OF_NO_ERROR = 1e-6  # Schaul et al. 2016, section 3.3: a "small positive constant"


class DQN:
    """Act, store, learn.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: DQNConfig = config.algo
        options, device = self.options, resolve_device(config.device)
        self.session = session
        self.measure_lag = config.lag.enabled
        self.budget_frames = config.budget.frames
        seed = sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
        self.envs = build.make_envs(config, options.n_envs, seed)
        self.network = build.make_q_network(config, self.envs, device)
        self.parameters = FlatParameters(self.network)
        self.target_network = build.make_q_network(config, self.envs, device)
        self.target_parameters = FlatParameters(self.target_network)
        compute = build.make_compute(config)
        networks = self.network, self.target_network
        self.learner = build.make_q_learner(config, *networks, self.parameters, compute=compute)
        self.learning_rate_at = build.make_schedule(config)
        alpha = options.priority_exponent if options.prioritized else 0.0
        files = replay_files(config, self.envs, session.directory, (options.n_envs,))
        self.replay = make_replay(config, self.envs, options.n_envs, alpha, allocate_in(files))
        self.exploring = np.random.default_rng(sequence(config.seed, Stream.ACTIONS))
        self.sampling = np.random.default_rng(sequence(config.seed, Stream.REPLAY))
        parts = self.envs, self.network, self.replay, self.exploring
        self.explorer = Explorer(*parts, options.gamma, device, session, compute=compute)
        self.to_device = Transfer(device, beside=True)  # while the last update runs
        self.n_stored = 0  # agent steps that the replay has taken, or had when this attempt began
        self.n_unused = 0  # agent steps since the last update
        self.target_is_due = False

    def step(self) -> None:
        """One step of every environment, and the updates that fall due with it, or with the step before."""
        chosen = self.explorer.send(self.epsilon)
        if self.options.overlap:
            self.catch_up()
        self.receive(chosen)
        if not self.options.overlap:
            self.catch_up()

    def receive(self, chosen: Chosen) -> None:
        """Stores what came of a step, and finds what falls due with it."""
        counters, period = self.session.counters, self.options.target_period_agent_steps
        before = counters.agent_steps
        n_steps = self.explorer.receive(chosen)
        self.n_stored += n_steps
        if self.learns:
            self.n_unused += n_steps
        self.target_is_due = counters.agent_steps // period > before // period

    def catch_up(self) -> None:
        """The updates that are due, and then the target network."""
        period = self.options.update_period_agent_steps
        while self.learns and self.n_unused >= period:
            self.n_unused -= period
            self.update()
        if self.target_is_due:
            self.target_is_due = False
            self.target_parameters.values.data.copy_(self.parameters.values.data)

    @property
    def epsilon(self) -> float:
        """The probability of exploring now."""
        options = self.options
        position = self.session.counters.agent_steps - options.replay.learning_starts_agent_steps
        return linear(options.epsilon_start, options.epsilon_end, position, options.epsilon_horizon_agent_steps)

    @property
    def learns(self) -> bool:
        """Whether the replay has been filled: at first, and anew after a stop if it does not outlive one."""
        return self.n_stored >= self.options.replay.learning_starts_agent_steps and len(self.replay) > 0

    def update(self) -> None:
        """One update of theta."""
        options, session, frames = self.options, self.session, self.session.counters.frames
        beta = 0.0
        if options.prioritized:
            assert self.budget_frames is not None  # see check
            beta = linear(options.importance_exponent, 1.0, frames, self.budget_frames)
        sample = self.replay.sample(options.replay.batch_size, self.sampling, beta)
        found = self.learner.differentiate(sample.to(self.to_device))
        if self.measure_lag:  # just before the update
            session.lag.add(**sample.lag(session.stamp()))
        learning_rate = self.learning_rate_at(frames)
        gradient_norm = self.learner.apply(learning_rate)
        if options.prioritized:
            # Not clipped, as in OpenAI's baselines: the paper clips what is learnt from and does not say more, and
            # with clipped ones all errors above 1 would be drawn alike.
            priorities = found.td_errors.abs().cpu().numpy() + PRIORITY_OF_NO_ERROR
            self.replay.update_priorities(sample.indices, priorities)
        session.updated(found.figures() | {"gradient_norm": gradient_norm, "learning_rate": learning_rate})
        session.timer.lap("train")

    def gauges(self) -> dict[str, float]:
        """Columns of metrics.csv."""
        return {"epsilon": self.epsilon, "replay_agent_steps": len(self.replay)}

    def state_dict(self) -> dict[str, Any]:
        """What the other parts of a checkpoint do not say."""
        kept = f"{len(self.replay)} agent steps in replay/" if self.replay.persistent else "none: it was in memory"
        return {"replay_kept": kept, "n_unused": self.n_unused, "target_is_due": self.target_is_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; the replay has been loaded, if it outlived the stop."""
        self.n_unused = int(state["n_unused"])
        self.target_is_due = bool(state.get("target_is_due", False))  # older checkpoints know of no overlap
        self.n_stored = len(self.replay)
        if not self.learns:
            missing = self.options.replay.learning_starts_agent_steps - self.n_stored
            log.info("The replay holds %d agent steps: learning waits for %d more.", self.n_stored, missing)


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    dqn = DQN(config, session)
    session.gauges = dqn.gauges
    try:
        session.begin(
            network=dqn.network,
            target_network=dqn.target_network,
            optimizer=dqn.learner.optimizer,
            exploring=NumpyGeneratorState(dqn.exploring),
            sampling=NumpyGeneratorState(dqn.sampling),
            replay=dqn.replay,
            progress=dqn,
        )
        while session.running():
            dqn.step()
        dqn.catch_up()  # what fell due with the last step, if it has not been done
    finally:
        dqn.envs.close()


def check(config: Config) -> None:
    """Raises ConfigError for a replay that cannot be held."""
    check_replays(config, config.algo.n_envs)


def workload(config: Config) -> Workload:
    """One environment's forward, and a batch from the replay in so many agent steps."""
    options: DQNConfig = config.algo
    return Workload(options.n_envs, 1, replayed_batch=options.replay.batch_size,
                    update_period_agent_steps=options.update_period_agent_steps, double=options.double,
                    mapped_replays=(options.n_envs,) if options.replay.storage == "memmap" else ())  # fmt: skip


ALGORITHM = Algorithm(DQNConfig, train, check, workload, build.make_q_network)
