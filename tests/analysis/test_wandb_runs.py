"""Runs out of wandb's own files, beside the CSV files of the same runs."""

import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from a3c_bench.config import compose
from a3c_bench.train import train
from analysis import curves, load_runs, wandb_runs
from analysis.wandb_runs import WandbError, WandbRun, read_offline

COUNTERS = ["frames", "agent_steps", "updates", "wall_seconds"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that logged to wandb offline, of this suite itself."""
    pytest.importorskip("wandb")
    run = tmp_path_factory.mktemp("trained") / "run"
    log_to_wandb(run)
    assert "left out" not in (run / "a3c_bench.log").read_text()
    wait_until_whole(run)
    return run


def wait_until_whole(run: Path) -> None:
    """wandb's finish() comes back when wandb-core has the last record, some time before the file has it."""
    deadline = time.monotonic() + 60.0
    while [other.state for other in read_offline(run.glob("wandb/offline-run-*/*.wandb"))] != ["finished"]:
        assert time.monotonic() < deadline, "wandb's file is not whole"
        time.sleep(0.05)


def log_to_wandb(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        train(
            compose([
                *("algo=paac", "algo.n_envs=4", "network.hidden_sizes=[8]", "budget.frames=1200", "logger=wandb"),
                *("metrics_interval_frames=200", "evaluation.n_games=3", "evaluation.interval_frames=600"),
                *("progress=false", "seed=5", "name=tried"),
            ]),
            run,
        )  # fmt: skip


@pytest.fixture
def offline(trained, tmp_path) -> Path:
    """Its offline directory, away from the run directory."""
    (source,) = (trained / "wandb").glob("offline-run-*")
    return Path(shutil.copytree(source, tmp_path / "elsewhere" / source.name))


def test_an_offline_run_gives_the_same_frames(trained, offline):
    (ours,), (theirs,) = load_runs(trained), load_runs(offline.parent)
    assert isinstance(theirs, WandbRun)
    assert (theirs.algo, theirs.env, theirs.seed, theirs.state) == ("paac", "CartPole-v1", 5, "finished")
    assert theirs.config == ours.config
    assert {key: theirs.status[key] for key in COUNTERS} == pytest.approx({key: ours.status[key] for key in COUNTERS})
    assert theirs.status["machine"]["cores"] == os.cpu_count()  # wandb counts them all, allowed or not
    for table in ("metrics", "lag"):
        expected = getattr(ours, table)().dropna(axis="columns", how="all")
        found = getattr(theirs, table)()
        assert len(expected) >= 5
        assert set(expected) <= set(found)
        pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False, rtol=1e-5)
    games = ours.evaluations().groupby(["frames", "final"], as_index=False)["episode_return"].agg(["mean", "count"])
    known = theirs.evaluations().groupby(["frames", "final"], as_index=False)["episode_return"].agg(["mean", "count"])
    pd.testing.assert_frame_equal(known, games, check_dtype=False)
    assert theirs.episodes().empty
    assert theirs.lag_histogram().empty


def test_what_was_logged_is_drawn(trained, offline, inkless, tmp_path, capsys):
    assert curves.main([str(offline), "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "curves.csv").query("x_axis == 'frames'")
    (run,) = load_runs(trained)
    last = run.metrics().iloc[-1]
    assert table["x"].iloc[-1] == pytest.approx(last["frames"])
    assert table["mean_return"].iloc[-1] == pytest.approx(last["mean_return_100_games"], rel=1e-4)


def test_a_run_directory_counts_once(trained):
    (run,) = load_runs(trained)
    assert not isinstance(run, WandbRun)


def test_a_run_that_went_on_counts_what_was_done_again_once(offline):
    (file,) = offline.glob("*.wandb")
    later = offline.parent / "offline-run-29991231_235959-again"
    later.mkdir()
    shutil.copy(file, later / file.name)
    (whole,), (again,) = read_offline([file]), read_offline([later / file.name, file])
    pd.testing.assert_frame_equal(again.rows, whole.rows)


def test_a_file_that_is_still_written_is_read_as_far_as_it_is(offline):
    (file,) = offline.glob("*.wandb")
    (whole,) = load_runs(offline)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (part,) = load_runs(offline)
    assert part.state == "running"
    assert 0 < len(part.metrics()) <= len(whole.metrics())


@pytest.mark.parametrize("content", [b"", b"nonsense", b":W&B&B\xe1"])
def test_what_holds_no_run_is_named(tmp_path, caplog, content):
    (tmp_path / "run-1.wandb").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_runs(tmp_path) == []
    assert "left out" in caplog.text


def fake_wandb(monkeypatch, logged_in: bool, runs: Any = ()) -> None:
    module: Any = ModuleType("wandb")
    module.login = lambda prompt, verify: logged_in
    module.Api = lambda timeout: SimpleNamespace(runs=runs)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_a_project_without_login_is_one_sentence(monkeypatch, capsys):
    fake_wandb(monkeypatch, logged_in=False)
    with pytest.raises(WandbError, match=r"nobody is logged in to wandb here; `wandb login` does that\."):
        load_runs("wandb:me/project")
    assert curves.main(["wandb:me/project"]) == 2
    assert capsys.readouterr().err.strip().endswith("`wandb login` does that.")


def test_wandb_itself_is_asked_for_a_login_and_never_prompts(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(WandbError, match="nobody is logged in"):
        load_runs("wandb:me/project")


def test_an_online_project(monkeypatch, trained):
    """The API stood in for: nobody is logged in where tests run."""
    (local,) = load_runs(trained)
    rows = [
        {"frames": 100.0, "wall_seconds": 1.0, "pps": 100.0, "mean_return_100_games": 20.0, "_step": 0},
        {"frames": 200.0, "wall_seconds": 2.0, "pps": 100.0, "mean_return_100_games": 30.0, "_step": 1},
        {"frames": 200.0, "wall_seconds": 2.0, "evaluation_mean_return": 40.0, "evaluation_games": 3, "_step": 2},
    ]
    asked = []

    def runs(path: str) -> list[Any]:
        asked.append(path)
        metadata = {"cpu_count_logical": 8}
        ok = SimpleNamespace(
            id="a1", config=local.config, scan_history=lambda: rows, metadata=metadata, state="finished"
        )
        foreign = SimpleNamespace(id="b2", config={}, scan_history=lambda: [], metadata=None, state="finished")
        return [ok, foreign]

    fake_wandb(monkeypatch, logged_in=True, runs=runs)
    (run,) = load_runs("wandb:me/project")
    assert asked == ["me/project"]
    assert (run.path, run.state, run.status["frames"]) == (Path("wandb:me/project/a1"), "finished", 200.0)
    assert run.training_returns(100)["mean_return"].tolist() == [20.0, 30.0]
    assert run.evaluations()["episode_return"].tolist() == [40.0] * 3
    assert run.evaluations()["final"].all()
    assert np.isfinite(run.metrics()["pps"]).all()


def test_a_project_that_cannot_be_read_is_one_sentence(monkeypatch):
    def runs(path: str) -> list[Any]:
        raise ValueError("Could not find\nproject")

    fake_wandb(monkeypatch, logged_in=True, runs=runs)
    with pytest.raises(WandbError, match=r"^wandb:me/project cannot be read: Could not find project$"):
        load_runs("wandb:me/project")


def test_rows_that_were_done_again_count_once():
    """Killed after 300, gone on from 100; the evaluation at 200 was lost, that at 400 came after its row."""
    frames = [100, 200, 200.5, 300, 200, 200.5, 300, 400, 400.5]
    columns = ["pps" if at == int(at) else "evaluation_mean_return" for at in frames]
    rows = [{"frames": int(at), column: 1.0 + i} for i, (at, column) in enumerate(zip(frames, columns, strict=True))]
    assert wandb_runs._once(rows) == [rows[0], *rows[4:]]
    assert wandb_runs._once([rows[0], rows[1], rows[4]]) == [rows[0], rows[4]]
