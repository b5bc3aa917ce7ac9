"""The way to a device: through memory that is pinned once, so that neither a thread nor the device waits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer:
    """Copies arrays to a device. On a CPU there is no way to go: they are there.

    Args:
        device: where to.
        beside: the copies are made on a stream of their own, while the device still computes what it was told before.
    """

    def __init__(self, device: torch.device, beside: bool = False) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if beside and device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._places: dict[str, _Pinned] = {}

    def __call__(self, name: str, array: NDArray[Any] | Tensor) -> Tensor:
        """The array on the device, for work that is asked for from now on.

        Args:
            name: of what it is; what has one name goes through one place, one after the other.
            array: may be changed at once afterwards, unless the device is a CPU.
        """
        tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        if self.device.type == "cpu":
            return tensor
        if name not in self._places:
            self._places[name] = _Pinned()
        place = self._places[name]
        kept = place.hold(tensor)
        with torch.cuda.stream(self._stream):
            moved = kept.to(self.device, non_blocking=True)
            place.left(self.device)
        if self._stream is not None:
            present = torch.cuda.current_stream(self.device)
            present.wait_stream(self._stream)
            moved.record_stream(present)
        return moved


class _Pinned:
    """Memory for one array at a time; it grows with the largest."""

    def __init__(self) -> None:
        self._memory = _pinned_bytes(0)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def hold(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor here, once the device has what was here before."""
        self._copied.synchronize()
        n_bytes = tensor.numel() * tensor.element_size()
        if len(self._memory) < n_bytes:
            self._memory = _pinned_bytes(n_bytes)
        return self._memory[:n_bytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def left(self, device: torch.device) -> None:
        """The copy to the device was asked for."""
        self._copied.record(torch.cuda.current_stream(device))


def _pinned_bytes(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
