"""EnvPool made correct: episodes, phantom steps, seeds, threads, true scores."""

from a3c_bench.envs.episodes import Episode
from a3c_bench.envs.vector import Step, VectorEnv

__all__ = ["Episode", "Step", "VectorEnv"]
