import json

import numpy as np
import pandas as pd
import pytest

from analysis import load_runs, published
from analysis.crossings import threshold_table
from analysis.scores import aggregate_table, improvement_table, score_rows, score_tables
from analysis.summary import summarise, unique_seeds, value_of
from analysis.table import cost_table, main, make_tables
from analysis.writing import Table, number


def rewrite_status(run, **changes):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | changes))


def write_curve(run, points):
    """Points are (frames, seconds, return)."""
    rows = [{"frames": f, "agent_steps": f, "wall_seconds": s, "episode_return": r, "episode_length": 1}
            for f, s, r in points]  # fmt: skip
    pd.DataFrame(rows).to_csv(run / "episodes.csv", index=False)


def by_name(tables):
    return {table.name: table for table in tables}


# --- published scores


@pytest.mark.parametrize(
    ("method", "mean", "median"),
    [
        ("DQN", 121.9, 47.5),
        ("Gorila", 215.2, 71.3),
        ("A3C FF, 4 days", 496.8, 116.6),
        ("A3C LSTM, 4 days", 623.0, 112.6),
        ("A3C FF, 1 day", 344.1, 68.2),
    ],
)
def test_a3c_table_1_recomputed(method, mean, median):
    """Mnih et al. (2016), Table 1: human-normalised scores from human starts."""
    scores = published.scores()
    rows = scores[(scores["starts"] == "human-starts") & (scores["method"] == method)]
    percent = published.normalise(rows)
    assert len(percent) == (49 if method in ("DQN", "Gorila") else 57)
    assert percent.mean() == pytest.approx(mean, abs=0.5)
    assert percent.median() == pytest.approx(median, abs=0.5)


def test_every_published_figure_has_a_source_and_some_are_unchecked():
    scores, speeds = published.scores(), published.speeds()
    assert scores["source"].notna().all()
    assert speeds["source"].notna().all()
    assert set(scores[~scores["checked"]]["method"]) == {"PAAC nature", "PAAC nips"}
    assert not scores.duplicated(["game", "method", "starts"]).any()
    assert set(scores["starts"]) == {"no-op", "human-starts", "unstated", "training"}


def test_speed_ups_are_those_of_table_2():
    workers, ratios = published.speed_ups()
    assert workers.tolist() == [1, 2, 4, 8, 16]
    assert ratios.tolist() == [1.0, 2.1, 3.7, 6.9, 12.5]


# --- the summary


def test_the_summary_by_hand(make_run, tmp_path):
    run = make_run(settings={"n_agents": 16, "optimizer": {"lr": 0.01}}, best_return=100.0, seed=2)
    write_curve(run, [(0, 0.0, 0.0), (100, 1.0, 10.0), (200, 2.0, 20.0)])  # means 0, 5, 10
    rewrite_status(run, frames=200, agent_steps=50, updates=10, wall_seconds=2.0,
                   calibration={"serial_bound_agent_steps_per_second": 100.0})  # fmt: skip
    metrics = pd.DataFrame({"frames": [50, 200], "agent_steps": 0, "updates": 0, "wall_seconds": [0.5, 2.0]})
    metrics = metrics.assign(frames_per_second=1, pps=1, tps=1, share_train=[0.2, 0.6], learning_rate=[0.1, 0.05])
    metrics.to_csv(run / "metrics.csv", index=False)
    lag = pd.DataFrame({"frames": [50, 200], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0})
    lag.assign(lag_updates_mean=[1.0, 3.0], lag_updates_p95=[4.0, 8.0]).to_csv(run / "lag.csv", index=False)
    runs = load_runs(tmp_path)
    (row,) = summarise(runs).to_dict("records")
    expected = {
        "score": 102.0, "games": 2, "training_score": 10.0, "area": 5.0, "starts": "as the environment has them",
        "frames_per_second": 100.0, "pps": 25.0, "tps": 5.0, "share_of_bound": 0.25, "hours": 2 / 3600,
        "share_train": (0.5 * 0.2 + 1.5 * 0.6) / 2, "learning_rate": 0.01, "lag_updates": 2.0, "lag_updates_p95": 6.0,
        "name": "PAAC", "seed": 2, "hardware": "Imaginary CPU 9000, 2 cores, no GPU",
    }  # fmt: skip
    for key, value in expected.items():
        assert row[key] == pytest.approx(value) if isinstance(value, float) else row[key] == value
    assert np.isnan(row["lag_frames"])
    assert value_of(runs[0], row, "pps") == 25.0
    assert value_of(runs[0], row, "n_agents") == value_of(runs[0], row, "algo.n_agents") == 16
    assert value_of(runs[0], row, "optimizer.lr") == 0.01
    assert np.isnan(value_of(runs[0], row, "agents"))  # not the end of a key
    assert np.isnan(value_of(runs[0], row, "life_loss_terminal"))  # no number


