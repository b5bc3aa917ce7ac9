import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

from analysis import load_runs, style
from analysis.lag import UNITS, distribution, draw, main, make_caption, make_groups, make_table
from analysis.summary import summarise

COUNTERS = ("frames", "agent_steps", "updates", "wall_seconds")
SUMMARY = ("mean", "p50", "p95", "max")
UPDATES = ("lag_updates",)

Bin = tuple[float, float, int]


def write_lag(
    run: Path,
    rows: Mapping[str, Sequence[tuple[float, float, float]]],
    frames: Sequence[int] = (100, 200),
    bins: Mapping[str, Sequence[Bin]] | None = None,
) -> None:
    """Writes lag.csv, with all columns that training writes, and lag_histogram.csv.

    Args:
        rows: (mean, p95, max) of each interval, by unit; other units stay empty.
        frames: at which the intervals end.
        bins: (lower, upper, samples) by unit; no file if None.
    """
    columns = [f"{unit}_{name}" for unit in UNITS for name in SUMMARY]
    table = pd.DataFrame(dict.fromkeys(COUNTERS, frames) | dict.fromkeys(columns, np.nan))
    for unit, values in rows.items():
        table[[f"{unit}_{name}" for name in ("mean", "p95", "max")]] = values
    table.to_csv(run / "lag.csv", index=False)
    if bins is not None:
        lines = [f"{unit},{low:.10g},{high:.10g},{n}\n" for unit, some in bins.items() for low, high, n in some]
        (run / "lag_histogram.csv").write_text("unit,lower,upper,samples\n" + "".join(lines))


def write_zero(run: Path) -> None:
    """PAAC: no lag in updates, ever, and a lag in frames of up to 160."""
    write_lag(
        run,
        {"lag_updates": [(0, 0, 0)] * 2, "lag_frames": [(96, 160, 160)] * 2},
        bins={"lag_updates": [(0, 1e-9, 1000)], "lag_frames": [(32, 33, 400), (158, 174, 600)]},
    )


def write_large(run: Path) -> None:
    """GA3C: far from 0 in every unit."""
    bins = {"lag_updates": [(0, 1e-9, 1), (100, 110, 399), (120, 132, 600)], "lag_kl_nats": [(0.01, 0.011, 1000)]}
    rows = {"lag_updates": [(110, 125, 130)] * 2, "gradient_staleness_updates": [(0.5, 1, 2)] * 2}
    write_lag(run, rows | {"lag_kl_nats": [(0.01, 0.01, 0.0105)] * 2}, bins=bins)


# --- the distribution


def bins_of(*rows: Bin) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["lower", "upper", "samples"])


def test_the_distribution_by_hand():
    edges, shares = distribution(bins_of((0, 1e-9, 5), (1, 2, 3), (4, 5, 2)), largest=4)
    assert edges.tolist() == [0.0, 1e-9, 1.0, 2.0, 4.0, 5.0]
    assert shares.tolist() == [1.0, 0.5, 0.5, 0.2, 0.2, 0.0]


def test_a_distribution_without_any_lag_falls_at_zero():
    edges, shares = distribution(bins_of((0, 1e-9, 7)), largest=0)
    assert edges.tolist() == [0.0, 1e-9]
    assert shares.tolist() == [1.0, 0.0]


def test_a_distribution_above_zero_begins_at_zero_with_all_samples():
    edges, shares = distribution(bins_of((3, 4, 1)), largest=3)
    assert edges.tolist() == [0.0, 3.0, 4.0]
    assert shares.tolist() == [1.0, 1.0, 0.0]


def test_the_largest_lag_ends_the_curve_within_a_wide_bin():
    edges, shares = distribution(bins_of((0.9, 1, 6), (1, 2, 4)), largest=1.25)
    assert edges.tolist() == [0.0, 0.9, 1.0, 1.25, 2.0]
    assert shares.tolist() == [1.0, 1.0, 0.4, 0.1, 0.0]  # one of ten samples has the largest
    edges, shares = distribution(bins_of((1, 2, 10)), largest=1)  # a ratio of exactly 1, always
    assert shares[edges.tolist().index(1.0)] == 1.0
    assert edges.tolist() == [0.0, 1.0, 2.0]


def test_a_last_bin_without_an_end():
    edges, shares = distribution(bins_of((0, 1e-9, 1), (1e9, np.inf, 1)), largest=3e9)
    assert edges.tolist() == [0.0, 1e-9, 1e9, 3e9]
    assert shares.tolist() == [1.0, 0.5, 0.5, 0.5]


