"""Lag as a setting: who acts is theta as it was some updates ago.

The update to version v + 1 then learns from samples that version v - j chose. With a fixed lag j is k; uniformly
distributed, it is drawn from 0 to 2 k for each rollout, and k on average. No version is older than the first, so that
the lag of the first updates is shorter.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


class PastParameters:
    """The parameters of the last versions, in a ring; part of a checkpoint.

    Args:
        theta: [P], as they are learnt.
        acting: [P], of the network that acts; changed by `choose`.
        lag: k, in updates.
        distribution: "fixed" or "uniform".
        generator: draws j.
    """

    def __init__(
        self, theta: Tensor, acting: Tensor, lag: int, distribution: str, generator: np.random.Generator
    ) -> None:
        self._theta = theta
        self._acting = acting
        self._lag = lag
        self._uniform = distribution == "uniform"
        self._generator = generator
        self._kept = theta.new_zeros((n_kept(lag, distribution), len(theta)))
        self._now = self._kept[0]  # of these, theta's own

    @torch.no_grad()
    def choose(self, version: int) -> int:
        """Lets the version act whose turn it is now that theta is of this one, and gives it; once for each version."""
        self._now = self._kept[version % len(self._kept)].copy_(self._theta)
        lag = int(self._generator.integers(2 * self._lag + 1)) if self._uniform else self._lag
        acts = max(version - lag, 0)
        self._acting.copy_(self._kept[acts % len(self._kept)])
        return acts

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While entered, theta has the values of who acts; between `choose` and the next update."""
        with torch.no_grad():
            self._theta.copy_(self._acting)
        try:
            yield
        finally:
            with torch.no_grad():
                self._theta.copy_(self._now)

    def state_dict(self) -> dict[str, Tensor]:
        """The versions kept; the generator is a part of its own."""
        return {"kept": self._kept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from there."""
        self._kept.copy_(state["kept"])


def n_kept(lag: int, distribution: str) -> int:
    """Parameter vectors that `PastParameters` keeps, theta's among them."""
    return (2 * lag if distribution == "uniform" else lag) + 1
