"""A report: every figure and table that some runs allow, and one HTML page to read from top to bottom.

    python -m analysis.report runs/headline
    python -m analysis.report runs/before runs/after --out report --title "Before and after"

Writes report/ in the first root: index.html (self-contained), each figure as PNG, PDF and CSV, each table as CSV,
Markdown and LaTeX, and reproduce.sh. What cannot be drawn is named, and why; nothing of it is fatal.
"""

import argparse
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from analysis import caption, cli, gallery, page, study, table
from analysis.configurations import commands, differences
from analysis.gallery import FigureKind
from analysis.groups import Member, SeedGroup, group_runs
from analysis.page import Chapter
from analysis.run import Run
from analysis.studied import Study, has_forced_lag, make_study
from analysis.summary import summarise
from analysis.writing import Table

log = logging.getLogger(__name__)

_STATES = {"running": "is still running, or was killed", "preempted": "was stopped and can go on"}


@dataclass
class Report:
    """What has been drawn so far, in HTML, and what could not be."""

    folder: Path
    links: bool  # to the files beside the page
    files: list[Path] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)  # title and reason

    def draw(self, kind: FigureKind, runs: list[Run], heard: list[str]) -> list[str]:
        """The HTML of a figure; empty if it cannot be drawn."""
        before = len(heard)
        try:
            figure, numbers = kind.make(runs)
            self.files += cli.save(kind.name, figure, numbers, self.folder)
        except cli.NothingToDrawError as nothing:
            self.missing.append((kind.title, str(nothing)))
            return []
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a figure never costs the page
            log.debug("%s", kind.title, exc_info=True)
            self.missing.append((kind.title, f"It failed: {type(error).__name__}: {error}"))
            return []
        described = " ".join(text.get_text() for text in figure.subfigs[-1].texts).replace("\n", " ")
        left_out = list(dict.fromkeys(heard[before:]))
        png = self.folder / f"{kind.name}.png"
        parts = [page.heading(kind.title), page.picture(png, f"{kind.title}. {described}", self.links)]
        return parts + (
            [page.folded(f"Not in this figure ({len(left_out)})", page.points(left_out))] if left_out else []
        )

    def tabulate(self, table: Table) -> list[str]:
        """The HTML of a table, which is written beside the page."""
        self.files += table.write(self.folder)
        return [page.heading(table.title), page.table(table.text), page.small(*table.notes)]

    def excuses(self) -> list[str]:
        """What is missing, and why."""
        return [page.points([f"{what}: {why}" for what, why in self.missing], 99)] if self.missing else []


