"""A run from start to end: what ends it, what its files say, and when it is evaluated."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from a3c_bench import train as train_module
from a3c_bench.algos import paac
from a3c_bench.core.networks import ActorCritic
from a3c_bench.envs.episodes import Episode, Moment
from a3c_bench.errors import ConfigError
from a3c_bench.evaluation import EvaluationResult
from a3c_bench.runtime import checkpoint, recorder
from a3c_bench.runtime.directory import RunDirectory, read_status
from a3c_bench.runtime.recorder import Recorder
from a3c_bench.runtime.session import Session
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import BudgetConfig, Config, EvaluationConfig, OptimizerConfig
from a3c_bench.train import train


def steady(config: Config, **budget: Any) -> Config:
    """With this budget, a learning rate that does not need one in frames, and no checkpoint on the way."""
    algo = replace(config.algo, optimizer=OptimizerConfig(anneal=False))
    return replace(config, algo=algo, budget=BudgetConfig(**budget), checkpoint_interval_seconds=1e6)


def short_games(config: Config) -> Config:
    """A hundred games within a second or so: each of five steps."""
    return replace(config, env=replace(config.env, max_episode_frames=5))


@pytest.fixture
def one_second_updates(ticks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update takes a second of training, and nothing else any."""
    real = Recorder.add_updates

    def add_updates(self: Recorder, metrics: Any, fit: Any = None) -> None:
        ticks.now += 1.0
        real(self, metrics)

    monkeypatch.setattr(Recorder, "add_updates", add_updates)


# --- budgets --------------------------------------------------------------------------------------------------------


def test_frames_end_a_run(tiny: Config, tmp_path: Path) -> None:
    status = train(tiny, tmp_path)
    assert status["state"] == "finished"
    assert 400 <= status["frames"] < 400 + 2 * 5
    assert status["frames"] == status["agent_steps"]
    assert status["attempts"] == 1
    assert status["error"] is None


def test_training_time_ends_a_run(tiny: Config, tmp_path: Path, one_second_updates: None) -> None:
    status = train(steady(tiny, wall_clock_seconds=7.0), tmp_path)
    assert (status["state"], status["updates"], status["wall_seconds"]) == ("finished", 7, 7.0)


def test_training_time_counts_over_attempts(
    tiny: Config, tmp_path: Path, one_second_updates: None, stop_at_update: Callable[..., None]
) -> None:
    config = steady(tiny, wall_clock_seconds=7.0)
    stop_at_update(3)
    status = train(config, tmp_path)
    assert (status["state"], status["wall_seconds"]) == ("preempted", 3.0)
    status = train(config, tmp_path)
    assert (status["state"], status["updates"], status["wall_seconds"]) == ("finished", 7, 7.0)
    assert pd.read_csv(tmp_path / "metrics.csv")["wall_seconds"].tolist()[-1] == 7.0


def test_a_mean_return_ends_a_run(tiny: Config, tmp_path: Path) -> None:
    """Over 100 games: fewer, however good, do not."""
    status = train(steady(short_games(tiny), frames=1_000_000, target_return=1.0), tmp_path)
    episodes = pd.read_csv(tmp_path / "episodes.csv")
    assert status["state"] == "finished"
    assert 100 <= len(episodes) <= 104
    assert status["final"]["mean_return_100_games"] == pytest.approx(episodes["episode_return"].tail(100).mean())


