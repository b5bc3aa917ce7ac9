"""Training time over all attempts: stopped during evaluation, saved in checkpoints."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PHASES = ("simulate", "predict", "train", "wait", "communicate")  # what the time of a loop goes into


class TrainingClock:
    """Seconds of training so far: one clock of a run, which all its threads read, and its processes once it is shared.

    One of them alone starts and stops it, while the others stand still.

    Args:
        seconds: what earlier attempts spent.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._memory = torch.tensor([seconds, torch.nan], dtype=torch.float64)  # before, and since when; NaN: halted

    def share(self) -> "TrainingClock":
        """The same, to be handed to worker processes: perf_counter counts alike in all processes of a machine."""
        self._memory.share_memory_()  # type: ignore[no-untyped-call]
        return self

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return not math.isnan(float(self._memory[1]))

    def start(self) -> None:
        """Lets it run."""
        if not self.running:
            self._memory[1] = time.perf_counter()

    def stop(self) -> None:
        """Halts it."""
        self._memory[0] = self.seconds
        self._memory[1] = torch.nan

    def set(self, seconds: float) -> None:
        """Corrects it, by a clock that counts for more."""
        running = self.running
        self._memory[0] = seconds
        self._memory[1] = time.perf_counter() if running else torch.nan

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Halts it inside the block, if it ran."""
        running = self.running
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()

    @property
    def seconds(self) -> float:
        """Training seconds, all attempts together."""
        before, since = self._memory.tolist()
        return float(before if math.isnan(since) else before + (time.perf_counter() - since))


class PhaseTimer:
    """Adds up the seconds spent in each named phase of a loop, as shares of their sum."""

    def __init__(self, *phases: str) -> None:
        self._seconds = dict.fromkeys(phases, 0.0)
        self._mark = time.perf_counter()

    def start(self) -> None:
        """What comes before this call belongs to no phase."""
        self._mark = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What passed since the last call belongs to `phase`."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another timer, of another thread or process, has taken."""
        for phase, more in seconds.items():
            self._seconds[phase] += more

    def shares(self) -> dict[str, float]:
        """Share of each phase since the last call, as `share_<phase>`."""
        seconds = self.take()
        total = sum(seconds.values())
        return {f"share_{phase}": part / total if total else 0.0 for phase, part in seconds.items()}
