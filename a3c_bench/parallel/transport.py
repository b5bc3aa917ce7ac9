"""Between learners and the shards of a parameter server: `Transport` is the learner's end, `Port` the shard's.

Here both share memory; `remote` has those that cross machines. A learner has one mailbox, with room for one gradient;
each shard takes its part of it, and when all have done so there is room for the next. Tokens say that a gradient has
come and that it was taken, so nobody polls.
Nothing is pickled: what passes is written once and read where it stands.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.parallel.tokens import Tokens


class Sent(NamedTuple):
    """What has crossed a network."""

    n_bytes: int
    n_messages: int

    @classmethod
    def total(cls, parts: "Iterable[Sent]") -> "Sent":
        """The sum of several."""
        return cls(*(sum(column) for column in zip((0, 0), *parts, strict=True)))

    def since(self, before: "Sent") -> "Sent":
        """What has been added."""
        return Sent(self.n_bytes - before.n_bytes, self.n_messages - before.n_messages)


class Transport(Protocol):
    """What learners and actors know of the parameter server; `remote.RemoteTransport` crosses machines."""

    @property
    def version(self) -> int:
        """Updates so far, by shard 0."""

    @property
    def target_versions(self) -> Sequence[int]:
        """Of the target network that `fetch` would give; [S]."""

    def fetch(self, into: Tensor, target: bool = False) -> NDArray[np.int64]:
        """Copies the parameters, or those of the target network, into a vector [P]; gives the shards' versions [S]."""

    def room(self, timeout: float) -> bool:
        """Waits until the last gradient was taken by all shards, or `timeout` seconds; says which of the two it was."""

    def push(
        self,
        gradient: Tensor,
        versions: NDArray[np.int64],
        samples: NDArray[np.float64],
        theta: Tensor | None = None,
    ) -> None:
        """Sends a gradient [P], and goes on at once; there has to be `room`.

        Args:
            gradient: is copied.
            versions: [S], that `fetch` gave with the parameters it was computed at.
            samples: [B, K], told of the samples it was computed from.
            theta: [P], those parameters, for shards that ask how far they have moved since; is copied.
        """

    def settle(self) -> None:
        """Before a pause: waits until nothing that was sent can be lost, or be applied in the middle of it."""

    def leave(self) -> None:
        """At the end: the shards need not wait for anything from here any more."""

    def take_sent(self) -> Sent:
        """What this end has sent over a network since the last call."""


class Push(NamedTuple):
    """What a shard gets of a gradient."""

    learner: int
    gradient: Tensor  # of this shard's parameters; valid until `Port.done`
    version: int  # of this shard, that it was computed at
    samples: NDArray[np.float64]  # [B, K]
    theta: Tensor | None  # of this shard, that it was computed at, if the server keeps it