def test_a_worse_game_that_is_reported_late_changes_nothing(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers report their last games after the loop has ended."""

    def train_paac(config: Config, session: Session) -> None:
        real(config, session)
        session.count(0, [Episode(0, -1e6, 1)])

    real = paac.train
    algorithm = replace(paac.ALGORITHM, train=train_paac)
    monkeypatch.setattr(train_module, "find_algorithm", lambda name: algorithm)
    status = train(steady(short_games(tiny), frames=1_000_000, target_return=1.0), tmp_path)
    assert status["state"] == "finished"
    assert status["final"]["mean_return_100_games"] < 1.0
    assert "evaluation_mean_return" in status["final"]


def test_a_budget_that_was_spent_stays_so_when_the_last_evaluation_is_cut_off(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse game came late and the signal in the last evaluation: the next attempt evaluates, and trains no more."""

    def train_paac(config: Config, session: Session) -> None:
        real(config, session)
        session.count(0, [Episode(0, -1e6, 1)])
        monkeypatch.undo()

    def evaluate(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    real = paac.train
    config = steady(short_games(tiny), frames=1_000_000, target_return=1.0)
    monkeypatch.setattr(train_module, "find_algorithm", lambda name: replace(paac.ALGORITHM, train=train_paac))
    with pytest.MonkeyPatch.context() as once:
        once.setattr(train_module, "evaluate", evaluate)
        first = train(config, tmp_path)
    assert first["state"] == "preempted"
    second = train(config, tmp_path)
    assert second["state"] == "finished"
    assert (second["frames"], second["updates"]) == (first["frames"], first["updates"])


def test_a_return_that_is_not_reached_does_not(tiny: Config, tmp_path: Path) -> None:
    status = train(steady(short_games(tiny), frames=1_000, target_return=501.0), tmp_path)
    assert status["frames"] >= 1_000
    assert len(pd.read_csv(tmp_path / "episodes.csv")) > 100


def test_no_budget_is_refused(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no budget: set budget\.frames"):
        train(replace(tiny, budget=BudgetConfig()), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"anneal=true needs budget\.frames"):
        train(replace(tiny, budget=BudgetConfig(wall_clock_seconds=1.0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_agree_with_each_other(tiny: Config, tmp_path: Path) -> None:
    status = train(tiny, tmp_path)
    metrics, lag = pd.read_csv(tmp_path / "metrics.csv"), pd.read_csv(tmp_path / "lag.csv")
    episodes, games = pd.read_csv(tmp_path / "episodes.csv"), pd.read_csv(tmp_path / "eval.csv")
    assert (metrics["frames"] // 100).tolist() == [1, 2, 3, 4]
    assert metrics["frames"].iloc[-1] == status["frames"]
    assert metrics["updates"].iloc[-1] == status["updates"]
    assert lag["frames"].tolist() == metrics["frames"].tolist()
    assert lag["lag_updates_max"].tolist() == [0.0] * 4
    gained = metrics["frames"].diff().fillna(metrics["frames"])
    seconds = metrics["wall_seconds"].diff().fillna(metrics["wall_seconds"])
    pd.testing.assert_series_equal(metrics["frames_per_second"], gained / seconds, check_names=False, rtol=1e-3)
    shares = metrics[[column for column in metrics if column.startswith("share_")]].sum(axis=1)
    assert shares.tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    assert (episodes["episode_return"] == episodes["episode_length"]).all()  # CartPole: 1 per agent step
    assert episodes["episode_length"].sum() <= status["frames"]
    assert games["final"].tolist() == [True] * 3
    assert games["game_index"].tolist() == [0, 1, 2]
    assert status["final"]["evaluation_mean_return"] == pytest.approx(games["episode_return"].mean())


def test_evaluation_takes_no_training_time(
    tiny: Config, tmp_path: Path, ticks: Any, one_second_updates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_module.evaluate

    def slow(*arguments: Any) -> EvaluationResult | None:
        ticks.now += 1000.0
        return real(*arguments)

    monkeypatch.setattr(train_module, "evaluate", slow)
    status = train(replace(tiny, evaluation=EvaluationConfig(interval_frames=100, n_games=2, n_envs=2)), tmp_path)
    games = pd.read_csv(tmp_path / "eval.csv")
    assert games["final"].tolist() == [False] * 6 + [True] * 2
    assert status["wall_seconds"] == status["updates"]
    assert (games["wall_seconds"] == games["updates"]).all()
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert (metrics["wall_seconds"] == metrics["updates"]).all()
    assert metrics["tps"].tolist() == [1.0] * 4


def test_an_interval_averages_its_updates(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, {})
    rows = Recorder(directory)
    masks = torch.tensor([True, True]), torch.tensor([[True], [False]])
    rows.add_updates({"loss": 1.0}, (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), masks[0]))
    rows.add_updates(
        {"loss": torch.tensor([3.0, 5.0])}, (torch.tensor([[4.0], [9.0]]), torch.tensor([[3.0], [0.0]]), masks[1])
    )
    row = rows.end_interval(dict.fromkeys(recorder.COUNTERS, 2.0) | {"wall_seconds": 4.0}, {"share_wait": 0.25})
    assert row["loss"] == 3.0
    assert row["explained_variance"] == pytest.approx(2 / 3)  # of the three valid samples together
    assert (row["frames_per_second"], row["pps"], row["tps"]) == (0.5, 0.5, 0.5)
    assert row["share_wait"] == 0.25
    assert row["mean_return_100_games"] is None
    row = rows.end_interval(dict.fromkeys(recorder.COUNTERS, 4.0) | {"wall_seconds": 5.0}, {})
    assert "loss" not in row
    assert "explained_variance" not in row
    assert row["pps"] == 2.0
    rows.close()
    directory.close()


def test_every_update_counts_and_ratios_are_of_the_whole_interval(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, {})
    rows = Recorder(directory, columns=("surprise_nats",))
    rows.add_updates({"loss": 1.0})
    rows.add_updates({"loss": 3.0, "surprise_nats": 7.0})  # a figure that the first update has not
    rows.ratios.add("max_q", 1.0, 1)
    rows.ratios.add("max_q", torch.tensor(8.0), torch.tensor(2))
    rows.ratios.add("discarded_share", 0, 0)  # of nothing
    counters = dict.fromkeys(recorder.COUNTERS, 2.0)
    row = rows.end_interval(counters, {})
    assert (row["loss"], row["surprise_nats"], row["max_q"]) == (2.0, 7.0, 3.0)
    assert "discarded_share" not in row
    assert "max_q" not in rows.end_interval(counters, {})
    rows.close()
    directory.close()
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table.columns[-1] == "surprise_nats"
    assert table.surprise_nats.tolist()[0] == 7.0


def test_the_mean_return_is_of_the_last_100_games(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, {})
    rows = Recorder(directory)
    counters = dict.fromkeys(recorder.COUNTERS, 0.0)
    assert rows.mean_return is None
    rows.add_episodes(counters, [Episode(0, 7.0, 7)])
    assert rows.mean_return == 7.0
    rows.add_episodes(counters, [Episode(0, float(i), 1) for i in range(100)])
    assert rows.mean_return == 49.5
    resumed = Recorder(directory, saved=rows.state_dict())
    assert resumed.mean_return == 49.5
    assert len(pd.read_csv(tmp_path / "episodes.csv")) == 101
    for table in (rows, resumed):
        table.close()
    directory.close()


def test_games_are_written_with_where_the_run_stood_when_they_ended(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, {})
    rows = Recorder(directory)
    games = [
        Episode(0, 3.0, 9, Moment(48, 12, 2.5)),
        Episode(1, 1.0, 3),  # says nothing: it ended with the step that is counted
        Episode(2, 2.0, 5, Moment(20, 5, 1.25)),
    ]
    rows.add_episodes({"frames": 400, "agent_steps": 100, "updates": 7, "wall_seconds": 9.0}, games)
    rows.close()
    directory.close()
    assert pd.read_csv(tmp_path / "episodes.csv").to_numpy().tolist() == [
        [20, 5, 1.25, 2.0, 5],
        [48, 12, 2.5, 3.0, 9],
        [400, 100, 9.0, 1.0, 3],
    ]
    assert list(rows.recent_returns) == [2.0, 3.0, 1.0]


def test_a_resumed_recorder_saves_where_its_tables_end(tmp_path: Path) -> None:
    """Also before it has written anything: rows past the checkpoint are gone, and a second kill must not miss them."""
    directory = RunDirectory(tmp_path, {})
    rows = Recorder(directory)
    saved = rows.state_dict()
    rows.add_episodes(dict.fromkeys(recorder.COUNTERS, 0.0), [Episode(0, 7.0, 7)])
    rows.close()
    resumed = Recorder(directory, saved=saved)
    assert resumed.state_dict()["sizes"] == saved["sizes"]
    resumed.close()
    directory.close()
    assert (tmp_path / "episodes.csv").stat().st_size == saved["sizes"]["episodes"]


# --- when evaluations take place --------------------------------------------------------------------------------------


class Watched:
    """A session that is told counters by hand, and the frames at which it evaluates and writes rows."""

    def __init__(self, path: Path, tiny: Config, saved: Any = None, **changes: Any) -> None:
        evaluation = EvaluationConfig(interval_frames=changes.pop("evaluates_every"))
        config = replace(
            tiny, budget=BudgetConfig(frames=changes.pop("frames", 10_000)), evaluation=evaluation, **changes
        )
        self.directory = RunDirectory(path, asdict(config))
        self.stop = StopRequest()
        self.session = Session(config, {}, self.directory, self._evaluate, self.stop, saved)
        self.evaluated: list[int] = []
        self.session.begin(network=ActorCritic((2,), 2, hidden_sizes=(2,)))

    def _evaluate(self, network: Any, number: int) -> EvaluationResult | None:
        if self.stop.signal is not None:
            return None
        self.evaluated.append(self.session.counters.frames)
        return EvaluationResult([], {"evaluation_mean_return": 0.0})

    def told(self, frames: int, at_standstill: int = 0) -> bool:
        """Whether it goes on after so many frames, and so many more that workers report when they stand still."""

        @contextmanager
        def standstill() -> Iterator[None]:
            self.session.count(at_standstill)
            yield

        self.session.count(frames)
        return self.session.running(standstill)

    def close(self) -> None:
        """Lets the directory go."""
        self.session.__exit__(None, None, None)
        self.directory.close()


def test_frames_that_a_standstill_hands_over_skip_no_evaluation(tiny: Config, tmp_path: Path) -> None:
    """Rows every 50 frames, each with a checkpoint and so a standstill, an evaluation every 100."""
    run = Watched(tmp_path, tiny, evaluates_every=100, metrics_interval_frames=50, checkpoint_interval_seconds=1e-9)
    assert run.told(60, at_standstill=20)  # a row is due at 60: 80
    assert run.told(10, at_standstill=70)  # 90: nothing is due, so nothing stands still
    assert run.evaluated == []
    assert run.told(20, at_standstill=30)  # due at 110: 140
    assert run.told(15, at_standstill=70)  # a row is due at 155, and the evaluation with what comes then: 225
    assert run.told(40, at_standstill=20)  # a row at 265: 285
    assert run.told(20, at_standstill=300)  # due at 305: 605; 400, 500 and 600 fell due with it
    assert run.told(90, at_standstill=1)  # a row at 695: 696
    run.close()
    assert run.evaluated == [140, 225, 605]
    assert pd.read_csv(tmp_path / "metrics.csv").frames.tolist() == [80, 140, 225, 285, 605, 696]


@pytest.mark.parametrize(("metrics", "rows"), [(1000, [100, 205, 310]), (30, [40, 60, 99, 100, 130, 160, 205, 310])])
def test_evaluations_do_not_wait_for_rows(tiny: Config, tmp_path: Path, metrics: int, rows: list[int]) -> None:
    run = Watched(tmp_path, tiny, evaluates_every=100, metrics_interval_frames=metrics, checkpoint_interval_seconds=1e6)
    for frames in (40, 20, 39, 1, 30, 30, 45, 105):  # 40, 60, 99, 100, 130, 160, 205, 310
        assert run.told(frames)
    run.close()
    assert run.evaluated == [100, 205, 310]
    assert pd.read_csv(tmp_path / "metrics.csv").frames.tolist() == rows


def test_frames_that_end_the_run_leave_the_evaluation_to_its_end(tiny: Config, tmp_path: Path) -> None:
    run = Watched(tmp_path, tiny, evaluates_every=100, frames=300, metrics_interval_frames=100)
    assert run.told(110)
    assert not run.told(100, at_standstill=100)
    assert run.session.finish()["state"] == "finished"
    run.close()
    assert run.evaluated == [110, 310]
    assert pd.read_csv(tmp_path / "metrics.csv").frames.tolist() == [110, 310]


def test_an_evaluation_that_a_stop_prevented_comes_when_the_run_goes_on(tiny: Config, tmp_path: Path) -> None:
    options = {"evaluates_every": 100, "metrics_interval_frames": 1000}
    run = Watched(tmp_path, tiny, **options)
    assert run.told(150)
    run.stop.signal = signal.SIGTERM
    assert not run.told(70)  # due at 220
    assert run.session.finish()["state"] == "preempted"
    run.close()
    assert run.evaluated == [150]
    saved = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")
    again = Watched(tmp_path, tiny, saved, **options)
    assert again.told(0)
    assert again.told(50)
    assert again.told(40)
    again.close()
    assert again.evaluated == [220, 310]
    older = {key: value for key, value in saved.items() if key != "evaluated_frames"}
    for owed, expected in ((True, [220]), (False, [])):
        run = Watched(tmp_path, tiny, older | {"evaluation_owed": owed}, **options)
        run.told(0)
        run.close()
        assert run.evaluated == expected


# --- beginning ------------------------------------------------------------------------------------------------------


def test_the_former_name_of_begin_goes_on_working(tiny: Config, tmp_path: Path) -> None:
    """It begins a run, and restores one that was begun."""
    saved, networks = None, [ActorCritic((2,), 2, hidden_sizes=(2,)) for _ in range(2)]
    for network in networks:
        directory = RunDirectory(tmp_path, asdict(tiny))
        session = Session(tiny, {}, directory, lambda network, number: None, StopRequest(), saved)
        with session, pytest.warns(DeprecationWarning, match="^Session.restore is called Session.begin now.$") as told:
            session.restore(network=network)
        directory.close()
        assert len(told) == 1
        assert told[0].filename == __file__
        assert read_status(tmp_path)["state"] == "running"
        saved = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(first, second)
