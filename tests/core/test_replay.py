"""The replay against a list of whole observations, under random games; n-step returns by hand; EnvPool's own stacks."""

import copy
import tempfile
import tracemalloc
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from a3c_bench.core.lag import Stamp
from a3c_bench.core.replay import Replay, Sample
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.storage import mapped_files
from a3c_bench.schema import EnvConfig

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


# --- Random games -----------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Rings that wrap around soon."""
    channels = draw(st.sampled_from([0, 1, 3]))
    stack = draw(st.integers(1, 4)) if channels else 1
    n_step = draw(st.integers(1, 4))
    return Shape(stack + n_step + draw(st.integers(0, 8)), draw(st.integers(1, 3)), stack, n_step, channels)


outcomes = st.sampled_from([NOTHING, ON, ON, ON, ON, ON, LIFE_LOST, GAME_OVER, TIME_UP, BOTH, ANEW])


def plays(n_envs: int, max_size: int = 40) -> st.SearchStrategy[list[list[int]]]:
    """What becomes of each environment in each step; an empty list: all games are abandoned and new ones begin."""
    step = st.lists(outcomes, min_size=n_envs, max_size=n_envs).filter(any)
    return st.lists(st.one_of(step, step, step, step, step, step, st.just([])), max_size=max_size)


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


@given(data=st.data(), shape=shapes())
@settings(deadline=None, max_examples=80)
def test_against_a_list_of_whole_observations(data: st.DataObject, shape: Shape) -> None:
    world, replay, naive = World(shape), shape.make(), NaiveReplay(shape)
    play(world, [[]], replay, naive)
    assert_same_contents(replay, naive)
    for _ in range(3):
        play(world, data.draw(plays(shape.n_envs)), replay, naive)
        assert_same_contents(replay, naive)


@given(data=st.data(), shape=shapes(), alpha=st.sampled_from([0.5, 1.0]), beta=st.sampled_from([0.0, 0.4, 1.0]))
@settings(deadline=None, max_examples=60)
def test_priorities_against_a_list(data: st.DataObject, shape: Shape, alpha: float, beta: float) -> None:
    world, replay, naive = World(shape), shape.make(priority_exponent=alpha), NaiveReplay(shape)
    play(world, [[]], replay, naive)
    seen = np.zeros(0, dtype=np.int64)  # also of steps that are no longer there
    for _ in range(4):
        play(world, data.draw(plays(shape.n_envs, max_size=15)), replay, naive)
        sample = assert_same_contents(replay, naive, alpha, beta)
        if sample is not None:
            seen = np.union1d(seen, sample.indices)
            chosen = data.draw(st.lists(st.sampled_from(seen.tolist()), min_size=1, max_size=6))
            priority = st.sampled_from([0.25, 1.0, 2.0, 3.0])
            priorities = data.draw(st.lists(priority, min_size=len(chosen), max_size=len(chosen)))
            for memory in (replay, naive):
                memory.update_priorities(np.array(chosen), np.array(priorities))
            assert_same_contents(replay, naive, alpha, beta)


