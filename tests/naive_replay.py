"""A replay as a list of whole observations, environments that behave as EnvPool's, and games of them."""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from a3c_bench.core.lag import Stamp
from a3c_bench.core.replay import Replay, Sample

GAMMA = 0.5  # powers of it are exact
NOTHING, ON, LIFE_LOST, GAME_OVER, TIME_UP, BOTH, ANEW = range(7)  # what becomes of an environment
# NOTHING: it does not step; ANEW: it begins another game without an end of the last, as when all are started anew
ENDS_GAME = (GAME_OVER, TIME_UP, BOTH)
NOW = Stamp(0, 0, 0.0)


class Shape(NamedTuple):
    """Sizes of a replay."""

    capacity: int  # per environment
    n_envs: int
    stack: int
    n_step: int
    channels: int  # of a frame; 0: observations are vectors of floats

    @property
    def observation(self) -> tuple[int, ...]:
        return (self.stack * self.channels, 1, 4) if self.channels else (2,)

    @property
    def dtype(self) -> "np.dtype[Any]":
        return np.dtype(np.uint8 if self.channels else np.float32)

    def make(self, **options: Any) -> Replay:
        sizes = {"stack": self.stack, "n_step": self.n_step, "gamma": GAMMA}
        return Replay(self.capacity, self.n_envs, self.observation, self.dtype, **(sizes | options))


class Batch(NamedTuple):
    """What one step brought, as `Replay.add` takes it."""

    env_ids: NDArray[np.int32]
    observations: NDArray[Any]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    stamp: Stamp
    frames: int


class World:
    """Environments that behave as EnvPool's, none of whose frames looks like another."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.n_frames = 0  # shown, of all environments
        self.stacks: list[deque[NDArray[Any]]] = [deque(maxlen=shape.stack) for _ in range(shape.n_envs)]
        self.resets_next = [False] * shape.n_envs

    def frame(self) -> NDArray[Any]:
        self.n_frames += 1
        if not self.shape.channels:
            return np.array([self.n_frames, -self.n_frames], dtype=np.float32)
        picture = np.array([self.n_frames], dtype="<u4").view(np.uint8).reshape(1, 1, 4)
        return np.concatenate([picture + channel for channel in range(self.shape.channels)]).astype(np.uint8)

    def observation(self, env_id: int) -> NDArray[Any]:
        return np.concatenate(self.stacks[env_id])

    def begin(self, env_id: int) -> NDArray[Any]:
        self.stacks[env_id].extend([self.frame()] * self.shape.stack)
        self.resets_next[env_id] = False
        return self.observation(env_id)

    def start(self) -> NDArray[Any]:
        return np.stack([self.begin(env_id) for env_id in range(self.shape.n_envs)])

    def step(self, what: list[int]) -> Batch:
        """One step; `what` becomes of each environment, unless its game was over: then it resets."""
        env_ids = [env_id for env_id, outcome in enumerate(what) if outcome != NOTHING][::-1]  # in any order
        rows = []
        for env_id in env_ids:
            outcome = what[env_id]
            if self.resets_next[env_id] or outcome == ANEW:
                rows.append((self.begin(env_id), 0.0, False, False, False))
                continue
            self.stacks[env_id].append(self.frame())
            self.resets_next[env_id] = outcome in ENDS_GAME
            reward = float(self.n_frames % 5 - 2)
            terminated, truncated = outcome in (LIFE_LOST, GAME_OVER, BOTH), outcome in (TIME_UP, BOTH)
            rows.append((self.observation(env_id), reward, terminated, truncated, True))
        observations, rewards, terminated, truncated, valid = zip(*rows, strict=True)
        n = self.n_frames
        return Batch(
            np.array(env_ids, dtype=np.int32),
            np.stack(observations),
            np.arange(n, n + len(rows)),
            np.array(rewards, dtype=np.float32),
            np.array(terminated),
            np.array(truncated),
            np.array(valid),
            Stamp(3 * n, 4 * n, 0.25 * n),
            4 * n + 1,
        )


class NaiveStep(NamedTuple):
    """What was done in a row, and what came of it."""

    action: int
    reward: float
    terminated: bool
    truncated: bool
    stamp: Stamp
    frames: int


class Outcome(NamedTuple):
    """Of a step and those that follow it."""

    reward: float
    discount: float
    next_observation: NDArray[Any]


class NaiveEnv:
    """The rows of one environment, every one of them, with whole observations."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.observations: list[NDArray[Any]] = []
        self.first_row: list[int] = []  # of the game that each row belongs to
        self.steps: list[NaiveStep | None] = []
        self.priorities: list[float] = []
        self.cut_off: set[int] = set()  # rows in which a game was abandoned
        self.n_lost = 0  # oldest rows that a killed run has overwritten

    def append(self, observation: NDArray[Any], goes_on: bool) -> None:
        row = len(self.observations)
        self.observations.append(observation)
        self.first_row.append(self.first_row[-1] if goes_on else row)
        self.steps.append(None)
        self.priorities.append(0.0)

    def abandon(self) -> None:
        if self.steps:
            self.cut_off.add(len(self.steps) - 1)

    def outcome(self, row: int) -> Outcome | None:
        """None: not known yet."""
        total = 0.0
        for i in range(self.shape.n_step):
            step = self.steps[row + i]
            if step is None:
                known = row + i in self.cut_off
                return Outcome(total, GAMMA**i, self.observations[row + i]) if known else None
            total += GAMMA**i * step.reward
            if step.terminated or step.truncated:
                return Outcome(total, 0.0 if step.terminated else GAMMA ** (i + 1), self.observations[row + i + 1])
        return Outcome(total, GAMMA**self.shape.n_step, self.observations[row + self.shape.n_step])

    def can_be_drawn(self, row: int) -> bool:
        oldest = max(len(self.steps) - self.shape.capacity, self.n_lost)
        first_of_stack = max(row - self.shape.stack + 1, self.first_row[row])
        return self.steps[row] is not None and first_of_stack >= oldest and self.outcome(row) is not None


