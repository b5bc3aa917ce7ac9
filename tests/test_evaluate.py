"""The evaluation protocol, watching a checkpoint, and calibration."""

import itertools
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from a3c_bench import build
from a3c_bench import calibrate as calibrate_module
from a3c_bench import evaluate as evaluate_module
from a3c_bench import play as play_module
from a3c_bench import train as train_module
from a3c_bench.algos import Algorithm, Workload
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.calibration import calibrate
from a3c_bench.core.networks import ActorCritic
from a3c_bench.evaluation import evaluate, evaluation_config, evaluation_seed
from a3c_bench.schema import (
    BudgetConfig,
    Config,
    EnvConfig,
    EvaluationConfig,
    NetworkConfig,
    OptimizerConfig,
    section,
)
from a3c_bench.train import train

TINY = Config(
    algo=PAACConfig(n_envs=2, t_max=4, optimizer=OptimizerConfig()),
    env=EnvConfig(id="CartPole-v1"),
    network=NetworkConfig(hidden_sizes=(8,)),
    budget=BudgetConfig(frames=400),
    evaluation=EvaluationConfig(n_games=3, n_envs=2),
    metrics_interval_frames=100,
    n_torch_threads=1,
    progress=False,
)


class Constant(ActorCritic):
    """Chooses each action with the same log-probabilities everywhere."""

    def __init__(self, *log_probs: float) -> None:
        super().__init__((4,), len(log_probs))
        self.log_probs = nn.Parameter(torch.tensor(log_probs))

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_probs.expand(len(observations), -1), torch.zeros(len(observations)), state


class Counting(Constant):
    """Remembers how many steps of the present game it has seen, and notes it."""

    def __init__(self) -> None:
        super().__init__(-0.7, -0.7)
        self.state_size = 1
        self.seen: list[list[float]] = []

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(state[:, 0].tolist())
        return *super().forward(observations, state)[:2], state + 1.0


def with_protocol(**changes: Any) -> Config:
    return replace(TINY, evaluation=replace(TINY.evaluation, **changes))


@pytest.mark.parametrize(("n_games", "n_envs"), [(1, 4), (7, 3), (6, 3), (5, 1)])
def test_it_plays_exactly_the_games_asked_for(n_games: int, n_envs: int) -> None:
    result = evaluate(with_protocol(n_games=n_games, n_envs=n_envs), Constant(-0.7, -0.7), evaluation_seed(TINY, 0))
    assert result is not None
    assert len(result.games) == n_games
    returns = [game["episode_return"] for game in result.games]
    assert result.summary["evaluation_mean_return"] == pytest.approx(np.mean(returns))
    assert result.summary["evaluation_median_return"] == pytest.approx(np.median(returns))


def test_short_games_are_not_favoured() -> None:
    """Each environment plays its share: the mean equals that of many games, not of those that end first."""
    few = evaluate(with_protocol(n_games=300, n_envs=100), Constant(-0.7, -0.7), evaluation_seed(TINY, 0))
    many = evaluate(with_protocol(n_games=600, n_envs=10), Constant(-0.7, -0.7), evaluation_seed(TINY, 1))
    assert few is not None
    assert many is not None
    means = [result.summary["evaluation_mean_return"] for result in (few, many)]
    assert means[0] == pytest.approx(means[1], abs=2.0)  # about 22, standard error 0.8


def test_what_a_network_remembers_ends_with_the_game() -> None:
    network = Counting()
    result = evaluate(with_protocol(n_games=6, n_envs=2), network, evaluation_seed(TINY, 0))
    assert result is not None
    for env in range(2):
        seen = [row[env] for row in network.seen]
        starts = [i for i, value in enumerate(seen) if value == 0.0]
        lengths = [game["episode_length"] for game in result.games]
        assert len(starts) >= 3
        # A game of n steps is seen n + 1 times: its last observation too, whose action EnvPool ignores.
        assert all(later - earlier - 1 in lengths for earlier, later in itertools.pairwise(starts))
        assert all(b in (0.0, a + 1.0) for a, b in itertools.pairwise(seen))


def test_greedy_and_sampled_policies_differ() -> None:
    network = Constant(-0.6, -0.8)
    games = {}
    for policy in ("greedy", "sample"):
        result = evaluate(with_protocol(policy=policy, n_games=20, n_envs=5), network, evaluation_seed(TINY, 0))
        assert result is not None
        games[policy] = [game["episode_length"] for game in result.games]
    assert max(games["greedy"]) <= 11  # always the same push: the pole is down within 8 to 10 steps
    assert max(games["sample"]) > 15


