"""What this machine could do at most: the parts of an actor-critic step, each measured alone.

    python -m a3c_bench.calibrate                          # the default run's environment and network
    python -m a3c_bench.calibrate experiment=pong          # takes the same words as a3c_bench.run

The serial bound is what a run would reach if it did nothing but simulate, predict and train, one after the other:

    1 / (1 / simulation + 1 / forward + 1 / forward_backward)   agent steps per second

For processes that work side by side (A3C) one is measured, alone on one core, and the bound is as many times more as
there are processes, or cores for them.
"""

import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from a3c_bench import build
from a3c_bench.algos import find_algorithm
from a3c_bench.core.losses import actor_critic_loss
from a3c_bench.core.optim import FlatParameters
from a3c_bench.runtime.machine import resolve_device, usable_cores, use_cores
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import Config

log = logging.getLogger(__name__)


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

    Simulation is stepped with random actions; forward is without gradient; forward + backward holds the loss but no
    optimiser step. Repeats of the three are interleaved, so that a machine which drifts slows all of them.

    Args:
        config: of the run; its algorithm says in which batches it works.
        repeats: of each part.
        seconds_per_repeat: of each repeat, about.
    """
    device = resolve_device(config.device)
    workload = find_algorithm(config.algo.name).workload(config)
    n_envs, t_max, alone = workload.acting_batch, workload.t_max, workload.n_processes is None
    use_cores(build.torch_threads(config) if alone else 1)
    seed = sequence(config.seed, Stream.CALIBRATION)
    envs = build.make_envs(config, n_envs, seed, n_threads=None if alone else 1)
    network = build.make_network(config, envs, device)
    parameters = FlatParameters(network)
    rng = np.random.default_rng(0)
    n_actions = envs.n_actions
    observations = torch.from_numpy(envs.reset()).to(device)
    batch = observations.repeat(t_max, *([1] * observations.dim()))
    state = network.initial_state(n_envs)
    actions = torch.randint(n_actions, (t_max, n_envs), device=device)
    ones = torch.ones((t_max, n_envs), device=device)

    def simulate() -> None:
        envs.step(rng.integers(n_actions, size=n_envs))

    def forward() -> None:
        with torch.no_grad():
            network(observations, state)[0].argmax(-1).cpu()

    def forward_backward() -> None:
        log_probs, values = network.unroll(batch, state, ~ones.bool())
        loss = actor_critic_loss(
            log_probs,
            values,
            actions,
            ones,
            ones,
            ones.bool(),
            entropy_weight=0.01,
            value_weight=0.25,
            reduction="mean",
        )
        parameters.zero_gradients()
        loss.total.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        parts = [(simulate, n_envs), (forward, n_envs), (forward_backward, n_envs * t_max)]
        speeds: list[list[float]] = [[], [], []]
        for repeat in range(repeats + 1):
            for kept, (call, n_steps) in zip(speeds, parts, strict=True):
                speed = n_steps * _calls_per_second(call, seconds_per_repeat if repeat else 0.2)
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
        training_batch=n_envs * t_max,
        processes=workload.n_processes or 1,
        repeats=repeats,
        cores=cores,
        device=str(device),
    )


def _calls_per_second(call: Callable[[], None], seconds: float) -> float:
    start = time.perf_counter()
    n_calls = 0
    while (elapsed := time.perf_counter() - start) < seconds or n_calls == 0:
        call()
        n_calls += 1
    return n_calls / elapsed


def main() -> int:
    """The command line: overrides as for a3c_bench.run; gives the exit status."""
    from a3c_bench.config import compose
    from a3c_bench.errors import UserError

    try:
        config = compose(sys.argv[1:])
        calibration = calibrate(config)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(f"{config.env.game or config.env.id}, network {config.network.kind}, device {calibration.device}, "
          f"{calibration.cores} cores; medians of {calibration.repeats}")  # fmt: skip
    for key, value in asdict(calibration).items():
        if key.endswith("per_second"):
            print(f"{key:45s}{value:12,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