def test_no_samples_are_no_distribution():
    for bins in (bins_of(), bins_of((0, 1, 0))):
        edges, shares = distribution(bins, largest=1)
        assert len(edges) == len(shares) == 0


# --- from runs to curves


def test_three_seeds_by_hand(make_run, tmp_path):
    means, p95s = [(1.0, 3.0), (2.0, 4.0), (6.0, 8.0)], [(2.0, 6.0), (4.0, 4.0), (9.0, 14.0)]
    bins = [[(0, 1e-9, 1), (1, 2, 3)], [(0, 1e-9, 20), (2, 3, 20)], [(1, 2, 10)]]
    for seed in range(3):
        rows = [(mean, p95, 99.0) for mean, p95 in zip(means[seed], p95s[seed], strict=True)]
        write_lag(make_run(algo="a3c", seed=seed), {"lag_updates": rows}, bins={"lag_updates": bins[seed]})
    (group,) = make_groups(load_runs(tmp_path), UPDATES)
    bands = group.bands["lag_updates"]
    mean, p95, share = bands["mean"], bands["p95"], bands["share"]
    assert (mean.x[0], mean.x[-1]) == (100.0, 200.0)
    assert (mean.mean[0], mean.mean[-1]) == (pytest.approx(3.0), pytest.approx(5.0))
    assert (mean.low[0], mean.high[0]) == (pytest.approx(1.0), pytest.approx(6.0))
    assert (p95.mean[0], p95.mean[-1]) == (pytest.approx(5.0), pytest.approx(8.0))
    assert (p95.low[-1], p95.high[-1]) == (pytest.approx(4.0), pytest.approx(14.0))
    # Pooled within a run, then every run counts the same, however many samples it has.
    assert share.x.tolist() == [0.0, 1e-9, 1.0, 2.0, 3.0]
    np.testing.assert_allclose(share.mean, [1.0, (0.75 + 0.5 + 1) / 3, (0.75 + 0.5 + 1) / 3, 0.5 / 3, 0.0])
    np.testing.assert_allclose(share.low[1], 0.5)
    np.testing.assert_allclose(share.high[1], 1.0)


def test_a_lag_between_the_edges_of_another_seed_is_interpolated(make_run, tmp_path):
    for seed, largest in enumerate((1.5, 2.0)):
        bins = {"lag_seconds": [(1, 2, 8)] if seed == 0 else [(1, 2, 4), (2, 3, 4)]}
        write_lag(make_run(seed=seed), {"lag_seconds": [(1.2, 1.5, largest)] * 2}, bins=bins)
    (group,) = make_groups(load_runs(tmp_path), ["lag_seconds"])
    share = group.bands["lag_seconds"]["share"]
    assert share.mean[share.x == 1.5] == pytest.approx((1 / 8 + 0.75) / 2)
    assert share.mean[share.x == 3.0] == 0.0


@pytest.mark.parametrize(("n_seeds", "has_band"), [(1, False), (2, False), (3, True)])
def test_a_band_needs_three_seeds(make_run, tmp_path, n_seeds, has_band):
    for seed in range(n_seeds):
        write_large(make_run(algo="ga3c", seed=seed))
    groups = make_groups(load_runs(tmp_path), UPDATES)
    table = make_table(groups)
    assert table["value"].notna().all()
    assert table["low"].notna().all() == has_band
    assert table["high"].notna().any() == has_band
    assert set(table["n_seeds"]) == {n_seeds}
    text = make_caption(groups, UPDATES)
    assert ("Thin lines: single runs" in text) is not has_band
    assert ("bootstrap" in text) is has_band
    left, right = draw(groups, UPDATES).subfigs[0].axes
    for panel, lines_per_curve in ((left, 2), (right, 1)):
        widths = [line.get_linewidth() for line in panel.lines if len(line.get_xdata()) > 1]
        assert len(widths) == lines_per_curve * (1 if has_band else n_seeds)
        assert [width < 0.8 for width in widths] == [not has_band] * len(widths)