@given(data=st.data(), shape=shapes(), alpha=st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=25)
def test_a_killed_run_goes_on_from_its_checkpoint(data: st.DataObject, shape: Shape, alpha: float) -> None:
    """Whatever it wrote after the checkpoint, and however often it is killed; or goes back to it by itself."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"priority_exponent": alpha, "allocate": mapped_files(Path(folder))}
        world, replay, naive = World(shape), shape.make(**options), NaiveReplay(shape)
        play(world, [[], *data.draw(plays(shape.n_envs))], replay, naive)
        for _ in range(2):
            state, saved = replay.state_dict(), copy.deepcopy(naive)
            play(world, data.draw(plays(shape.n_envs, max_size=20)), replay, naive)  # and then it is killed
            for env, later in zip(saved.envs, naive.envs, strict=True):
                env.abandon()
                if len(later.steps) > len(env.steps):
                    env.n_lost = max(env.n_lost, min(len(later.steps) - shape.capacity, len(env.steps)))
            naive = saved
            if data.draw(st.booleans()):
                replay = shape.make(**options)
                assert len(replay) == 0
            replay.load_state_dict(state)
            assert_same_contents(replay, naive, alpha)
            play(world, [[], *data.draw(plays(shape.n_envs))], replay, naive)
            assert_same_contents(replay, naive, alpha)


# --- By hand ----------------------------------------------------------------------------------------------------------

VECTORS = Shape(capacity=20, n_envs=1, stack=1, n_step=3, channels=0)


def by_hand(what: list[int], rewards: list[float], n_step: int = 3) -> dict[int, tuple[float, float, float]]:
    """(reward, discount, number of the next frame) by row, of one environment with these outcomes and rewards."""
    world, replay = World(VECTORS), VECTORS.make(n_step=n_step)
    replay.start(world.start())  # frame 1 in row 0
    for outcome, reward in zip(what, rewards, strict=True):
        batch = world.step([outcome])
        replay.add(*batch._replace(rewards=np.array([reward], dtype=np.float32)))
    sample = replay.sample(500, np.random.default_rng(0))
    results = zip(
        sample.rewards.tolist(), sample.discounts.tolist(), sample.next_observations[:, 0].tolist(), strict=True
    )
    return dict(sorted(zip(sample.indices.tolist(), results, strict=True)))


def test_three_steps_are_added_up_once_they_are_known() -> None:
    # 1 + 2/2 + 4/4 = 3, then the state in row 3, which shows frame 4;  2 + 4/2 + 8/4 = 6
    assert by_hand([ON, ON, ON], [1, 2, 4]) == {0: (3.0, 0.125, 4.0)}
    assert by_hand([ON, ON, ON, ON], [1, 2, 4, 8]) == {0: (3.0, 0.125, 4.0), 1: (6.0, 0.125, 5.0)}


def test_a_termination_ends_the_sum_and_has_no_value() -> None:
    # 1 + 2/2 and 2 alone; after it the phantom of row 2 is nothing to draw, and row 3 begins another game
    expected = {0: (2.0, 0.0, 3.0), 1: (2.0, 0.0, 3.0)}
    assert by_hand([ON, GAME_OVER], [1, 2]) == expected
    assert by_hand([ON, GAME_OVER, ON, ON, ON], [1, 2, 9, 4, 8]) == expected
    assert by_hand([ON, BOTH], [1, 2]) == expected


def test_a_lost_life_has_no_value_either_and_the_game_goes_on() -> None:
    # row 2 is the first step of the next life: 4 + 8/2 + 16/4 = 12
    rows = by_hand([ON, LIFE_LOST, ON, ON, ON], [1, 2, 4, 8, 16])
    assert rows == {0: (2.0, 0.0, 3.0), 1: (2.0, 0.0, 3.0), 2: (12.0, 0.125, 6.0)}


def test_a_time_limit_ends_the_sum_with_the_value_of_the_last_observation() -> None:
    # two steps from row 0, one from row 1, both to frame 3, which is the last of the game
    assert by_hand([ON, TIME_UP], [1, 2]) == {0: (2.0, 0.25, 3.0), 1: (2.0, 0.5, 3.0)}


def test_one_step() -> None:
    assert by_hand([ON, TIME_UP, ON, GAME_OVER], [1, 2, 9, 4], n_step=1) == {
        0: (1.0, 0.5, 2.0),
        1: (2.0, 0.5, 3.0),
        3: (4.0, 0.0, 5.0),
    }


def test_importance_weights() -> None:
    world, replay = World(VECTORS), VECTORS.make(n_step=1, priority_exponent=0.5)
    play(world, [[], [ON], [ON], [ON], [ON]], replay)
    replay.update_priorities(np.array([0, 1, 2]), np.array([4.0, 1.0, 0.25]))
    play(world, [[ON]], replay)  # row 4 gets the largest priority there was: 4
    sample = replay.sample(650, np.random.default_rng(0), beta=0.5)
    # priority^alpha 2, 1, 1/2, 1 (row 3, untouched) and 2 of 6.5; weights (N P)^-beta over that of row 2, (1/2)^-0.5
    assert np.bincount(sample.indices).tolist() == [200, 100, 50, 100, 200]
    for row, share in enumerate([2.0, 1.0, 0.5, 1.0, 2.0]):
        weights = sample.weights[torch.from_numpy(sample.indices == row)]
        torch.testing.assert_close(weights, torch.full_like(weights, (share / 0.5) ** -0.5))
    assert replay.sample(64, np.random.default_rng(0)).weights.tolist() == [1.0] * 64  # beta 0


# --- Drawing ----------------------------------------------------------------------------------------------------------

FULL = Shape(capacity=30, n_envs=4, stack=4, n_step=3, channels=1)


def full_replay(seed: int = 0, **options: Any) -> Replay:
    """Rings that have wrapped around, at different places."""
    rng = np.random.default_rng(seed)
    what = rng.choice([NOTHING, ON, LIFE_LOST, GAME_OVER, TIME_UP], p=[0.2, 0.6, 0.1, 0.05, 0.05], size=(100, 4))
    replay = FULL.make(**options)
    play(World(FULL), [[], *(row for row in what.tolist() if any(row))], replay)
    return replay


def test_draws_are_uniform() -> None:
    replay = full_replay()
    sample = replay.sample(100 * len(replay), np.random.default_rng(1))
    _, counts = np.unique(sample.indices, return_counts=True)
    assert len(counts) == len(replay) > 80
    assert chisquare(counts).pvalue > 0.05
    pairs = sample.indices[:-1] * 10_000 + sample.indices[1:]  # one after the other
    assert len(np.unique(pairs)) > 0.6 * len(replay) ** 2


def test_the_generator_decides_alone() -> None:
    for options in ({}, {"priority_exponent": 0.6}):
        replay, same = full_replay(**options), full_replay(**options)
        first, second, other = (
            memory.sample(32, np.random.default_rng(seed)) for memory, seed in ((replay, 0), (same, 0), (replay, 1))
        )
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two)
        assert (first.indices != other.indices).any()


def test_what_is_drawn_is_a_copy() -> None:
    replay = full_replay()
    first, second = (replay.sample(8, np.random.default_rng(0)) for _ in range(2))
    for part in first[:5]:
        part.zero_()
    third = replay.sample(8, np.random.default_rng(0))
    for before, after in zip(second, third, strict=True):
        np.testing.assert_array_equal(before, after)


def test_types_of_a_sample() -> None:
    sample = full_replay().sample(5, np.random.default_rng(0))
    assert sample.observations.shape == sample.next_observations.shape == (5, 4, 1, 4)
    assert sample.observations.dtype == torch.uint8
    assert sample.actions.dtype == torch.int64
    assert {part.dtype for part in (sample.rewards, sample.discounts, sample.weights)} == {torch.float32}
    assert {part.dtype for part in (sample.indices, sample.versions)} == {np.dtype(np.int64)}
    assert {part.shape for part in (*sample[1:4], *sample[5:])} == {(5,)}


def test_lag() -> None:
    world, replay = World(VECTORS), VECTORS.make(n_step=1)
    play(world, [[], [ON]], replay)  # the batch of frame 2: version 6, chosen at 8 frames and 0.5 s, added at 9
    lag = replay.sample(3, np.random.default_rng(0)).lag(Stamp(10, 100, 2.0))
    assert {unit: values.tolist() for unit, values in lag.items()} == {
        "lag_updates": [4] * 3,
        "lag_rollout_updates": [0] * 3,
        "lag_queue_updates": [4] * 3,
        "lag_gradient_updates": [0] * 3,
        "lag_frames": [92] * 3,
        "lag_seconds": [1.5] * 3,
        "replay_age_frames": [91] * 3,
    }


# --- EnvPool ----------------------------------------------------------------------------------------------------------

ATARI = EnvConfig(id="atari", frame_skip=4, reward_clip=1.0, life_loss_terminal=True, noop_max=30)


@pytest.mark.parametrize(
    ("config", "n_steps"),
    [
        (replace(ATARI, game="Pong", max_episode_frames=160), 100),
        (replace(ATARI, game="Pong", max_episode_frames=160, frame_stack=2, grayscale=False), 45),
        (replace(ATARI, game="Breakout", max_episode_frames=400), 140),
        (replace(ATARI, game="Breakout", fire_reset=True, sticky_action_probability=0.25), 140),
    ],
)
def test_stacks_are_rebuilt_as_envpool_gave_them(config: EnvConfig, n_steps: int) -> None:
    """Across resets, lost lives and time limits, in rings that wrap around."""
    n_envs, rng = 3, np.random.default_rng(0)
    envs = VectorEnv(config, n_envs, np.random.SeedSequence(0), 1)
    sizes = {"stack": config.frame_stack, "n_step": 1, "gamma": 0.99}
    replay = Replay(80, n_envs, envs.observation_shape, envs.observation_dtype, **sizes)
    observations = envs.reset()
    replay.start(observations)
    expected: dict[tuple[int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    lives_lost = n_truncated = 0
    for t in range(n_steps):
        actions = rng.integers(envs.n_actions, size=n_envs)
        step = envs.step(actions)
        replay.add(*_as_added(step, actions), NOW, t)
        for env_id in np.flatnonzero(step.valid).tolist():
            expected[t, env_id] = observations[env_id].copy(), step.observations[env_id].copy()
        lives_lost += int((step.terminated & step.valid).sum())
        n_truncated += int(step.truncated.sum())
        observations = step.observations
    envs.close()
    assert (n_truncated > 0) == (config.max_episode_frames is not None)
    assert (lives_lost > 3) == (config.game == "Breakout")
    sample = replay.sample(20 * len(replay), np.random.default_rng(0))
    for b in np.unique(sample.indices, return_index=True)[1].tolist():
        row, env_id = divmod(int(sample.indices[b]), n_envs)  # all step together, so row t holds step t
        before, after = expected[row, env_id]
        np.testing.assert_array_equal(sample.observations[b].numpy(), before)
        np.testing.assert_array_equal(sample.next_observations[b].numpy(), after)
    assert len(np.unique(sample.indices)) == len(replay) > 0.8 * min(n_steps, 80) * n_envs


def _as_added(step: Any, actions: NDArray[np.int64]) -> tuple[Any, ...]:
    return step.env_ids, step.observations, actions, step.rewards, step.terminated, step.truncated, step.valid


def test_a_time_limit_shows_what_would_have_been_seen_without_it() -> None:
    """So a truncated game can be bootstrapped from its last observation."""
    seen = []
    for cap in (160, 108_000):
        envs = VectorEnv(replace(ATARI, game="Pong", max_episode_frames=cap), 1, np.random.SeedSequence(0), 1)
        envs.reset()
        steps = [envs.step(np.array([t % envs.n_actions])) for t in range(40)]
        seen.append([step.observations.copy() for step in steps])
        assert bool(steps[-1].truncated[0]) == (cap == 160)
        envs.close()
    np.testing.assert_array_equal(*seen)


# --- Storage ----------------------------------------------------------------------------------------------------------


def test_a_replay_in_memory_is_not_in_checkpoints() -> None:
    replay = full_replay()
    assert not replay.persistent
    state = replay.state_dict()
    assert state == {}
    resumed = FULL.make()
    resumed.load_state_dict(state)
    assert len(resumed) == 0


def test_a_replay_in_files_goes_on_as_it_was(tmp_path: Path) -> None:
    """Saved, ended and opened again: but for what waited for its future, and is now cut off, nothing has changed."""
    options = {"priority_exponent": 0.6, "allocate": mapped_files(tmp_path / "replay")}
    replay = full_replay(**options)
    assert replay.persistent
    before = replay.sample(2000, np.random.default_rng(0))
    replay.update_priorities(before.indices[:50], np.linspace(0.1, 3.0, 50))
    before = replay.sample(50 * len(replay), np.random.default_rng(0))
    state = replay.state_dict()
    path = tmp_path / "state.pt"
    torch.save(state, path)
    n_before = len(replay)
    del replay
    resumed = FULL.make(**options)
    assert len(resumed) == 0
    resumed.load_state_dict(torch.load(path, weights_only=True))
    after = resumed.sample(50 * len(resumed), np.random.default_rng(0))
    assert n_before <= len(resumed) <= n_before + FULL.n_envs * (FULL.n_step - 1)
    assert set(before.indices.tolist()) <= set(after.indices.tolist())
    for index in np.unique(before.indices):
        old, new = (int(np.flatnonzero(sample.indices == index)[0]) for sample in (before, after))
        assert torch.equal(before.observations[old], after.observations[new])
        assert before.rewards[old] == after.rewards[new]
        assert before.versions[old] == after.versions[new]
    assert resumed._max_priority == 3.0


def test_files_without_a_checkpoint_do_not_count(tmp_path: Path) -> None:
    """As of a run that was killed before its first one."""
    full_replay(allocate=mapped_files(tmp_path))
    world, replay, naive = World(FULL), FULL.make(allocate=mapped_files(tmp_path)), NaiveReplay(FULL)
    assert len(replay) == 0
    play(world, [[], *[[ON, ON, LIFE_LOST, TIME_UP]] * 12], replay, naive)
    assert_same_contents(replay, naive)
    again = FULL.make(allocate=mapped_files(tmp_path))
    again.load_state_dict(replay.state_dict())
    for env in naive.envs:
        env.abandon()
    assert_same_contents(again, naive)


def test_a_checkpoint_without_its_files_begins_empty(tmp_path: Path) -> None:
    state = full_replay(allocate=mapped_files(tmp_path / "gone")).state_dict()
    replay = FULL.make(allocate=mapped_files(tmp_path / "new"))
    replay.load_state_dict(state)
    assert len(replay) == 0
    play(World(FULL), [[], *[[ON] * 4] * 5], replay)
    assert len(replay) == 4 * 3


def test_a_checkpoint_of_other_environments_is_refused(tmp_path: Path) -> None:
    state = full_replay(allocate=mapped_files(tmp_path / "four")).state_dict()
    replay = FULL._replace(n_envs=3).make(allocate=mapped_files(tmp_path / "three"))
    with pytest.raises(ValueError, match="4 environments, not of 3"):
        replay.load_state_dict(state)


@pytest.mark.parametrize("shape", [Shape(600, 3, 4, 1, 1), Shape(1000, 1, 1, 1, 0)])
def test_bytes_needed(shape: Shape) -> None:
    sizes = (shape.capacity, shape.n_envs, (4, 84, 84) if shape.channels else (8,), shape.dtype)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    replay = Replay(*sizes, stack=shape.stack, n_step=1, gamma=GAMMA)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(replay) == 0
    needed = Replay.bytes_needed(*sizes, stack=shape.stack)
    assert needed == pytest.approx(taken, rel=0.02 if shape.channels else 0.1)


def test_a_million_steps_of_atari_take_7_gigabytes() -> None:
    needed = Replay.bytes_needed(31_250, 32, (4, 84, 84), np.dtype(np.uint8), stack=4)
    assert 7.05e9 < needed < 7.15e9


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_ring_too_small() -> None:
    FULL._replace(capacity=7).make()
    with pytest.raises(ValueError, match="at least 7"):
        FULL._replace(capacity=6).make()
    with pytest.raises(ValueError, match="n_step=0"):
        FULL.make(n_step=0)


def test_observations_that_are_no_stack() -> None:
    with pytest.raises(ValueError, match="no stack of 3 frames"):
        FULL.make(stack=3)


def test_a_step_before_the_first_observation() -> None:
    world, replay = World(FULL), FULL.make()
    world.start()
    with pytest.raises(ValueError, match="environment 3 took a step before"):
        replay.add(*world.step([ON] * 4))


def test_a_first_stack_of_different_frames() -> None:
    """Somebody's steps went missing, or these environments fill their stacks in another way."""
    world, replay = World(FULL), FULL.make()
    world.start()
    with pytest.raises(ValueError, match="repeats one frame"):
        replay.start(world.step([ON] * 4).observations)


@pytest.mark.parametrize("priority", [0.0, -1.0, float("nan"), float("inf")])
def test_priorities_that_nobody_can_draw_by(priority: float) -> None:
    replay = full_replay(priority_exponent=0.6)
    sample = replay.sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="above 0"):
        replay.update_priorities(sample.indices, np.array([1.0, priority]))
