"""Tables of scores: beside published ones, human-normalised over games, and who beats whom."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis import published, statistics
from analysis.aggregate import Floats
from analysis.others import MEANS
from analysis.outcome import FAILED, TRAINING_GAMES
from analysis.statistics import Estimate
from analysis.style import OF_ANOTHER_LIBRARY
from analysis.summary import counted_rows, is_plain, tally_of, unique_seeds
from analysis.writing import INTERVAL, NO_INTERVAL, Table, about_endings, about_intervals, written

AGGREGATES = {"mean": statistics.mean, "median": statistics.median, "iqm": statistics.iqm}
OF_HUMANS = AGGREGATES | {"optimality_gap": statistics.optimality_gap}  # where 100 means something
SCORE_COLUMNS = (
    *("starts", "env", "game", "method", "ours", "algo", "label", "score", "low", "high", "human_normalised_percent"),
    *("n_seeds", "games", "budget", "source", "checked", "n_runs", "runs"),
)
_UNKNOWN = Estimate(*[np.asarray(np.nan)] * 3)


def score_rows(
    summary: pd.DataFrame, which: Callable[[str], bool] = lambda method: True, means: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Final scores of ours, a row per environment, algorithm and label, and the published ones of the same games.

    Args:
        summary: of the runs.
        which: published methods to take.
        means: `others.read_means`, to stand beside training games of ours.

    Returns:
        SCORE_COLUMNS; `starts` tells which rows may be compared; a score is of `n_seeds` out of `n_runs`, and `runs`
        says what became of them. A configuration of which no run has a score has a row with NaN. Beside other
        libraries, which evaluate nothing, ours have a row of their training games too.
    """
    runs = unique_seeds(summary)
    runs = runs.assign(score=runs["score"].fillna(runs["training_score"]))
    theirs = runs["library"] != ""
    with_others = {*runs["env"][theirs], *([] if means is None else means["env"])}
    beside = runs[~theirs & (runs["starts"] != "training") & runs["env"].isin(with_others)]
    runs = pd.concat([runs, beside.assign(starts="training", score=beside["training_score"], games=np.nan)])
    rows = [
        _score_row(starts, env, algo, label, group)
        for (env, algo, label, starts), group in runs.groupby(["env", "algo", "label", "starts"], sort=False)
    ]
    ours = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    theirs = published.scores()
    theirs = theirs[theirs["game"].isin(ours["game"].dropna()) & theirs["method"].map(which)]
    theirs = theirs.assign(env=theirs["game"])
    if means is not None:
        theirs = pd.concat([theirs, means[means["env"].isin(ours["env"])]])
    theirs = theirs.assign(ours=False, human_normalised_percent=np.nan)
    both = pd.concat([ours.astype(object), theirs.reindex(columns=list(SCORE_COLUMNS)).astype(object)])
    both = both.reset_index(drop=True)
    with_all = pd.concat([both, published.scores()])  # which games a method has decides on Video Pinball
    both["human_normalised_percent"] = published.normalise(with_all.reset_index(drop=True)).iloc[: len(both)]
    numeric = ["score", "low", "high", "n_seeds", "games", "human_normalised_percent"]
    return both.assign(**{column: pd.to_numeric(both[column]) for column in numeric})


def score_tables(rows: pd.DataFrame) -> list[Table]:
    """One table per kind of starts, ours first."""
    kinds = rows.groupby("starts")["ours"].any().sort_values(ascending=False, kind="stable").index
    return [_score_table(starts, rows[rows["starts"] == starts]) for starts in kinds]


def _score_row(starts: str, env: str, algo: str, label: str, group: pd.DataFrame) -> dict[str, object]:
    counted = counted_rows(group)
    scores = counted["score"].to_numpy(dtype=np.float64)
    estimate = statistics.bootstrap(statistics.mean, [scores]) if len(scores) else _UNKNOWN
    trained = counted if len(counted) else group
    return {
        "starts": starts,
        "env": env,
        "game": group["game"].iloc[0],
        "method": group["name"].iloc[0],
        "ours": True,
        "algo": algo,
        "label": label,
        "score": float(estimate.value),
        "low": float(estimate.low),
        "high": float(estimate.high),
        "n_seeds": len(counted),
        "games": counted["games"].min(),
        "budget": f"{trained['frames'].mean():.4g} frames, {trained['hours'].mean():.3g} h",
        "source": "this sweep",
        "checked": True,
        "n_runs": len(group),
        "runs": "" if is_plain(group, counted) else tally_of(group, counted),
    }


