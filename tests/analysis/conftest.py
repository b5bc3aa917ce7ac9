"""Run directories as training leaves them, without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure, SubFigure
from matplotlib.transforms import Bbox

from analysis import style

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run directory below tmp_path/runs and gives its path; see `write_run`."""

    def make(**changes: Any) -> Path:
        return write_run(tmp_path / "runs", **changes)

    return make


@pytest.fixture(scope="session")
def run_writer() -> MakeRun:
    """`write_run`, for what several tests share."""
    return write_run


@pytest.fixture
def draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels, and PDFs whose letters are drawn: half of the time of a figure that nobody looks at."""
    monkeypatch.setattr(style, "PNG_DPI", 40)
    monkeypatch.setitem(style._RC, "pdf.fonttype", 3)


@pytest.fixture
def inkless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn once instead of four times, without layout and ink; a mark is all that their files hold."""

    def save(figure: Figure, path: Path) -> list[Path]:
        with style.context():
            figure.set_layout_engine("none")
            figure.draw_without_rendering()
        files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
        for file in files:
            file.write_bytes(b"inkless")
        return files

    monkeypatch.setattr(style, "save", save)


@pytest.fixture(scope="session")
def boxes_inside() -> Callable[[Figure], list[tuple[SubFigure, list[Bbox]]]]:
    """`boxes_inside(figure)` draws it, asserts that nothing leaves the page or hides a legend, and gives its panels."""

    def boxes(figure: Figure) -> list[tuple[SubFigure, list[Bbox]]]:
        figure.draw_without_rendering()
        page = figure.bbox
        *rows, foot = figure.subfigs
        found = []
        for row in rows:
            (legend,) = row.legends
            panels = [panel.get_tightbbox() for panel in row.axes]
            for box in (legend.get_window_extent(), *panels):
                assert page.x0 <= box.x0 <= box.x1 <= page.x1
                assert page.y0 <= box.y0 <= box.y1 <= page.y1
            assert legend.get_window_extent().y1 <= min(box.y0 for box in panels)
            found.append((row, panels))
        text = foot.texts[0].get_window_extent()
        assert text.x1 <= page.x1
        assert page.y0 <= text.y0 <= text.y1 <= foot.bbox.y1
        return found

    return boxes


def write_run(
    root: Path,
    algo: str = "paac",
    seed: int = 0,
    env: str = "CartPole-v1",
    name: str = "demo",
    overrides: str = "",
    n_games: int = 300,
    frames_per_second: float = 2000.0,
    settings: dict[str, Any] | None = None,
    game: str | None = None,
    state: str = "finished",
    best_return: float = 480.0,
    ranks: int | None = None,
) -> Path:
    """A plausible run: returns rise from about 20 to `best_return`, with noise that depends on the seed.

    Args:
        root: the `runs` directory.
        settings: of the algorithm, beside its name.
        overrides: the directory level between algorithm and seed.
        ranks: of the run; None: of a version that did not know of them.
    """
    path = root / name / env / algo / overrides / f"seed{seed}"
    path.mkdir(parents=True)
    config = {
        "algo": {"name": algo, "n_envs": 32} | (settings or {}),
        "name": name,
        "seed": seed,
        "env": {"id": f"{game}-v5" if game else env, "game": game, "frame_skip": 4 if game else 1, "noop_max": 30,
                "reward_clip": 1.0 if game else None, "life_loss_terminal": False, "sticky_action_probability": 0.0},
    }  # fmt: skip
    config |= {} if ranks is None else {"ranks": ranks}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    episodes = _games(n_games, seed, best_return, frames_per_second)
    episodes.to_csv(path / "episodes.csv", index=False)
    end = episodes[["frames", "wall_seconds"]].iloc[-1] if n_games else {"frames": 0, "wall_seconds": 0.0}
    _evaluation(end, best_return + seed).to_csv(path / "eval.csv", index=False)
    status = {
        "state": state,
        "error": None,
        "wall_seconds": float(end["wall_seconds"]),
        "frames": int(end["frames"]),
        "agent_steps": int(end["frames"]),
        "machine": {"cpu": "Imaginary CPU 9000", "cores": 2, "gpu": None},
        "final": {"evaluation_mean_return": best_return + seed},
    }
    (path / "status.json").write_text(json.dumps(status))
    return path


def _games(n_games: int, seed: int, best_return: float, frames_per_second: float) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    progress = np.linspace(0.0, 1.0, n_games)
    returns = (20 + (best_return - 20) / (1 + np.exp(-9 * (progress - 0.45)))) * random.uniform(0.6, 1.15, n_games)
    returns = np.minimum(returns, max(best_return, 500.0)).round()
    frames = (np.cumsum(returns) // 32 * 32).astype(int)  # parallel games end on the same frame
    columns = {"frames": frames, "agent_steps": frames, "wall_seconds": frames / frames_per_second}
    return pd.DataFrame(columns | {"episode_return": returns, "episode_length": returns.astype(int)})


def _evaluation(end: Any, mean_return: float) -> pd.DataFrame:
    rows = [
        {"frames": end["frames"], "updates": 10, "wall_seconds": end["wall_seconds"], "final": final, "game_index": i,
         "episode_return": value, "episode_length": 100, "policy": "sample"}
        for final, shift in ((False, -50.0), (True, 0.0))
        for i, value in enumerate((mean_return + shift - 5, mean_return + shift + 5))
    ]  # fmt: skip
    return pd.DataFrame(rows)
