"""Networks: the published convolutional trunks and a small perceptron, under actor-critic heads or under Q-values."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from a3c_bench.core.initialisation import INITIALISATIONS
from a3c_bench.core.normalisation import ChannelNorm, with_layer_norm

IMAGE_KINDS = ("nips", "nature")
SMALL = "small"  # reads boards [H, W] too
_SMALLEST_SIDES = {"nips": 20, "nature": 36, SMALL: 5}  # pixels; of fewer the filters of the first two leave none
_LARGEST_SIDES = {SMALL: 40}  # its fully connected layer has 3 million weights then


_PLAIN = frozenset({nn.Flatten, nn.Unflatten, nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.LayerNorm, ChannelNorm})


@dataclass(frozen=True)
class Trunk:
    """One of another package, as its entry point in "a3c_bench.networks" names it."""

    make: Callable[[Any, tuple[int, ...]], nn.Sequential]  # (config.network, shape of an observation): the layers below
    # the heads, from observations [B, ...] in float32 to features [B, F]; a dueling network splits at the last two
    config_class: type | None = None  # a frozen subclass of `NetworkConfig` with its own keys; None: it has none


class Layers(TypedDict, total=False):
    """What networks have in common, by keyword; `_Network` has the defaults."""

    hidden_sizes: Sequence[int]
    activation: str
    initialisation: str
    channels_last: bool
    bf16: bool
    input_mean: float
    input_std: float
    own_trunk: Callable[[], nn.Sequential] | None
    layer_norm: str | None


class _Network(nn.Module):
    """What all have in common: trunk, initialisation, precision, memory layout.

    Args:
        observation_shape: of one observation; [C, H, W] for the image kinds, anything flattened for the mlp.
        kind: "nips" (Mnih et al. 2013: conv 16 8x8/4, conv 32 4x4/2, fc 256), "nature" (Mnih et al. 2015: conv 32
            8x8/4, conv 64 4x4/2, conv 64 3x3/1, fc 512), "small" (MinAtar's, Young and Tian 2019: conv 16 3x3/1, fc
            128; for pictures of 5 to 40 pixels, and boards) or "mlp".
        hidden_sizes: of the mlp.
        activation: of the mlp, "tanh" or "relu".
        initialisation: "orthogonal" (gain sqrt 2, LSTM gates 1, biases 0; each head has a gain of its own) or "fan_in"
            (weights and biases from U(+-1/sqrt(fan_in)), as Torch7 did for A3C).
        channels_last: memory layout of the convolutions.
        bf16: the hidden layers compute in bfloat16 (autocast); an LSTM and the heads, and with them log-probabilities,
            values, Q and state, stay float32: bfloat16 would round a value of 100 to a whole 0.5, and forget small
            changes of a cell. So do the parameters.
        input_mean: subtracted from the observations, from frames after their scaling to [0, 1]. Around 0, gradients of
            the first layer's weights do not all point one way, and its units stay alive (LeCun et al. 1998, 4.3).
        input_std: what the observations are divided by then, to be of size 1 (ibid.).
        own_trunk: makes the layers below the heads; then `kind` is the name of another package's.
        layer_norm: each hidden layer is normalised before its activation, over its "features" or "channels"
            (`core.normalisation`); None: it is not.

    Raises:
        ValueError: an image kind for observations that are not images, or images too small for its filters; or
            layer_norm with another package's trunk.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        kind: str,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        initialisation: str = "orthogonal",
        channels_last: bool = False,
        bf16: bool = False,
        input_mean: float = 0.0,
        input_std: float = 1.0,
        own_trunk: Callable[[], nn.Sequential] | None = None,
        layer_norm: str | None = None,
    ) -> None:
        super().__init__()
        self._new_trunk = partial(_trunk, kind, observation_shape, hidden_sizes, activation, own_trunk, layer_norm)
        self._n_last = 2 if layer_norm is None else 3  # parts of the last hidden layer
        self._initialise = INITIALISATIONS[initialisation]
        self._channels_last = channels_last and kind != "mlp" and len(observation_shape) == 3
        self._bf16 = bf16
        self._is_mlp = kind == "mlp" and own_trunk is None and layer_norm is None
        self._input_mean = input_mean
        self._input_std = input_std
        self._through = _through

    def _finish(self, gains: Mapping[nn.Module, float]) -> None:
        """Draws all weights, those of heads with their gains, and lays them out; the constructors' last step."""
        for module in self.modules():
            self._initialise(module, math.sqrt(2.0))
        for head, gain in gains.items():
            self._initialise(head, gain)
        if self._channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def is_plain(self) -> bool:
        """Whether the trunk is a plain perceptron of ours, in float32, which nothing compiles: see `core.plain`."""
        return self._is_mlp and not self._bf16 and self._through is _through

    def compile_trunk(self) -> None:
        """Has torch.compile fuse what comes before the heads, for batches of any size."""
        self._through = torch.compile(_through, dynamic=True)

    def _hidden(self, layers: nn.Module, inputs: Tensor) -> Tensor:
        """The features of hidden layers, in their precision, as float32: heads and an LSTM have that of the result."""
        with self._precision(inputs):
            return self._through(layers, inputs).float()

    def _precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        # The cache of cast weights is one for all threads and outlives a change of the weights: another thread's update
        # would be answered with the weights before it for as long as any thread is inside.
        return torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False) if self._bf16 else nullcontext()

    def scaled(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] as the first layer takes them, in float32."""
        if observations.dtype == torch.uint8:
            observations = observations.to(torch.float32).mul_(1.0 / 255.0)
        elif not observations.is_floating_point():  # numbers of cards, one-hot states, boards of bits
            observations = observations.to(torch.float32)
        if self._input_mean != 0.0:
            observations = observations - self._input_mean
        if self._input_std != 1.0:
            observations = observations / self._input_std
        if self._channels_last:  # last: another type and layout at once take longer
            return observations.to(memory_format=torch.channels_last)
        return observations


class ActorCritic(_Network):
    """pi(. | s) and V(s) for a batch of observations.

    What the network remembers is a tensor [B, S], h and c of the LSTM side by side, that the caller keeps: S is 0
    without an LSTM, so that the same lines serve both.

    Args:
        observation_shape: of one observation.
        n_actions: A.
        kind: of the trunk.
        shared_trunk: one trunk under both heads as in the papers, or one each.
        lstm_size: units of an LSTM between the trunk and the heads (256 in Mnih et al. 2016); None: there is none.
        layers: and `kind`: see `_Network`. The policy head has gain 0.01, the value head 1.

    Raises:
        ValueError: as there; or an LSTM on separate trunks.
    """

    values_actions = False  # the head beside the policy gives V(s), and not Q(s, .) as in `core.q_actor_critic`

    def __init__(
        self,
        observation_shape: Sequence[int],
        n_actions: int,
        kind: str = "mlp",
        *,
        shared_trunk: bool = True,
        lstm_size: int | None = None,
        **layers: Unpack[Layers],
    ) -> None:
        super().__init__(observation_shape, kind, **layers)
        if lstm_size is not None and not shared_trunk:
            raise ValueError("an LSTM needs network.shared_trunk=true: it stands between the trunk and both heads")
        self.trunk, n_features = self._new_trunk()
        self.value_trunk = None if shared_trunk else self._new_trunk()[0]
        self.lstm = None if lstm_size is None else nn.LSTMCell(n_features, lstm_size)
        self.state_size = 2 * (lstm_size or 0)  # S
        n_features = lstm_size or n_features
        self.policy_head = nn.Linear(n_features, n_actions)
        self.value_head = nn.Linear(n_features, n_actions if self.values_actions else 1)
        self._finish({self.policy_head: 0.01, self.value_head: 1.0})

    def initial_state(self, n_envs: int) -> Tensor:
        """What the network remembers at the start of B games: zeros [B, S]."""
        return self.policy_head.weight.new_zeros((n_envs, self.state_size))

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of B environments.

        Args:
            observations: [B, ...]; uint8 frames are scaled to [0, 1] here.
            state: [B, S], before the step.

        Returns:
            log-probabilities [B, A], values [B] and the state [B, S] after the step.
        """
        features, value_features = self._features(observations)
        if self.lstm is not None:
            state = self._remember(features, state)
            features = value_features = state[:, : self.state_size // 2]
        return *self._heads(features, value_features), state

    def policy(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, without the values: log-probabilities [B, A] and the state [B, S] after the step."""
        features = self._hidden(self.trunk, self.scaled(observations))
        if self.lstm is not None:
            state = self._remember(features, state)
            features = state[:, : self.state_size // 2]
        return F.log_softmax(_through(self.policy_head, features), dim=-1), state

    def unroll(self, observations: Tensor, state: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """T steps of B environments; the same as T calls of `forward`, with the trunk in one batch.

        Args:
            observations: [T, B, ...].
            state: [B, S], before the first step.
            ends: [T, B] bool; where True, the state is forgotten after that step. Only an LSTM reads it.

        Returns:
            log-probabilities [T, B, A] and values [T, B].
        """
        log_probs, values = self._heads(*self._unrolled(observations, state, ends))
        return log_probs.view(*observations.shape[:2], -1), values.view(observations.shape[:2])

    def _unrolled(self, observations: Tensor, state: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:  # [T B, F] each
        n_steps, n_envs = observations.shape[:2]
        features, value_features = self._features(observations.flatten(0, 1))
        if self.lstm is not None:
            hidden = []
            for step_features, step_ends in zip(features.view(n_steps, n_envs, -1), ends, strict=True):
                state = self._remember(step_features, state)
                hidden.append(state[:, : self.state_size // 2])
                state = state.masked_fill(step_ends.unsqueeze(-1), 0.0)
            features = value_features = torch.cat(hidden)
        return features, value_features

    def _features(self, observations: Tensor) -> tuple[Tensor, Tensor]:  # of the policy and of the value
        inputs = self.scaled(observations)
        features = self._hidden(self.trunk, inputs)
        return features, features if self.value_trunk is None else self._hidden(self.value_trunk, inputs)

    def _remember(self, features: Tensor, state: Tensor) -> Tensor:
        assert self.lstm is not None
        h, c = state.chunk(2, dim=-1)
        return torch.cat(self.lstm(features, (h, c)), dim=-1)

    def _heads(self, features: Tensor, value_features: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = F.log_softmax(_through(self.policy_head, features), dim=-1)
        return log_probs, _through(self.value_head, value_features).squeeze(-1)


class QNetwork(_Network):
    """Q(s, .) for a batch of observations (Mnih et al. 2015), as one head or dueling (Wang et al. 2016).

    The dueling network has two streams above the layers before its last hidden one, each with such a hidden layer of
    its own: V and A, of which Q = V + A - mean A (equation 9). What the two send back into the shared layers is
    multiplied by 1 / sqrt 2 (section 4.2).

    Args:
        observation_shape: of one observation.
        n_actions: A.
        kind: of the trunk.
        dueling: two streams.
        layers: and `kind`: see `_Network`. The last layers have gain 1.

    Raises:
        ValueError: as there; or a dueling mlp without a hidden layer.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        n_actions: int,
        kind: str = "mlp",
        *,
        dueling: bool = False,
        **layers: Unpack[Layers],
    ) -> None:
        super().__init__(observation_shape, kind, **layers)
        whole, n_features = self._new_trunk()
        parts = list(whole)  # a slice of `whole` would keep its numbers, which are names in checkpoints
        n_last = self._n_last
        if dueling and len(parts) <= n_last:
            raise ValueError("a dueling network needs a hidden layer: say network.hidden_sizes=[64]")
        self.trunk = nn.Sequential(*(parts[:-n_last] if dueling else parts))
        self.head = nn.Linear(n_features, n_actions)  # of Q, or of A
        self.advantage_stream: nn.Module | None = None
        if dueling:
            self.advantage_stream = nn.Sequential(*parts[-n_last:])
            self.value_stream = nn.Sequential(*list(self._new_trunk()[0])[-n_last:])
            self.value_head = nn.Linear(n_features, 1)
        heads = (self.head, self.value_head) if dueling else (self.head,)
        self._finish(dict.fromkeys(heads, 1.0))

    def forward(self, observations: Tensor) -> Tensor:
        """Q [B, A] of observations [B, ...]; uint8 frames are scaled to [0, 1] here."""
        features = self._hidden(self.trunk, self.scaled(observations))
        if self.advantage_stream is None:
            return _through(self.head, features)
        if features.requires_grad:
            features.register_hook(_halve_power)  # type: ignore[no-untyped-call]
        with self._precision(features):
            advantage_features = self.advantage_stream(features).float()
            value_features = self.value_stream(features).float()
        advantages = self.head(advantage_features)
        return self.value_head(value_features) + advantages - advantages.mean(-1, keepdim=True)


class EpsilonGreedy(nn.Module):
    """The policy of a Q-network: with probability epsilon any action, else the best. Plays like an `ActorCritic`.

    Args:
        network: gives Q.
        epsilon: 0 to 1; a tensor, a scalar on the network's device, may be changed in place from outside.
    """

    def __init__(self, network: QNetwork, epsilon: float | Tensor) -> None:
        super().__init__()
        self.network = network
        self.epsilon = epsilon

    def initial_state(self, n_envs: int) -> Tensor:
        """It remembers nothing: [B, 0]."""
        return self.network.head.weight.new_zeros((n_envs, 0))

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [B, A], values max Q [B], and the state."""
        q = self.network(observations)
        return self.log_probs(q), q.amax(-1), state

    def log_probs(self, q: Tensor) -> Tensor:
        """Log-probabilities [B, A] of the policy, from Q [B, A]."""
        share = self.epsilon / q.shape[-1]
        is_best = torch.zeros_like(q, dtype=torch.bool).scatter_(-1, q.argmax(-1, keepdim=True), True)
        return torch.where(is_best, 1.0 - self.epsilon + share, share).log()


def _halve_power(gradient: Tensor) -> Tensor:
    return gradient * math.sqrt(0.5)


def _through(layer: nn.Module, inputs: Tensor) -> Tensor:
    """As `layer(inputs)`; but what torch does around a plain layer's forward takes as long as a small one itself."""
    is_watched = layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks
    if is_watched or layer._compiled_call_impl is not None:
        return layer(inputs)
    if type(layer) is nn.Sequential:
        for part in layer:
            inputs = _through(part, inputs)
        return inputs
    return layer.forward(inputs) if type(layer) in _PLAIN else layer(inputs)


def sample_actions(log_probs: Tensor, generator: torch.Generator, part: int = 0, n_parts: int = 1) -> Tensor:
    """One action per row of log-probabilities [N, A], as int64 [N], by the Gumbel-max trick.

    Of a batch in n_parts of N rows each, a part gets the draws that it would get if all were asked at once.
    """
    shape = n_parts * len(log_probs), log_probs.shape[1]
    noise = log_probs.new_empty(shape).exponential_(generator=generator).chunk(n_parts)[part]
    return (log_probs - noise.log_()).argmax(-1)


def _trunk(
    kind: str,
    observation_shape: Sequence[int],
    hidden_sizes: Sequence[int],
    activation: str,
    own_trunk: Callable[[], nn.Sequential] | None,
    layer_norm: str | None,
) -> tuple[nn.Sequential, int]:
    """The layers below the heads, and how many features they give; a hidden layer and its activation come last."""
    if layer_norm is not None:
        if own_trunk is not None:
            raise ValueError(f"network.layer_norm={layer_norm} is for networks of a3c_bench, and {kind!r} is none")
        layers, n_features = _trunk(kind, observation_shape, hidden_sizes, activation, None, None)
        return with_layer_norm(layers, observation_shape, layer_norm), n_features
    if own_trunk is not None:
        layers = own_trunk()
        return layers, _n_features(layers, observation_shape)
    if kind in _SMALLEST_SIDES:
        _check_image(kind, observation_shape)
        return _image_trunk(kind, observation_shape)
    return _mlp_trunk(math.prod(observation_shape), hidden_sizes, activation)


def kinds_that_read(observation_shape: Sequence[int]) -> list[str]:
    """The image kinds that fit observations [C, H, W], or (small) boards [H, W]; none if these are neither."""
    sides = observation_shape[-2:]
    n_dimensions = {IMAGE_KINDS[0]: (3,), IMAGE_KINDS[1]: (3,), SMALL: (2, 3)}
    return [
        kind
        for kind, smallest in _SMALLEST_SIDES.items()
        if len(observation_shape) in n_dimensions[kind]
        and min(sides) >= smallest
        and max(sides) <= _LARGEST_SIDES.get(kind, math.inf)
    ]


def _check_image(kind: str, observation_shape: Sequence[int]) -> None:
    fitting = kinds_that_read(observation_shape)
    if kind in fitting:
        return
    if not set(fitting) & {*IMAGE_KINDS}:  # the mlp reads all but large frames
        fitting.append("mlp")
    remedy = f"say network={' or network='.join(fitting)}"
    if len(observation_shape) not in ((2, 3) if kind == SMALL else (3,)):
        shape, takes = tuple(observation_shape), "images [C, H, W]" + (" or boards [H, W]" if kind == SMALL else "")
        raise ValueError(f"network {kind!r} needs {takes}, not observations of shape {shape}: {remedy}")
    height, width = observation_shape[-2:]
    wrong = "large" if min(height, width) >= _SMALLEST_SIDES[kind] else "small"
    raise ValueError(f"frames of {height}x{width} are too {wrong} for {kind!r}: {remedy}")


def _image_trunk(kind: str, observation_shape: Sequence[int]) -> tuple[nn.Sequential, int]:
    channels = observation_shape[0]
    layers: list[nn.Module]
    if kind == SMALL:
        n_features, board = 128, len(observation_shape) == 2
        layers = [nn.Unflatten(1, (1, observation_shape[0]))] if board else []
        layers += [nn.Conv2d(1 if board else channels, 16, 3, stride=1), nn.ReLU()]
    elif kind == "nips":
        n_features = 256
        layers = [nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
    else:
        n_features = 512
        layers = [nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, stride=1), nn.ReLU()]
    n_flat = _n_features(nn.Sequential(*layers), observation_shape)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_flat, n_features), nn.ReLU()), n_features


def _n_features(layers: nn.Module, observation_shape: Sequence[int]) -> int:
    """How many numbers layers make of one observation."""
    with torch.no_grad():
        return int(layers(torch.zeros(1, *observation_shape)).numel())


def _mlp_trunk(n_inputs: int, hidden_sizes: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = [nn.Flatten()]
    n_last = n_inputs
    for size in hidden_sizes:
        layers += [nn.Linear(n_last, size), nn.Tanh() if activation == "tanh" else nn.ReLU()]
        n_last = size
    return nn.Sequential(*layers), n_last
