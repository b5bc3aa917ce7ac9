import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from analysis import load_runs, style
from analysis.cli import NothingToDrawError
from analysis.speed import adjustments, main, scaling, speed_up, throughput

pytestmark = pytest.mark.usefixtures("inkless")
SHARES = {"share_simulate": 0.4, "share_predict": 0.3, "share_train": 0.2, "share_wait": 0.1}


def write_speed(run, agent_steps, seconds, bound=None, shares=False):
    status = json.loads((run / "status.json").read_text())
    status |= {"frames": 4 * agent_steps, "agent_steps": agent_steps, "updates": agent_steps // 10}
    status |= {"wall_seconds": seconds}
    if bound:
        status["calibration"] = {"serial_bound_agent_steps_per_second": bound}
    (run / "status.json").write_text(json.dumps(status))
    if shares:
        counters = {"frames": [50], "agent_steps": 0, "updates": 0, "wall_seconds": 1.0, "frames_per_second": 1.0}
        pd.DataFrame(counters | {"pps": 1, "tps": 1} | SHARES).to_csv(run / "metrics.csv", index=False)


def write_rise(run, seconds):
    """Mean returns of 0, then of 100 from `seconds` on."""
    rows = {"frames": [0, 10], "agent_steps": [0, 10], "wall_seconds": [0.0, seconds], "episode_return": [0.0, 200.0]}
    pd.DataFrame(rows).assign(episode_length=1).to_csv(run / "episodes.csv", index=False)


def widths(panel):
    return [bar.get_width() for bar in panel.patches]


@pytest.mark.parametrize(("bound", "shares", "n_panels"), [(None, False, 3), (200.0, False, 4), (200.0, True, 5)])
def test_bars_are_the_speeds(make_run, tmp_path, bound, shares, n_panels):
    for seed, seconds in enumerate((10.0, 20.0)):
        write_speed(make_run(seed=seed), 1000, seconds, bound, shares)
        write_speed(make_run(seed=seed, algo="a3c"), 1000, 40.0, bound, shares)
    figure, table = throughput(load_runs(tmp_path))
    panels = figure.subfigs[0].axes
    assert len(panels) == n_panels
    frames, pps, tps = panels[:3]
    assert [label.get_text() for label in frames.get_yticklabels()] == ["A3C", "PAAC"]
    assert widths(frames) == [100.0, 300.0]
    assert widths(pps) == [25.0, 75.0]
    assert widths(tps) == [2.5, 7.5]
    if bound:
        assert widths(panels[3]) == [0.125, 0.375]
        assert table["share_of_bound"].tolist() == [0.125, 0.125, 0.5, 0.25]
        for panel, place in ((pps, bound), (frames, 800.0)):
            (marks,) = [line.get_xdata().tolist() for line in panel.lines if line.get_marker() == "|"]
            assert marks == [place, place]
            assert panel.get_xlim()[1] > place  # beyond all bars, and still there
    if shares:
        np.testing.assert_allclose(widths(panels[4]), np.repeat(list(SHARES.values()), 2))
        assert panels[4].get_ylim() == panels[3].get_ylim() == frames.get_ylim()  # a method has its row everywhere
    assert ("Serial bound" in figure.subfigs[-1].texts[0].get_text()) is bool(bound)


def test_names_of_rows_do_not_overlap(make_run, tmp_path):
    for n in (1, 2, 3):
        long = {f"a_long_setting_number_{i}": n for i in range(4)}
        write_speed(make_run(overrides=str(n), settings=long), 1000, 10.0)
    figure, _ = throughput(load_runs(tmp_path))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.subfigs[0].axes[0].get_yticklabels()]
    assert len(boxes) == 3
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))


def test_speed_up_by_hand(make_run, tmp_path):
    """Medians of one worker: 100 s to the score. One run with two workers never gets there."""
    for n, times in ((1, (90.0, 100.0, 400.0)), (2, (50.0, 40.0, None))):
        for seed, seconds in enumerate(times):
            run = make_run(algo="a3c", seed=seed, overrides=str(n), settings={"n_workers": n})
            write_rise(run, seconds or 60.0)
            if seconds is None:
                pd.read_csv(run / "episodes.csv").assign(episode_return=0.0).to_csv(run / "episodes.csv", index=False)
            write_speed(run, 1000 * n, 10.0)
    figure, table = speed_up(load_runs(tmp_path), threshold=50.0, window=20)
    table = table.set_index(["workers", "seed"])
    assert table["to_score"][1].tolist() == pytest.approx([100 / 90, 1.0, 0.25])
    assert table["to_score"][2].tolist()[:2] == [2.0, 2.5]
    assert np.isnan(table["to_score"][2].tolist()[2])
    assert table["throughput"][2].tolist() == [2.0, 2.0, 2.0]
    reference = next(line for line in figure.subfigs[0].axes[0].lines if line.get_marker() == "x")
    assert reference.get_xdata().tolist() == [1.0, 2.0]  # table 2, as far as we went
    assert reference.get_ydata().tolist() == [1.0, 2.1]
    assert "1 of 6 runs have no point there" in " ".join(figure.subfigs[-1].texts[0].get_text().split())


