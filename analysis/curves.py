"""Learning curves: return against frames and against wall-clock time, one row of panels per environment.

    python -m analysis.curves runs/demo
    python -m analysis.curves runs/before runs/after --x wall_clock --out figures

Writes curves.png, curves.pdf and curves.csv (the same curves as numbers).
"""

import argparse
import logging
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import aggregate, caption, style
from analysis.aggregate import Floats
from analysis.load import Run, load_runs

log = logging.getLogger(__name__)

AXES = {"frames": "frames", "wall_clock": "wall_seconds"}  # --x, and the column it stands for
GRID_POINTS = 200
SEEDS_FOR_BAND = 3
CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "x_axis", "x", "mean_return", "low_return", "high_return")
_PANEL_HEIGHT = 2.15  # inches
_CAPTION_POINTS = 6.5
_LEGEND_POINTS = 7.0
_LEGEND_HANDLE = 0.65  # inches, with the gaps around it
_THIN = 0.7  # points


@dataclass(frozen=True)
class Trace:
    """Training of one run."""

    run: Run
    x: Mapping[str, Floats]  # by column of AXES: where each training game ended, [N]
    returns: Floats  # rolling mean over the last `window` training games, [N]
    evaluation: Mapping[str, float]  # of the final one: frames, wall_seconds, mean_return, games; empty without one

    def curve(self, column: str) -> tuple[Floats, Floats]:
        """Increasing x and the rolling mean there."""
        return aggregate.last_of_each(self.x[column], self.returns)


@dataclass(frozen=True)
class Band:
    """The curve of several seeds on their common grid, [G] each; low and high are NaN below SEEDS_FOR_BAND seeds."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Group:
    """The seeds of one algorithm with one configuration in one environment."""

    env: str
    algo: str
    label: str
    traces: Sequence[Trace]
    bands: Mapping[str, Band]  # by column of AXES

    @property
    def has_band(self) -> bool:
        """Whether there are seeds enough for a mean with a band."""
        return len(self.traces) >= SEEDS_FOR_BAND

    def final_evaluation(self, quantity: str) -> float:
        """Mean over seeds of a figure of their final evaluations; NaN without any."""
        known = [trace.evaluation[quantity] for trace in self.traces if trace.evaluation]
        return float(np.mean(known)) if known else float("nan")


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_trace(run: Run, window: int) -> Trace | None:
    """The learning curve of one run; None if it has not finished a training game."""
    episodes = run.episodes()
    if episodes.empty:
        return None
    returns = episodes["episode_return"].to_numpy(dtype=np.float64)
    return Trace(
        run=run,
        x={column: np.maximum.accumulate(episodes[column].to_numpy(dtype=np.float64)) for column in AXES.values()},
        returns=aggregate.rolling_mean(returns, window),
        evaluation=_final_evaluation(run.evaluations()),
    )


def make_groups(runs: Iterable[Run], window: int) -> list[Group]:
    """Groups runs that differ in their seed alone; runs without a training game and repeated seeds are left out."""
    traces: dict[tuple[str, str, str], dict[int, Trace]] = defaultdict(dict)
    for run in runs:
        same = traces[run.env, run.algo, run.label]
        trace = make_trace(run, window)
        if trace is None:
            log.warning("%s has no finished training game yet: it is not in the figure.", run.path)
        elif run.seed in same:
            log.warning("%s repeats %s and is not in the figure.", run.path, same[run.seed].run.path)
        else:
            same[run.seed] = trace
    return [
        _make_group(key, [same[seed] for seed in sorted(same)])
        for key, same in sorted(traces.items(), key=lambda item: _order(*item[0]))
        if same
    ]


def make_band(traces: Sequence[Trace], column: str) -> Band:
    """Mean over seeds, where all of them have data, with a bootstrap band if there are seeds enough for one."""
    curves = [trace.curve(column) for trace in traces]
    grid = aggregate.common_grid(np.array([x[0] for x, _ in curves]), np.array([x[-1] for x, _ in curves]), GRID_POINTS)
    values = np.stack([aggregate.resample(grid, x, y) for x, y in curves])  # [S, G]
    nothing = np.full(len(grid), np.nan)
    low, high = aggregate.bootstrap_band(values) if len(traces) >= SEEDS_FOR_BAND else (nothing, nothing)
    return Band(grid, values.mean(axis=0), low, high)


def _make_group(key: tuple[str, str, str], traces: Sequence[Trace]) -> Group:
    bands = {column: make_band(traces, column) for column in AXES.values()}
    if not all(len(band.x) for band in bands.values()):
        log.warning("%s has no mean curve: one seed ends before another's first game.", " ".join(filter(None, key)))
    return Group(*key, traces, bands)


def make_table(groups: Sequence[Group], axes: Sequence[str]) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point; x is in frames or seconds, as x_axis says."""
    parts = []
    for group in groups:
        for axis in axes:
            band = group.bands[AXES[axis]]
            part = pd.DataFrame(
                {"x": band.x, "mean_return": band.mean, "low_return": band.low, "high_return": band.high}
            )
            fixed = {"env": group.env, "algo": group.algo, "label": group.label, "n_seeds": len(group.traces)}
            parts.append(part.assign(**fixed, x_axis=AXES[axis]))
    return pd.concat(parts, ignore_index=True)[list(CSV_COLUMNS)]


