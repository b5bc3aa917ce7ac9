"""Rollouts that finish in any order: agents who each act for themselves, and the slots that they fill (GA3C)."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from a3c_bench.acting.policy import Choice, to_device
from a3c_bench.core.lag import Stamp, age, split
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.rollout import Batch
from a3c_bench.envs import EnvSpec, Step, VectorEnv


class Experience:
    """Rollouts in main memory, allocated once: an agent fills a slot, a trainer reads it and sets it free.

    Args:
        n_slots: S.
        t_max: T, steps of a rollout at most.
        envs: for the shape of an observation and the number of actions.
        network: for the size of its state.
    """

    def __init__(self, n_slots: int, t_max: int, envs: EnvSpec | VectorEnv, network: ActorCritic) -> None:
        self.t_max = t_max
        self.lengths = np.zeros(n_slots, dtype=np.int64)  # steps so far
        self.observations = np.zeros((t_max, n_slots, *envs.observation_shape), dtype=envs.observation_dtype)
        self.state = np.zeros((n_slots, network.state_size), dtype=np.float32)  # of an LSTM, before the first step
        self.actions = np.zeros((t_max, n_slots), dtype=np.int64)
        self.log_probs = np.zeros((t_max, n_slots, envs.n_actions), dtype=np.float32)  # of the policy that acted
        self.rewards = np.zeros((t_max, n_slots), dtype=np.float32)
        self.terminated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.truncated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.bootstrap = np.zeros(n_slots, dtype=np.float32)  # V of the state after the last step, when it was seen
        self.stamps = np.zeros((t_max, n_slots, 3))  # version, frames and seconds when each action was chosen
        self.complete_at = np.zeros(n_slots)  # theta's version then
        self._free = deque(range(n_slots))

    def slot(self) -> int:
        """A free slot; there are enough for all who may hold one."""
        slot = self._free.popleft()
        self.lengths[slot] = 0
        return slot

    def set_free(self, slots: Sequence[int]) -> None:
        """Nobody reads these any more."""
        self._free.extend(slots)

    def batch(self, slots: Sequence[int], device: torch.device) -> Batch:
        """The rollouts [B] in these slots, padded at their ends to the longest."""
        lengths = self.lengths[slots]
        steps = slice(0, int(lengths.max()))
        ends, columns = lengths - 1, np.arange(len(slots))
        terminated = np.zeros((int(lengths.max()), len(slots)), dtype=bool)
        truncated = terminated.copy()
        terminated[ends, columns] = self.terminated[slots]
        # A rollout that goes on elsewhere ends like a truncated one: with the value of the state after it.
        truncated[ends, columns] = ~self.terminated[slots]
        parts = (
            self.observations[steps, slots],
            self.state[slots],
            self.actions[steps, slots],
            self.log_probs[steps, slots],
            self.rewards[steps, slots],
            terminated,
            truncated,
            np.arange(len(terminated))[:, None] < lengths,
            self.bootstrap[slots],
            lengths,
        )
        return Batch(*(to_device(part, device) for part in parts))

    def lag(self, slots: Sequence[int], keep: NDArray[np.bool_], taken: int, now: Stamp) -> dict[str, NDArray[Any]]:
        """lag_updates and its parts, lag_frames and lag_seconds of some samples, if they were learnt from now.

        Args:
            slots: [B], the rollouts'.
            keep: [T, B], the samples.
            taken: theta's version when a trainer took them.
            now: just before the update.
        """
        stamps = self.stamps[: len(keep), slots][keep]
        complete_at = np.broadcast_to(self.complete_at[slots], keep.shape)[keep]
        return age(stamps, now) | split(stamps[:, 0], complete_at, taken, now.version)


class Prediction(NamedTuple):
    """What theta says of B agents, in main memory."""

    log_probs: NDArray[np.float32]  # [B, A]
    values: NDArray[np.float32]  # [B]
    actions: NDArray[np.int64]  # [B]
    state: NDArray[np.float32]  # [B, S]
    stamp: Stamp

    @staticmethod
    def of(choice: Choice, stamp: Stamp) -> "Prediction":
        """What a policy chose at that stamp."""
        log_probs, values, actions, state = choice.on_host()
        return Prediction(log_probs.numpy(), values.numpy(), actions.numpy(), state.numpy(), stamp)

    def only(self, chosen: NDArray[np.bool_]) -> "Prediction":
        """For some agents [B]."""
        log_probs, values, actions, state, stamp = self
        return Prediction(log_probs[chosen], values[chosen], actions[chosen], state[chosen], stamp)


class Agents:
    """Where each agent is. One belongs to whichever thread has received it, so that nothing of it is locked.

    Args:
        envs: an agent each.
        network: for the size of its state.
        experience: they fill.
        n_agents: N_A, so many work; the others are parked.
    """

    def __init__(self, envs: VectorEnv, network: ActorCritic, experience: Experience, n_agents: int) -> None:
        self.envs = envs
        self.experience = experience
        self.n_wanted = n_agents
        self.n_working = envs.n_envs
        self.slots = np.array([experience.slot() for _ in range(envs.n_envs)])  # of their present rollouts
        self.state = np.zeros((envs.n_envs, network.state_size), dtype=np.float32)  # of the network, now
        self._parked: list[tuple[int, NDArray[Any]]] = []  # with what they saw last
        self._parking = threading.Lock()

    def answer(self, step: Step) -> None:
        """Keeps what the environments answered to the last actions."""
        slots = self.slots[step.env_ids[step.valid]]
        self.experience.rewards[self.experience.lengths[slots], slots] = step.rewards[step.valid]
        self.experience.lengths[slots] += 1
        self.state[step.env_ids[~step.valid]] = 0.0  # new games

    def complete(
        self, step: Step, values: NDArray[np.float32], complete: NDArray[np.bool_], version: int = 0
    ) -> list[int]:
        """The slots of agents whose rollouts are complete [B], with the values of where they lead; they begin anew.

        Theta is of this version now.
        """
        agents, experience = step.env_ids[complete], self.experience
        slots = self.slots[agents]
        experience.terminated[slots] = (step.terminated & step.valid)[complete]
        experience.truncated[slots] = (step.truncated & step.valid)[complete]
        experience.bootstrap[slots] = values[complete]
        experience.complete_at[slots] = version
        self.slots[agents] = [experience.slot() for _ in slots]
        return slots.tolist()

    def choose(self, ids: NDArray[np.int32], observations: NDArray[Any], prediction: Prediction) -> None:
        """Keeps the actions chosen for the observations [B, ...] of some agents, and the network's state after them."""
        experience = self.experience
        slots = self.slots[ids]
        rows = experience.lengths[slots]
        fresh = rows == 0
        experience.state[slots[fresh]] = self.state[ids[fresh]]
        self.state[ids] = prediction.state
        experience.observations[rows, slots] = observations
        experience.actions[rows, slots] = prediction.actions
        experience.log_probs[rows, slots] = prediction.log_probs
        experience.stamps[rows, slots] = prediction.stamp

    def park(self, step: Step) -> NDArray[np.bool_]:
        """Which agents [B] of a step go on; while too many work, those at the start of a rollout do not."""
        going = np.ones(len(step.env_ids), dtype=bool)
        if self.n_working > self.n_wanted:
            with self._parking:
                for i in np.flatnonzero(self.experience.lengths[self.slots[step.env_ids]] == 0):
                    if self.n_working > self.n_wanted:
                        going[i] = False
                        self.n_working -= 1
                        self._parked.append((int(step.env_ids[i]), step.observations[i].copy()))
        return going

    def wake(self, step: Step) -> Step:
        """The step, and with it parked agents that are to work again, as if they had just been received."""
        if self.n_working >= self.n_wanted:
            return step
        with self._parking:
            n = min(self.n_wanted - self.n_working, len(self._parked))
            woken, self._parked = self._parked[:n], self._parked[n:]
            self.n_working += n
        if not woken:
            return step
        ids, observations = zip(*woken, strict=True)
        nothing = np.zeros(n, dtype=bool)
        return Step(
            np.append(step.env_ids, np.array(ids, dtype=np.int32)),
            np.concatenate([step.observations, np.stack(observations)]),
            np.append(step.rewards, np.zeros(n, dtype=np.float32)),
            np.append(step.terminated, nothing),
            np.append(step.truncated, nothing),
            np.append(step.valid, nothing),
            step.episodes,
        )