def _score_table(starts: str, rows: pd.DataFrame) -> Table:
    order = list(dict.fromkeys(zip(rows["ours"], rows["method"], strict=True)))
    envs = list(dict.fromkeys(rows["env"]))
    cells = {(row.env, row.ours, row.method): _score_cell(row) for row in rows.itertuples()}
    text = pd.DataFrame([[cells.get((env, *key), "") for key in order] for env in envs])
    methods = [method if ours else f"{method} (published)" for ours, method in order]
    if len(methods) > len(envs):  # the longer side goes down
        text, heads, sides = text.T, envs, pd.Series(methods, name="method")
    else:
        heads, sides = methods, pd.Series(envs, name="environment")
    text = text.set_axis(heads, axis="columns").reset_index(drop=True)
    text.insert(0, sides.name, sides)
    notes = []
    if rows["ours"].any():
        notes.append(_kind_of_score(starts, rows))
        notes += about_intervals(rows[rows["ours"]].dropna(subset=["score"]))
        notes += about_endings("; ".join(rows[rows["ours"]]["runs"].fillna("")))
    else:
        notes.append("Published only: no run here was scored like this, so nothing of ours stands beside it.")
    if not rows["checked"].astype(bool).all():
        notes.append("? : not checked against its source.")
    sources = rows[~rows["ours"].astype(bool)].groupby("method", sort=False)[["source", "budget"]].first()
    notes += [f"{method}: {one.source}{f', {one.budget}' if one.budget else ''}." for method, one in
              sources.fillna("").iterrows()]  # fmt: skip
    name = "scores_" + "_".join(starts.replace("-", " ").split())
    titles = {"training": f"Training return, mean of the last {TRAINING_GAMES} games"}
    return Table(name, titles.get(starts, f"Final score, starts: {starts}"), rows, text, notes)


def _kind_of_score(starts: str, rows: pd.DataFrame) -> str:
    ours = rows[rows["ours"].astype(bool)]
    logs = ours["algo"].str.contains(OF_ANOTHER_LIBRARY, regex=False).any()
    if starts == "training" and (logs or rows["source"].str.startswith(MEANS, na=False).any()):
        return "Training games of ours and of other libraries, whose logs hold no evaluation: none of these is one."
    if starts == "training":
        return "These runs have no final evaluation; a training score is no evaluation score."
    counts = sorted({int(games) for games in ours["games"].dropna()})
    return f"Mean unclipped return of {' or '.join(map(str, counts))} evaluation games per run, then over seeds."


def _score_cell(row: object) -> str:
    estimate = Estimate(*(np.asarray(getattr(row, name)) for name in ("score", "low", "high")))
    runs = f" ({row.runs})" if row.ours and row.runs else ""  # type: ignore[attr-defined]
    return written(estimate) + runs + ("" if row.checked else " ?")  # type: ignore[attr-defined]


# --- aggregates over games --------------------------------------------------------------------------------------------


def aggregate_table(summary: pd.DataFrame, rows: pd.DataFrame) -> Table | None:
    """Human-normalised aggregates over the games that all of our methods have; None if there are none.

    Args:
        summary: of the runs.
        rows: what `score_rows` gave.
    """
    known = rows.dropna(subset=["human_normalised_percent", "score"])
    ours = known[known["ours"].astype(bool) & (known["starts"] != "training")]
    if ours.empty:
        return None
    (starts, _), *others = ours.groupby("starts")["game"].nunique().sort_values(ascending=False).items()
    ours = ours[ours["starts"] == starts]
    games = sorted(set.intersection(*(set(group["game"]) for _, group in ours.groupby("method"))))
    if not games:
        return None
    missing = sorted(set(ours["game"]) - set(games))
    everyone = unique_seeds(summary[summary["starts"] == starts])
    everyone = everyone[everyone["game"].isin(games)]
    runs = _normalised_runs(everyone)
    lines = []
    for method, group in known[(known["starts"] == starts) & known["game"].isin(games)].groupby("method", sort=False):
        here = bool(group["ours"].iloc[0])
        tasks = runs(method, games) if here else [np.array([value]) for value in group["human_normalised_percent"]]
        estimates = {name: statistics.bootstrap(statistic, tasks) for name, statistic in OF_HUMANS.items()}
        seeds = min(map(len, tasks))
        own = everyone[everyone["name"] == method]
        counted = counted_rows(own)
        words = str(seeds) if not here or is_plain(own, counted) else tally_of(own, counted, "run")
        lines.append((method, here, len(tasks), seeds, words, bool(group["checked"].all()), estimates))
    numbers = pd.DataFrame(
        [
            {"method": method, "ours": here, "starts": starts, "n_games": n_games, "min_seeds": seeds, "runs": words}
            | {"checked": checked}
            | {f"{name}{end}": float(getattr(estimate, part)) for name, estimate in estimates.items()
               for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))}
            for method, here, n_games, seeds, words, checked, estimates in lines
        ]
    )  # fmt: skip
    text = pd.DataFrame(
        [
            [method + ("" if here else " (published)") + ("" if checked else " ?"), str(n_games), words]
            + [written(estimates[name]) for name in OF_HUMANS]
            for method, here, n_games, seeds, words, checked, estimates in lines
        ],
        columns=["method", "games", "seeds", "mean %", "median %", "IQM %", "optimality gap %"],
    )
    notes = [
        f"100 (score - random) / (human - random), starts: {starts}; games: {', '.join(games)}.",
        "IQM: mean of the middle half of all runs of all games; a published method counts as one run per game. "
        "Optimality gap: how far runs are below 100 on average, those above counting 0.",
        *([INTERVAL] if numbers["mean_low"].notna().any() else []),
    ]
    if not numbers["mean_low"].notna().all():
        notes.append(NO_INTERVAL)
    notes += about_endings("; ".join(numbers["runs"]))
    if missing:
        notes.append(f"Left out, as not every method has a score there: {', '.join(missing)}.")
    if others:
        notes.append(f"Left out, being scored otherwise: {', '.join(str(kind) for kind, _ in others)}.")
    return Table("human_normalised", "Human-normalised score over games", numbers, text, notes)


