"""Runs of other libraries: what their files hold, what becomes of it, and that it is never taken for ours.

data/sb3 is a run of Stable-Baselines3 2.9.2: PPO on CartPole, 3,072 steps in two environments, Monitor and TensorBoard.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import curves, gallery, load_runs, report, style, summarise, table
from analysis.crossings import goal_of
from analysis.other_formats import OtherError, kind_of
from analysis.others import NOTE, OtherRun
from analysis.scores import improvement_table, score_rows, score_tables

SB3 = Path(__file__).parent / "data" / "sb3" / "seed0"
T0 = 1_700_000_000.0


@pytest.fixture
def sb3(tmp_path) -> Path:
    """The run of Stable-Baselines3, at a place whose name says its environment."""
    return Path(shutil.copytree(SB3, tmp_path / "CartPole-v1" / "seed0"))


def write_cleanrl(
    root: Path,
    env: str = "PongNoFrameskip-v4",
    algo: str = "ppo_atari",
    seed: int = 1,
    games: Sequence[tuple[int, float, float]] = ((1000, 10.0, -21.0), (2000, 20.0, -19.0)),
    settings: Mapping[str, object] | None = None,
    tag: str = "charts/episodic_return",
    name: str | None = None,
) -> Path:
    """An event file by CleanRL's own tags; games are (global_step, seconds, return)."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    told = {"exp_name": algo, "seed": seed, "env_id": env, "cuda": True, "learning_rate": 0.00025}
    rows = [f"|{key}|{value}|" for key, value in (told | dict(settings or {})).items()]
    place = root / (name or f"{env}__{algo}__{seed}__{int(T0)}")
    with tensorboard.SummaryWriter(str(place)) as writer:
        start = pd.Timestamp.now().timestamp()
        writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + "\n".join(rows), walltime=start)
        for step, seconds, value in games:
            writer.add_scalar(tag, value, step, walltime=start + seconds)
            writer.add_scalar("charts/SPS", step / seconds, step, walltime=start + seconds)
    return place


def write_history(root: Path, project: str = "cleanrl", **told: object) -> Path:
    root.mkdir(parents=True)
    columns = {
        "global_step": [100, 200, 300], "_runtime": [1.0, 2.0, 3.0], "_timestamp": [T0 + 1, T0 + 2, T0 + 3],
        "charts/episodic_return": [5.0, None, 7.0], "losses/value_loss": [None, 0.5, None],
    }  # fmt: skip
    pd.DataFrame(columns).to_csv(root / "run_df.csv")
    config = {"env_id": {"desc": None, "value": "Pong-v5"}, "exp_name": "ppo_envpool", "seed": 4}
    (root / "run.json").write_text(json.dumps({"project": project, "state": "finished", "config": config} | told))
    return root / "run_df.csv"


# --- what a file holds


def test_a_run_of_stable_baselines3_as_it_wrote_it(sb3):
    """Its events and its monitors end with one mean of the last 100 games: they are of one run."""
    (events,), (monitors,) = load_runs(sb3 / "tb"), load_runs(sb3 / "monitor")
    assert (events.algo, events.env, events.seed, events.state) == ("SB3: PPO", "CartPole-v1", 0, "finished")
    assert len(events.training_returns(100)) == 12  # one per rollout of 2 x 128 steps
    assert events.training_returns(100)["frames"].tolist() == [256.0 * i for i in range(1, 13)]
    assert events.training_returns(100)["mean_return"].iloc[[0, -1]].tolist() == pytest.approx([20.0, 52.839287])
    games = monitors.episodes()
    assert monitors.training_returns(100)["mean_return"].iloc[-1] == pytest.approx(52.839287)
    assert len(games) == 56
    assert games["agent_steps"].iloc[-1] == games["episode_length"].sum() == 2959  # of 3,072: what had ended
    assert games["wall_seconds"].is_monotonic_increasing
    assert events.metrics()["pps"].iloc[0] == 485.0
    assert np.isnan(events.metrics()["tps"]).all()
    assert events.status["wall_seconds"] == pytest.approx(8.18, abs=0.01)


def test_events_and_monitors_of_one_seed_are_one_run(sb3):
    (run,) = load_runs(sb3)
    assert (run.algo, len(run.episodes()), len(run.metrics())) == ("SB3: PPO", 56, 12)


