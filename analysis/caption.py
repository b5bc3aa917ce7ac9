"""The sentences under a figure: what was run, for how long and on what, read from the runs themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis import style
from analysis.aggregate import SEEDS_FOR_BAND
from analysis.groups import SeedGroup, Trace
from analysis.run import Run

_THEIRS = (
    "Other libraries: returns of their training games (means of theirs where a log has no games), never evaluations; "
    "time since their log began, with whatever they did meanwhile, on hardware that it does not tell"
)
_THEIR_WRAPPERS = (
    "; their Atari wrappers usually clip rewards to the sign and end an episode with a life, for learning alone"
)


def complete(how_drawn: str, groups: Sequence[SeedGroup[Trace]], per: str = "curve") -> str:
    """The whole caption: what is drawn, a line per environment, the machines, and runs that are not finished."""
    runs = [run for group in groups for run in group.runs]
    lines = [how_drawn]
    facts = {}
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env and not group.library]
        if here:
            trained = [run for group in here for run in group.runs]
            facts[env] = f"{_seeds(here)} per {per}, {frames(trained)}, {settings(trained)}."
    lines += _together(facts)
    lines += of_other_libraries(groups, per)
    ours = [run for run in runs if not run.library]
    lines += [f"Hardware: {hardware(ours)}."] if ours else []
    everyone = [run for group in groups for run in group.all_runs]
    lines += [f"Not finished: {names}." for names in [unfinished(everyone)] if names]
    lines += [f"Tried again until it finished: {names}." for names in [tried_again(everyone)] if names]
    return "\n".join(lines)


def averaging(groups: Sequence[SeedGroup[Trace]]) -> list[str]:
    """Sentences on what becomes of the seeds."""
    sentences = []
    means = [group for group in groups if group.has_band]
    if means:
        fainter = "; fainter from there, of the seeds that go on" if any(group.is_uneven for group in means) else ""
        sentences.append(
            f"Line: mean over seeds, as far as the shortest goes{fainter}. "
            "Band: 95% percentile bootstrap over seeds, too narrow when they are few."
        )
    if any(group.others for group in means):
        sentences.append("Thin lines beside a mean: runs that are not over, which are no part of it.")
    if not all(group.has_band for group in groups):
        sentences.append(f"Thin lines: single runs, where there are fewer than {SEEDS_FOR_BAND} seeds and so no band.")
    return sentences


def of_other_libraries(groups: Sequence[SeedGroup[Trace]], per: str = "curve") -> list[str]:
    """What is to be said of runs that this suite did not train: a line per environment, and one on all of them."""
    facts = {}
    theirs = [group for group in groups if group.library]
    for env in dict.fromkeys(group.env for group in theirs):
        here = [group for group in theirs if group.env == env]
        trained = [run for group in here for run in group.runs]
        if trained:
            skip = _values(trained, "frame_skip")
            steps = "" if skip == "1" else f" (1 of their steps is {skip} frames)"
            names = ", ".join(dict.fromkeys(group.name for group in here))
            facts[env] = f"{names}, of other libraries: {_seeds(here)} per {per}, {frames(trained)}{steps}."
    lines = _together(facts)
    if lines:
        atari = any(run.config["env"].get("game") for group in theirs for run in group.runs)
        lines.append(_THEIRS + (_THEIR_WRAPPERS if atari else "") + "; other settings are theirs and may differ.")
    return lines


def _together(facts: Mapping[str, str]) -> list[str]:
    """A line per environment; those of which the same is to be said have one."""
    envs: dict[str, list[str]] = {}
    for env, fact in facts.items():
        envs.setdefault(fact, []).append(env)
    return [f"{', '.join(names)}: {fact}" for fact, names in envs.items()]


def settings(runs: Sequence[Run]) -> str:
    """Settings of one environment that change what a return or a frame means.

    Args:
        runs: all of one environment, at least one; values that differ between them stand side by side.
    """
    words = [f"frame skip {_values(runs, 'frame_skip')}"]
    if any(run.config["env"].get("game") for run in runs):
        words += [
            f"learning rewards clipped at {_values(runs, 'reward_clip')}",
            f"life loss terminal for learning: {_values(runs, 'life_loss_terminal')}",
            f"sticky-action probability {_values(runs, 'sticky_action_probability')}",
            f"up to {_values(runs, 'noop_max')} no-op frames",
        ]
    return ", ".join(words)


def frames(runs: Sequence[Run]) -> str:
    """How long the runs trained: "100k frames", or the range if they differ."""
    known = sorted({_short(float(run.status["frames"])) for run in runs if run.status.get("frames")}, key=_long)
    if not known:
        return "an unknown number of frames"
    return (known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}") + " frames"


def hardware(runs: Sequence[Run]) -> str:
    """The machines, each once."""
    return "; ".join(dict.fromkeys(machine(run) for run in runs))


def unfinished(runs: Sequence[Run], at_most: int = 4) -> str:
    """Which runs did not end as they should; empty if all did."""
    return named([run for run in runs if run.state != "finished"], at_most)


def tried_again(runs: Sequence[Run], at_most: int = 4) -> str:
    """Which runs finished after attempts that failed, or of which nobody noted the end; empty if none did."""
    again = [
        run for run in runs if run.state == "finished" and {"failed", "diverged", "unknown"} & {*run.attempts[:-1]}
    ]
    return _named([(run, attempts(run)) for run in again], at_most)


def named(runs: Sequence[Run], at_most: int = 4) -> str:
    """Some runs, with how they ended."""
    return _named([(run, run.ending) for run in runs], at_most)


def attempts(run: Run) -> str:
    """What became of a run's attempts: "3 attempts: diverged, failed, finished"."""
    ends = run.attempts
    known = "" if "unknown" in ends else f": {', '.join(ends)}"
    return f"{len(ends)} attempts{known}"


def _named(runs: Sequence[tuple[Run, str]], at_most: int) -> str:
    names = [f"{run.env} {style.display_name(run.algo)}{_label(run)} seed {run.seed} ({what})" for run, what in runs]
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _label(run: Run) -> str:
    """What tells a run from others of its algorithm, after a blank."""
    return f" {run.label}" if run.label else ""


def _seeds(groups: Sequence[SeedGroup[Trace]]) -> str:
    counts = sorted({len(group.all_runs) for group in groups})
    words = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{words} seed{'' if counts[-1] == 1 else 's'}"


def _values(runs: Sequence[Run], key: str) -> str:
    return " or ".join(dict.fromkeys(_word(run.config["env"].get(key)) for run in runs))


def _word(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def machine(run: Run) -> str:
    """CPU, cores and GPU of a run."""
    if run.library:
        return f"not told by {run.library}"
    machine = run.status.get("machine") or {}
    cores = machine.get("cores")
    counted = "unknown cores" if cores is None else f"{cores} core{'' if cores == 1 else 's'}"
    return f"{machine.get('cpu') or 'unknown CPU'}, {counted}, {machine.get('gpu') or 'no GPU'}"


def _short(count: float) -> str:
    """At most three digits: 100k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _long(short: str) -> float:
    sizes = {"M": 1e6, "k": 1e3}
    return float(short.rstrip("Mk")) * sizes.get(short[-1], 1.0)
