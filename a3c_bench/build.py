"""From configuration to objects: environments, network, optimiser, estimator; in any process that has the config."""

import multiprocessing
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from a3c_bench import plugins
from a3c_bench.core import advantages
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.learning import ActorCriticLearner, QLearner, QRolloutLearner
from a3c_bench.core.networks import IMAGE_KINDS, ActorCritic, Layers, QNetwork, kinds_that_read
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.q_actor_critic import QActorCritic
from a3c_bench.core.schedules import linear
from a3c_bench.envs import EnvSpec, VectorEnv
from a3c_bench.envs.backends import simulate
from a3c_bench.envs.simulation import Simulate
from a3c_bench.envs.spec import uses_gymnasium
from a3c_bench.envs.step_time import slowed
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.machine import resolve_device, usable_cores
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import (
    ADVANTAGE_KINDS,
    NETWORK_KINDS,
    Config,
    OptimizerConfig,
    check_actor_critic,
    check_q_network,
)

Shapes = EnvSpec | VectorEnv  # whatever tells observations and actions
Net = TypeVar("Net", ActorCritic, QNetwork)


def make_envs(
    config: Config,
    n_envs: int,
    seed: np.random.SeedSequence,
    render: bool = False,
    n_threads: int | None = None,
    batch_size: int | None = None,
    first: int = 0,
) -> VectorEnv:
    """Environments of the run's task, simulated on n_threads threads; by default on those that the run may use.

    Gymnasium's, with env.simulate=processes, in so many processes; one environment alone, one to be drawn and those of
    a worker in place. With env.step_time they take longer than they do. Of some that step apart from others, `first`
    tells which they are of all: environment i of a run plays the same games then, whoever steps beside it.
    """
    env, n_threads = config.env, n_threads or config.env.n_threads or usable_cores()
    in_processes = env.simulate == "processes" and uses_gymnasium(env) and n_envs > 1 and not render
    if multiprocessing.current_process().daemon:  # a worker may start no processes
        in_processes = False
    simulation = _in_processes(config) if in_processes else simulate
    if env.step_time.distribution != "none":
        key = (int(Stream.STEP_TIME), *seed.spawn_key)
        simulation = slowed(simulation, env.step_time, np.random.SeedSequence(seed.entropy, spawn_key=key), first)
    return VectorEnv(env, n_envs, seed, n_threads, render, batch_size, simulation, first)


def _in_processes(config: Config) -> Simulate:
    from a3c_bench.parallel.simulators import Simulators  # imports Gymnasium

    def simulation(spec: EnvSpec, seeds: Sequence[int], n_threads: int, render: bool, batch_size: int) -> Simulators:
        del render  # who draws simulates in place
        return Simulators(spec, seeds, n_threads, batch_size, config.worker_silence_seconds)

    return simulation


def torch_threads(config: Config) -> int:
    """Threads inside one torch operation: as configured, or the usable cores; an mlp is too small to be shared out."""
    return config.n_torch_threads or (1 if config.network.kind == "mlp" else usable_cores())


def make_network(config: Config, envs: Shapes, device: torch.device) -> ActorCritic:
    """The actor-critic for these environments, initialised from the run's seed; with a head of Q if its psi needs it.

    Raises:
        ConfigError: the network does not fit what the environments show, or not an actor-critic.
    """
    options = config.network
    check_actor_critic(config)
    more = {"shared_trunk": options.shared_trunk, "lstm_size": options.lstm_size}
    kind = QActorCritic if make_estimator(config, config.algo.gamma).values_actions else ActorCritic
    network = _make(kind, config, envs, device, **more)
    if options.compile:

        def work(observations: Tensor) -> Tensor:
            state = network.initial_state(len(observations))
            with torch.no_grad():
                network(observations, state)
            log_probs, values, _ = network(observations, state)
            return log_probs.sum() + values.sum()

        _compile(network, work, envs, device)
    return network


def make_q_network(config: Config, envs: Shapes, device: torch.device) -> QNetwork:
    """The Q-network for these environments, initialised from the run's seed.

    Raises:
        ConfigError: the network does not fit what the environments show, or not Q-values.
    """
    check_q_network(config)
    network = _make(QNetwork, config, envs, device, dueling=config.network.dueling)
    if config.network.compile:

        def work(observations: Tensor) -> Tensor:
            with torch.no_grad():
                network(observations)
            return network(observations).sum()

        _compile(network, work, envs, device)
    return network


