"""A stretch of experience: up to t_max agent steps of B environments, and what an actor-critic learns from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.core.lag import Repeated, Samples, Stamp, age, only, policy_divergence, split


class Row(NamedTuple):
    """A step of the environments that step together: views of a rollout, [b, ...] each."""

    observations: Tensor
    log_probs: Tensor
    actions: Tensor
    values: Tensor


class Rollout:
    """Up to t_max steps of B environments, kept on the device that learns; allocated once and filled anew each time.

    Args:
        t_max: T at most.
        n_envs: B.
        observation_shape: of one observation.
        observation_dtype: NumPy's.
        n_actions: A.
        device: of the tensors.
        parts: of the B columns, one after the other, each with the environments that step together.
    """

    def __init__(
        self,
        t_max: int,
        n_envs: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype[Any],
        n_actions: int,
        device: torch.device,
        parts: Sequence[slice] = (slice(None),),
    ) -> None:
        frame_dtype = torch.from_numpy(np.empty(0, dtype=observation_dtype)).dtype
        pin = device.type == "cuda"
        self.t_max = t_max
        self.length = 0  # T now
        self.complete_at = 0  # theta's version when it was complete
        self.observations = torch.zeros((t_max + 1, n_envs, *observation_shape), dtype=frame_dtype, device=device)
        self.state = torch.zeros((n_envs, 0), device=device)  # [B, S], of an LSTM, before the first step
        self.end_state = self.state  # [B, S], after the last step
        self.bootstrap = torch.zeros(n_envs, device=device)  # V of the observations after the last step
        self.log_probs = torch.zeros((t_max, n_envs, n_actions), device=device)  # of the policy that acted
        self.actions = torch.zeros((t_max, n_envs), dtype=torch.int64, device=device)
        self.values = torch.zeros((t_max, n_envs), device=device)  # of who acted
        self.has_values = False
        steps = (self.observations, self.log_probs, self.actions, self.values)
        self.rows = [[Row(*(step[t, part] for step in steps)) for part in parts] for t in range(t_max)]
        self.ends = [self.observations[t_max, part] for part in parts]  # what is seen after the last step
        # What the environments say arrives in main memory, and moves to the device once per rollout.
        self._rewards = torch.zeros((t_max, n_envs), pin_memory=pin)
        self._flags = torch.zeros((3, t_max, n_envs), dtype=torch.bool, pin_memory=pin)
        self._reward_rows = self._rewards.numpy()
        self._flag_rows = self._flags.numpy()
        self._device = device
        self._parts = parts
        self._stamps: list[Stamp] = []  # of each step's parts

    def start(self, observations: Tensor, state: Tensor) -> None:
        """Empties it; the first step is taken from these observations [B, ...] and this state [B, S]."""
        self.length = 0
        self._stamps.clear()
        self.observations[0].copy_(observations)
        self.state = state

    def add(
        self,
        part: int,
        stamp: Stamp,
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
    ) -> None:
        """Ends one step of a part, the last of which ends the step.

        Args:
            part: the next of them.
            stamp: when its actions were chosen.
            rewards: what its environments answered; this and the others are as long as the part.
            terminated: see `Batch`.
            truncated: likewise.
            valid: likewise.
        """
        t, columns = self.length, self._parts[part]
        self._reward_rows[t, columns] = rewards
        self._flag_rows[0, t, columns] = terminated
        self._flag_rows[1, t, columns] = truncated
        self._flag_rows[2, t, columns] = valid
        self._stamps.append(stamp)
        self.length = t + (part + 1 == len(self._parts))

    def batch(self) -> "Batch":
        """What was collected, on the device."""
        n = self.length
        terminated, truncated, valid = self._flags[:, :n].to(self._device, non_blocking=True)
        rewards = self._rewards[:n].to(self._device, non_blocking=True)
        return Batch(
            self.observations[:n],
            self.state,
            self.actions[:n],
            self.log_probs[:n],
            rewards,
            terminated,
            truncated,
            valid,
            self.bootstrap,
            values=self.values[:n] if self.has_values else None,
        )

    def lag(self, now: Stamp, mask: Tensor, taken: int | None = None) -> dict[str, Samples]:
        """lag_updates and its parts, lag_frames and lag_seconds of some samples, if they were learnt from now.

        Args:
            now: just before the update.
            mask: [T, B] bool, the samples.
            taken: theta's version when a learner took the rollout; None: that of now, as nobody else changes theta.
        """
        n_samples = torch.stack([mask[:, columns].sum(-1) for columns in self._parts], dim=-1).flatten()
        stamps = np.array(self._stamps)  # [T times parts, 3]
        taken = now.version if taken is None else taken
        ages = age(stamps, now) | split(stamps[:, 0], self.complete_at, taken, now.version)
        if mask.device.type == "cpu":
            each = np.repeat(np.stack(list(ages.values())), n_samples.numpy(), axis=1)
            return dict(zip(ages, each, strict=True))
        return {unit: Repeated(figures, n_samples, mask.numel()) for unit, figures in ages.items()}  # nobody waits


class Batch(NamedTuple):
    """Experience to learn from: T steps of B environments, or of B stretches padded to T."""

    observations: Tensor  # [T, B, ...]
    state: Tensor  # [B, S], of an LSTM, before the first step
    actions: Tensor  # [T, B], int64
    log_probs: Tensor  # [T, B, A], of the policy that acted
    rewards: Tensor  # [T, B]
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool; also where a stretch ends before T
    valid: Tensor  # [T, B] bool; False for phantoms and padding
    bootstrap: Tensor  # [B], V of the state after the last step
    lengths: Tensor | None = None  # [B] int64, of the stretches, 0 of those that fill it up; None: all are T
    values: Tensor | None = None  # [T, B], V of who acted when it acted; None: it was not asked

    @property
    def ends(self) -> Tensor:
        """[T, B] bool: the next step is of another episode. A phantom is the last step of nobody's."""
        return self.terminated | self.truncated | ~self.valid


def divergence(batch: Batch, log_probs: Tensor, mask: Tensor, values: Tensor | None = None) -> dict[str, Tensor]:
    """lag_kl_nats and importance_ratio of some samples, and value_lag if V of then and of now are known; as `lag.only`.

    Args:
        batch: with what acted.
        log_probs: [T, B, A], of now.
        mask: [T, B] bool, the samples.
        values: [T, B], V of now.
    """
    kl, ratio = policy_divergence(batch.log_probs, log_probs, batch.actions)
    diverged = {"lag_kl_nats": kl, "importance_ratio": ratio}
    if batch.values is not None and values is not None:
        diverged["value_lag"] = (values - batch.values).abs()
    return only(diverged, mask)