class SharedServer:
    """The memory that all share. Made by the parent; workers get it as an argument.

    Args:
        theta: [P], in shared memory; shard s owns the s-th of S parts of about equal length.
        n_shards: S.
        n_learners: who may push.
        samples_shape: (B, K).
        keeps_theta: gradients come with the parameters that they were computed at.
    """

    def __init__(
        self,
        theta: Tensor,
        n_shards: int,
        n_learners: int,
        samples_shape: tuple[int, int],
        keeps_theta: bool = False,
    ) -> None:
        bounds = np.linspace(0, len(theta), n_shards + 1).astype(int).tolist()
        self.parts = [slice(start, end) for start, end in itertools.pairwise(bounds)]
        self.theta = theta
        self.target = _shared(theta.clone())  # parameters of the target network
        self.versions = _shared(torch.zeros(n_shards, dtype=torch.int64))  # gradients that each shard has applied
        self.target_versions = _shared(torch.zeros(n_shards, dtype=torch.int64))  # when each renewed its part of target
        self.gradients = _shared(torch.zeros(n_learners, len(theta)))
        self.thetas = _shared(torch.zeros(n_learners, len(theta))) if keeps_theta else None
        self.fetched = _shared(torch.zeros((n_learners, n_shards), dtype=torch.int64))
        self.samples = _shared(torch.zeros((n_learners, *samples_shape), dtype=torch.float64))
        self.waiting = _shared(torch.zeros((n_learners, n_shards), dtype=torch.bool))
        self.locks = {s: Tokens(1) for s in range(n_shards)}  # of a shard's part of theta and target, and versions
        self.arrived = {s: Tokens(0) for s in range(n_shards)}
        self.taken = {learner: Tokens(n_shards) for learner in range(n_learners)}

    def for_learner(self, learner: int) -> "SharedServer":
        """The same without what other learners alone need: a new process can be handed some 250 files, no more."""
        return self._with(taken={i: taken for i, taken in self.taken.items() if i == learner})

    def for_shard(self, shard: int) -> "SharedServer":
        """The same without what other shards alone need."""
        return self._with(locks={shard: self.locks[shard]}, arrived={shard: self.arrived[shard]})

    def _with(self, **changes: dict[int, Tokens]) -> "SharedServer":
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The target network's parameters, and the versions; theta is saved as a network."""
        return {"target": self.target, "versions": self.versions, "target_versions": self.target_versions}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from there, in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class SharedMemoryTransport:
    """A learner's, or an actor's, end: a `Transport`.

    Args:
        server: shared.
        learner: whose mailbox it is; None: it never pushes.
    """

    def __init__(self, server: SharedServer, learner: int | None = None) -> None:
        self._server = server
        self._learner = learner
        self._n_taken = 0  # shards that took the last gradient

    @torch.no_grad()
    def fetch(self, into: Tensor, target: bool = False) -> NDArray[np.int64]:
        """See `Transport`."""
        server = self._server
        source, versions = (server.target, server.target_versions) if target else (server.theta, server.versions)
        fetched = np.zeros(len(server.parts), dtype=np.int64)
        for shard, part in enumerate(server.parts):
            with server.locks[shard]:
                into[part].copy_(source[part])
                fetched[shard] = int(versions[shard])
        return fetched

    @property
    def version(self) -> int:
        """See `Transport`."""
        return int(self._server.versions[0])

    @property
    def target_versions(self) -> Sequence[int]:
        """See `Transport`."""
        return self._server.target_versions.tolist()

    def room(self, timeout: float) -> bool:
        """See `Transport`."""
        assert self._learner is not None
        while self._n_taken < len(self._server.parts):
            if not self._server.taken[self._learner].take(timeout):
                return False
            self._n_taken += 1
        return True

    @torch.no_grad()
    def push(
        self,
        gradient: Tensor,
        versions: NDArray[np.int64],
        samples: NDArray[np.float64],
        theta: Tensor | None = None,
    ) -> None:
        """See `Transport`."""
        assert self._learner is not None
        server, learner = self._server, self._learner
        self._n_taken = 0
        server.gradients[learner].copy_(gradient)
        if server.thetas is not None and theta is not None:
            server.thetas[learner].copy_(theta)
        server.fetched.numpy()[learner] = versions
        server.samples.numpy()[learner] = samples
        server.waiting[learner] = True
        for arrived in server.arrived.values():
            arrived.give()

    def settle(self) -> None:
        """See `Transport`: a gradient in the mailbox is as safe as theta."""

    def leave(self) -> None:
        """See `Transport`."""

    def take_sent(self) -> Sent:
        """See `Transport`: no network."""
        return Sent(0, 0)


class Port:
    """A shard's end.

    Args:
        server: shared.
        shard: s.
        lock: of its part of theta and target, and of their versions; None: the server's, for processes.
    """

    def __init__(self, server: SharedServer, shard: int, lock: AbstractContextManager[Any] | None = None) -> None:
        self._server = server
        self.shard = shard
        self._lock = lock
        self._last = 0  # learner that was served

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Entered by whoever reads what this shard has, or changes it."""
        return self._lock or self._server.locks[self.shard]

    @property
    def theta(self) -> Tensor:
        """This shard's parameters; to be changed while `publish` is entered, and then alone."""
        return self._server.theta[self._server.parts[self.shard]]

    @property
    def target(self) -> Tensor:
        """Of the target network, the parameters of this shard."""
        return self._server.target[self._server.parts[self.shard]]

    @property
    def version(self) -> int:
        """Updates that this shard has published."""
        return int(self._server.versions[self.shard])

    @property
    def target_version(self) -> int:
        """When this shard renewed its part of the target network."""
        return int(self._server.target_versions[self.shard])

    @contextmanager
    def publish(self, target_period: int) -> Iterator[None]:
        """While entered, nobody reads this shard's parameters; afterwards they are one update further.

        Args:
            target_period: updates; once in so many the target network's are renewed with them.
        """
        server, shard = self._server, self.shard
        with self.lock, torch.no_grad():
            yield
            server.versions[shard] += 1
            if self.version % target_period == 0:
                self.target.copy_(self.theta)
                server.target_versions[shard] = server.versions[shard]

    def receive(self, timeout: float) -> Push | None:
        """The next gradient, of each learner in turn; None if none comes within `timeout` seconds."""
        server, shard = self._server, self.shard
        if not server.arrived[shard].take(timeout):
            return None
        waiting = np.roll(server.waiting.numpy()[:, shard], -self._last - 1)
        learner = self._last = (int(waiting.argmax()) + self._last + 1) % len(waiting)
        part = server.parts[shard]
        gradient, theta = (
            server.gradients[learner, part],
            None if server.thetas is None else server.thetas[learner, part],
        )
        return Push(learner, gradient, int(server.fetched[learner, shard]), server.samples.numpy()[learner], theta)

    def done(self, push: Push) -> None:
        """Lets the learner know that this shard needs its gradient no more."""
        self._server.waiting[push.learner, self.shard] = False
        self._server.taken[push.learner].give()

    def leave(self) -> None:
        """At the end, when all learners have left."""

    def take_sent(self) -> Sent:
        """What this shard has sent over a network since the last call."""
        return Sent(0, 0)


def _shared(tensor: Tensor) -> Any:
    return tensor.share_memory_()  # type: ignore[no-untyped-call]
