"""Time limits: kept in every environment, and a true end at the limit is an end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import envpool
import numpy as np
import pandas as pd
import pytest

from a3c_bench.algos.ga3c import GA3CConfig
from a3c_bench.config import compose
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.envs.backends import episode_limit_frames, find_spec
from a3c_bench.schema import Config, EnvConfig
from a3c_bench.train import train

Policy = Callable[[int, Any], int]  # of the agent step and the observation

# Of each: who acts, so that the game comes to a true end.
TASKS: dict[str, tuple[list[str], Policy]] = {
    "cartpole": (["env=cartpole"], lambda t, seen: 0),
    "cartpole_positions": (["env=cartpole_positions"], lambda t, seen: 0),
    "acrobot": (["env=acrobot"], lambda t, seen: 2 if seen[5] > 0.0 else 0),  # pushes along, and so swings up
    "lunarlander": (["env=lunarlander"], lambda t, seen: 0),  # falls
    "catch": (["env=catch"], lambda t, seen: 1),
    "kangaroo": (["env=atari", "env.game=Kangaroo"], lambda t, seen: 0),  # is hit three times, the soonest of games
    "cliff_walking": (["env.id=tabular/CliffWalking-v0"], lambda t, seen: 0 if t == 0 else 1 if t < 12 else 2),
    "frozen_lake": (["env.id=FrozenLake-v1"], lambda t, seen: 2),
    "blackjack": (["env.id=Blackjack-v1"], lambda t, seen: 1),
}


def task(name: str) -> tuple[EnvConfig, Policy]:
    words, policy = TASKS[name]
    return compose(words).env, policy


def play_one(config: EnvConfig, policy: Policy, n_steps: int) -> list[Step]:
    """The steps of one environment, up to the first end or n_steps."""
    envs = VectorEnv(config, 1, np.random.SeedSequence(0), 1)
    seen = envs.reset()
    steps: list[Step] = []
    while len(steps) < n_steps and not (steps and steps[-1].episodes):
        steps.append(envs.step(np.array([policy(len(steps), seen[0])])))
        seen = steps[-1].observations
    envs.close()
    return steps


@pytest.mark.parametrize("name", TASKS)
def test_a_true_end_at_the_limit_is_an_end_and_no_truncation(name: str) -> None:
    config, policy = task(name)
    steps = play_one(config, policy, 3000)
    (game,) = steps[-1].episodes
    n = game.episode_length
    assert (bool(steps[-1].terminated[0]), bool(steps[-1].truncated[0])) == (True, False)
    capped = play_one(replace(config, max_episode_frames=n * config.frame_skip), policy, 3000)
    assert capped[-1].episodes == [game]
    assert (bool(capped[-1].terminated[0]), bool(capped[-1].truncated[0])) == (True, False)
    if n > 1:
        cut = play_one(replace(config, max_episode_frames=(n - 1) * config.frame_skip), policy, 3000)
        assert [episode.episode_length for episode in cut[-1].episodes] == [n - 1]
        assert (bool(cut[-1].terminated[0]), bool(cut[-1].truncated[0])) == (False, True)


OTHERS = {
    "highway": ["env.id=Highway-v0"],
    "two_way": ["env.id=TwoWay-v0"],
    "2048": ["env.id=Play2048-v1"],
    "taxi": ["env.id=Taxi-v3"],
}


@pytest.mark.parametrize("name", [*TASKS, *OTHERS])
def test_no_game_is_longer_than_its_limit(name: str) -> None:
    """Games of several environments, which begin again one phantom step after each end, the others undisturbed."""
    config = compose(TASKS[name][0] if name in TASKS else OTHERS[name]).env
    config = replace(config, max_episode_frames=4 * config.frame_skip)
    envs = VectorEnv(config, 3, np.random.SeedSequence(0), 1)
    first = envs.reset()
    rng = np.random.default_rng(0)
    age = np.zeros(3, dtype=int)
    n_truncated = 0
    ended = np.zeros(3, dtype=bool)
    for _ in range(40):
        step = envs.step(rng.integers(envs.n_actions, size=3))
        assert step.env_ids.tolist() == [0, 1, 2]
        assert step.observations.shape == first.shape
        assert step.valid.tolist() == (~ended).tolist()
        age = np.where(step.valid, age + 1, 0)
        assert step.truncated.tolist() == ((age == 4) & ~step.terminated).tolist()
        ended = step.terminated | step.truncated
        assert [(e.env_id, e.episode_length) for e in step.episodes] == [(i, age[i]) for i in np.flatnonzero(ended)]
        n_truncated += int(step.truncated.sum())
    envs.close()
    assert n_truncated > 0 or name == "blackjack"


def test_what_is_cut_here_goes_on_as_what_envpool_cuts() -> None:
    """CartPole, whose limit EnvPool keeps itself: the same numbers, but a pole that falls at the limit has fallen."""
    n_envs, limit = 5, 12
    seeds = [int(s) for s in np.random.SeedSequence(3).generate_state(n_envs) % np.uint32(2**31 - 1)]
    pool = envpool.make_gymnasium("CartPole-v1", num_envs=n_envs, num_threads=1, seed=seeds, max_episode_steps=limit)
    config = EnvConfig(id="CartPole-v1", max_episode_frames=limit)
    envs = VectorEnv(config, n_envs, np.random.SeedSequence(3), 2)
    np.testing.assert_array_equal(envs.reset(), pool.reset()[0])
    rng = np.random.default_rng(1)
    n_cut = n_fell_at_limit = n_fell = n_mixed = 0
    for _ in range(400):
        actions = (rng.random(n_envs) < 0.3).astype(np.int64)
        seen, rewards, terminated, truncated, _ = pool.step(actions)
        step = envs.step(actions)
        np.testing.assert_array_equal(step.observations, seen)
        np.testing.assert_array_equal(step.rewards, rewards)
        np.testing.assert_array_equal(step.terminated | step.truncated, terminated | truncated)
        fallen = np.abs(seen[:, 2]) > 12 * 2 * np.pi / 360
        np.testing.assert_array_equal(step.truncated, truncated & ~fallen)
        n_cut += int(step.truncated.sum())
        n_fell_at_limit += int((truncated & fallen).sum())
        n_fell += int(terminated.sum())
        n_mixed += 0 < int(step.truncated.sum()) < n_envs
    envs.close()
    assert min(n_cut, n_fell_at_limit, n_fell, n_mixed) > 10


def test_limits_hold_where_environments_step_when_their_action_has_come() -> None:
    config = EnvConfig(id="Catch-v0", max_episode_frames=5)
    envs = VectorEnv(config, 4, np.random.SeedSequence(0), 2, batch_size=2)
    envs.start()
    lengths: list[int] = []
    ended = np.ones(4, dtype=bool)
    for _ in range(300):
        step = envs.receive()
        assert step.valid.tolist() == (~ended[step.env_ids]).tolist()
        ended[step.env_ids] = step.terminated | step.truncated
        lengths += [episode.episode_length for episode in step.episodes]
        envs.send(np.ones(2, dtype=np.int64), step.env_ids)
    envs.close()
    assert len(lengths) > 50
    assert set(lengths) == {5}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (EnvConfig(id="CartPole-v1"), 500),
        (EnvConfig(id="Catch-v0"), None),
        (EnvConfig(id="Catch-v0", max_episode_frames=2**31 - 1), 2**31 - 1),
        (EnvConfig(id="TwoWay-v0", max_episode_frames=1000), 15),  # ends by itself after 15
    ],
    ids=str,
)
def test_the_limit_of_a_task(config: EnvConfig, limit: int | None) -> None:
    spec = find_spec(config)
    assert spec.limit_agent_steps == limit
    VectorEnv(config, 1, np.random.SeedSequence(0), 1).close()
    assert episode_limit_frames(replace(config, max_episode_frames=None)) in (limit, None)


@pytest.mark.parametrize("synchronous", [False, True])
def test_limits_hold_in_ga3c(tiny: Config, tmp_path: Path, synchronous: bool) -> None:
    """Whose predictors send the agents on as they come, or all in lock step."""
    algo = GA3CConfig(n_agents=4, n_predictors=1, n_trainers=1, synchronous=synchronous)
    env = EnvConfig(id="Catch-v0", max_episode_frames=5)
    status = train(replace(tiny, algo=algo, env=env), tmp_path)
    assert status["state"] == "finished"
    games = pd.read_csv(tmp_path / "episodes.csv")
    assert len(games) > 40
    assert set(games["episode_length"]) == {5}
    assert set(pd.read_csv(tmp_path / "eval.csv")["episode_length"]) == {5}
