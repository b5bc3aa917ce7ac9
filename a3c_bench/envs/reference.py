"""Human and random scores, for human-normalised scores (own copy with its sources: a3c_bench/data)."""

import csv
from functools import cache
from importlib import resources


def human_normalised_percent(game: str | None, score: float, starts: str = "no-op") -> float | None:
    """100 (score - random) / (human - random), in percent (Mnih et al. 2015); None where the constants are not known.

    Args:
        game: e.g. "Pong".
        score: unclipped return of a whole game.
        starts: "no-op" or "human-starts"; the two are never mixed.
    """
    constants = _constants().get((game, starts))
    if constants is None:
        return None
    random, human = constants
    return 100.0 * (score - random) / (human - random)


@cache
def _constants() -> dict[tuple[str | None, str], tuple[float, float]]:
    file = resources.files("a3c_bench") / "data" / "atari_reference_scores.csv"
    with file.open() as lines:
        return {
            (row["game"], row["starts"]): (float(row["random"]), float(row["human"])) for row in csv.DictReader(lines)
        }
