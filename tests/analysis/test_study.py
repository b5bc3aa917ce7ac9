"""Tables and figures of a study of lag, from runs written by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import gallery, load_runs, rates, style, write_report
from analysis.cli import NothingToDrawError
from analysis.curves import ReturnTrace
from analysis.groups import SeedGroup
from analysis.outcome import NOTHING
from analysis.prediction import figure_and_table, interpolated, predictions, table
from analysis.prices import factor, price_list
from analysis.rates import Grid
from analysis.run import Run
from analysis.statistics import Estimate, median_crossings
from analysis.studied import (
    Line,
    Studied,
    Study,
    correction_of,
    counted,
    has_forced_lag,
    make_study,
    mean_of,
    median_of,
    n_reached,
    short_label,
    usual_parts,
)
from analysis.study import FIGURES, _looks, main, score, time

GOAL = 50.0


@pytest.fixture(scope="module")
def write(run_writer):
    """Writes runs of which all that a study reads is set by hand."""

    def run(root, name, algo="paac", seed=0, *, score=1.0, arrives=10, frames=60, speed=1.0, lag=0.0, settings=None):
        """The mean of the training games is 0 until frame `arrives`, when it becomes 100."""
        path = run_writer(root, algo=algo, seed=seed, overrides=name, settings=settings, n_games=0)
        games = [(i / 10, 0.0) for i in range(10)] + [(arrives, 1100.0), (frames, 100.0)]
        at, returns = np.array(games if arrives < frames else [(0, 0.0), (frames, 0.0)]).T
        table = pd.DataFrame({"frames": at, "agent_steps": at, "wall_seconds": at / speed, "episode_return": returns})
        table.assign(episode_length=1).to_csv(path / "episodes.csv", index=False)
        status = json.loads((path / "status.json").read_text())
        status |= {"frames": frames, "agent_steps": frames, "wall_seconds": frames / speed, "updates": 5}
        (path / "status.json").write_text(json.dumps(status))
        evaluation = pd.read_csv(path / "eval.csv").assign(episode_return=score, frames=frames)
        evaluation.to_csv(path / "eval.csv", index=False)
        counters = {"frames": [frames], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0}
        table = pd.DataFrame(counters).assign(lag_updates_mean=lag, lag_kl_nats_mean=lag / 10, value_lag_mean=3 * lag)
        table.to_csv(path / "lag.csv", index=False)
        speeds = {"frames_per_second": speed, "pps": speed, "tps": speed}
        table = pd.DataFrame(counters).assign(**speeds, entropy_nats=1.0 / (1.0 + lag), effective_sample_size=1.0)
        table.to_csv(path / "metrics.csv", index=False)
        return path

    return run


def paac(lag, distribution="fixed", **changes):
    settings = {"optimizer": {"lr": 0.01}, "overlap": False, "ratio_clip": None, "log_epsilon": 0.0}
    return settings | {"lag": {"updates": lag, "distribution": distribution}} | changes


@pytest.fixture(scope="module")
def ways(write, tmp_path_factory):
    """Forced lags 0, 2 and 8, three seeds each: the score falls by the lag, and frames to the score grow by it.

    Beside them A3C with two workers, which simulates three times as fast and needs twice the frames, and others.
    """
    root = tmp_path_factory.mktemp("ways")
    for seed in range(3):
        for k in (0, 2, 8):
            write(root, f"lag{k}", seed=seed, score=10.0 - k + seed, arrives=10 + 10 * k + seed, speed=2.0,
                  lag=float(k), settings=paac(k))  # fmt: skip
        write(root, "a3c", "a3c", seed, arrives=22, speed=6.0, lag=1.0, settings={"n_workers": 2})
        write(root, "ga3c", "ga3c", seed, arrives=99, speed=8.0, lag=4.0, settings={"synchronous": False})
        write(root, "overlap", seed=seed, arrives=11, speed=2.0 + seed, lag=1.0, settings=paac(0, overlap=True))
        write(root, "clip", seed=seed, settings=paac(0, ratio_clip=0.2))
    return root


@pytest.fixture(scope="module")
def found(ways):
    return make_study(load_runs(ways), GOAL)


def numbers_of(estimate):
    return float(estimate.value), float(estimate.low), float(estimate.high)


# --- numbers


def test_the_median_of_many_samples_is_that_of_kaplan_and_meier():
    random = np.random.default_rng(0)
    x, reached = random.integers(1, 9, size=(200, 7)).astype(float), random.random((200, 7)) < 0.8
    expected = []
    for places, arrives in zip(x, reached, strict=True):
        curve = stats.ecdf(stats.CensoredData(uncensored=places[arrives], right=places[~arrives])).sf
        there = curve.quantiles[(curve.probabilities <= 0.5 + 1e-12) & (np.diff(curve.probabilities, prepend=1.0) < 0)]
        expected.append(there[0] if len(there) and arrives.sum() >= 4 else np.inf)
    assert median_crossings(x, reached).tolist() == expected
    assert 0 < np.isinf(expected).sum() < 200


def test_cells_of_a_forced_lag_by_hand(found):
    line, _ = found.compared()
    assert (line.name, line.rate, line.lags.tolist()) == ("no correction", 0.01, [0.0, 2.0, 8.0])
    cells = line.cells
    assert [numbers_of(mean_of(cells[k], "score")) for k in (0, 2, 8)] == [(11, 10, 12), (9, 8, 10), (3, 2, 4)]
    assert [numbers_of(median_of(cells[k], "frames")) for k in (0, 2)] == [(11, 10, 12), (31, 30, 32)]
    assert numbers_of(median_of(cells[2], "wall_seconds")) == (15.5, 15.0, 16.0)
    assert numbers_of(median_of(cells[8], "frames")) == (np.inf, np.inf, np.inf)  # they end at 60
    assert [n_reached(cells[k]) for k in (0, 2, 8)] == [(3, 3), (3, 3), (0, 3)]


def test_a_seed_that_ends_below_the_score_is_censored(write, tmp_path):
    for seed, arrives in enumerate((30, 31, 32, 99, 99)):
        write(tmp_path, "lag2", seed=seed, arrives=arrives, frames=40, settings=paac(2))
    (line,) = make_study(load_runs(tmp_path), GOAL).lines
    assert n_reached(line.cells[2.0]) == (3, 5)
    value, low, high = numbers_of(median_of(line.cells[2.0], "frames"))
    assert (value, low, high) == (32.0, 30.0, np.inf)  # the third of five; resamples may hold too few that arrive


def test_a_seed_that_failed_before_its_first_game_never_arrives(write, tmp_path):
    for seed in range(4):
        path = write(tmp_path, "lag2", seed=seed, arrives=30, settings=paac(2))
        if seed > 1:
            (path / "episodes.csv").unlink()
            (path / "eval.csv").unlink()
            status = json.loads((path / "status.json").read_text())
            (path / "status.json").write_text(json.dumps(status | {"state": "failed" if seed == 2 else "running"}))
    (line,) = make_study(load_runs(tmp_path), GOAL).lines
    assert n_reached(line.cells[2.0]) == (2, 3)  # nothing is known of the one that runs
    assert counted(line.cells[2.0], "score").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("state", ["running", "preempted"])
def test_a_run_that_is_not_over_has_no_point_beside_those_that_are(write, tmp_path, state):
    paths = {k: write(tmp_path, f"lag{k}", score=10.0 - k, lag=float(k), settings=paac(k)) for k in (0, 2, 8)}
    status = json.loads((paths[8] / "status.json").read_text())
    (paths[8] / "status.json").write_text(json.dumps(status | {"state": state}))
    (line,) = make_study(load_runs(tmp_path), GOAL).lines
    assert {lag: float(mean_of(cell, "score").value) for lag, cell in line.cells.items()} == pytest.approx(
        {0: 10.0, 2: 8.0, 8: np.nan}, nan_ok=True
    )
    assert np.isnan(mean_of(line.cells[8], "entropy_nats").value)
    for k in (0, 2):  # where none is over, all show how far they are
        (paths[k] / "status.json").write_text(json.dumps(status | {"state": state}))
    (line,) = make_study(load_runs(tmp_path), GOAL).lines
    assert np.isfinite([mean_of(cell, "score").value for cell in line.cells.values()]).all()


def test_lines_are_told_apart_by_correction_distribution_and_what_else_differs(write, tmp_path):
    for k in (2, 8):
        write(tmp_path, f"fixed{k}", settings=paac(k, t_max=5))
        write(tmp_path, f"uniform{k}", settings=paac(k, "uniform", t_max=5))
        write(tmp_path, f"clip{k}", settings=paac(k, ratio_clip=0.2, t_max=5))
        write(tmp_path, f"rate{k}", settings=paac(k, optimizer={"lr": 0.001}, t_max=5))
        write(tmp_path, f"steps{k}", settings=paac(k, t_max=20))
    found = make_study(load_runs(tmp_path), GOAL)
    fives = ["no correction", "no correction, uniform lag", "ratio clipped by 0.2"]
    names = [*(f"{name}, t_max=5" for name in fives), "no correction, t_max=20"]
    assert sorted(line.name for line in found.compared()) == sorted(names)
    assert {line.rate for line in found.compared()} == {0.01}  # that of most runs
    looks = _looks(found.compared())
    assert len(looks) == len({*looks.values()}) == 4
    assert {look.colour for name, look in looks.items() if name.startswith("no")} == {style.COLOURS["paac"]}
    assert {line.rate for line in found.lines} == {0.01, 0.001}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algo": {"ratio_clip": None, "log_epsilon": 0.0}, "advantage": {"kind": "nstep"}}, "no correction"),
        ({"algo": {"ratio_clip": 0.2}}, "ratio clipped by 0.2"),
        ({"algo": {"log_epsilon": 1e-3}, "advantage": {"kind": "vtrace"}}, "V-trace + log epsilon 0.001"),
        ({"algo": {"stale": {"aware": True, "delay_compensation": 0.04}}},
         "delay compensation 0.04 + steps lr / (1 + staleness)"),
    ],
)  # fmt: skip
def test_corrections_have_names(config, words):
    assert correction_of(Run(Path("run"), config, {}, "paac", "Catch", 0)) == words


# --- the price list


def test_the_price_list_by_hand(found):
    table = price_list(found)
    rows = table.numbers.set_index("way")
    assert set(rows.index) == {"PAAC", "PAAC overlap", "A3C", "GA3C"}  # no forced lag, no correction of lag 0
    assert rows["base"].to_dict() == {"PAAC": True, "PAAC overlap": False, "A3C": False, "GA3C": False}

    def interval(way, name):
        return pytest.approx(tuple(rows.loc[way, [name, f"{name}_low", f"{name}_high"]]))

    assert interval("A3C", "throughput") == (3.0, 3.0, 3.0)
    assert interval("A3C", "frames_needed") == (2.0, 22 / 12, 22 / 10)
    assert interval("A3C", "net_speed_up") == (5.5 * 6 / 22, 5 * 6 / 22, 6 * 6 / 22)
    assert interval("PAAC overlap", "throughput") == (1.5, 1.0, 2.0)
    assert interval("PAAC overlap", "frames_needed") == (1.0, 11 / 12, 11 / 10)
    assert interval("GA3C", "frames_needed") == (np.inf, np.inf, np.inf)
    assert interval("GA3C", "net_speed_up") == (0.0, 0.0, 0.0)
    assert rows["lag_updates"].to_dict() == {"PAAC": 0.0, "PAAC overlap": 1.0, "A3C": 1.0, "GA3C": 4.0}
    assert rows["reproducible"].to_dict() == {"PAAC": True, "PAAC overlap": True, "A3C": False, "GA3C": False}
    text = table.text.set_index("method")
    assert text.loc["A3C", "frames needed (x)"] == "2.00 [1.83, 2.20]"
    assert text.loc["GA3C", "frames needed (x)"] == "never"
    assert text.loc["GA3C", "reached"] == "0 of 3"
    assert text.loc["PAAC (base)", "throughput gained (x)"] == "1.00"


def test_one_configuration_in_two_sweeps_is_one_way(write, run_writer, tmp_path):
    for seed in range(3):
        for name, speed in (("quiet", 4.0), ("loaded", 1.0)):
            write(tmp_path / name, "paac", seed=seed, speed=speed, settings=paac(0))
            config = tmp_path / name / "demo" / "CartPole-v1" / "paac" / "paac" / f"seed{seed}" / "config.yaml"
            config.write_text(config.read_text().replace("name: demo", f"name: {name}"))
    found = make_study(load_runs(tmp_path / "quiet", tmp_path / "loaded"), GOAL)
    (way,) = found.ways
    assert (way.name, len(way.traces)) == ("PAAC", 3)
    assert mean_of(way, "frames_per_second").value == 4.0  # of the root that was named first


def test_another_base(found):
    rows = price_list(found, "A3C").numbers.set_index("way")
    assert rows.loc["PAAC", ["throughput", "frames_needed"]].tolist() == pytest.approx([1 / 3, 0.5])
    text = price_list(found, "GA3C").text.set_index("method")  # none of its seeds gets there, all of PAAC's do
    assert text.loc["PAAC", ["frames needed (x)", "net speed-up (x)"]].tolist() == ["0.00", "base never"]
    with pytest.raises(NothingToDrawError, match="No environment has runs of Gorila and of another way"):
        price_list(found, "Gorila")


def test_what_is_switched_off_is_no_part_of_a_name():
    assert (
        short_label("n_agents=16, overlap=True, synchronous=False, max_lag=null, distribution=none")
        == "n_agents=16, overlap"
    )
    assert short_label("hidden_sizes=[64, 64]") == "hidden_sizes=[64, 64]"
    assert factor(Estimate(*map(np.asarray, (1.5, 1.25, np.inf)))) == "1.50 [1.25, never]"


# --- the largest stable learning rate


def cell(*scores):
    """Seeds with these scores, in memory."""
    runs = [Run(Path(f"run{seed}"), {"env": {}}, {"state": "finished"}, "paac", "Catch", seed) for seed in range(3)]
    return SeedGroup("Catch", "paac", "", [
        Studied(run, {"score": score}, None, None, {}) for run, score in zip(runs, scores, strict=True)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def grid():
    """Of mean scores: at lag 1 100, 95 and 90 by rising rate; at lag 8 60, 20 and 56; at lag 64 nothing is learnt."""
    scores = {1.0: [(100, 100, 100), (95, 95, 95), (70, 90, 110)], 8.0: [(60, 60, 60), (20, 20, 20), (56, 56, 56)],
              64.0: [(10, 10, 10)] * 3}  # fmt: skip
    rates = [0.1, 0.2, 0.4]
    cells = {(lag, rate): cell(*own) for lag, row in scores.items() for rate, own in zip(rates, row, strict=True)}
    return Grid("Catch", "no correction", list(scores), rates, cells, untrained=0.0)


def test_the_frontier_by_hand(grid):
    assert grid.means.tolist() == [[100, 60, 10], [95, 20, 10], [90, 56, 10]]
    assert numbers_of(grid.frontier(1.0)) == (0.4, 0.2, 0.4)  # 90 of 100 is just enough; in many resamples it is not
    assert numbers_of(grid.frontier(8.0)) == (0.4, 0.4, 0.4)  # wherever smaller rates lie
    assert np.isnan(numbers_of(grid.frontier(64.0))).all()  # 10 of 100 is not half


def test_the_frontier_counts_from_what_an_untrained_policy_gets(grid):
    assert numbers_of(replace(grid, untrained=60.0).frontier(1.0))[0] == 0.1  # 95 is 35 of 40: not 90%
    assert numbers_of(replace(grid, untrained=-100.0).frontier(64.0))[0] == 0.4  # 10 is 110 of 200: learnt


def test_one_learning_rate_has_no_frontier(found):
    with pytest.raises(NothingToDrawError, match="two learning rates each"):
        rates.figure_and_table(found)


def test_the_frontier_lies_on_the_scores_with_the_slope_beside_it(grid):
    cells = {rate: {lag: grid.cells[lag, rate] for lag in grid.lags} for rate in grid.rates}
    lines = [Line("Catch", "no correction", "fixed", "samples", "", rate, cells[rate]) for rate in grid.rates]
    found = Study(lines, [], {})
    (made,) = rates.grids(found)
    assert (list(made.lags), list(made.rates), made.means.tolist()) == ([1, 8, 64], grid.rates, grid.means.tolist())
    with pytest.raises(NothingToDrawError):
        rates.figure_and_table(found)  # without a training game nobody knows where it began
    curve = ReturnTrace(Run(Path("run"), {}, {}, "paac", "Catch", 0), {"frames": np.arange(2.0)}, np.zeros(2), NOTHING)
    key = (1.0, 0.1)
    seen = replace(grid.cells[key], traces=[replace(one, curve=curve) for one in grid.cells[key].traces])
    figure, table = rates.figure_and_table(
        replace(found, lines=[replace(lines[0], cells={**lines[0].cells, 1.0: seen}), *lines[1:]])
    )
    assert table.loc[table["quantity"] == "largest_stable_rate", "value"].tolist()[:2] == [0.4, 0.4]
    frontier, slope = figure.subfigs[0].axes[0].lines
    assert frontier.get_ydata()[:2].tolist() == [2.0, 2.0]
    assert slope.get_ydata()[0] == 2.0
    assert np.isnan(slope.get_ydata()[1:]).all()  # 0.4 / 8 lies below the rates that were run


# --- prediction


def test_in_between_it_is_linear():
    means = np.array([[10.0, 20.0, 40.0], [0.0, 0.0, 8.0]])
    places = np.array([0.0, 1.0, 2.0])
    assert interpolated(places, means, np.array([1.0, 1.5])).tolist() == pytest.approx([20.0, 4.0])
    assert interpolated(places, means, np.array([0.0, 99.0])).tolist() == [10.0, 8.0]


def test_a_curve_that_turns_back_predicts_by_its_first_way():
    means = np.array([0.0, 10.0, 20.0, 40.0])
    places = np.array([[0.0, 2.0, 1.0, 3.0], [0.0, 1.0, 1.0, 0.5]])
    assert interpolated(places, means, np.array([1.5, 0.5])).tolist() == pytest.approx([7.5, 5.0])
    assert interpolated(places, means, np.array([2.5, 99.0])).tolist() == pytest.approx([30.0, 10.0])


def test_found_and_predicted_by_hand(found):
    made = {(one.way.name, one.quantity): one for one in predictions(found) if one.unit == "lag_updates"}
    assert {name for name, _ in made} == {"A3C", "GA3C", "PAAC overlap"}
    a3c, ga3c, overlap = (made[name, "score"] for name in ("A3C", "GA3C", "PAAC overlap"))
    at_one = 11 - 2 * np.log(2) / np.log(3)  # the curve: 11 at lag 0, 9 at 2, 3 at 8
    assert float(a3c.predicted.value) == pytest.approx(at_one)
    assert 9 < a3c.predicted.low < at_one < a3c.predicted.high < 11
    assert (float(a3c.found.value), float(a3c.difference.value)) == pytest.approx((1.0, 1.0 - at_one))
    assert float(ga3c.predicted.value) == pytest.approx(9 - 6 * np.log(5 / 3) / np.log(3))
    assert np.isnan(float(a3c.lost.value))  # no run of A3C without lag
    assert numbers_of(overlap.lost) == (10.0, 9.0, 11.0)
    assert float(overlap.predicted_loss.value) == pytest.approx(11 - at_one)
    text = table(found).text.set_index(["method", "in", "quantity"])
    assert text.loc[("A3C", "updates", "score"), "lost"] == "-"
    assert text.loc[("PAAC overlap", "updates", "score"), "lost"] == "10.00 [9.00, 11.00]"


@pytest.mark.parametrize(("unit", "per_update"), [("lag_kl_nats", 0.1), ("value_lag", 3.0)])
def test_how_far_policy_and_value_moved_predicts_too(found, unit, per_update):
    """Both grow like the lag in these runs, and the curve is linear in them."""
    made = {(one.way.name, one.quantity): one for one in predictions(found) if one.unit == unit}
    assert {name for name, _ in made} == {"A3C", "GA3C", "PAAC overlap"}
    a3c, ga3c = made["A3C", "score"], made["GA3C", "score"]
    assert (float(a3c.lag.value), float(a3c.predicted.value)) == pytest.approx((per_update, 10.0))  # 11 at 0, 9 at 2
    assert (float(ga3c.lag.value), float(ga3c.predicted.value)) == pytest.approx((4 * per_update, 7.0))  # 3 at 8
    assert 9 < a3c.predicted.low < 10 < a3c.predicted.high < 11


def test_a_row_of_panels_per_quantity_and_a_column_per_unit(found):
    figure, _ = figure_and_table(found)
    section = figure.subfigs[0]
    assert [panel.get_xlabel().partition(",")[0] for panel in section.axes] == [
        "mean lag", "mean KL", "change of V"
    ] * 2  # fmt: skip
    assert [panel.get_ylabel() for panel in section.axes[:3]] == [section.axes[0].get_ylabel()] * 3
    assert section.axes[0].get_ylabel() != section.axes[3].get_ylabel()


def test_nothing_is_predicted_beyond_the_forced_lags(found):
    (way,) = [one for one in found.ways if one.algo == "ga3c"]
    beyond = {"lag_updates": 9.0, "lag_kl_nats": 0.9, "value_lag": 27.0}
    older = [replace(one, numbers={**one.numbers, **beyond}) for one in way.traces]
    made = predictions(replace(found, ways=[replace(way, traces=older)]))
    assert {str(float(one.predicted.value)) for one in made} == {"nan"}
    assert made[0].found.value == 1.0


# --- figures


def test_every_lag_has_a_place_and_what_never_arrives_the_edge(found):
    figure, table = time(found)
    assert table["quantity"].unique().tolist() == ["frames", "wall_seconds"]
    panel = figure.subfigs[0].axes[0]
    assert panel.get_xscale() == "linear"  # 8 is not far
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "2", "8"]
    (edge,) = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert (edge.get_xdata().tolist(), edge.get_ydata().tolist()) == ([8.0], [1.0])


def test_late_gradients_are_a_line_of_their_own_and_no_curve_for_a_prediction(write, tmp_path):
    """Runs of a version that knew late samples alone lie on one line with those that say so."""
    for k in (0, 2, 8):
        write(tmp_path, f"old{k}", seed=0, score=10.0 - k, settings=paac(k))
        for of, seed in (("samples", 1), ("gradients", 2)):
            settings = paac(k) | {"lag": {"updates": k, "distribution": "fixed", "of": of}}
            write(tmp_path, f"{of}{k}", seed=seed, score=1.0 - k, lag=float(k), settings=settings)
    write(tmp_path, "a3c", "a3c", lag=1.0, settings={"n_workers": 2})
    late = make_study(load_runs(tmp_path), GOAL)
    seeds = {line.name: {lag: len(cell.all_runs) for lag, cell in line.cells.items()} for line in late.lines}
    assert seeds == {"no correction": {0: 2, 2: 2, 8: 2}, "no correction, late gradients": {0: 1, 2: 1, 8: 1}}
    assert {one.line.name for one in predictions(late)} == {"no correction"}


@pytest.mark.usefixtures("inkless")
def test_the_command_writes_what_the_runs_allow(ways, tmp_path):
    out = tmp_path / "out"
    assert main([str(ways), "--out", str(out), "--threshold", "50"]) == 0
    for name in ("study_score", "study_time", "study_divergence", "study_prediction"):
        assert {file.suffix for file in out.glob(f"{name}.*")} == {".png", ".pdf", ".csv"}
    for name in ("price_list", "lag_prediction"):
        assert {file.suffix for file in out.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    table = pd.read_csv(out / "study_score.csv")
    warning = pd.read_csv(out / "study_divergence.csv").query("line == 'no correction'").groupby("quantity").value
    assert {name: values.tolist() for name, values in warning} == {
        "effective_sample_size": [1.0, 1.0, 1.0], "lag_kl_nats": [0.0, 0.2, 0.8],
        "entropy_nats": pytest.approx([1.0, 1 / 3, 1 / 9]),
    }  # fmt: skip
    rows = table[(table["quantity"] == "score") & (table["line"] == "no correction")]
    assert rows[["lag_updates", "value", "low", "high", "n_seeds"]].to_numpy().tolist() == [
        [0, 11, 10, 12, 3], [2, 9, 8, 10, 3], [8, 3, 2, 4, 3]
    ]  # fmt: skip


def test_what_the_runs_do_not_allow_is_a_sentence(write, tmp_path, capsys):
    write(tmp_path, "a3c", "a3c", settings={"n_workers": 2})
    assert main([str(tmp_path), "--threshold", "Pong=18"]) == 2
    assert capsys.readouterr().err == "No run is of Pong, only of CartPole-v1.\n"
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--threshold", "Pong=high"])
    assert "Pong=high must be a return, or an environment and its return" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "study_score is left out: No environment has runs with two or more values of algo.lag.updates." in said
    assert "price_list is left out: No environment has runs of PAAC without a forced lag" in said
    with pytest.raises(NothingToDrawError):
        score(make_study(load_runs(tmp_path)))


@pytest.mark.usefixtures("inkless")
def test_the_report_has_a_chapter_where_lag_was_forced(ways, write, tmp_path, monkeypatch):
    for part in ("HEADLINE", "OTHERS"):
        monkeypatch.setattr(gallery, part, ())
    kinds = {name: kind for name, kind in FIGURES.items() if name in ("study_score", "study_rates")}
    monkeypatch.setattr("analysis.study.FIGURES", kinds)
    write_report(load_runs(ways), tmp_path / "forced", threshold=GOAL)
    page = (tmp_path / "forced" / "index.html").read_text()
    assert page.count("Lag as a setting") == 2  # heading and link
    assert "2.00 [1.83, 2.20]" in page  # the price list
    assert "The largest stable learning rate against lag: No environment has two values" in page
    assert (tmp_path / "forced" / "study_score.csv").exists()
    write(tmp_path / "plain", "a3c", "a3c")
    assert not has_forced_lag(load_runs(tmp_path / "plain"))


def test_what_most_configurations_have_is_no_part_of_a_name() -> None:
    labels = ["n=1, stale=True, kind=nstep", "n=2, stale=True, kind=nstep", "n=1, stale=False, kind=nstep"]
    assert usual_parts(labels) == {"n=1", "stale=True", "kind=nstep"}
    assert usual_parts(["overlap=False", "overlap=True"]) == set()
    assert usual_parts(["workers=1", "workers=2", "workers=4"]) == set()
    assert usual_parts([""]) == set()