def test_starts_of_an_atari_evaluation(make_run, tmp_path):
    make_run(game="Pong", env="Pong")
    other = make_run(game="Pong", env="Pong", seed=1)
    games = pd.read_csv(other / "eval.csv").assign(noop_max=1)
    games.to_csv(other / "eval.csv", index=False)
    (make_run(game="Pong", env="Pong", seed=2) / "eval.csv").unlink()
    assert summarise(load_runs(tmp_path))["starts"].tolist() == ["no-op", "up to 1 no-op frames", "training"]


def test_a_run_without_any_table_has_a_row(make_run, tmp_path):
    run = make_run()
    for file in run.glob("*.csv"):
        file.unlink()
    (row,) = summarise(load_runs(tmp_path)).to_dict("records")
    assert np.isnan(row["score"])
    assert np.isnan(row["training_score"])
    assert summarise([]).empty
    assert "score" in summarise([])


# --- scores


def test_scores_beside_published_ones(make_run, tmp_path):
    for seed in range(3):
        make_run(game="Pong", env="Pong", seed=seed, best_return=20.0)  # 20, 21, 22
    tables = by_name(score_tables(score_rows(summarise(load_runs(tmp_path)), lambda method: method.startswith("PAAC"))))
    assert list(tables) == ["scores_no_op"]
    table = tables["scores_no_op"]
    assert table.text["method"].tolist() == ["PAAC", "PAAC nature (published)", "PAAC nips (published)"]
    assert table.text["Pong"].tolist() == ["21.0 [20.0, 22.0]", "20.9 ?", "20.6 ?"]
    ours = table.numbers[table.numbers["ours"].astype(bool)].iloc[0]
    assert (ours["score"], ours["n_seeds"], ours["games"]) == (21.0, 3, 2)
    assert ours["human_normalised_percent"] == pytest.approx(100 * (21 + 20.7) / (14.6 + 20.7))
    assert any("not checked" in note for note in table.notes)
    assert any("Clemente" in note for note in table.notes)


def test_starts_are_never_mixed(make_run, tmp_path):
    make_run(game="Breakout", env="Breakout")
    (make_run(game="Pong", env="Pong", algo="a3c") / "eval.csv").unlink()
    rows = score_rows(summarise(load_runs(tmp_path)))
    tables = by_name(score_tables(rows))
    assert set(tables) == {"scores_no_op", "scores_training", "scores_human_starts", "scores_unstated"}
    for table in tables.values():
        assert table.numbers["starts"].nunique() == 1
    assert not tables["scores_human_starts"].numbers["ours"].any()
    assert "nothing of ours" in tables["scores_human_starts"].notes[0]
    ours = {name: table.numbers[table.numbers["ours"].astype(bool)]["method"].tolist()
            for name, table in tables.items()}  # fmt: skip
    assert ours["scores_no_op"] == ["PAAC"]
    assert ours["scores_training"] == ["A3C"]
    assert tables["scores_training"].numbers["method"].tolist().count("PPO (baselines ppo2)") == 2


