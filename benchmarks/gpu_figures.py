"""Draws what gpu.py found: python benchmarks/gpu_figures.py DIR reads DIR/results.jsonl, writes PNGs beside it."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = Mapping[str, Any]
STYLES = {"graphs": "-", "eager": ":", "compiled": "--"}
PHASES = {"simulate": "#4c72b0", "predict": "#dd8452", "train": "#55a868", "wait": "#bbbbbb", "communicate": "#8172b3"}


def draw(lines: Sequence[Line], out: Path) -> list[Path]:
    """Writes every figure that there are results for; gives the files."""
    (machine,) = (line for line in lines if line["kind"] == "machine")
    title = f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores"
    files = []
    for name, (step, make) in FIGURES.items():
        results = [line for line in lines if line["kind"] == "result" and line["step"].startswith(step)]
        if results:
            figure = make(results)
            figure.suptitle(title, fontsize=10)
            files.append(out / f"{name}.png")
            figure.savefig(files[-1], dpi=150)
            plt.close(figure)
    return files


def throughput(results: Sequence[Line]) -> Figure:
    """Agent steps per second over environments, an algorithm each, beside raw simulation."""
    algos = _distinct(line["algo"] for line in results)
    figure, axes = _panels(len(algos))
    for axis, algo in zip(axes, algos, strict=True):
        own = [line for line in results if line["algo"] == algo and line["way"] != "lag not measured"]
        for way, mode in _distinct((line["way"], line["mode"]) for line in own):
            points = sorted(_points(own, "agent_steps_per_second", way=way, mode=mode))
            axis.plot(*zip(*points, strict=True), STYLES[mode], marker="o", markersize=3, label=f"{way}, {mode}")
        raw = sorted(set(_points(own, "raw_agent_steps_per_second")))
        axis.plot(*zip(*raw, strict=True), color="black", linewidth=0.8, marker="_", label="simulation alone")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="environments", ylabel="agent steps per second", title=algo, ylim=(0, None))
        axis.legend(fontsize=6)
    return figure


def time_shares(results: Sequence[Line]) -> Figure:
    """What the time of a run goes into; of GA3C, what that of its threads goes into."""
    figure, (axis,) = _panels(1, width=7.0, height=0.9 + 0.22 * len(results))
    for row, line in enumerate(results):
        left = 0.0
        for phase, color in PHASES.items():
            share = line["shares"].get(f"share_{phase}", 0.0)
            axis.barh(row, share, left=left, color=color, label=phase if row == 0 else None)
            left += share
    axis.set_yticks(range(len(results)), [_name(line) for line in results], fontsize=6)
    axis.invert_yaxis()
    axis.set(xlabel="share of time", xlim=(0, 1))
    axis.legend(ncols=4, fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def ceilings(results: Sequence[Line]) -> Figure:
    """Simulation, forward and forward + backward alone, over environments."""
    parts = ("simulation", "forward", "forward_backward")
    figure, axes = _panels(len(parts))
    for axis, part in zip(axes, parts, strict=True):
        for network, mode in _distinct((line["network"], line["mode"]) for line in results):
            points = sorted(_points(results, f"{part}_agent_steps_per_second", network=network, mode=mode))
            axis.plot(*zip(*points, strict=True), STYLES[mode], marker="o", markersize=3, label=f"{network}, {mode}")
        title = part.replace("_", " + ")
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", xlabel="environments", ylabel="agent steps per second", title=title)
        axis.legend(fontsize=6)
    return figure


def pong(results: Sequence[Line]) -> Figure:
    """The return of training games on Pong over seconds."""
    figure, (axis,) = _panels(1, width=4.5)
    for line in results:
        axis.plot(line["course"]["wall_seconds"], line["course"]["mean_return_100_games"], label=line["algo"])
    axis.axhline(results[0]["target_return"], color="black", linewidth=0.8)
    axis.set(xlabel="seconds of training", ylabel="mean return of 100 training games", title="Pong")
    axis.legend(fontsize=7)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Sequence[Line]], Figure]]] = {
    "throughput": ("speed_", throughput),
    "time_shares": ("speed_", time_shares),
    "ceilings": ("ceilings", ceilings),
    "pong": ("pong_", pong),
}


def _panels(n: int, width: float = 3.4, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, n, figsize=(width * n, height), squeeze=False, layout="constrained")
    return figure, list(axes[0])


def _points(results: Iterable[Line], value: str, **of: str) -> list[tuple[float, float]]:
    """(environments, value) of the results of which all this is true."""
    return [(line["n_envs"], line[value]) for line in results if all(line[key] == is_ for key, is_ in of.items())]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _name(line: Line) -> str:
    return f"{line['algo']}, {line['way']}, {line['mode']}, {line['n_envs']}"


def main(words: Sequence[str]) -> int:
    """Gives the exit status."""
    out = Path(words[0]) if words else Path()
    try:
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    except OSError as error:
        print(f"{out} has no results of gpu.py: {error.strerror}.", file=sys.stderr)
        return 2
    print("\n".join(map(str, draw(lines, out))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