def test_games_are_capped_and_unclipped_and_lives_do_not_end_them() -> None:
    atari = EnvConfig(id="atari", game="Breakout", frame_skip=4, reward_clip=1.0, life_loss_terminal=True)
    config = replace(with_protocol(max_episode_frames=400, n_games=2), env=atari)
    env = evaluation_config(config).env
    assert (env.reward_clip, env.life_loss_terminal, env.max_episode_frames) == (None, False, 400)
    result = evaluate(config, Constant(-1.4, -1.4, -1.4, -1.4), evaluation_seed(TINY, 0))
    assert result is not None
    assert [game["episode_length"] for game in result.games] == [100, 100]  # five lives last longer than 100 steps
    assert result.games[0]["human_normalised_percent"] == pytest.approx(
        100 * (result.games[0]["episode_return"] - 1.7) / (30.5 - 1.7)
    )


def test_the_cap_never_extends_a_game() -> None:
    assert evaluation_config(with_protocol(max_episode_frames=108_000)).env.max_episode_frames == 500
    assert evaluation_config(with_protocol(max_episode_frames=None)).env.max_episode_frames == 500
    assert evaluation_config(with_protocol(max_episode_frames=20)).env.max_episode_frames == 20


def test_evaluations_share_no_stream() -> None:
    states = [tuple(evaluation_seed(TINY, number).generate_state(4)) for number in range(10)]
    assert len(set(states)) == 10


def test_an_evaluation_can_be_given_up() -> None:
    assert evaluate(TINY, Constant(-0.7, -0.7), evaluation_seed(TINY, 0), interrupted=lambda: True) is None


def test_a_stop_during_an_evaluation_saves_and_the_evaluation_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(with_protocol(interval_frames=200), budget=BudgetConfig(frames=400))
    original = train_module.evaluate

    def stop_then_evaluate(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_module, "evaluate", stop_then_evaluate)
    status = train(config, tmp_path)
    assert (status["state"], status["stop_signal"]) == ("preempted", "SIGTERM")
    assert pd.read_csv(tmp_path / "eval.csv").empty
    monkeypatch.setattr(train_module, "evaluate", original)
    assert train(config, tmp_path)["state"] == "finished"
    table = pd.read_csv(tmp_path / "eval.csv")
    assert table.groupby("frames").size().tolist() == [3, 3]  # the one at 200 frames and the final one
    assert 200 <= table.frames.min() < 300


def test_periodic_evaluations_are_written_and_the_best_is_kept(tmp_path: Path) -> None:
    train(with_protocol(interval_frames=100), tmp_path)
    table = pd.read_csv(tmp_path / "eval.csv")
    assert table.frames.nunique() >= 4
    assert table[table.final].frames.nunique() == 1
    means = table.groupby("frames").episode_return.mean()
    best = torch.load(tmp_path / "checkpoint" / "best.pt", weights_only=True)
    assert best["counters"]["frames"] == means.idxmax()
    assert best["best_return"] == means.max()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    train(TINY, directory)
    return directory


