"""GA3C in one thread: a small run, and a predictor and a trainer that a test steps itself."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from common import FakeSession, small

from a3c_bench.algos import ga3c
from a3c_bench.algos.ga3c import GA3CConfig, Trainer
from a3c_bench.schema import Config, EvaluationConfig, NetworkConfig, OptimizerConfig

CONSTANT = OptimizerConfig(lr=0.01, epsilon=0.1, anneal=False)
SMALL = small(
    GA3CConfig(n_agents=6, prediction_batch=2, log_epsilon=0.0, optimizer=CONSTANT),
    network=NetworkConfig(hidden_sizes=(8,), initialisation="fan_in"),
    evaluation=EvaluationConfig(n_games=2, n_envs=2, interval_frames=400),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


class Rollout(NamedTuple):
    """What a slot holds: L steps of one agent."""

    observations: torch.Tensor  # [L, ...]
    state: torch.Tensor  # [S]
    actions: torch.Tensor  # [L]
    log_probs: torch.Tensor  # [L, A]
    rewards: torch.Tensor  # [L]
    terminated: bool
    truncated: bool
    bootstrap: float
    stamps: torch.Tensor  # [L, 3]


class Parts:
    """A predictor and a trainer on one theta, in this thread."""

    def __init__(self, config: Config, seconds: float = 0.0) -> None:
        torch.set_num_threads(1)
        # By one thread, so that agents come back in one order; and with slots for all that a test holds.
        config = replace(
            config, env=replace(config.env, n_threads=1), algo=replace(config.algo, training_queue_size=3000)
        )
        self.staff = ga3c.assemble(config, FakeSession(config, seconds=seconds))  # type: ignore[arg-type]
        self.theta, self.statistics, self.tally = self.staff.theta, self.staff.statistics, self.staff.tally
        self.experience, self.agents = self.staff.experience, self.staff.agents
        self.predictor, self.trainer = self.staff.make_predictor(), self.staff.make_trainer()
        self.games: list[tuple[int, int]] = []  # agent and length of each
        self.staff.envs.start()

    def rollout(self, slot: int) -> Rollout:
        """What a slot holds."""
        e, n = self.experience, self.experience.lengths[slot]
        rows = (e.observations, e.actions, e.log_probs, e.rewards, e.stamps)
        observations, actions, log_probs, rewards, stamps = (torch.from_numpy(part[:n, slot]) for part in rows)
        ended = bool(e.terminated[slot]), bool(e.truncated[slot])
        state = torch.from_numpy(e.state[slot])
        return Rollout(observations, state, actions, log_probs, rewards, *ended, float(e.bootstrap[slot]), stamps)

    def turn(self) -> list[tuple[int, int]]:
        """What one turn of a predictor gives: agents and slots."""
        step = self.agents.envs.receive()
        self.games += [(game.env_id, game.episode_length) for game in step.episodes]
        agent_of = dict(zip(self.agents.slots.tolist(), range(len(self.agents.slots)), strict=True))
        return [(agent_of[slot], slot) for slot in self.predictor.turn(step) or ()]

    def collect(self, n: int) -> list[int]:
        """Slots with n rollouts."""
        slots: list[int] = []
        while len(slots) < n:
            slots += [slot for _, slot in self.turn()]
        return slots[:n]

    def rollouts(self, slots: list[int]) -> list[Rollout]:
        return [self.rollout(slot) for slot in slots]


class Trained(NamedTuple):
    """What a trainer says of a batch."""

    n_samples: int
    n_discarded: int
    n_unusable: int
    updated: bool
    metrics: dict[str, Any]
    fit: Any
    lag: dict[str, Any]


def learn(trainer: Trainer, slots: list[int]) -> Trained:
    """One batch, and what is reported of it alone."""
    trainer.notes.take()
    trainer.learn(slots)
    report = trainer.notes.take()
    (n_discarded, n_samples), (n_unusable, _) = (report.ratios[f"{what}_share"] for what in ("discarded", "unusable"))
    parts = (dict(of[0]) if of else {} for of in (report.figures, report.lags))
    metrics, lag = parts
    fit = report.fits[0] if report.fits else None
    return Trained(int(n_samples), int(n_discarded), int(n_unusable), report.n_updates == 1, metrics, fit, lag)