def _make(kind: type[Net], config: Config, envs: Shapes, device: torch.device, **more: Any) -> Net:
    """A network from the configuration; `more` is what this one alone has."""
    options = config.network
    _prepare(config, envs)
    layers = Layers(
        hidden_sizes=options.hidden_sizes,
        activation=options.activation,
        initialisation=options.initialisation,
        channels_last=options.channels_last,
        bf16=options.bf16,
        input_mean=options.input_mean,
        input_std=options.input_std,
        own_trunk=_trunk_of_another_package(config, envs),
        layer_norm=options.layer_norm,
    )
    try:
        return kind(envs.observation_shape, envs.n_actions, options.kind, **more, **layers).to(device)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error


def _trunk_of_another_package(config: Config, envs: Shapes) -> Callable[[], nn.Sequential] | None:
    options = config.network
    if options.kind in NETWORK_KINDS:
        return None
    trunk = plugins.load(plugins.NETWORKS, options.kind)
    return lambda: trunk.make(options, envs.observation_shape)


def _prepare(config: Config, envs: Shapes) -> None:
    fitting = kinds_that_read(envs.observation_shape)
    if config.network.kind == "mlp" and set(fitting) & {*IMAGE_KINDS}:  # it does read boards and small pictures
        raise ConfigError(
            f"network=mlp cannot read the {'x'.join(map(str, envs.observation_shape))} frames of this environment: "
            f"say network={' or network='.join(fitting)}."
        )
    torch.manual_seed(int(sequence(config.seed, Stream.NETWORK).generate_state(1)[0]))


def _compile(
    network: ActorCritic | QNetwork, work: Callable[[Tensor], Tensor], envs: Shapes, device: torch.device
) -> None:
    """Compiles now what acting and learning will need: later it would look as if the run hung."""
    network.compile_trunk()
    frame = torch.from_numpy(np.zeros((1, *envs.observation_shape), dtype=envs.observation_dtype)).to(device)
    try:
        for n in (1, 2):  # one observation is a case of its own for the compiler, others are all the same
            work(frame.repeat(n, *(1 for _ in envs.observation_shape))).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(f"network.compile=true does not work on this machine: {_reason(error)}") from error
    network.zero_grad()


def make_compute(config: Config) -> Compute:
    """How the run's callables run.

    Raises:
        ConfigError: this machine cannot compile.
    """
    options = config.compute
    compute = Compute(options.compile, options.cuda_graphs)
    if options.compile:
        device = resolve_device(config.device)
        try:  # now: when the first callable is compiled, the run has begun
            compute.traced(_one_more)(torch.zeros(2, device=device))
        except RuntimeError as error:
            raise ConfigError(f"compute.compile=true does not work on this machine: {_reason(error)}") from error
    return compute


def _reason(error: RuntimeError) -> str:
    """What the compiler's error says: after "backend='inductor' raised:" comes why."""
    return " ".join(str(error).strip().splitlines()[:2])


def _one_more(x: Tensor) -> Tensor:
    return x + 1.0


def make_optimizer(
    options: OptimizerConfig, parameters: Tensor, compute: Compute = AS_WRITTEN
) -> torch.optim.Optimizer:
    """The optimiser over one vector of parameters; whoever steps it clips and sets the learning rate.

    Adam and AdaGrad are one fused operation each: there is nothing in them to compile.
    """
    lr, epsilon = options.lr, options.epsilon
    if options.kind != "rmsprop":
        import_module("torch._dynamo")  # else it is with the first step, for seconds in which a worker would be silent
    if options.kind == "adam":
        betas, capturable = (options.beta1, options.beta2), compute.cuda_graphs
        adam = torch.optim.Adam([parameters], lr, betas, epsilon, fused=True, capturable=capturable)
        vars(adam)["_warned_capturable_if_run_uncaptured"] = capturable  # its first steps are meant to be
        return adam
    if options.kind == "radam":  # Liu et al. 2020
        betas, capturable = (options.beta1, options.beta2), compute.cuda_graphs
        return torch.optim.RAdam([parameters], lr, betas, epsilon, foreach=False, capturable=capturable)
    if options.kind == "adagrad":
        fused = parameters.device.type == "cpu"  # PyTorch 2.6 has no other
        initial = options.initial_square
        return torch.optim.Adagrad([parameters], lr, eps=epsilon, initial_accumulator_value=initial, fused=fused)
    rmsprop = RMSProp(
        [parameters],
        lr=lr,
        decay=options.decay,
        epsilon=epsilon,
        epsilon_inside_root=options.epsilon_inside_root,
        initial_square=options.initial_square,
        centered=options.centered,
    )
    if compute.fixes_shapes:
        rmsprop.param_groups[0]["lr"] = torch.full((), lr, device=parameters.device)
    rmsprop.update = compute.traced(rmsprop.update)
    return rmsprop


