"""What status.json says of a run's past: its attempts, and the settings that were changed between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from a3c_bench.schema import BudgetConfig

Changes = Mapping[str, Sequence[Any]]  # by dotted key: [before, now]


def with_attempt(status: Mapping[str, Any], **facts: Any) -> list[dict[str, Any]]:
    """The attempts, with the one that begins; the last one before it was killed if nobody noted its end."""
    attempts = [dict(attempt) for attempt in status.get("history", ())]
    if attempts and "ended" not in attempts[-1]:
        attempts[-1]["ended"] = "killed" if status.get("state") == "running" else status.get("state")
    return [*attempts, facts]


def with_end(status: Mapping[str, Any], state: str, at: str) -> list[dict[str, Any]]:
    """The attempts, with the end of the last one."""
    *others, last = [*status.get("history", ())] or [{}]
    return [*others, {**last, "ended": state, "ended_at": at}]


def with_changes(pending: Changes, differing: Sequence[tuple[str, Any, Any]]) -> dict[str, list[Any]]:
    """Settings that changed since the last attempt began, with those that (key, before, now) adds."""
    changes = {key: list(pair) for key, pair in pending.items()}
    for key, before, now in differing:
        changes[key] = [changes[key][0] if key in changes else before, now]
    return {key: pair for key, pair in changes.items() if pair[0] != pair[1]}


def below_what_was_run(status: Mapping[str, Any], changes: Changes) -> str | None:
    """What a lower budget contradicts, as the middle of a sentence; None if nothing."""
    for key, done, unit in (
        ("budget.frames", status.get("frames", 0), "frames"),
        ("budget.wall_clock_seconds", status.get("wall_seconds", 0.0), "seconds"),
    ):
        now = changes[key][1] if key in changes else None
        if now is not None and now < done:
            return f"a run of {done:,.{0 if unit == 'frames' else 1}f} {unit} already, and {key}={now} is less"
    return None


def goes_on(status: Mapping[str, Any], budget: BudgetConfig, changes: Changes) -> bool:
    """Whether a finished run has more to do: a limit was raised or taken away, and none that is left was reached."""
    raised = any(
        key.startswith("budget.") and before is not None and (now is None or now > before)
        for key, (before, now) in changes.items()
    )
    mean_return = status.get("final", {}).get("mean_return_100_games")
    reached = (
        (budget.frames is not None and status.get("frames", 0) >= budget.frames)
        or (budget.wall_clock_seconds is not None and status.get("wall_seconds", 0.0) >= budget.wall_clock_seconds)
        or (budget.target_return is not None and mean_return is not None and mean_return >= budget.target_return)
    )
    return raised and not reached
