"""EnvPool's and Gymnasium's environments made correct: episodes, phantom steps, seeds, threads, true scores."""

from a3c_bench.envs.backends import find_spec
from a3c_bench.envs.episodes import Episode
from a3c_bench.envs.spec import EnvSpec
from a3c_bench.envs.vector import Step, VectorEnv

__all__ = ["EnvSpec", "Episode", "Step", "VectorEnv", "find_spec"]
