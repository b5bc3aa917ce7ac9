"""Losses that are far above what is usual: Gorila does not learn from them (Nair et al. 2015)."""

_LOSSES_BEFORE_JUDGING = 100


class LossWatch:
    """Knows losses that are far above what is usual, by a running mean and deviation of all that it was shown.

    Args:
        max_deviations: k; None: no loss is too large.
        decay: of the running moments.
    """

    def __init__(self, max_deviations: float | None, decay: float = 0.999) -> None:
        self._max_deviations = max_deviations
        self._decay = decay
        self._mean = self._square = 0.0
        self._n = 0

    def is_outlier(self, loss: float) -> bool:
        """Whether this loss lies more than k deviations above the mean of those before it; never of the first 100."""
        weight = max(1.0 - self._decay, 1.0 / (self._n + 1))
        deviation = max(self._square - self._mean**2, 0.0) ** 0.5
        known = self._max_deviations is not None and self._n >= _LOSSES_BEFORE_JUDGING
        found = known and loss > self._mean + (self._max_deviations or 0.0) * deviation
        self._mean += weight * (loss - self._mean)
        self._square += weight * (loss**2 - self._square)
        self._n += 1
        return found