def test_runs_without_lag_and_repeated_seeds_are_named(make_run, tmp_path, caplog):
    write_zero(make_run(seed=0))
    write_zero(make_run(seed=0, overrides="copy"))
    off, young, absent = (make_run(seed=seed) for seed in (1, 2, 3))
    write_lag(off, {}, bins={})
    config = yaml.safe_load((off / "config.yaml").read_text()) | {"lag": {"enabled": False}}
    (off / "config.yaml").write_text(yaml.safe_dump(config))
    write_lag(young, {}, frames=(), bins={})
    runs = load_runs(tmp_path)
    with caplog.at_level(logging.WARNING):
        groups = make_groups(runs, UPDATES)
    assert sum(len(group.traces) for group in groups) == 1
    assert f"{off} did not measure its lag (lag.enabled=false)" in caplog.text
    assert f"{young} has no measured lag yet" in caplog.text
    assert f"{absent} has no measured lag yet" in caplog.text
    assert caplog.text.count("repeats") == 1


def test_a_unit_that_an_algorithm_has_not_is_noted(make_run, tmp_path, caplog):
    write_zero(make_run())
    write_large(make_run(algo="ga3c"))
    units = ["lag_updates", "gradient_staleness_updates", "replay_age_frames"]
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(tmp_path), units)
    notes = [
        "Not drawn, as there is no gradient_staleness_updates: PAAC in CartPole-v1.",
        "Not drawn, as there is no replay_age_frames: GA3C, PAAC in CartPole-v1.",
    ]
    text = make_caption(groups, units)
    for note in notes:
        assert note in caplog.text
        assert note in text.splitlines()
    assert not any(line.startswith("replay_age_frames") for line in text.splitlines())
    table = make_table(groups)
    assert set(zip(table["algo"], table["unit"], strict=True)) == {
        ("paac", "lag_updates"), ("ga3c", "lag_updates"), ("ga3c", "gradient_staleness_updates")
    }  # fmt: skip
    (section, _) = draw(groups, units).subfigs
    assert len(section.axes) == 2 * 2  # no row for a unit that nobody has


def test_an_algorithm_without_any_of_the_units_is_not_in_the_legend(make_run, tmp_path):
    write_zero(make_run())
    write_large(make_run(algo="ga3c"))
    units = ["gradient_staleness_updates"]
    groups = make_groups(load_runs(tmp_path), units)
    (section, _) = draw(groups, units).subfigs
    assert [text.get_text() for text in section.legends[0].get_texts()] == ["GA3C (1 seed)"]
    assert "there is no gradient_staleness_updates: PAAC in CartPole-v1." in make_caption(groups, units)


def test_columns_that_are_missing_from_the_table_are_like_empty_ones(make_run, tmp_path, caplog):
    path = make_run()
    (path / "lag.csv").write_text(
        "frames,agent_steps,updates,wall_seconds,lag_updates_mean,lag_updates_p95,lag_updates_max\n9,9,1,1,2,3,4\n"
    )
    with caplog.at_level(logging.WARNING):
        (group,) = make_groups(load_runs(tmp_path), ["lag_updates", "lag_seconds"])
    assert list(group.bands) == ["lag_updates"]
    assert "there is no lag_seconds: PAAC in CartPole-v1." in caplog.text


def test_a_seed_that_lacks_a_unit_is_named_and_the_others_are_drawn(make_run, tmp_path, caplog):
    paths = [make_run(algo="ga3c", seed=seed) for seed in range(3)]
    for path in paths[:2]:
        write_large(path)
    write_zero(paths[2])
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(tmp_path), ["lag_kl_nats"])
    assert f"{paths[2]} has no lag_kl_nats" in caplog.text
    assert set(make_table(groups)["n_seeds"]) == {2}


def test_intervals_without_samples_are_passed_over(make_run, tmp_path):
    nothing = (np.nan, np.nan, np.nan)
    write_lag(make_run(), {"lag_updates": [(1, 1, 1), nothing, (3, 3, 3)]}, frames=(100, 200, 300))
    (group,) = make_groups(load_runs(tmp_path), UPDATES)
    assert group.lags("lag_updates")[0].frames.tolist() == [100.0, 300.0]
    assert group.bands["lag_updates"]["mean"].mean[[0, -1]].tolist() == [1.0, 3.0]


def test_a_run_without_a_histogram_has_its_course(make_run, tmp_path, caplog):
    path = make_run()
    write_lag(path, {"lag_updates": [(1, 2, 3)] * 2})
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(tmp_path), UPDATES)
    assert f"{path} has no histogram of lag_updates yet" in caplog.text
    assert set(make_table(groups)["curve"]) == {"mean", "p95"}
    left, right = draw(groups, UPDATES).subfigs[0].axes
    assert left.lines
    assert [text.get_text() for text in right.texts] == ["no histogram yet"]


