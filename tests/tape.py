"""What stands in for a CUDA graph on a CPU: a tape of the operations of a call, which replays them on the same memory.

As with a graph, what Python decided while it was recorded stays decided, arguments are read where they were then, and
results are written where they were; and who asks for a value while it is recorded is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_DEVICE = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
tapes: list["CpuTape"] = []  # of the present test


class CpuTape:
    """The face of `compiled.CudaTape`."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)
        self.n_warm_ups = self.n_replays = 0
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        tapes.append(self)

    def warm_up(self, call: Callable[[], object]) -> object:
        self.n_warm_ups += 1
        return call()

    def capture(self, call: Callable[[], object]) -> object:
        with Recording(self.operations):
            return call()

    @torch.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        if self.n_replays == 1:  # the call has been made when it was recorded, which a graph's is not
            return
        for function, arguments, options, results in self.operations:
            found = function(*arguments, **options)
            for before, now in zip(tree_leaves(results), tree_leaves(found), strict=True):
                if isinstance(now, Tensor) and now.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
                    before.copy_(now)

    @property
    def names(self) -> set[str]:
        """What was recorded."""
        return {function.overloadpacket.__name__ for function, *_ in self.operations}


class Recording(TorchDispatchMode):
    def __init__(self, operations: list[tuple[Any, Any, Any, Any]]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        masks = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        by_mask = "index" in function.name() and function.name() in ("aten::index.Tensor", "aten::index_put_") and masks
        if by_mask or function.name() in ASKS_THE_DEVICE:
            raise RuntimeError(f"{function.name()} waits for the device: it cannot be captured")
        results = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, results))
        return results
