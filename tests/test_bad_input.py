"""Bad input: one sentence, an exit status, nothing started, nothing lost."""

import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from forking import Forked

from a3c_bench import train as train_module
from a3c_bench.config import load_config
from a3c_bench.runtime import checkpoint
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import Config
from a3c_bench.train import train

Cli = Callable[..., Any]
SHORT = (
    "budget.frames=120",
    "algo.n_envs=2",
    "algo.t_max=5",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "metrics_interval_frames=40",
    "n_torch_threads=1",
    "progress=false",
)


def sentence(ended: Any) -> str:
    """What stderr says, if it is one line and nothing else went wrong."""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("a3c_bench: ")
    assert "Traceback" not in ended.stdout
    return str(ended.stderr.removeprefix("a3c_bench: ").rstrip("\n"))


CONFIG_ERRORS = [
    ("algo=pac", "algo=pac is not known: did you mean paac?"),
    ("env=cartpol", "env=cartpol is not known: did you mean cartpole?"),
    ("experiment=pnog", "experiment=pnog is not known: did you mean pong?"),
    ("env=pong env.game=Pnog", "env.game=Pnog is not an Atari game: did you mean Pong?"),
    ("env.id=CartPol-v1", "env.id=CartPol-v1 is not an environment: did you mean CartPole-v1 or "),
    ("env=atari", "env=atari needs a game: say env.game=Pong or another."),
    ("env=pong network=mlp", "network=mlp cannot read the 4x84x84 frames of this environment: say network=nips"),
    ("algo.n_env=3", "algo.n_env is not a key of the configuration: did you mean n_envs?"),
    ("algo.optimizr.lr=1", "algo.optimizr is not a key of the configuration: did you mean optimizer?"),
    ("algo=one_step_sarsa algo.double=true", "algo.double is not a key of the configuration"),
    (
        "algo=n_step_q network.lstm_size=8",
        "network.lstm_size=8 is for actor-critics: algo=n_step_q has feed-forward networks",
    ),
    ("nam=x", "nam is not a key of the configuration: did you mean name?"),
    ("+algo.x=1", "A key was added that the configuration does not have: "),
    ("~algo.n_envs", "algo.n_envs: PAACConfig (DictConfig) does not support deletion."),
    ("algo.n_envs=many", "algo.n_envs: Value 'many' of type 'str' could not be converted to Integer."),
    ("algo.optimizer.lr=fast", "algo.optimizer.lr: Value 'fast' of type 'str' could not be converted to Float."),
    ("algo.n_envs=0", "algo.n_envs=0 must be at least 1."),
    ("algo.t_max=0", "algo.t_max=0 must be at least 1."),
    ("algo.optimizer.lr=-0.1", "algo.optimizer.lr=-0.1 must be greater than 0.0."),
    ("algo=pgql advantage=q", "advantage=q has no V, of which algo=pgql makes its Q-values: say advantage=nstep."),
    ("algo=ga3c advantage=total_reward", "advantage=total_reward needs what an episode brought before a rollout, "),
    ("env.noop_max=0", "env.noop_max=0 must be at least 1."),
    ("budget.frames=null", "There is no budget: set budget.frames, budget.wall_clock_seconds or budget.target_return."),
    (
        "budget.frames=null budget.target_return=1",
        "algo.optimizer.anneal=true needs budget.frames, over which the learning rate falls to 0.",
    ),
    ("device=gpu", "device=gpu is not a device: say cpu, cuda or cuda:0."),
    ("algo=[a", "algo=[a cannot be read as key=value: "),
    ("budget", "budget cannot be read as key=value: "),
    ("seed=0,1", "seed=0,1 is a sweep: add -m to run one after the other."),
    (
        "logger=wandb,tensorboard",
        "logger=wandb,tensorboard would be a sweep over loggers: say 'logger=[wandb,tensorboard]' to have them all.",
    ),
    ("algo=null", "Config group override must be a string or a list. Got NoneType."),
    ("name=${nowhere}", "name: Interpolation key 'nowhere' not found."),
]


@pytest.mark.parametrize(("words", "said"), CONFIG_ERRORS, ids=[words for words, _ in CONFIG_ERRORS])
def test_a_configuration_error_starts_nothing(cli: Cli, tmp_path: Path, words: str, said: str) -> None:
    ended = cli(f"root={tmp_path / 'runs'}", *words.split())
    assert sentence(ended).startswith(said)
    assert ended.exit_status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(cli: Cli, tmp_path: Path, device: str) -> None:
    ended = cli(f"root={tmp_path / 'runs'}", f"device={device}")
    assert sentence(ended) == f"device={device} was asked for, but torch finds no CUDA GPU here: say device=cpu."
    assert ended.exit_status == 2
    assert list(tmp_path.iterdir()) == []