def test_the_q_methods_stand_beside_their_own_rows_of_table_2(make_run, tmp_path):
    """One worker takes 100 s and 1,000 frames to the score, two take 40 s and 400 frames."""
    for algo in ("one_step_q", "n_step_q"):
        for n, seconds in ((1, 100.0), (2, 40.0)):
            run = make_run(algo=algo, overrides=str(n), settings={"n_workers": n})
            write_rise(run, seconds)
            games = pd.read_csv(run / "episodes.csv").assign(frames=[0.0, 10 * seconds])
            games.to_csv(run / "episodes.csv", index=False)
            write_speed(run, 1000 * n, 10.0)
    figure, table = speed_up(load_runs(tmp_path), threshold=50.0, window=20)
    two = table[table["workers"] == 2.0].set_index("algo")
    assert two["to_score"].tolist() == two["frames_to_score"].tolist() == [2.5, 2.5]
    assert two["wall_seconds_needed"].tolist() == [40.0, 40.0]
    assert two["frames_needed"].tolist() == [400.0, 400.0]
    references = [line for line in figure.subfigs[0].axes[0].lines if line.get_marker() == "x"]
    found = {line.get_color(): line.get_ydata().tolist() for line in references}
    assert found == {style.COLOURS["n_step_q"]: [1.0, 2.7], style.COLOURS["one_step_q"]: [1.0, 3.0]}
    legend = " ".join(text.get_text() for text in figure.subfigs[0].legends[0].get_texts())
    assert "one-step Q on Atari, Mnih et al. 2016, table 2" in " ".join(legend.split())


def test_one_number_of_workers_has_no_speed_up(make_run, tmp_path):
    make_run(algo="a3c", settings={"n_workers": 2})
    make_run()  # PAAC has none
    with pytest.raises(NothingToDrawError, match="number of workers"):
        speed_up(load_runs(tmp_path))


def test_scaling_by_hand(make_run, tmp_path):
    """One rank makes 90, 100 and 110 agent steps a second, two make 180; of Catch two make 50 and four make 80."""
    for env, ranks, speeds in (
        ("CartPole-v1", None, (90, 100, 110)),  # a version without ranks
        ("CartPole-v1", 2, (180,)),
        ("Catch-v0", 2, (50,)),
        ("Catch-v0", 4, (80,)),
    ):
        for seed, speed in enumerate(speeds):
            run = make_run(env=env, seed=seed, overrides=f"ranks={ranks}", ranks=ranks)
            write_speed(run, 10 * speed, 10.0)
    figure, table = scaling(load_runs(tmp_path))
    table = table.set_index(["env", "ranks", "seed"]).sort_index()
    assert table["pps"].tolist() == [90.0, 100.0, 110.0, 180.0, 50.0, 80.0]
    assert table["efficiency"].tolist() == pytest.approx([0.9, 1.0, 1.1, 0.9, 1.0, 0.8])
    assert set(table["label"]) == {""}
    for part, places, ideal in ((0, [1.0, 2.0], [100.0, 200.0]), (1, [2.0, 4.0], [50.0, 100.0])):
        panel, efficiency = figure.subfigs[part].axes
        (line,) = [line for line in panel.lines if line.get_marker() == "x" and line.get_linestyle() != "None"]
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (places, ideal)
        assert not [line for line in efficiency.lines if line.get_marker() == "x"]


def test_one_number_of_ranks_does_not_scale(make_run, tmp_path):
    write_speed(make_run(ranks=2), 1000, 10.0)
    write_speed(make_run(ranks=1, algo="ppo"), 1000, 10.0)
    with pytest.raises(NothingToDrawError, match="differ in their number of ranks alone"):
        scaling(load_runs(tmp_path))


def test_a_run_of_a_version_without_ranks_had_one(make_run, tmp_path):
    write_speed(make_run(), 1000, 10.0)
    write_speed(make_run(ranks=1, seed=1), 1000, 10.0)
    _, table = throughput(load_runs(tmp_path))
    assert table["label"].tolist() == ["", ""]


def write_adjustments(run):
    rows = {"frames": [10, 20], "agent_steps": [10, 20], "updates": [1, 2], "wall_seconds": [20.0, 40.0],
            "n_agents": [32, 36], "n_predictors": [2, 2], "n_trainers": [2, 1], "tps": [100.0, 120.0],
            "tps_before": [None, 100.0], "kept": [True, True]}  # fmt: skip
    pd.DataFrame(rows).to_csv(run / "adjustments.csv", index=False)


def test_adjustments_over_time(make_run, tmp_path):
    write_adjustments(make_run(algo="ga3c"))
    make_run(algo="ga3c", seed=1)
    figure, table = adjustments(load_runs(tmp_path))
    agents = table[table["curve"] == "n_agents"]
    assert (agents["x"].iloc[0], agents["x"].iloc[-1]) == (20.0, 40.0)
    assert (agents["value"].iloc[0], agents["value"].iloc[-1]) == (32.0, 36.0)
    assert len(figure.subfigs[0].axes) == 3


def test_the_command_writes_what_the_runs_allow(make_run, tmp_path, capsys):
    run = make_run(algo="ga3c", settings={"n_agents": 8})
    write_speed(run, 1000, 10.0)
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["throughput.csv", "throughput.pdf", "throughput.png"]
    write_adjustments(run)
    write_speed(make_run(algo="ga3c", overrides="more", settings={"n_agents": 16}), 1000, 10.0)
    write_speed(make_run(algo="ga3c", overrides="ranks", settings={"n_agents": 8}, ranks=2), 1000, 10.0)
    assert main([str(tmp_path / "runs"), "--out", str(out), "--threshold", "100"]) == 0
    assert {file.stem for file in out.iterdir()} == {"throughput", "speed_up", "scaling", "adjustments"}


def test_runs_that_never_trained_are_one_sentence(make_run, tmp_path, capsys):
    write_speed(make_run(), 0, 0.0)
    assert main([str(tmp_path / "runs")]) == 2
    assert "has trained for a measurable time" in capsys.readouterr().err
