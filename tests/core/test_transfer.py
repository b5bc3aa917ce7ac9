"""core.transfer: memory is pinned once, and nothing in it is written over before the device has it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from a3c_bench.core import transfer
from a3c_bench.core.transfer import Transfer


def test_on_a_cpu_arrays_stay_where_they_are() -> None:
    array = np.arange(3.0)
    assert Transfer(torch.device("cpu"), beside=True)("x", array).data_ptr() == array.ctypes.data


def test_memory_is_pinned_once_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is "meta" here, to which copies can be made though nothing comes of them."""
    told: list[str] = []
    held: list[list[float]] = []

    class Event:
        def synchronize(self) -> None:
            told.append("wait")

        def record(self, stream: object) -> None:
            told.append("copied")

    def pinned(n_bytes: int) -> Tensor:
        told.append(f"pinned {n_bytes}")
        return torch.empty(n_bytes, dtype=torch.uint8)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(transfer, "_pinned_bytes", pinned)
    hold = transfer._Pinned.hold

    def watched(self: transfer._Pinned, tensor: Tensor) -> Tensor:
        kept = hold(self, tensor)
        held.append(kept.flatten().tolist())
        return kept

    monkeypatch.setattr(transfer._Pinned, "hold", watched)
    to_device = Transfer(torch.device("meta"))
    for array in (np.arange(4.0).reshape(2, 2), np.arange(3.0), np.arange(5, dtype=np.int64)):
        moved = to_device("x", array)
        assert (moved.device.type, tuple(moved.shape)) == ("meta", array.shape)
    to_device("flags", torch.tensor([True, False]))
    assert held == [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [0, 1, 2, 3, 4], [True, False]]
    once = ["wait", "copied"]
    assert told == ["pinned 0", "wait", "pinned 32", "copied", *once, "wait", "pinned 40", "copied",
                    "pinned 0", "wait", "pinned 2", "copied"]  # fmt: skip
