"""The environments as EnvPool gives them, put right: phantom steps, episodes, lives, truncation, seeds, switches."""

import functools
from dataclasses import replace
from typing import Any

import envpool
import numpy as np
import pytest

from a3c_bench.envs import Episode, VectorEnv
from a3c_bench.envs.backends import atari_games, episode_limit_frames
from a3c_bench.envs.episodes import EpisodeTracker
from a3c_bench.envs.reference import human_normalised_percent
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig

CARTPOLE = EnvConfig(id="CartPole-v1")
ATARI = EnvConfig(
    id="atari", frame_skip=4, max_episode_frames=108_000, reward_clip=1.0, life_loss_terminal=True, noop_max=30
)


def seed(entropy: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy)


@functools.cache
def random_run(config: EnvConfig, n_steps: int, n_envs: int = 3, n_threads: int = 1, entropy: int = 0) -> list[Any]:
    """All steps of a random policy, whose actions depend on nothing else."""
    envs = VectorEnv(config, n_envs, seed(entropy), n_threads)
    rng = np.random.default_rng(0)
    envs.reset()
    steps = [envs.step(rng.integers(envs.n_actions, size=n_envs)) for _ in range(n_steps)]
    envs.close()
    return steps


def test_phantom_steps_are_found_and_nothing_else_is() -> None:
    """Against a plain loop over EnvPool: after an end, one step that earns nothing and belongs to no episode."""
    n_envs, n_steps = 4, 300
    seeds = [int(s) for s in seed().generate_state(n_envs) % np.uint32(2**31 - 1)]
    pool = envpool.make_gymnasium("CartPole-v1", num_envs=n_envs, num_threads=1, seed=seeds)
    pool.reset()
    rng = np.random.default_rng(0)
    ended = [False] * n_envs
    returns = [0.0] * n_envs
    lengths = [0] * n_envs
    expected_valid, expected_episodes = [], []
    for _ in range(n_steps):
        _, rewards, terminated, truncated, info = pool.step(rng.integers(2, size=n_envs))
        expected_valid.append([not e for e in ended])
        for i in range(n_envs):
            if ended[i]:
                assert rewards[i] == 0
                assert info["elapsed_step"][i] == 0
            else:
                returns[i] += float(rewards[i])
                lengths[i] += 1
            ended[i] = bool(terminated[i] or truncated[i])
            if ended[i]:
                expected_episodes.append((i, returns[i], lengths[i]))
                returns[i], lengths[i] = 0.0, 0
    steps = random_run(CARTPOLE, n_steps, n_envs)
    assert len(expected_episodes) > 20
    assert [list(step.valid) for step in steps] == expected_valid
    assert [episode[:3] for step in steps for episode in step.episodes] == expected_episodes


def test_valid_steps_add_up_to_episode_lengths() -> None:
    steps = random_run(CARTPOLE, 400, n_envs=2)
    for env_id in range(2):
        lengths = [e.episode_length for step in steps for e in step.episodes if e.env_id == env_id]
        last_end = max(t for t, step in enumerate(steps) if any(e.env_id == env_id for e in step.episodes))
        assert sum(bool(step.valid[env_id]) for step in steps[: last_end + 1]) == sum(lengths)
        assert last_end + 1 == sum(lengths) + len(lengths) - 1  # one phantom between two episodes


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    config = replace(CARTPOLE, max_episode_frames=5)  # nobody falls within 5 steps
    steps = random_run(config, 12, n_envs=2)
    assert [bool(step.truncated[0]) for step in steps] == [t in (4, 10) for t in range(12)]
    assert not any(step.terminated.any() for step in steps)
    assert [e.episode_length for step in steps for e in step.episodes] == [5, 5, 5, 5]


def test_the_atari_cap_is_in_frames() -> None:
    config = replace(ATARI, game="Pong", max_episode_frames=160)
    steps = random_run(config, 42, n_envs=1)
    assert [t for t, step in enumerate(steps) if step.truncated[0]] == [39]
    assert not steps[40].valid[0]
    assert episode_limit_frames(config) == 160
    assert episode_limit_frames(CARTPOLE) == 500


def test_a_lost_life_ends_the_return_but_not_the_game() -> None:
    on = random_run(replace(ATARI, game="Breakout"), 500, n_envs=1)
    off = random_run(replace(ATARI, game="Breakout", life_loss_terminal=False), 500, n_envs=1)
    lost = [t for t, step in enumerate(on) if step.terminated[0] and not step.episodes]
    assert len(lost) >= 4  # five lives a game
    assert all(on[t + 1].valid[0] for t in lost)  # no reset, no phantom
    assert [t for t, step in enumerate(off) if step.terminated[0]] == [t for t, s in enumerate(on) if s.episodes]
    for with_switch, without in zip(on, off, strict=True):
        np.testing.assert_array_equal(with_switch.observations, without.observations)
        assert with_switch.episodes == without.episodes


def test_scores_are_unclipped_while_rewards_are_clipped() -> None:
    clipped = random_run(replace(ATARI, game="Qbert"), 700, n_envs=1)
    plain = random_run(replace(ATARI, game="Qbert", reward_clip=None), 700, n_envs=1)
    episodes = [e for step in clipped for e in step.episodes]
    assert episodes == [e for step in plain for e in step.episodes]
    assert max(step.rewards[0] for step in clipped) == 1.0
    first_end = next(t for t, step in enumerate(plain) if step.episodes)
    assert sum(float(step.rewards[0]) for step in plain[: first_end + 1]) == episodes[0].episode_return > 20