def test_the_command_line_evaluates_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_module.main([str(run), "--games", "4"]) == 0
    printed = capsys.readouterr().out
    assert "evaluation_games: 4.00" in printed
    assert evaluate_module.main([str(run), "--games", "4"]) == 0
    assert capsys.readouterr().out == printed  # seeded
    assert evaluate_module.main([str(run), "--games", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().out != printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["RUN", "--games", "0"],
        ["RUN", "--games", "-1"],
        ["RUN", "--seed", "-1"],
        ["RUN", "--device", "cuda:99"],
        ["RUN", "--device", "nonsense"],
        ["RUN", "--device", ""],
    ],
)
def test_bad_arguments_of_evaluate(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_module.main([str(run) if word == "RUN" else word for word in arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("main", [evaluate_module.main, play_module.main])
def test_a_directory_of_runs_names_them(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = [tmp_path / "default" / "CartPole-v1" / "paac" / f"seed{seed}" for seed in range(2)]
    for place in below:
        (place / "checkpoint").mkdir(parents=True)
        (place / "config.yaml").write_text("")
    parent = tmp_path / "default"
    assert main([str(parent)]) == 2
    assert capsys.readouterr() == ("", f"{parent} holds 2 runs: name one of them.\n  {below[0]}\n  {below[1]}\n")
    assert main([str(below[0].parent), "--checkpoint", "best"]) == 2
    assert "holds 2 runs: name one of them." in capsys.readouterr().err
    for number in range(30):
        (parent / "more" / f"seed{number}").mkdir(parents=True)
        (parent / "more" / f"seed{number}" / "config.yaml").write_text("")
    assert main([str(parent)]) == 2
    assert capsys.readouterr().err.endswith("\n  ... and 12 more\n")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_play_records_a_video(run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    import imageio.v3 as imageio

    video = tmp_path / "new" / f"game{suffix}"
    assert play_module.main([str(run), "--video", str(video)]) == 0
    pictures = imageio.imread(video)
    n_steps = int(capsys.readouterr().out.split(" in ")[1].split()[0])
    assert pictures.shape[1:] == (400, 600, 3)
    if suffix == ".mp4":
        assert len(pictures) == n_steps
    assert (pictures[0] != pictures[-1]).any()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--video", "x.avi"],
        ["--episodes", "0"],
        *(["--fps", fps] for fps in ("-3", "0", "nan", "inf", "10000")),
        ["--seed", "-1"],
        ["--device", "nonsense"],
    ],
)
def test_bad_arguments_of_play(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert play_module.main([str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert arguments[0].lstrip("-") in said
    assert arguments[1] in said


@pytest.fixture
def no_game(monkeypatch: pytest.MonkeyPatch) -> None:
    """A game that is played fails the test."""

    def play(*arguments: Any) -> None:
        raise AssertionError("it plays")

    monkeypatch.setattr("a3c_bench.evaluation.play", play)


@pytest.mark.usefixtures("no_game")
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_that_cannot_be_written_is_found_before_the_game(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / f"directory{suffix}").mkdir()
    for place, reason in {
        tmp_path / f"directory{suffix}": "Is a directory",
        tmp_path / "file" / f"below{suffix}": "Not a directory",
        tmp_path / "file" / "more" / f"below{suffix}": "Not a directory",
        Path("/proc/nowhere") / f"game{suffix}": "No such file or directory",
        tmp_path / f"{'long' * 70}{suffix}": "File name too long",
    }.items():
        assert play_module.main([str(run), "--video", str(place)]) == 2
        assert capsys.readouterr() == ("", f"{place} cannot be written: {reason}.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"directory{suffix}", "file"]


@pytest.mark.usefixtures("no_game")
def test_a_machine_without_ffmpeg_is_found_before_the_game(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    video = tmp_path / "game.mp4"
    assert play_module.main([str(run), "--video", str(video)]) == 2
    assert capsys.readouterr().err.startswith(f"{video} cannot be written: No ffmpeg exe could be found.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device"), 2, "{video} cannot be written: No space left on device.\n"),
    ],
)
def test_a_game_that_breaks_off_leaves_the_video_of_before(
    run: Path,
    tmp_path: Path,
    suffix: str,
    error: BaseException,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import imageio

    video, pictures = tmp_path / f"game{suffix}", []
    video.write_text("of before")
    open_writer = imageio.get_writer

    class Breaking:
        """A writer that fails at the fifth picture."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._writer = open_writer(*arguments, **options)
            self.close = self._writer.close

        def append_data(self, picture: Any) -> None:
            pictures.append(picture)
            if len(pictures) == 5:
                raise error
            self._writer.append_data(picture)

    monkeypatch.setattr(imageio, "get_writer", Breaking)
    assert play_module.main([str(run), "--video", str(video)]) == status
    assert capsys.readouterr().err == said.format(video=video)
    assert len(pictures) == 5
    assert [path.name for path in tmp_path.iterdir()] == [video.name]
    assert video.read_text() == "of before"


def test_the_serial_bound_is_made_of_its_parts() -> None:
    result = calibrate(TINY, repeats=3, seconds_per_repeat=0.02)
    parts = (
        result.simulation_agent_steps_per_second,
        result.forward_agent_steps_per_second,
        result.forward_backward_agent_steps_per_second,
    )
    assert result.serial_bound_agent_steps_per_second == pytest.approx(1 / sum(1 / part for part in parts))
    assert result.serial_bound_agent_steps_per_second < min(parts)
    assert (result.acting_batch, result.training_batch) == (2, 8)


def test_calibration_takes_a_runs_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fast = calibrate(TINY, repeats=1, seconds_per_repeat=0.01)
    monkeypatch.setattr("a3c_bench.calibration.calibrate", lambda config: fast)
    monkeypatch.setattr("sys.argv", ["calibrate", "env=acrobot"])
    assert calibrate_module.main() == 0
    assert "Acrobot-v1" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["calibrate", "env=nope"])
    assert calibrate_module.main() == 2


def test_a_run_stores_its_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "calibrate", lambda config: calibrate(config, 1, 0.01))
    status = train(replace(TINY, calibrate=True), tmp_path)
    assert status["calibration"]["serial_bound_agent_steps_per_second"] > 0


@dataclass(frozen=True)
class OwnQConfig:
    """A Q-learner of another package: neither `double` nor `dueling`."""

    name: str = "own"
    n_envs: int = 2
    gamma: float = 0.9
    optimizer: OptimizerConfig = section(OptimizerConfig)


def test_a_q_learner_of_ones_own_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    def workload(config: Config) -> Workload:
        return Workload(config.algo.n_envs, 1, replayed_batch=8)

    own = Algorithm(OwnQConfig, lambda config, session: None, workload=workload, make_network=build.make_q_network)
    monkeypatch.setattr("a3c_bench.calibration.find_algorithm", lambda name: own)
    result = calibrate(replace(TINY, algo=OwnQConfig()), repeats=1, seconds_per_repeat=0.01)
    assert (result.acting_batch, result.training_batch) == (2, 8)
    assert result.serial_bound_agent_steps_per_second > 0
