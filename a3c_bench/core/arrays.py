"""Where the arrays of large structures come from: this process's memory, or elsewhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Gives the array of that name, shape and type: zeros, or what a file or another process has kept of it.
Allocate = Callable[[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]]


def in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of zeros; the system gives memory to those parts alone that have been written."""
    return np.zeros(shape, dtype)
