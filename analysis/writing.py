"""A table as a file: numbers for programs, and text, Markdown and LaTeX for people, with the notes below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.aggregate import SEEDS_FOR_BAND
from analysis.outcome import FAILED, RULE
from analysis.statistics import Estimate

NOT_OVER = "Runs that are not over are in no mean beside runs that are."
NO_INTERVAL = f"No interval: fewer than {SEEDS_FOR_BAND} seeds."
INTERVAL = "In brackets: 95% percentile bootstrap over seeds."


@dataclass(frozen=True)
class Table:
    """A table twice: numbers for programs, and text for people."""

    name: str  # of its files
    title: str
    numbers: pd.DataFrame
    text: pd.DataFrame  # strings
    notes: Sequence[str]  # sentences below it

    def write(self, folder: Path) -> list[Path]:
        """Writes <name>.csv, <name>.md and <name>.tex, and gives their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}.{suffix}" for suffix in ("csv", "md", "tex")]
        self.numbers.to_csv(files[0], index=False, float_format="%.6g")
        files[1].write_text(self.markdown(), encoding="utf-8")
        files[2].write_text(self.latex(), encoding="utf-8")
        return files

    def markdown(self) -> str:
        """With title and notes."""
        rows = [list(self.text.columns), ["---"] * len(self.text.columns), *self.text.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"{note}  " for note in self.notes), ""])

    def latex(self) -> str:
        """A float with booktabs rules; title and notes are its caption."""
        rows = [" & ".join(map(_escaped, row)) + r" \\" for row in self.text.to_numpy().tolist()]
        head = " & ".join(map(_escaped, self.text.columns)) + r" \\"
        caption = _escaped(" ".join([f"{self.title}.", *self.notes]))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.text.columns) - 1)}}}",
                *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


# --- cells and notes --------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 1) -> str:
    """For people: 1,234.5, or 0.00123; a dash for what is not known."""
    if not np.isfinite(value):
        return "-"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.{digits}f}" if abs(value) >= 10.0**-digits or value == 0.0 else f"{value:.2g}"


def written(estimate: Estimate, digits: int = 1) -> str:
    """A value, with its interval in brackets if it has one."""
    if np.isnan(estimate.low):
        return number(float(estimate.value), digits)
    low, high = (number(float(end), digits) for end in (estimate.low, estimate.high))
    return f"{number(float(estimate.value), digits)} [{low}, {high}]"


def about_endings(tallies: str) -> list[str]:
    """What is to be said of runs that did not finish, from the words on their number."""
    failed = [RULE] if any(ending in tallies for ending in FAILED) else []
    return failed + ([NOT_OVER] if "running" in tallies or "preempted" in tallies else [])


def about_intervals(rows: pd.DataFrame) -> list[str]:
    with_interval = rows["low"].notna()
    return ([INTERVAL] if with_interval.any() else []) + ([] if with_interval.all() else [NO_INTERVAL])


def _escaped(text: str) -> str:
    for mark in ("\\", "&", "%", "_", "#", "$", "{", "}"):
        text = text.replace(mark, r"\textbackslash " if mark == "\\" else f"\\{mark}")
    return text
