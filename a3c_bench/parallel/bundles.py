"""Who there is in a run of bundles and shards, and what the processes of one rank share; Gorila's learning is not here.

A run of one rank has all in its shared memory. With several, each has bundles of its own, the first `shard_ranks` have
the shards, and gradients cross by `remote`; a leader per rank runs the processes of that rank (`stages`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from a3c_bench.core.lag import Stamp
from a3c_bench.core.optim import SharedOptimizerState
from a3c_bench.core.replay import Replay
from a3c_bench.errors import RankError, WorkerError
from a3c_bench.parallel.arrays import SharedArrays
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.remote import (
    SECONDS_FOR_THE_CAUSE,
    Meeting,
    RemotePort,
    RemoteTransport,
    pairs_of_bundle,
    pairs_of_shard,
)
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.tokens import Tokens
from a3c_bench.parallel.transport import Port, Push, SharedMemoryTransport, SharedServer, Transport
from a3c_bench.parallel.workers import Workers
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.runtime.peers import Peers
from a3c_bench.runtime.session import Session

_MIB = 2.0**20


@dataclass(frozen=True)
class Roles:
    """How many there are on this rank, and who uses which replay."""

    n_actors: int
    n_learners: int
    n_shards: int  # of all ranks together
    envs_per_actor: int
    one_replay: bool
    rank: int = 0
    n_ranks: int = 1
    shard_ranks: int = 1  # ranks that have shards

    @property
    def n_bundles(self) -> int:
        """Processes beside the shards: bundles, or what is left of them where actors and learners differ in number."""
        return max(self.n_actors, self.n_learners)

    @property
    def n_replays(self) -> int:
        """One per bundle that has both, or one."""
        return 1 if self.one_replay else min(self.n_actors, self.n_learners)

    @property
    def shards(self) -> list[int]:
        """Those on this rank."""
        return list(range(self.rank, self.n_shards, self.shard_ranks)) if self.rank < self.shard_ranks else []

    def users(self, replay: int) -> list[int]:
        """The processes that write to a replay or draw from it."""
        return list(range(replay, self.n_bundles, self.n_replays))

    def n_envs(self, replay: int) -> int:
        """Environments whose steps a replay takes."""
        return self.envs_per_actor * len(range(replay, self.n_actors, self.n_replays))

    def number(self, index: int) -> int:
        """Of a bundle, in the whole run."""
        return self.rank * self.n_bundles + index

    @property
    def names(self) -> list[str]:
        """Of all processes of this rank, for messages."""
        names = []
        for i in range(self.n_bundles):
            kind = "bundle" if i < min(self.n_actors, self.n_learners) else "actor" if i < self.n_actors else "learner"
            names.append(f"{kind} {self.number(i)}")
        return names + [f"shard {i}" for i in self.shards]

    @property
    def all_bundles(self) -> list[str]:
        """Of all ranks, for messages of shards."""
        return [f"bundle {i} of rank {i // self.n_bundles}" for i in range(self.n_ranks * self.n_bundles)]

    @property
    def all_shards(self) -> list[str]:
        """Of all ranks, for messages of bundles."""
        return [f"shard {i} of rank {i % self.shard_ranks}" for i in range(self.n_shards)]


@dataclass
class Shared:
    """What all processes of a rank see at once."""

    roles: Roles
    server: SharedServer  # of several ranks, only the parts of this one's shards are up to date between standstills
    statistics: dict[int, SharedOptimizerState]  # of the optimiser, by shard
    tally: Tally  # a row for each bundle: its updates are the gradients that it has computed
    waits: Tensor  # [replays] int64: agent steps of this attempt before learning from a replay begins
    replays: dict[int, SharedArrays]  # their state, and their frames if several processes use them
    locks: dict[int, Tokens]  # of the replays that several processes use
    files: Path | None  # the directory of replays that outlive a run
    meeting: Meeting | None = None  # where the processes of several ranks find each other

    def n_gradients_due(self, replay: int, period: int) -> int:
        """That learners have still to compute from a replay, for the agent steps it has taken."""
        n_steps, n_computed = self.tally.of(self.roles.users(replay))
        return int(max(0, n_steps - int(self.waits[replay])) // period - n_computed)

    def wait_until_filled(self, replays: Sequence[Replay], n_agent_steps: int) -> None:
        """Lets learning begin when all replays of all ranks together hold so many."""
        n_replays = self.roles.n_ranks * len(replays)
        for index, replay in enumerate(replays):
            self.waits[index] = max(0, -(-n_agent_steps // n_replays) - len(replay))

    def exclusively(self, replay: int) -> AbstractContextManager[Any]:
        """The lock of a replay, where it needs one."""
        return self.locks.get(replay) or nullcontext()

    def for_bundle(self, index: int) -> "Shared":
        """What that process needs of it: each is handed some 250 file descriptors at most (see `gorila.check`)."""
        own = index % self.roles.n_replays
        return replace(
            self,
            server=self.server.for_learner(index),
            statistics={},
            replays={own: self.replays[own]},
            locks={i: lock for i, lock in self.locks.items() if i == own},
        )

    def for_shard(self, index: int) -> "Shared":
        """Likewise."""
        server, statistics = self.server.for_shard(index), {index: self.statistics[index]}
        return replace(self, server=server, statistics=statistics, replays={}, locks={})

    def transport(self, index: int) -> Transport:
        """Of a bundle, to all shards."""
        if self.meeting is None:
            return SharedMemoryTransport(self.server, index if index < self.roles.n_learners else None)
        pairs = pairs_of_bundle(self.meeting, self.roles.number(index), self.roles.all_shards)
        return RemoteTransport(pairs, self.server)

    def port(self, shard: int) -> Port:
        """Of a shard, to all bundles."""
        if self.meeting is None:
            return Port(self.server, shard)
        return RemotePort(self.server, shard, pairs_of_shard(self.meeting, shard, self.roles.all_bundles))

    @property
    def waiting(self) -> str:
        """The phase of bundles that wait for shards."""
        return "wait" if self.meeting is None else "communicate"

    def bring_together(self, peers: Peers) -> None:
        """Gives every rank what all shards have made of theta; they stand still, on all ranks."""
        if self.roles.shard_ranks == 1:
            return
        for shard, part in enumerate(self.server.parts):
            is_own = shard in self.roles.shards
            server = self.server
            tensors = [server.theta[part], server.target[part]]
            tensors += [x[shard : shard + 1] for x in (server.versions, server.target_versions)]
            for tensor in (*tensors, *self.statistics[shard].tensors.values()):
                whole = peers.total(tensor.clone() if is_own else torch.zeros_like(tensor))
                if not is_own:
                    tensor.copy_(whole)


def no_older(now: Stamp, push: Push) -> Stamp:
    """As `now`, but not before a sample was taken: ranks hear of each other's frames a moment late."""
    newest = push.samples.max(0)
    return now._replace(frames=max(now.frames, int(newest[1])), seconds=max(now.seconds, float(newest[2])))


