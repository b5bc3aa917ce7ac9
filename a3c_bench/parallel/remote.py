"""Between learners and shards on several machines: `Transport` and `Port` over gloo's point to point.

    bundle                                     shard
    ask    -- request ---------------------->  (a thread for each bundle)
           <- versions, theta_s or theta^-_s -
    push   -- request, samples, gradient ----> queued, applied by the shard in its turn (or dropped)
           <- versions, theta_s -------------  so that the fetch before the next gradient costs no message
    leave  -- request ---------------------->  the thread ends

Each pair of a bundle and a shard is a gloo group of its own: a fault breaks that pair and no other. gloo cannot be
polled, and a wait that expires closes a group; so nothing here has a timeout, and liveness rests on those who started
the processes: `Workers` within a machine, and the meetings of the ranks across them.
"""

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore, Work  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from a3c_bench.errors import RankError
from a3c_bench.parallel.transport import Port, Push, Sent, SharedServer

_ASK, _ASK_TARGET, _PUSH, _LEAVE = range(4)  # what a bundle may want
_REQUEST, _BODY, _REPLY = range(3)  # tags of messages
_SHARD, _BUNDLE = 0, 1  # their ranks in a pair
_NEVER = timedelta(days=30)
_SECONDS_TO_CONNECT = timedelta(seconds=300)
SECONDS_FOR_THE_CAUSE = 5.0  # what broke a connection is better told by whoever started the process at its other end
_SECONDS_TO_LEAVE = 10.0


# --- what travels -----------------------------------------------------------------------------------------------------


class Message:
    """Bytes that travel, and the tensors that lie in them.

    Args:
        parts: type and shape of each, those of the widest type first.
    """

    def __init__(self, *parts: tuple[torch.dtype, tuple[int, ...]]) -> None:
        sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in parts]
        self.bytes = torch.zeros(sum(sizes), dtype=torch.uint8)
        pieces = torch.split(self.bytes, sizes)
        self.parts = [piece.view(dtype).view(shape) for piece, (dtype, shape) in zip(pieces, parts, strict=True)]


@dataclass(frozen=True)
class Wire:
    """The messages between a bundle and a shard.

    Args:
        n_parameters: p, of the shard.
        samples_shape: (B, K), of what is told of a gradient's samples.
        keeps_theta: gradients come with the parameters that they were computed at.
    """

    n_parameters: int
    samples_shape: tuple[int, int]
    keeps_theta: bool

    def request(self) -> Message:
        """[2]: what is wanted, and the version of a gradient that follows."""
        return Message((torch.int64, (2,)))

    def body(self) -> Message:
        """Of a push: samples [B, K], gradient [p], and theta [p] or [0]."""
        n_theta = self.n_parameters if self.keeps_theta else 0
        return Message(
            (torch.float64, self.samples_shape), (torch.float32, (self.n_parameters,)), (torch.float32, (n_theta,))
        )

    def reply(self) -> Message:
        """[2]: versions of theta and of the target network; and the one or the other [p]."""
        return Message((torch.int64, (2,)), (torch.float32, (self.n_parameters,)))

    @property
    def bytes_per_update(self) -> int:
        """Of a gradient and its reply, which is the fetch before the next: about 8 bytes per parameter."""
        return sum(message.bytes.numel() for message in (self.request(), self.body(), self.reply()))


def wires(server: SharedServer) -> list[Wire]:
    """Those of each shard [S]."""
    shape = (server.samples.shape[1], server.samples.shape[2])
    return [Wire(part.stop - part.start, shape, server.thetas is not None) for part in server.parts]


# --- connections ------------------------------------------------------------------------------------------------------


class Meeting(NamedTuple):
    """Where processes of several machines find each other."""

    host: str
    port: int  # of the store that rank 0 keeps
    name: str  # in the store; another one in each attempt
    interface: str | None  # of the network; None: the one that the name of the machine belongs to

    def store(self) -> Store:
        """A connection to it."""
        return PrefixStore(self.name, TCPStore(self.host, self.port, None, False, _SECONDS_TO_CONNECT, False))


def meeting_at(address: tuple[str, int], name: str) -> Meeting:
    """The meeting in a store at this host and port, on the network that GLOO_SOCKET_IFNAME says."""
    return Meeting(*address, name, os.environ.get("GLOO_SOCKET_IFNAME") or None)


