"""a3c_bench: what you pay, and what you get, when deep reinforcement learning is made parallel."""

import os

# Torch's OpenMP threads wait for the next parallel region by spinning, for milliseconds, and so take the cores from
# EnvPool's simulation threads. Not to spin at all has them woken for each layer, which costs a small network more than
# its work. 10,000 turns, some 0.2 ms, bridge the gaps between layers and little more: docs/performance.md has figures.
# The variables are read once, when torch is imported: therefore here, before anything else of the package.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # for OpenMP runtimes other than GCC's
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