def test_a_run_of_cleanrl(tmp_path):
    write_cleanrl(tmp_path, games=[(1000, 10.0, -21.0), (1000, 10.0, -20.0), (2500, 20.0, -13.0)])
    (run,) = load_runs(tmp_path)
    assert isinstance(run, OtherRun)
    assert (run.algo, run.env, run.seed, run.library) == ("CleanRL: ppo_atari", "Pong", 1, "CleanRL")
    games = run.episodes()
    assert games["agent_steps"].tolist() == [1000, 1000, 2500]  # their global_step
    assert games["frames"].tolist() == [4000, 4000, 10_000]
    assert games["wall_seconds"].to_numpy() == pytest.approx([10.0, 10.0, 20.0], abs=2.0)  # since the file was begun
    assert run.training_returns(2)["mean_return"].tolist() == [-21.0, -20.5, -16.5]
    assert run.metrics()["frames_per_second"].iloc[-1] == pytest.approx(4 * 125.0)
    assert (run.status["frames"], run.status["agent_steps"]) == (10_000, 2500)
    assert run.evaluations().empty
    assert run.lag().empty
    row = summarise([run]).iloc[0]
    assert (row["library"], row["starts"], row["score_is"]) == ("CleanRL", "training", "training games")
    assert np.isnan(row["score"])


def test_a_run_of_cleanrl_is_known_by_its_table_more_than_by_its_name(tmp_path):
    write_cleanrl(tmp_path, env="ALE/Pong-v5", seed=7, name="renamed")
    (run,) = load_runs(tmp_path)
    assert (run.env, run.seed, run.config["env"]["id"]) == ("Pong", 7, "ALE/Pong-v5")


def test_means_alone_are_drawn_as_they_are(tmp_path):
    write_cleanrl(tmp_path, tag="charts/avg_episodic_return")
    (run,) = load_runs(tmp_path)
    assert run.episodes().empty
    assert run.training_returns(1)[["frames", "mean_return"]].to_numpy().tolist() == [[4000, -21.0], [8000, -19.0]]


def test_settings_tell_runs_of_one_script_apart_and_what_changes_nothing_does_not(tmp_path):
    for seed, rate, cuda in ((1, 0.1, True), (2, 0.1, False), (1, 0.2, True)):
        write_cleanrl(tmp_path / str(rate), seed=seed, settings={"learning_rate": rate, "cuda": cuda})
    assert sorted((run.seed, run.label) for run in load_runs(tmp_path)) == [
        (1, "learning_rate=0.1"), (1, "learning_rate=0.2"), (2, "learning_rate=0.1"),
    ]  # fmt: skip


def test_the_history_that_openrlbenchmark_keeps(tmp_path):
    write_history(tmp_path / "a")
    write_history(tmp_path / "b", project="envpool-atari", state="crashed")
    ours, theirs = load_runs(tmp_path)
    assert (ours.algo, ours.env, ours.seed, ours.state) == ("CleanRL: ppo_envpool", "Pong", 4, "finished")
    assert ours.episodes()[["frames", "wall_seconds", "episode_return"]].to_numpy().tolist() == [
        [400, 1.0, 5.0], [1200, 3.0, 7.0],
    ]  # fmt: skip
    assert (theirs.algo, theirs.state) == ("envpool-atari: ppo_envpool", "preempted")


# --- frames and steps


