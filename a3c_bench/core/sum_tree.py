"""A sum tree: draws from a million weights in proportion to them, in time that grows with the logarithm of their count.

Schaul et al. (2016, arXiv:1511.05952, appendix B.2.1) keep priorities in a binary tree whose nodes are the sums of
their children. Here a node has 32 children, for a NumPy call on 32 numbers costs about as much as on 2: a million
leaves are then 4 levels deep and not 20.
"""

import numpy as np
from numpy.typing import NDArray

from a3c_bench.core.arrays import Allocate, in_memory

FAN_OUT = 32
_FAN_OUT = np.array(FAN_OUT)  # NumPy is quicker with an array than with a number


class SumTree:
    """Weights, not below 0, that can be changed and drawn from in batches; all are 0 at first.

    Sums are always taken anew from the children, so rounding errors do not pile up.

    Args:
        n_leaves: how many weights.
        allocate: makes the arrays, or gives those of a tree that another process shares.
    """

    def __init__(self, n_leaves: int, allocate: Allocate = in_memory) -> None:
        self._levels = [  # leaves first
            np.asarray(allocate(f"tree_{i}", (n_nodes, FAN_OUT), np.dtype(np.float64)))
            for i, n_nodes in enumerate(_nodes_per_level(n_leaves))
        ]
        self._flat = [level.reshape(-1) for level in self._levels]  # the same numbers

    @staticmethod
    def bytes_needed(n_leaves: int) -> int:
        """The bytes of a tree of that many weights."""
        return sum(_nodes_per_level(n_leaves)) * FAN_OUT * np.dtype(np.float64).itemsize

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The weights of these leaves, in the shape of `indices`."""
        return self._flat[0][indices]

    def __setitem__(self, indices: NDArray[np.int64], weights: NDArray[np.float64] | float) -> None:
        """Changes the weights of the leaves `indices` [B]; where one stands there twice, its last weight counts."""
        self._flat[0][indices] = weights
        for children, sums in zip(self._levels, self._flat[1:], strict=False):
            indices = indices // _FAN_OUT
            sums[indices] = np.add.reduce(children[indices], 1)

    def clear(self) -> None:
        """Sets all weights to 0."""
        for level in self._levels:
            level.fill(0.0)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._levels[-1].sum())

    def find(self, masses: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaves [B] in whose share of the total the masses [B] fall, 0 <= mass < total; never one of weight 0.

        Leaf i holds the masses from the sum of the weights before it up to, but without, that sum plus its own weight.
        The total must not be 0.
        """
        nodes = np.zeros(len(masses), dtype=np.int64)
        for level in reversed(self._levels):
            upper = level[nodes].cumsum(1)  # [B, FAN_OUT], where the share of each child ends
            # Rounding may have carried a mass past the last child; back into the last that has a share.
            masses = np.minimum(masses, np.nextafter(upper[:, -1], 0.0))
            before = upper <= masses[:, np.newaxis]
            masses = masses - np.where(before, upper, 0.0).max(1)
            nodes = nodes * _FAN_OUT + before.argmin(1)
        return nodes


def _nodes_per_level(n_leaves: int) -> list[int]:
    """How many groups of FAN_OUT numbers the levels have: those of the leaves first, one at last."""
    n_nodes = [-(-n_leaves // FAN_OUT)]
    while n_nodes[-1] > 1:
        n_nodes.append(-(-n_nodes[-1] // FAN_OUT))
    return n_nodes