def test_seeds_without_common_frames_are_named(make_run, tmp_path, caplog):
    for seed, frames in enumerate([(1, 2), (3, 4), (1, 4)]):
        write_lag(make_run(seed=seed), {"lag_updates": [(0, 0, 0)] * 2}, frames, {"lag_updates": [(0, 1e-9, 1)]})
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(tmp_path), UPDATES)
    assert "PAAC in CartPole-v1 has no mean of lag_updates" in caplog.text
    draw(groups, UPDATES)


# --- the figure


def test_zero_is_shown_beside_a_large_lag(make_run, tmp_path):
    write_zero(make_run())
    write_large(make_run(algo="ga3c"))
    left, right = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes
    assert left.get_yscale() == right.get_xscale() == "symlog"
    for low, high in (left.get_ylim(), right.get_xlim()):
        assert low < 0.0 < high  # inside the axis
        assert high > 130.0
    colour = style.looks([("paac", "")])["paac", ""].colour
    blue = [line for line in left.lines if line.get_color() == colour]
    assert len(blue) == 3  # mean, 95th percentile, marker
    for line in blue:
        assert np.all(np.asarray(line.get_ydata()) == 0.0)
    paac, marker = [line for line in right.lines if line.get_color() == colour]
    shares = dict(zip(paac.get_xdata(), paac.get_ydata(), strict=True))
    assert shares[0.0] == 1.0
    assert set(shares.values()) == {1.0, 0.0}  # it falls at once
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (0.0, 1.0)
    assert "log above 1" in left.get_ylabel()
    assert right.get_xlabel() == "lag in updates, log above 1"


def test_without_any_lag_the_axes_are_linear_from_zero(make_run, tmp_path):
    write_zero(make_run())
    left, right = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes
    assert left.get_yscale() == right.get_xscale() == "linear"
    assert left.get_ylim()[0] < 0.0 < 1.0 < left.get_ylim()[1]
    assert (left.get_ylabel(), right.get_xlabel()) == ("lag in updates", "lag in updates")


@pytest.mark.parametrize(("rare", "bottom"), [(900, 1e-3), (40, 1e-4), (4, 1e-5), (1, 1e-5)])
def test_the_shares_that_matter_are_not_cut(make_run, tmp_path, rare, bottom):
    bins = {"lag_updates": [(0, 1e-9, 300_000 - rare), (7, 8, rare)]}
    write_lag(make_run(algo="a3c"), {"lag_updates": [(0, 0, 7)] * 2}, bins=bins)
    right = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes[1]
    assert right.get_yscale() == "log"
    assert right.get_ylim()[0] == pytest.approx(bottom)
    assert right.get_ylim()[1] > 1.0
    assert (right.get_xlim()[1] > 7.0) == (rare >= 3)  # one in 300,000 lies below the axis


def test_the_marker_is_at_the_median(make_run, tmp_path):
    bins = {"lag_updates": [(0, 1e-9, 4), (1, 2, 2), (2, 3, 4)]}  # six of ten have 1 or more, four have 2
    write_lag(make_run(algo="a3c"), {"lag_updates": [(1, 2, 2)] * 2}, bins=bins)
    right = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes[1]
    marker = right.lines[-1]
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (1.0, pytest.approx(0.6))


def test_the_95th_percentile_is_fainter_than_the_mean(make_run, tmp_path):
    write_lag(make_run(), {"lag_updates": [(1, 2, 3)] * 2})
    left = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes[0]
    opacity = {line.get_ydata()[0]: line.get_alpha() for line in left.lines if len(line.get_xdata()) > 1}
    assert opacity[2.0] < opacity[1.0] == 1.0


def test_a_single_interval_is_seen(make_run, tmp_path):
    write_lag(make_run(), {"lag_updates": [(1, 2, 3)]}, frames=(100,), bins={"lag_updates": [(1, 2, 5)]})
    left = draw(make_groups(load_runs(tmp_path), UPDATES), UPDATES).subfigs[0].axes[0]
    assert {line.get_ydata()[0] for line in left.lines if line.get_marker() != "None"} == {1.0, 2.0}


def test_the_caption_tells_meaning_settings_seeds_frames_and_machine(make_run, tmp_path):
    for seed in range(3):
        write_zero(make_run(seed=seed, game="Pong", env="Pong", state="failed" if seed == 1 else "finished"))
    text = make_caption(make_groups(load_runs(tmp_path), UPDATES), UPDATES)
    for words in (
        "lag_updates: how many updates",
        "95th percentile over the samples",
        "Pong: 3 seeds per curve",
        "frame skip 4",
        "Hardware: Imaginary CPU 9000, 2 cores, no GPU.",
        "Not finished: Pong PAAC seed 1 (failed).",
    ):
        assert words in text


