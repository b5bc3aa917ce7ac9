"""Gorila on several ranks, with all its processes: nothing is lost, nothing is applied twice, and nobody is left."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from ranked import LONG, SECONDS_TO_END, Start, all_end, children, directory, rows, state_of, wait_for, wait_for_updates

from a3c_bench.parallel.remote import Wire
from a3c_bench.runtime.directory import read_status

pytestmark = pytest.mark.timeout(300)
WORDS = (
    "algo=gorila",
    "algo.n_learners=1",
    "algo.envs_per_actor=1",
    "algo.n_shards=2",
    "algo.shard_ranks=2",
    "algo.max_staleness_updates=null",  # so that both shards apply all there is
    "algo.replay.capacity_agent_steps=2000",
    "algo.replay.learning_starts_agent_steps=100",
    "algo.replay.batch_size=8",
    "metrics_interval_frames=400",
)


def assert_nothing_was_lost(saved: dict[str, Any]) -> None:
    """Of two shards on two ranks, each has applied every gradient, and the optimiser's statistics are those of both."""
    n_updates = saved["counters"]["updates"]
    assert saved["parts"]["server"]["versions"].tolist() == [n_updates] * 2
    assert n_updates > 20
    steps = [float(saved["parts"][f"statistics_{shard}"]["step"]) for shard in range(2)]  # Adam's
    assert steps == [n_updates] * 2


def test_two_ranks_make_one_run(ranks: Start, tmp_path: Path) -> None:
    words = (*WORDS, "budget.frames=1600")
    assert all_end(ranks(2, *words), 120.0) == [0, 0]
    run = directory(tmp_path, 2, *words)
    saved, found, status = state_of(run), rows(run, "metrics"), read_status(run)
    assert_nothing_was_lost(saved)
    assert status["updates"] == saved["counters"]["updates"] <= status["frames"] / 4
    assert float(found[-1]["frames"]) == status["frames"] >= 1600
    assert 0.9 * status["frames"] < float(found[-1]["replay_agent_steps"]) < 1.1 * status["frames"]  # of both ranks
    seconds = [float(row["wall_seconds"]) for row in found]
    sent = sum(
        float(row["sent_mib_per_second"]) * (now - before) * 2**20
        for row, now, before in zip(found, seconds, [0.0, *seconds], strict=False)
    )
    n_parameters = sum(tensor.numel() for tensor in saved["parts"]["network"].values())
    per_update = sum(Wire(n_parameters // 2, (8, 4), False).bytes_per_update for _ in range(2))
    assert 1.0 < sent / (per_update * status["updates"]) < 2.0  # the rest is what was asked for
    assert all(0.0 < float(row["share_communicate"]) < 1.0 for row in found)
    lag = rows(run, "lag")
    assert all(float(row["lag_frames_p50"]) >= 0.0 and float(row["lag_seconds_p50"]) >= 0.0 for row in lag)
    assert sum(float(row["gradient_staleness_updates_mean"]) for row in lag) > 0.0  # they learn at once


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_whole_updates_and_the_run_goes_on(ranks: Start, tmp_path: Path) -> None:
    words = (*WORDS, "algo.optimizer.anneal=false")
    run = directory(tmp_path, 2, *words, "budget.frames=100000000")
    processes = ranks(2, *words, "budget.frames=100000000")
    wait_for_updates(run)
    processes[1].send_signal(signal.SIGTERM)
    assert all_end(processes) == [128 + signal.SIGTERM] * 2
    assert read_status(run)["state"] == "preempted"
    before = state_of(run)
    assert_nothing_was_lost(before)
    assert all_end(ranks(2, *words, f"budget.frames={before['counters']['frames'] + 1000}"), 120.0) == [0, 0]
    after = state_of(run)
    assert_nothing_was_lost(after)
    assert after["counters"]["updates"] > before["counters"]["updates"] + 20


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["bundle", "leader"])
def test_whoever_is_killed_ends_all_ranks_and_the_rank_is_named(lost: str, ranks: Start, tmp_path: Path) -> None:
    processes = ranks(2, *WORDS, *LONG)
    run = directory(tmp_path, 2, *WORDS, *LONG)
    wait_for_updates(run)
    workers = {
        process.pid: [worker for server in children(process.pid) for worker in children(server)]
        for process in processes
    }
    everyone = [pid for of_rank in workers.values() for pid in of_rank]
    assert [len(workers[process.pid]) for process in processes] == [2, 2]  # a bundle and a shard each
    bundle = max(workers[processes[1].pid])  # it was started last
    os.kill(bundle if lost == "bundle" else processes[1].pid, signal.SIGKILL)
    survivors = processes if lost == "bundle" else processes[:1]
    assert all_end(survivors) == [1] * len(survivors)
    said = f"Rank 1 on {socket.gethostname()} "
    said += "failed: Bundle 1 was killed by SIGKILL." if lost == "bundle" else "died, or cannot be reached."
    assert said in processes[0].stderr
    status = read_status(run)
    assert status["state"] == "failed"
    assert said in status["error"]
    n_updates = state_of(run)["parts"]["server"]["versions"].tolist()  # of shard 1, when all stood still last
    assert n_updates[0] == state_of(run)["counters"]["updates"] >= n_updates[1] > 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone), SECONDS_TO_END)
