"""Random streams: every consumer gets its own child of one SeedSequence, so that none overlaps another.

EnvPool gives environment i the seed + i when handed one integer, so that seeds 0, 1, 2 would share most streams.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import torch


class Stream(IntEnum):
    """Who draws; the number is part of the seed, so never renumber."""

    NETWORK = 0
    ENVIRONMENTS = 1
    ACTIONS = 2
    EVALUATION = 3
    CALIBRATION = 4
    PLAY = 5
    LEARNING_RATE = 6
    ADJUSTMENT = 7
    REPLAY = 8
    LAG = 9
    STEP_TIME = 10
    FRESH = 11
    EPSILON = 12
    MINIBATCHES = 13


def sequence(seed: int, stream: Stream, *path: int) -> np.random.SeedSequence:
    """The child of `seed` for one consumer; `path` tells apart its parts (attempt, worker, evaluation number)."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(int(stream), *path))


def torch_generator(device: torch.device, seed: np.random.SeedSequence) -> torch.Generator:
    """A torch generator on `device`, started from the sequence."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator


class GeneratorState:
    """A torch generator as a part of checkpoints."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> torch.Tensor:
        """The generator's state."""
        return self._generator.get_state()

    def load_state_dict(self, state: torch.Tensor) -> None:
        """Goes on from a saved state."""
        self._generator.set_state(state.cpu())


class NumpyGeneratorState:
    """A NumPy generator as a part of checkpoints."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return dict(self._generator.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._generator.bit_generator.state = state