def test_nothing_leaves_the_figure_or_overlaps(make_run, boxes_inside, tmp_path):
    for number, algo in enumerate(style.COLOURS):
        path = make_run(algo=algo, settings={"a_setting_with_a_rather_long_name": 1}, overrides="x")
        write_zero(path) if number % 2 else write_large(path)
        write_zero(make_run(algo=algo, settings={"a_setting_with_a_rather_long_name": 2}, overrides="y"))
    write_large(make_run(game="Pong", env="Pong"))
    units = list(UNITS)
    figure = draw(make_groups(load_runs(tmp_path), units), units)
    figure.set_dpi(style.PNG_DPI)  # letters are as wide as in the file
    for _, panels in boxes_inside(figure):
        for i, box in enumerate(panels):
            assert box.height > 200
            assert not any(box.overlaps(other) for other in panels[i + 1 :])


# --- the command line


def test_the_command_writes_figure_and_numbers(make_run, tmp_path, capsys, draft):
    for seed in range(3):
        write_zero(make_run(seed=seed))
        write_large(make_run(algo="ga3c", seed=seed))
    root = tmp_path / "runs" / "demo"
    assert main([str(root), "--unit", "lag_updates", "lag_frames"]) == 0
    files = [root / "figures" / f"lag.{suffix}" for suffix in ("png", "pdf", "csv")]
    assert capsys.readouterr().out.splitlines()[-3:] == list(map(str, files))
    image = imread(files[0])
    assert image.shape[1] == pytest.approx(style.TWO_COLUMNS * style.PNG_DPI, abs=2)
    assert image[..., :3].std() > 0.05  # not an empty page
    assert b"/Type /Font" in files[1].read_bytes()
    table = pd.read_csv(files[2])
    assert (table["n_seeds"] == 3).all()
    assert set(table.loc[table["curve"] == "share", "x_axis"]) == {"lag_updates", "lag_frames"}
    assert set(table.loc[table["curve"] != "share", "x_axis"]) == {"frames"}
    paac = table[(table["algo"] == "paac") & (table["unit"] == "lag_updates")]
    assert (paac.loc[paac["curve"] != "share", ["value", "low", "high"]] == 0.0).all(axis=None)
    ga3c = table[(table["algo"] == "ga3c") & (table["curve"] == "share")].set_index("x")
    assert ga3c.loc[100.0, "value"] == pytest.approx(0.999)
    assert ga3c.loc[120.0, "value"] == pytest.approx(0.6)
    assert ga3c.loc[130.0, "value"] == pytest.approx(0.001)  # the largest


def test_the_default_is_lag_in_updates_and_the_place_is_an_option(make_run, tmp_path, inkless):
    write_zero(make_run())
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["lag.csv", "lag.pdf", "lag.png"]
    assert set(pd.read_csv(out / "lag.csv")["unit"]) == {"lag_updates"}


def test_runs_without_the_unit_are_one_sentence_and_status_2(make_run, tmp_path, capsys):
    write_zero(make_run())
    assert main([str(tmp_path), "--unit", "replay_age_frames"]) == 2
    assert "None of the 1 runs found has measured replay_age_frames." in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_runs_without_lag_are_one_sentence_and_status_2(make_run, tmp_path, capsys):
    make_run()
    assert main([str(tmp_path)]) == 2
    assert "None of the 1 runs found has measured lag_updates." in capsys.readouterr().err


def test_an_unknown_unit_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--unit", "lag_hours"])
    assert stopped.value.code == 2
    assert "lag_hours" in capsys.readouterr().err


def test_the_summary_weighs_samples_and_not_intervals(make_run):
    run = make_run(algo="a3c")
    bins = {"lag_updates": [(0, 1e-9, 90), (10, 11, 10)], "lag_frames": [(100, 110, 1)]}
    write_lag(run, {"lag_updates": [(0, 0, 0), (10, 10, 10)], "lag_frames": [(103, 103, 103)] * 2}, bins=bins)
    (row,) = summarise(load_runs(run)).to_dict("records")
    assert (row["lag_updates"], row["lag_updates_p95"]) == (1.0, 10.0)
    assert row["lag_frames"] == 104.5  # 100 to 109
