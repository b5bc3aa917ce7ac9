"""Ranks: processes of one run, on one machine or on several, that train together (torch.distributed).

    store       rank 0 listens; who is there, who failed, and why (torch's TCPStore)
    counts      a small all-reduce at each meeting, by gloo: it also finds out within a moment that a rank died
    gradients   one all-reduce per update, by gloo on CPUs and by nccl on GPUs

A rank that cannot go on says why in the store; who then finds a connection broken, or hears nothing for too long, looks
there. So every rank ends with a sentence that names the one which was lost.
"""

import io
import itertools
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from a3c_bench.core.optim import FlatParameters
from a3c_bench.errors import ConfigError, RankError
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.runtime.peers import Met, Release
from a3c_bench.runtime.signals import STOP_SIGNALS

SECONDS_TO_COME = 300.0  # for a rank that starts late: it waits in a queue, or imports from a slow disk
_SECONDS_TO_CONNECT = 30.0  # once all are there
_MEETINGS_TO_WARM_UP = 3  # in which a rank may take as long: it compiles, or captures graphs
_SECONDS_TO_SAY_WHY = 5.0  # for the others, once a connection is broken
_SECONDS_BETWEEN_HEARTBEATS = 1.0
_MIB = 2.0**20


class Rendezvous(Protocol):
    """Where the ranks of a run find each other."""

    @property
    def host(self) -> str:
        """The address at which rank 0 listens, and no other."""

    @property
    def is_kept(self) -> bool:
        """Whether somebody else keeps the store: rank 0 need not."""

    def publish(self, port: int) -> None:
        """By rank 0, which listens on this port now."""

    def find(self, timeout: float) -> tuple[str, int]:
        """Host and port of the store.

        Raises:
            RankError: nobody published them within `timeout` seconds.
        """


@dataclass
class Fixed:
    """A rendezvous whose address is known from the start."""

    host: str
    port: int
    is_kept: bool = False

    def publish(self, port: int) -> None:
        """See `Rendezvous`."""
        self.port = port

    def find(self, timeout: float) -> tuple[str, int]:
        """See `Rendezvous`."""
        return self.host, self.port


@dataclass(frozen=True)
class Place:
    """What a process is among the ranks of its run."""

    index: int
    size: int
    local_index: int  # among those of its node
    local_size: int
    rendezvous: Rendezvous
    node: str = socket.gethostname()  # for messages
    interface: str | None = None  # of the network that gloo is to use; None: gloo finds one


def place_from_environment() -> Place | None:
    """The place that torchrun gives to the processes it starts, or that of a rank started by another; else None."""
    said = os.environ
    if "RANK" not in said or "WORLD_SIZE" not in said or "MASTER_PORT" not in said:
        return None
    index, size = int(said["RANK"]), int(said["WORLD_SIZE"])
    local = int(said.get("LOCAL_RANK", 0)), int(said.get("LOCAL_WORLD_SIZE", 1))
    is_kept = said.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    rendezvous = Fixed(said["MASTER_ADDR"], int(said["MASTER_PORT"]), is_kept)
    return Place(index, size, *local, rendezvous, interface="lo" if rendezvous.host in _LOOPBACK else None)


_LOOPBACK = ("127.0.0.1", "localhost")
_COUNT = itertools.count()  # of the runs of this process, which are those of all ranks


