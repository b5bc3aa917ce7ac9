"""Actor-critic networks: the published convolutional trunks and a small perceptron."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_KINDS = ("nips", "nature")


class ActorCritic(nn.Module):
    """pi(. | s) and V(s) for a batch of observations.

    Args:
        observation_shape: of one observation; [C, H, W] for the image kinds, anything flattened for the mlp.
        n_actions: A.
        kind: "nips" (Mnih et al. 2013: conv 16 8x8/4, conv 32 4x4/2, fc 256), "nature" (Mnih et al. 2015: conv 32
            8x8/4, conv 64 4x4/2, conv 64 3x3/1, fc 512) or "mlp".
        hidden_sizes: of the mlp.
        activation: of the mlp, "tanh" or "relu".
        initialisation: "orthogonal" (gain sqrt 2, policy head 0.01, value head 1, biases 0) or "fan_in"
            (weights and biases from U(+-1/sqrt(fan_in)), as Torch7 did for A3C).
        shared_trunk: one trunk under both heads as in the papers, or one each.
        channels_last: memory layout of the convolutions.

    Raises:
        ValueError: an image kind for observations that are not images, or images too small for its filters.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        n_actions: int,
        kind: str = "mlp",
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        initialisation: str = "orthogonal",
        shared_trunk: bool = True,
        channels_last: bool = False,
    ) -> None:
        super().__init__()

        def trunk() -> tuple[nn.Sequential, int]:
            if kind in IMAGE_KINDS:
                return _image_trunk(kind, observation_shape)
            return _mlp_trunk(math.prod(observation_shape), hidden_sizes, activation)

        self.trunk, n_features = trunk()
        self.value_trunk = None if shared_trunk else trunk()[0]
        self.policy_head = nn.Linear(n_features, n_actions)
        self.value_head = nn.Linear(n_features, 1)
        initialise: Callable[[nn.Module, float], None] = {"orthogonal": _orthogonal, "fan_in": _fan_in}[initialisation]
        for module in self.modules():
            initialise(module, math.sqrt(2.0))
        initialise(self.policy_head, 0.01)
        initialise(self.value_head, 1.0)
        self._memory_format = torch.channels_last if channels_last and kind in IMAGE_KINDS else torch.preserve_format
        if self._memory_format == torch.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N, A] and values [N] of observations [N, ...]; uint8 frames are scaled to [0, 1] here."""
        inputs = observations
        if observations.dtype == torch.uint8:
            inputs = observations.to(torch.float32, memory_format=self._memory_format).mul_(1.0 / 255.0)
        features = self.trunk(inputs)
        value_features = features if self.value_trunk is None else self.value_trunk(inputs)
        log_probs = F.log_softmax(self.policy_head(features), dim=-1)
        return log_probs, self.value_head(value_features).squeeze(-1)


def sample_actions(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One action per row of log-probabilities [N, A], as int64 [N], by the Gumbel-max trick."""
    noise = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs - noise.log_()).argmax(-1)


def _image_trunk(kind: str, observation_shape: Sequence[int]) -> tuple[nn.Sequential, int]:
    if len(observation_shape) != 3:
        raise ValueError(
            f"network {kind!r} needs images [C, H, W], not observations of shape {tuple(observation_shape)}"
        )
    channels = observation_shape[0]
    layers: list[nn.Module]
    if kind == "nips":
        n_features = 256
        layers = [nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
    else:
        n_features = 512
        layers = [nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, stride=1), nn.ReLU()]
    try:
        with torch.no_grad():
            n_flat = nn.Sequential(*layers)(torch.zeros(1, *observation_shape)).numel()
    except RuntimeError as error:
        raise ValueError(
            f"frames of {observation_shape[1]}x{observation_shape[2]} are too small for {kind!r}"
        ) from error
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_flat, n_features), nn.ReLU()), n_features


def _mlp_trunk(n_inputs: int, hidden_sizes: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = [nn.Flatten()]
    n_last = n_inputs
    for size in hidden_sizes:
        layers += [nn.Linear(n_last, size), nn.Tanh() if activation == "tanh" else nn.ReLU()]
        n_last = size
    return nn.Sequential(*layers), n_last


def _orthogonal(module: nn.Module, gain: float) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fan_in(module: nn.Module, gain: float) -> None:
    del gain  # this scheme has none
    if isinstance(module, nn.Linear | nn.Conv2d):
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -bound, bound)
