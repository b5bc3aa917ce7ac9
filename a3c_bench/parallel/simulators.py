"""Gymnasium's environments in processes of their own, side by side: a `Simulation`.

    this process                             simulator k, which has the environments k, k + P, k + 2 P, ...
        send(actions, env_ids)   -- pipe -->     steps them one after the other
        receive() -> the first B <-- pipe --     rewards and ends; what is seen lies in shared memory

A simulator ends with this process, however that ends; one that dies, raises or goes silent ends the run in one
sentence.
"""

import multiprocessing
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.gymnasium import Answer, Game, arrival
from a3c_bench.envs.simulation import Arrival
from a3c_bench.envs.spec import EnvSpec
from a3c_bench.errors import ConfigError, WorkerError
from a3c_bench.parallel.arrays import SharedArrays
from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.parallel.workers import how_it_died, leave_stops_to_the_parent
from a3c_bench.runtime.machine import allow_many_files

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_GET_READY = 120.0  # an environment may load much
_SECONDS_TO_LEAVE = 2.0

Work = list[tuple[int, int | None]]  # environment, and its action; None: a reset


class Simulators:
    """P processes.

    Args:
        spec: of the task.
        seeds: of each environment's first reset.
        n_processes: P at most; no more than there are environments.
        batch_size: B, so many that `receive` gives.
        silence_seconds: a simulator that has work and says nothing for so long ends the run.

    Raises:
        WorkerError: here and later, of a simulator that raised, died or went silent.
    """

    def __init__(
        self, spec: EnvSpec, seeds: Sequence[int], n_processes: int, batch_size: int, silence_seconds: float
    ) -> None:
        n_envs = len(seeds)
        self._batch_size = None if batch_size == n_envs else batch_size  # None: all that were sent
        self._silence_seconds = silence_seconds
        self._memory = SharedArrays()
        self._seen = self._memory("seen", (n_envs, *spec.shown.shape), spec.shown.dtype)
        self._order: list[int] = []  # in lock step: of the environments that were sent
        self._arrived: deque[tuple[int, Answer]] = deque()
        self._simulators: list[_Simulator] = []
        self._closed = False
        n_processes, each = min(n_processes, n_envs), self._batch_size is not None
        allow_many_files()
        try:
            start_fork_server()
            for index in range(n_processes):
                own = {env_id: seeds[env_id] for env_id in range(index, n_envs, n_processes)}
                self._simulators.append(_Simulator(index, spec, own, n_envs, self._memory, each))
            while not all(simulator.ready for simulator in self._simulators):
                self._gather(max(_SECONDS_TO_GET_READY, silence_seconds))
        except BaseException:
            self.close()
            raise

    def reset(self, env_ids: NDArray[np.int32]) -> None:
        """Begins new games."""
        self._send([(env_id, None) for env_id in env_ids.tolist()])

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B]."""
        self._send(list(zip(env_ids.tolist(), actions.tolist(), strict=True)))

    def receive(self) -> Arrival:
        """Waits for the first B to have finished."""
        n = self._batch_size or len(self._order)
        while len(self._arrived) < n:
            self._gather(self._silence_seconds)
        done = [self._arrived.popleft() for _ in range(n)]
        if self._batch_size is None:
            outcomes = dict(done)
            done, self._order = [(env_id, outcomes[env_id]) for env_id in self._order], []
        env_ids = [env_id for env_id, _ in done]
        return arrival(env_ids, self._seen[env_ids], [outcome for _, outcome in done])

    def picture(self) -> NDArray[np.uint8]:
        """Nothing: who wants pictures simulates in place."""
        raise ConfigError("env.simulate=processes gives no pictures.")

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        for simulator in self._simulators:
            simulator.pipe.close()  # which tells them
        for simulator in self._simulators:
            simulator.end()
        self._simulators = []
        self._memory.close()

    def _send(self, work: Work) -> None:
        if self._batch_size is None:
            self._order += [env_id for env_id, _ in work]
        n = len(self._simulators)
        for simulator in self._simulators:
            own = [item for item in work if item[0] % n == simulator.index]
            if own:
                simulator.send(own)

    def _gather(self, patience: float) -> None:
        """Takes what has come, or comes within a moment."""
        if self._closed:
            raise RuntimeError("the environments were closed")
        now = time.monotonic()
        ready = wait([simulator.pipe for simulator in self._simulators], _SECONDS_BETWEEN_LOOKS)
        passed = min(time.monotonic() - now, 2.0 * _SECONDS_BETWEEN_LOOKS)  # if this process slept, they may have too
        for simulator in self._simulators:
            if simulator.pipe in ready:
                self._arrived.extend(simulator.read())
            elif simulator.n_owed or not simulator.ready:
                simulator.silent_seconds += passed
                if simulator.silent_seconds > patience:
                    raise WorkerError(
                        f"Simulator {simulator.index} said nothing for {patience:g} seconds: an environment hangs, or "
                        "takes longer than worker_silence_seconds."
                    )


class _Simulator:
    """What this process knows of one."""

    def __init__(
        self, index: int, spec: EnvSpec, seeds: Mapping[int, int], n_envs: int, memory: SharedArrays, each: bool
    ) -> None:
        self.index = index
        self.ready = False
        self.n_owed = 0  # environments that it has still to answer for
        self.silent_seconds = 0.0
        self._sending = threading.Lock()
        context = multiprocessing.get_context("forkserver")
        self.pipe, end = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_simulate,
            args=(end, spec, seeds, n_envs, memory, each),
            name=f"a3c_bench simulator {index}",
            daemon=True,
        )
        self._process.start()
        end.close()  # so that the pipe ends with the process

    def send(self, work: Work) -> None:
        """Any thread may."""
        with self._sending:
            self.n_owed += len(work)
            self.silent_seconds = 0.0
            try:
                self.pipe.send(work)
            except OSError:
                raise self._died() from None

    def read(self) -> list[tuple[int, Answer]]:
        """What it says; one thread at a time."""
        self.silent_seconds = 0.0
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "raised":
            raise WorkerError(f"Simulator {self.index} raised {content.strip().splitlines()[-1]}\n{content}")
        if kind == "ready":
            self.ready = True
            return []
        with self._sending:
            self.n_owed -= len(content)
        return [(env_id, Answer(*outcome)) for env_id, outcome in content]

    def end(self) -> None:
        """Waits until it has gone, or kills it."""
        self._process.join(_SECONDS_TO_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _died(self) -> WorkerError:
        return WorkerError(f"Simulator {self.index} {how_it_died(self._process)}.")


def _simulate(
    pipe: Connection, spec: EnvSpec, seeds: Mapping[int, int], n_envs: int, memory: SharedArrays, each: bool
) -> None:
    """The life of a simulator; it answers after each environment, or when all of a message have stepped."""
    leave_stops_to_the_parent()
    try:
        places = memory("seen", (n_envs, *spec.shown.shape), spec.shown.dtype)
        games = {env_id: Game(spec, seed) for env_id, seed in seeds.items()}
        pipe.send(("ready", None))
        while True:
            work: Work = pipe.recv()
            answers: list[tuple[int, Any]] = []
            for env_id, action in work:
                game, place = games[env_id], places[env_id, ...]
                outcome = game.reset(place) if action is None else game.step(action, place)
                answers.append((env_id, tuple(outcome)))
                if each:
                    pipe.send(("done", answers))
                    answers = []
            if answers:
                pipe.send(("done", answers))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the run is over
        os._exit(0)
    except BaseException:
        try:
            pipe.send(("raised", traceback.format_exc()))
        except OSError:
            os._exit(1)
