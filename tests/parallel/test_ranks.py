"""Several ranks: one run, the numbers of one rank with all environments, and a sentence for whoever is lost."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ranked import (
    LONG,
    SECONDS_TO_END,
    TINY,
    Start,
    all_end,
    children,
    directory,
    rows,
    state_of,
    wait_for,
    wait_for_updates,
)

from a3c_bench.errors import ConfigError, RankError
from a3c_bench.parallel import others
from a3c_bench.parallel import ranks as parallel_ranks
from a3c_bench.parallel.ranks import Fixed, Place, Ranks
from a3c_bench.runtime.directory import read_status
from benchmarks import measure_ranks

VISIBLE = "CUDA_VISIBLE_DEVICES"
pytestmark = pytest.mark.timeout(300)


# --- the same numbers -------------------------------------------------------------------------------------------------

SAME = {
    "paac": ("algo=paac", "algo.optimizer.max_grad_norm=1.0"),
    "mean": ("algo=paac", "algo.loss_reduction=mean", "algo.optimizer.lr=0.01"),
    "sum": ("algo=paac", "algo.loss_reduction=sum", "algo.optimizer.lr=0.0001"),
    "vtrace": ("algo=paac", "algo.lag.updates=2", "advantage=vtrace"),
    "ppo": ("algo=ppo", "algo.t_max=16", "algo.n_epochs=2", "algo.n_minibatches=1", "algo.normalise_advantages=true"),
    "pqn": ("algo=pqn", "algo.t_max=8", "algo.n_epochs=2", "algo.n_minibatches=1"),
}


@pytest.mark.parametrize(
    ("case", "n_ranks"),
    [
        ("mean", 3),
        ("ppo", 2),
        *(pytest.param(case, 2, marks=pytest.mark.slow) for case in ("paac", "sum", "vtrace", "pqn")),
    ],
)
def test_ranks_compute_what_one_rank_with_all_environments_does(
    case: str, n_ranks: int, ranks: Start, tmp_path: Path
) -> None:
    """Up to the order in which gradients are added up; a long run would drift apart when first an action differs."""
    words = (*SAME[case], "budget.frames=1200", "metrics_interval_frames=200")
    runs = []
    for n in (1, n_ranks):
        own = (*words, f"algo.n_envs={6 // n}")
        assert all_end(ranks(n, *own)) == [0] * n
        runs.append(directory(tmp_path, n, *own))
    one, several = map(state_of, runs)
    assert several["counters"] == one["counters"]
    assert one["counters"]["updates"] > 20
    for name, tensor in one["parts"]["network"].items():
        torch.testing.assert_close(several["parts"]["network"][name], tensor, rtol=1e-3, atol=1e-5)
    episodes = [sorted((row["episode_return"], row["episode_length"]) for row in rows(run, "episodes")) for run in runs]
    assert episodes[0] == episodes[1]
    assert len(episodes[0]) > 10
    last = [rows(run, "metrics")[-1] for run in runs]
    for column in ("frames", "updates", "loss", "gradient_norm", "learning_rate", "entropy_nats", "explained_variance"):
        if last[0][column]:
            assert float(last[1][column]) == pytest.approx(float(last[0][column]), rel=1e-2, abs=1e-4), column
    lags = [rows(run, "lag")[-1] for run in runs]
    for column in ("lag_updates_mean", "lag_updates_max", "lag_frames_mean"):
        assert float(lags[1][column]) == pytest.approx(float(lags[0][column]), rel=0.05), column


def test_ranks_add_up_what_they_are_told_and_count_what_they_send(ranks: Start, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "budget.frames=2000", "metrics_interval_frames=500")
    assert all_end(ranks(2, *words)) == [0, 0]
    run = directory(tmp_path, 2, *words)
    saved, found = state_of(run), rows(run, "metrics")
    seconds = [float(row["wall_seconds"]) for row in found]
    sent = sum(
        float(row["sent_mib_per_second"]) * (now - before)
        for row, now, before in zip(found, seconds, [0.0, *seconds], strict=False)
    )
    n_parameters = sum(tensor.numel() for tensor in saved["parts"]["network"].values())
    gradient, meeting = 4 * (n_parameters + 1), 8 * 6
    assert sent * 2**20 == pytest.approx(2 * saved["counters"]["updates"] * (gradient + meeting), rel=0.1)
    assert 0.0 < float(found[-1]["share_communicate"]) < 1.0
    assert {float(row["lag_updates_max"]) for row in rows(run, "lag")} == {0.0}


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_signal_to_one_rank_ends_all_of_them_at_the_same_update_and_the_run_goes_on(
    ranks: Start, tmp_path: Path
) -> None:
    words = ("algo=paac", "algo.n_envs=2", "metrics_interval_frames=500", "algo.optimizer.anneal=false")
    run = directory(tmp_path, 2, *words, "budget.frames=100000000")
    processes = ranks(2, *words, "budget.frames=100000000")
    wait_for_updates(run)
    processes[1].send_signal(signal.SIGUSR2)
    assert all_end(processes) == [128 + signal.SIGUSR2] * 2
    status = read_status(run)
    assert (status["state"], status["stop_signal"]) == ("preempted", "SIGUSR2")
    frames = state_of(run)["counters"]["frames"]
    assert frames == status["frames"]
    assert all_end(ranks(2, *words, f"budget.frames={frames + 1000}")) == [0, 0]
    assert read_status(run)["state"] == "finished"
    assert read_status(run)["frames"] >= frames + 1000
    assert [float(row["frames"]) for row in rows(run, "metrics")] == sorted(
        float(row["frames"]) for row in rows(run, "metrics")
    )
    assert all_end(ranks(2, *words, f"budget.frames={frames + 1000}")) == [0, 0]  # there is nothing to do


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_killed_ends_the_others_with_a_sentence_that_names_it(
    lost: int, ranks: Start, tmp_path: Path
) -> None:
    words = ("algo=paac", "algo.n_envs=2", "metrics_interval_frames=500", *LONG)
    processes = ranks(4, *words)
    run = directory(tmp_path, 4, *words)
    wait_for_updates(run)
    processes[lost].send_signal(signal.SIGKILL)
    survivors = [process for index, process in enumerate(processes) if index != lost]
    assert all_end(survivors) == [1, 1, 1]
    sentence = f"Rank {lost} on {socket.gethostname()} died, or cannot be reached."
    for survivor in survivors:
        assert survivor.stderr.strip().endswith(sentence)
    if lost > 0:
        status = read_status(run)
        assert status["state"] == "failed"
        assert sentence in status["error"]
        assert state_of(run)["counters"]["frames"] == status["frames"]  # saved, when it was lost


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_hangs_ends_the_others(lost: int, ranks: Start, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "metrics_interval_frames=500", "rank_silence_seconds=3", *LONG)
    processes = ranks(2, *words)
    wait_for_updates(directory(tmp_path, 2, *words))
    processes[lost].send_signal(signal.SIGSTOP)
    assert all_end([processes[1 - lost]]) == [1]
    assert f"Rank {lost} on {socket.gethostname()} said nothing for 3 seconds." in processes[1 - lost].stderr


FAILING_ENVIRONMENTS = """
from a3c_bench.envs.vector import VectorEnv
receive, steps = VectorEnv.receive, []
def fail(envs):
    steps.append(1)
    if len(steps) > 300:
        raise MemoryError("the simulator wants more memory")
    return receive(envs)