def report_of(notes: Notes, end: Transport | Port) -> WorkerReport:
    """What was done since the last report, with what that end has sent."""
    sent = end.take_sent()
    if sent.n_messages:  # rank 0 tells the seconds, once for all
        notes.ratio("sent_mib_per_second", sent.n_bytes / _MIB, 0.0)
        notes.ratio("sent_messages_per_second", float(sent.n_messages), 0.0)
    return notes.report()


# --- the leader of a rank ---------------------------------------------------------------------------------------------


class Processes(Protocol):
    """As `Workers`, whose face this is."""

    def poll(self, timeout: float) -> None:
        """Hands over the reports that have come, or come within `timeout` seconds."""

    def standstill(self) -> AbstractContextManager[None]:
        """While entered, no process does anything, and all they did has been reported."""

    def stop(self) -> None:
        """They end when they are done with what they are at."""


class _Stages:
    """The processes of a rank: bundles stand still before shards do, on all ranks, so that nothing is under way."""

    def __init__(self, shards: Workers, bundles: Workers, shared: Shared, peers: Peers) -> None:
        self._shards, self._bundles = shards, bundles
        self._shared, self._peers = shared, peers

    def poll(self, timeout: float) -> None:
        """See `Processes`."""
        self._bundles.poll(timeout)
        self._shards.poll(0.0)

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """See `Processes`; all ranks enter it at the same meeting."""
        with self._bundles.standstill(), self._shards.standstill():
            self._shared.bring_together(self._peers)
            yield

    def stop(self) -> None:
        """See `Processes`."""
        self._bundles.stop()
        self._shards.stop()


class Leader:
    """Runs the processes of a rank, and tells the session, and the other ranks, what they do.

    Args:
        session: of the run; on ranks above 0, what is in its place.
        shared: by these processes.
        replays: of this rank.
    """

    def __init__(self, session: Session, shared: Shared, replays: Sequence[Replay]) -> None:
        self._session = session
        self._shared = shared
        self._replays = replays
        self._n_reported = 0  # agent steps of this rank, of this attempt
        self._n_stored_elsewhere = 0

    @property
    def n_stored(self) -> int:
        """Agent steps in the replays of all ranks."""
        return sum(map(len, self._replays)) + self._n_stored_elsewhere

    @contextmanager
    def processes(self, main: Callable[..., None]) -> Iterator[Processes]:
        """Starts them; all have ended afterwards.

        Args:
            main: as `Workers` calls it, with (config, shared, index, attempt); shards come after the bundles.

        Raises:
            RankError: of several ranks, another one is lost.
            WorkerError: one of the processes is.
        """
        session, shared, roles = self._session, self._shared, self._shared.roles
        shares = [shared.for_bundle(index) for index in range(roles.n_bundles)]
        shares += [shared.for_shard(shard) for shard in roles.shards]
        arguments = [(session.config, share, index, session.attempt) for index, share in enumerate(shares)]
        silence, names, n = session.config.worker_silence_seconds, roles.names, roles.n_bundles
        if shared.meeting is None:
            with Workers(main, arguments, self._take, silence, names) as workers:
                yield workers
            return
        with Workers(main, arguments[n:], self._take, silence, names[n:]) as shards:

            def on_all_ranks(holds: bool) -> bool:
                shards.poll(0.0)
                return not session.peers.total(torch.tensor([int(not holds)]))[0]

            silence += SECONDS_FOR_THE_CAUSE  # of a bundle that waits for a silent shard, which is to be named
            try:
                with Workers(main, arguments[:n], self._take, silence, names[:n], on_all_ranks) as bundles:
                    yield _Stages(shards, bundles, shared, session.peers)
            except RankError:
                if shards.ready:
                    with suppress(WorkerError), shards.standstill():  # what is saved then is no half of an update
                        shards.stop()
                raise
        shared.bring_together(session.peers)

    def meet(self) -> None:
        """Lets all ranks know what each has done; they all call it equally often."""
        session, n_ranks = self._session, self._shared.roles.n_ranks
        session.timer.start()  # what a leader did since it last met the others is no phase of learning
        session.meet()
        if n_ranks > 1:  # until they meet again, others are taken to do as much as this one
            self._shared.tally.begin(session.counters.agent_steps - n_ranks * self._n_reported, 0)
            stored = sum(map(len, self._replays))
            self._n_stored_elsewhere = int(session.peers.total(torch.tensor([stored]))[0]) - stored

    def _take(self, report: WorkerReport) -> None:
        self._n_reported += report.n_agent_steps
        self._session.take(report)