def _final_evaluation(games: pd.DataFrame) -> dict[str, float]:
    final = games[games["final"]]
    if final.empty:
        return {}
    return {
        "frames": float(final["frames"].max()),
        "wall_seconds": float(final["wall_seconds"].max()),
        "mean_return": float(final["episode_return"].mean()),
        "games": float(len(final)),
    }


def _order(env: str, algo: str, label: str) -> tuple[str, int, str, list[tuple[float, str]]]:
    known = list(style.COLOURS)
    return env, known.index(algo) if algo in known else len(known), algo, style.natural_order(label)


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[Group], axes: Sequence[str], window: int) -> Figure:
    """The figure: per environment a row with a panel per x axis and a legend, and one caption under all.

    Args:
        groups: what to draw; not empty.
        axes: keys of AXES, a panel each.
        window: training games in the rolling mean, for axis and caption.
    """
    rows: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        rows[group.env].append(group)
    width = style.TWO_COLUMNS if len(axes) > 1 else style.ONE_COLUMN
    text = _wrapped(make_caption(groups, axes, window), width - 0.2, _CAPTION_POINTS)
    legends = {env: [_legend_text(group, width) for group in row] for env, row in rows.items()}
    columns = {env: _legend_columns(texts, width) for env, texts in legends.items()}
    heights = [_PANEL_HEIGHT + _legend_height(texts, columns[env]) for env, texts in legends.items()]
    heights.append((text.count("\n") + 2) * _CAPTION_POINTS * 1.3 / 72.0)
    looks = style.looks([(group.algo, group.label) for group in groups])
    with style.context():
        figure = style.new_figure(width, sum(heights))
        *parts, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (env, row) in zip(parts, rows.items(), strict=True):
            _draw_row(part, row, axes, window, looks)
            part.suptitle(env, fontsize=9.0, fontweight="bold")
            handles = [_handle(group, looks[group.algo, group.label]) for group in row]
            part.legend(handles, legends[env], loc="outside lower center", ncols=columns[env], handlelength=3.2)
        foot.text(0.012, 0.95, text, fontsize=_CAPTION_POINTS, va="top", linespacing=1.3, color="0.25")
    return figure


def _draw_row(
    part: SubFigure,
    row: Sequence[Group],
    axes: Sequence[str],
    window: int,
    looks: Mapping[tuple[str, str], style.Look],
) -> None:
    panels = part.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        unit, scale = _unit(AXES[axis], _largest_x(row, AXES[axis]))
        for group in row:
            _draw_group(panel, group, AXES[axis], scale, looks[group.algo, group.label])
        panel.set_xlabel(unit)
        panel.set_xlim(left=0.0)
        panel.margins(y=0.08)
    panels[0].set_ylabel(f"training return,\nmean of last {window} games" if window > 1 else "training return")


def _draw_group(panel: Axes, group: Group, column: str, scale: float, look: style.Look) -> None:
    line: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style}
    if group.has_band:
        band = group.bands[column]
        panel.plot(band.x / scale, band.mean, **line)
        panel.fill_between(band.x / scale, band.low, band.high, color=look.colour, alpha=0.18, linewidth=0.0)
        points = [(group.final_evaluation(column), group.final_evaluation("mean_return"))]
    else:
        for trace in group.traces:
            alone = make_band([trace], column)
            panel.plot(alone.x / scale, alone.mean, linewidth=_THIN, **line)
        known = [trace.evaluation for trace in group.traces if trace.evaluation]
        points = [(evaluation[column], evaluation["mean_return"]) for evaluation in known]
    for x_end, mean_return in points:
        panel.plot(x_end / scale, mean_return, **_marker(look), clip_on=False, zorder=5)


