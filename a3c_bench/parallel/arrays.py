"""Large arrays that processes share, such as a replay that several bundles use."""

import math
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedArrays:
    """Gives arrays of zeros that this process shares with the workers to which it hands this object when they start.

    They get the same arrays by the same names. The memory is anonymous (no name under /dev/shm that could be left
    behind), is taken as it is written to, and is gone with the last process.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The array of that name; made if this is its first use."""
        n_bytes = max(1, math.prod(shape) * dtype.itemsize)
        if name not in self._files:
            self._files[name] = _anonymous_file(name)
            os.ftruncate(self._files[name], n_bytes)
        return np.frombuffer(mmap.mmap(self._files[name], n_bytes), dtype, math.prod(shape)).reshape(shape)

    def close(self) -> None:
        """Gives no more arrays; those that were given stay."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: reduction.DupFd(file) for name, file in self._files.items()}

    def __setstate__(self, files: dict[str, Any]) -> None:
        self._files = {name: file.detach() for name, file in files.items()}


def _anonymous_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:  # elsewhere than on Linux
        return os.dup(file.fileno())
