"""Which tasks there are: each of EnvPool's is learnt from, or refused in one true sentence before anything starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from a3c_bench.algos import algorithm_names
from a3c_bench.algos.dqn import DQNConfig
from a3c_bench.config import compose
from a3c_bench.envs import VectorEnv, find_spec
from a3c_bench.errors import ConfigError
from a3c_bench.evaluation import evaluation_config, load_network
from a3c_bench.schema import Config, EnvConfig, ReplayConfig
from a3c_bench.train import check_run, train

DQN = DQNConfig(
    n_envs=2,
    update_period_agent_steps=4,
    replay=ReplayConfig(capacity_agent_steps=200, learning_starts_agent_steps=20, batch_size=8),
)

PLAYED: dict[str, tuple[tuple[int, ...], str, int]] = {
    "CartPole-v1": ((4,), "float32", 2),
    "Acrobot-v1": ((6,), "float32", 3),
    "MountainCar-v0": ((2,), "float32", 3),
    "LunarLander-v3": ((8,), "float32", 4),
    "Catch-v0": ((10, 5), "float32", 3),
    "Blackjack-v1": ((3,), "int32", 2),  # whole numbers
    "FrozenLake-v1": ((16,), "bool", 4),  # one of 16 states, one-hot
    "Taxi-v3": ((500,), "bool", 6),
    "CliffWalking-v1": ((48,), "bool", 4),
    "NChain-v0": ((5,), "bool", 2),
    "TwoWay-v0": ((3, 3, 5), "float32", 5),  # small boards
    "Play2048-v1": ((4, 4, 31), "bool", 4),
}

REFUSED = {
    "Pendulum-v1": "has continuous actions; only tasks with one discrete action",
    "Ant-v5": "has continuous actions; only tasks with one discrete action",
    "BinPack-v2": "takes actions of 2 numbers each; only tasks with one discrete action",
    "Game2048-v1": "shows several arrays at once (action_mask, board): say env.observed_key=board for one",
    "MiniGrid-Empty-5x5-v0": "shows several arrays at once (direction, image, mission): say env.observed_key=image",
    "KuhnPoker-v1": "is for 2 players or agents; only tasks of one",
    "TicTacToe-v1": "is for 2 players or agents; only tasks of one",
    "IntersectionMultiAgent-v0": "is for 2 players or agents; only tasks of one",
}


def tiny_run(tiny: Config, env_id: str, algorithm: str) -> Config:
    config = replace(tiny, env=EnvConfig(id=env_id), budget=replace(tiny.budget, frames=120))
    config = replace(config, evaluation=replace(tiny.evaluation, n_games=1, n_envs=1, max_episode_frames=50))
    return replace(config, algo=DQN) if algorithm == "dqn" else config


@pytest.mark.parametrize("algorithm", ["paac", "dqn"])
@pytest.mark.parametrize("env_id", PLAYED)
def test_a_run_of_every_kind_of_task(tiny: Config, tmp_path: Path, env_id: str, algorithm: str) -> None:
    config = tiny_run(tiny, env_id, algorithm)
    spec = find_spec(config.env)
    assert (spec.observation_shape, spec.observation_dtype.name, spec.n_actions) == PLAYED[env_id]
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    assert status["updates"] > 0
    assert np.isfinite(status["final"]["evaluation_mean_return"])
    load_network(config, tmp_path / "checkpoint" / "latest.pt", torch.device("cpu"))


@pytest.mark.parametrize("algorithm", ["paac", "dqn"])
@pytest.mark.parametrize("env_id", REFUSED)
def test_other_tasks_are_refused_in_one_sentence(tiny: Config, env_id: str, algorithm: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_run(tiny_run(tiny, env_id, algorithm))
    assert str(refused.value).startswith(f"env.id={env_id} {REFUSED[env_id]}")
    assert str(refused.value).endswith(" supported.")
    assert str(refused.value).count(". ") == 0


KEYED = {
    ("MiniGrid-Empty-5x5-v0", "image"): ((3, 7, 7), "uint8", "small"),  # [H, W, C] in EnvPool
    ("MiniGrid-Empty-5x5-v0", "direction"): ((4,), "bool", "mlp"),  # one of four states
    ("Sokoban-v0", "grid"): ((2, 10, 10), "uint8", "small"),
    ("Game2048-v1", "board"): ((4, 4), "int32", "mlp"),
}


@pytest.mark.parametrize(("env_id", "key"), KEYED)
def test_one_of_several_arrays_is_seen(tiny: Config, tmp_path: Path, env_id: str, key: str) -> None:
    shape, dtype, network = KEYED[env_id, key]
    config = tiny_run(tiny, env_id, "dqn")
    config = replace(config, env=replace(config.env, observed_key=key), network=replace(tiny.network, kind=network))
    envs = VectorEnv(config.env, 2, np.random.SeedSequence(0), 1)
    for seen in (envs.reset(), envs.step(np.zeros(2, dtype=np.int64)).observations):
        assert (seen.shape[1:], seen.dtype.name) == (shape, dtype)
        assert (envs.observation_shape, envs.observation_dtype.name) == (shape, dtype)
        assert seen.any()
    envs.close()
    assert train(config, tmp_path)["updates"] > 0


def test_a_picture_is_turned_and_not_changed() -> None:
    """MiniGrid's third number of a cell is a state, 0 in an empty room; the first of the goal is 8."""
    keyed = replace(EnvConfig(id="MiniGrid-Empty-5x5-v0"), observed_key="image")
    envs = VectorEnv(keyed, 1, np.random.SeedSequence(0), 1)
    (image,) = envs.reset()
    envs.close()
    kinds, colours, states = image
    assert 8 in kinds
    assert set(np.unique(kinds)) <= {0, 1, 2, 8}  # unseen, empty, wall, goal
    assert colours.max() <= 5
    assert not states.any()