def _marker(look: style.Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 5.0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def _handle(group: Group, look: style.Look) -> Line2D:
    width = None if group.has_band else _THIN
    marker = _marker(look) if any(trace.evaluation for trace in group.traces) else {"color": look.colour}
    return Line2D([], [], linestyle=look.line_style, linewidth=width, **marker)


def _legend_text(group: Group, width: float) -> str:
    name = " ".join(filter(None, [style.display_name(group.algo), group.label]))
    value = group.final_evaluation("mean_return")
    seeds = f"{len(group.traces)} seed{'' if len(group.traces) == 1 else 's'}"
    text = f"{name} ({seeds})" + (f", final evaluation {value:,.1f}" if np.isfinite(value) else "")
    return _wrapped(text, width - _LEGEND_HANDLE, _LEGEND_POINTS)


def _legend_columns(texts: Sequence[str], width: float) -> int:
    """As many as fit beside each other; `width` in inches."""
    longest = max(len(line) for text in texts for line in text.splitlines())
    return max(1, min(len(texts), int(width / (longest * _letter_width(_LEGEND_POINTS) + _LEGEND_HANDLE))))


def _legend_height(texts: Sequence[str], n_columns: int) -> float:
    lines = sum(text.count("\n") + 1 for text in texts)
    return -(-lines // n_columns) * _LEGEND_POINTS * 1.5 / 72.0


def _largest_x(groups: Iterable[Group], column: str) -> float:
    traces = [trace for group in groups for trace in group.traces]
    return max(max(trace.x[column][-1], trace.evaluation.get(column, 0.0)) for trace in traces)


def _unit(column: str, largest: float) -> tuple[str, float]:
    """The axis label for a column, and what its values are divided by."""
    if column == "frames":
        return ("million frames", 1e6) if largest >= 1e6 else ("thousand frames", 1e3)
    if largest >= 2 * 3600:
        return "hours of training", 3600.0
    return ("minutes of training", 60.0) if largest >= 120 else ("seconds of training", 1.0)


# --- the caption and the command line ---------------------------------------------------------------------------------


def make_caption(groups: Sequence[Group], axes: Sequence[str], window: int) -> str:
    """How the figure was made: a line on what is drawn, then one per environment, then the machines."""
    runs = [trace.run for group in groups for trace in group.traces]
    lines = [_how_drawn(groups, window)]
    if "wall_clock" in axes:
        lines[0] += " Time is training time, without evaluation."
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        lines.append(f"{env}: {_seeds(here)}, {_facts([trace.run for group in here for trace in group.traces])}.")
    lines.append(f"Hardware: {caption.hardware(runs)}.")
    if caption.unfinished(runs):
        lines.append(f"Not finished: {caption.unfinished(runs)}.")
    return "\n".join(lines)


def _how_drawn(groups: Sequence[Group], window: int) -> str:
    sentences = [f"Training return: mean of a run's last {window} training games, or of those so far."]
    if any(group.has_band for group in groups):
        sentences.append(
            "Line: mean over seeds, as far as the shortest goes. "
            "Band: 95% percentile bootstrap over seeds, too narrow when they are few."
        )
    if not all(group.has_band for group in groups):
        sentences.append(f"Thin lines: single runs, where there are fewer than {SEEDS_FOR_BAND} seeds and so no band.")
    games = sorted({trace.evaluation["games"] for group in groups for trace in group.traces if trace.evaluation})
    if games:
        counts = " or ".join(f"{count:.0f}" for count in games)
        sentences.append(f"Marker: final evaluation, mean of {counts} games per run.")
    return " ".join(sentences)


def _seeds(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.traces) for group in groups})
    words = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{words} seed{'' if counts[-1] == 1 else 's'} per curve"


def _facts(runs: Sequence[Run]) -> str:
    return f"{caption.frames(runs)}, {caption.settings(runs)}"


def _wrapped(text: str, width: float, points: float) -> str:
    """Lines no longer than `width` inches at that font size."""
    letters = int(width / _letter_width(points))
    return "\n".join(textwrap.fill(line, letters, break_on_hyphens=False) for line in text.splitlines())


def _letter_width(points: float) -> float:
    return points / 72.0 * 0.53  # a letter of running text in DejaVu Sans is about 0.5 em wide


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    chosen = _parser().parse_args(arguments)
    axes = list(AXES) if chosen.x == "both" else [chosen.x]
    out = chosen.out or chosen.roots[0] / "figures"
    try:
        groups = _load_groups(chosen.roots, chosen.window)
        files = style.save(draw(groups, axes, chosen.window), out / "curves.png")
        files.append(out / "curves.csv")
        make_table(groups, axes).to_csv(files[-1], index=False, float_format="%.6g")
    except (_NothingToDrawError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The figures cannot be written to {out}: {error.strerror}.", file=sys.stderr)
        return 2
    print("\n".join(map(str, files)))
    return 0


class _NothingToDrawError(Exception):
    """There is no curve; the message says why in one sentence."""


def _load_groups(roots: Sequence[Path], window: int) -> list[Group]:
    runs = load_runs(*roots)
    for root in roots:
        if not any(run.path.is_relative_to(root) for run in runs):
            raise _NothingToDrawError(f"{root} holds no run: a run is a directory with config.yaml and status.json.")
    groups = make_groups(runs, window)
    if not groups:
        raise _NothingToDrawError(f"None of the {len(runs)} runs found has finished a training game yet.")
    return groups


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.curves", description="Draws return against frames and against wall-clock time."
    )
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="holds runs, for instance runs/demo")
    parser.add_argument("--x", choices=(*AXES, "both"), default="both", help="horizontal axis (default both)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: figures/ in the first root")
    parser.add_argument(
        "--window", type=_positive, default=100, metavar="GAMES", help="training games in the mean (default 100)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
