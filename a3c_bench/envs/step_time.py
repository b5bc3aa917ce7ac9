"""Environments that take longer than they do: a time from a distribution is added to every agent step.

Real environments (physics, games over a network, robots) do not all take the same time, and synchronous algorithms wait
for the slowest. Here each environment is a machine of its own, whatever env.n_threads is: the times of several pass
side by side, and then the environment is simulated as ever.

    lock step       a step takes as long as the slowest of the environments that take one
    asynchronous    an environment can be received when its own time has passed; others are received meanwhile

The time is slept and not worked, in one thread, so that it costs no core. It belongs to agent steps: a reset, and the
phantom step that it is, takes none. What is simulated does not depend on it: a run in lock step computes the same
numbers.
"""

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.simulation import Arrival, Simulate, Simulation
from a3c_bench.envs.spec import EnvSpec
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, StepTimeConfig

Draw = Callable[[], float]  # the seconds of the next step


def check_step_time(config: EnvConfig) -> None:
    """Raises ConfigError for a time without its distribution, or the other way round."""
    options = config.step_time
    kind, mean, deviation = options.distribution, options.mean_seconds, options.deviation_seconds
    if kind == "none":
        for key, value in (("mean_seconds", mean), ("deviation_seconds", deviation)):
            if value is not None:
                raise ConfigError(
                    f"env.step_time.{key}={value} has no effect without a distribution: say "
                    "env.step_time.distribution=constant, exponential or lognormal with it."
                )
        return
    if mean is None:
        raise ConfigError(f"env.step_time.distribution={kind} needs a mean: say env.step_time.mean_seconds=0.005, say.")
    if kind == "lognormal" and deviation is None:
        raise ConfigError(
            "env.step_time.distribution=lognormal needs a standard deviation: say env.step_time.deviation_seconds="
            f"{3 * mean:g}, say."
        )
    if kind != "lognormal" and deviation is not None:
        fixed = "0" if kind == "constant" else "its mean"
        raise ConfigError(
            f"env.step_time.deviation_seconds={deviation} is for distribution=lognormal: that of {kind} is {fixed}."
        )


def make_draw(options: StepTimeConfig, seed: np.random.SeedSequence) -> Draw:
    """What draws the times of one environment, in seconds, from its own stream."""
    mean, generator = options.mean_seconds, np.random.default_rng(seed)
    assert mean is not None  # see check_step_time
    if options.distribution == "constant":
        return lambda: mean
    if options.distribution == "exponential":
        return lambda: float(generator.exponential(mean))
    assert options.deviation_seconds is not None
    variance = np.log1p((options.deviation_seconds / mean) ** 2)  # of the logarithm
    return lambda: float(generator.lognormal(np.log(mean) - variance / 2, np.sqrt(variance)))


def slowed(simulate: Simulate, options: StepTimeConfig, seed: np.random.SeedSequence, first: int = 0) -> Simulate:
    """The same environments, with time added to their steps; environment i draws from child `first` + i of the seed."""

    def simulation(spec: EnvSpec, seeds: Sequence[int], n_threads: int, render: bool, batch_size: int) -> Slow:
        draws = [make_draw(options, child) for child in seed.spawn(first + len(seeds))[first:]]
        return Slow(simulate(spec, seeds, n_threads, render, batch_size), draws, batch_size == len(seeds))

    return simulation


class _Held(NamedTuple):
    """Actions that are passed on when their time has passed."""

    due: float  # on the monotonic clock, seconds
    number: int  # of several that are due at once, the first that was given goes first
    actions: NDArray[np.integer]
    env_ids: NDArray[np.int32]


class Slow:
    """Holds actions back for as long as their step is to take longer: a `Simulation`.

    Args:
        simulation: what simulates.
        draws: the times of each environment.
        lock_step: all that are sent are received together.
    """

    def __init__(self, simulation: Simulation, draws: Sequence[Draw], lock_step: bool) -> None:
        self._simulation = simulation
        self._draws = draws
        self._lock_step = lock_step
        self._ended = np.zeros(len(draws), dtype=np.bool_)  # the next action resets it
        self._held: list[_Held] = []  # a heap
        self._n_given = 0
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._pass_on, name="a3c_bench step time", daemon=True)
        self._thread.start()

    def reset(self, env_ids: NDArray[np.int32]) -> None:
        """Begins new games, at once."""
        self._ended[env_ids] = False
        self._simulation.reset(env_ids)

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B]; does not wait."""
        seconds = [0.0 if self._ended[env_id] else self._draws[env_id]() for env_id in env_ids]
        now = time.monotonic()
        if self._lock_step:
            held = [(now + max(seconds), actions, env_ids)]
        else:
            held = [(now + s, actions[i : i + 1], env_ids[i : i + 1]) for i, s in enumerate(seconds)]
        with self._changed:
            self._say_what_went_wrong()
            for due, some_actions, some_ids in held:
                heapq.heappush(self._held, _Held(due, self._n_given, some_actions, some_ids))
                self._n_given += 1
            self._changed.notify_all()

    def receive(self) -> Arrival:
        """Waits for the first B to have taken their time and finished."""
        if self._lock_step:
            with self._changed:
                self._changed.wait_for(lambda: not self._held or self._closed or self._error is not None)
                self._say_what_went_wrong()
        arrival = self._simulation.receive()
        self._ended[arrival.env_ids] = arrival.terminated | arrival.truncated
        return arrival

    def picture(self) -> NDArray[np.uint8]:
        """Environment 0."""
        return self._simulation.picture()

    def close(self) -> None:
        """Ends the thread, and the simulation."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._simulation.close()

    def _pass_on(self) -> None:
        """The life of the thread."""
        with self._changed:
            while not self._closed and self._error is None:
                now = time.monotonic()
                if not self._held or self._held[0].due > now:
                    self._changed.wait(self._held[0].due - now if self._held else None)
                    continue
                due = [heapq.heappop(self._held)]
                while self._held and self._held[0].due <= now:
                    due.append(heapq.heappop(self._held))
                try:
                    self._simulation.send(
                        np.concatenate([held.actions for held in due]), np.concatenate([held.env_ids for held in due])
                    )
                except BaseException as error:  # told to whoever sends or receives next
                    self._error = error
                self._changed.notify_all()

    def _say_what_went_wrong(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise RuntimeError("the environments were closed")
