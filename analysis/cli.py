"""What the command lines that draw have in common: run directories in, a figure and its numbers out."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.load import load_and_count
from analysis.other_formats import OtherError
from analysis.run import Run
from analysis.wandb_runs import PREFIX, WandbError


class NothingToDrawError(Exception):
    """There is no curve; the message says why in one sentence."""


def parser(prog: str, description: str, folder: str = "figures") -> argparse.ArgumentParser:
    """A parser with the roots and --out; `folder` is where the files go by default."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument(
        "roots",
        nargs="+",
        type=Path,
        metavar="ROOT",
        help="holds runs, for instance runs/demo; or wandb:entity/project; or logs of CleanRL or Stable-Baselines3",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help=f"default: {folder}/ in the first root")
    return made


def positive(text: str) -> int:
    """The type of an argument that counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def draw_without_options(
    name: str,
    description: str,
    make: Callable[[list[Run]], tuple[Figure, pd.DataFrame]],
    arguments: Sequence[str] | None,
) -> int:
    """The whole command `python -m analysis.<name>` where it takes roots and --out alone; gives the exit status."""
    chosen = parser(f"python -m analysis.{name}", description).parse_args(arguments)
    return write_figure(name, chosen.roots, chosen.out, make)


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

    def write(runs: list[Run], folder: Path) -> list[Path]:
        return save(name, *make(runs), folder)

    return write_files("figures", roots, out, write)


def save(name: str, figure: Figure, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes a figure as PNG and PDF and its numbers as CSV, and gives the three paths."""
    files = style.save(figure, folder / f"{name}.png")
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    return [*files, folder / f"{name}.csv"]


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A place to write files to; once all is written they are moved to `folder`, each whole, a page last.

    After an error nothing of `folder` has changed, and it is not made.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())  # on the same disk
    with TemporaryDirectory(dir=there, prefix=".unfinished-") as place:
        yield Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(place).iterdir(), key=lambda one: (one.suffix == ".html", one.name)):
            file.replace(folder / file.name)


def write_files(
    kind: str, roots: Sequence[Path], out: Path | None, write: Callable[[list[Run], Path], list[Path]]
) -> int:
    """Has files written from the runs of some directories, says where they are, and gives the exit status.

    Args:
        kind: the folder in the first root for the files if `out` is None.
        roots: directories that hold runs, each at least one.
        out: the folder for the files.
        write: takes the runs and the folder and gives the files; may raise NothingToDrawError.
    """
    here = roots[0].parent if roots[0].is_file() else roots[0]
    folder = out or (Path(kind) if str(roots[0]).startswith(PREFIX) else here / kind)
    return write_to(folder, kind, lambda place: write(_load(roots), place))


def write_to(folder: Path, kind: str, write: Callable[[Path], list[Path]]) -> int:
    """Has files written, says where they are, and gives the exit status.

    Args:
        folder: for the files.
        kind: what they are called where they cannot be written.
        write: takes a folder and gives the files; may raise NothingToDrawError.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with aside(folder) as place:
            files = [folder / file.name for file in write(place)]
    except (NothingToDrawError, FileNotFoundError, WandbError, OtherError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The {kind} cannot be written to {folder}: {error.strerror}.", file=sys.stderr)
        return 2
    print("\n".join(map(str, files)))
    return 0


def _load(roots: Sequence[Path]) -> list[Run]:
    runs, counts = load_and_count(roots)
    for root, count in zip(roots, counts, strict=True):
        if not count:
            raise NothingToDrawError(
                f"{root} holds no run: a run is a directory with config.yaml and status.json, or another library's log."
            )
    return runs
