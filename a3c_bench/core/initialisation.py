"""How the weights of a layer are drawn: functions of the layer and of a gain, by the names that configurations say."""

import math
from collections.abc import Callable

from torch import nn


def _orthogonal(module: nn.Module, gain: float) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTMCell):
        for gates in (*module.weight_ih.chunk(4), *module.weight_hh.chunk(4)):
            nn.init.orthogonal_(gates)
        nn.init.zeros_(module.bias_ih)
        nn.init.zeros_(module.bias_hh)


def _fan_in(module: nn.Module, gain: float) -> None:
    del gain  # this scheme has none
    if isinstance(module, nn.Linear | nn.Conv2d):
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.LSTMCell):
        module.reset_parameters()  # U(+-1/sqrt(units)), as Torch7 had it too


INITIALISATIONS: dict[str, Callable[[nn.Module, float], None]] = {"orthogonal": _orthogonal, "fan_in": _fan_in}
