"""GA3C's dynamic adjustment: a random walk over the numbers of agents, predictors and trainers towards more trainings.

After Babaeizadeh et al. 2017 (arXiv:1611.06256), section 4.3, and NVlabs/GA3C: now and then each number changes by a
random -1, 0 or +1, and the change is taken back unless more trainings per second follow. Their code compares a trial
with whatever window came before, also with one that was just rejected; here a trial is compared with the sizes to which
it would be taken back, measured anew after each rejection.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # it imports torch, for which bad input does not wait
    from a3c_bench.core.lag import Samples


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
    mean_lag_updates: float | None = None  # of the samples learnt from in it; None: it was not measured


class Adjuster:
    """The walk. Tell it the time and the trainings so far; what should run is in `sizes`.

    Args:
        sizes: at the start.
        low: no fewer than these.
        high: no more than these.
        window_seconds: how long sizes are watched.
        generator: draws the steps.
        max_mean_lag_updates: of a window, to which sizes are to be kept; null: any.
    """

    def __init__(
        self,
        sizes: Sizes,
        low: Sizes,
        high: Sizes,
        window_seconds: float,
        generator: np.random.Generator,
        max_mean_lag_updates: float | None = None,
    ) -> None:
        self.sizes = sizes
        self._low = low
        self._high = high
        self._window_seconds = window_seconds
        self._generator = generator
        self._bound = max_mean_lag_updates
        self._home = sizes  # to which a trial is taken back
        self._home_window: Window | None = None  # the newest of those; None: to be measured
        self._begun: tuple[float, int] | None = None
        self._lag, self._n_samples = 0.0, 0  # sum and number, of this window

    def learnt(self, lag_updates: "Samples") -> None:
        """Takes the lag of each sample of an update, a flat array or tensor."""
        self._lag += float(np.asarray(lag_updates).sum())
        self._n_samples += len(lag_updates)

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
        lag = self._lag / self._n_samples if self._n_samples else None
        self._lag, self._n_samples = 0.0, 0
        home = self._home_window
        window = Window(self.sizes, tps, home.tps if home else None, True, lag)
        window = window._replace(kept=home is None or self._is_better(window, home))
        if window.kept:
            self._home, self._home_window = self.sizes, window
            self.sizes = self._step(self.sizes)
        else:
            self.sizes, self._home_window = self._home, None
        return window

    def _is_better(self, trial: Window, home: Window) -> bool:
        """See the table above. Where nothing was learnt from, no lag is known to be within the bound."""
        if self._bound is None:
            return trial.tps > home.tps
        lag, before = (math.inf if one.mean_lag_updates is None else one.mean_lag_updates for one in (trial, home))
        if before > self._bound:
            return lag < before
        return lag <= self._bound and trial.tps > home.tps

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
        self._home_window = self._begun = None