def monitor(path: Path, env: str, rows: Sequence[tuple[float, int, float]], start: float = T0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'#{{"t_start": {start}, "env_id": "{env}"}}', "r,l,t", *(f"{r},{length},{t}" for r, length, t in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_monitors_of_one_run_are_merged_by_their_clock(tmp_path):
    monitor(tmp_path / "seed3" / "0.monitor.csv", "Acrobot-v1", [(-500.0, 500, 5.0), (-100.0, 100, 9.0)])
    monitor(tmp_path / "seed3" / "1.monitor.csv", "Acrobot-v1", [(-300.0, 300, 5.0)], start=T0 + 1)
    (run,) = load_runs(tmp_path)
    assert (run.algo, run.env, run.seed) == ("SB3: unknown algorithm", "Acrobot-v1", 3)
    games = run.episodes()
    assert games["wall_seconds"].tolist() == [5.0, 6.0, 9.0]
    assert games["frames"].tolist() == [500, 800, 900]
    assert games["episode_return"].tolist() == [-500.0, -300.0, -100.0]


def test_a_monitor_below_the_frame_skip_counts_frames(tmp_path):
    """SB3's make_atari_env puts Monitor below the wrapper that skips: `l` is of emulator frames."""
    monitor(tmp_path / "DQN_1" / "0.monitor.csv", "PongNoFrameskip-v4", [(-21.0, 4000, 5.0)])
    monitor(tmp_path / "DQN_2" / "0.monitor.csv", "ALE/Pong-v5", [(-21.0, 1000, 5.0)])
    monitor(tmp_path / "PongNoFrameskip-v4_1" / "DQN_3" / "0.monitor.csv", "None", [(-21.0, 4000, 5.0)])
    runs = load_runs(tmp_path)
    assert len(runs) == 3
    for run in runs:
        (game,) = run.episodes().to_dict("records")
        assert (run.algo, run.env, game["frames"], game["agent_steps"]) == ("SB3: DQN", "Pong", 4000, 1000)
        assert game["episode_length"] == 1000


def test_frames_of_a_step_that_nobody_knows_are_asked_for(tmp_path, caplog):
    file = monitor(tmp_path / "0.monitor.csv", "Pong-v4", [(-21.0, 1000, 5.0)])
    assert load_runs(tmp_path) == []
    assert "Pong-v4 skips 2 to 4 frames at random" in caplog.text
    (tmp_path / NOTE).write_text("frame_skip: 3\nlibrary: Tianshou\nalgo: DQN\n")
    (run,) = load_runs(file)
    assert (run.algo, run.episodes()["frames"].tolist()) == ("Tianshou: DQN", [3000])


# --- what the files do not say


def test_an_environment_that_nobody_says_is_asked_for_and_the_nearest_note_counts(tmp_path, caplog):
    shutil.copytree(SB3 / "tb", tmp_path / "logs")
    assert load_runs(tmp_path) == []
    assert f"nothing says which environment it is of: `env: CartPole-v1` in {NOTE} beside it would" in caplog.text
    (tmp_path / NOTE).write_text("env: CartPole-v0\nseed: 5\n")
    (tmp_path / "logs" / NOTE).write_text("env: CartPole-v1\n")
    (run,) = load_runs(tmp_path)
    assert (run.env, run.seed, run.algo) == ("CartPole-v1", 5, "SB3: PPO")


def test_runs_without_a_seed_get_numbers_of_their_own(tmp_path):
    for name in ("a", "b"):
        monitor(tmp_path / name / "monitor.csv", "CartPole-v1", [(9.0, 9, 1.0)])
    monitor(tmp_path / "seed0" / "monitor.csv", "CartPole-v1", [(9.0, 9, 1.0)])
    assert sorted(run.seed for run in load_runs(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("note", "words"),
    [("speed: 3", "may hold library, algo, env, seed, frame_skip, and nothing else"),
     ("frame_skip: 0", "frame_skip: 0 in other_run.yaml is no whole number from 1 on"),
     ("seed: one", "its seed is no whole number: one"), ("a: [", "cannot be read")],
)  # fmt: skip
def test_a_note_that_says_nothing_useful_is_named(tmp_path, caplog, note, words):
    monitor(tmp_path / "monitor.csv", "CartPole-v1", [(9.0, 9, 1.0)])
    (tmp_path / NOTE).write_text(note)
    assert load_runs(tmp_path) == []
    assert words in caplog.text


# --- what cannot be read


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("events.out.tfevents.1.x", b"nonsense", "has no tag of CleanRL"),
        ("events.out.tfevents.1.x", b"", "has no tag of CleanRL"),
        ("monitor.csv", b'#{"t_start": 1, "env_id": "CartPole-v1"}\na,b\n1,2\n', "is damaged"),
        ("monitor.csv", b'#{"t_start": 1, "env_id"\nr,l,t\n', "is damaged"),
        ("run_df.csv", b"global_step,charts/episodic_return\n1,2\n", "no column _runtime or _timestamp"),
        ("result.csv", "a,ppo\nPong-v5,20.4 ± 0.8\n".encode(), "holds means over runs"),
        ("notes.txt", b"hello", "is no run: a file may be TensorBoard's"),
    ],
)
def test_a_file_that_is_no_run_is_one_sentence_and_status_2(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert curves.main([str(tmp_path / name)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(str(tmp_path / name))
    assert words in said


def test_a_monitor_without_a_game_yet_is_a_run_without_a_curve(tmp_path, caplog):
    monitor(tmp_path / "seed1" / "monitor.csv", "CartPole-v1", [])
    (run,) = load_runs(tmp_path)
    assert (run.seed, "frames" in run.status, len(run.episodes())) == (1, False, 0)
    assert curves.make_groups([run], 100) == []
    assert "has no finished training game yet" in caplog.text


def test_what_is_broken_among_others_is_named_and_left_out(tmp_path, sb3, caplog):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        assert len(load_runs(tmp_path)) == 1
    assert f"{tmp_path} is left out" in caplog.text


def test_half_a_file_is_read_as_far_as_it_is_whole(tmp_path):
    (file,) = write_cleanrl(tmp_path).glob("events*")
    file.write_bytes(file.read_bytes()[:-30])
    (run,) = load_runs(tmp_path)
    assert len(run.episodes()) == 2
    assert len(run.metrics()) == 1


def test_without_tensorboard_it_is_said_what_to_install(tmp_path, sb3, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    assert load_runs(sb3 / "tb") == []
    assert "pip install 'a3c-bench[tensorboard]' brings it" in caplog.text
    assert len(load_runs(sb3 / "monitor")) == 1  # which takes none
    with pytest.raises(OtherError, match=r"^.* cannot be read: reading TensorBoard's files takes tensorboard"):
        load_runs(next(sb3.glob("tb/*/events*")))


def test_our_own_tables_are_no_logs_of_others(make_run):
    assert {kind_of(file) for file in make_run().iterdir()} == {None}


# --- beside ours


def test_their_training_games_stand_beside_ours_and_never_beside_evaluations(make_run, tmp_path):
    for seed in range(3):
        make_run(seed=seed, game="Pong", env="Pong", best_return=20.0)
        write_cleanrl(tmp_path / "theirs", seed=seed)
    scores = score_rows(summarise(load_runs(tmp_path)), lambda method: False)
    rows = scores.set_index(["starts", "method"])
    assert set(rows.index) == {("no-op", "PAAC"), ("training", "PAAC"), ("training", "CleanRL: ppo_atari")}
    assert rows.loc[("training", "CleanRL: ppo_atari"), "score"] == -20.0
    assert rows.loc[("no-op", "PAAC"), "score"] == 21.0
    ours = [run.training_returns(100)["mean_return"].iloc[-1] for run in load_runs(tmp_path / "runs")]
    assert rows.loc[("training", "PAAC"), "score"] == pytest.approx(np.mean(ours))
    (training,) = (one for one in score_tables(scores) if one.name == "scores_training")
    assert training.notes[0] == (
        "Training games of ours and of other libraries, whose logs hold no evaluation: none of these is one."
    )
    assert improvement_table(summarise(load_runs(tmp_path))) is None  # a training return is no rival of an evaluation


def test_a_table_of_openrlbenchmark_stands_beside_training_returns(make_run, tmp_path, capsys):
    for seed in range(3):
        make_run(seed=seed, game="Pong", env="Pong", best_return=20.0)
    file = tmp_path / "compare.csv"
    file.write_text(
        ",baselines-ppo2-cnn ({}),openrlbenchmark/cleanrl/ppo_atari ({'tag': ['pr']})\n"
        "Pong-v5,20.45 ± 0.81,20.62 ± 0.18\nAlien-v5,1705.80 ± 439.74,nan ± nan\nCartPole-v1,500.00 ± 0.00,\n"
    )
    out = tmp_path / "out"
    assert table.main([str(tmp_path / "runs"), "--beside", str(file), "--out", str(out)]) == 0
    rows = pd.read_csv(out / "scores_training.csv").set_index("method")
    theirs = rows[~rows["ours"]]
    assert theirs.loc[["baselines-ppo2-cnn", "ppo_atari"], "score"].tolist() == [20.45, 20.62]
    assert set(theirs["env"]) == {"Pong"}  # as ours
    assert "PAAC" in rows.index
    text = (out / "scores_training.md").read_text()
    assert "none of these is one" in text
    assert "ppo_atari: openrlbenchmark, means over runs: compare.csv." in text
    assert "ppo2" not in (out / "scores_no_op.md").read_text()
    file.write_text("a,b\n1,2\n")
    assert table.main([str(tmp_path / "runs"), "--beside", str(file)]) == 2
    assert capsys.readouterr().err == (
        f'{file} cannot be read: none of its cells is "mean ± standard deviation", as openrlbenchmark writes them.\n'
    )


def test_one_that_was_cut_short_keeps_its_training_return_for_itself(make_run, tmp_path):
    """Ours that ended before their first evaluation stand among those that were evaluated; theirs never do."""
    make_run(game="Pong", env="Pong", best_return=20.0)
    write_history(tmp_path / "theirs", state="crashed")
    row = summarise(load_runs(tmp_path)).set_index("library").loc["CleanRL"]
    assert (row["state"], row["starts"], row["training_score"]) == ("preempted", "training", 6.0)
    assert np.isnan(row["score"])


def test_the_return_that_our_budgets_aim_at_is_the_goal_for_all(make_run, sb3, tmp_path):
    config = make_run() / "config.yaml"
    config.write_text(config.read_text() + "budget: {target_return: 475}\n")
    assert goal_of(load_runs(tmp_path), 100) == (475.0, "budget.target_return of the runs")


def test_what_a_directory_of_events_is_called_is_the_algorithm_and_a_seed_is_none(tmp_path):
    for name in ("Acrobot-v1/mine_4", "CartPole-v1_2", "CartPole-v1/seed_3"):
        shutil.copytree(SB3 / "tb" / "PPO_1", tmp_path / name)
    found = {(run.env, run.algo, run.seed) for run in load_runs(tmp_path)}
    assert found == {
        ("Acrobot-v1", "SB3: mine", 4), ("CartPole-v1", "SB3: unknown algorithm", 0),
        ("CartPole-v1", "SB3: unknown algorithm", 3),
    }  # fmt: skip


def test_a_figure_marks_them_as_what_they_are(make_run, tmp_path):
    for seed in range(3):
        make_run(seed=seed, game="Pong", env="Pong", best_return=20.0)
        write_cleanrl(tmp_path / "theirs", seed=seed)
    groups = curves.make_groups(load_runs(tmp_path), 100)
    figure = curves.draw(groups, ["frames"], 100)
    legend = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    assert "CleanRL: ppo_atari (3 seeds), training games only" in legend
    assert "PAAC (3 seeds), final evaluation 21.0" in legend
    caption = " ".join(figure.subfigs[-1].texts[0].get_text().split())
    for words in (
        "Pong: 3 seeds per curve,",
        "Pong: CleanRL: ppo_atari, of other libraries: 3 seeds per curve, 8k frames (1 of their steps is 4 frames).",
        "never evaluations; time since their log began",
        "their Atari wrappers usually clip rewards to the sign",
        "Marker: final evaluation, mean of 2 games per run.",
        "Hardware: Imaginary CPU 9000, 2 cores, no GPU.",
    ):
        assert words in caption
    looks = style.looks([(group.algo, "") for group in groups])
    assert looks["CleanRL: ppo_atari", ""].line_style not in style.LINE_STYLES.values()
    assert looks["CleanRL: ppo_atari", ""].marker not in style.MARKERS.values()


def test_a_report_takes_them(make_run, tmp_path, sb3, inkless, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "OTHERS", ())
    for seed in range(3):
        make_run(seed=seed)
    roots = [str(tmp_path / "runs"), str(sb3)]
    out = tmp_path / "out"
    assert report.main([*roots, "--out", str(out)]) == 0
    drawn = pd.read_csv(out / "curves.csv")
    assert set(drawn["algo"]) == {"paac", "SB3: PPO"}
    speeds = pd.read_csv(out / "throughput.csv").set_index("algo")
    assert speeds.loc["SB3: PPO", "pps"] == pytest.approx(3072 / 8.1828, rel=1e-4)  # of the whole, on its events' clock
    page = (out / "index.html").read_text()
    assert "SB3: PPO" in page
    assert "failed: " not in page
    assert "SB3" not in (out / "reproduce.sh").read_text()


def test_they_may_be_all_there_is(sb3, tmp_path, inkless, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "OTHERS", ())
    assert report.main([str(sb3), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "None of these runs is of this suite" in page
    assert (tmp_path / "out" / "reproduce.sh").read_text() == ""
