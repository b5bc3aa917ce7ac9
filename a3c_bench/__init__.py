"""a3c_bench: what you pay, and what you get, when deep reinforcement learning is made parallel."""

import os

# Torch's OpenMP threads spin for a while after every parallel region and so take the cores from EnvPool's simulation
# threads. The variable is read once, when torch is imported: therefore here, before anything else of the package.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
