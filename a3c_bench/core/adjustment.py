"""GA3C's dynamic adjustment: a random walk over the numbers of agents, predictors and trainers towards more trainings.

After Babaeizadeh et al. 2017 (arXiv:1611.06256), section 4.3, and NVlabs/GA3C: now and then each number changes by a
random -1, 0 or +1, and the change is taken back unless more trainings per second follow. Their code compares a trial
with whatever window came before, also with one that was just rejected; here a trial is compared with the sizes to which
it would be taken back, measured anew after each rejection.
"""

from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """How many of each there are."""

    n_agents: int  # N_A
    n_predictors: int  # N_P
    n_trainers: int  # N_T


class Window(NamedTuple):
    """What a stretch of time at fixed sizes showed."""

    sizes: Sizes
    tps: float  # trainings per second
    tps_before: float | None  # of the sizes on trial against; None: these were only measured
    kept: bool


class Adjuster:
    """The walk. Tell it the time and the trainings so far; what should run is in `sizes`.

    Args:
        sizes: at the start.
        low: no fewer than these.
        high: no more than these.
        window_seconds: how long sizes are watched.
        generator: draws the steps.
    """

    def __init__(
        self, sizes: Sizes, low: Sizes, high: Sizes, window_seconds: float, generator: np.random.Generator
    ) -> None:
        self.sizes = sizes
        self._low = low
        self._high = high
        self._window_seconds = window_seconds
        self._generator = generator
        self._home = sizes  # to which a trial is taken back
        self._home_tps: float | None = None  # of the window before; None: to be measured
        self._begun: tuple[float, int] | None = None

    def look(self, seconds: float, n_trainings: int) -> Window | None:
        """At the end of a window decides, and changes `sizes`; None before that.

        Args:
            seconds: of training so far.
            n_trainings: so far.
        """
        if self._begun is None:
            self._begun = (seconds, n_trainings)
        since, before = self._begun
        if seconds - since < self._window_seconds:
            return None
        self._begun = (seconds, n_trainings)
        tps = (n_trainings - before) / (seconds - since)
        window = Window(self.sizes, tps, self._home_tps, self._home_tps is None or tps > self._home_tps)
        if window.kept:
            self._home, self._home_tps = self.sizes, tps
            self.sizes = self._step(self.sizes)
        else:
            self.sizes, self._home_tps = self._home, None
        return window

    def _step(self, sizes: Sizes) -> Sizes:
        """A neighbour, if there is any."""
        if self._low == self._high:
            return sizes
        while True:
            steps = self._generator.integers(-1, 2, size=3)
            near = Sizes(*(int(n) for n in np.clip(np.array(sizes) + steps, self._low, self._high)))
            if near != sizes:
                return near

    def state_dict(self) -> dict[str, Any]:
        """The sizes that were last kept."""
        return {"sizes": list(self._home)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, with a new window."""
        kept = np.clip(np.array(state["sizes"]), self._low, self._high)
        self.sizes = self._home = Sizes(*(int(n) for n in kept))
        self._home_tps = self._begun = None
