import logging
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import load_runs, style
from analysis.curves import draw, find_references, main, make_caption, make_groups, make_table

BOTH = ("frames", "wall_clock")
HEADER = "frames,agent_steps,wall_seconds,episode_return,episode_length\n"


def write_episodes(run: Path, rows: list[tuple[float, float, float]]) -> None:
    """Rows are (frames, wall_seconds, return)."""
    lines = [f"{frames},{frames},{seconds},{value},1\n" for frames, seconds, value in rows]
    (run / "episodes.csv").write_text(HEADER + "".join(lines))


# --- from runs to curves


def test_three_seeds_by_hand(make_run, tmp_path):
    write_episodes(make_run(seed=0), [(0, 0.0, 0.0), (100, 1.0, 10.0), (200, 2.0, 20.0)])
    write_episodes(make_run(seed=1), [(0, 0.0, 3.0), (200, 4.0, 23.0)])
    write_episodes(make_run(seed=2), [(50, 0.5, 6.0), (150, 1.5, 6.0)])
    (group,) = make_groups(load_runs(tmp_path), window=1)
    band = group.bands["frames"]
    assert (band.x[0], band.x[-1]) == (50.0, 150.0)  # where all three have data
    assert band.mean[0] == pytest.approx((5.0 + 8.0 + 6.0) / 3)
    assert band.mean[-1] == pytest.approx((15.0 + 18.0 + 6.0) / 3)
    assert (band.low[-1], band.high[-1]) == (pytest.approx(6.0), pytest.approx(18.0))
    clock = group.bands["wall_seconds"]
    assert (clock.x[0], clock.x[-1]) == (0.5, 1.5)
    assert clock.mean[-1] == pytest.approx((15.0 + (3.0 + 20.0 * 1.5 / 4.0) + 6.0) / 3)


@pytest.mark.parametrize(("n_seeds", "has_band"), [(1, False), (2, False), (3, True)])
def test_a_band_needs_three_seeds(make_run, tmp_path, n_seeds, has_band):
    for seed in range(n_seeds):
        make_run(seed=seed)
    groups = make_groups(load_runs(tmp_path), window=100)
    assert groups[0].has_band is has_band
    table = make_table(groups, BOTH)
    assert table["mean_return"].notna().all()
    assert table["low_return"].notna().all() == has_band
    assert table["high_return"].notna().any() == has_band
    text = make_caption(groups, BOTH, 100)
    assert ("Thin lines: single runs" in text) is not has_band
    assert ("bootstrap" in text) is has_band
    lines = draw(groups, ("frames",), 100).subfigs[0].axes[0].lines
    assert [line.get_linewidth() < 1.0 for line in lines if len(line.get_xdata()) > 1] == (
        [False] if has_band else [True] * n_seeds
    )


def test_final_evaluations_are_averaged_over_games_and_then_seeds(make_run, tmp_path):
    for seed in (0, 1, 2):
        make_run(seed=seed, best_return=300.0)  # games of 295 + seed and 305 + seed; the earlier evaluation is lower
    (group,) = make_groups(load_runs(tmp_path), window=100)
    assert [one.value for one in group.reached()] == pytest.approx([300.0, 301.0, 302.0])
    assert [one.n_games for one in group.reached()] == [2, 2, 2]


def test_a_run_without_evaluation_has_a_curve(make_run, tmp_path):
    (make_run() / "eval.csv").unlink()
    groups = make_groups(load_runs(tmp_path), window=100)
    figure = draw(groups, BOTH, 100)
    assert [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()] == ["PAAC (1 seed)"]


def test_runs_without_games_and_repeated_seeds_are_named(make_run, tmp_path, caplog):
    make_run(seed=0)
    repeated = make_run(seed=0, overrides="copy")
    young = make_run(seed=1, n_games=0)
    (young / "eval.csv").unlink()
    with caplog.at_level(logging.WARNING):
        (group,) = make_groups(load_runs(tmp_path), window=100)
    assert len(group.traces) == 1
    assert f"{young} has no finished training game" in caplog.text
    assert str(repeated) in caplog.text


