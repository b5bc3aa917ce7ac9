"""PGQL's grid world: the updates by hand, fast beside naive, and what comes of 600 steps."""

from math import exp, log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from a3c_bench.core.pgql import implied_q
from analysis import pgql_grid
from analysis.pgql_grid import ALPHA, GAMMA, METHODS, Steps, Tables, train


def test_its_q_is_the_suites() -> None:
    """`analysis` imports nothing of the suite, so the formula stands twice."""
    tables = Tables(5, 1)
    random = np.random.default_rng(0)
    tables.theta[:, 0] = random.standard_normal((5, 4))
    tables.v[:, 0] = random.standard_normal(5)
    log_probs = torch.from_numpy(tables.theta[:, 0]).log_softmax(-1)
    expected = implied_q(log_probs, torch.from_numpy(tables.v[:, 0]), ALPHA)
    assert tables.q(np.zeros(5, dtype=np.int64)) == pytest.approx(expected.numpy(), rel=1e-12)


def one_step(state: int, action: int, reward: float, following: int) -> Steps:
    return Steps(np.array([state]), np.array([action]), np.array([reward]), np.array([following]))


def test_updates_by_hand() -> None:
    """Two states, even chances: Q~ = V, as log pi = -H; so delta and both updates are plain numbers."""
    tables = Tables(1, 2)
    tables.v[0] = [0.2, 0.5, 0.0]
    tables.actor_critic(one_step(0, 1, 0.1, 1), 0.5)
    delta = 0.1 + GAMMA * 0.5 - 0.2
    assert tables.v[0].tolist() == pytest.approx([0.2 + 0.5 * delta, 0.5, 0.0])
    assert tables.theta[0, 0].tolist() == pytest.approx([x * 0.5 * delta for x in (-0.25, 0.75, -0.25, -0.25)])
    assert not tables.theta[0, 1].any()

    tables.theta[0, 1] = [log(2.0), 0.0, 0.0, 0.0]  # pi = 0.4, 0.2, 0.2, 0.2
    entropy = -(0.4 * log(0.4) + 0.6 * log(0.2))
    assert tables.q(np.array([1]))[0, 0] == pytest.approx(ALPHA * (log(0.4) + entropy) + 0.5)
    best = ALPHA * (log(0.4) + entropy) + 0.5  # the likeliest action has the largest Q~
    own = float(tables.q(np.array([0]))[0, 2])
    before = tables.v[0, 0]
    tables.q_learning(one_step(0, 2, 0.0, 1), 1.0)
    assert tables.v[0, 0] - before == pytest.approx(GAMMA * best - own)

    end = float(tables.q(np.array([1]))[0, 3])
    before = tables.v[0, 1]
    tables.q_learning(one_step(1, 3, 1.0, 2), 1.0)  # the goal: nothing follows
    assert tables.v[0, 1] - before == pytest.approx(1.0 - end)
    assert tables.v[0, 2] == 0.0


def naive(method: str, step_size: float, n_steps: int, seed: int) -> float:
    """V(start) over the best after so many steps, of one seed, in plain Python."""
    chances = np.random.default_rng(seed).random((n_steps, 2))
    theta = [[0.0] * 4 for _ in range(23)]
    v = [0.0] * 24
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))

    def go(state: int, action: int) -> int:
        row, column = state // 6 + moves[action][0], state % 6 + moves[action][1]
        return 6 * row + column if 0 <= row < 4 and 0 <= column < 6 else state

    def policy(state: int) -> list[float]:
        powers = [exp(x) for x in theta[state]]
        return [power / sum(powers) for power in powers]

    def q(state: int) -> list[float]:
        if state == 23:
            return [0.0] * 4
        pi = policy(state)
        entropy = -sum(x * log(x) for x in pi)
        return [ALPHA * (log(x) + entropy) + v[state] for x in pi]

    def learn(state: int, action: int, target: float) -> None:
        delta, pi = target - q(state)[action], policy(state)
        for b in range(4):
            theta[state][b] += step_size * delta * ((b == action) - pi[b])
        v[state] += step_size * delta

    replay: list[tuple[int, int]] = []
    state = 0
    for to_act, to_replay in chances:
        sums = np.cumsum(policy(state))
        action = sum(to_act > x for x in sums[:3])
        replay.append((state, action))
        after = go(state, action)
        if method != "q_learning":
            learn(state, action, float(after == 23) + GAMMA * v[after])
        if method != "actor_critic":
            s, a = replay[int(to_replay * len(replay))]
            learn(s, a, float(go(s, a) == 23) + GAMMA * max(q(go(s, a))))
        state = 0 if after == 23 else after
    value = [0.0] * 24
    for _ in range(600):
        value[:23] = [
            sum(p * (float(go(s, a) == 23) + GAMMA * value[go(s, a)]) for a, p in enumerate(policy(s)))
            for s in range(23)
        ]
    return value[0] / GAMMA**7


@pytest.mark.parametrize("method", METHODS)
def test_fast_beside_naive(method: str) -> None:
    found = train(method, 1.0, 300, seeds=(4, 7))
    assert found.shape == (2, 31)
    assert found[1, -1] == pytest.approx(naive(method, 1.0, 300, 7), rel=1e-9)
    assert found[1, -1] != found[0, -1]


def test_a_seed_is_the_same_alone() -> None:
    assert train("pgql", 1.0, 100, seeds=(3,))[0] == pytest.approx(train("pgql", 1.0, 100, seeds=(1, 3))[1], rel=1e-12)


@pytest.mark.usefixtures("inkless")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After 600 steps PGQL is ahead of both of its parts."""
    monkeypatch.setattr(pgql_grid, "STEP_SIZES", (1.0,))
    assert pgql_grid.main(["--out", str(tmp_path), "--steps", "600", "--seeds", "4"]) == 0
    assert len(capsys.readouterr().out.split()) == 3
    table = pd.read_csv(tmp_path / "pgql_grid.csv")
    assert len(table) == 3 * 61
    last = table[table["agent_steps"] == 600].set_index("method")["share_of_best"]
    assert last["pgql"] > 1.1 * last["actor_critic"] > 1.1 * last["q_learning"]
    assert (table["low"] <= table["share_of_best"] + 1e-9).all()
    with pytest.raises(SystemExit, match="2"):
        pgql_grid.main(["--steps", "0"])