def write_report(
    runs: Sequence[Run],
    folder: str | Path,
    title: str = "Report",
    threshold: float | None = None,
    heard: Sequence[str] = (),
    page_only: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes all files of the report, and gives their paths, the page first.

    Args:
        runs: at least one.
        folder: for the files; made if need be.
        title: of the page.
        threshold: return to be reached, for the tables; chosen if None.
        heard: warnings of loading, for the page.
        page_only: write index.html alone, to be sent or kept somewhere by itself.
        say: is told what is being done, a line at a time.

    Nothing in the folder changes before all is written: after an error the report of before is still there.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("A report needs at least one run.")
    broken = list(dict.fromkeys(heard))
    with listening() as warnings, cli.aside(Path(folder)) as place:
        if not page_only:
            files = _write(list(runs), Report(place, links=True), title, threshold, broken, warnings, say)
            return [Path(folder) / file.name for file in files]
        with TemporaryDirectory() as elsewhere:
            report = Report(Path(elsewhere), links=False)
            first, *_ = _write(list(runs), report, title, threshold, broken, warnings, say)
            shutil.copy(first, place)
            return [Path(folder) / first.name]


def _write(
    runs: list[Run],
    report: Report,
    title: str,
    threshold: float | None,
    broken: list[str],
    warnings: list[str],
    say: Callable[[str], None],
) -> list[Path]:
    folder = report.folder
    groups = group_runs(runs)
    say(f"{_counted(len(runs), 'run')} of {_counted(len(groups), 'configuration')}.")

    def drawn(kinds: Sequence[FigureKind]) -> Iterator[str]:
        for kind in kinds:
            say(f"Drawing: {kind.title}.")
            yield from report.draw(kind, runs, warnings)

    headline = list(drawn(gallery.HEADLINE))
    as_a_setting = _lag_as_a_setting(runs, report, threshold, warnings, say) if has_forced_lag(runs) else []
    say("Making the tables.")
    tables = _tables(runs, report, threshold)
    others = list(drawn(gallery.OTHERS))
    say("Writing the page.")
    script = folder / "reproduce.sh"
    script.write_text(commands([group for group in groups if not group.library]), encoding="utf-8")
    chapters = [
        Chapter("What was run", _what_was_run(groups)),
        Chapter("Headline figures", headline),
        Chapter("Lag as a setting", as_a_setting),
        Chapter("Tables", tables),
        Chapter("Other figures", others),
        Chapter("Not drawn", report.excuses()),
        Chapter("Runs that failed or are not finished", _troubles(runs, broken)),
        Chapter("How to reproduce", _how_to_reproduce(runs, folder)),
        Chapter("Hardware and versions", _hardware(runs)),
    ]
    page.write(folder / "index.html", title, _lead(runs, groups), chapters)
    return [folder / "index.html", *report.files, script]


# --- chapters ---------------------------------------------------------------------------------------------------------


def _lead(runs: Sequence[Run], groups: Sequence[SeedGroup[Member]]) -> list[str]:
    methods, envs = ({getattr(group, name) for group in groups} for name in ("name", "env"))
    states = Counter(run.ending for run in runs)
    hours = summarise(runs)["hours"].sum()
    sentences = [
        f"{_counted(len(runs), 'run')} of {_counted(len(methods), 'method')} in {_counted(len(envs), 'environment')}"
        f" ({', '.join(sorted(envs))}): {', '.join(f'{count} {state}' for state, count in states.most_common())}.",
        f"{caption.frames(runs).capitalize()} per run, {hours:.2g} hours of training in all.",
    ]
    if any(not group.has_band for group in groups):
        sentences.append("With fewer than 3 seeds nothing can be said about chance: single runs are drawn, not bands.")
    return [" ".join(sentences)]


def _what_was_run(groups: Sequence[SeedGroup[Member]]) -> list[str]:
    rows = []
    for group in groups:
        states = Counter(run.ending for run in group.runs)
        seeds = ", ".join(str(run.seed) for run in group.runs[:10]) + (", ..." if len(group.runs) > 10 else "")
        state = ", ".join(f"{count} {state}" for state, count in states.most_common())
        rows.append([group.env, group.name, f"{len(group.runs)} ({seeds})", caption.frames(group.runs), state])
    parts = [
        page.table(pd.DataFrame(rows, columns=["environment", "method", "seeds", "trained for", "state"]), words=True)
    ]
    parts += [page.small(line) for line in caption.of_other_libraries(groups, "method")[-1:]]
    ours = [group for group in groups if not group.library]  # settings of others mean other things
    if not ours:
        return parts
    found = differences(ours)
    if found.differing:
        parts += [page.heading("Settings that differ"), page.settings(found.columns, found.differing)]
    if found.partial:
        shown = page.settings(found.columns, found.partial)
        parts.append(page.folded(f"Settings that only some of them have ({len(found.partial)})", shown))
    alike = page.settings(["value"], {key: [value] for key, value in found.shared.items()})
    return [*parts, page.folded(f"Settings that all share ({len(found.shared)})", alike)]


def _tables(runs: list[Run], report: Report, threshold: float | None) -> list[str]:
    return [part for one in table.make_tables(runs, threshold) for part in report.tabulate(one)]


def _lag_as_a_setting(
    runs: list[Run], report: Report, threshold: float | None, heard: list[str], say: Callable[[str], None]
) -> list[str]:
    """The figures and tables of `analysis.study`, where lag was forced."""
    say("Studying lag.")
    found = make_study(runs, threshold)
    parts: list[str] = []
    for name, (title, draw) in study.FIGURES.items():
        parts += report.draw(FigureKind(name, title, partial(_of_study, draw, found)), runs, heard)
    for name, make in study.tables().items():
        try:
            one = make(found)
        except cli.NothingToDrawError as nothing:
            report.missing.append((name, str(nothing)))
            continue
        parts += report.tabulate(one)
    return parts


def _of_study(draw: Callable[[Study], gallery.Drawn], found: Study, runs: list[Run]) -> gallery.Drawn:
    return draw(found)


def _troubles(runs: Sequence[Run], broken: Sequence[str]) -> list[str]:
    rows = [[str(run.path), run.ending, _reason(run)] for run in runs if run.state != "finished"]
    again = {caption.tried_again([run]): run for run in runs}
    rows += [
        [str(run.path), "finished", f"Tried again: {caption.attempts(run)}."] for name, run in again.items() if name
    ]
    parts = [page.table(pd.DataFrame(rows, columns=["run", "state", "why"]), words=True)] if rows else []
    if not parts:
        parts = [page.paragraph("None: every run that was found is finished.")]
    return parts + ([page.paragraph("Named while reading:"), page.points(broken, 30)] if broken else [])


def _reason(run: Run) -> str:
    error = run.status.get("error")
    frames = caption.frames([run])
    if isinstance(error, dict):
        error = error.get("message")
    if error:
        lines = str(error).strip().splitlines()
        return f"{lines[-1]} (after {frames})"
    return f"It {_STATES.get(run.state, 'says no reason')}, after {frames}."


def _how_to_reproduce(everyone: Sequence[Run], folder: Path) -> list[str]:
    runs = [run for run in everyone if not run.library]
    if not runs:
        return [page.paragraph("None of these runs is of this suite: how they were made their own libraries tell.")]
    roots = sorted({str(run.config.get("root", "runs")) + "/" + str(run.config.get("name", "")) for run in runs})
    commits = sorted({str(run.status["git_commit"]) for run in runs if run.status.get("git_commit")})
    parts = [
        page.paragraph(
            "The commands in reproduce.sh, below, run all of it again under new names, with every "
            "setting spelt out. Then draw this page from the new runs."
        ),
        page.code("bash reproduce.sh\n" + "\n".join(f"python -m analysis.report {root}-again" for root in roots)),
        page.folded("reproduce.sh", page.code((folder / "reproduce.sh").read_text(encoding="utf-8"))),
    ]
    if commits:
        parts.append(page.small(f"Code: commit {', '.join(commits)}; +changes: with changes that were not committed."))
    return parts


def _hardware(runs: Sequence[Run]) -> list[str]:
    rows = Counter((caption.machine(run), str((run.status.get("machine") or {}).get("system", "-"))) for run in runs)
    machines = pd.DataFrame([[*key, str(count)] for key, count in rows.items()], columns=["machine", "system", "runs"])
    versions: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in (run.status.get("versions") or {}).items():
            versions.setdefault(name, {})[str(version)] = None
    parts = [page.table(machines, words=True)]
    if versions:
        parts.append(page.small("; ".join(f"{name} {' or '.join(found)}" for name, found in versions.items()) + "."))
    return parts


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# --- the command line -------------------------------------------------------------------------------------------------


class _Ear(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One sentence more."""
        self.heard.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """The warnings of this package, as they come; they are not printed, for the page has them."""
    ear, logger = _Ear(), logging.getLogger("analysis")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(ear)
    try:
        yield ear.heard
    finally:
        logger.removeHandler(ear)
        logger.propagate = propagate


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    title = chosen.title or ", ".join(root.resolve().name for root in chosen.roots)
    with listening() as heard:
        say = partial(print, file=sys.stderr, flush=True)
        words = {"title": title, "threshold": chosen.threshold, "page_only": chosen.page_only}
        write = partial(write_report, heard=heard, say=say, **words)
        return cli.write_files("report", chosen.roots, chosen.out, write)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.report", "Writes figures, tables and a page to read.", "report")
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: the names of the roots)")
    parser.add_argument("--threshold", type=float, metavar="RETURN", help="for frames and time to a score")
    parser.add_argument("--page-only", action="store_true", help="index.html alone, without files beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
