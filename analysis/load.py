"""Run directories in, runs out: every run below some directories, each once.

A run directory is any directory that holds config.yaml and status.json; what other libraries write is known by its
content (`analysis.others`). Whatever is broken is named by a warning and
left out: one bad run never costs the figure of the others.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis import others, walk, wandb_runs
from analysis.run import Run, identity
from analysis.settings import labelled

log = logging.getLogger(__name__)

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it: ten times as fast


def load_runs(*roots: str | Path) -> list[Run]:
    """Finds the runs below some directories, each once, in the order of their paths.

    Args:
        roots: directories at any height: `runs`, `runs/demo` or a single run directory; also those in which wandb keeps
            offline runs, where there is no run directory around them, and `wandb:entity/project`; runs of other
            libraries, which may be single files too.

    Returns:
        the runs; empty if there are none. Broken ones are named by a warning and left out.

    Raises:
        FileNotFoundError: a root is not a directory.
        wandb_runs.WandbError: an online project cannot be read.
        others.OtherError: a root is a file, and no run.
    """
    return load_and_count(roots)[0]


def load_and_count(roots: Sequence[str | Path]) -> tuple[list[Run], list[int]]:
    """As `load_runs`, and how many runs each root holds: roots may overlap, or be links to each other."""
    found: dict[Path, Run | None] = {}  # by resolved path; None: broken, and named already
    counts = []
    for root in roots:
        if str(root).startswith(wandb_runs.PREFIX):
            here: dict[Path, Run | None] = {run.path: run for run in wandb_runs.read_online(str(root))}
        elif Path(root).is_file():
            here = {Path(root).resolve(): others.read_file(Path(root))}
        else:
            if not Path(root).is_dir():
                raise FileNotFoundError(f"{root} is not a directory: give one that holds runs, for instance runs/demo.")
            offline: list[Path] = []
            theirs: list[others.Source] = []
            paths = {directory.resolve(): directory for directory in _run_directories(Path(root), offline, theirs)}
            here = {key: found[key] if key in found else _load_run(path) for key, path in paths.items()}
            here |= {run.path.resolve(): run for run in wandb_runs.read_offline(offline)}
            for source in theirs:
                key = source.path.resolve()
                here[key] = found[key] if key in found else others.read(source, Path(root))
        counts.append(sum(run is not None for run in here.values()))
        found |= here
    runs = others.joined([run for run in found.values() if run is not None])
    return labelled(others.numbered(runs)), counts


def _run_directories(root: Path, offline: list[Path], theirs: list[others.Source]) -> Iterator[Path]:
    """The run directories; into `offline` the files of wandb that lie in none, into `theirs` other libraries' runs."""
    for directory, children, files in walk.below(root):
        offline += [directory / file for file in sorted(files) if file.endswith(".wandb")]
        if "status.json" in files and "config.yaml" in files:
            children.clear()  # runs do not nest; their wandb/ and video/ hold many files
            yield directory
        elif "status.json" in files:
            log.warning("%s is left out: it holds no config.yaml.", directory)
        elif "config.yaml" in files and "episodes.csv" in files:
            log.warning("%s is left out: it holds no status.json.", directory)
        else:
            theirs += others.sources(directory, files)


def _load_run(directory: Path) -> Run | None:
    try:
        config = _mapping(yaml.load((directory / "config.yaml").read_text(), Loader=_Loader), "config.yaml")
        status = _mapping(json.loads((directory / "status.json").read_text()), "status.json")
        return Run(directory, config, status, *identity(config))
    except KeyError as error:
        reason = f"config.yaml has no key {error}"
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    log.warning("%s is left out: %s.", directory, reason)
    return None


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} does not hold keys and values")
    return value