def test_a_seed_counts_once_and_a_finished_run_first(make_run, tmp_path):
    make_run(seed=0, name="a", state="failed", best_return=1.0)
    make_run(seed=0, name="b", best_return=50.0)
    summary = summarise(load_runs(tmp_path)).assign(label="")
    assert unique_seeds(summary)["state"].tolist() == ["finished"]


def test_the_longer_side_goes_down(make_run, tmp_path):
    for env in ("CartPole-v1", "Acrobot-v1"):
        make_run(env=env)
    (table,) = score_tables(score_rows(summarise(load_runs(tmp_path))))
    assert list(table.text) == ["environment", "PAAC"]
    assert table.text["environment"].tolist() == ["Acrobot-v1", "CartPole-v1"]
    assert any("No interval" in note for note in table.notes)


# --- aggregates


def test_human_normalised_aggregates_by_hand(make_run, tmp_path):
    """Pong: random -20.7 and human 14.6 (no-op), so 14.6 is 100%."""
    for game, best in (("Pong", 14.6), ("Breakout", 30.5)):
        for seed in range(3):
            make_run(game=game, env=game, seed=seed, best_return=best - seed)  # best + seed - seed: no spread
    make_run(game="Boxing", env="Boxing", algo="a3c")
    make_run(game="Pong", env="Pong", algo="a3c", best_return=-20.7)
    summary = summarise(load_runs(tmp_path))
    table = aggregate_table(summary, score_rows(summary, lambda method: method == "DQN"))
    numbers = table.numbers.set_index("method")
    assert "games: Pong." in table.notes[0]  # the one that both have
    assert numbers.loc["PAAC", "mean"] == pytest.approx(100.0)
    assert numbers.loc["PAAC", ["mean_low", "mean_high"]].tolist() == pytest.approx([100.0, 100.0])
    assert numbers.loc["A3C", "median"] == pytest.approx(0.0)
    assert np.isnan(numbers.loc["A3C", "iqm_low"])
    assert numbers.loc["DQN", "mean"] == pytest.approx(100 * (18.9 + 20.7) / 35.3)
    assert not numbers.loc["DQN", "ours"]


def test_no_aggregate_beside_atari(make_run, tmp_path):
    make_run()
    summary = summarise(load_runs(tmp_path))
    assert aggregate_table(summary, score_rows(summary)) is None


def test_improvement(make_run, tmp_path):
    for seed in range(3):
        make_run(seed=seed, best_return=100.0)  # 100, 101, 102
        make_run(seed=seed, best_return=101.0, algo="a3c")  # 101, 102, 103
    table = improvement_table(summarise(load_runs(tmp_path)))
    numbers = table.numbers.set_index(["method", "over"])
    # A3C wins 6 of 9 and ties twice
    assert numbers.loc[("A3C", "PAAC"), "probability"] == pytest.approx(7 / 9)
    assert numbers.loc[("PAAC", "A3C"), "probability"] == pytest.approx(2 / 9)
    assert table.text["beats PAAC"].tolist()[0].startswith("0.78 [")


# --- time to a score, and cost


def test_runs_that_never_reach_a_score_are_censored(make_run, tmp_path):
    for seed, (height, end) in enumerate(((10.0, 100), (10.0, 200), (3.0, 300))):
        write_curve(make_run(seed=seed), [(0, 0.0, 0.0), (end, end / 10, 2 * height)])  # means 0, height
        write_curve(make_run(seed=seed, algo="a3c"), [(0, 0.0, 0.0), (end, end / 10, height / 4)])
    table = threshold_table(load_runs(tmp_path), 8.0)
    paac, a3c = (table.numbers.set_index("method").loc[name] for name in ("PAAC", "A3C"))
    assert (paac["n_reached"], paac["n_seeds"]) == (2, 3)
    assert (paac["median_frames"], paac["median_seconds"]) == (200, 20.0)
    assert (a3c["n_reached"], a3c["median_frames"]) == (0, np.inf)
    assert table.text.set_index("method").loc["A3C", "frames, median"] == "never (to 300.0)"
    assert "censored" in table.notes[0]


