"""What becomes of runs that did not finish: they count with what they reached, or the number says how many it is of."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import crossings, curves, gallery, lag, load_runs, profiles, relation, scores, speed, summarise, table
from analysis.outcome import counting, outcome, tally

FRAMES = ["frames"]


def write(
    path: Path,
    games: Iterable[tuple[float, float]] = (),
    evaluations: Iterable[tuple[float, bool, float]] = (),
    state: str = "finished",
    frames: float = 1000.0,
    **status: object,
) -> Path:
    """Replaces what a run did: games (frames, return), evaluations (frames, final, return) of one game, and its end."""
    columns = ["frames", "agent_steps", "wall_seconds", "episode_return", "episode_length"]
    rows = [(at, at, at / 100.0, value, 1) for at, value in games]
    pd.DataFrame(rows, columns=columns).to_csv(path / "episodes.csv", index=False)
    columns = ["frames", "wall_seconds", "final", "episode_return", "episode_length"]
    rows = [(at, at / 100.0, final, value, 1) for at, final, value in evaluations]
    pd.DataFrame(rows, columns=columns).to_csv(path / "eval.csv", index=False)
    known = json.loads((path / "status.json").read_text())
    known |= {"state": state, "frames": frames, "agent_steps": frames, "wall_seconds": frames / 100.0} | status
    (path / "status.json").write_text(json.dumps(known))
    return path


@pytest.fixture
def two_of_five(make_run, tmp_path):
    """PAAC of five seeds, of which two finished at 401 and 400 and three failed at 10; and three of A3C at 300."""
    for seed, score in ((0, 401.0), (1, 400.0)):
        write(make_run(seed=seed), [(10, 20.0), (1000, 380.0)], [(1000, True, score)])
    for seed in (2, 3, 4):
        write(make_run(seed=seed), [(10, 10.0), (200, 10.0)], state="failed", frames=250.0, error="MemoryError")
    for seed in (0, 1, 2):
        write(make_run(algo="a3c", seed=seed), [(10, 20.0), (1000, 280.0)], [(1000, True, 300.0)])
    return load_runs(tmp_path)


@pytest.fixture
def two_of_five_alone(make_run, tmp_path):
    """The same, but what failed had reached nothing."""
    for seed, score in ((0, 401.0), (1, 400.0)):
        write(make_run(seed=seed), [(10, 20.0), (1000, 380.0)], [(1000, True, score)])
    for seed in (2, 3, 4):
        write(make_run(seed=seed), state="failed", frames=5.0, error="MemoryError")
    for seed in (0, 1, 2):
        write(make_run(algo="a3c", seed=seed), [(10, 20.0), (1000, 280.0)], [(1000, True, 300.0)])
    return load_runs(tmp_path)


# --- the rule


@pytest.mark.parametrize(
    ("state", "evaluations", "games", "value", "kind"),
    [
        ("finished", [(10, False, 5.0), (20, True, 7.0)], [(9, 1.0)], 7.0, "final evaluation"),
        ("finished", [(10, True, 5.0), (20, True, 7.0)], [], 7.0, "final evaluation"),  # it was extended
        ("finished", [(10, False, 5.0)], [(9, 1.0), (19, 3.0)], 2.0, "training games"),
        ("failed", [(10, False, 5.0), (20, False, 7.0)], [(9, 1.0)], 7.0, "last evaluation"),
        ("running", [(10, True, 5.0)], [(15, 1.0)], 5.0, "last evaluation"),
        ("preempted", [], [(9, 1.0), (19, 3.0)], 2.0, "training games"),
        ("failed", [], [], float("nan"), "nothing"),
    ],
)
def test_what_a_run_reached(make_run, tmp_path, state, evaluations, games, value, kind):
    write(make_run(), games, evaluations, state)
    (run,) = load_runs(tmp_path)
    found = outcome(run)
    assert (found.value, found.kind) == (pytest.approx(value, nan_ok=True), kind)


def test_runs_that_are_not_over_are_in_no_mean_beside_runs_that_are():
    assert counting(["finished", "running", "failed", "preempted", "diverged"]) == [True, False, True, False, True]
    assert counting(["running", "preempted"]) == [True, True]


def test_the_words_on_a_number():
    assert tally(["finished"] * 5, 5) == "5 seeds"
    assert tally(["finished"], 1) == "1 seed"
    assert tally(["finished", "failed", "failed"], 3) == "3 seeds; 2 failed"
    assert tally(["running", "finished", "diverged", "failed"], 1) == "1 of 4 seeds; 1 failed, 1 diverged, 1 running"


def test_a_run_that_diverged_says_so(make_run, tmp_path):
    write(make_run(seed=0), state="failed", error="TrainingError: loss became nan before frame 9: the run diverged.")
    write(make_run(seed=1), state="failed", error="MemoryError")
    write(make_run(seed=2), state="failed", error="TrainingError: it did", diverged=True)
    assert [run.ending for run in load_runs(tmp_path)] == ["diverged", "failed", "diverged"]


# --- tables


def score(tables, method):
    (found,) = [one for one in tables if one.name.startswith("scores_as")]
    row = found.numbers[found.numbers["method"] == method].iloc[0]
    text = found.text.set_index(found.text.columns[0])
    return row, text.loc[method].iloc[0] if method in text.index else text[method].iloc[0], " ".join(found.notes)


def test_a_failed_seed_counts_in_the_score_with_what_it_reached(two_of_five):
    row, text, notes = score(table.make_tables(two_of_five), "PAAC")
    assert row["score"] == pytest.approx((401.0 + 400.0 + 3 * 10.0) / 5)
    assert (row["n_seeds"], row["n_runs"]) == (5, 5)
    assert text.startswith("166.2 [")
    assert text.endswith("(5 seeds; 3 failed)")
    assert "counts with what it had reached" in notes


def test_a_score_of_two_of_five_seeds_says_so(two_of_five_alone):
    row, text, _ = score(table.make_tables(two_of_five_alone), "PAAC")
    assert row["score"] == pytest.approx(400.5)
    assert text == "400.5 (2 of 5 seeds; 3 failed)"
    _, text, _ = score(table.make_tables(two_of_five_alone), "A3C")
    assert text == "300.0 [300.0, 300.0]"  # no word where all finished


def test_a_method_of_which_nothing_came_has_a_row(make_run, tmp_path):
    write(make_run(), [(10, 1.0)], [(10, True, 1.0)])
    write(make_run(algo="a3c"), state="failed", frames=1.0)
    row, text, _ = score(table.make_tables(load_runs(tmp_path)), "A3C")
    assert np.isnan(row["score"])
    assert text == "- (0 of 1 seed; 1 failed)"


@pytest.mark.parametrize("what", ["two_of_five", "two_of_five_alone"])
def test_failed_seeds_lose_in_the_probability_of_improvement(request, what):
    found = scores.improvement_table(summarise(request.getfixturevalue(what)))
    numbers = found.numbers.set_index("method")
    assert numbers.loc["PAAC", "probability"] == pytest.approx(2 / 5)  # of survivors it would be 1
    assert found.text["a run of"].tolist() == ["A3C", "PAAC (5 runs; 3 failed)"]


def test_running_and_finished_runs_are_not_averaged_as_one(make_run, tmp_path):
    write(make_run(seed=0), [(1000, 380.0)], [(1000, True, 400.0)])
    write(make_run(seed=1), [(100, 20.0)], [(100, False, 20.0)], state="running", frames=100.0)
    row, text, notes = score(table.make_tables(load_runs(tmp_path)), "PAAC")
    assert (row["score"], text) == (400.0, "400.0 (1 of 2 seeds; 1 running)")
    assert "not over" in notes


def test_runs_that_all_go_on_count_with_what_they_have_so_far(make_run, tmp_path):
    for seed in (0, 1):
        write(make_run(seed=seed), [(100, 20.0)], [(100, False, 20.0 + seed)], state="running", frames=100.0)
    row, text, _ = score(table.make_tables(load_runs(tmp_path)), "PAAC")
    assert (row["score"], text) == (20.5, "20.5 (2 seeds; 2 running)")


def test_human_normalised_scores_count_failed_runs(make_run, tmp_path):
    for seed, reached in ((0, 20.0), (1, 20.0)):
        write(make_run(game="Pong", env="Pong", seed=seed), [(10, -20.0)], [(1000, True, reached)])
    write(make_run(game="Pong", env="Pong", seed=2), [(10, -20.0)], [(10, False, -20.0)], "failed", 10.0)
    (found,) = [one for one in table.make_tables(load_runs(tmp_path)) if one.name == "human_normalised"]
    ours = found.numbers[found.numbers["ours"]].iloc[0]
    percent = [100 * (reached + 20.7) / (14.6 + 20.7) for reached in (20.0, 20.0, -20.0)]
    assert ours["mean"] == pytest.approx(np.mean(percent))
    assert found.text["seeds"].iloc[0] == "3 runs; 1 failed"


def test_a_failed_run_is_not_censored_on_its_way_to_a_score(make_run, tmp_path):
    """Three of five failed before the one success: the median over all is never, of the censored it would be 1000."""
    for seed in (0, 1):
        write(make_run(seed=seed), [(10, 20.0), (1000, 400.0)], [(1000, True, 400.0)])
    for seed in (2, 3, 4):
        write(make_run(seed=seed), [(10, 10.0)] if seed < 4 else [], state="failed", frames=250.0)
    found = crossings.threshold_table(load_runs(tmp_path), window=1)
    numbers = found.numbers.iloc[0]
    assert (numbers["n_reached"], numbers["n_seeds"]) == (2, 5)
    assert np.isinf(numbers["median_frames"])
    assert found.text["reached"].iloc[0] == "2 of 5"
    assert "90% of the way from the lowest first mean of these runs, 10, to their highest last one, 400" in " ".join(
        found.notes
    )


@pytest.mark.parametrize(("threshold", "words"), [(475.0, "as it was asked for"), (None, "90% of the way")])
def test_a_threshold_says_where_it_comes_from(two_of_five, threshold, words):
    assert words in " ".join(crossings.threshold_table(two_of_five, threshold).notes)


def test_speeds_and_cost_are_of_runs_that_are_over(make_run, tmp_path):
    write(make_run(seed=0), [(1000, 380.0)], frames=1000.0, wall_seconds=10.0)
    write(make_run(seed=1), [(100, 20.0)], state="running", frames=100.0, wall_seconds=10.0)
    runs = load_runs(tmp_path)
    (cost,) = table.cost_table(summarise(runs)).text.to_dict("records")
    assert (cost["runs"], cost["frames per run"], cost["frames/s"]) == ("1 of 2; 1 running", "1,000.0", "100.0")
    drawn, _ = speed.throughput(runs)
    assert [bar.get_width() for bar in drawn.subfigs[0].axes[0].patches] == [100.0]
    labels = [label.get_text() for label in drawn.subfigs[0].axes[0].get_yticklabels()]
    assert labels == ["PAAC (1 of 2 runs; 1\nrunning)"]


# --- areas


def test_areas_of_runs_of_different_length_end_at_the_same_frame(make_run, tmp_path):
    rising = [(0, 0.0), (500, 100.0), (1000, 200.0), (2000, 200.0)]
    write(make_run(seed=0), rising[:3])
    write(make_run(seed=1), rising, frames=2000.0)
    write(make_run(seed=2), rising[:2], state="failed", frames=500.0)
    write(make_run(seed=3), rising[:2], state="running", frames=500.0)
    summary = summarise(load_runs(tmp_path)).set_index("seed")
    # rolling means 0, 50, 100 and 125 at 0, 500, 1000 and 2000 frames
    assert summary.loc[0, "area"] == pytest.approx((25 * 500 + 75 * 500) / 1000)
    assert summary.loc[1, "area"] == pytest.approx((25 * 500 + 75 * 500) / 1000)  # not that of its 2,000 frames
    assert summary.loc[2, "area"] == pytest.approx((25 * 500 + 50 * 500) / 1000)  # it goes on with what it had
    assert np.isnan(summary.loc[3, "area"])


# --- figures


def legend(figure, section=0):
    return [" ".join(text.get_text().split()) for text in figure.subfigs[section].legends[0].get_texts()]


def test_the_legend_of_two_of_five_seeds(two_of_five_alone):
    drawn, _ = curves.figure_and_table(two_of_five_alone, FRAMES, 100)
    first, second = legend(drawn)
    assert first == "A3C (3 seeds), final evaluation 300.0"
    assert second == "PAAC (2 of 5 seeds; 3 failed), final evaluation 400.5"


def test_the_legend_counts_what_failed_seeds_reached(two_of_five):
    drawn, _ = curves.figure_and_table(two_of_five, FRAMES, 100)
    assert legend(drawn)[1] == "PAAC (5 seeds; 3 failed), reached 166.2"
    caption = " ".join(drawn.subfigs[-1].texts[0].get_text().split())
    assert "x: where a run failed. A run that failed counts with what it had reached" in caption


def test_curves_go_on_faint_where_a_seed_has_ended(make_run, tmp_path):
    steps = np.linspace(0.0, 1000.0, 101)
    for seed in (0, 1, 2):
        write(make_run(seed=seed), [(at, 100.0) for at in steps], [(1000, True, 100.0)])
    write(make_run(seed=3), [(at, 20.0) for at in steps[:21]], state="failed", frames=200.0)
    (group,) = curves.make_groups(load_runs(tmp_path), 1)
    drawn = curves.draw([group], FRAMES, 1)
    strong, faint, cross, _ = drawn.subfigs[0].axes[0].lines
    assert (strong.get_alpha(), faint.get_alpha()) == (1.0, pytest.approx(0.4))
    assert strong.get_xdata()[-1] == pytest.approx(0.2, abs=0.006)  # thousand frames
    assert set(strong.get_ydata()) == {80.0}
    assert faint.get_xdata()[-1] == 1.0
    assert set(faint.get_ydata()[1:]) == {100.0}
    assert (cross.get_marker(), *cross.get_xdata(), *cross.get_ydata()) == ("x", 0.2, 20.0)
    numbers = curves.make_table([group], FRAMES)
    assert set(zip(numbers["n_seeds"], numbers["mean_return"], strict=True)) == {(4, 80.0), (3, 100.0)}
    assert "fainter from there, of the seeds that go on" in " ".join(drawn.subfigs[-1].texts[0].get_text().split())


def test_lag_goes_on_without_a_seed_that_failed(make_run, tmp_path):
    for seed, end in ((0, 1000), (1, 1000), (2, 1000), (3, 200)):
        path = write(make_run(seed=seed), state="failed" if seed == 3 else "finished", frames=float(end))
        rows = pd.DataFrame({"frames": [100, end], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0})
        rows = rows.assign(**{f"lag_updates_{part}": 5.0 if seed == 3 else 1.0 for part in ("mean", "p95", "max")})
        rows.to_csv(path / "lag.csv", index=False)
    drawn, numbers = lag.figure_and_table(load_runs(tmp_path), ["lag_updates"])
    means = numbers[numbers["curve"] == "mean"]
    assert set(zip(means["n_seeds"], means["value"], strict=True)) == {(4, 2.0), (3, 1.0)}
    assert means["x"].max() == 1000.0
    assert legend(drawn) == ["PAAC (4 seeds; 1 failed)"]


def test_the_caption_names_a_method_of_which_nothing_came(make_run, tmp_path):
    write(make_run(), [(10, 1.0)], [(10, True, 5.0)])
    write(make_run(algo="a3c", seed=4), state="failed")
    drawn, _ = curves.figure_and_table(load_runs(tmp_path), FRAMES, 1)
    caption = " ".join(drawn.subfigs[-1].texts[0].get_text().split())
    assert "Not drawn, as no game of theirs ended: CartPole-v1 A3C seed 4 (failed)." in caption


def test_a_running_seed_is_a_thin_line_beside_the_mean(make_run, tmp_path):
    for seed in (0, 1, 2):
        write(make_run(seed=seed), [(0, 100.0), (1000, 100.0)], [(1000, True, 100.0)])
    write(make_run(seed=3), [(0, 20.0), (100, 20.0)], state="running", frames=100.0)
    drawn, numbers = curves.figure_and_table(load_runs(tmp_path), FRAMES, 1)
    assert set(numbers["mean_return"]) == {100.0}
    assert numbers["x"].max() == 1000.0
    mean, thin, _ = drawn.subfigs[0].axes[0].lines
    assert (mean.get_linewidth() > 1.0, thin.get_linewidth(), set(thin.get_ydata())) == (True, 0.7, {20.0})
    assert legend(drawn) == ["PAAC (3 of 4 seeds; 1 running), final evaluation 100.0"]


def test_an_environment_that_was_only_evaluated_is_drawn(make_run, tmp_path):
    write(make_run(), evaluations=[(100, False, 5.0), (200, True, 7.0), (200, True, 9.0)])
    drawn, numbers = curves.figure_and_table(load_runs(tmp_path), FRAMES, 100)
    assert numbers["mean_return"].iloc[[0, -1]].tolist() == [5.0, 8.0]
    assert legend(drawn) == ["PAAC (1 seed), final evaluation 8.0"]
    assert "the line is of the run's evaluations" in " ".join(drawn.subfigs[-1].texts[0].get_text().split())


def test_a_finished_repeat_of_a_seed_counts_before_a_failed_one(make_run, tmp_path):
    write(make_run(overrides="a"), [(10, 1.0)], state="failed", frames=10.0)
    write(make_run(overrides="b"), [(10, 1.0)], [(10, True, 5.0)], frames=10.0)
    (group,) = curves.make_groups(load_runs(tmp_path), 1)
    assert [one.value for one in group.reached()] == [5.0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attempts": 3}, "(3 attempts)"),
        ({"attempts": 2, "history": [{"ended": "diverged"}, {}]}, "(2 attempts: diverged, finished)"),
        ({"attempts": 2, "history": [{"ended": "preempted"}, {"ended": "finished"}]}, None),
        ({"attempts": 3, "history": [{"ended": "preempted"}, {"ended": "finished"}]}, "(3 attempts)"),
        ({"attempts": 1}, None),
    ],
)
def test_the_caption_names_a_seed_that_was_tried_again(make_run, tmp_path, said, words):
    write(make_run(seed=7), [(10, 1.0)], [(10, True, 5.0)], **said)
    drawn, _ = curves.figure_and_table(load_runs(tmp_path), FRAMES, 1)
    caption = " ".join(drawn.subfigs[-1].texts[0].get_text().split())
    assert ("Tried again" in caption) is (words is not None)
    assert words is None or f"Tried again until it finished: CartPole-v1 PAAC seed 7 {words}." in caption


def learning_rates(make_run):
    for seed, (rate, reached) in enumerate([(0.001, 400.0), (0.01, 300.0), (0.1, 9.0), (1.0, None)]):
        path = make_run(seed=0, overrides=f"lr={rate}", settings={"optimizer": {"lr": rate}})
        if reached is None:
            write(path, state="failed", frames=5.0, error="loss became nan before frame 5: the run diverged.")
        elif seed == 2:
            write(path, [(10, reached)], state="failed", frames=20.0, error="it became inf: the run diverged.")
        else:
            write(path, [(10, 1.0), (1000, reached)], [(1000, True, reached)])


def test_rates_that_diverged_are_in_the_learning_rate_figure(make_run, tmp_path):
    learning_rates(make_run)
    drawn, numbers = gallery._learning_rates(load_runs(tmp_path))
    assert numbers["learning_rate"].tolist() == [0.001, 0.01, 0.1, 1.0]
    assert numbers["score"].tolist()[:3] == [400.0, 300.0, 9.0]
    panel = drawn.subfigs[0].axes[0]
    crosses = {(*line.get_xdata(), *line.get_ydata()) for line in panel.lines if line.get_marker() == "x"}
    assert crosses == {(0.1, 9.0), (1.0, -0.03)}  # the last below the axis, as it reached nothing
    assert legend(drawn) == ["PAAC (3 of 4 runs; 2 diverged)"]


def test_a_run_that_failed_before_its_drawn_rate_was_noted_is_counted(make_run, tmp_path):
    for seed, rate in enumerate([0.001, 0.01, 0.1, None]):
        path = make_run(seed=seed, settings={"optimizer": {"lr": None, "lr_range": [0.001, 0.1]}})
        if rate is None:
            write(path, state="failed", frames=5.0)
            continue
        write(path, [(10, 1.0)], [(1000, True, 100.0)])
        row = {"frames": 10, "agent_steps": 10, "updates": 1, "wall_seconds": 1.0, "frames_per_second": 1, "pps": 1}
        pd.DataFrame([row | {"tps": 1, "learning_rate": rate}]).to_csv(path / "metrics.csv", index=False)
    drawn, numbers = gallery._learning_rates(load_runs(tmp_path))
    assert numbers["learning_rate"].tolist() == [0.001, 0.01, 0.1]
    assert legend(drawn) == ["PAAC (3 of 4 runs; 1 failed)"]


def test_running_runs_are_hollow_and_in_no_mean(make_run, tmp_path):
    for seed, (state, reached) in enumerate([("finished", 400.0), ("running", 20.0)]):
        path = make_run(seed=seed, settings={"t_max": 5})
        write(path, [(10, 1.0)], [(1000, state == "finished", reached)], state)
    points = relation.make_points(load_runs(tmp_path), "t_max", ["score"])
    (group,) = relation.group_points(points)
    assert relation.means(group, "score", {5.0: 5.0}).mean.tolist() == [400.0]
    drawn = relation.draw(points, "t_max", [relation.Axis("score", "score")])
    assert legend(drawn) == ["PAAC (1 of 2 runs; 1 running)"]
    hollow = [line for line in drawn.subfigs[0].axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_ydata()) for line in hollow] == [[20.0]]


def test_profiles_count_failed_runs(two_of_five):
    found = profiles.make_profiles(two_of_five)
    paac = next(method for method in found.methods if method.algo == "paac")
    assert sorted(paac.tasks[0]) == [10.0, 10.0, 10.0, 400.0, 401.0]
    assert float(paac.aggregates["iqm"].value) == pytest.approx((10 + 10 + 400) / 3)
    assert paac.seeds == "5 runs; 3 failed"