@pytest.mark.parametrize("env_id", PLAYED)
def test_the_spec_says_what_the_environments_show(env_id: str) -> None:
    envs = VectorEnv(EnvConfig(id=env_id), 2, np.random.SeedSequence(0), 1)
    seen = envs.reset()
    stepped = envs.step(np.zeros(2, dtype=np.int64)).observations
    envs.close()
    for observations in (seen, stepped):
        assert (observations.shape[1:], observations.dtype.name) == PLAYED[env_id][:2]


def test_a_state_is_seen_one_hot() -> None:
    """CliffWalking begins in state 36, lower left; action 0 is up, a row of 12 away."""
    envs = VectorEnv(EnvConfig(id="CliffWalking-v1"), 2, np.random.SeedSequence(0), 1)
    assert [row.nonzero()[0].tolist() for row in envs.reset()] == [[36], [36]]
    assert [row.nonzero()[0].tolist() for row in envs.step(np.array([0, 0])).observations] == [[24], [24]]
    envs.close()


@pytest.mark.parametrize(
    ("env_id", "network", "sentence"),
    [
        ("TwoWay-v0", "nips", "frames of 3x5 are too small for 'nips': say network=mlp."),
        ("CartPole-v1", "nature", "network 'nature' needs images [C, H, W], not observations of shape (4,): "
                                  "say network=mlp."),
    ],
)  # fmt: skip
def test_sentences_about_networks_send_nobody_in_a_circle(
    tiny: Config, env_id: str, network: str, sentence: str
) -> None:
    config = replace(tiny, env=EnvConfig(id=env_id), network=replace(tiny.network, kind=network))
    with pytest.raises(ConfigError) as refused:
        check_run(config)
    assert str(refused.value) == sentence
    check_run(replace(config, network=replace(tiny.network, kind="mlp")))


# --- what has no effect, and what says two things ---------------------------------------------------------------------

