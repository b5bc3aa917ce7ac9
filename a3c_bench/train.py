"""The whole job from Python, for notebooks and tests.

from a3c_bench import compose
from a3c_bench.train import train

status = train(compose(["algo=paac", "seed=3"]), Path("runs/mine"))

`conf/` says what each value is, as on the command line. A `Config` built by hand begins with the same values, but
has neither a budget nor what is tuned for an environment.
"""

import logging
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from a3c_bench import build, checks
from a3c_bench.algos import find_algorithm
from a3c_bench.calibration import Calibration, calibrate
from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.envs import find_spec
from a3c_bench.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    RankError,
    RunDirectoryError,
    TrainingError,
    UserError,
)
from a3c_bench.evaluation import EvaluationResult, evaluate, evaluation_seed
from a3c_bench.parallel.follower import Follower
from a3c_bench.parallel.others import Others, started
from a3c_bench.parallel.ranks import Place, Ranks, place_from_environment
from a3c_bench.runtime import checkpoint, history, machine
from a3c_bench.runtime.directory import RunDirectory, diverged, read_status, read_yaml, timestamp
from a3c_bench.runtime.peers import ALONE, Peers
from a3c_bench.runtime.session import Session
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import Config

log = logging.getLogger(__name__)

NOT_RETRIED = "diverged and is not tried again unless retry_diverged=true"


def train(
    config: Config, directory: Path, stop: StopRequest | None = None, place: Place | None = None
) -> Mapping[str, Any]:
    """Runs, or goes on with, the run of this configuration in this directory.

    Args:
        config: checked here before anything is written.
        directory: made if it does not exist.
        stop: entered by the caller, for one who must not miss a signal before training starts or after it.
        place: of this process among the ranks of the run, where somebody has started all of them; None: that of
            torchrun, or else the others are started here.

    Returns:
        what status.json says at the end: `state` is "finished", or "preempted" if a signal asked the run to stop.

    Raises:
        UserError: bad configuration, directory or checkpoint; one sentence.
        DivergedError: the run diverged, or did so before and is not to be tried again. This and any other error is in
            status.json as `failed`, with its traceback.
    """
    if config.ranks > 1:
        check_settings(config)
        with nullcontext(stop) if stop else StopRequest() as told, joined(config, place, told) as peers:
            return lead(config, directory, told, peers) if peers.index == 0 else _follow(peers, told)
    return lead(config, directory, stop)


def lead(config: Config, directory: Path, stop: StopRequest | None = None, peers: Peers = ALONE) -> dict[str, Any]:
    """`train` on rank 0, which keeps the books."""
    asked, config = config, settled(config, directory, machine.usable_cores())
    check_run(config)
    with nullcontext(stop) if stop else StopRequest() as told:  # before anything is written
        return _hold_and_train(config, directory, _filled_in(asked, config), told, peers)


def follow(place: Place, stop: StopRequest) -> Mapping[str, Any]:
    """`train` on a rank above 0, which gets the configuration from rank 0.

    Raises:
        TrainingError: this rank cannot go on, or another one is lost.
    """
    with _closed(Ranks(place, look=partial(_look, stop, None))) as peers:
        return _follow(peers, stop)


@contextmanager
def joined(config: Config, place: Place | None, stop: StopRequest) -> Iterator[Ranks]:
    """The ranks of a run, seen from this process.

    Raises:
        ConfigError: there are other numbers of processes or GPUs.
        RankError: one of them is lost.
    """
    place = place or place_from_environment()
    if place is not None and place.size != config.ranks:
        raise ConfigError(f"ranks={config.ranks}, but {place.size} processes were started: say ranks={place.size}.")
    with ExitStack() as stack:
        others = None
        if place is None:
            machine.check_gpus(config.device, config.ranks, len(machine.visible_gpus()))
            others = stack.enter_context(started(config.ranks))
            place = others.place
        ranks = Ranks(place, config.rank_silence_seconds, partial(_look, stop, others))
        yield stack.enter_context(_closed(ranks))


def _look(stop: StopRequest, others: Others | None) -> None:
    """Raises RankError for a run that will not begin: it was told to stop, or one of its ranks has ended."""
    if others is not None:
        others.look()
    if stop.signal is not None:
        raise RankError(f"Stopped by {stop.signal.name} before all ranks had come.")


@contextmanager
def _closed(peers: Ranks) -> Iterator[Ranks]:
    """Closes the connections afterwards; a failure is told to the other ranks first."""
    try:
        yield peers
    except BaseException as error:
        if peers.index > 0 and not isinstance(error, UserError | TrainingError):  # rank 0 has a log for its own
            traceback.print_exception(error)
        peers.fail(error)
        peers.close(failed=True)
        raise
    peers.close()


