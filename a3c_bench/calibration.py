"""The parts of an agent step, each measured alone, and the serial bound that they make (command: a3c_bench.calibrate).

The serial bound is what a run would reach if it did nothing but simulate, predict and train, one after the other:

    1 / (1 / simulation + 1 / forward + 1 / forward_backward)   agent steps per second

Where a rollout is learnt from in several passes (PPO), forward_backward is that of a minibatch, and an agent step is in
as many of them as there are passes.

For Q-learning forward_backward is an update from the replay, with its target network's forward, at so many agent steps
per second as it stands for: four per update in DQN. Drawing and storing are not part of it. PGQL is
measured as an actor-critic: its updates from the replay come on top.

For processes that work side by side (A3C) one is measured, alone on one core, and the bound is as many times more as
there are processes, or cores for them.

Simulation is measured with env.step_time: a step of the acting batch waits for its slowest environment.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import find_algorithm
from a3c_bench.core.compiled import Compute
from a3c_bench.core.learning import QLearner
from a3c_bench.core.losses import actor_critic_loss
from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.plain import plain_forward, plain_q
from a3c_bench.core.q_learning import of_actions, q_loss
from a3c_bench.core.replay import Sample
from a3c_bench.runtime.machine import resolve_device, usable_cores, use_cores
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import Config

Work = Callable[[], None]


@dataclass(frozen=True)
class Calibration:
    """Medians over the repeats, all in agent steps per second, with the batch sizes they belong to."""

    simulation_agent_steps_per_second: float
    forward_agent_steps_per_second: float
    forward_backward_agent_steps_per_second: float
    serial_bound_agent_steps_per_second: float
    acting_batch: int
    training_batch: int
    processes: int
    repeats: int
    cores: int
    device: str


def calibrate(config: Config, repeats: int = 7, seconds_per_repeat: float = 0.7) -> Calibration:
    """Measures raw simulation, forward at the acting batch and forward + backward at the training batch, in turn.

    The latter two run as config.compute says. Simulation is stepped with random actions; forward is without gradient;
    forward + backward holds the loss but no optimiser step. Repeats of the three are interleaved, so that a machine
    which drifts slows all of them.

    Args:
        config: of the run; its algorithm says in which batches it works.
        repeats: of each part.
        seconds_per_repeat: of each repeat, about.
    """
    device = resolve_device(config.device)
    algorithm = find_algorithm(config.algo.name)
    workload = algorithm.workload(config)
    n_envs, t_max, alone = workload.acting_batch, workload.t_max, workload.n_processes is None
    use_cores(build.torch_threads(config) if alone else 1)
    seed = sequence(config.seed, Stream.CALIBRATION)
    envs = build.make_envs(config, n_envs, seed, n_threads=None if alone else 1)
    network = algorithm.make_network(config, envs, device)
    parameters = FlatParameters(network)
    rng = np.random.default_rng(0)
    n_actions = envs.n_actions
    observations = torch.from_numpy(envs.reset()).to(device)
    compute = build.make_compute(config)
    act = _acting(network, observations, compute)
    if workload.replayed_batch is None:
        training_batch = n_envs * t_max // workload.n_minibatches
        n_steps = training_batch / workload.n_epochs
        whole = n_envs % workload.n_minibatches == 0  # as with an LSTM; without, the shape does not matter
        shape = (t_max, n_envs // workload.n_minibatches) if whole else (1, training_batch)
        if isinstance(network, QNetwork):
            differentiate = _q_rollout_training(network, observations, training_batch, compute)
        else:
            differentiate = _actor_critic_training(network, observations, shape, n_actions, compute)
    else:
        training_batch, n_steps = workload.replayed_batch, float(workload.update_period_agent_steps)
        target_network = algorithm.make_network(config, envs, device)
        options: dict[str, Any] = {"double": workload.double, "td_error_clip": 1.0, "reduction": "sum"}
        learner = QLearner(network, target_network, parameters, **options, compute=compute)
        differentiate = _q_training(learner, observations, training_batch)

    def simulate() -> None:
        envs.step(rng.integers(n_actions, size=n_envs))

    def forward() -> None:
        with torch.no_grad():
            act().argmax(-1).cpu()

    def forward_backward() -> None:
        parameters.zero_gradients()
        differentiate()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        parts = [(simulate, n_envs), (forward, n_envs), (forward_backward, n_steps)]
        speeds: list[list[float]] = [[], [], []]
        for repeat in range(repeats + 1):
            for kept, (call, n_agent_steps) in zip(speeds, parts, strict=True):
                speed = n_agent_steps * _calls_per_second(call, seconds_per_repeat if repeat else 0.2)
                if repeat:  # the first round warms up
                    kept.append(speed)
    finally:
        envs.close()
    simulation, forward_only, both = (statistics.median(kept) for kept in speeds)
    cores = usable_cores()
    n_at_once = min(workload.n_processes or 1, cores)
    bound = n_at_once / (1.0 / simulation + 1.0 / forward_only + 1.0 / both)
    return Calibration(
        *(simulation, forward_only, both, bound),
        acting_batch=n_envs,
        training_batch=training_batch,
        processes=workload.n_processes or 1,
        repeats=repeats,
        cores=cores,
        device=str(device),
    )


def _acting(network: ActorCritic | QNetwork, observations: Tensor, compute: Compute) -> Callable[[], Tensor]:
    fixed = compute.fixed(compute.traced(_forward(network, len(observations), compute)), observations.device)
    return lambda: fixed(observations)


def _forward(network: ActorCritic | QNetwork, n_envs: int, compute: Compute) -> Callable[[Tensor], Tensor]:
    """What a run asks when it acts (`acting.policy`)."""
    if isinstance(network, QNetwork):
        return (None if compute.fixes_shapes else plain_q(network)) or network.__call__
    plain = None if compute.fixes_shapes else plain_forward(network)
    state = network.initial_state(n_envs)
    if plain is not None:
        return lambda seen: plain(seen, state, True)[0]

    def forward(seen: Tensor) -> Tensor:
        log_probs: Tensor = network(seen, state)[0]
        return log_probs

    return forward


def _actor_critic_training(
    network: ActorCritic, observations: Tensor, shape: tuple[int, int], n_actions: int, compute: Compute
) -> Work:
    (t_max, n_envs), device = shape, observations.device
    batch = observations[torch.arange(n_envs) % len(observations)].repeat(t_max, *([1] * observations.dim()))
    state = network.initial_state(n_envs)
    actions = torch.randint(n_actions, (t_max, n_envs), device=device)
    ones = torch.ones((t_max, n_envs), device=device)

    def loss() -> Tensor:
        log_probs, values = network.unroll(batch, state, ~ones.bool())
        samples = (log_probs, values, actions, ones, ones, ones.bool())
        return actor_critic_loss(*samples, entropy_weight=0.01, value_weight=0.25, reduction="mean").total

    traced = compute.traced(loss)

    def work() -> None:
        traced().backward()  # type: ignore[no-untyped-call]

    return compute.fixed(work, device)


def _q_rollout_training(network: QNetwork, observations: Tensor, batch_size: int, compute: Compute) -> Work:
    """An update from a rollout, whose targets are known."""
    batch = observations[torch.arange(batch_size) % len(observations)]
    ones, actions = torch.ones(batch_size).to(batch.device), torch.zeros(batch_size).to(batch.device).long()

    def loss() -> Tensor:
        return q_loss(ones - of_actions(network(batch), actions), ones, None, "mean")

    traced = compute.traced(loss)

    def work() -> None:
        traced().backward()  # type: ignore[no-untyped-call]

    return compute.fixed(work, observations.device)


def _q_training(learner: QLearner, observations: Tensor, batch_size: int) -> Work:
    batch = observations[:1].repeat(batch_size, *([1] * (observations.dim() - 1)))
    ones, actions = observations.new_ones(batch_size).float(), torch.zeros(batch_size).to(observations.device).long()
    nothing: Any = None  # is asked of where the samples come from
    sample = Sample(batch, actions, ones, ones, batch, ones, nothing, nothing, nothing, nothing, nothing)

    def work() -> None:
        learner.differentiate(sample)

    return work


def _calls_per_second(call: Callable[[], None], seconds: float) -> float:
    start = time.perf_counter()
    n_calls = 0
    while (elapsed := time.perf_counter() - start) < seconds or n_calls == 0:
        call()
        n_calls += 1
    return n_calls / elapsed
