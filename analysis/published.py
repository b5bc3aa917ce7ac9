"""What the papers report, with sources: own copies in analysis/data, and random and human scores in a3c_bench/data.

Scores from different starts of a game are never compared: `starts` is `no-op`, `human-starts`, `training` (no separate
evaluation) or `unstated`. Figures whose `status` is not `checked` were not read in the source itself.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from analysis.aggregate import Floats
from analysis.statistics import human_normalised

FAMILIES = ("DQN", "Gorila", "A3C", "GA3C", "PAAC")  # whose published scores stand beside ours unless all are asked for
_HERE = Path(__file__).parent
_REFERENCES = _HERE.parent / "a3c_bench" / "data" / "atari_reference_scores.csv"  # the only copy: training uses it too
_GAMES_OF_NATURE = 49  # of Mnih et al. 2015


def scores() -> pd.DataFrame:
    """Published scores: game, method, starts, score, budget, source, checked."""
    table = _read(_HERE / "data" / "published_scores.csv").copy()
    table["checked"] = table.pop("status") == "checked"
    return table


def of_the_families(method: str) -> bool:
    """Whether a published method is one of those that this suite has."""
    return family(method) in FAMILIES


def family(method: str) -> str:
    """A3C of "A3C FF, 1 day"."""
    return method.split()[0]


def references(game: str | None, starts: str) -> pd.DataFrame:
    """Published scores of the families for one game and kind of starts, the lowest first; empty beside Atari."""
    table = scores()
    here = (table["game"] == game) & (table["starts"] == starts) & table["method"].map(of_the_families)
    return table[here].sort_values("score", kind="stable")


def games() -> frozenset[str]:
    """The Atari games whose random and human scores are known."""
    return frozenset(_read(_REFERENCES)["game"])


def random_and_human(game: str, starts: str) -> tuple[float, float] | None:
    """The scores of random play and of a human tester in a game that starts so; None where they are not known."""
    table = _read(_REFERENCES)
    rows = table[(table["game"] == game) & (table["starts"] == starts)]
    return None if rows.empty else (float(rows["random"].iloc[0]), float(rows["human"].iloc[0]))


def speeds() -> pd.DataFrame:
    """Published speeds: method, quantity, workers_or_setting, value, unit, hardware, source, checked."""
    table = _read(_HERE / "data" / "published_speeds.csv").copy()
    table["checked"] = table.pop("status") == "checked"
    return table


# Ours by the names of Mnih et al. (2016).
TABLE_2 = {"a3c": "A3C", "one_step_q": "1-step Q", "one_step_sarsa": "1-step SARSA", "n_step_q": "n-step Q"}


def speed_ups(method: str = "A3C") -> tuple[Floats, Floats]:
    """Table 2 of Mnih et al. (2016): numbers of workers, and how many times as fast they reach a fixed score."""
    table = speeds()
    rows = table[(table["method"] == method) & (table["quantity"] == "speed-up to a fixed score")]
    return rows["workers_or_setting"].to_numpy(dtype="float64"), rows["value"].to_numpy(dtype="float64")


def normalise(table: pd.DataFrame) -> pd.Series:
    """Human-normalised percent of rows with game, starts, method and score; NaN where the constants are not known.

    Who reports all 57 games with human starts takes the random score of Video Pinball for 0, not for 20,452, which is
    more than the human one: only so do the means of A3C and Double DQN come out.
    """
    known = table.merge(_read(_REFERENCES)[["game", "starts", "random", "human"]], how="left", on=["game", "starts"])
    n_games = known.groupby(["method", "starts"])["game"].transform("nunique")
    pinball = (known["game"] == "VideoPinball") & (known["starts"] == "human-starts") & (n_games > _GAMES_OF_NATURE)
    random, human = known["random"].mask(pinball, 0.0).to_numpy(dtype="float64"), known["human"].to_numpy("float64")
    percent = human_normalised(known["score"].to_numpy(dtype="float64"), random, human)
    return pd.Series(percent, index=table.index)


@cache
def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file)
