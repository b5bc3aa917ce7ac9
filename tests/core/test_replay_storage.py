"""What the replay keeps: EnvPool's own stacks, files and checkpoints, how many bytes; and what it refuses."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_replay import (
    FULL,
    GAMMA,
    LIFE_LOST,
    NOW,
    ON,
    TIME_UP,
    NaiveReplay,
    Shape,
    World,
    assert_same_contents,
    full_replay,
    play,
)
from numpy.typing import NDArray

from a3c_bench.core.replay import Replay
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.storage import mapped_files
from a3c_bench.schema import EnvConfig

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
