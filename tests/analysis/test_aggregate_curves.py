import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import load_runs, published
from analysis.aggregate_curves import draw, figure_and_table, main, make_methods, make_table
from analysis.statistics import optimality_gap


def play(make_run, game: str, percents: tuple[float, float], **kinds) -> Path:
    """A run of two games, at 0 and at 1,000 frames (1 s), with these human-normalised returns."""
    run = make_run(game=game, env=game, **kinds)
    random, human = published.random_and_human(game, "no-op")
    rows = [f"{frames},{frames},{frames / 1000},{random + percent / 100 * (human - random)},1"
            for frames, percent in zip((0, 1000), percents, strict=True)]  # fmt: skip
    (run / "episodes.csv").write_text(
        "frames,agent_steps,wall_seconds,episode_return,episode_length\n" + "\n".join(rows) + "\n"
    )
    return run


def at(method, curve: str, x: float, column: str = "frames") -> float:
    band = method.bands[curve, column]
    return float(np.interp(x, band.x, band.mean))


def test_the_optimality_gap_by_hand():
    assert optimality_gap([np.array([50.0, 150.0]), np.array([0.0, 100.0])]) == 37.5  # of 50, 0; 100, 0
    resamples = [np.array([[50.0, 150.0], [150.0, 150.0]]), np.array([[0.0], [100.0]])]
    assert optimality_gap(resamples).tolist() == [62.5, 0.0]


def test_four_runs_of_two_games_by_hand(make_run, tmp_path):
    play(make_run, "Pong", (0.0, 10.0), seed=0)
    play(make_run, "Pong", (0.0, 20.0), seed=1)
    play(make_run, "Breakout", (0.0, 60.0), seed=0)
    play(make_run, "Breakout", (0.0, 200.0), seed=1)
    (method,), missing = make_methods(load_runs(tmp_path), window=1)
    assert (list(method.groups), missing, method.n_runs) == (["Breakout", "Pong"], [], 4)
    assert at(method, "iqm", 0) == pytest.approx(0.0)
    assert at(method, "iqm", 1000) == pytest.approx(40.0)  # of 20 and 60
    assert at(method, "iqm", 500) == pytest.approx(20.0)
    assert at(method, "iqm", 0.5, "wall_seconds") == pytest.approx(20.0)
    assert at(method, "optimality_gap", 1000) == pytest.approx((90 + 80 + 40 + 0) / 4)
    assert at(method, "optimality_gap", 500) == pytest.approx((95 + 90 + 70 + 0) / 4, abs=0.5)
    assert np.isnan(method.bands["iqm", "frames"].low).all()  # two seeds


def test_the_interval_draws_seeds_of_each_game_among_themselves(make_run, tmp_path):
    """Games that differ much and seeds that do not: no resample has a game twice, so the band has no width."""
    for seed in range(3):
        play(make_run, "Pong", (0.0, 10.0), seed=seed)
        play(make_run, "Breakout", (0.0, 90.0), seed=seed)
    (method,), _ = make_methods(load_runs(tmp_path), window=1)
    band = method.bands["optimality_gap", "frames"]
    assert (band.low[-1], band.mean[-1], band.high[-1]) == pytest.approx((50.0, 50.0, 50.0))
    assert method.legend == "PAAC (3 seeds per game)"


def test_the_interval_of_seeds_that_differ_by_hand(make_run, tmp_path):
    for seed in range(3):
        play(make_run, "Pong", (0.0, 30.0 * seed), seed=seed)  # gaps 100, 70, 40
        play(make_run, "Breakout", (0.0, 100.0), seed=seed)  # no gap
    (method,), _ = make_methods(load_runs(tmp_path), window=1)
    band = method.bands["optimality_gap", "frames"]
    assert band.mean[-1] == pytest.approx(35.0)
    assert (band.low[-1], band.high[-1]) == pytest.approx((20.0, 50.0))  # all resamples of one seed: 1 of 27 each