def test_results_depend_on_the_seed_and_not_on_the_threads() -> None:
    one = random_run(replace(ATARI, game="Pong"), 30, n_envs=2, n_threads=1)
    two = random_run(replace(ATARI, game="Pong"), 30, n_envs=2, n_threads=2)
    other = random_run(replace(ATARI, game="Pong"), 30, n_envs=2, entropy=1)
    np.testing.assert_array_equal(one[-1].observations, two[-1].observations)
    assert (one[-1].observations != other[-1].observations).any()
    assert (one[-1].observations[0] != one[-1].observations[1]).any()  # environments differ among themselves


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"frame_stack": 2}, (2, 84, 84)),
        ({"image_height": 42, "image_width": 50}, (4, 42, 50)),
        ({"grayscale": False}, (12, 84, 84)),
    ],
)
def test_switches_of_the_picture(change: dict[str, Any], shape: tuple[int, ...]) -> None:
    envs = VectorEnv(replace(ATARI, game="Pong", **change), 1, seed(), 1)
    assert envs.observation_shape == envs.reset()[0].shape == shape
    envs.close()


def test_the_full_action_space_has_18_actions() -> None:
    counts = []
    for full in (False, True):
        envs = VectorEnv(replace(ATARI, game="Pong", full_action_space=full), 1, seed(), 1)
        counts.append(envs.n_actions)
        envs.close()
    assert counts == [6, 18]


@pytest.mark.parametrize(
    "change", [{"sticky_action_probability": 0.25}, {"noop_max": 1}, {"fire_reset": True}, {"frame_skip": 2}]
)
def test_switches_of_the_game_change_what_is_seen(change: dict[str, Any]) -> None:
    plain = random_run(replace(ATARI, game="Breakout"), 40, n_envs=2)
    changed = random_run(replace(ATARI, game="Breakout", **change), 40, n_envs=2)
    assert any((a.observations != b.observations).any() for a, b in zip(plain, changed, strict=True))


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "LunarLander-v3", "Catch-v0"])
def test_the_small_environments_play_whole_games(env_id: str) -> None:
    steps = random_run(EnvConfig(id=env_id), 600, n_envs=2)
    assert any(step.episodes for step in steps)
    assert steps[0].observations.dtype == np.float32


def test_pictures_of_a_rendered_game() -> None:
    envs = VectorEnv(replace(ATARI, game="Pong"), 1, seed(), 1, render=True)
    envs.reset()
    envs.step(np.zeros(1, dtype=np.int64))
    assert envs.frames().shape == (210, 160, 3)
    assert len(np.unique(envs.frames())) > 3
    envs.close()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(ATARI, game="Pnog"), "did you mean Pong"),
        (replace(ATARI, game="Ant"), "is not an Atari game"),
        (ATARI, "needs a game"),
        (EnvConfig(id="CartPol-v1"), "CartPole-v1"),
        (EnvConfig(id="Pendulum-v1"), "continuous"),
    ],
)
def test_unknown_environments_are_refused_with_a_hint(config: EnvConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VectorEnv(config, 1, seed(), 1)


def test_the_games_of_paacs_table_exist() -> None:
    assert len(atari_games()) == 104
    assert {"Amidar", "BeamRider", "Boxing", "Breakout", "Centipede", "MsPacman"} <= set(atari_games())


def test_the_tracker_takes_any_subset_of_environments() -> None:
    """Asynchronous mode brings environments in any order, some more often than others."""
    tracker = EpisodeTracker(3)
    ids = np.array([2, 0], dtype=np.int32)
    valid, episodes = tracker.update(ids, np.array([1.0, 2.0], dtype=np.float32), np.array([True, False]))
    assert valid.tolist() == [True, True]
    assert episodes == [Episode(2, 1.0, 1)]
    valid, episodes = tracker.update(ids, np.array([0.0, 3.0], dtype=np.float32), np.array([False, True]))
    assert valid.tolist() == [False, True]
    assert episodes == [Episode(0, 5.0, 2)]


def test_human_normalised_scores() -> None:
    """Pong, no-op starts: random -20.7, human 14.6 (Wang et al. 2016)."""
    assert human_normalised_percent("Pong", -20.7) == 0.0
    assert human_normalised_percent("Pong", 14.6) == 100.0
    assert human_normalised_percent("Pong", 14.6 + 35.3 / 2) == pytest.approx(150.0)
    assert human_normalised_percent("NoSuchGame", 1.0) is None
    assert human_normalised_percent(None, 1.0) is None


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_only_the_chosen_entries_are_seen() -> None:
    some = EnvConfig(id="CartPole-v1", observed=(2, 0))
    whole, seen = random_run(CARTPOLE, 40), random_run(some, 40)
    for a, b in zip(whole, seen, strict=True):
        np.testing.assert_array_equal(b.observations, a.observations[:, [2, 0]])
        np.testing.assert_array_equal(b.rewards, a.rewards)
    envs = VectorEnv(some, 2, seed(), 1)
    assert envs.observation_shape == envs.reset().shape[1:] == (2,)
    envs.close()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            EnvConfig(id="CartPole-v1", observed=(0, 4)),
            r"env.observed=\[0, 4\] must name different entries from 0 to 3",
        ),
        (EnvConfig(id="CartPole-v1", observed=(1, 1)), r"env.observed=\[1, 1\] must name different entries"),
        (EnvConfig(id="CartPole-v1", observed=()), r"env.observed=\[\] must name different entries"),
        (replace(ATARI, game="Pong", observed=(0,)), "env.observed chooses from a vector; Pong-sees-0 shows arrays of"),
    ],
    ids=str,
)
def test_entries_that_are_not_there(config: EnvConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        VectorEnv(config, 2, seed(), 1)
