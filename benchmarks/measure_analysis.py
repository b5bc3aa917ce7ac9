"""How long it takes to load many runs, and to draw a figure of long ones.

    python benchmarks/measure_analysis.py
    python benchmarks/measure_analysis.py --runs 1000 --rows 10000

Loading: each run's configuration, status and training games, summarised one after the other as tables and scatter plots
do. Drawing: 5 algorithms with 3 seeds each, with bands. Measure on an idle machine.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis import load_runs
from analysis.curves import figure_and_table
from analysis.summary import summarise


def write_runs(root: Path, n_runs: int, n_rows: int, algos: tuple[str, ...] = ("paac",)) -> None:
    """Run directories as training leaves them; their tables are links to one per seed in ten, to save the disk."""
    tables = [_games(n_rows, seed) for seed in range(10)]
    for i in range(n_runs):
        algo, seed = algos[i % len(algos)], i // len(algos)
        path = root / "demo" / "CartPole-v1" / algo / f"seed{seed}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(_config(algo, seed), sort_keys=False))
        (path / "status.json").write_text(json.dumps(_STATUS))
        file = path / "episodes.csv"
        if seed < len(tables):
            tables[seed].to_csv(file, index=False)
        else:
            os.link(root / "demo" / "CartPole-v1" / algo / f"seed{seed % len(tables)}" / "episodes.csv", file)


_STATUS = {
    "state": "finished", "frames": 500_000, "agent_steps": 500_000, "updates": 3000, "wall_seconds": 250.0,
    "machine": {"cpu": "any", "cores": 2, "gpu": None},
}  # fmt: skip


def _config(algo: str, seed: int) -> dict[str, object]:
    """As long as a real one."""
    env = {"id": "CartPole-v1", "game": None, "frame_skip": 1, "noop_max": 30, "life_loss_terminal": False}
    settings = {f"setting_{i}": 0.1 * i for i in range(60)}
    return {"algo": {"name": algo, "n_envs": 32} | settings, "name": "demo", "seed": seed, "env": env}


def _games(n_rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    returns = random.uniform(10.0, 500.0, n_rows).round()
    frames = np.cumsum(returns).astype(int)
    columns = {"frames": frames, "agent_steps": frames, "wall_seconds": (frames / 2000.0).round(5)}
    return pd.DataFrame(columns | {"episode_return": returns, "episode_length": returns.astype(int)})


def measure_loading(n_runs: int, n_rows: int) -> tuple[float, float]:
    """Seconds, and by how many MiB the process grew."""
    with tempfile.TemporaryDirectory() as root:
        write_runs(Path(root), n_runs, n_rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        summary = summarise(load_runs(root))
        seconds = time.perf_counter() - start
        assert len(summary) == n_runs
        assert summary["training_score"].between(150.0, 350.0).all()
        return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_drawing(n_rows: int) -> float:
    """Seconds from run directories to a file: 5 algorithms, 3 seeds, both horizontal axes, with bands."""
    with tempfile.TemporaryDirectory() as root:
        write_runs(Path(root), 15, n_rows, ("dqn", "gorila", "a3c", "ga3c", "paac"))
        start = time.perf_counter()
        figure, table = figure_and_table(load_runs(root), ["frames", "wall_clock"], 100)
        figure.savefig(Path(root) / "curves.png")
        seconds = time.perf_counter() - start
        assert table.groupby("algo")["low_return"].count().eq(400).all()
        return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    chosen = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    seconds, mib = measure_loading(chosen.runs, chosen.rows)
    print(f"loading {chosen.runs:,} runs of {chosen.rows:,} rows: {seconds:.1f} s, {mib:.0f} MiB more at the peak")
    print(f"drawing 5 algorithms x 3 seeds x {chosen.rows:,} rows with bands: {measure_drawing(chosen.rows):.1f} s")
