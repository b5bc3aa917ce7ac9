"""What a sweep is to run: each point checked, and its configuration written down, before anything starts."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from a3c_bench import checks
from a3c_bench.errors import RunDirectoryInUseError
from a3c_bench.launch.directories import refuse_one_directory
from a3c_bench.runtime.directory import RunDirectory
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.schema import Config


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    directory: Path
    config: Config
    overrides: Sequence[str] = ()


def check_points(points: Sequence[Point], on_this_machine: bool) -> None:
    """Checks a sweep; environments and networks are built once each.

    Raises:
        ConfigError: in one sentence.
    """
    refuse_one_directory([(point.directory, point.overrides) for point in points])
    built: set[str] = set()
    for point in points:
        checks.check_settings(point.config)
    from a3c_bench.train import check_build, check_settings  # torch and EnvPool: bad input need not wait for them

    for point in points:
        check_settings(point.config)
        if on_this_machine:
            resolve_device(point.config.device)
        key = repr((point.config.env, point.config.network, point.config.algo.name))
        if key not in built:
            check_build(point.config)
            built.add(key)


def write_down(points: Sequence[Point]) -> None:
    """Writes config.yaml into each directory; those that are there are compared first.

    Raises:
        RunDirectoryError: a directory holds a run with another configuration, or cannot be written.
    """
    from a3c_bench.train import settled

    for point in sorted(points, key=lambda point: not (point.directory / "config.yaml").exists()):
        with suppress(RunDirectoryInUseError):  # it runs: its job holds it, and has its configuration
            RunDirectory(point.directory, asdict(settled(point.config, point.directory))).close()