VectorEnv.receive = fail
"""


def test_a_rank_that_raises_says_why_on_all_of_them(ranks: Start, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "metrics_interval_frames=500", *LONG)
    processes = ranks(3, *words, setup_of_1=FAILING_ENVIRONMENTS)
    assert all_end(processes) == [1, 1, 1]
    assert "MemoryError: the simulator wants more memory" in processes[1].stderr
    why = f"Rank 1 on {socket.gethostname()} failed: MemoryError: the simulator wants more memory"
    for process in (processes[0], processes[2]):
        assert why in process.stderr
    assert why in read_status(directory(tmp_path, 3, *words))["error"]


DIES_AFTER_ITS_LAST_REPORT = """
import os
from a3c_bench.parallel.follower import Follower
from a3c_bench.parallel.ranks import Ranks
finish = Follower.finish
def die(follower):
    Ranks.stand = lambda *_: os._exit(9)
    return finish(follower)
Follower.finish = die
"""


@pytest.mark.slow
def test_a_run_whose_last_word_nobody_hears_is_finished_all_the_same(ranks: Start, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "budget.frames=1000")
    processes = ranks(2, *words, setup_of_1=DIES_AFTER_ITS_LAST_REPORT)
    assert all_end(processes) == [0, 9]
    run = directory(tmp_path, 2, *words)
    assert read_status(run)["state"] == "finished"
    assert len(rows(run, "eval")) == 1


# --- started here -----------------------------------------------------------------------------------------------------


def test_a_run_starts_its_other_ranks_itself_and_leaves_none_behind(fork: Any, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "metrics_interval_frames=500", *LONG)
    process = fork(*TINY, f"root={tmp_path}", *words, "ranks=2")
    run = directory(tmp_path, 2, *words)
    wait_for_updates(run)
    (other,) = [pid for pid in children(process.pid) if "a3c_bench.rank" in Path(f"/proc/{pid}/cmdline").read_text()]
    process.send_signal(signal.SIGTERM)
    assert all_end([process]) == [128 + signal.SIGTERM]
    assert read_status(run)["state"] == "preempted"
    assert not Path(f"/proc/{other}").exists()
    process = fork(*TINY, f"root={tmp_path}", *words, "ranks=2")
    wait_for(lambda: read_status(run)["state"] == "running" and len(children(process.pid)) > 0)
    (other,) = [pid for pid in children(process.pid) if "a3c_bench.rank" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{other}").exists(), SECONDS_TO_END)


def test_the_model_of_a_ring_by_hand() -> None:
    link = measure_ranks.Link("made up", 4, bytes_per_second=1000.0, latency_seconds=0.5)
    assert measure_ranks.seconds_of_ring(8000, link) == 6 * (0.5 + 2.0)


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_ranks, "SECONDS_TO_COME", 0.3)
    with pytest.raises(RankError, match=r"Ranks 1, 2 of 3 did not come within 0\.3 seconds\."):
        Ranks(Place(0, 3, 0, 3, Fixed("127.0.0.1", 0)))


def test_a_port_that_is_taken_is_refused_before_anybody_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"Rank 0 cannot listen at 127.0.0.1, port {port}: Address already in use"
        ):
            Ranks(Place(0, 2, 0, 2, Fixed("127.0.0.1", port)))


@pytest.mark.slow
def test_an_evaluation_that_takes_longer_than_silence_may_last_is_waited_for(ranks: Start, tmp_path: Path) -> None:
    words = ("algo=paac", "algo.n_envs=2", "budget.frames=2000", "rank_silence_seconds=1.5")
    slow = "evaluation.n_games=400", "evaluation.interval_frames=1000", "evaluation.policy=greedy"
    assert all_end(ranks(2, *words, *slow), 240.0) == [0, 0]
    assert len(rows(directory(tmp_path, 2, *words, *slow), "eval")) == 800


def test_a_rank_that_is_started_here_sees_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, stdin, env: given.append((env["RANK"], env[VISIBLE])))
    monkeypatch.setenv(VISIBLE, "4,5,6,7")
    cores = sorted(os.sched_getaffinity(0))
    others._StartWhenPublished(2, [cores, cores]).publish(4711)
    assert given == [("1", "6,7")]
    assert sorted(os.sched_getaffinity(0)) == cores
