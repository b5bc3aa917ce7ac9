"""Thirty runs one after another in one process: what they take they give back."""

import gc
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from a3c_bench.config import compose
from a3c_bench.runtime.machine import memory_mib
from a3c_bench.train import train

pytestmark = pytest.mark.usefixtures("leaves_no_shared_memory")

N_RUNS, N_WARM_UP = 30, 5
GROWTH_MIB = 1.0  # per run, at most; one leaked network, rollout or environment batch of these runs is larger
WORDS = (
    "experiment=tiny",
    "env=pong",
    "env.max_episode_frames=400",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "evaluation.max_episode_frames=40",
    "budget.frames=320",
    "n_torch_threads=1",
    "progress=false",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algo", ["dqn", "gorila", "a3c", "ga3c", "paac", "pgql", "ppo", "pqn", "one_step_sarsa"])
def test_thirty_runs_leave_memory_and_files_where_they_were(algo: str, tmp_path: Path) -> None:
    held = []
    for seed in range(N_RUNS):
        config = compose([*WORDS, f"algo={algo}", f"seed={seed}", *MORE.get(algo, ())])
        assert train(config, tmp_path / str(seed))["state"] == "finished"
        gc.collect()
        memory = memory_mib()
        assert memory is not None
        held.append((memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
    print(held)
    (before, *files_and_threads), (after, *then) = held[N_WARM_UP], held[-1]
    assert then == files_and_threads
    assert after - before < GROWTH_MIB * (N_RUNS - N_WARM_UP)
    assert multiprocessing.active_children() == []


MORE = {
    "a3c": ("algo.n_workers=2",),
    "one_step_sarsa": ("algo.n_workers=2",),
    "ga3c": ("algo.n_agents=4",),
    "paac": ("algo.n_envs=4",),
    "pgql": ("algo.n_envs=4",),
    "ppo": ("algo.t_max=16",),
    "pqn": ("algo.t_max=16",),
    "gorila": ("algo.n_learners=1",),
}
