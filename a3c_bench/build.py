"""From configuration to objects: environments, network, optimiser, estimator; in any process that has the config."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from a3c_bench.core import advantages
from a3c_bench.core.networks import IMAGE_KINDS, ActorCritic
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.envs import VectorEnv
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.machine import usable_cores
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import Config, OptimizerConfig


def make_envs(config: Config, n_envs: int, seed: np.random.SeedSequence, render: bool = False) -> VectorEnv:
    """Environments of the run's task on the threads it may use."""
    return VectorEnv(config.env, n_envs, seed, config.env.n_threads or usable_cores(), render)


def make_network(config: Config, envs: VectorEnv, device: torch.device) -> ActorCritic:
    """The network for these environments, initialised from the run's seed.

    Raises:
        ConfigError: the network does not fit what the environments show.
    """
    torch.manual_seed(int(sequence(config.seed, Stream.NETWORK).generate_state(1)[0]))
    options = config.network
    if options.kind == "mlp" and len(envs.observation_shape) == 3:
        raise ConfigError(
            f"network=mlp cannot read the {'x'.join(map(str, envs.observation_shape))} frames of this environment: "
            f"say network={' or network='.join(IMAGE_KINDS)}."
        )
    try:
        network = ActorCritic(
            envs.observation_shape,
            envs.n_actions,
            options.kind,
            options.hidden_sizes,
            options.activation,
            options.initialisation,
            options.shared_trunk,
            options.channels_last,
            options.lstm_size,
        )
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    return network.to(device)


def make_optimizer(options: OptimizerConfig, parameters: FlatParameters) -> torch.optim.Optimizer:
    """The optimiser over the flat parameters; whoever steps it clips and sets the learning rate."""
    if options.kind == "adam":
        return torch.optim.Adam(
            [parameters.values], lr=options.lr, betas=(options.beta1, options.beta2), eps=options.epsilon
        )
    return RMSProp(
        [parameters.values],
        lr=options.lr,
        decay=options.decay,
        epsilon=options.epsilon,
        epsilon_inside_root=options.epsilon_inside_root,
        initial_square=options.initial_square,
        centered=options.centered,
    )


def make_estimator(config: Config, gamma: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], advantages.Estimate]:
    """The advantage estimator psi of the run."""
    return advantages.estimator(config.advantage.kind, gamma, config.advantage.gae_lambda)
