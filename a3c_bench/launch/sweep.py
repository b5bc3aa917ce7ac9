"""A sweep from its points to its summary, on any launcher; the same again runs only what is missing or failed."""

import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from a3c_bench.launch.options import LocalOptions, SlurmOptions, check_local, check_slurm
from a3c_bench.launch.points import Point, check_points, write_down
from a3c_bench.launch.state import Standing, counted, local_record, look_again
from a3c_bench.runtime.directory import diverged, write_job
from a3c_bench.runtime.machine import check_gpus, visible_gpus
from a3c_bench.runtime.signals import StopRequest

log = logging.getLogger(__name__)

exit_statuses: list[int] = []  # of the sweeps that this process launched: Hydra hands nothing of them on
n_points: list[int] = []  # of the sweep that Hydra runs one point after the other, for the line before each

_SECONDS_BETWEEN_LOOKS = 1.0  # at runs that somebody else started on this machine
_LOOKS_TO_BE_SURE = 2  # a job that is being requeued may be out of the queue for a moment


def launch_local(points: Sequence[Point], options: LocalOptions, sweep: Path) -> int:
    """Runs a sweep on this machine; gives the exit status.

    Raises:
        UserError: bad options or points; nothing was started.
    """
    check_local(options)
    check_points(points, on_this_machine=True)
    from a3c_bench.launch import local  # torch

    most = max(point.config.ranks for point in points)
    options = replace(options, ranks=most)
    (slot, *_) = local.slots(options, sorted(os.sched_getaffinity(0)), visible_gpus())
    for point in points:
        check_gpus(point.config.device, point.config.ranks, len(slot.gpus))
    if most > len(slot.cores):
        log.warning("%d ranks of a run share %d core%s.", most, len(slot.cores), "s" if len(slot.cores) > 1 else "")
    folder = sweep / ".submitit"
    with StopRequest() as stop:
        with _alone(folder):
            due = _prepare(points)
            pid = local.leave_behind(due, options, folder) if due and options.detach else os.getpid()
            for path in due:
                write_job(path, local_record(pid))
        if options.detach:
            if due:
                log.info("%d runs are left to process %d; log: %s.", len(due), pid, folder / "local.log")
            _say_how_to_look(sweep)
            return 0
        if due:
            local.run_all(due, options, folder, stop)
        return _wait(points, _SECONDS_BETWEEN_LOOKS, stop, sweep)


def launch_slurm(points: Sequence[Point], options: SlurmOptions, sweep: Path) -> int:
    """Runs a sweep as jobs of SLURM; gives the exit status.

    Raises:
        UserError: bad options or points, or SLURM does not take the jobs.
    """
    check_slurm(options)
    check_points(points, on_this_machine=False)
    from a3c_bench.launch import cluster  # submitit

    n_unused = sum(point.config.device == "cpu" for point in points)
    if n_unused and (options.gpus_per_node or options.gres):
        log.warning("%d runs get a GPU that they will not use: say device=cuda.", n_unused)
    folder = sweep / ".submitit"
    with StopRequest() as stop:
        with _alone(folder):
            due = _prepare(points)
            ids = cluster.submit(due, options, folder.absolute(), sweep.name) if due else []
        if ids:
            log.info("Submitted %d runs as job %s; scancel %s ends them.", len(due), ", ".join(ids), " ".join(ids))
        if options.detach:
            _say_how_to_look(sweep)
            return 0
        return _wait(points, options.poll_seconds, stop, sweep)


def _prepare(points: Sequence[Point]) -> list[Path]:
    """Writes down the configurations, and gives the runs that nobody has finished and nobody will."""
    standings = look_again([point.directory for point in points])
    for standing in standings:
        if standing.state == "missing":  # written down for a job that never came: it binds nobody
            (standing.directory / "config.yaml").unlink(missing_ok=True)
    write_down(points)
    again = {point.directory for point in points if point.config.retry_diverged}
    due = [
        standing.directory
        for standing in standings
        if standing.is_over
        and standing.state != "finished"
        and (not diverged(standing.status) or standing.directory in again)
    ]
    log.info("%d runs: %s; %d to start.", len(standings), counted(standings), len(due))
    return due


def _wait(points: Sequence[Point], seconds: float, stop: StopRequest, sweep: Path) -> int:
    """Until nothing is under way; tells every change and the end, and gives the exit status."""
    directories = [point.directory for point in points]
    told: dict[Path, str] = {}
    n_over = 0
    while stop.signal is None:
        standings = look_again(directories)
        for standing in standings:
            if told.get(standing.directory, "queued") != standing.state and told:
                log.info("%s", _line(standing))
        told = {standing.directory: standing.state for standing in standings}
        n_over = n_over + 1 if all(standing.is_over for standing in standings) else 0
        if n_over >= _LOOKS_TO_BE_SURE or all(standing.state == "finished" for standing in standings):
            return _summary(standings)
        _sleep(seconds if n_over == 0 else min(seconds, 1.0), lambda: stop.signal is not None)
    standings = look_again(directories)
    left = [standing.directory for standing in standings if standing.under_way]
    if left:
        log.info("%d runs go on without this command; the same command waits for them again.", len(left))
        _say_how_to_look(sweep)
    else:
        _summary(standings)
    assert stop.signal is not None
    return 128 + signal.Signals(stop.signal).value


def _summary(standings: Sequence[Standing]) -> int:
    unfinished = [standing for standing in standings if standing.state != "finished"]
    for standing in unfinished:
        log.info("%s", _line(standing))
        if standing.job.get("log"):
            log.info("    log: %s", standing.job["log"])
    log.info("%d runs: %s.", len(standings), counted(standings))
    n_diverged = sum(diverged(standing.status) for standing in unfinished)
    if n_diverged:
        log.info("%d diverged: retry_diverged=true tries them again.", n_diverged)
    if len(unfinished) > n_diverged:
        log.info("The same command runs again what is not finished.")
    return 1 if unfinished else 0


def _line(standing: Standing) -> str:
    final = standing.status.get("final", {}).get("evaluation_mean_return")
    score = f", mean return {final:.1f}" if standing.state == "finished" and final is not None else ""
    why = f": {standing.why}" if standing.why else ""
    return f"{standing.directory} {standing.state}{score}{why}"


def _say_how_to_look(sweep: Path) -> None:
    log.info("python -m sweeps.status %s tells where they stand.", sweep)


def _sleep(seconds: float, awake: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not awake() and time.monotonic() < end:
        time.sleep(min(0.2, seconds))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While entered, no other command submits runs of this sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
