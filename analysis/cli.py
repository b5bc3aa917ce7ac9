"""What the command lines that draw have in common: run directories in, a figure and its numbers out."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.load import Run, load_runs


class NothingToDrawError(Exception):
    """There is no curve; the message says why in one sentence."""


def figure_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the roots and --out."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="holds runs, for instance runs/demo")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: figures/ in the first root")
    return parser


def positive(text: str) -> int:
    """The type of an argument that counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def write_figure(
    name: str, roots: Sequence[Path], out: Path | None, make: Callable[[list[Run]], tuple[Figure, pd.DataFrame]]
) -> int:
    """Writes <name>.png, <name>.pdf and <name>.csv, says where, and gives the exit status.

    Args:
        name: of the three files.
        roots: directories that hold runs, each at least one.
        out: the folder for the files; figures/ in the first root if None.
        make: from the runs to the figure and its numbers; may raise NothingToDrawError.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    folder = out or roots[0] / "figures"
    try:
        figure, table = make(_load(roots))
        files = style.save(figure, folder / f"{name}.png")
        files.append(folder / f"{name}.csv")
        table.to_csv(files[-1], index=False, float_format="%.6g")
    except (NothingToDrawError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The figures cannot be written to {folder}: {error.strerror}.", file=sys.stderr)
        return 2
    print("\n".join(map(str, files)))
    return 0


def _load(roots: Sequence[Path]) -> list[Run]:
    runs = load_runs(*roots)
    for root in roots:
        if not any(run.path.is_relative_to(root) for run in runs):
            raise NothingToDrawError(f"{root} holds no run: a run is a directory with config.yaml and status.json.")
    return runs