def test_a_failed_run_keeps_its_return_and_one_that_is_not_over_ends_the_curve(make_run, tmp_path):
    play(make_run, "Pong", (0.0, 80.0), seed=0)
    play(make_run, "Breakout", (0.0, 80.0), seed=0)
    failed = play(make_run, "Breakout", (40.0, 40.0), seed=1, state="failed")
    rows = (failed / "episodes.csv").read_text()
    (failed / "episodes.csv").write_text(rows.replace("1000,1000,1.0", "200,200,0.2"))
    (method,), _ = make_methods(load_runs(tmp_path), window=1)
    assert method.bands["iqm", "frames"].x[-1] == 1000.0
    assert at(method, "optimality_gap", 1000) == pytest.approx((20 + (60 + 20) / 2) / 2)
    status = json.loads((failed / "status.json").read_text())
    (failed / "status.json").write_text(json.dumps(status | {"state": "finished"}))
    (method,), _ = make_methods(load_runs(tmp_path), window=1)
    assert method.bands["iqm", "frames"].x[-1] == 200.0


def test_games_that_not_every_method_has_are_named_and_left_out(make_run, tmp_path):
    for algo, games in (("paac", ("Pong", "Breakout", "Qbert")), ("a3c", ("Pong", "Breakout"))):
        for game in games:
            play(make_run, game, (0.0, 50.0), algo=algo)
    make_run()  # CartPole: nobody knows a human score
    methods, missing = make_methods(load_runs(tmp_path), window=1)
    assert [method.first.algo for method in methods] == ["a3c", "paac"]
    assert [list(method.groups) for method in methods] == [["Breakout", "Pong"]] * 2
    assert missing == ["Qbert"]
    caption = " ".join(draw(methods, missing).subfigs[-1].texts[0].get_text().split())
    assert "Games: Breakout, Pong. Left out, as not every method has them: Qbert." in caption
    assert "Breakout, Pong: 1 seed per game," in caption  # the same is said once
    table = make_table(methods, ["frames"])
    assert set(table["curve"]) == {"iqm", "optimality_gap"}
    assert set(table["n_games"]) == {2}


def test_returns_of_other_starts_have_no_constants(make_run, tmp_path):
    for game in ("Pong", "Breakout"):
        config = play(make_run, game, (0.0, 50.0)) / "config.yaml"
        changed = yaml.safe_load(config.read_text())
        changed["env"]["noop_max"] = 0
        config.write_text(yaml.safe_dump(changed))
    assert make_methods(load_runs(tmp_path), window=1) == ([], [])


def test_nothing_leaves_the_figure_or_overlaps(make_run, boxes_inside, tmp_path):
    for algo in ("paac", "a3c", "ga3c"):
        for game in ("Pong", "Breakout"):
            play(make_run, game, (0.0, 50.0), algo=algo)
    figure, table = figure_and_table(load_runs(tmp_path), window=1)
    assert len(boxes_inside(figure)) == 1
    top, _, bottom, right = figure.subfigs[0].axes
    assert top.get_ylabel() == "IQM of human-normalised\ntraining return, %"
    assert (bottom.get_xlabel(), right.get_xlabel()) == ("thousand frames", "seconds of training")
    assert bottom.get_ylim()[0] == 0.0
    assert set(table["x_axis"]) == {"frames", "wall_seconds"}


def test_the_command_writes_figure_and_numbers(make_run, tmp_path, inkless, capsys):
    for game in ("Pong", "Breakout"):
        play(make_run, game, (0.0, 50.0))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--x", "frames", "--window", "1"]) == 0
    table = pd.read_csv(tmp_path / "out" / "aggregate_curves.csv").query("curve == 'iqm'")
    assert table["value"].iloc[-1] == pytest.approx(50.0)
    assert set(table["x_axis"]) == {"frames"}


def test_one_game_is_one_sentence_and_status_2(make_run, tmp_path, capsys):
    play(make_run, "Pong", (0.0, 50.0))
    make_run()
    assert main([str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == (
        "Among the 2 runs found there are no two Atari games that every method has played.\n"
    )
