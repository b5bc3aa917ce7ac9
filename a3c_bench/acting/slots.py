"""Rollouts that finish in any order: agents who each act for themselves, and the slots that they fill (GA3C)."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.acting.policy import Choice
from a3c_bench.core.compiled import padded, rounded_up
from a3c_bench.core.lag import Stamp, age, split
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.pacing import Unpaced
from a3c_bench.core.rollout import Batch
from a3c_bench.core.transfer import Transfer
from a3c_bench.envs import EnvSpec, Step, VectorEnv


class Experience:
    """Rollouts in main memory, allocated once: an agent fills a slot, a trainer reads it and sets it free.

    Args:
        n_slots: S.
        t_max: T, steps of a rollout at most.
        envs: for the shape of an observation and the number of actions.
        network: for the size of its state.
        pacing: is told when slots are free.
        keeps_ends: what followed the last step is kept, for who learns to value it.
    """

    def __init__(
        self,
        n_slots: int,
        t_max: int,
        envs: EnvSpec | VectorEnv,
        network: ActorCritic,
        pacing: Unpaced,
        keeps_ends: bool = False,
    ) -> None:
        self.t_max = t_max
        self.pacing = pacing
        self.lengths = np.zeros(n_slots, dtype=np.int64)  # steps so far
        self.observations = np.zeros((t_max, n_slots, *envs.observation_shape), dtype=envs.observation_dtype)
        self.state = np.zeros((n_slots, network.state_size), dtype=np.float32)  # of an LSTM, before the first step
        self.actions = np.zeros((t_max, n_slots), dtype=np.int64)
        self.log_probs = np.zeros((t_max, n_slots, envs.n_actions), dtype=np.float32)  # of the policy that acted
        self.values = np.zeros((t_max, n_slots), dtype=np.float32)  # likewise
        self.rewards = np.zeros((t_max, n_slots), dtype=np.float32)
        self.terminated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.truncated = np.zeros(n_slots, dtype=bool)  # by the last step
        self.bootstrap = np.zeros(n_slots, dtype=np.float32)  # V of the state after the last step, when it was seen
        self.stamps = np.zeros((t_max, n_slots, 3))  # version, frames and seconds when each action was chosen
        self.complete_at = np.zeros(n_slots)  # theta's version then
        self.keeps_ends = keeps_ends
        n_ends = n_slots if keeps_ends else 0
        self.end_observations = np.zeros((n_ends, *envs.observation_shape), dtype=envs.observation_dtype)
        self.end_state = np.zeros((n_ends, network.state_size), dtype=np.float32)
        self._free = deque(range(n_slots))

    def take(self, n: int) -> list[int]:
        """So many free slots; there are enough for all who may hold one."""
        slots = [self._free.popleft() for _ in range(n)]
        self.lengths[slots] = 0
        return slots

    def set_free(self, slots: Sequence[int]) -> None:
        """Nobody reads these any more; the update from them, if there was any, is counted."""
        self.pacing.learnt(slots)
        self._free.extend(slots)

    def ends(self, slots: Sequence[int], to_device: Transfer, unit: int = 0) -> tuple[Tensor, Tensor]:
        """What followed the rollouts [B] in these slots: observations [B, ...], and the state [B, S] of the network.

        Args:
            slots: [B].
            to_device: that learns.
            unit: see `batch`.
        """
        parts = {"end_observations": self.end_observations[slots], "end_state": self.end_state[slots]}
        size = rounded_up(len(slots), unit) if unit else len(slots)
        observations, state = (to_device(name, padded(part, size)) for name, part in parts.items())
        return observations, state

    def batch(self, slots: Sequence[int], to_device: Transfer, unit: int = 0) -> Batch:
        """The rollouts [B] in these slots, padded at their ends to the longest.

        Args:
            slots: [B].
            to_device: that learns.
            unit: not 0: padded to t_max, and with rollouts of length 0 to a multiple of so many, for few shapes.
        """
        lengths = self.lengths[slots]
        steps = slice(0, int(lengths.max()))
        ends, columns = lengths - 1, np.arange(len(slots))
        terminated = np.zeros((int(lengths.max()), len(slots)), dtype=bool)
        truncated = terminated.copy()
        terminated[ends, columns] = self.terminated[slots]
        # A rollout that goes on elsewhere ends like a truncated one: with the value of the state after it.
        truncated[ends, columns] = ~self.terminated[slots]
        by_step: dict[str, NDArray[Any]] = {
            "observations": self.observations[steps, slots],
            "actions": self.actions[steps, slots],
            "log_probs": self.log_probs[steps, slots],
            "rewards": self.rewards[steps, slots],
            "terminated": terminated,
            "truncated": truncated,
            "valid": self.valid(slots),
            "values": self.values[steps, slots],
        }
        by_rollout: dict[str, NDArray[Any]] = {
            "state": self.state[slots],
            "bootstrap": self.bootstrap[slots],
            "lengths": lengths,
        }
        if unit:
            shape = (self.t_max, rounded_up(len(slots), unit))
            by_step = {name: padded(part, *shape) for name, part in by_step.items()}
            by_rollout = {name: padded(part, shape[1]) for name, part in by_rollout.items()}
        return Batch(**{name: to_device(name, part) for name, part in {**by_step, **by_rollout}.items()})

    def chosen_since(self, slots: Sequence[int], version: int) -> NDArray[np.bool_]:
        """Which samples [T, B] of the rollouts [B] in these slots theta of this version or a later one chose."""
        return self.valid(slots) & (self.stamps[: self.lengths[slots].max(), slots, 0] >= version)

    def valid(self, slots: Sequence[int]) -> NDArray[np.bool_]:
        """Where there are samples [T, B] of the rollouts [B] in these slots, the longest of which has T."""
        lengths = self.lengths[slots]
        return np.arange(lengths.max())[:, None] < lengths

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
        log_probs, values, actions, state = choice
        return Prediction(log_probs.numpy(), values.numpy(), actions.numpy(), state.numpy(), stamp)

    def only(self, chosen: NDArray[np.bool_]) -> "Prediction":
        """For some agents [B]."""
        log_probs, values, actions, state, stamp = self
        return Prediction(log_probs[chosen], values[chosen], actions[chosen], state[chosen], stamp)


class Agents:
    """Where each agent is. One belongs to whichever thread has received it, so that nothing of it is locked.

    Args:
        envs: an agent each; they are received one by one if the pacing of their experience holds agents back.
        network: for the size of its state.
        experience: they fill.
        n_agents: N_A, so many work; the others are parked.
        batch_size: B, so many are received at once; fewer while agents are held back.
    """

    def __init__(
        self, envs: VectorEnv, network: ActorCritic, experience: Experience, n_agents: int, batch_size: int
    ) -> None:
        self.envs = envs
        self.experience = experience
        self.pacing = experience.pacing
        self.n_wanted = n_agents
        self.n_working = envs.n_envs
        self.batch_size = batch_size
        self._n_sent = envs.n_envs  # and not received: they all start
        self.slots = np.array(experience.take(envs.n_envs))  # of their present rollouts
        self.state = np.zeros((envs.n_envs, network.state_size), dtype=np.float32)  # of the network, now
        self._parked: list[tuple[int, NDArray[Any]]] = []  # with what they saw last
        self._parking = threading.Lock()
        self._nobody = _nobody(envs)

    @property
    def n_held_back(self) -> int:
        """Agents that pacing lets wait now."""
        return max(0, self.n_wanted - self.n_working)

    def receive(self) -> Step:
        """The first B agents to have finished a step; while some are held back, that share of the others, or nobody."""
        if not self.pacing.held_back:
            return self.envs.receive()
        share = math.ceil(self.batch_size * self.n_working / self.n_wanted)
        n = min(share, self.batch_size, self._n_sent)
        if n == 0:
            return self._nobody
        step = self.envs.receive(n)
        self._sent(-n)
        return step

    def send(self, actions: NDArray[np.int32], ids: NDArray[np.int32]) -> None:
        """Lets agents step."""
        self.envs.send(actions, ids)
        if self.pacing.held_back:
            self._sent(len(ids))

    def _sent(self, n: int) -> None:
        with self._parking:
            self._n_sent += n

    def answer(self, step: Step) -> int:
        """Keeps what the environments answered to the last actions; gives how many these were."""
        ids, rewards, n_steps = step.env_ids, step.rewards, int(np.count_nonzero(step.valid))
        if n_steps < len(ids):
            self.state[ids[~step.valid]] = 0.0  # new games
            ids, rewards = ids[step.valid], rewards[step.valid]
        slots = self.slots[ids]
        self.experience.rewards[self.experience.lengths[slots], slots] = rewards
        self.experience.lengths[slots] += 1
        return n_steps

    def complete(
        self, step: Step, values: NDArray[np.float32], complete: NDArray[np.bool_], version: int = 0
    ) -> list[int]:
        """The slots of agents whose rollouts are complete [B], with the values of where they lead; they begin anew.

        Theta is of this version now.
        """
        agents, experience = step.env_ids[complete], self.experience
        if not len(agents):
            return []
        slots = self.slots[agents]
        experience.terminated[slots] = (step.terminated & step.valid)[complete]
        experience.truncated[slots] = (step.truncated & step.valid)[complete]
        experience.bootstrap[slots] = values[complete]
        experience.complete_at[slots] = version
        if experience.keeps_ends:
            experience.end_observations[slots] = step.observations[complete]
            experience.end_state[slots] = self.state[agents]
        self.slots[agents] = experience.take(len(slots))
        return slots.tolist()

    def choose(self, ids: NDArray[np.int32], observations: NDArray[Any], prediction: Prediction) -> None:
        """Keeps the actions chosen for the observations [B, ...] of some agents, and the network's state after them."""
        experience = self.experience
        slots = self.slots[ids]
        rows = experience.lengths[slots]
        if self.state.size:
            fresh = rows == 0
            experience.state[slots[fresh]] = self.state[ids[fresh]]
            self.state[ids] = prediction.state
        experience.observations[rows, slots] = observations
        experience.actions[rows, slots] = prediction.actions
        experience.log_probs[rows, slots] = prediction.log_probs
        experience.values[rows, slots] = prediction.values
        experience.stamps[rows, slots] = prediction.stamp

    def park(self, step: Step, version: int) -> NDArray[np.bool_] | None:
        """Which agents [B] of a step go on, with actions that theta of this version chose; None: all.

        While too many work, or those on their way suffice, those at the start of a rollout do not.
        """
        if self.n_working <= self.n_wanted and not self.pacing.held_back:
            return None
        going = np.ones(len(step.env_ids), dtype=bool)
        with self._parking:
            slots = self.slots[step.env_ids]
            for i in np.flatnonzero(self.experience.lengths[slots] == 0):
                if self.n_working > self.n_wanted or not self.pacing.begin(slots[i], version):
                    self.pacing.withdraw(slots[i])
                    going[i] = False
                    self.n_working -= 1
                    self._parked.append((int(step.env_ids[i]), step.observations[i].copy()))
        return None if np.count_nonzero(going) == len(going) else going

    def wake(self, step: Step) -> Step:
        """The step, and before it parked agents that may work again, as if they had just been received.

        They come first, so that `park` lets nobody overtake who has waited for longer.
        """
        if self.n_working >= self.n_wanted or not self._parked:
            return step
        with self._parking:
            n = int(min(self.n_wanted - self.n_working, len(self._parked), self.pacing.room()))
            woken, self._parked = self._parked[:n], self._parked[n:]
            self.n_working += n
        if not woken:
            return step
        ids, observations = zip(*woken, strict=True)
        nothing = np.zeros(n, dtype=bool)
        return Step(
            np.append(np.array(ids, dtype=np.int32), step.env_ids),
            np.concatenate([np.stack(observations), step.observations]),
            np.append(np.zeros(n, dtype=np.float32), step.rewards),
            np.append(nothing, step.terminated),
            np.append(nothing, step.truncated),
            np.append(nothing, step.valid),
            step.episodes,
        )


def _nobody(envs: VectorEnv) -> Step:
    """A step of no agent."""
    none = np.zeros(0, dtype=bool)
    observations = np.zeros((0, *envs.observation_shape), dtype=envs.observation_dtype)
    return Step(np.zeros(0, dtype=np.int32), observations, np.zeros(0, dtype=np.float32), none, none, none, [])
