"""What the tests share: a tiny run, a copy of conf/, a clock, and the command line in this process and in another."""

import copy
import functools
import importlib.metadata
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import omegaconf
import pytest
import torch
from forking import Forked, ForkingServer, end
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from leftovers import SHARED_MEMORY, left_behind

from a3c_bench import config as config_module
from a3c_bench import run
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.core import learning
from a3c_bench.core.losses import ActorCriticLoss
from a3c_bench.runtime import clock
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, EvaluationConfig, NetworkConfig, OptimizerConfig

ROOT = Path(__file__).parents[1]
os.environ.setdefault("WANDB_X_SERVICE_WAIT", "100")  # seconds for wandb-core to start, on a busy machine; read once


class Ended(NamedTuple):
    """How a command ended."""

    exit_status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session", autouse=True)
def files_are_parsed_once() -> Iterator[None]:
    """Half of a composition is reading conf/, its interpolations and plug-ins, each time anew; here what has changed.

    That is a file with another time or size, and another sys.path. What another process composes is not touched.
    """
    Plugins.instance()  # imports its sources anew
    files, hydras = (SourcesRegistry.instance().resolve(kind) for kind in ("file", "pkg"))
    parse, parse_hydras, look_up = files.load_config, hydras.load_config, importlib.metadata.entry_points
    parsed: dict[tuple[Any, ...], ConfigResult] = {}

    def load(source: ConfigSource, config_path: str) -> ConfigResult:
        path = Path(source.path, source._normalize_file_name(config_path))
        if not path.exists():
            return parse(source, config_path)  # which says so
        key = path, path.stat().st_mtime_ns, path.stat().st_size
        if key not in parsed:
            parsed[key] = parse(source, config_path)
        return copy.deepcopy(parsed[key])

    def load_hydras(source: ConfigSource, config_path: str) -> ConfigResult:
        """Of a package, which nobody changes."""
        if (key := (source.path, config_path)) not in parsed:
            parsed[key] = parse_hydras(source, config_path)
        return copy.deepcopy(parsed[key])

    @functools.cache
    def found(path: tuple[str, ...], **wanted: str) -> Any:
        return look_up(**wanted)

    interpolations = functools.cache(omegaconf.grammar_parser.parse)  # trees that nobody changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "load_config", load)
        patch.setattr(hydras, "load_config", load_hydras)
        patch.setattr(omegaconf.base, "parse", interpolations)
        patch.setattr(importlib.metadata, "entry_points", lambda **wanted: found(tuple(sys.path), **wanted))
        yield


@pytest.fixture
def tiny() -> Config:
    """PAAC on CartPole for 400 frames: 40 updates of 10 samples, a row and a checkpoint every 100 frames."""
    return Config(
        algo=PAACConfig(n_envs=2, t_max=5, optimizer=OptimizerConfig()),
        env=EnvConfig(id="CartPole-v1"),
        network=NetworkConfig(hidden_sizes=(8,)),
        budget=BudgetConfig(frames=400),
        evaluation=EvaluationConfig(n_games=3, n_envs=2),
        metrics_interval_frames=100,
        checkpoint_interval_seconds=1e-6,
        n_torch_threads=1,
        progress=False,
    )


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to add files to."""
    own = tmp_path / "conf"
    shutil.copytree(config_module.config_directory(), own)
    monkeypatch.setattr(config_module, "config_directory", lambda: own)
    return own


@pytest.fixture
def leaves_no_shared_memory() -> Iterator[None]:
    """What lies in /dev/shm when the test is over, and that no other program uses, was left behind."""
    before = set(SHARED_MEMORY.iterdir())
    yield
    assert left_behind(before, patience=20.0) == set()


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], ActorCriticLoss | None]], None]:
    """`at_update(n, action)` calls the action in PAAC's n-th update from now; a loss that it gives takes the place."""

    def install(number: int, action: Callable[[], ActorCriticLoss | None]) -> None:
        calls = 0

        def loss(*arguments: Any, **options: Any) -> ActorCriticLoss:
            nonlocal calls
            calls += 1
            return (action() if calls == number else None) or real(*arguments, **options)

        monkeypatch.setattr(learning, "actor_critic_loss", loss)

    real = learning.actor_critic_loss
    return install


@pytest.fixture
def stop_at_update(at_update: Callable[..., None]) -> Callable[..., None]:
    """`stop_at_update(n, signal)` sends this process a signal in the n-th update from now."""

    def install(number: int, sent: signal.Signals = signal.SIGTERM) -> None:
        at_update(number, lambda: os.kill(os.getpid(), sent))

    return install


class Ticks:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """The clock that training time is taken from."""
    made = Ticks()
    monkeypatch.setattr(clock, "time", made)
    return made


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """`cli(*words)` is `python -m a3c_bench.run *words`, in this process."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is taken away again

    ask = Hydra.get_mode

    def mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        """Hydra composes everything once just to look for hydra.mode, which named sweeps alone have."""
        return ask(hydra, config_name, overrides) if any("sweeps" in word for word in overrides) else None

    monkeypatch.setattr(Hydra, "get_mode", mode)

    def call(*words: str) -> Ended:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["a3c_bench.run", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run.main()
        return Ended(int(left.value.code or 0), *capfd.readouterr())

    yield call
    GlobalHydra.instance().clear()
    root.handlers[:] = handlers
    root.setLevel(level)
    torch.set_num_threads(threads)


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`spawn(*words)` starts `python -m a3c_bench.run *words` in a session of its own, which is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "a3c_bench.run", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options = pipes | {"env": os.environ | {"PYTHONPATH": str(ROOT)}} | options
        process = subprocess.Popen(command, start_new_session=True, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkingServer]:
    """What `fork` forks from."""
    server = ForkingServer(tmp_path_factory.mktemp("forked"))
    yield server
    server.close()


@pytest.fixture
def fork(forking: ForkingServer) -> Iterator[Callable[..., Forked]]:
    """`fork(*words)` is `spawn(*words)` of a process that has imported everything already."""
    started: list[Forked] = []

    def start(*words: str, setup: str = "") -> Forked:
        started.append(forking.start(words, setup))
        return started[-1]

    yield start
    for process in started:
        end(process)
