"""benchmarks/measure_backends.py: what it counts and compares, by hand; and all of it, tiny."""

import sys
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from a3c_bench.config import compose
from benchmarks import measure_backends
from benchmarks.measure_backends import Row


def test_phantom_steps_take_time_and_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two environments, of which one steps; a second passes from each look at the clock to the next."""
    step = SimpleNamespace(valid=np.array([True, False]))
    envs = SimpleNamespace(n_actions=2, reset=lambda: None, step=lambda actions: step, close=lambda: None)
    monkeypatch.setattr(measure_backends, "make_envs", lambda *args: envs)
    monkeypatch.setattr(measure_backends.time, "perf_counter", count().__next__)
    assert measure_backends.simulate(compose(["algo.n_envs=2"]), 5.0) == 4 / 5


def test_ratios_are_within_rounds_and_of_as_many_environments() -> None:
    rows = [
        Row(2, "EnvPool", [100.0, 200.0, 1000.0], [50.0, 50.0, 50.0]),
        Row(2, "Gymnasium in place", [50.0, 20.0, 900.0], [50.0, 25.0, 200.0]),  # 0.5, 0.1, 0.9 and 1, 0.5, 4
        Row(4, "EnvPool", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    ]
    assert measure_backends.table(rows).splitlines()[2:] == [
        "| 2 | EnvPool | 200 | 1.00 | 50 | 1.00 |",
        "| 2 | Gymnasium in place | 50 | 0.50 | 50 | 1.00 |",
        "| 4 | EnvPool | 1 | 1.00 | 1 | 1.00 |",
    ]


@pytest.mark.slow
def test_a_tiny_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    simulated: list[Any] = []
    make_envs = measure_backends.make_envs

    def keep(*args: Any) -> Any:
        envs = make_envs(*args)
        simulated.append((envs.spec.backend, type(envs._simulation).__name__))
        return envs

    monkeypatch.setattr(measure_backends, "make_envs", keep)
    monkeypatch.setattr(sys, "argv", ["measure_backends", "--tiny"])
    measure_backends.main()
    assert simulated == [("envpool", "Threads"), ("gymnasium", "InPlace"), ("gymnasium", "Simulators")]
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["2", backend] for backend in measure_backends.BACKENDS]
    assert all(float(row[place].replace(",", "")) > 0 for row in rows for place in (2, 4))
    assert rows[0][3] == rows[0][5] == "1.00"
