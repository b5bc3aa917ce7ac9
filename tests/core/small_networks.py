"""Small networks and frames, for the tests of networks."""

import torch
from torch import Tensor

from a3c_bench.core.networks import ActorCritic

SMALL_FRAME = (2, 36, 36)  # the least that "nature" takes: 36 -> 8 -> 3 -> 1


def frames(n: int, shape: tuple[int, ...] = SMALL_FRAME) -> Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(
    kind: str = "nips",
    initialisation: str = "fan_in",  # lively outputs: the orthogonal policy head is nearly uniform
    shared_trunk: bool = True,
    channels_last: bool = False,
) -> ActorCritic:
    """The same weights on every call."""
    torch.manual_seed(0)
    shape = (3,) if kind == "mlp" else SMALL_FRAME
    return ActorCritic(
        shape, 5, kind, initialisation=initialisation, shared_trunk=shared_trunk, channels_last=channels_last
    )


def outputs(network: ActorCritic, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values at the start of a game."""
    return network(observations, network.initial_state(len(observations)))[:2]
