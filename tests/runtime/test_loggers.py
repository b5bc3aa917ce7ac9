"""The guests: what they write, and that nothing which fails in them ends a run."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from a3c_bench.runtime.loggers import Guest, make_loggers, seed_group, tensorboard_tag
from a3c_bench.runtime.recorder import LAG_COLUMNS, METRIC_COLUMNS
from a3c_bench.schema import Config, LoggerConfig, WandbConfig
from a3c_bench.train import train

OFFLINE = LoggerConfig(wandb=WandbConfig(mode="offline"))


class Recording:
    """A logger that keeps what it gets and fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fails_at = fails_at

    def start(self, frames: float) -> None:
        self._take("start", frames)

    def log(self, row: Mapping[str, Any]) -> None:
        self._take("log", dict(row))

    def close(self) -> None:
        self._take("close", None)

    def _take(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.fails_at:
            raise ValueError(f"in {name}")


def test_a_guest_gets_every_row_without_empty_cells() -> None:
    logger = Recording()
    guest = Guest("x", lambda: logger)
    guest.start(10)
    guest.log({"frames": 20, "mean_return_100_games": None, "loss": 0.5})
    guest.close()
    assert logger.calls == [("start", 10), ("log", {"frames": 20, "loss": 0.5}), ("close", None)]


@pytest.mark.parametrize(("fails_at", "n_calls"), [("start", 1), ("log", 2), ("close", 4)])
def test_a_guest_that_fails_is_left_out(caplog: pytest.LogCaptureFixture, fails_at: str, n_calls: int) -> None:
    logger = Recording(fails_at)
    guest = Guest("x", lambda: logger)
    guest.start(0)
    guest.log({"frames": 1})
    guest.log({"frames": 2})
    guest.close()
    guest.close()
    assert len(logger.calls) == n_calls
    assert caplog.messages == [f"x failed and is left out from here on: in {fails_at}"]


def test_a_guest_that_cannot_be_made_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Recording:
        raise ImportError("no such package")

    guest = Guest("x", make)
    guest.start(0)
    guest.log({"frames": 1})
    guest.close()
    assert caplog.messages == ["x failed and is left out from here on: no such package"]


def test_none_is_asked_for_by_default(tiny: Config, tmp_path: Path) -> None:
    assert make_loggers(tiny, tmp_path, {}) == []
    assert len(make_loggers(replace(tiny, logger=replace(OFFLINE, tensorboard=True)), tmp_path, {})) == 2


class FakeRun:
    def define_metric(self, *names: str, **options: str) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        raise ConnectionError("the network is gone")

    def finish(self) -> None:
        pass


def fake_wandb(init: Callable[..., Any]) -> ModuleType:
    module: Any = ModuleType("wandb")
    module.init = init
    return module


def test_wandb_that_fails_to_start_does_not_end_a_run(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        raise PermissionError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init))
    assert train(replace(tiny, logger=OFFLINE), tmp_path)["state"] == "finished"
    assert (tmp_path / "a3c_bench.log").read_text().count("wandb failed and is left out from here on: not logged") == 1


def test_wandb_that_fails_to_log_does_not_end_a_run(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(lambda **options: FakeRun()))
    assert train(replace(tiny, logger=OFFLINE), tmp_path)["state"] == "finished"
    assert (tmp_path / "a3c_bench.log").read_text().count("the network is gone") == 1
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 4


def test_no_wandb_does_not_end_a_run(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    assert train(replace(tiny, logger=OFFLINE), tmp_path)["state"] == "finished"
    assert "wandb failed and is left out" in (tmp_path / "a3c_bench.log").read_text()


def test_wandb_is_told_whose_run_it_is(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        told.append(options)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init))
    logger = LoggerConfig(wandb=WandbConfig(mode="online", project="p", entity="e", tags=("a", "b")))
    train(replace(tiny, logger=logger, seed=3, name="sweep"), tmp_path)
    assert len(told) == 1
    options = told[0]
    assert options.pop("config")["algo"]["n_envs"] == 2
    assert options.pop("id") == (tmp_path / "wandb" / "run_id").read_text()
    assert options == {
        "mode": "online",
        "project": "p",
        "entity": "e",
        "tags": ["a", "b"],
        "dir": str(tmp_path),
        "resume": "allow",
        "group": "sweep/CartPole-v1/paac",
        "job_type": "CartPole-v1/paac",
        "name": "CartPole-v1/paac/seed3",
        "reinit": "create_new",
    }


