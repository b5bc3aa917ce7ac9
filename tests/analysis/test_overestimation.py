import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import load_runs
from analysis.course import make_table
from analysis.overestimation import main, make_groups

pytestmark = pytest.mark.usefixtures("draft")


def write_metrics(run: Path, max_q: Sequence[float | None], obtained: Sequence[float | None]) -> None:
    """As training writes it, an interval per 100 frames; None where no game ended."""
    n = len(max_q)
    frames = np.arange(100, 100 * n + 1, 100)
    counters = dict.fromkeys(("frames", "agent_steps", "updates", "wall_seconds", "frames_per_second", "pps", "tps"), 1)
    table = pd.DataFrame(counters, index=range(n)).assign(frames=frames, max_q=max_q, discounted_return=obtained)
    table.to_csv(run / "metrics.csv", index=False)


def write_both(make_run: Any, n_seeds: int) -> Path:
    path = Path()
    for double, bias in ((False, 10.0), (True, 1.0)):
        for seed in range(n_seeds):
            path = make_run(algo="dqn", seed=seed, overrides=f"algo.double={double}", settings={"double": double})
            write_metrics(path, [bias + seed, bias + 2 + seed], [0.0, 2.0])
    return path.parents[4]


def test_over_estimation_by_hand(make_run):
    runs = load_runs(write_both(make_run, 3))
    plain, double = make_groups(runs)
    assert [group.label for group in (plain, double)] == ["double=False", "double=True"]
    for group, bias in ((plain, 10.0), (double, 1.0)):
        band = group.bands["over_estimation"]
        assert (band.x[0], band.x[-1]) == (100, 200)
        np.testing.assert_allclose(band.mean, bias + 1.0)  # seeds 0, 1, 2
        np.testing.assert_allclose(band.low, bias)
        np.testing.assert_allclose(band.high, bias + 2.0)
        np.testing.assert_allclose(group.bands["discounted_return"].mean, np.linspace(0.0, 2.0, 200))
    table = make_table([plain, double], "frames")
    assert set(table["curve"]) == {"max_q", "discounted_return", "over_estimation"}
    assert set(table["n_seeds"]) == {3}


def test_intervals_in_which_no_game_ended_are_bridged(make_run):
    run = make_run(algo="dqn")
    write_metrics(run, [1.0, None, 3.0], [0.0, None, 0.0])
    (group,) = make_groups(load_runs(run))
    frames, difference = group.traces[0].curves["over_estimation"]
    assert frames.tolist() == [100, 300]
    assert difference.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_it_writes_a_figure_and_its_numbers(make_run, n_seeds, tmp_path):
    root = write_both(make_run, n_seeds)
    assert main([str(root), "--out", str(tmp_path / "out")]) == 0
    picture = imread(tmp_path / "out" / "overestimation.png")
    assert picture[..., :3].std() > 0.01
    assert (tmp_path / "out" / "overestimation.pdf").read_bytes().startswith(b"%PDF")
    table = pd.read_csv(tmp_path / "out" / "overestimation.csv")
    means = table[table["curve"] == "over_estimation"].groupby("label")["value"].mean()
    assert means["double=False"] - means["double=True"] == pytest.approx(9.0)


def test_runs_without_q_are_named_and_left_out(make_run, caplog, capsys):
    write_metrics(make_run(algo="dqn"), [1.0], [0.0])
    other = make_run(algo="paac")
    never = make_run(algo="dqn", seed=1)
    write_metrics(never, [None], [None])
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(other.parents[4]))
    assert [(group.algo, len(group.traces)) for group in groups] == [("dqn", 1)]
    for run in (other, never):
        assert f"{run} estimates no Q, or no game of it has ended" in caplog.text
    assert main([str(other)]) == 2
    assert "None of the 1 runs found has estimated Q" in capsys.readouterr().err
