"""a3c_bench: what you pay, and what you get, when deep reinforcement learning is made parallel."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from a3c_bench.schema import Config

# Torch's OpenMP threads wait for the next parallel region by spinning, for milliseconds, and so take the cores from
# EnvPool's simulation threads. Not to spin at all has them woken for each layer, which costs a small network more than
# its work. 10,000 turns, some 0.2 ms, bridge the gaps between layers and little more: docs/performance.md has figures.
# The variables are read once, when torch is imported: therefore here, before anything else of the package.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # for OpenMP runtimes other than GCC's
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"


def compose(words: Sequence[str]) -> "Config":
    """The configuration that a command line gives, for `train` from Python: compose(["algo=paac", "seed=3"]).

    Args:
        words: as on the command line, "group=option" and "key=value".

    Raises:
        ConfigError: in one sentence.
    """
    from a3c_bench import config  # Hydra, which `import a3c_bench` is not to wait for

    return config.compose(words)
