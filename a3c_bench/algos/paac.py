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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import Algorithm
from a3c_bench.core.lag import policy_divergence
from a3c_bench.core.losses import REDUCTIONS, actor_critic_loss, explained_variance
from a3c_bench.core.networks import ActorCritic, sample_actions
from a3c_bench.core.optim import FlatParameters, set_learning_rate
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import GeneratorState, Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config, OptimizerConfig, option, section


@dataclass(frozen=True)
class PAACConfig:
    """Settings of PAAC; conf/algo/paac.yaml gives their sources."""

    name: str = "paac"
    n_envs: int = option(32, at_least=1)  # n_e
    t_max: int = option(5, at_least=1)  # agent steps per environment and update
    gamma: float = option(0.99, at_least=0.0, at_most=1.0)
    entropy_weight: float = option(0.01, at_least=0.0)  # beta
    value_weight: float = option(0.25, at_least=0.0)  # of (R - V)^2
    loss_reduction: str = option("mean_over_envs", choices=REDUCTIONS)
    optimizer: OptimizerConfig = section(OptimizerConfig)


class Rollout:
    """t_max steps of n_e environments, kept on the device that learns; allocated once.

    Args:
        t_max: T.
        envs: B environments.
        device: of the tensors.
    """

    def __init__(self, t_max: int, envs: VectorEnv, device: torch.device) -> None:
        n_envs = envs.n_envs
        frame_dtype = torch.from_numpy(np.empty(0, dtype=envs.observation_dtype)).dtype
        pin = device.type == "cuda"
        self.observations = torch.zeros(
            (t_max + 1, n_envs, *envs.observation_shape), dtype=frame_dtype, device=device
        )  # row t_max: the states after the last step
        self.state = torch.zeros((n_envs, 0), device=device)  # [B, S], before the first step
        self.values = torch.zeros((t_max + 1, n_envs), device=device)
        self.log_probs = torch.zeros((t_max, n_envs, envs.n_actions), device=device)  # of the policy that acted
        self.actions = torch.zeros((t_max, n_envs), dtype=torch.int64, device=device)
        # What the environments say arrives in main memory, and moves to the device once per rollout.
        self._rewards = torch.zeros((t_max, n_envs), pin_memory=pin)
        self._flags = torch.zeros((3, t_max, n_envs), dtype=torch.bool, pin_memory=pin)
        self._reward_rows = self._rewards.numpy()
        self._flag_rows = self._flags.numpy()
        self._device = device
        self.versions = np.zeros((t_max, 1), dtype=np.int64)  # when each step's actions were chosen: updates,
        self.frames = np.zeros((t_max, 1), dtype=np.int64)  # frames
        self.seconds = np.zeros((t_max, 1))  # and training seconds

    def store(self, t: int, step: Step) -> None:
        """Keeps what the environments answered to the actions of row t."""
        self._reward_rows[t] = step.rewards
        self._flag_rows[0, t] = step.terminated
        self._flag_rows[1, t] = step.truncated
        self._flag_rows[2, t] = step.valid

    def outcomes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rewards, terminated, truncated, valid; all [T, B] on the device."""
        terminated, truncated, valid = self._flags.to(self._device, non_blocking=True)
        return self._rewards.to(self._device, non_blocking=True), terminated, truncated, valid


class PAAC:
    """The two halves of the algorithm: act for t_max steps, then learn from them.

    Args:
        config: of the run.
        session: gets the counts, metrics and lag.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.options: PAACConfig = config.algo
        self.device = resolve_device(config.device)
        self.session = session
        self.measure_lag = config.lag.enabled
        self.envs = build.make_envs(
            config, self.options.n_envs, sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
        )
        self.network: ActorCritic = build.make_network(config, self.envs, self.device)
        self.parameters = FlatParameters(self.network)
        self.optimizer = build.make_optimizer(self.options.optimizer, self.parameters)
        self.estimate = build.make_estimator(config, self.options.gamma)
        self.generator = torch_generator(self.device, sequence(config.seed, Stream.ACTIONS))
        self.rollout = Rollout(self.options.t_max, self.envs, self.device)
        self.rollout.observations[-1].copy_(torch.from_numpy(self.envs.reset()))
        self.state = self.network.initial_state(self.envs.n_envs)  # [n_e, S], of an LSTM

    @torch.no_grad()
    def act(self) -> None:
        """Fills the rollout: t_max steps in every environment under the current policy."""
        rollout, session, timer = self.rollout, self.session, self.session.timer
        rollout.observations[0].copy_(rollout.observations[-1])
        rollout.state = self.state
        for t in range(self.options.t_max):
            rollout.log_probs[t], rollout.values[t], self.state = self.network(rollout.observations[t], self.state)
            rollout.actions[t] = sample_actions(rollout.log_probs[t], self.generator)
            rollout.versions[t] = session.counters.updates
            rollout.frames[t] = session.counters.frames
            rollout.seconds[t] = session.wall_seconds
            actions = rollout.actions[t].cpu().numpy()
            timer.lap("predict")
            step = self.envs.step(actions)
            timer.lap("simulate")
            rollout.store(t, step)
            rollout.observations[t + 1].copy_(torch.from_numpy(step.observations))
            if not step.valid.all():  # a new game has begun
                self.state[torch.from_numpy(~step.valid)] = 0.0
            session.count(int(step.valid.sum()), step.episodes)
        rollout.values[-1] = self.network(rollout.observations[-1], self.state)[1]  # the state stays before that step
        timer.lap("predict")

    def learn(self) -> None:
        """One update from the rollout."""
        options, rollout = self.options, self.rollout
        rewards, terminated, truncated, valid = rollout.outcomes()
        psi = self.estimate(rewards, rollout.values, terminated, truncated)
        mask = valid & psi.usable  # [T, B]
        log_probs, values = self.network.unroll(rollout.observations[:-1], rollout.state, ~valid)
        loss = actor_critic_loss(
            log_probs,
            values,
            rollout.actions,
            psi.advantages,
            psi.returns,
            mask,
            entropy_weight=options.entropy_weight,
            value_weight=options.value_weight,
            reduction=options.loss_reduction,
        )
        self.parameters.zero_gradients()
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradient_norm = self.parameters.clip_gradients(options.optimizer.max_grad_norm)
        if self.measure_lag:
            self._measure_lag(log_probs.detach(), mask)
        learning_rate = self.session.learning_rate
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.session.updated(
            {
                "loss": loss.total.detach(),
                "loss_policy": loss.policy,
                "loss_value": loss.value,
                "entropy_nats": loss.entropy,
                "gradient_norm": gradient_norm,
                "learning_rate": learning_rate,
                "explained_variance": explained_variance(rollout.values[:-1], psi.returns, mask),
                "unusable_share": 1.0 - mask.sum() / valid.sum().clamp(min=1),
            }
        )
        self.session.timer.lap("train")

    def _measure_lag(self, log_probs: Tensor, mask: Tensor) -> None:
        """Lag of the samples of this update, just before it is applied."""
        rollout, counters = self.rollout, self.session.counters
        kl, ratio = policy_divergence(rollout.log_probs[mask], log_probs[mask], rollout.actions[mask])
        valid = mask.cpu().numpy()
        shape = np.zeros_like(valid, dtype=np.int64)
        self.session.lag.add(
            lag_updates=(counters.updates - rollout.versions + shape)[valid],
            lag_frames=(counters.frames - rollout.frames + shape)[valid],
            lag_seconds=(self.session.wall_seconds - rollout.seconds + shape)[valid],
            lag_kl_nats=kl,
            importance_ratio=ratio,
        )


def train(config: Config, session: Session) -> None:
    """Trains until the session says that the budget is spent or the run is to stop."""
    paac = PAAC(config, session)
    session.restore(network=paac.network, optimizer=paac.optimizer, action_generator=GeneratorState(paac.generator))
    try:
        while session.running():
            paac.act()
            paac.learn()
    finally:
        paac.envs.close()


ALGORITHM = Algorithm(PAACConfig, train)
