"""The replay against a list of whole observations, under random games; n-step returns by hand; what is drawn."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_replay import (
    ANEW,
    BOTH,
    GAME_OVER,
    LIFE_LOST,
    NOTHING,
    ON,
    TIME_UP,
    NaiveReplay,
    Shape,
    World,
    assert_same_contents,
    full_replay,
    play,
)
from scipy.stats import chisquare

from a3c_bench.core.lag import Stamp
from a3c_bench.runtime.storage import mapped_files

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
