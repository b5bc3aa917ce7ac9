import logging

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import load_runs
from analysis.course import main as course_main
from analysis.relation import Axis, draw, figure_and_table, group_points, main, make_points, means

pytestmark = pytest.mark.usefixtures("draft")


def write_lag(run, mean):
    counters = {"frames": [50, 100], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0}
    pd.DataFrame(counters).assign(lag_updates_mean=mean).to_csv(run / "lag.csv", index=False)


def write_rates(run, rate):
    counters = {"frames": [50], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0, "frames_per_second": 1.0}
    pd.DataFrame(counters | {"pps": 1, "tps": 1}).assign(learning_rate=rate).to_csv(run / "metrics.csv", index=False)


@pytest.fixture
def agents(make_run, tmp_path):
    for n in (8, 16, 128):
        for n_trainers in (1, 2):
            for seed in range(3):
                settings = {"n_agents": n, "n_trainers": n_trainers, "queue": 10 * n}
                path = make_run(algo="ga3c", seed=seed, overrides=f"{n}-{n_trainers}", settings=settings)
                write_lag(path, n * n_trainers + seed)
    return tmp_path / "runs"


def test_means_against_a_setting_by_hand(agents):
    points = make_points(load_runs(agents), "n_agents", ["lag_updates"])
    one, two = group_points(points)
    assert (one.label, two.label) == ("n_trainers=1", "n_trainers=2")  # queue goes with n_agents
    band = means(two, "lag_updates", {8.0: 8.0, 16.0: 16.0, 128.0: 128.0})
    assert band.x.tolist() == [8.0, 16.0, 128.0]
    np.testing.assert_allclose(band.mean, [17.0, 33.0, 257.0])
    np.testing.assert_allclose([band.low, band.high], [[16.0, 32.0, 256.0], [18.0, 34.0, 258.0]])


def test_a_setting_is_a_line_on_its_own_ticks_and_lag_shows_zero(agents):
    points = make_points(load_runs(agents), "n_agents", ["lag_updates"])
    panel = draw(points, "n_agents", [Axis("lag_updates", "lag")]).subfigs[0].axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["8", "16", "128"]
    assert panel.get_yscale() == "symlog"
    assert panel.get_ylim()[0] < 0.0
    lines = [line for line in panel.lines if line.get_linestyle() != "None"]
    assert [len(line.get_xdata()) for line in lines] == [3, 3]
    assert len([line for line in panel.lines if line.get_linestyle() == "None"]) == 2


def test_measured_against_measured_is_points_alone(agents):
    points = make_points(load_runs(agents), "lag_updates", ["score"])
    figure = draw(points, "lag_updates", [Axis("score", "score")])
    panel = figure.subfigs[0].axes[0]
    assert {line.get_linestyle() for line in panel.lines} == {"None"}
    assert sum(len(line.get_xdata()) for line in panel.lines) == 18
    assert panel.get_xscale() == "symlog"


def test_learning_rates_that_seeds_draw_are_one_group(make_run, tmp_path):
    for seed, rate in enumerate((1e-4, 1e-3, 1e-2)):
        write_rates(make_run(algo="a3c", seed=seed), rate)
    figure, table = figure_and_table(load_runs(tmp_path), "learning_rate", ["score"])
    assert table["learning_rate"].tolist() == [1e-4, 1e-3, 1e-2]
    assert table["score"].tolist() == [480.0, 481.0, 482.0]
    panel = figure.subfigs[0].axes[0]
    assert panel.get_xscale() == "log"
    assert "A3C (3 runs)" in figure.subfigs[0].legends[0].get_texts()[0].get_text()


@pytest.mark.parametrize(("largest", "scale"), [(100.0, "log"), (10.0, "linear")])
def test_a_variance_that_spans_decades_has_a_log_axis(make_run, tmp_path, largest, scale):
    for kind, variance in (("td", 1.0), ("nstep", largest)):
        run = make_run(overrides=kind, settings={"kind": kind})
        write_rates(run, 0.1)
        pd.read_csv(run / "metrics.csv").assign(gradient_variance=variance).to_csv(run / "metrics.csv", index=False)
    figure, _ = figure_and_table(load_runs(tmp_path), "algo.kind", ["score", "gradient_variance"])
    assert [panel.get_yscale() for panel in figure.subfigs[0].axes] == ["linear", scale]


def test_words_are_places_in_order(make_run, tmp_path):
    for kind, best in (("nstep", 100.0), ("gae", 200.0)):
        for seed in range(3):
            make_run(seed=seed, overrides=kind, settings={"kind": kind}, best_return=best)
    figure, table = figure_and_table(load_runs(tmp_path), "algo.kind", ["score"])
    panel = figure.subfigs[0].axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["gae", "nstep"]
    assert set(table["label"]) == {""}
    (bars,) = panel.containers
    assert bars.lines[0].get_ydata().tolist() == [201.0, 101.0]


def test_runs_without_the_quantity_are_named(agents, make_run, caplog, capsys):
    other = make_run()
    with caplog.at_level(logging.WARNING):
        points = make_points(load_runs(agents), "n_agents", ["lag_updates"])
    assert len(points) == 18
    assert f"{other} has no n_agents" in caplog.text
    assert main([str(other), "--x", "n_agents", "--y", "score"]) == 2
    assert "None of the 1 runs found has both n_agents and score." in capsys.readouterr().err
    assert main([str(other), "--x", "n_envs", "--y", "nonsense"]) == 2


def test_what_no_run_recorded_is_named(agents, caplog):
    with caplog.at_level(logging.WARNING):
        figure, _ = figure_and_table(load_runs(agents), "n_agents", ["lag_updates", "gradient_variance"])
    assert "No run has recorded gradient_variance" in caplog.text
    assert len(figure.subfigs[0].axes) == 1


def test_the_command_writes_figure_and_numbers(agents, tmp_path):
    assert main([str(agents), "--x", "n_agents", "--y", "lag_updates", "score", "--out", str(tmp_path / "out")]) == 0
    assert imread(tmp_path / "out" / "relation.png")[..., :3].std() > 0.02
    table = pd.read_csv(tmp_path / "out" / "relation.csv")
    assert len(table) == 18
    assert table.groupby("n_agents")["lag_updates"].mean().tolist() == [13.0, 25.0, 193.0]


def test_course_draws_any_column(make_run, tmp_path, capsys):
    for seed in range(3):
        write_rates(make_run(seed=seed), 0.5 + seed)
    arguments = [str(tmp_path / "runs"), "--columns", "learning_rate", "pps", "--out", str(tmp_path)]
    assert course_main(arguments) == 0
    table = pd.read_csv(tmp_path / "course.csv").set_index("curve")
    assert table.loc["learning_rate", ["x", "value", "low", "high"]].tolist() == [50.0, 1.5, 0.5, 2.5]
    assert table.loc["pps", "value"] == 1.0
    assert course_main([str(tmp_path / "runs"), "--columns", "nonsense"]) == 2
    assert "has nonsense in its metrics.csv" in capsys.readouterr().err


def test_an_environment_has_no_panel_for_what_it_lacks(make_run, tmp_path):
    for seed in range(3):
        write_lag(make_run(seed=seed), 1.0)
        other = make_run(seed=seed, env="Catch")
        write_lag(other, 1.0)
        (other / "eval.csv").unlink()
    figure, _ = figure_and_table(load_runs(tmp_path), "lag_updates", ["score", "area"])
    assert [len(part.axes) for part in figure.subfigs[:2]] == [2, 1]
