"""How the callables of a run are run: as they are written, compiled, or captured once as CUDA graphs and replayed.

    act             forward, draw                     acting.policy
    differentiate   forward, psi, loss, backward      core.learning
    apply           clip, the optimiser's step        core.learning

Each is a function of tensors that asks the device for nothing. `Compute.traced` compiles the part of one that is pure
arithmetic; `Compute.fixed` captures a whole one. Where neither is asked for, both give the function back as it is.

    call 1 to 3     written out, on buffers that stay where they are (torch's libraries allocate what they need)
    call 4          captured on the same buffers, and replayed
    call 5 ...      arguments are copied into the buffers, the graph is replayed, results are copied out

So every call has its effect once. A graph computes with the addresses that it saw: theta, gradients, the optimiser's
statistics and its learning rate stay in place, and whoever has other shapes gets another graph. What Python decided
while it was captured stays decided.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Generic = TypeVar("Generic", bound=np.generic)
BACKEND = "inductor"  # of torch.compile
WARM_UP_CALLS = 3
SECONDS_TO_COMPILE = 300.0  # all that a thread may have to wait for, on a busy machine


class Compute:
    """What is done with the callables of a run.

    Args:
        compile: `torch.compile` is.
        cuda_graphs: they are captured; only for a GPU.
    """

    def __init__(self, compile: bool = False, cuda_graphs: bool = False) -> None:
        self.compile = compile
        self.cuda_graphs = cuda_graphs

    @property
    def fixes_shapes(self) -> bool:
        """Whether each new shape of an argument costs seconds: batches of many sizes are padded to few then."""
        return self.compile or self.cuda_graphs

    def patience(self, seconds: float) -> float:
        """After so many seconds a thread is lost that is lost after `seconds` where nothing is compiled."""
        return seconds + SECONDS_TO_COMPILE if self.fixes_shapes else seconds

    def traced(self, function: Callable[P, R]) -> Callable[P, R]:
        """A function of tensors without chance and without backward, compiled if the run compiles."""
        if not self.compile:
            return function
        return torch.compile(function, backend=BACKEND, dynamic=False)

    def fixed(
        self, function: Callable[P, R], device: torch.device, generators: Sequence[torch.Generator] = ()
    ) -> Callable[P, R]:
        """A callable whose arguments and results are tensors, tuples of them, and what tells two kinds of calls apart.

        Args:
            function: asks the device for nothing; its results are its caller's own.
            device: of the tensors.
            generators: it draws from these.
        """
        if not self.fixes_shapes:
            return function
        return cast(Callable[P, R], _Fixed(function, device, generators if self.cuda_graphs else None))


AS_WRITTEN = Compute()


class _Fixed:
    """A callable for few shapes: the first calls with each are made while nobody else's are."""

    def __init__(
        self, function: Callable[..., object], device: torch.device, generators: Sequence[torch.Generator] | None
    ) -> None:
        self._function = function
        self._device = device
        self._generators = generators
        self._calls: dict[tuple[object, ...], _Captured | None] = {}

    def __call__(self, *arguments: object) -> object:
        key = tuple(_kind(leaf) for leaf in _leaves(arguments))
        if self._generators is None:
            known = key in self._calls
            with _GATE.beside() if known else _GATE.alone():  # the compiler is one for all threads
                self._calls[key] = None
                return self._function(*arguments)
        call = self._calls.get(key)
        if call is None:
            tape = CudaTape(self._device, self._generators)
            call = self._calls[key] = _Captured(self._function, arguments, self._device, tape)
        with _GATE.beside() if call.is_captured else _GATE.alone():
            return call(arguments)


class _Captured:
    """A call with arguments of one kind: its buffers and its graph."""

    def __init__(
        self, function: Callable[..., object], arguments: tuple[object, ...], device: torch.device, tape: "CudaTape"
    ) -> None:
        self._function = function
        kept = (leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in _leaves(arguments))
        self._arguments = cast(tuple[object, ...], _rebuilt(arguments, kept))
        self._buffers = [leaf for leaf in _leaves(self._arguments) if isinstance(leaf, Tensor)]
        self._results: object = None
        self._tape = tape
        self._n_calls = 0
        self.is_captured = False

    def __call__(self, arguments: tuple[object, ...]) -> object:
        given = (leaf for leaf in _leaves(arguments) if isinstance(leaf, Tensor))
        for buffer, leaf in zip(self._buffers, given, strict=True):
            buffer.copy_(leaf, non_blocking=True)
        if self._n_calls < WARM_UP_CALLS:
            self._n_calls += 1
            return _copied(self._tape.warm_up(self._call))
        if not self.is_captured:
            self._results = self._tape.capture(self._call)
            self.is_captured = True
        self._tape.replay()
        return _copied(self._results)  # the next replay writes over them

    def _call(self) -> object:
        return self._function(*self._arguments)


class CudaTape:
    """A CUDA graph of one call.

    Args:
        device: the GPU.
        generators: that the call draws from; each replay goes on where the last one, or who drew otherwise, stopped.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # of its own: several threads may have graphs
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        for generator in generators:
            self._graph.register_generator_state(generator)

    def warm_up(self, call: Callable[[], object]) -> object:
        """The call itself, on the stream on which it will be captured."""
        present = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            results = call()
        present.wait_stream(self._stream)
        return results

    def capture(self, call: Callable[[], object]) -> object:
        """Records the call, which is not made; gives the tensors into which replays write its results.

        Raises:
            RuntimeError: it asks the device for something.
        """
        try:  # "thread_local": others may go on with what asks the device
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                return call()
        except RuntimeError as error:
            raise RuntimeError(
                f"It cannot be captured in a CUDA graph, run it without compute.cuda_graphs: {error}"
            ) from error

    def replay(self) -> None:
        """Makes the call, on the stream of whoever asks."""
        self._graph.replay()


class _Gate:
    """Many at a time go through, or one alone: compiling and capturing suffer nobody beside them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_beside = 0
        self._n_waiting = 0  # to be alone: they come first
        self._is_alone = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Not while somebody is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and self._n_waiting == 0)
            self._n_beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_beside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else is inside."""
        with self._changed:
            self._n_waiting += 1
            self._changed.wait_for(lambda: not self._is_alone and self._n_beside == 0)
            self._n_waiting -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


_GATE = _Gate()


def _leaves(tree: object) -> Iterator[object]:
    """What is in tuples of tuples, in order."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from _leaves(part)
    else:
        yield tree


def _rebuilt(tree: object, leaves: Iterator[object]) -> object:
    """The same tuples, named or not, with other leaves."""
    if not isinstance(tree, tuple):
        return next(leaves)
    parts = [_rebuilt(part, leaves) for part in tree]
    return tree._make(parts) if hasattr(tree, "_make") else tuple(parts)


def _copied(tree: object) -> object:
    return _rebuilt(tree, (leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(tree)))


def _kind(leaf: object) -> object:
    """What two arguments have to have in common to be of one call."""
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


# --- few shapes -------------------------------------------------------------------------------------------------------


def rounded_up(n: int, unit: int) -> int:
    """The next multiple of the unit."""
    return -(-n // unit) * unit


def padded(array: NDArray[Generic], *shape: int) -> NDArray[Generic]:
    """The array with zeros at the ends of its first axes, so that these have this shape; as it is if they have."""
    if array.shape[: len(shape)] == shape:
        return array
    whole = np.zeros((*shape, *array.shape[len(shape) :]), dtype=array.dtype)
    whole[tuple(slice(n) for n in array.shape[: len(shape)])] = array
    return whole
