"""What other packages add, by entry point: algorithms, advantages and trunks of networks.

A package names them in its pyproject.toml, and after it is installed they are chosen as those here:

    [project.entry-points."a3c_bench.algorithms"]
    mine = "my_package.mine:ALGORITHM"        # algo=mine, an `algos.Algorithm`
    [project.entry-points."a3c_bench.advantages"]
    clipped = "my_package.psi:ADVANTAGE"      # advantage=clipped, a `core.advantages.Advantage`
    [project.entry-points."a3c_bench.networks"]
    wide = "my_package.wide:TRUNK"            # network=wide, a `core.networks.Trunk`
"""

import importlib.metadata
from typing import Any

ALGORITHMS, ADVANTAGES, NETWORKS = "a3c_bench.algorithms", "a3c_bench.advantages", "a3c_bench.networks"


def names(group: str) -> list[str]:
    """What other packages add to a group."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """What an entry point of a group names; None if there is none of that name."""
    entries = [entry for entry in importlib.metadata.entry_points(group=group) if entry.name == name]
    return entries[0].load() if entries else None