class Pair:
    """One end of the connection of a bundle and a shard. Both of them make theirs at the same time.

    Args:
        store: where they meet.
        device: of gloo.
        shard: s.
        bundle: its number in the whole run.
        end: which of the two this is.
        other: who is at the other end, for messages.
    """

    def __init__(
        self, store: Store, device: "ProcessGroupGloo.Device", shard: int, bundle: int, end: int, other: str
    ) -> None:
        self.other = other
        self.sent = Sent(0, 0)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices, options._threads, options._timeout = [device], 1, _NEVER
        with self._whose_fault():
            self._group = ProcessGroupGloo(PrefixStore(f"{shard}/{bundle}", store), end, 2, options)
        self._peer = 1 - end

    def send(self, message: Message, tag: int) -> Work:
        """Begins to send a message, which must stay as it is until `finish`.

        Raises:
            RankError: the connection is broken.
        """
        self.sent = Sent(self.sent.n_bytes + message.bytes.numel(), self.sent.n_messages + 1)
        with self._whose_fault():
            return self._group.send([message.bytes], self._peer, tag)  # type: ignore[attr-defined]

    def receive(self, message: Message, tag: int) -> Work:
        """Begins to receive a message of this size.

        Raises:
            RankError: likewise.
        """
        with self._whose_fault():
            return self._group.recv([message.bytes], self._peer, tag)  # type: ignore[attr-defined]

    def finish(self, *works: Work) -> None:
        """Waits until messages have been sent, or are there.

        Raises:
            RankError: likewise.
        """
        with self._whose_fault():
            for work in works:
                work.wait()

    @contextmanager
    def _whose_fault(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RankError(f"The connection to {self.other} broke ({reason}).") from error


def pairs_of_bundle(meeting: Meeting, bundle: int, shards: Sequence[str]) -> list[Pair]:
    """The connections of a bundle to all shards [S].

    Everybody makes the pairs in the order of bundles, and a bundle's in the order of shards: so there is always one
    that both ends are at.

    Args:
        meeting: of the run.
        bundle: its number in the whole run.
        shards: how each is called.
    """
    store, device = _enter(meeting)
    return [Pair(store, device, shard, bundle, _BUNDLE, name) for shard, name in enumerate(shards)]


def pairs_of_shard(meeting: Meeting, shard: int, bundles: Sequence[str]) -> list[Pair]:
    """The connections of a shard to all bundles."""
    store, device = _enter(meeting)
    return [Pair(store, device, shard, bundle, _SHARD, name) for bundle, name in enumerate(bundles)]


def _enter(meeting: Meeting) -> tuple[Store, "ProcessGroupGloo.Device"]:
    if meeting.interface is not None:
        return meeting.store(), ProcessGroupGloo.create_device(interface=meeting.interface)
    return meeting.store(), ProcessGroupGloo.create_default_device()


# --- a bundle's end ---------------------------------------------------------------------------------------------------


class _Counter:
    """What a bundle keeps of its connection to one shard."""

    def __init__(self, pair: Pair, wire: Wire) -> None:
        self.pair = pair
        self.request, self.body, self.reply = wire.request(), wire.body(), wire.reply()
        self._under_way: list[Work] = []

    def post(self, want: int, version: int = 0) -> None:
        """Sends a request, a gradient with it if there is one in `body`, and makes ready for the reply."""
        self.request.parts[0][:] = torch.tensor([want, version])
        works = [self.pair.send(self.request, _REQUEST)]
        if want == _PUSH:
            works.append(self.pair.send(self.body, _BODY))
        if want != _LEAVE:
            works.append(self.pair.receive(self.reply, _REPLY))
        self._under_way = works

    def collect(self) -> None:
        """Waits until the reply is there."""
        self.pair.finish(*self._under_way)
        self._under_way = []


class RemoteTransport:
    """A bundle's end, for its learner and its actor: a `Transport`.

    Args:
        pairs: to all shards [S].
        server: whose parts and shapes they have; nothing is read from it.
    """

    def __init__(self, pairs: Sequence[Pair], server: SharedServer) -> None:
        self._parts = server.parts
        self._counters = [_Counter(pair, wire) for pair, wire in zip(pairs, wires(server), strict=True)]
        self._versions = np.zeros((2, len(pairs)), dtype=np.int64)  # of theta and of the target network
        self._is_fresh = False  # the replies are those to the last gradient: theta as it was left, not yet fetched
        self._told = Sent(0, 0)

    @property
    def version(self) -> int:
        """See `Transport`: as the last reply has told it."""
        return int(self._versions[0, 0])

    @property
    def target_versions(self) -> Sequence[int]:
        """See `Transport`: likewise."""
        versions: list[int] = self._versions[1].tolist()
        return versions

    def fetch(self, into: Tensor, target: bool = False) -> NDArray[np.int64]:
        """See `Transport`; after a push it gives the parameters that came with the reply."""
        self.settle()
        if target or not self._is_fresh:
            with _cause_first():
                for counter in self._counters:
                    counter.post(_ASK_TARGET if target else _ASK)
            self._collect()
        self._is_fresh = False
        for part, counter in zip(self._parts, self._counters, strict=True):
            into[part].copy_(counter.reply.parts[1])
        return self._versions[int(target)].copy()

    def room(self, timeout: float) -> bool:
        """See `Transport`, but waits as long as it takes: a shard answers soon, or its machine ends the run."""
        self.settle()
        return True

    def push(
        self,
        gradient: Tensor,
        versions: NDArray[np.int64],
        samples: NDArray[np.float64],
        theta: Tensor | None = None,
    ) -> None:
        """See `Transport`."""
        self._is_fresh = True
        with _cause_first():
            for part, counter, version in zip(self._parts, self._counters, versions.tolist(), strict=True):
                of_samples, of_gradient, of_theta = counter.body.parts
                of_samples.copy_(torch.from_numpy(samples))
                of_gradient.copy_(gradient[part])
                if theta is not None and len(of_theta):
                    of_theta.copy_(theta[part])
                counter.post(_PUSH, version)

    def settle(self) -> None:
        """See `Transport`."""
        self._collect()

    def leave(self) -> None:
        """See `Transport`."""
        self.settle()
        with _cause_first():
            for counter in self._counters:
                counter.post(_LEAVE)
            for counter in self._counters:
                counter.collect()

    def take_sent(self) -> Sent:
        """See `Transport`."""
        before, self._told = self._told, Sent.total(counter.pair.sent for counter in self._counters)
        return self._told.since(before)

    def _collect(self) -> None:
        with _cause_first():
            for counter in self._counters:
                counter.collect()
        for shard, counter in enumerate(self._counters):
            self._versions[:, shard] = counter.reply.parts[0].numpy()


@contextmanager
def _cause_first() -> Iterator[None]:
    """A broken connection is told late: the other end's own machine knows why, and ends this process before that."""
    try:
        yield
    except RankError:
        time.sleep(SECONDS_FOR_THE_CAUSE)
        raise


# --- a shard's end ----------------------------------------------------------------------------------------------------


class RemotePort(Port):
    """A shard's end: as where memory is shared, but gradients come from threads that each serve one bundle.

    Args:
        server: theta, target and versions; of this machine, and changed by this shard alone.
        shard: s.
        pairs: to all bundles.
    """

    def __init__(self, server: SharedServer, shard: int, pairs: Sequence[Pair]) -> None:
        super().__init__(server, shard, threading.Lock())  # no other process reads here
        self.arrived: SimpleQueue[Push] = SimpleQueue()
        self._told = Sent(0, 0)
        wire = wires(server)[shard]
        self._desks = [_Desk(self, pair, wire, bundle) for bundle, pair in enumerate(pairs)]

    def receive(self, timeout: float) -> Push | None:
        """The next gradient, in the order of their arrival; None if none comes within `timeout` seconds.

        Raises:
            RankError: a connection broke some seconds ago, and the run goes on all the same.
        """
        now = time.monotonic()
        for desk in self._desks:
            if desk.lost is not None and now > desk.lost_at + SECONDS_FOR_THE_CAUSE:
                raise desk.lost
        try:
            return self.arrived.get(timeout=timeout)
        except Empty:
            return None

    def done(self, push: Push) -> None:
        """Lets the learner have what theta is now."""
        self._desks[push.learner].applied.set()

    def leave(self) -> None:
        """Ends the threads, when all bundles have left.

        Raises:
            RankError: one of them has not, or its connection broke.
        """
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        for desk in self._desks:
            desk.thread.join(max(0.0, deadline - time.monotonic()))
            if desk.thread.is_alive():
                raise RankError(f"{desk.pair.other} did not take leave of shard {self.shard}.".capitalize())
            if desk.lost is not None:
                raise desk.lost

    def take_sent(self) -> Sent:
        """What was sent since the last call."""
        before, self._told = self._told, Sent.total(desk.pair.sent for desk in self._desks)
        return self._told.since(before)

    @torch.no_grad()
    def write(self, reply: Message, target: bool) -> None:
        """Puts what this shard has, and the versions, into a reply."""
        versions, values = reply.parts
        with self.lock:
            versions[0], versions[1] = self.version, self.target_version
            values.copy_(self.target if target else self.theta)


class _Desk:
    """Where a shard serves one bundle, in a thread: `recv` and `send` let go of the GIL."""

    def __init__(self, port: RemotePort, pair: Pair, wire: Wire, bundle: int) -> None:
        self._port = port
        self.pair = pair
        self._bundle = bundle
        self._request, self._body, self._reply = wire.request(), wire.body(), wire.reply()
        self.applied = threading.Event()
        self.lost: RankError | None = None
        self.lost_at = 0.0
        self.thread = threading.Thread(target=self._serve, name=f"desk of {pair.other}", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            while self._answer():
                pass
        except RankError as error:  # the others are served all the same
            self.lost_at, self.lost = time.monotonic(), error

    def _answer(self) -> bool:
        """One request; says whether there may be another."""
        self.pair.finish(self.pair.receive(self._request, _REQUEST))
        want, version = self._request.parts[0].tolist()
        if want == _LEAVE:
            return False
        if want == _PUSH:
            self.pair.finish(self.pair.receive(self._body, _BODY))
            self._have_applied(version)
        self._port.write(self._reply, target=want == _ASK_TARGET)
        self.pair.finish(self.pair.send(self._reply, _REPLY))
        return True

    def _have_applied(self, version: int) -> None:
        samples, gradient, theta = self._body.parts
        self.applied.clear()
        push = Push(self._bundle, gradient, version, samples.numpy(), theta if len(theta) else None)
        self._port.arrived.put(push)
        self.applied.wait()
