"""Replay memory: the newest steps of N environments, from which batches are drawn (Mnih et al. 2015).

Each environment has a ring of rows, one row per observation that it showed:

    row       0    1    2    3    4    5    6        of one environment; the slot of a row is row % capacity
    frame     s_0  s_1  s_2  s_3  s_0  s_1  s_2
    action    a_0  a_1  a_2   -   a_0  a_1   -       row 3 shows how the first game ended, and nothing was done there;
    reward    r_0  r_1  r_2   -   r_0  r_1   -       row 6 is the newest, whose action has not come back yet

A row holds what was chosen in it and what that brought; the next row holds where it led. Of a stack of k frames only
the newest is stored: a million steps of 84x84 take 7.1 GB and not 28. EnvPool's first stack of a game is k times its
first frame, and stacks go on across a lost life, so they can be rebuilt bit by bit as they were.

EnvPool shows the last observation of a game before it resets, so a game that a time limit cut is bootstrapped from
where it was cut: no step has to be left out. The phantom step of the reset is what leaves row 3 without an action.

Steps are drawn in proportion to priority^alpha (Schaul et al. 2016); alpha 0 draws all alike, as Mnih et al. do. The
sum tree that does it also knows which steps can be drawn, for the others weigh 0: those whose n-step future is not
known yet, and those whose stack has lost a frame to the ring's head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.core.arrays import Allocate, in_memory
from a3c_bench.core.lag import Stamp, age, split
from a3c_bench.core.replay_layout import layout
from a3c_bench.core.sum_tree import SumTree

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_ACTED, _TERMINATED, _TRUNCATED = 1, 2, 4  # flags of a row; without _ACTED nothing was chosen there


class Sample(NamedTuple):
    """B steps, or rather stretches of m <= n_step steps: shorter where the episode ended."""

    observations: Tensor  # [B, ...], s_t as the environment gave it
    actions: Tensor  # [B] int64, a_t
    rewards: Tensor  # [B], r_t + gamma r_{t+1} + ... + gamma^(m-1) r_{t+m-1}
    discounts: Tensor  # [B], of the value of the next observations: gamma^m, or 0 after a termination
    next_observations: Tensor  # [B, ...], s_{t+m}
    weights: Tensor  # [B], importance weights, at most 1
    indices: NDArray[np.int64]  # [B], row * n_envs + environment: the step's name in `update_priorities`
    versions: NDArray[np.int64]  # [B], of the policy that chose a_t, in updates
    frames_at_choice: NDArray[np.int64]  # [B], of the whole run, when a_t was chosen
    seconds_at_choice: NDArray[np.float64]  # [B]
    frames_at_insertion: NDArray[np.int64]  # [B], of the whole run, when the step was added here

    def to(self, move: Callable[[str, Tensor], Tensor]) -> "Sample":
        """The same with its tensors where `move` takes them, by name: to a device, say."""
        parts = self._asdict().items()
        moved: dict[str, Any] = {name: move(name, part) for name, part in parts if isinstance(part, Tensor)}
        return self._replace(**moved)

    def origins(self) -> NDArray[np.float64]:
        """Where the samples come from, [B, 4]: what `lag_of` wants to know."""
        columns = (self.versions, self.frames_at_choice, self.seconds_at_choice, self.frames_at_insertion)
        return np.array(columns, dtype=np.float64).T

    def lag(self, now: Stamp) -> dict[str, NDArray[np.float64]]:
        """The lag of these samples by unit, if they are learnt from now."""
        return lag_of(self.origins(), now)


def lag_of(origins: NDArray[np.float64], now: Stamp, drawn: int | None = None) -> dict[str, NDArray[np.float64]]:
    """The lag by unit of samples with these origins [B, 4], if they are learnt from now.

    The split of lag_updates has no part of a rollout, which is one step here: the time in the replay is the queue's,
    and so is the age that the copy of theta had which chose the action.

    Args:
        origins: as `Sample.origins` gives them.
        now: just before the update.
        drawn: version of the parameters when they were drawn; None: that of now. Steps that were stored by others
            between the two readings count as drawn when they were chosen.
    """
    chosen = origins[:, 0]
    taken = np.maximum(chosen, now.version if drawn is None else drawn)
    parts = split(chosen, chosen, taken, now.version)
    return age(origins[:, :3], now) | parts | {"replay_age_frames": now.frames - origins[:, 3]}


class Replay:
    """The newest steps of N environments; see the top of this file. One thread, or process, at a time.

    Args:
        capacity_per_env: rows of each environment's ring, at least stack + n_step. A game takes one per step and one.
        n_envs: N.
        observation_shape: of one observation; with a stack its first axis is k frames, the newest last.
        observation_dtype: NumPy's.
        stack: k, the frames in an observation; 1 where observations are no stacks.
        n_step: n, steps whose rewards are added up before the value of the state reached stands for the rest.
        gamma: discount per agent step.
        priority_exponent: alpha; 0 draws all steps alike.
        allocate: makes the arrays. What an earlier attempt left in them counts only after `load_state_dict`.
        allocate_state: makes those that tell what the others hold; zeros in a new replay. Processes that are given the
            same arrays by both share one replay; a lock is theirs to keep.

    Raises:
        ValueError: sizes that do not go together.
    """

    def __init__(
        self,
        capacity_per_env: int,
        n_envs: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype[Any],
        *,
        stack: int,
        n_step: int,
        gamma: float,
        priority_exponent: float = 0.0,
        allocate: Allocate = in_memory,
        allocate_state: Allocate = in_memory,
    ) -> None:
        if n_step < 1 or capacity_per_env < stack + n_step:
            raise ValueError(
                f"a replay of {capacity_per_env} rows per environment has no room for stacks of {stack} frames and "
                f"n_step={n_step}: it needs at least {stack + max(n_step, 1)}"
            )
        self.n_envs = n_envs
        self._capacity = capacity_per_env
        self._observation_shape = observation_shape
        self._stack = stack
        self._n_step = n_step
        self._alpha = priority_exponent
        self._discounts = gamma ** np.arange(n_step + 1)  # [n + 1]
        self._all_ids = np.arange(n_envs)
        self._starts = self._all_ids * capacity_per_env  # the first slot of each environment
        self._ring = np.array(capacity_per_env)  # NumPy is quicker with arrays than with numbers, and so below
        self._ahead = np.arange(stack, dtype=np.uint8)
        self._longer = np.minimum(self._ahead + 1, stack - 1).astype(np.uint8)  # the next row's history, by a row's
        self._back = np.arange(n_step - 1, -1, -1)
        self._is_full = self._back == n_step - 1  # the step whose n-step future ends here
        self._around = np.arange(-n_step, stack)  # of a row: those that it concerns
        whole = np.dtype(np.int64)
        self._written = allocate_state("written", (n_envs,), whole)  # rows so far; the newest is one less
        self._waiting = allocate_state("waiting", (n_envs,), whole)  # newest steps whose n-step future is not known yet
        self._ready_count = allocate_state("ready_count", (1,), whole)
        self._largest = allocate_state("largest", (1,), np.dtype(np.float64))  # priority that was ever given
        self._tree = SumTree(n_envs * capacity_per_env, allocate_state)
        wanted = layout(n_envs * capacity_per_env, observation_shape, observation_dtype, stack)
        self._arrays = {name: allocate(name, shape, dtype) for name, (shape, dtype) in wanted.items()}
        columns = {name: np.asarray(array) for name, array in self._arrays.items()}  # plain views: memmap's are slower
        self._frames = columns["frames"]
        self._rows = columns["rows"]
        self._flags = columns["flags"]
        self._history = columns["history"]
        self._actions = columns["actions"]
        self._rewards = columns["rewards"]
        self._priorities = columns["priorities"]
        self._versions = columns["versions"]
        self._frames_at_choice = columns["frames_at_choice"]
        self._seconds_at_choice = columns["seconds_at_choice"]
        self._frames_at_insertion = columns["frames_at_insertion"]

    @staticmethod
    def bytes_needed(
        capacity_per_env: int,
        n_envs: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype[Any],
        *,
        stack: int,
    ) -> int:
        """The bytes that a full replay takes: its arrays, and the sum tree (in memory wherever the arrays are)."""
        n_slots = n_envs * capacity_per_env
        columns = layout(n_slots, observation_shape, observation_dtype, stack).values()
        arrays = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in columns)
        return arrays + SumTree.bytes_needed(n_slots)

    def __len__(self) -> int:
        """How many steps can be drawn now."""
        return int(self._ready_count[0])

    @property
    def _max_priority(self) -> float:
        return max(1.0, float(self._largest[0]))

    @property
    def persistent(self) -> bool:
        """Whether a resumed run finds what was stored. If not, it begins with an empty replay and has to fill it."""
        return isinstance(self._arrays["frames"], np.memmap)

    # --- Adding -------------------------------------------------------------------------------------------------------

    def start(self, observations: NDArray[Any], env_ids: NDArray[np.integer] | None = None) -> None:
        """New games begin in the environments `env_ids` [B], or everywhere; those that were going on are cut off.

        Args:
            observations: [B, ...], the first of each game.
            env_ids: None: all N.

        Raises:
            ValueError: stacks that do not repeat one frame.
        """
        ids = self._all_ids if env_ids is None else np.asarray(env_ids, dtype=np.int64)
        self._cut_off(ids)
        rows = self._written[ids]
        lost = self._append(ids, rows, self._near(ids, rows), observations, np.zeros(len(ids), dtype=np.bool_))
        self._change(lost, lost[:0])

    def add(
        self,
        env_ids: NDArray[np.integer],
        observations: NDArray[Any],
        actions: NDArray[np.integer],
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
        stamp: Stamp,
        frames: int,
    ) -> None:
        """Takes one step of the environments `env_ids` [B], each at most once.

        Args:
            env_ids: all of them, or any.
            observations: [B, ...], after the step; the last ones of a game where it ended.
            actions: [B], what was chosen before it.
            rewards: [B].
            terminated: [B], the return that is learnt from ends here: game over, or a life lost.
            truncated: [B], a time limit ended the game here.
            valid: [B], False for phantom steps: the observation is the first of a new game.
            stamp: where the run stood when the actions were chosen.
            frames: simulated by the whole run until now, for replay_age_frames.

        Raises:
            ValueError: a step of a game that was not started, or a first stack that does not repeat one frame.
        """
        ids = np.asarray(env_ids, dtype=np.int64)
        rows = self._written[ids]
        if np.count_nonzero(rows) < len(ids) and (early := valid & (rows == 0)).any():
            raise ValueError(f"environment {ids[early][0]} took a step before its first observation")
        near, all_acted = self._near(ids, rows), np.count_nonzero(valid) == len(ids)
        acted = slice(None) if all_acted else valid  # a slice costs less
        slots, ended = near[acted, self._n_step - 1], valid & (terminated | truncated)
        self._flags[slots] = _ACTED
        if np.count_nonzero(ended):
            self._flags[slots] += (_TERMINATED * terminated + _TRUNCATED * truncated)[acted].astype(np.uint8)
        self._actions[slots] = actions[acted]
        self._rewards[slots] = rewards[acted]
        self._priorities[slots] = self._max_priority  # so that each is learnt from soon
        self._versions[slots] = stamp.version
        self._frames_at_choice[slots] = stamp.frames
        self._seconds_at_choice[slots] = stamp.seconds
        self._frames_at_insertion[slots] = frames
        if not all_acted:
            self._cut_off(ids[~valid])
        lost = self._append(ids, rows, near, observations, valid)
        self._change(lost, self._known(ids, near, self._waiting[ids] + valid, ended))

    def _near(self, env_ids: _Ints, rows: _Ints) -> _Ints:
        """The slots [B, n + k] about the rows [B]: of the n rows before, of themselves, and of the k - 1 after them."""
        return self._slots(env_ids[:, np.newaxis], rows[:, np.newaxis] + self._around)

    def _append(self, env_ids: _Ints, rows: _Ints, near: _Ints, observations: NDArray[Any], goes_on: _Bools) -> _Ints:
        """Writes the next rows [B], where games go on or begin; gives the slots of those that lose a frame by it."""
        stacks = observations.reshape(len(env_ids), self._stack, *self._frames.shape[1:])
        if np.count_nonzero(goes_on) < len(rows) and (stacks[~goes_on, :-1] != stacks[~goes_on, -1:]).any():
            raise ValueError("the first observation of a game is not a stack that repeats one frame")
        before, slots, ahead = near[:, self._n_step - 1], near[:, self._n_step], near[:, self._n_step :]
        lost = ahead[(self._history[ahead] >= self._ahead) & self._tree[ahead].astype(np.bool_)]
        # First of all, so that a run that is killed here and goes on later knows that the old row is gone.
        self._rows[slots] = rows
        self._flags[slots] = 0
        self._history[slots] = self._longer[self._history[before]] * goes_on
        self._frames[slots] = stacks[:, -1]
        self._written[env_ids] = rows + 1
        return lost

    def _known(self, env_ids: _Ints, near: _Ints, waiting: _Ints, ended: _Bools) -> _Ints:
        """The slots of the steps whose future is known now that each environment [B] has come to its next row.

        That is the step n rows before; and all that wait, so many [B], where an episode has ended [B].
        """
        self._waiting[env_ids] = np.where(ended, 0, np.minimum(waiting, self._n_step - 1))
        return near[:, : self._n_step][(self._back < waiting[:, np.newaxis]) & (ended[:, np.newaxis] | self._is_full)]

    def _change(self, lost: _Ints, known: _Ints) -> None:
        """Bars the steps in some slots, and lets those in others be drawn."""
        slots = np.concatenate([lost, known])
        weights = self._priorities[slots] ** self._alpha
        weights[: len(lost)] = 0.0
        self._tree[slots] = weights
        self._ready_count[0] += len(known) - len(lost)

    def _cut_off(self, env_ids: NDArray[np.int64]) -> None:
        """Makes games that are abandoned without an end truncated ones: their newest observation is their last."""
        rows = self._written[env_ids] - 2  # the newest step
        slots = self._slots(env_ids, rows)
        unfinished = (rows >= 0) & (self._flags[slots] == _ACTED)
        self._flags[slots[unfinished]] |= _TRUNCATED
        ids, rows = env_ids[unfinished], rows[unfinished]
        known = self._known(ids, self._near(ids, rows + 1), self._waiting[ids], np.ones(len(ids), dtype=np.bool_))
        self._change(known[:0], known)

    # --- Drawing ------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, generator: np.random.Generator, beta: float = 0.0) -> Sample:
        """Draws B steps, with replacement.

        Args:
            batch_size: B.
            generator: the only source of chance: same contents and same state, same sample.
            beta: how far the importance weights (N P(i))^-beta / max_j (N P(j))^-beta make up for the priorities;
                the maximum is the batch's.

        Raises:
            ValueError: no step can be drawn yet.
        """
        if len(self) == 0:
            raise ValueError("no step of this replay can be drawn yet")
        masses = generator.random(batch_size)
        if self._alpha > 0.0:  # one from each of B equal ranges (Schaul et al. 2016, appendix B.2.1)
            masses = (np.arange(batch_size) + masses) / batch_size
        slots = self._tree.find(masses * self._tree.total)
        if beta == 0.0:
            return self._gather(slots, np.ones(batch_size))
        shares = self._tree[slots]  # N and the total cancel out
        return self._gather(slots, (shares / shares.min()) ** -beta)

    def update_priorities(self, indices: NDArray[np.int64], priorities: NDArray[np.floating]) -> None:
        """Gives steps new priorities [B], e.g. |TD error| + epsilon; those that were overwritten meanwhile are ignored.

        Raises:
            ValueError: a priority that is not finite, or under which a step would never be drawn again.
        """
        priorities = priorities.astype(np.float64)
        if not (np.isfinite(priorities) & (np.maximum(priorities, 0.0) ** self._alpha > 0.0)).all():
            raise ValueError(f"priorities have to be finite and above 0, not {priorities.min()} to {priorities.max()}")
        rows, env_ids = np.divmod(indices, self.n_envs)
        slots = self._slots(env_ids, rows)
        still_there = (self._rows[slots] == rows) & (self._tree[slots] > 0.0)
        slots = slots[still_there]
        self._priorities[slots] = priorities[still_there]
        self._tree[slots] = self._priorities[slots] ** self._alpha
        self._largest[:] = max(self._max_priority, float(priorities.max()))

    def _gather(self, slots: NDArray[np.int64], weights: NDArray[np.float64]) -> Sample:
        env_ids, rows = slots // self._capacity, self._rows[slots]
        steps = np.arange(self._n_step)
        stretch = self._slots(env_ids[:, np.newaxis], rows[:, np.newaxis] + steps)  # [B, n]
        flags = self._flags[stretch]
        ends = flags > _ACTED
        ends[:, -1] = True
        last = ends.argmax(1)  # of the stretch: the first end, or the last row
        n_steps, within = last + 1, steps <= last[:, np.newaxis]  # m; [B, n]
        terminated = (within & ((flags & _TERMINATED) != 0)).any(1)
        rewards = np.where(within, self._rewards[stretch], 0.0) @ self._discounts[:-1]
        discounts = np.where(terminated, 0.0, self._discounts[n_steps])
        observations, next_observations = self._stacks(env_ids, np.array([rows, rows + n_steps]))
        return Sample(
            torch.from_numpy(observations),
            torch.from_numpy(self._actions[slots]),
            torch.from_numpy(rewards.astype(np.float32)),
            torch.from_numpy(discounts.astype(np.float32)),
            torch.from_numpy(next_observations),
            torch.from_numpy(weights.astype(np.float32)),
            rows * self.n_envs + env_ids,
            self._versions[slots],
            self._frames_at_choice[slots],
            self._seconds_at_choice[slots],
            self._frames_at_insertion[slots],
        )

    def _stacks(self, env_ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Observations [T, B, ...] of T rows [T, B] of each of the environments [B]."""
        history = self._history[self._slots(env_ids, rows)]
        back = np.minimum(self._ahead[::-1], history[..., np.newaxis])  # [T, B, k]; a game's first frame repeats
        frames = self._frames[self._slots(env_ids[:, np.newaxis], rows[..., np.newaxis] - back)]  # [T, B, k, ...]
        return frames.reshape(*rows.shape, *self._observation_shape)

    def _slots(self, env_ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._starts[env_ids] + rows % self._ring

    # --- Resuming -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside the files: where the rings' heads are; nothing if not `persistent`.

        The files go on changing after this. `load_state_dict` finds out what the checkpoint can still rely on.
        """
        if not self.persistent:
            return {}
        for array in self._arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        return {"written": torch.from_numpy(self._written.copy()), "max_priority": self._max_priority}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint, with the steps up to it that are still there; empty if not `persistent`.

        Rows that were written after the checkpoint do not count and are written again. In their slots stood the oldest
        rows, which are gone. The games of the checkpoint are over, as truncated ones: environments start anew.
        Priorities are those in the files, so perhaps newer than the checkpoint.

        Raises:
            ValueError: the checkpoint is of another number of environments.
        """
        if not self.persistent:
            return
        written = state["written"].numpy()
        if written.shape != self._written.shape:
            raise ValueError(f"the replay was of {len(written)} environments, not of {self.n_envs}")
        self._written[:] = written
        self._waiting[:] = 0
        self._largest[:] = float(state["max_priority"])
        newest = self._written - 1
        self._flags[self._slots(self._all_ids, newest)] = 0  # what was done there came after the checkpoint
        self._cut_off(self._all_ids)

        by_env = (self.n_envs, self._capacity)
        rows, flags, history = (x.reshape(by_env) for x in (self._rows, self._flags, self._history))
        age = (newest[:, np.newaxis] - np.arange(self._capacity)) % self._capacity
        expected = newest[:, np.newaxis] - age  # the row of each slot; below 0 where there never was one
        present = (expected >= 0) & (rows == expected)
        oldest = self._written - present.sum(1)
        whole = rows - history >= oldest[:, np.newaxis]  # no frame of the stack is gone
        ready = np.flatnonzero(present & whole & ((flags & _ACTED) != 0))
        self._tree.clear()
        self._tree[ready] = self._priorities[ready] ** self._alpha
        self._ready_count[:] = len(ready)
