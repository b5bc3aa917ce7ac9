"""Runs as they are met: none, unfinished ones, single seeds, mixed environments, gaps, tables of an older version.

What can be drawn is drawn, and the rest is one sentence.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import course, curves, gallery, lag, overestimation, profiles, relation, report, speed, study, table

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "curves": curves.main,
    "lag": lag.main,
    "speed": speed.main,
    "table": table.main,
    "profiles": profiles.main,
    "overestimation": overestimation.main,
    "relation": lambda words: relation.main([*words, "--x", "lag_updates", "--y", "score", "training_score"]),
    "course": lambda words: course.main([*words, "--columns", "entropy_nats"]),
    "study": study.main,
    "report": report.main,
}
ALLOWED = ("curves", "lag", "speed", "table", "profiles", "relation", "course")  # by what `write` writes


def write(make_run, **kinds) -> Path:
    """A run with all its tables."""
    run = make_run(**kinds)
    n = 20
    frames = np.linspace(500, 20_000, n).astype(int)
    counters = pd.DataFrame(
        {"frames": frames, "agent_steps": frames, "updates": frames // 10, "wall_seconds": frames / 2000}
    )
    shares = {f"share_{part}": 0.25 for part in ("simulate", "predict", "train", "wait")}
    metrics = counters.assign(frames_per_second=2000.0, pps=2000.0, tps=200.0, entropy_nats=0.5, **shares)
    metrics.to_csv(run / "metrics.csv", index=False)
    units = {f"lag_{unit}_{part}": 3.0 for unit in ("updates", "frames") for part in ("mean", "p50", "p95", "max")}
    counters.assign(**units).to_csv(run / "lag.csv", index=False)
    bins = {"unit": ["lag_updates", "lag_frames"], "lower": 3, "upper": 4, "samples": 100}
    pd.DataFrame(bins).to_csv(run / "lag_histogram.csv", index=False)
    return run


def change(file: Path, by: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    by(pd.read_csv(file)).to_csv(file, index=False)


def draw(command: str, root: Path, capsys) -> tuple[int, list[str]]:
    """Exit status, and what was said."""
    capsys.readouterr()
    status = COMMANDS[command]([str(root), "--out", str(root.parent / "out")])
    return status, capsys.readouterr().err.strip().splitlines()


@pytest.fixture(autouse=True)
def few_figures(monkeypatch, inkless):
    """The report's other figures are those of the commands, and nobody looks at these."""
    monkeypatch.setattr(gallery, "OTHERS", ())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_root_is_one_sentence(tmp_path, capsys, command):
    (tmp_path / "runs").mkdir()
    assert draw(command, tmp_path / "runs", capsys) == (
        2,
        [
            f"{tmp_path / 'runs'} holds no run: a run is a directory with config.yaml and status.json, or another "
            "library's log."
        ],
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_root_is_one_sentence(tmp_path, capsys, command):
    status, said = draw(command, tmp_path / "nowhere", capsys)
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"{tmp_path / 'nowhere'} is not a directory")