def _normalised_runs(summary: pd.DataFrame) -> Callable[[str, Sequence[str]], list[Floats]]:
    runs = counted_rows(summary).reset_index(drop=True)
    percent = published.normalise(runs.assign(method=runs["name"])).to_numpy(dtype=np.float64)

    def of(method: str, games: Sequence[str]) -> list[Floats]:
        return [percent[(runs["name"] == method) & (runs["game"] == game)] for game in games]

    return of


def improvement_table(summary: pd.DataFrame) -> Table | None:
    """How probable it is that a run of one method beats one of another; None with fewer than two methods to compare."""
    everyone = unique_seeds(summary)
    if everyone["score"].isna().all():  # nothing was evaluated: training scores, of all
        everyone = everyone.assign(score=everyone["training_score"])
    nothing = everyone["score"].isna() & everyone["ending"].isin(FAILED)
    runs = counted_rows(everyone.assign(score=everyone["score"].mask(nothing, -np.inf)))
    tasks = {
        method: {key: group["score"].to_numpy(dtype=np.float64) for key, group in own.groupby(["env", "starts"])}
        for method, own in runs.groupby("name", sort=False)
        if np.isfinite(own["score"]).any()
    }
    words = {method: _with_endings(method, everyone, runs) for method in tasks}
    lines = []
    for ours in tasks:
        for theirs in tasks:
            common = [key for key in tasks[ours] if key in tasks[theirs]]
            if ours != theirs and common:
                samples = [tasks[ours][key] for key in common], [tasks[theirs][key] for key in common]
                estimate = statistics.bootstrap(statistics.probability_of_improvement, *samples)
                lines.append((ours, theirs, len(common), estimate))
    if not lines:
        return None
    numbers = pd.DataFrame(
        [(*line[:3], float(line[3].value), float(line[3].low), float(line[3].high), words[line[0]], words[line[1]])
         for line in lines],
        columns=["method", "over", "n_environments", "probability", "low", "high", "runs", "over_runs"],
    )  # fmt: skip
    cells = {line[:2]: written(line[3], digits=2) for line in lines}
    text = pd.DataFrame(
        [[words[ours], *(cells.get((ours, theirs), "") for theirs in tasks)] for ours in tasks],
        columns=["a run of", *(f"beats {theirs}" for theirs in tasks)],
    )
    notes = [
        "Probability that a run of the row's method scores higher than one of the column's, in an environment drawn at "
        "random from those that both have; a tie is half a win.",
        *about_intervals(numbers),
        *about_endings("; ".join(words.values())),
        *(["A failed run that reached nothing loses to every run that reached something."] if nothing.any() else []),
    ]
    return Table("improvement", "Probability of improvement", numbers, text, notes)


def _with_endings(method: str, everyone: pd.DataFrame, counted: pd.DataFrame) -> str:
    """The method, and what its number is of where not all of its runs finished."""
    own, counts = (rows[rows["name"] == method] for rows in (everyone, counted))
    return method if is_plain(own, counts) else f"{method} ({tally_of(own, counts, 'run')})"