class NaiveReplay:
    """What `Replay` should be."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.envs = [NaiveEnv(shape) for _ in range(shape.n_envs)]
        self.max_priority = 1.0

    def start(self, observations: NDArray[Any]) -> None:
        for env, observation in zip(self.envs, observations, strict=True):
            env.abandon()
            env.append(observation, goes_on=False)

    def add(self, batch: Batch) -> None:
        for b, env_id in enumerate(batch.env_ids.tolist()):
            env = self.envs[env_id]
            if batch.valid[b]:
                ends = bool(batch.terminated[b]), bool(batch.truncated[b])
                step = NaiveStep(int(batch.actions[b]), float(batch.rewards[b]), *ends, batch.stamp, batch.frames)
                env.steps[-1] = step
                env.priorities[-1] = self.max_priority
            else:
                env.abandon()  # makes no difference where the game had ended
            env.append(batch.observations[b], bool(batch.valid[b]))

    def drawable(self) -> dict[int, float]:
        """Index and priority of the steps that can be drawn."""
        n_envs = self.shape.n_envs
        return {
            row * n_envs + env_id: env.priorities[row]
            for env_id, env in enumerate(self.envs)
            for row in range(len(env.steps))
            if env.can_be_drawn(row)
        }

    def update_priorities(self, indices: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        drawable = self.drawable()
        for index, priority in zip(indices.tolist(), priorities.tolist(), strict=True):
            if index in drawable:
                self.envs[index % self.shape.n_envs].priorities[index // self.shape.n_envs] = priority
            self.max_priority = max(self.max_priority, priority)


def assert_same_contents(replay: Replay, naive: NaiveReplay, alpha: float = 0.0, beta: float = 0.0) -> Sample | None:
    """Draws until surely every step has come, and compares each with the naive one; gives what was drawn."""
    drawable = naive.drawable()
    assert len(replay) == len(drawable)
    if not drawable:
        with pytest.raises(ValueError, match="no step"):
            replay.sample(1, np.random.default_rng(0))
        return None
    shares = np.array(list(drawable.values())) ** alpha
    n_draws = int(40 * shares.sum() / shares.min())
    sample = replay.sample(n_draws, np.random.default_rng(0), beta)
    drawn, first, counts = np.unique(sample.indices, return_index=True, return_counts=True)
    assert drawn.tolist() == sorted(drawable)
    if alpha > 0:  # equal ranges: a step whose share covers x of them is drawn x times, or the next whole numbers
        expected = np.array([drawable[index] for index in drawn.tolist()]) ** alpha / shares.sum() * n_draws
        assert np.abs(counts - expected).max() < 2.0
    rows = [(naive.envs[index % naive.shape.n_envs], index // naive.shape.n_envs) for index in drawn.tolist()]
    steps = [step for env, row in rows if (step := env.steps[row]) is not None]
    outcomes = [outcome for env, row in rows if (outcome := env.outcome(row)) is not None]
    assert len(steps) == len(outcomes) == len(rows)
    equal = np.testing.assert_array_equal
    equal(sample.observations[first].numpy(), np.stack([env.observations[row] for env, row in rows]))
    equal(sample.next_observations[first].numpy(), np.stack([outcome.next_observation for outcome in outcomes]))
    equal(sample.actions[first].numpy(), [step.action for step in steps])
    equal(sample.rewards[first].numpy(), [outcome.reward for outcome in outcomes])
    equal(sample.discounts[first].numpy(), [outcome.discount for outcome in outcomes])
    weights = (np.array([drawable[index] for index in drawn.tolist()]) ** alpha / shares.min()) ** -beta
    np.testing.assert_allclose(sample.weights[first].numpy(), weights, rtol=1e-5)
    stamps = sample.versions, sample.frames_at_choice, sample.seconds_at_choice, sample.frames_at_insertion
    equal(np.stack([stamp[first] for stamp in stamps], 1), [(*step.stamp, step.frames) for step in steps])
    return sample


def play(world: World, what: list[list[int]], *replays: Replay | NaiveReplay) -> None:
    """Plays on, and tells the replays."""
    for outcomes in what:
        if outcomes:
            batch = world.step(outcomes)
            for memory in replays:
                if isinstance(memory, Replay):
                    memory.add(*batch)
                else:
                    memory.add(batch)
        else:
            observations = world.start()
            for memory in replays:
                memory.start(observations)


FULL = Shape(capacity=30, n_envs=4, stack=4, n_step=3, channels=1)


def full_replay(seed: int = 0, **options: Any) -> Replay:
    """Rings that have wrapped around, at different places."""
    rng = np.random.default_rng(seed)
    what = rng.choice([NOTHING, ON, LIFE_LOST, GAME_OVER, TIME_UP], p=[0.2, 0.6, 0.1, 0.05, 0.05], size=(100, 4))
    replay = FULL.make(**options)
    play(World(FULL), [[], *(row for row in what.tolist() if any(row))], replay)
    return replay
