import json
import subprocess

import pytest

from a3c_bench.config import compose
from analysis import load_runs, peers
from analysis.peers import Measurement, compare, format_table, main


def test_sides_take_turns_and_medians_are_compared():
    order: list[str] = []
    seconds = {"a3c_bench": iter([1.0, 4.0, 2.0]), "sb3": iter([5.0, 10.0, 20.0])}

    def measure(contest, side, n_envs, agent_steps):
        order.append(side)
        return Measurement(agent_steps, next(seconds[side]))

    result = compare("dqn", 1, 1000, 3, measure)
    assert order == ["a3c_bench", "sb3"] * 3
    assert result["rates"]["a3c_bench"] == [1000.0, 250.0, 500.0]
    assert result["medians"] == {"a3c_bench": 500.0, "sb3": 100.0}
    assert result["ratio"] == 5.0
    machine = {"cpu": "Imaginary", "cores": 2, "load_before": 0.25}
    table = format_table(result, {"contest": "dqn", "n_envs": 1, "agent_steps": 1000, **machine})
    assert "ratio of the medians: 5.00" in table
    assert "Imaginary, 2 cores" in table
    assert table.splitlines()[1].split() == ["a3c_bench", "DQN", "1,000", "250", "500", "500"]


@pytest.mark.parametrize(
    ("contest", "n_envs", "words"),
    [
        ("a2c", 8, {"algo=paac", "algo.n_envs=8", "budget.frames=1000", "network.shared_trunk=false"}),
        ("dqn", 1, {"algo=dqn", "algo.n_envs=1", "budget.frames=1000", "algo.replay.batch_size=32"}),
        ("dqn_pong", 1, {"env=pong", "budget.frames=4000", "network=nature"}),
    ],
)
def test_our_side_asks_for_the_same_work(contest, n_envs, words, monkeypatch, make_run):
    asked: list[str] = []

    def fake_run(module, *arguments):
        asked.extend([module, *arguments])
        return ""

    path = make_run()
    status = json.loads((path / "status.json").read_text())
    monkeypatch.setattr(peers, "_run", fake_run)
    monkeypatch.setattr(peers, "load_runs", lambda root: load_runs(path))
    measurement = peers.measure(contest, "a3c_bench", n_envs, 1000)
    assert (measurement.agent_steps, measurement.seconds) == (status["agent_steps"], status["wall_seconds"])
    assert asked[0] == "a3c_bench.run"
    assert words <= set(asked)
    config = compose(asked[1:])  # all of them are words of ours
    assert config.budget.frames in (1000, 4000)


def test_without_stable_baselines3_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "pip install 'a3c-bench[peers]'" in capsys.readouterr().err


def test_a_side_that_fails_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    failed = subprocess.CompletedProcess([], 3, stdout="", stderr="Traceback\nValueError: no such thing\n")
    monkeypatch.setattr(peers.subprocess, "run", lambda *args, **kwargs: failed)
    assert main(["dqn", "--repeats", "1"]) == 1
    assert "ended with status 3: ValueError: no such thing" in capsys.readouterr().err


def test_stable_baselines3_trains_here():
    pytest.importorskip("stable_baselines3")
    for train, n_envs in ((peers.train_a2c, 2), (peers.train_dqn, 1)):
        measurement = train(n_envs, 50)
        assert 50 <= measurement.agent_steps < 60  # DQN takes four at a time
        assert measurement.rate > 0


def test_a_busy_machine_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(peers, "machine", lambda: {"cpu": "Imaginary", "cores": 2, "load_before": 2.5})
    result = {"rates": {side: [2.0] for side in peers.SIDES}, "medians": dict.fromkeys(peers.SIDES, 2.0), "ratio": 1.0}
    monkeypatch.setattr(peers, "compare", lambda *args: result)
    out = tmp_path / "peers.json"
    assert main(["--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "busy (load 2.5)" in printed.err
    assert "ratio of the medians: 1.00" in printed.out
    assert json.loads(out.read_text())["conditions"]["n_envs"] == 64