def test_the_threshold_by_itself(make_run, tmp_path):
    write_curve(make_run(), [(0, 0.0, 0.0), (10, 1.0, 200.0)])
    assert threshold_table(load_runs(tmp_path), window=1).numbers["threshold"].tolist() == [180.0]
    run = make_run(seed=1)
    config = (run / "config.yaml").read_text()
    for directory in (run, run.parent / "seed0"):
        (directory / "config.yaml").write_text(config.replace("seed: 1", f"seed: {directory.name[-1]}")
                                               + "budget:\n  target_return: 42.0\n")  # fmt: skip
    assert threshold_table(load_runs(tmp_path)).numbers["threshold"].tolist() == [42.0]
    assert threshold_table([]) is None


def test_cost(make_run, tmp_path):
    for seed, seconds in enumerate((3600.0, 7200.0)):
        rewrite_status(make_run(seed=seed), frames=36_000, agent_steps=9_000, updates=900, wall_seconds=seconds)
    row = cost_table(summarise(load_runs(tmp_path))).numbers.iloc[0]
    assert (row["n_runs"], row["hours"], row["total_hours"]) == (2, 1.5, 3.0)
    assert row["frames_per_second"] == pytest.approx(7.5)


# --- writing


def test_markdown_and_latex_hold_every_cell():
    text = pd.DataFrame({"a|b": ["50%", "x_y"], "n & m": ["1", "2"]})
    table = Table("odd", "Odd {marks}", text, text, ["A note: 5 % of $3."])
    lines = table.markdown().splitlines()
    assert lines[2:6] == ["| a\\|b | n & m |", "| --- | --- |", "| 50% | 1 |", "| x_y | 2 |"]
    latex = table.latex()
    assert r"50\% & 1 \\" in latex
    assert r"x\_y & 2 \\" in latex
    assert r"n \& m" in latex
    assert r"\caption{Odd \{marks\}. A note: 5 \% of \$3.}" in latex
    assert latex.count("{table}") == latex.count("{tabular}") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.56, "1,234.6"), (0.00123, "0.0012"), (0.0, "0.0"), (123456.0, "123,456"), (np.nan, "-"), (-5.0, "-5.0")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_the_command_writes_every_table_thrice(make_run, tmp_path, capsys):
    for algo in ("paac", "a3c"):
        for seed in range(3):
            make_run(algo=algo, seed=seed, game="Pong", env="Pong")
    assert main([str(tmp_path / "runs"), "--threshold", "100", "--out", str(tmp_path / "out")]) == 0
    files = sorted(tmp_path.glob("out/*"))
    assert capsys.readouterr().out.split() == [str(file) for table in make_tables(load_runs(tmp_path / "runs"), 100.0)
                                               for file in (tmp_path / "out" / f"{table.name}.{end}"
                                                            for end in ("csv", "md", "tex"))]  # fmt: skip
    names = {file.stem for file in files}
    assert {"scores_no_op", "human_normalised", "improvement", "time_to_threshold", "cost"} <= names
    assert len(files) == 3 * len(names)
    scores = pd.read_csv(tmp_path / "out" / "scores_no_op.csv")
    assert "Double DQN" not in set(scores["method"])
    assert pd.read_csv(tmp_path / "out" / "time_to_threshold.csv")["threshold"].tolist() == [100.0, 100.0]
    assert main([str(tmp_path / "runs"), "--published", "all"]) == 0
    assert "Double DQN" in set(pd.read_csv(tmp_path / "runs" / "tables" / "scores_no_op.csv")["method"])


def test_a_root_without_runs_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