def _follow(peers: Ranks, stop: StopRequest) -> Mapping[str, Any]:
    told = peers.share()
    if isinstance(told, dict):  # the status of a run that is finished already
        return told
    config, attempt, directory = told
    peers.learn_on(machine.resolve_device(config.device), config.rank_silence_seconds)
    machine.use_cores(build.torch_threads(config))
    follower = Follower(config, attempt, directory, peers, stop)
    find_algorithm(config.algo.name).train(config, follower)
    return follower.finish()


def _hold_and_train(
    config: Config, directory: Path, filled_in: list[str], stop: StopRequest, peers: Peers
) -> dict[str, Any]:
    held = RunDirectory(directory, asdict(config), filled_in)
    try:
        with _log_file(held.path / "a3c_bench.log"):
            log.info("Run directory: %s", held.path)
            status = held.read_status()
            if status.get("state") == "finished":
                log.info("%s is finished already: nothing to do.", held.path)
                peers.share(status)
                return status
            if diverged(status) and not config.retry_diverged:
                raise DivergedError(f"{held.path} {NOT_RETRIED} ({status.get('error')}).")
            log.info("Settings: %s.", settings_in_words(config))
            return _train(config, held, stop, peers)
    except OSError as error:
        raise RunDirectoryError(f"{directory}: {error.strerror or error}; what was saved before is intact.") from error
    finally:
        held.close()


def settled(config: Config, directory: Path, cores: int | None = None) -> Config:
    """The same with the numbers that null leaves to the machine: those that the run in this directory began with.

    Args:
        config: of the run.
        directory: need not exist.
        cores: of this process, for a run that has not begun; None leaves such a one as it is.
    """
    algorithm = find_algorithm(config.algo.name)
    begun: int | None = (
        read_status(directory).get("machine", {}).get("cores")
    )  # older versions kept null, and took them
    cores = begun or cores
    try:
        there = read_yaml(directory / "config.yaml")["algo"]
        known = {
            key.removeprefix("algo."): there[key.removeprefix("algo.")]
            for key in _filled_in(config, algorithm.resolve(config, 1))
            if there.get(key.removeprefix("algo.")) is not None
        }
    except (OSError, TypeError, KeyError, AttributeError, UnicodeDecodeError, yaml.YAMLError):
        known = {}  # there is no run, or RunDirectory says what is wrong with it
    config = replace(config, algo=replace(config.algo, **known)) if known else config
    return config if cores is None else cast(Config, algorithm.resolve(config, cores))


def _filled_in(asked: Config, resolved: Config) -> list[str]:
    """Dotted keys that were null."""
    before, now = asdict(asked.algo), asdict(resolved.algo)
    return [f"algo.{key}" for key, value in before.items() if value is None and now[key] is not None]


def check_run(config: Config) -> None:
    """Checks what can be checked before anything starts, on the machine that runs it.

    Raises:
        ConfigError: one sentence.
    """
    check_settings(config)
    machine.resolve_device(config.device)
    check_build(config)


def check_settings(config: Config) -> None:
    """The part of `check_run` that holds on any machine.

    Raises:
        ConfigError: one sentence.
    """
    checks.check_settings(config)
    find_algorithm(config.algo.name).check(config)


def settings_in_words(config: Config) -> str:
    """Whose settings a run has: the paper's, or some that were tuned for its environment."""
    algo = config.algo.name
    if config.tuned_for is None:
        return f"the paper's (conf/algo/{algo}.yaml), but for what an experiment or the command line changes"
    return f"{algo} tuned for {config.tuned_for}; settings=paper, without an experiment, takes the paper's"


def check_build(config: Config) -> None:
    """Finds out what the task is, and builds the network for it, as the run will.

    Raises:
        ConfigError: one sentence.
    """
    find_algorithm(config.algo.name).make_network(config, find_spec(config.env), torch.device("cpu"))