def test_seeds_without_common_frames_are_named(make_run, tmp_path, caplog):
    write_episodes(make_run(seed=0), [(0, 0.0, 1.0), (10, 1.0, 1.0)])
    write_episodes(make_run(seed=1), [(20, 2.0, 1.0), (30, 3.0, 1.0)])
    write_episodes(make_run(seed=2), [(0, 0.0, 1.0), (30, 3.0, 1.0)])
    with caplog.at_level(logging.WARNING):
        groups = make_groups(load_runs(tmp_path), window=1)
    assert "has no mean curve" in caplog.text
    draw(groups, BOTH, 1)


def test_the_caption_tells_settings_seeds_frames_and_machine(make_run, tmp_path):
    for seed in range(3):
        path = make_run(seed=seed, game="Pong", env="Pong", state="failed" if seed == 1 else "finished")
        status = (path / "status.json").read_text()
        frames = status.split('"frames": ')[1].split(",")[0]
        (path / "status.json").write_text(status.replace(frames, "1500000"))
    text = make_caption(make_groups(load_runs(tmp_path), 50), BOTH, 50)
    for words in (
        "Pong: 3 seeds per curve, 1.5M frames, frame skip 4",
        "learning rewards clipped at 1",
        "last 50 training games",
        "Hardware: Imaginary CPU 9000, 2 cores, no GPU.",
        "Not finished: Pong PAAC seed 1 (failed).",
        "mean of 2 games per run",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("frames_per_second", "labels"),
    [
        (2000.0, ["thousand frames", "seconds of training"]),
        (300.0, ["thousand frames", "minutes of training"]),
        (10.0, ["thousand frames", "hours of training"]),
    ],
)
def test_axes_carry_units(make_run, tmp_path, frames_per_second, labels):
    make_run(frames_per_second=frames_per_second)
    figure = draw(make_groups(load_runs(tmp_path), 100), BOTH, 100)
    assert [panel.get_xlabel() for panel in figure.subfigs[0].axes] == labels
    assert "return" in figure.subfigs[0].axes[0].get_ylabel()


def test_nothing_leaves_the_figure_or_overlaps(make_run, boxes_inside, tmp_path):
    for algo in style.COLOURS:
        make_run(algo=algo, settings={"a_setting_with_a_rather_long_name": 1}, overrides="x")
        make_run(
            algo=algo, settings={"a_setting_with_a_rather_long_name": 2, "and_another": "value" * 8}, overrides="y"
        )
    make_run(game="Pong", env="Pong")
    figure = draw(make_groups(load_runs(tmp_path), 100), BOTH, 100)
    for row, panels in boxes_inside(figure):
        assert row.legends[0].get_window_extent().y0 >= row.bbox.y0
        assert panels[0].height > 100  # the legend does not eat the panels


# --- style


def test_an_algorithm_keeps_its_colour_and_curves_are_told_apart():
    few, many = style.looks([("paac", "")]), style.looks([(algo, "") for algo in (*style.COLOURS, "mine", "yours")])
    assert few["paac", ""] == many["paac", ""]
    assert len({look.colour for look in many.values()}) == len(many)
    known = [many[algo, ""].line_style for algo in style.COLOURS]
    assert len(set(known)) == len(known)


def test_variants_differ_and_are_in_natural_order():
    labels = [f"n_envs={n}" for n in (32, 8, 128, 16)]
    looks = style.looks([("paac", label) for label in labels])
    assert len(set(looks.values())) == 4
    assert looks["paac", "n_envs=8"] == style.looks([("paac", "")])["paac", ""]
    assert sorted(labels, key=style.natural_order) == ["n_envs=8", "n_envs=16", "n_envs=32", "n_envs=128"]