class Ranks:
    """The other ranks, seen from one of them: `runtime.peers.Peers` tells what each method is.

    Args:
        place: of this process.
        silence_seconds: a rank that says nothing for so long ends the run; once it has begun, `learn_on` says so.
        look: called while the others are waited for; raises what there is to raise.

    Raises:
        RankError: one of them did not come.
    """

    def __init__(
        self, place: Place, silence_seconds: float = SECONDS_TO_COME, look: Callable[[], None] = lambda: None
    ) -> None:
        self.index, self.size = place.index, place.size
        self.place = place
        self._silence_seconds = silence_seconds
        self._n_meetings = 0
        self._dead: list[int] = []
        self._beaten_at = time.monotonic()
        self._sent = [0.0, 0.0]  # MiB and messages since they were last asked for
        self.name = f"run {next(_COUNT)} of start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        store, self.address = self._open_store(look)
        self._store = PrefixStore(self.name, store)  # torchrun's goes on to the next run, and to the next start
        self.nodes = self._call_the_roll(look)
        if place.interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", place.interface)
        with self._told("come"):
            dist.init_process_group(
                "gloo",
                store=PrefixStore("ranks", self._store),
                rank=self.index,
                world_size=self.size,
                timeout=timedelta(seconds=_SECONDS_TO_CONNECT),
            )
            self._patient: dist.ProcessGroup | None = dist.new_group(
                backend="gloo", timeout=timedelta(seconds=SECONDS_TO_COME)
            )
        self._store.set_timeout(timedelta(seconds=_SECONDS_TO_SAY_WHY))  # who does not answer for so long is gone
        self._patient_gradients = self._counts = self._gradients = self._patient

    def learn_on(self, device: torch.device, silence_seconds: float) -> None:
        """Makes the groups that count and add up gradients, once the device is known; all ranks do so at once."""
        self._silence_seconds = silence_seconds
        silence = timedelta(seconds=silence_seconds)
        with self._told("begin"):
            self._counts = self._gradients = dist.new_group(backend="gloo", timeout=silence)
            if device.type == "cuda":
                n_visible = torch.cuda.device_count()
                torch.cuda.set_device(self.place.local_index if n_visible >= self.place.local_size else 0)
                self._gradients = self._patient_gradients = dist.new_group(backend="nccl", timeout=silence)

    # --- what rank 0 and the others do alike --------------------------------------------------------------------------

    def share(self, content: Any = None) -> Any:
        """See `Peers`."""
        return self._share(content, self._patient)

    def _share(self, content: Any, group: dist.ProcessGroup | None) -> Any:
        buffer = io.BytesIO()
        if self.index == 0:
            torch.save(content, buffer)
        shared = [buffer.getvalue()]
        with self._told("share"):
            dist.broadcast_object_list(shared, src=0, group=group)
        self._count(len(shared[0]) if self.index == 0 else 0)
        return torch.load(io.BytesIO(shared[0]), map_location="cpu", weights_only=False)

    def meet(self, n_agent_steps: int, ends: bool, signal: int) -> Met:
        """See `Peers`."""
        told = [int(signal == number) for number in STOP_SIGNALS]
        steps, wanting, *told = self._sum([n_agent_steps, int(ends), *told])
        self._n_meetings += 1
        signals = [number for number, n_ranks in zip(STOP_SIGNALS, told, strict=True) if n_ranks]
        return Met(steps, wanting > 0 or bool(signals), int(signals[0]) if signals else 0)

    def reduce(self, parameters: FlatParameters, weight: Tensor | None) -> None:
        """See `Peers`."""
        summed = parameters.gradients if weight is None else parameters.gradients_and_weight
        if weight is not None:
            parameters.gradients.mul_(weight)
            summed[-1] = weight
        self._add_up(summed)
        if weight is not None:
            parameters.gradients.div_(summed[-1].clamp(min=1.0))

    def total(self, figures: Tensor) -> Tensor:
        """See `Peers`."""
        self._add_up(figures)
        return figures

    def gather(self, report: WorkerReport | None) -> Sequence[WorkerReport]:
        """See `Peers`."""
        reports: list[WorkerReport | None] | None = [None] * self.size if self.index == 0 else None
        with self._told("report"):
            dist.gather_object(report, reports, dst=0, group=self._counts)
        return [other for other in reports or [] if other is not None]

    def take_sent(self) -> tuple[float, float]:
        """What this rank handed over since the last call: MiB and messages."""
        sent, self._sent = self._sent, [0.0, 0.0]
        return sent[0], sent[1]

    # --- standing still -----------------------------------------------------------------------------------------------

    def heartbeat(self) -> int:
        """See `Peers`."""
        if time.monotonic() - self._beaten_at < _SECONDS_BETWEEN_HEARTBEATS:
            return 0
        return self._beat(released=False)

    def release(self, release: Release) -> None:
        """See `Peers`."""
        self._beat(released=True)
        self._share(release, self._counts)

    def stand(self, signal: Callable[[], int]) -> Release:
        """See `Peers`."""
        while self._stands(signal()):
            pass
        release = self._share(None, self._counts)
        assert isinstance(release, Release)
        return release

    def _beat(self, released: bool) -> int:
        """Signal that one of the others got; 0: none."""
        self._beaten_at = time.monotonic()
        _, *told = self._sum([int(released), *(0 for _ in STOP_SIGNALS)])
        return next((int(number) for number, n_ranks in zip(STOP_SIGNALS, told, strict=True) if n_ranks), 0)

    def _stands(self, signal: int) -> bool:
        released, *_ = self._sum([0, *(int(signal == number) for number in STOP_SIGNALS)])
        return not released

    # --- the end ------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Lets the others know why this rank cannot go on; call it before `close`."""
        if isinstance(error, RankError):  # known to all
            return
        first = str(error).split("\n")[0]
        named = first if isinstance(error, Exception) and first.endswith(".") else f"{type(error).__name__}: {first}"
        with suppress(RuntimeError):
            self._store.set(f"failed/{self.index}", f"{self._name(self.index)} failed: {named}")
            self._store.set(f"asked/{self.index}", "")
            if self.index == 0:
                self._store.set("verdict", self._store.get(f"failed/{self.index}").decode())

    def close(self, failed: bool = False) -> None:
        """Leaves the others; after a failure, rank 0 waits a moment for those who will ask why."""
        self._hang_up()
        if failed and self.index == 0 and not self.place.rendezvous.is_kept:
            seconds = _SECONDS_TO_CONNECT if self._is_warming_up else _SECONDS_TO_SAY_WHY
            deadline = time.monotonic() + seconds
            asked = [f"asked/{other}" for other in range(1, self.size) if other not in self._dead]
            with suppress(RuntimeError):
                while time.monotonic() < deadline and not self._store.check(asked):
                    time.sleep(0.05)

    def _hang_up(self) -> None:
        self._patient = self._patient_gradients = self._counts = self._gradients = None  # the last reference closes it
        with suppress(Exception):  # of connections that are broken, or closed already
            dist.destroy_process_group()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns a broken connection into the sentence that says whose it was."""
        try:
            yield
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the connections, which would stay open
            raise RankError(self._find_out(str(error), what)) from None

    def _find_out(self, error: str, what: str) -> str:
        silent = "imed out" in error or "timeout" in error.lower()
        lost = "said nothing for too long" if silent else "died, or cannot be reached"
        if silent and not self._is_warming_up:
            lost = f"said nothing for {self._silence_seconds:g} seconds"
        self._hang_up()  # who waits for this rank, and not for the one that is lost, hears of it so
        if self.index == 0:
            verdict = self._judge(lost, error, what)
            self._store.set("verdict", verdict)
            return verdict
        asks = _Question(self._store, self.index)
        asks.start()
        begun = time.monotonic()
        while asks.is_alive() and time.monotonic() - asks.answered_at < 2 * _SECONDS_TO_SAY_WHY:
            asks.join(0.1)
            if time.monotonic() - begun > max(self._silence_seconds, 2 * _SECONDS_TO_SAY_WHY):
                break  # its store answers, and it itself does not
        return asks.verdict or f"{self._name(0)} {lost}."

    def _judge(self, lost: str, error: str, what: str) -> str:
        """By rank 0: who is to blame, once the others have had time to speak."""
        others = range(1, self.size)
        end = time.monotonic() + _SECONDS_TO_SAY_WHY
        while True:
            failed = [other for other in others if self._store.check([f"failed/{other}"])]
            spoke = [other for other in others if other in failed or self._store.check([f"alive/{other}"])]
            if failed or len(spoke) == len(others) or time.monotonic() > end:
                break
            time.sleep(0.05)
        if failed:
            return self._store.get(f"failed/{failed[0]}").decode()
        self._dead = [other for other in others if other not in spoke]
        if self._dead:
            return f"{' and '.join(map(self._name, self._dead))} {lost}."
        return f"The connection between the ranks broke when they were to {what}: {error.splitlines()[0]}."

    # --- how ----------------------------------------------------------------------------------------------------------

    def _name(self, index: int) -> str:
        return f"Rank {index} on {self.nodes[index]}"

    def _sum(self, numbers: Sequence[int]) -> list[int]:
        summed = torch.tensor(numbers, dtype=torch.int64)
        with self._told("meet"):
            dist.all_reduce(summed, group=self._patient if self._is_warming_up else self._counts)
        self._count(8 * len(numbers))
        found: list[int] = summed.tolist()
        return found

    def _add_up(self, summed: Tensor) -> None:
        with self._told("add up gradients"):
            dist.all_reduce(summed, group=self._patient_gradients if self._is_warming_up else self._gradients)
        self._count(summed.numel() * summed.element_size())

    @property
    def _is_warming_up(self) -> bool:
        return self._n_meetings < _MEETINGS_TO_WARM_UP

    def _count(self, n_bytes: int) -> None:
        self._sent[0] += n_bytes / _MIB
        self._sent[1] += 1

    def _open_store(self, look: Callable[[], None]) -> tuple[TCPStore, tuple[str, int]]:
        """The store, and where others of this run find it."""
        rendezvous = self.place.rendezvous
        timeout = timedelta(seconds=SECONDS_TO_COME)
        if self.index == 0 and not rendezvous.is_kept:
            listener = _listen(rendezvous)
            port = listener.getsockname()[1]
            store = TCPStore(
                rendezvous.host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timeout,
                master_listen_fd=listener.detach(),
            )
            rendezvous.publish(port)
            return store, (rendezvous.host, port)
        host, port = rendezvous.find(SECONDS_TO_COME)
        _wait_for_listener(host, port, look)
        try:
            return TCPStore(host, port, is_master=False, timeout=timeout), (host, port)
        except RuntimeError:
            raise RankError(f"Rank 0 at {host}, port {port}, went away before all ranks had come.") from None

    def _call_the_roll(self, look: Callable[[], None]) -> list[str]:
        """The nodes of all ranks, once they are there."""
        keys = [f"here/{index}" for index in range(self.size)]
        self._store.set(keys[self.index], self.place.node)
        end = time.monotonic() + SECONDS_TO_COME
        try:
            while not self._store.check(keys):
                look()
                if time.monotonic() > end:
                    missing = [str(i) for i, key in enumerate(keys) if not self._store.check([key])]
                    who = f"Rank {missing[0]}" if len(missing) == 1 else f"Ranks {', '.join(missing)}"
                    raise RankError(f"{who} of {self.size} did not come within {SECONDS_TO_COME:g} seconds.")
                time.sleep(0.02)
            return [self._store.get(key).decode() for key in keys]
        except RuntimeError:
            raise RankError("Rank 0 went away before all ranks had come.") from None


class _Question(threading.Thread):
    """A rank above 0 asks rank 0's store for the verdict, in a thread: a store that hangs keeps who asks it."""

    def __init__(self, store: PrefixStore, index: int) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._index = index
        self.answered_at = time.monotonic()
        self.verdict = ""

    def run(self) -> None:
        """Until there is a verdict, or no store any more."""
        with suppress(RuntimeError):
            self._store.set(f"alive/{self._index}", "")
            while not self._store.check(["verdict"]):
                self.answered_at = time.monotonic()
                time.sleep(0.05)
            self.verdict = self._store.get("verdict").decode()
            self._store.set(f"asked/{self._index}", "")


def _wait_for_listener(host: str, port: int, look: Callable[[], None]) -> None:
    """Until rank 0 listens: torch's own client waits longer from try to try, and complains of each."""
    end = time.monotonic() + SECONDS_TO_COME
    while True:
        try:
            socket.create_connection((host, port), timeout=_SECONDS_TO_SAY_WHY).close()
            return
        except OSError:
            look()
            if time.monotonic() > end:
                raise RankError(
                    f"Rank 0 is not to be found at {host}, port {port}, within {SECONDS_TO_COME:g} seconds."
                ) from None
            time.sleep(0.1)


def _listen(rendezvous: Rendezvous) -> socket.socket:
    """A socket that listens at the address of the rendezvous alone, on a port of its own or on the one that is set."""
    port = rendezvous.port if isinstance(rendezvous, Fixed) else 0
    try:
        listener = socket.create_server((rendezvous.host, port), backlog=1024)
    except OSError as error:
        raise ConfigError(f"Rank 0 cannot listen at {rendezvous.host}, port {port}: {error.strerror}.") from error
    return listener
