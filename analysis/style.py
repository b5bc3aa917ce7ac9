"""How every figure looks: colours and line styles per algorithm, sizes for print, fonts that stay text.

Figures are made without pyplot, so no backend is chosen for the program that imports this, and none needs a display.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

ONE_COLUMN = 3.35  # inches
TWO_COLUMNS = 6.9
PNG_DPI = 200

# Okabe and Ito (2008): told apart with every common kind of colour blindness.
COLOURS = {
    **{"dqn": "#E69F00", "gorila": "#CC79A7", "a3c": "#009E73", "ga3c": "#D55E00", "paac": "#0072B2"},
    **{"one_step_q": "#6A3D9A", "one_step_sarsa": "#A6761D", "n_step_q": "#DC267F", "pgql": "#56B4E9"},
    **{"ppo": "#A50F15", "pqn": "#648FFF"},
}
FALLBACK_COLOURS = ("#000000", "#8C564B", "#7F7F7F")
DISPLAY_NAMES = {
    **{"dqn": "DQN", "gorila": "Gorila", "a3c": "A3C", "ga3c": "GA3C", "paac": "PAAC"},
    **{"one_step_q": "one-step Q", "one_step_sarsa": "one-step SARSA", "n_step_q": "n-step Q", "pgql": "PGQL"},
    **{"ppo": "PPO", "pqn": "PQN"},
}

LineStyle = Literal["-"] | tuple[int, tuple[float, ...]]  # solid, or dashes and gaps in points
LINE_STYLES: dict[str, LineStyle] = {
    "paac": "-",
    "a3c": (0, (5.0, 1.5)),
    "ga3c": (0, (5.0, 1.2, 1.0, 1.2)),
    "dqn": (0, (1.0, 1.2)),
    "gorila": (0, (3.0, 1.2, 1.0, 1.2, 1.0, 1.2)),
    "one_step_q": (0, (2.5, 1.2)),
    "one_step_sarsa": (0, (6.0, 1.0, 2.0, 1.0)),
    "n_step_q": (0, (8.0, 1.5)),
    "pgql": (0, (8.0, 1.2, 3.0, 1.2)),
    "ppo": (0, (4.0, 1.2, 4.0, 1.2, 1.0, 1.2)),
    "pqn": (0, (2.0, 1.2, 1.0, 1.2)),
}
MARKERS = {"paac": "o", "a3c": "s", "ga3c": "^", "dqn": "D", "gorila": "v", "one_step_q": ">", "one_step_sarsa": "<"}
MARKERS |= {"n_step_q": "p", "pgql": "h", "ppo": "8", "pqn": "H"}
OF_ANOTHER_LIBRARY = ": "  # in the name of its methods: "CleanRL: ppo_atari"
_THEIR_LINES: tuple[LineStyle, ...] = ((0, (3.5, 3.0)), (0, (7.0, 3.0, 1.5, 3.0)))  # gaps twice as wide as ours
_THEIR_MARKERS = ("P", "X", "*", "d")
_SHADES = (0.0, 0.45, -0.45)  # towards white (above 0) or black, for variants of one algorithm

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib ships it: the same figure on every machine
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.6,
    "pdf.fonttype": 42,  # TrueType: text stays text, and publishers accept it
    "ps.fonttype": 42,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Look:
    """How one curve is drawn."""

    colour: str
    line_style: LineStyle
    marker: str


def context() -> AbstractContextManager[None]:
    """The style, inside a `with` block only: figures of the importing program keep theirs."""
    import seaborn as sns  # here, as it takes longer than all else, and --help and tables need none of it

    settings: Any = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **_RC}
    return mpl.rc_context(settings)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, laid out so that nothing overlaps."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def display_name(algo: str) -> str:
    """The algorithm as its paper writes it."""
    return DISPLAY_NAMES.get(algo, algo)


def looks(curves: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Look]:
    """A look for every (algo, label) of a figure.

    An algorithm has the same colour and line style in every figure; its variants differ in shade and line style.
    Lines of other libraries' methods have wide gaps, as none of ours has.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    for algo, label in curves:
        labels[algo].add(label)
    unknown = sorted(labels.keys() - COLOURS.keys())
    return {
        (algo, label): _look(algo, variant, unknown)
        for algo in labels
        for variant, label in enumerate(sorted(labels[algo], key=natural_order))
    }


def natural_order(text: str) -> list[tuple[float, str]]:
    """A sorting key that puts n_envs=8 before n_envs=32."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as PNG and as PDF.

    Args:
        figure: to write.
        path: of both files; its suffix, if any, is replaced.

    Returns:
        the files that were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    with context():
        figure.savefig(files[0], dpi=PNG_DPI)
        figure.savefig(files[1], metadata={"CreationDate": None})  # the same data give the same file
    return files


def _look(algo: str, variant: int, unknown: Sequence[str]) -> Look:
    if OF_ANOTHER_LIBRARY in algo:
        n = unknown.index(algo)
        return Look(
            colour=_shade(FALLBACK_COLOURS[n % len(FALLBACK_COLOURS)], _SHADES[variant % len(_SHADES)]),
            line_style=_THEIR_LINES[n // len(FALLBACK_COLOURS) % len(_THEIR_LINES)],
            marker=_THEIR_MARKERS[(n + variant) % len(_THEIR_MARKERS)],
        )
    styles, markers = list(LINE_STYLES), list(MARKERS.values())
    if algo in COLOURS:
        colour, first = COLOURS[algo], styles.index(algo)
    else:
        colour, first = FALLBACK_COLOURS[unknown.index(algo) % len(FALLBACK_COLOURS)], zlib.crc32(algo.encode())
    return Look(
        colour=_shade(colour, _SHADES[variant % len(_SHADES)]),
        line_style=LINE_STYLES[styles[(first + variant) % len(styles)]],
        marker=markers[(first + variant) % len(markers)],
    )


def _shade(colour: str, amount: float) -> str:
    """Mixed with white (amount above 0) or black (below)."""
    goal = 1.0 if amount > 0 else 0.0
    red, green, blue = ((1.0 - abs(amount)) * part + abs(amount) * goal for part in to_rgb(colour))
    return to_hex((red, green, blue))
