"""What the presets promise: an algorithm that solves its environment, over seeds. Minutes: pytest -m slow."""

from pathlib import Path

import pytest

from a3c_bench.config import compose
from a3c_bench.train import train

CARTPOLE_SOLVED, CATCH_SOLVED = 475.0, 0.95

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def evaluation(place: Path, *words: str) -> float:
    """Mean return of the final evaluation."""
    return float(train(compose([*words, "progress=false"]), place)["final"]["evaluation_mean_return"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "algo", ["dqn", "gorila", "a3c", "ga3c", "paac", "pgql", "ppo", "pqn", "one_step_q", "one_step_sarsa", "n_step_q"]
)
def test_cartpole_is_solved(algo: str, seed: int, tmp_path: Path) -> None:
    """The README's first command, and DQN and Gorila."""
    assert evaluation(tmp_path, f"algo={algo}", f"seed={seed}") >= CARTPOLE_SOLVED


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algo", ["dqn", "gorila", "pgql", "ppo", "pqn", "one_step_q", "one_step_sarsa", "n_step_q"])
def test_catch_is_solved(algo: str, seed: int, tmp_path: Path) -> None:
    assert evaluation(tmp_path, "env=catch", f"algo={algo}", f"seed={seed}") >= CATCH_SOLVED


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_cannot_be_seen_must_be_remembered(seed: int, tmp_path: Path) -> None:
    """CartPole without velocities: A3C solves it with an LSTM, and comes nowhere near without."""
    words = ("experiment=cartpole_positions", "algo=a3c", f"seed={seed}")
    assert evaluation(tmp_path / "lstm", *words) >= CARTPOLE_SOLVED
    assert evaluation(tmp_path / "mlp", *words, "network=mlp", "budget.frames=300_000") < 100.0