# --- what is there already ------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(cli: Cli, tmp_path: Path, stop_at_update: Callable[..., None]) -> Path:
    """A run that was told to stop; the command of `again` goes on with it."""
    stop_at_update(3)
    ended = cli(f"root={tmp_path}", *SHORT)
    assert ended.exit_status == 143
    assert "Stopped by SIGTERM and saved: the same command goes on from here." in ended.stdout
    (run,) = tmp_path.glob("*/*/*/*/seed0")
    return run


def again(cli: Cli, run: Path, *words: str) -> Any:
    return cli(f"root={run.parents[4]}", *SHORT, *words)


def test_the_same_command_goes_on_and_then_does_nothing(cli: Cli, stopped: Path) -> None:
    ended = again(cli, stopped)
    assert (ended.exit_status, ended.stderr) == (0, "")
    assert "Going on from frame 30." in ended.stdout
    assert read_status(stopped)["state"] == "finished"
    rows = (stopped / "metrics.csv").read_bytes()
    ended = again(cli, stopped)
    assert (ended.exit_status, ended.stderr) == (0, "")
    assert "is finished already: nothing to do." in ended.stdout
    assert (stopped / "metrics.csv").read_bytes() == rows
    assert read_status(stopped)["attempts"] == 2


class Code:
    """Makes a directory when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def scramble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def pickle_code(file: Path) -> None:
    file.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "x": Code(file.parent / "made")}))


def save_code(file: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "x": Code(file.parent / "made")}, file)


def save_foreign(file: Path) -> None:
    torch.save({"model": torch.zeros(3)}, file)


def test_bad_checkpoints(cli: Cli, stopped: Path) -> None:
    """Each is refused, nothing in it is run, and the tables stay; without it the run starts anew."""
    file = stopped / "checkpoint" / "latest.pt"
    good = file.read_bytes()
    there = {path: path.read_bytes() for path in stopped.rglob("*.csv")}
    for damage in (truncate, scramble, pickle_code, save_code, save_foreign):
        file.write_bytes(good)
        damage(file)
        ended = again(cli, stopped)
        foreign = "is no checkpoint of this version (format 1): remove it to start anew."
        damaged = "is damaged or is no checkpoint: remove it to start the run anew."
        assert sentence(ended) == f"{file} {foreign if damage is save_foreign else damaged}"
        assert ended.exit_status == 2
        assert not (file.parent / "made").exists()
        assert {path: path.read_bytes() for path in there} == there
    file.unlink()
    assert train(load_config(stopped), stopped)["state"] == "finished"


def test_a_run_with_another_configuration(cli: Cli, stopped: Path) -> None:
    (stopped / "config.yaml").write_text((stopped / "config.yaml").read_text().replace("n_envs: 2", "n_envs: 5"))
    ended = again(cli, stopped)
    assert "holds a run with another configuration (algo.n_envs: 5 there, 2 asked)" in sentence(ended)
    assert ended.exit_status == 2
    assert load_config(stopped).algo.n_envs == 5


def test_foreign_results(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "default" / "CartPole-v1" / "paac" / "seed0"
    run.mkdir(parents=True)
    (run / "episodes.csv").write_text("mine\n")
    ended = cli(f"root={tmp_path}")
    assert sentence(ended) == f"{run} holds results but no config.yaml: choose another name=."
    assert (run / "episodes.csv").read_text() == "mine\n"


def test_below_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    ended = cli(f"root={tmp_path / 'runs'}", *SHORT)
    assert sentence(ended).endswith("cannot be written: Not a directory.")
    assert ended.exit_status == 2


# --- failures while running -----------------------------------------------------------------------------------------


def test_a_failing_run_of_a_sweep_leaves_the_others_alone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_module.find_algorithm("paac").train

    def failing(config: Config, session: Any) -> None:
        if config.seed == 1:
            raise ZeroDivisionError("by hand")
        real(config, session)

    algorithm = replace(train_module.find_algorithm("paac"), train=failing)
    monkeypatch.setattr(train_module, "find_algorithm", lambda name: algorithm)
    ended = cli("-m", f"root={tmp_path}", "seed=0,1,2", *SHORT)
    assert ended.stderr == "a3c_bench: The run failed: ZeroDivisionError: by hand\n"
    assert ended.exit_status == 1
    states = {path.name: read_status(path)["state"] for path in tmp_path.glob("*/*/*/*/seed*")}
    assert states == {"seed0": "finished", "seed1": "failed", "seed2": "finished"}


def test_a_stopped_sweep_starts_no_more_runs(cli: Cli, tmp_path: Path, stop_at_update: Callable[..., None]) -> None:
    stop_at_update(3)
    ended = cli("-m", f"root={tmp_path}", "seed=0,1", *SHORT)
    assert (ended.exit_status, ended.stderr) == (143, "")
    assert [path.name for path in tmp_path.glob("*/*/*/*/seed*")] == ["seed0"]


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=30)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"may not mount a small file system here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


def fill(place: Path, left: int) -> Path:
    """Takes all but `left` bytes of a file system."""
    ballast = place / "ballast"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    ballast.write_bytes(bytes(free - left))
    return ballast


@pytest.mark.parametrize(("at", "left"), [(1, 0), (7, 0), (7, 20_480), (12, 0)])
def test_a_full_disk(cli: Cli, small_disk: Path, at_update: Callable[..., None], at: int, left: int) -> None:
    ballast: list[Path] = []
    at_update(at, lambda: ballast.append(fill(small_disk, left)))
    words = (f"root={small_disk}", *SHORT, "checkpoint_interval_seconds=1e-6")
    ended = cli(*words)
    said = sentence(ended)
    assert "No space left on device" in said or "cannot write" in said
    assert said.endswith("what was saved before is intact.")
    assert ended.exit_status == 2
    (run,) = small_disk.glob("*/*/*/*/seed0")
    assert load_config(run).budget.frames == 120
    assert checkpoint.load(run / "checkpoint" / "latest.pt")["counters"]["updates"] < 12
    assert list(run.rglob("*.new")) == []
    ballast[0].unlink()
    ended = cli(*words)
    assert (ended.exit_status, ended.stderr) == (0, "")
    status = read_status(run)
    assert (status["state"], status["attempts"], status["error"]) == ("finished", 2, None)
    metrics = pd.read_csv(run / "metrics.csv")
    assert (metrics["frames"] // 40).tolist() == [1, 2, 3]
    assert not metrics["loss"].isna().any()


LIMIT_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))"


def test_files_that_may_grow_no_more(fork: Callable[..., Forked], tmp_path: Path) -> None:
    """Without root too, and in a process of its own: each file is limited to 80 kB."""
    words = (f"root={tmp_path}", *SHORT, "budget.frames=6000", "metrics_interval_frames=10")
    words = (*words, "lag.enabled=false", "checkpoint_interval_seconds=0.05")
    process = fork(*words, setup=LIMIT_FILES)
    stdout, stderr = process.communicate(timeout=100)
    assert stderr.count("\n") == 1, stderr
    assert stderr.endswith("File too large; what was saved before is intact.\n")
    assert "Traceback" not in stdout
    assert process.returncode == 2
    (run,) = tmp_path.glob("*/*/*/*/seed0")
    status = read_status(run)
    assert status["state"] == "failed"
    assert "File too large" in status["error"]
    for name in ("metrics", "lag", "episodes"):
        content = (run / f"{name}.csv").read_text()
        assert content.endswith("\n")
        assert len({line.count(",") for line in content.splitlines()}) == 1
    saved = checkpoint.load(run / "checkpoint" / "latest.pt")["counters"]["frames"]
    assert 0 < saved < 6000
    finished = train(replace(load_config(run), checkpoint_interval_seconds=60.0), run)
    assert (finished["state"], finished["attempts"]) == ("finished", 2)
    assert finished["frames"] >= 6000
    assert pd.read_csv(run / "metrics.csv")["frames"].is_unique


# --- in processes of their own --------------------------------------------------------------------------------------


def test_the_command_itself(spawn: Callable[..., Any], tmp_path: Path) -> None:
    """What the tests above do in this process holds for `python -m a3c_bench.run`."""
    (tmp_path / "file").touch()
    cases = {
        "algo.n_env=3": "algo.n_env is not a key of the configuration: did you mean n_envs?",
        f"root={tmp_path}/file": f"The run directory {tmp_path}/file/default/CartPole-v1/paac/seed0 cannot be written",
    }
    for process, said in [(spawn(word, cwd=tmp_path), said) for word, said in cases.items()]:
        stdout, stderr = process.communicate(timeout=100)
        assert stderr.startswith(f"a3c_bench: {said}")
        assert stderr.count("\n") == 1
        assert "Traceback" not in stdout
        assert process.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