@pytest.mark.parametrize("command", ["curves", "lag"])
def test_a_folder_that_cannot_be_written_is_one_sentence(make_run, tmp_path, capsys, command):
    write(make_run)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "below"
    assert COMMANDS[command]([str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"The figures cannot be written to {out}: Not a directory.\n"


@pytest.mark.parametrize("command", ALLOWED)
def test_unfinished_runs_are_drawn_as_far_as_they_are(make_run, tmp_path, capsys, command):
    for seed in range(3):
        (write(make_run, seed=seed, state="running") / "eval.csv").unlink()
    assert draw(command, tmp_path / "runs", capsys) == (0, [])
    assert list((tmp_path / "out").iterdir())


def test_unfinished_runs_are_named(make_run, tmp_path, capsys):
    (write(make_run, state="running") / "eval.csv").unlink()
    assert draw("report", tmp_path / "runs", capsys)[0] == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1 running." in page
    assert "It is still running, or was killed, after" in page
    assert "These runs have no final evaluation" in page


@pytest.mark.parametrize("command", ALLOWED)
def test_environments_are_kept_apart(make_run, tmp_path, capsys, command):
    for seed in range(3):
        write(make_run, seed=seed)
        write(make_run, seed=seed, game="Pong", env="Pong", best_return=20.0)
    assert draw(command, tmp_path / "runs", capsys)[0] == 0
    tables = [pd.read_csv(file) for file in (tmp_path / "out").glob("*.csv")]
    envs = [set(one["env"]) for one in tables if "env" in one]
    assert command == "profiles" or {"CartPole-v1", "Pong"} in envs


@pytest.mark.parametrize("command", ALLOWED)
def test_one_seed_has_no_interval(make_run, tmp_path, capsys, command):
    write(make_run)
    assert draw(command, tmp_path / "runs", capsys) == (0, [])
    for file in (tmp_path / "out").glob("*.csv"):
        numbers = pd.read_csv(file)
        intervals = [column for column in numbers if column in ("low", "high") or column.startswith(("low_", "high_"))]
        assert numbers.get("ours", pd.Series([True])).all()
        assert numbers[intervals].isna().all(axis=None)


@pytest.mark.parametrize("command", ALLOWED)
def test_rows_without_numbers_are_left_out(make_run, tmp_path, capsys, caplog, command):
    for seed in range(3):
        run = write(make_run, seed=seed)
        for name, column in (("episodes", "episode_return"), ("metrics", "entropy_nats"), ("lag", "lag_updates_mean")):
            change(
                run / f"{name}.csv",
                lambda rows, column=column: rows.assign(**{column: rows[column].mask(rows.index % 7 == 3)}),
            )
    assert draw(command, tmp_path / "runs", capsys)[0] == 0
    for file in (tmp_path / "out").glob("*.csv"):
        numbers = pd.read_csv(file)
        for column in {"value", "mean_return", "score"} & set(numbers):
            assert np.isfinite(numbers[column]).all()
    if command == "curves":
        assert sum("damaged rows are left out" in line for line in caplog.messages) == 3  # one for each run


@pytest.mark.parametrize("command", [*ALLOWED, "report"])
def test_tables_of_an_older_version_are_drawn_without_what_they_lack(make_run, tmp_path, capsys, command):
    for seed in range(3):
        run = write(make_run, seed=seed)
        change(
            run / "metrics.csv", lambda rows: rows.drop(columns=[name for name in rows if name.startswith("share_")])
        )
        change(
            run / "lag.csv", lambda rows: rows.drop(columns=[name for name in rows if name.startswith("lag_frames")])
        )
        change(run / "eval.csv", lambda rows: rows.drop(columns="final"))
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({key: status[key] for key in ("state", "frames", "wall_seconds")}))
        lines = (run / "config.yaml").read_text().splitlines()
        dropped = ("noop_max", "sticky_action_probability", "life_loss_terminal", "name: demo")
        kept = [line for line in lines if not line.strip().startswith(dropped)]
        (run / "config.yaml").write_text("\n".join(kept))
    status, said = draw(command, tmp_path / "runs", capsys)
    assert status == 0
    assert all(line.endswith((".", "figure.")) for line in said)
    assert list((tmp_path / "out").iterdir())


def test_a_table_that_lacks_what_it_needs_is_named_once(make_run, tmp_path, capsys, caplog):
    runs = [write(make_run, seed=seed) for seed in range(3)]
    change(runs[0] / "episodes.csv", lambda rows: rows.drop(columns="wall_seconds"))
    assert draw("curves", tmp_path / "runs", capsys)[0] == 0
    assert [line for line in caplog.messages if "wall_seconds" in line] == [
        f"{runs[0] / 'episodes.csv'} is left out: it has no column wall_seconds."
    ]
    assert set(pd.read_csv(tmp_path / "out" / "curves.csv")["n_seeds"]) == {2}


def test_what_no_run_has_is_one_sentence(make_run, tmp_path, capsys):
    write(make_run)
    status, said = draw("overestimation", tmp_path / "runs", capsys)
    assert status == 2
    assert said[-1] == "None of the 1 runs found has estimated Q and finished a game."
