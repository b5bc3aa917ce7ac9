"""Layer normalisation between a trunk's layers and their activations (Ba et al. 2016), as PQN has it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ACTIVATIONS = (nn.ReLU, nn.Tanh)


class ChannelNorm(nn.Module):
    """At each place of an image [B, C, H, W] on its own: mean 0 and variance 1 over the C channels.

    Args:
        n_channels: C; each has a scale and a shift, the same at all places.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, features: Tensor) -> Tensor:
        """As many numbers of the same shape."""
        last = features.permute(0, 2, 3, 1)  # no copy where the channels are last in memory
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


def with_layer_norm(layers: nn.Sequential, observation_shape: Sequence[int], over: str) -> nn.Sequential:
    """The same layers, and before each activation a normalisation of what it gets, for each sample on its own.

    Args:
        layers: of a trunk; taken over, not copied.
        observation_shape: of one observation.
        over: of an image [C, H, W], "features": all of it, with a scale and a shift for each number, as CleanRL's PQN
            (`nn.LayerNorm([C, H, W])`); "channels": the C at each place, with a scale and a shift for each channel, as
            the authors' (flax's LayerNorm). Of a vector both are the same.
    """
    parts: list[nn.Module] = []
    features = torch.zeros(1, *observation_shape)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, _ACTIVATIONS):
                shape = features.shape[1:]
                is_image = len(shape) == 3
                parts.append(ChannelNorm(shape[0]) if is_image and over == "channels" else nn.LayerNorm(shape))
            parts.append(layer)
            features = layer(features)
    return nn.Sequential(*parts)