def test_the_seeds_of_one_configuration_are_one_group(tiny: Config, tmp_path: Path) -> None:
    config, others = replace(tiny, root=str(tmp_path)), replace(tiny, root=str(tmp_path), seed=7)
    place = tmp_path / tiny.name / "CartPole-v1" / "paac"
    group = f"{tiny.name}/CartPole-v1/paac"
    assert seed_group(config, place / "seed0") == seed_group(others, place / "seed7") == group
    assert seed_group(config, place / "algo.t_max=7" / "seed0") == f"{group}/algo.t_max=7"
    assert seed_group(others, place / "algo.t_max=7" / "seed7") == f"{group}/algo.t_max=7"
    assert seed_group(config, Path("/elsewhere/run")) == group  # a directory of one's own
    assert seed_group(config, tmp_path / "run") == group


def test_a_long_group_is_cut_and_stays_its_own(tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, root=str(tmp_path))
    place = tmp_path / tiny.name / "CartPole-v1" / "paac"
    long, other = (seed_group(config, place / ("x" * 140 + end) / "seed0") for end in "ab")
    assert len(long) == len(other) == 128  # what wandb takes
    assert long != other


@pytest.mark.parametrize(
    ("column", "tag"),
    [
        ("mean_return_100_games", "returns/mean_return_100_games"),
        ("evaluation_mean_return", "evaluation/evaluation_mean_return"),
        ("loss", "losses/loss"),
        ("gradient_norm", "losses/gradient_norm"),
        ("gradient_staleness_updates_p95", "lag/gradient_staleness_updates_p95"),
        ("replay_age_frames_mean", "lag/replay_age_frames_mean"),
        ("replay_agent_steps", "samples/replay_agent_steps"),
        ("share_predictors_wait", "speed/share_predictors_wait"),
        ("n_predictors", "progress/n_predictors"),
        ("my_own_column", "other/my_own_column"),
    ],
)
def test_tags_come_in_groups(column: str, tag: str) -> None:
    assert tensorboard_tag(column) == tag


def test_each_column_of_ours_has_a_group() -> None:
    groups = {tensorboard_tag(column).split("/")[0] for column in (*METRIC_COLUMNS, *LAG_COLUMNS) if column != "frames"}
    assert groups == {"lag", "losses", "progress", "returns", "samples", "speed"}


def test_wandb_offline_writes_into_the_run_and_goes_on_under_its_id(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at_update: Callable[..., None]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run, config = tmp_path / "run", replace(tiny, logger=OFFLINE)
    stop_at_update(13)
    train(config, run)
    run_id = (run / "wandb" / "run_id").read_text()
    assert train(config, run)["state"] == "finished"
    assert (run / "wandb" / "run_id").read_text() == run_id
    assert "left out" not in (run / "a3c_bench.log").read_text()
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    deadline = time.monotonic() + 60.0  # wandb writes from a process of its own, and finish() does not wait for it
    while min(file.stat().st_size for file in files) <= 1000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert min(file.stat().st_size for file in files) > 1000
    assert os.listdir(tmp_path / "elsewhere") == []


def test_tensorboard_events(tiny: Config, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(replace(tiny, logger=LoggerConfig(tensorboard=True)), tmp_path)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert len(events.Tags()["scalars"]) > 40
    groups = {tag.split("/")[0] for tag in events.Tags()["scalars"]}
    assert groups == {"evaluation", "lag", "losses", "progress", "returns", "samples", "speed"}
    entropy = events.Scalars("losses/entropy_nats")
    assert [event.step for event in entropy] == metrics["frames"].tolist()
    assert [event.value for event in entropy] == pytest.approx(metrics["entropy_nats"].tolist(), rel=1e-4)
    assert [event.value for event in events.Scalars("lag/lag_updates_max")] == [0.0] * len(metrics)
    games = pd.read_csv(tmp_path / "eval.csv")
    assert events.Scalars("evaluation/evaluation_mean_return")[0].value == pytest.approx(games["episode_return"].mean())


def test_tensorboard_hides_what_came_after_the_checkpoint(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None]
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(tiny, logger=LoggerConfig(tensorboard=True), checkpoint_interval_seconds=1e6)

    def fail() -> None:
        raise RuntimeError("killed")

    at_update(30, fail)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 2
    train(config, tmp_path)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    frames = [event.step for event in events.Scalars("losses/entropy_nats")]
    assert frames == pd.read_csv(tmp_path / "metrics.csv")["frames"].tolist()