REFUSED_WORDS = [
    ("env.frame_skip=4", "env.frame_skip=4 has no effect on CartPole-v1: only Atari games (env=atari env.game=...) "
                         "have it; leave it at 1."),
    ("env.sticky_action_probability=0.25", "env.sticky_action_probability=0.25 has no effect on CartPole-v1: "),
    ("env.noop_max=1", "env.noop_max=1 has no effect on CartPole-v1: "),
    ("env.fire_reset=true", "env.fire_reset=true has no effect on CartPole-v1: "),
    ("env.full_action_space=true", "env.full_action_space=true has no effect on CartPole-v1: "),
    ("env.frame_stack=1", "env.frame_stack=1 has no effect on CartPole-v1: "),
    ("env.image_height=42", "env.image_height=42 has no effect on CartPole-v1: "),
    ("env.image_width=42", "env.image_width=42 has no effect on CartPole-v1: "),
    ("env.grayscale=false", "env.grayscale=false has no effect on CartPole-v1: "),
    ("env.life_loss_terminal=true", "env.life_loss_terminal=true has no effect on CartPole-v1: "),
    ("env=pong env.id=CartPole-v1", "env.id=CartPole-v1 and env.game=Pong are two tasks: say env=atari env.game=Pong "
                                    "for the game, or env.id=CartPole-v1 without a game for the other."),
    ("env=pong env.id=Breakout-v5", "env.id=Breakout-v5 and env.game=Pong are two tasks: "),
    ("env.game=Pong", "env.id=CartPole-v1 and env.game=Pong are two tasks: say env=atari env.game=Pong "),
    ("env.id=Breakout-v5", "env.id=Breakout-v5 is an Atari game, with its own protocol: say env=atari "
                           "env.game=Breakout."),
    ("env.id=Breakout-v5 network=nips", "env.id=Breakout-v5 is an Atari game, with its own protocol: "),
]  # fmt: skip


def test_an_array_that_is_not_shown() -> None:
    said = {
        (
            "MiniGrid-Empty-5x5-v0",
            "imag",
        ): "env.observed_key=imag is no array that MiniGrid-Empty-5x5-v0 shows: did you",
        ("CartPole-v1", "x"): "env.observed_key chooses from several arrays; CartPole-v1 shows one: leave it out.",
    }
    for (env_id, key), sentence in said.items():
        with pytest.raises(ConfigError) as refused:
            find_spec(EnvConfig(id=env_id, observed_key=key))
        assert str(refused.value).startswith(sentence)


def test_a_task_is_known_without_simulating_it(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No algorithm makes environments to know two shapes."""
    monkeypatch.setattr("a3c_bench.envs.envpool.Threads.__init__", None)
    for algo in algorithm_names():
        check_run(compose([f"algo={algo}"]))
    check_run(compose(["env=pong", "algo=dqn", "algo.replay.capacity_agent_steps=1000"]))


@pytest.mark.parametrize(("words", "sentence"), REFUSED_WORDS, ids=[words for words, _ in REFUSED_WORDS])
def test_what_has_no_effect_is_refused(words: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_run(compose(words.split()))
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("words", ["env=pong", "env=pong env.id=Pong-v5", "env=atari env.game=Breakout"])
def test_a_game_and_its_own_name_agree(words: str) -> None:
    config = compose(words.split())
    check_run(config)
    check_run(evaluation_config(config))


@pytest.mark.parametrize(
    "change", [{"reward_clip": 0.5}, {"max_episode_frames": 7}, {"observed": (0, 2)}, {"n_threads": 1}], ids=str
)
def test_what_has_an_effect_everywhere_is_taken(change: dict[str, Any]) -> None:
    find_spec(replace(EnvConfig(id="CartPole-v1"), **change))


def test_states_have_no_entries_to_choose_from() -> None:
    with pytest.raises(ConfigError, match=r"env\.observed chooses from a vector; .* shows one of 500 states"):
        find_spec(EnvConfig(id="Taxi-v3", observed=(0,)))
