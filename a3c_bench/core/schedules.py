"""Schedules on the global counter."""


def linear(start: float, end: float, position: float, horizon: float) -> float:
    """The value at `position` on a straight line from start (at 0) to end (at `horizon` and after)."""
    progress = min(max(position / horizon, 0.0), 1.0)
    return start + (end - start) * progress
