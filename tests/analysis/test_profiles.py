import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import load_runs
from analysis.profiles import draw, main, make_profiles, make_table

pytestmark = pytest.mark.usefixtures("draft")


def write_scores(make_run, scores, **kinds):
    """Final scores by seed: `make_run` adds the seed to the best return."""
    return [make_run(seed=seed, best_return=score - seed, **kinds) for seed, score in enumerate(scores)]


def test_one_environment_by_hand(make_run, tmp_path):
    write_scores(make_run, [100.0, 200.0, 400.0, 500.0])
    write_scores(make_run, [0.0, 300.0], algo="a3c")
    profiles = make_profiles(load_runs(tmp_path))
    a3c, paac = profiles.methods
    assert (a3c.name, paac.name, profiles.unit) == ("A3C", "PAAC", "final evaluation return")
    assert (profiles.thresholds[0], profiles.thresholds[-1]) == (0.0, 500.0)
    above = {threshold: np.flatnonzero(profiles.thresholds == threshold)[0] for threshold in (0.0, 100.0, 300.0, 450.0)}
    assert [paac.profile.value[at] for at in above.values()] == [1.0, 0.75, 0.5, 0.25]
    assert [a3c.profile.value[at] for at in above.values()] == [0.5, 0.5, 0.0, 0.0]
    assert {name: float(estimate.value) for name, estimate in paac.aggregates.items()} == {
        "mean": 300.0,
        "median": 300.0,
        "iqm": 300.0,  # of 200 and 400
    }
    assert np.isnan(a3c.profile.low).all()  # two seeds
    assert paac.profile.low[above[300.0]] == 0.0
    assert paac.profile.high[above[300.0]] == 1.0


def test_several_environments_are_scaled_and_only_shared_ones_count(make_run, tmp_path):
    for env, top in (("CartPole-v1", 500.0), ("Catch", 50.0), ("Acrobot-v1", 9.0)):
        write_scores(make_run, [0.0, 0.5 * top, top], env=env)
        if env != "Acrobot-v1":
            write_scores(make_run, [0.0, top, top], env=env, algo="a3c")
    profiles = make_profiles(load_runs(tmp_path))
    assert profiles.envs == ["CartPole-v1", "Catch"]
    assert "from 0 (lowest run) to 1 (highest)" in profiles.unit
    a3c, paac = profiles.methods
    assert [tasks.tolist() for tasks in paac.tasks] == [[0.0, 0.5, 1.0]] * 2
    assert float(a3c.aggregates["mean"].value) == pytest.approx(2 / 3)


def test_atari_is_human_normalised(make_run, tmp_path):
    write_scores(make_run, [-20.7, 14.6], game="Pong", env="Pong")  # random play, the human tester
    profiles = make_profiles(load_runs(tmp_path))
    assert profiles.unit == "human-normalised score, %"
    assert profiles.methods[0].tasks[0].tolist() == pytest.approx([0.0, 100.0])


def test_training_returns_stand_in_for_all_if_one_was_not_evaluated(make_run, tmp_path):
    write_scores(make_run, [100.0, 200.0])
    (make_run(algo="a3c") / "eval.csv").unlink()
    assert make_profiles(load_runs(tmp_path)).unit == "training return"


def test_training_returns_of_atari_are_human_normalised_too(make_run, tmp_path):
    run = make_run(game="Pong", env="Pong")
    (run / "eval.csv").unlink()
    episodes = pd.read_csv(run / "episodes.csv").assign(episode_return=-20.7 + 0.353 * 40)
    episodes.to_csv(run / "episodes.csv", index=False)
    profiles = make_profiles(load_runs(tmp_path))
    assert profiles.unit == "human-normalised training return, %"
    assert profiles.methods[0].tasks[0].tolist() == pytest.approx([40.0])


def test_the_figure_draws_all_of_it(make_run, tmp_path):
    write_scores(make_run, [100.0, 200.0, 400.0])
    write_scores(make_run, [50.0, 300.0], algo="a3c")
    profiles = make_profiles(load_runs(tmp_path))
    figure = draw(profiles)
    left, right = figure.subfigs[0].axes
    assert len(left.lines) == 2
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["mean", "median", "IQM"]
    assert "fewer than 3 seeds" in figure.subfigs[-1].texts[0].get_text()
    table = make_table(profiles).set_index(["algo", "curve"])
    assert table.loc[("a3c", "mean"), "value"].tolist() == 175.0
    assert len(table.loc[("paac", "profile")]) == len(profiles.thresholds)


def test_the_command_writes_figure_and_numbers(make_run, tmp_path, capsys):
    write_scores(make_run, [100.0, 200.0, 400.0])
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert imread(tmp_path / "profiles.png")[..., :3].std() > 0.02
    assert set(pd.read_csv(tmp_path / "profiles.csv")["curve"]) == {"profile", "mean", "median", "iqm"}


def test_methods_without_a_common_environment_are_one_sentence(make_run, tmp_path, capsys):
    make_run()
    make_run(algo="a3c", env="Catch")
    assert main([str(tmp_path / "runs")]) == 2
    assert "no environment has scores of every method" in capsys.readouterr().err
