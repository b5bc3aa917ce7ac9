"""The evaluation protocol: N whole games in environments of their own, unclipped, from no-op starts, capped.

`python -m a3c_bench.evaluate` is its command.
"""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a3c_bench import build
from a3c_bench.acting.policy import Policy
from a3c_bench.algos import find_algorithm
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork
from a3c_bench.envs import Episode, Step, VectorEnv, find_spec
from a3c_bench.envs.backends import episode_limit_frames
from a3c_bench.envs.reference import human_normalised_percent
from a3c_bench.runtime import checkpoint
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.schema import Config, StepTimeConfig


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found."""

    games: list[dict[str, Any]]  # one row of eval.csv per game
    summary: dict[str, float]


def evaluate(
    config: Config,
    network: ActorCritic | QNetwork,
    seed: np.random.SeedSequence,
    interrupted: Callable[[], bool] = lambda: False,
) -> EvaluationResult | None:
    """Plays config.evaluation.n_games whole games with a network, on the network's device.

    Each environment has its share of the games fixed beforehand and its first ones count: taking whichever games end
    first would favour short ones.

    Args:
        config: of the run; `config.evaluation` is the protocol.
        network: of the run.
        seed: of environments and actions.
        interrupted: asked after every step; True gives the evaluation up.

    Returns:
        the result; None if it was given up.
    """
    protocol = config.evaluation
    n_envs = min(protocol.n_envs, protocol.n_games)
    env_seed, action_seed = seed.spawn(2)
    envs = build.make_envs(evaluation_config(config), n_envs, env_seed)
    games_of = [protocol.n_games // n_envs + (i < protocol.n_games % n_envs) for i in range(n_envs)]
    episodes: list[Episode] = []

    def keep(step: Step) -> bool:
        for episode in step.episodes:
            if games_of[episode.env_id] > 0:
                games_of[episode.env_id] -= 1
                episodes.append(episode)
        return any(games_of) and not interrupted()

    try:
        play(envs, player(config, network), protocol.policy, action_seed, keep)
    finally:
        envs.close()
    return None if any(games_of) else _result(config, policy_name(config, network), episodes)


def player(config: Config, network: ActorCritic | QNetwork) -> ActorCritic | EpsilonGreedy:
    """What acts in an evaluation: an actor-critic itself, or the epsilon-greedy policy of a Q-network."""
    return EpsilonGreedy(network, config.evaluation.epsilon) if isinstance(network, QNetwork) else network


def policy_name(config: Config, network: ActorCritic | QNetwork) -> str:
    """For eval.csv: `sample`, `greedy` or `epsilon_greedy`."""
    policy = config.evaluation.policy
    return "epsilon_greedy" if policy == "sample" and isinstance(network, QNetwork) else policy


def play(
    envs: VectorEnv,
    network: ActorCritic | EpsilonGreedy,
    policy: str,
    seed: np.random.SeedSequence,
    after_step: Callable[[Step], bool],
) -> None:
    """Acts until `after_step` says False. `policy` is "sample" or "greedy"."""
    device = next(network.parameters()).device
    chooses = Policy(network, torch_generator(device, seed), greedy=policy == "greedy")
    observations = torch.from_numpy(envs.reset()).to(device)
    state = network.initial_state(envs.n_envs)
    going = True
    while going:
        choice = chooses(observations, state)
        state = choice.state
        step = envs.step(choice.actions.cpu().numpy())
        observations = torch.from_numpy(step.observations).to(device)
        state[torch.from_numpy(~step.valid)] = 0.0  # a phantom step brings the first observation of a new game
        going = after_step(step)


def evaluation_config(config: Config) -> Config:
    """The same task without clipped rewards, terminal life losses or added time, and with the protocol's cap."""
    limits = [episode_limit_frames(config.env), config.evaluation.max_episode_frames]
    cap = min((limit for limit in limits if limit is not None), default=None)
    env = dataclasses.replace(
        config.env, reward_clip=None, life_loss_terminal=False, max_episode_frames=cap, step_time=StepTimeConfig()
    )
    return dataclasses.replace(config, env=env)


def evaluation_seed(config: Config, number: int) -> np.random.SeedSequence:
    """The seed of a run's evaluation: none shares a stream with training or with another evaluation."""
    return sequence(config.seed, Stream.EVALUATION, number)


def load_network(config: Config, path: Path, device: torch.device) -> ActorCritic | QNetwork:
    """The network of a checkpoint, ready to play."""
    content = checkpoint.load(path, device)
    algorithm = find_algorithm(config.algo.name)
    network: ActorCritic | QNetwork = algorithm.make_network(config, find_spec(config.env), device)
    network.load_state_dict(content["parts"]["network"])
    return network.eval()


def _result(config: Config, policy: str, episodes: list[Episode]) -> EvaluationResult:
    env = evaluation_config(config).env
    normalised = [human_normalised_percent(env.game, episode.episode_return) for episode in episodes]
    games = [
        {
            "episode_return": episode.episode_return,
            "episode_length": episode.episode_length,
            "human_normalised_percent": percent,
            "policy": policy,
            "noop_max": env.noop_max if env.game is not None else None,
            "max_episode_frames": env.max_episode_frames,
        }
        for episode, percent in zip(episodes, normalised, strict=True)
    ]
    returns = [episode.episode_return for episode in episodes]
    summary = {
        "evaluation_mean_return": statistics.fmean(returns),
        "evaluation_median_return": statistics.median(returns),
        "evaluation_std_return": statistics.pstdev(returns),
        "evaluation_games": float(len(returns)),
    }
    known = [percent for percent in normalised if percent is not None]
    if known:
        summary["evaluation_human_normalised_percent"] = statistics.fmean(known)
    return EvaluationResult(games, summary)
