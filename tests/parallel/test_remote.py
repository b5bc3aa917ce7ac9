"""The parameter server across machines: what is pushed arrives whole and once, versions are right, ends end."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pairs import meeting, side_by_side
from torch import multiprocessing as mp

from a3c_bench.errors import RankError
from a3c_bench.parallel import remote
from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.parallel.remote import Meeting, RemotePort, RemoteTransport, Wire, wires
from a3c_bench.parallel.transport import Push, Sent, SharedServer

NO_SAMPLES = np.zeros((2, 4))


class Ends(NamedTuple):
    """All of a parameter server, in one process."""

    server: SharedServer
    transports: list[RemoteTransport]
    ports: list[RemotePort]


def make_server(n_shards: int, keeps_theta: bool = False, size: int = 10) -> SharedServer:
    return SharedServer(torch.arange(float(size)).share_memory_(), n_shards, 0, (2, 4), keeps_theta)


@contextmanager
def connected(server: SharedServer, n_bundles: int = 1) -> Iterator[Ends]:
    n_shards = len(server.parts)
    shards, bundles = ([f"{kind} {i}" for i in range(n)] for kind, n in (("shard", n_shards), ("bundle", n_bundles)))
    with meeting() as place:
        ends = side_by_side(
            *(lambda i=i: remote.pairs_of_bundle(place, i, shards) for i in range(n_bundles)),
            *(lambda s=s: remote.pairs_of_shard(place, s, bundles) for s in range(n_shards)),
        )
        transports = [RemoteTransport(pairs, server) for pairs in ends[:n_bundles]]
        ports = [RemotePort(server, shard, pairs) for shard, pairs in enumerate(ends[n_bundles:])]
        yield Ends(server, transports, ports)
        for transport in transports:
            transport.leave()
        for port in ports:
            port.leave()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("desk")]


def received(port: RemotePort) -> Push:
    push = port.receive(10.0)
    assert push is not None
    return push


def apply(port: RemotePort, target_period: int = 1000) -> Push:
    """Adds the next gradient; gives a copy of the samples and the versions, for what came is overwritten then."""
    push = received(port)
    with port.publish(target_period):
        port.theta.add_(push.gradient)
    kept = push._replace(samples=push.samples.copy())
    port.done(push)
    return kept


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_gradient_goes_to_every_shard_once_with_all_that_is_told_of_it(n_shards: int) -> None:
    with connected(make_server(n_shards, keeps_theta=True)) as (server, (transport,), ports):
        gradient, samples, theta = torch.randn(10), np.arange(8.0).reshape(2, 4), torch.randn(10)
        assert transport.room(0.0)
        transport.push(gradient, np.arange(5, 5 + n_shards), samples, theta)
        pushes = [received(port) for port in ports]
        for shard, (port, push) in enumerate(zip(ports, pushes, strict=True)):
            assert (push.learner, push.version) == (0, 5 + shard)
            np.testing.assert_array_equal(push.samples, samples)
            assert push.theta is not None
            assert torch.equal(push.theta, theta[server.parts[shard]])
            assert port.receive(0.0) is None
        assert torch.equal(torch.cat([push.gradient for push in pushes]), gradient)
        for port, push in zip(ports, pushes, strict=True):
            port.done(push)
        transport.settle()


def test_the_reply_to_a_gradient_is_the_next_fetch_and_only_that() -> None:
    """By hand: bundle 0 learns at version 0 of both shards, bundle 1 changes theta, bundle 0 sees it when it asks."""
    with connected(make_server(2), n_bundles=2) as (server, (one, two), ports):
        theta = torch.zeros(10)
        assert one.fetch(theta).tolist() == [0, 0]
        assert torch.equal(theta, torch.arange(10.0))
        one.push(torch.ones(10), np.array([0, 0]), NO_SAMPLES)
        for port in ports:
            apply(port)
        one.settle()
        assert (one.version, two.version) == (1, 0)
        two.push(torch.ones(10), np.array([0, 0]), NO_SAMPLES)
        assert [apply(port).version for port in ports] == [0, 0]  # computed at 0, applied to version 1: 1 update stale
        two.settle()
        assert one.fetch(theta).tolist() == [1, 1]  # what came with the reply
        assert torch.equal(theta, torch.arange(10.0) + 1.0)
        assert one.fetch(theta).tolist() == [2, 2]  # asked for
        assert torch.equal(theta, torch.arange(10.0) + 2.0)
        assert server.versions.tolist() == [2, 2]


def test_target_networks_and_their_versions_come_too() -> None:
    with connected(make_server(2)) as (_, (transport,), ports):
        theta = torch.zeros(10)
        for n in range(1, 4):
            versions = transport.fetch(theta)
            transport.push(torch.ones(10), versions, NO_SAMPLES)
            for port in ports:
                apply(port, target_period=2)
            transport.settle()
            assert transport.target_versions == [2 * (n // 2)] * 2
        assert transport.fetch(theta, target=True).tolist() == [2, 2]
        assert torch.equal(theta, torch.arange(10.0) + 2.0)
        assert transport.fetch(theta).tolist() == [3, 3]  # not the target network that the last reply had
        assert torch.equal(theta, torch.arange(10.0) + 3.0)


def test_what_one_update_costs_is_what_was_computed() -> None:
    """P=10 in 2 shards: 2 x (request 16, samples 2 x 4 x 8, reply 16) and gradient and theta of 4 bytes each."""
    with connected(make_server(2)) as (server, (transport,), ports):
        transport.fetch(torch.zeros(10))
        assert transport.take_sent() == Sent(2 * 16, 2)
        assert Sent.total(port.take_sent() for port in ports) == Sent(2 * 16 + 10 * 4, 2)
        for _ in range(3):
            transport.room(0.0)
            transport.push(torch.ones(10), transport.fetch(torch.zeros(10)), NO_SAMPLES)
            for port in ports:
                apply(port)
            transport.settle()
        transport.fetch(torch.zeros(10))  # with the last reply, as two of those before; the first had to be asked for
        sent = Sent.total([transport.take_sent(), *(port.take_sent() for port in ports)])
        per_update = sum(wire.bytes_per_update for wire in wires(server))
        assert per_update == 2 * (16 + 64 + 16) + 2 * 4 * 10
        asked = 2 * 16 + 2 * 16 + 10 * 4
        assert sent == Sent(3 * per_update + asked, 3 * 6 + 4)


def test_an_update_of_the_papers_network_costs_eight_bytes_per_parameter() -> None:
    assert Wire(1_687_206, (32, 4), False).bytes_per_update == 8 * 1_687_206 + 16 + 32 * 4 * 8 + 16
    assert Wire(1_687_206, (32, 4), True).bytes_per_update == 12 * 1_687_206 + 16 + 32 * 4 * 8 + 16


def test_a_bundle_settles_when_all_it_sent_was_applied() -> None:
    with connected(make_server(1)) as (server, (transport,), (port,)):
        transport.push(torch.ones(10), np.zeros(1, dtype=np.int64), NO_SAMPLES)
        settled = threading.Thread(target=transport.settle)
        settled.start()
        push = received(port)
        settled.join(0.05)
        assert settled.is_alive()
        port.done(push)
        settled.join(10.0)
        assert not settled.is_alive()
        assert server.versions.tolist() == [0]


# --- between processes ------------------------------------------------------------------------------------------------


def push_many(server: SharedServer, place: Meeting, bundle: int, n_gradients: int) -> None:
    transport = RemoteTransport(remote.pairs_of_bundle(place, bundle, ["shard 0", "shard 1"]), server)
    theta = torch.zeros(10)
    for i in range(n_gradients):
        versions = transport.fetch(theta)
        transport.push(torch.full((10,), float(bundle + 1)), versions, np.full((2, 4), float(i)))
        transport.room(0.0)
    transport.leave()


class Others(NamedTuple):
    processes: list[Any]
    ports: list[RemotePort]


@contextmanager
def bundles(server: SharedServer, n_gradients: int) -> Iterator[Others]:
    """Two processes that push to two shards in this one."""
    start_fork_server()
    context: Any = mp.get_context("forkserver")
    with meeting() as place:
        processes = [context.Process(target=push_many, args=(server, place, i, n_gradients)) for i in range(2)]
        for process in processes:
            process.start()
        names = ["bundle 0 of rank 0", "bundle 1 of rank 1"]
        pairs = side_by_side(*(lambda s=s: remote.pairs_of_shard(place, s, names) for s in range(2)))
        try:
            yield Others(processes, [RemotePort(server, shard, pairs[shard]) for shard in range(2)])
        finally:
            for process in processes:
                process.kill()
                process.join(10)


def test_nothing_is_lost_between_processes() -> None:
    server = make_server(2)
    server.theta.zero_()
    seen: dict[int, list[float]] = {0: [], 1: []}
    with bundles(server, 100) as (processes, ports):
        for _ in range(200):
            push = apply(ports[0])
            seen[push.learner].append(push.samples[0, 0])
            apply(ports[1])
        for port in ports:
            port.leave()
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    assert set(server.theta.tolist()) == {100.0 * 1 + 100.0 * 2}
    assert seen == {0: list(range(100)), 1: list(range(100))}


def apply_until(end: float, ports: list[RemotePort], served: list[int]) -> None:
    while time.monotonic() < end:
        for port in ports:
            served.append(apply(port).learner)


def test_a_bundle_that_is_killed_is_named_in_seconds_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS_FOR_THE_CAUSE", 0.5)
    server = make_server(2)
    with bundles(server, 10**6) as (processes, ports):
        for _ in range(20):
            for port in ports:
                apply(port)
        os.kill(processes[1].pid, signal.SIGKILL)
        killed_at, served = time.monotonic(), list[int]()
        with pytest.raises(RankError, match=r"The connection to bundle 1 of rank 1 broke \(.+\)\."):
            apply_until(killed_at + 30.0, ports, served)
        assert served.count(0) > 5
        assert time.monotonic() - killed_at < 10.0