def make_actor_critic_learner(
    config: Config,
    network: ActorCritic,
    parameters: FlatParameters,
    theta: Tensor | None = None,
    log_epsilon: float = 0.0,
    ratio_clip: float | None = None,
    compute: Compute = AS_WRITTEN,
) -> ActorCriticLearner:
    """What learns by the loss, the advantage and the optimiser of the run.

    Args:
        config: of the run.
        network: that the gradient is of.
        parameters: the network's.
        theta: [P], what is stepped, if the network has a copy of it.
        log_epsilon: of the loss.
        ratio_clip: likewise.
        compute: how its callables run.
    """
    options = config.algo
    stepped = parameters.values if theta is None else _with_gradient(theta, parameters)
    return ActorCriticLearner(
        network,
        parameters,
        make_optimizer(options.optimizer, stepped, compute),
        make_estimator(config, options.gamma),
        entropy_weight=options.entropy_weight,
        value_weight=options.value_weight,
        reduction=options.loss_reduction,
        log_epsilon=log_epsilon,
        ratio_clip=ratio_clip,
        max_grad_norm=options.optimizer.max_grad_norm,
        compute=compute,
    )


def _with_gradient(theta: Tensor, parameters: FlatParameters) -> nn.Parameter:
    """What a copy of it gets differentiated, as a parameter [P] that has the copy's gradient."""
    stepped = nn.Parameter(theta)
    stepped.grad = parameters.gradients
    return stepped


def make_q_learner(
    config: Config,
    network: QNetwork,
    target_network: QNetwork,
    parameters: FlatParameters,
    steps: bool = True,
    compute: Compute = AS_WRITTEN,
) -> QLearner:
    """What learns by the loss and the optimiser of the run; one that does not step only differentiates and clips."""
    options = config.algo
    return QLearner(
        network,
        target_network,
        parameters,
        make_optimizer(options.optimizer, parameters.values, compute) if steps else None,
        double=options.double,
        td_error_clip=options.td_error_clip,
        reduction=options.loss_reduction,
        max_grad_norm=options.optimizer.max_grad_norm,
        compute=compute,
    )


def make_q_rollout_learner(
    config: Config,
    network: QNetwork,
    target_network: QNetwork,
    parameters: FlatParameters,
    theta: Tensor,
    *,
    n_step: bool,
    double: bool,
) -> QRolloutLearner:
    """What learns Q from rollouts by the loss and the optimiser of the run; it steps theta [P], which is shared."""
    options = config.algo
    return QRolloutLearner(
        network,
        target_network,
        parameters,
        make_optimizer(options.optimizer, _with_gradient(theta, parameters)),
        gamma=options.gamma,
        n_step=n_step,
        double=double,
        td_error_clip=options.td_error_clip,
        reduction=options.loss_reduction,
        max_grad_norm=options.optimizer.max_grad_norm,
    )


def make_schedule(config: Config) -> Callable[[int], float]:
    """The learning rate at a global count of frames: constant, or annealed linearly to 0 over the frame budget."""
    options: OptimizerConfig = config.algo.optimizer
    lr = options.lr
    if options.lr_range is not None:
        low, high = np.log(options.lr_range)
        lr = float(np.exp(np.random.default_rng(sequence(config.seed, Stream.LEARNING_RATE)).uniform(low, high)))
    budget = config.budget.frames
    if not options.anneal or budget is None:
        return lambda frames: lr
    return lambda frames: linear(lr, 0.0, frames, budget)


def check_keeps_no_past(config: Config) -> None:
    """Raises ConfigError for an advantage of another package that asks for what was before a rollout, which is gone."""
    if make_estimator(config, config.algo.gamma).past_gamma is not None:
        raise ConfigError(
            f"advantage={config.advantage.kind} needs what an episode brought before a rollout, which "
            f"algo={config.algo.name} does not keep."
        )


def make_estimator(config: Config, gamma: float) -> advantages.Estimator:
    """The advantage estimator psi of the run."""
    options = config.advantage
    if options.kind not in ADVANTAGE_KINDS:
        made = plugins.load(plugins.ADVANTAGES, options.kind).make(options, gamma)
        return made if isinstance(made, advantages.Estimator) else advantages.Estimator(made)
    numbers = options.gae_lambda, options.rho_bar, options.c_bar, options.q_baseline
    return advantages.estimator(options.kind, gamma, *numbers)
