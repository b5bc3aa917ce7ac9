"""The directories of a sweep: one per point."""

from collections.abc import Sequence
from pathlib import Path

from a3c_bench.errors import ConfigError


def refuse_one_directory(points: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Refuses a sweep in which two points would be one run.

    Args:
        points: directory and overrides of each.

    Raises:
        ConfigError: in one sentence.
    """
    seen: dict[Path, Sequence[str]] = {}
    for directory, overrides in points:
        if directory in seen:
            one, other = set(seen[directory]), set(overrides)
            keys = sorted({text.lstrip("+~").split("=", 1)[0] for text in one ^ other})
            if not keys:
                raise ConfigError(f"Two points of the sweep are the same run, {directory}: leave one out.")
            raise ConfigError(
                f"Two points of the sweep are the same run, {directory}: they differ in {', '.join(keys)} alone, with "
                f"which a run only goes on; give each a name of its own: 'name=mine-${{{keys[0]}}}'."
            )
        seen[directory] = overrides