def test_the_style_does_not_leak():
    before = dict(mpl.rcParams)
    with style.context():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


# --- the command line


def test_the_command_writes_figure_and_numbers(make_run, tmp_path, capsys):
    for algo in ("paac", "a3c"):
        for seed in range(3):
            make_run(algo=algo, seed=seed)
    root = tmp_path / "runs" / "demo"
    assert main([str(root)]) == 0
    files = [root / "figures" / f"curves.{suffix}" for suffix in ("png", "pdf", "csv")]
    assert capsys.readouterr().out.splitlines()[-3:] == list(map(str, files))
    image = imread(files[0])
    assert image.shape[1] == pytest.approx(style.TWO_COLUMNS * style.PNG_DPI, abs=2)
    assert image[..., :3].std() > 0.05  # not an empty page
    assert b"/FontFile2" in files[1].read_bytes()  # TrueType: text stays text
    table = pd.read_csv(files[2])
    assert set(table["algo"]) == {"a3c", "paac"}
    assert set(table["x_axis"]) == {"frames", "wall_seconds"}
    assert len(table) == 2 * 2 * 200
    assert (table["low_return"] <= table["mean_return"] + 1e-3).all()
    assert (table["n_seeds"] == 3).all()
    assert main([str(root)]) == 0  # its own figures are no runs


def test_the_command_takes_an_axis_a_folder_and_a_window(make_run, tmp_path, inkless, capsys):
    make_run()
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--x", "frames", "--out", str(out), "--window", "10"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["curves.csv", "curves.pdf", "curves.png"]
    assert set(pd.read_csv(out / "curves.csv")["x_axis"]) == {"frames"}


def test_a_root_without_runs_is_one_sentence_and_status_2(make_run, tmp_path, capsys):
    make_run()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(tmp_path / "runs"), str(empty)]) == 2
    assert capsys.readouterr().err.startswith(f"{empty} holds no run")


def test_runs_without_games_are_one_sentence_and_status_2(make_run, tmp_path, capsys):
    (make_run(n_games=0) / "eval.csv").unlink()
    assert main([str(tmp_path)]) == 2
    assert "None of the 1 runs found has finished a training game yet, or was evaluated." in capsys.readouterr().err


def test_a_window_of_no_games_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--window", "0"])
    assert stopped.value.code == 2
    assert "0 must be at least 1" in capsys.readouterr().err


def test_published_scores_from_the_same_starts_are_lines_beside_atari_alone(make_run, tmp_path):
    for seed in range(3):
        make_run(game="Pong", env="Pong", seed=seed, best_return=20.0)
        make_run(seed=seed)
    groups = make_groups(load_runs(tmp_path), 100)
    figure = draw(groups, ["frames", "wall_clock"], 100)
    cartpole, pong, caption = figure.subfigs
    known = {"DQN": 18.9, "Gorila": 18.3, "PAAC nature": 20.9, "PAAC nips": 20.6}  # from no-op starts
    for panel in pong.axes:
        heights = [line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]]
        assert set(known.values()) <= set(heights)
        assert 16.2 not in heights  # DQN from human starts
        assert max(heights) < panel.get_ylim()[1]
    texts = [text.get_text() for text in pong.legends[0].get_texts()]
    assert "published: DQN, 18.9" in texts
    assert "published: PAAC nature, 20.9 ?" in texts  # not checked
    assert len(texts) == len(set(texts))
    assert "published" not in " ".join(text.get_text() for text in cartpole.legends[0].get_texts())
    assert "from no-op starts" in " ".join(caption.texts[0].get_text().split())


def test_scores_from_other_starts_are_no_lines(make_run, tmp_path):
    run = make_run(game="Pong", env="Pong")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("noop_max: 30", "noop_max: 0"))
    (group,) = make_groups(load_runs(tmp_path), 100)
    assert find_references([group]) == []