def _train(config: Config, directory: RunDirectory, stop: StopRequest, peers: Peers) -> dict[str, Any]:
    device = machine.resolve_device(config.device)
    machine.use_cores(build.torch_threads(config))
    saved = _saved_state(config, directory)
    before, now = directory.read_status(), timestamp()
    changed = before.get("changed", {})
    more = {"stop_reason": None} if before.get("stop_reason") else {}
    for key, (old, new) in changed.items():
        log.info("%s=%s from here on, after %s.", key, new, old)
    facts = {
        "machine": machine.describe(device),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }
    attempt = {"attempt": int(before.get("attempts", 0)) + 1, "started_at": now, **facts, "changed": changed}
    attempt["frames"] = saved["counters"]["frames"] if saved else 0
    directory.write_status(
        state="running",
        error=None,
        started_at=before.get("started_at", now),
        **facts,
        history=history.with_attempt(before, **attempt),
        changed={},
        **more,
        lost_wall_seconds=before.get("lost_wall_seconds", 0.0) + _lost_seconds(before, saved),
        wall_seconds=saved["wall_seconds"] if saved else 0.0,  # so that what is lost is counted once
    )
    algorithm = find_algorithm(config.algo.name)
    try:
        if config.calibrate and "calibration" not in before:
            directory.write_status(calibration=asdict(_of_all_ranks(calibrate(config), config.ranks)))

        def is_told() -> bool:
            number = session.peers.heartbeat()
            if number:
                stop.request(signal.Signals(number))
            return stop.signal is not None

        def evaluation(network: ActorCritic | QNetwork, number: int) -> EvaluationResult | None:
            return evaluate(config, network, evaluation_seed(config, number), is_told)

        if peers.size > 1:
            peers.share((config, attempt["attempt"], directory.path))
            peers.learn_on(device, config.rank_silence_seconds)
        with Session(config, asdict(config), directory, evaluation, stop, saved, algorithm.columns, peers) as session:
            try:
                algorithm.train(config, session)
                status = session.finish()
            except RankError:
                session.save_what_there_is()
                raise
        directory.write_status(history=history.with_end(status, status["state"], timestamp()))
        status = directory.read_status()
        _report_speed(status)
        return status
    except BaseException as error:
        attempts = int(before.get("attempts", 0)) + 1
        _note_failure(directory, error, attempts)
        raise


def _of_all_ranks(one: Calibration, n_ranks: int) -> Calibration:
    """The bound of so many ranks, of which one was measured, on its share of the cores."""
    bound = n_ranks * one.serial_bound_agent_steps_per_second
    return replace(one, processes=n_ranks * one.processes, serial_bound_agent_steps_per_second=bound)


def _saved_state(config: Config, directory: RunDirectory) -> dict[str, Any] | None:
    if not directory.latest_checkpoint.exists():
        return None
    saved = checkpoint.load(directory.latest_checkpoint)
    if saved.get("algorithm") != config.algo.name:
        raise CheckpointError(f"{directory.latest_checkpoint} is a checkpoint of {saved.get('algorithm')}, not of "
                              f"{config.algo.name}: remove it to start anew.")  # fmt: skip
    before = {key.removeprefix("budget."): old for key, (old, _) in directory.read_status().get("changed", {}).items()}
    budget = asdict(config.budget)
    saved.setdefault("budget", {key: before.get(key, value) for key, value in budget.items()})  # of an older version
    log.info("Going on from frame %s.", f"{saved['counters']['frames']:,}")
    return saved


def _lost_seconds(before: dict[str, Any], saved: dict[str, Any] | None) -> float:
    """Training time of a killed attempt after its last checkpoint: its rows are dropped, and so counted apart."""
    return max(float(before.get("wall_seconds", 0.0)) - (saved["wall_seconds"] if saved else 0.0), 0.0)


def _note_failure(directory: RunDirectory, error: BaseException, attempts: int) -> None:
    told_in_full = isinstance(error, UserError | TrainingError | OSError)  # by whoever called
    log.error("The run failed.", exc_info=None if told_in_full else error)
    has_diverged = isinstance(error, DivergedError)
    ended = "diverged" if has_diverged else "failed"
    try:
        directory.write_status(
            state="failed",
            attempts=attempts,
            history=history.with_end(directory.read_status(), ended, timestamp()),
            diverged=has_diverged,
            error=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
        )
    except OSError as full:
        log.error("status.json could not be written: %s", full)


def _report_speed(status: dict[str, Any]) -> None:
    speed = status["final"].get("agent_steps_per_second")
    if speed is None:
        return
    bound = status.get("calibration", {}).get("serial_bound_agent_steps_per_second")
    share = f", {100 * speed / bound:.0f}% of the serial bound of {bound:,.0f}" if bound else ""
    log.info("%s agent steps per second of training%s.", f"{speed:,.0f}", share)


class _LogFile(logging.FileHandler):
    """A log whose disk may be full: lines are lost then, and the run says in its own words what happened."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Keeps logging's traceback from the terminal."""

    def close(self) -> None:
        """Closes the file, with or without its last lines."""
        with suppress(OSError):
            super().close()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything the package logs goes to the run's own log too."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("a3c_bench")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
