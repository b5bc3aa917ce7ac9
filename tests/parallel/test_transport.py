"""The parameter server's transport: what is pushed arrives whole, once, in turn, and there is room for one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing as mp

from a3c_bench.parallel.arrays import SharedArrays
from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.parallel.transport import Port, SharedMemoryTransport, SharedServer

NO_SAMPLES = np.zeros((2, 4))


def make_server(n_shards: int, n_learners: int = 1, size: int = 10) -> SharedServer:
    return SharedServer(torch.arange(float(size)).share_memory_(), n_shards, n_learners, (2, 4))


@pytest.mark.parametrize("n_shards", [1, 3, 10])
def test_the_shards_own_all_and_nothing_twice(n_shards: int) -> None:
    server = make_server(n_shards)
    owned = np.concatenate([np.arange(10)[part] for part in server.parts])
    assert owned.tolist() == list(range(10))
    sizes = [part.stop - part.start for part in server.parts]
    assert max(sizes) - min(sizes) <= 1


def test_fetching_gives_parameters_with_their_versions() -> None:
    server = make_server(2)
    transport, into = SharedMemoryTransport(server), torch.zeros(10)
    server.versions[:] = torch.tensor([3, 4])
    assert transport.fetch(into).tolist() == [3, 4]
    assert torch.equal(into, torch.arange(10.0))
    server.target[:] = 7.0
    server.target_versions[:] = torch.tensor([1, 2])
    assert transport.fetch(into, target=True).tolist() == [1, 2] == transport.target_versions
    assert set(into.tolist()) == {7.0}


def test_a_gradient_goes_to_every_shard_once() -> None:
    server = make_server(3)
    transport, ports = SharedMemoryTransport(server, 0), [Port(server, shard) for shard in range(3)]
    assert transport.room(0.0)
    gradient, samples = torch.randn(10), np.arange(8.0).reshape(2, 4)
    transport.push(gradient, np.array([5, 6, 7]), samples)
    gradient_then = gradient.clone()
    gradient.zero_()  # it was copied
    parts = []
    for shard, port in enumerate(ports):
        assert not transport.room(0.0)
        push = port.receive(0.0)
        assert push is not None
        assert (push.learner, push.version) == (0, 5 + shard)
        np.testing.assert_array_equal(push.samples, samples)
        parts.append(push.gradient.clone())
        port.done(push)
        assert port.receive(0.0) is None
    assert torch.equal(torch.cat(parts), gradient_then)
    assert transport.room(0.0)


def test_learners_are_served_in_turn() -> None:
    server = make_server(1, n_learners=3)
    learners, port = [SharedMemoryTransport(server, i) for i in range(3)], Port(server, 0)
    served = []
    for learner in learners:
        learner.room(0.0)
        learner.push(torch.zeros(10), np.zeros(1), NO_SAMPLES)
    for _ in range(9):
        push = port.receive(0.0)
        assert push is not None
        served.append(push.learner)
        port.done(push)
        assert learners[push.learner].room(0.0)
        learners[push.learner].push(torch.zeros(10), np.zeros(1), NO_SAMPLES)
    assert sorted(served[:3]) == [0, 1, 2]
    assert served[3:] == served[:3] * 2


def test_the_servers_state_comes_back() -> None:
    server, other = make_server(2), make_server(2)
    server.target[:], server.versions[:], server.target_versions[:] = 3.0, torch.tensor([8, 9]), 4
    other.load_state_dict({key: x.clone() for key, x in server.state_dict().items()})
    for key, tensor in server.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


# --- between processes ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    server: SharedServer
    arrays: SharedArrays


def push_many(job: Job, learner: int) -> None:
    transport, theta = SharedMemoryTransport(job.server, learner), torch.zeros(10)
    for i in range(200):
        assert transport.room(60.0)
        versions = transport.fetch(theta)
        transport.push(torch.full((10,), float(learner + 1)), versions, np.full((2, 4), float(i)))
    assert transport.room(60.0)
    job.arrays("numbers", (2, 3), np.dtype(np.int64))[learner] = learner + 5


def test_nothing_is_lost_between_processes() -> None:
    """Two learners of 200 gradients each, and two shards in this process that add them up."""
    arrays = SharedArrays()
    numbers = arrays("numbers", (2, 3), np.dtype(np.int64))
    server = make_server(2, n_learners=2)
    server.theta.zero_()
    start_fork_server()
    context: Any = mp.get_context("forkserver")  # which has imported torch already
    processes = [context.Process(target=push_many, args=(Job(server, arrays), learner)) for learner in range(2)]
    for process in processes:
        process.start()
    ports, counts = [Port(server, shard) for shard in range(2)], [0, 0]
    seen: dict[int, list[float]] = {0: [], 1: []}
    while min(counts) < 400:
        for shard, port in enumerate(ports):
            if counts[shard] < 400 and (push := port.receive(30.0)) is not None:
                server.theta[server.parts[shard]] += push.gradient
                server.versions[shard] += 1
                counts[shard] += 1
                assert 0 <= push.version < counts[shard]
                if shard == 0:
                    seen[push.learner].append(push.samples[0, 0])
                port.done(push)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert set(server.theta.tolist()) == {200.0 * 1 + 200.0 * 2}
    assert seen == {0: list(range(200)), 1: list(range(200))}
    assert numbers.tolist() == [[5, 5, 5], [6, 6, 6]]
    arrays.close()


def test_what_is_published_counts_and_renews_the_target_in_its_turn() -> None:
    server = SharedServer(torch.zeros(6), 2, 1, (1, 1))
    first, second = Port(server, 0), Port(server, 1)
    for n in (1, 2, 3):
        with first.publish(target_period=2):
            assert first.version == n - 1
            assert not server.locks[0].take(0.0)  # nobody reads it
            assert server.locks[1].take(0.0)
            server.locks[1].give()
            first.theta.add_(1.0)
    assert server.theta.tolist() == [3.0] * 3 + [0.0] * 3
    assert server.target.tolist() == [2.0] * 3 + [0.0] * 3
    assert (first.version, second.version) == (3, 0)
    assert server.target_versions.tolist() == [2, 0]
    assert server.locks[0].take(0.0)


def test_what_fails_is_not_published() -> None:
    server = SharedServer(torch.zeros(6), 2, 1, (1, 1))
    port = Port(server, 0)
    with pytest.raises(ZeroDivisionError), port.publish(target_period=1):
        raise ZeroDivisionError
    assert port.version == 0
    assert server.locks[0].take(0.0)
