"""One run from the first frame to the last: counters, budget, rows, evaluations, checkpoints, stopping.

An algorithm owns its loop and its wiring, and tells the session what happened:

    session.begin(network=..., optimizer=...)
    while session.running():
        ...act...       session.count(n_agent_steps, episodes)
        ...learn...     session.updated({"loss": ...}); session.lag.add(...)
"""

import logging
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from a3c_bench.core.adjustment import Window
from a3c_bench.core.lag import LagMeter, Stamp
from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.envs.episodes import Episode
from a3c_bench.errors import CheckpointError, RankError
from a3c_bench.runtime import checkpoint, machine
from a3c_bench.runtime.clock import PHASES, PhaseTimer, TrainingClock
from a3c_bench.runtime.directory import RunDirectory, timestamp
from a3c_bench.runtime.ledger import Counters as Counters
from a3c_bench.runtime.ledger import Figures, Fit, Scalar, WorkerReport, hand_over
from a3c_bench.runtime.loggers import make_loggers
from a3c_bench.runtime.peers import ALONE, Due, Peers, Release, Start, frames_are_spent
from a3c_bench.runtime.progress import ProgressDisplay
from a3c_bench.runtime.recorder import Recorder
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import Config

log = logging.getLogger(__name__)
SECONDS_BETWEEN_STATUS = 5.0
SECONDS_BETWEEN_MEMORY = 10.0


class Part(Protocol):
    """Something whose state belongs in a checkpoint."""

    def state_dict(self) -> Any:
        """Tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Goes on from there."""


class Evaluation(Protocol):
    """What an evaluation found."""

    @property
    def games(self) -> Sequence[Mapping[str, Any]]:
        """Rows of eval.csv."""

    @property
    def summary(self) -> Mapping[str, float]:
        """Figures by name; evaluation_mean_return is one."""


class Session:
    """Keeps one run: hand it what happened, ask it whether to go on.

    Args:
        config: of the run.
        plain_config: the same as nested dicts, for the loggers.
        directory: held for this run.
        evaluate: plays an evaluation with a network; the second argument counts the evaluations of this run. It gives
            None if the run was told to stop meanwhile.
        stop: told by signals.
        saved: the checkpoint to go on from.
        columns: of metrics.csv that the algorithm adds.
        peers: the other ranks, of which this is rank 0.
    """

    def __init__(
        self,
        config: Config,
        plain_config: Mapping[str, Any],
        directory: RunDirectory,
        evaluate: Callable[[ActorCritic | QNetwork, int], Evaluation | None],
        stop: StopRequest,
        saved: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        peers: Peers = ALONE,
    ) -> None:
        self.config = config
        self.peers = peers
        self.counters = Counters(**saved["counters"]) if saved else Counters()
        self.attempt = int(directory.read_status().get("attempts", 0)) + 1
        self.clock = TrainingClock(saved["wall_seconds"] if saved else 0.0)  # workers may read it
        self.timer = PhaseTimer(*PHASES)
        self.version: int | None = None  # of the policy that acts, if it is not theta; None: theta
        self.gauges: Callable[[], Mapping[str, float]] = dict  # more columns of a row of metrics.csv, when it is due
        self._directory = directory
        self._evaluate = evaluate
        self._stop = stop
        self._saved = saved
        self._parts: dict[str, Part] = {}
        self._n_evaluations = saved["n_evaluations"] if saved else 0
        self._best_return = saved["best_return"] if saved else float("-inf")
        self._best_updates = saved.get("best_updates") if saved else None  # when that was; older versions did not say
        self._due = Due(config, self.counters.frames, _evaluated_frames(saved) if saved else 0)
        self._last_evaluation: Mapping[str, float] = saved["last_evaluation"] if saved else {}
        self._budget_was_spent = bool(
            saved and saved["budget_was_spent"] and saved.get("budget", asdict(config.budget)) == asdict(config.budget)
        )
        self._checkpoint_at = self._status_at = 0.0
        self._memory_at = -SECONDS_BETWEEN_MEMORY
        self._sent_at = self.wall_seconds
        self._steps_met = self.counters.agent_steps  # that all ranks know of
        self._has_begun = self._agreed_to_end = False
        self._recorder = Recorder(
            directory, make_loggers(config, directory.path, plain_config), saved["recorder"] if saved else None, columns
        )
        label = f"{config.env.name} {config.algo.name} seed {config.seed}"
        self._progress = ProgressDisplay(label, config.budget.frames, config.progress)

    # --- what an algorithm uses ---------------------------------------------------------------------------------

    @property
    def lag(self) -> LagMeter:
        """Takes the lag of every valid sample that enters an update."""
        return self._recorder.lag

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def wall_seconds(self) -> float:
        """Training seconds, all attempts together, without evaluation."""
        return self.clock.seconds

    def begin(self, **parts: Part) -> None:
        """Begins the run: names what checkpoints hold, loads it if the run goes on from one, and starts the clocks.

        Args:
            parts: by name; `network` is what gets evaluated.

        Raises:
            CheckpointError: the checkpoint does not fit these parts.
        """
        self._parts = parts
        if self._saved is not None:
            try:
                for name, part in parts.items():
                    part.load_state_dict(self._saved["parts"][name])
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())  # torch's are several lines
                raise CheckpointError(f"{self._directory.latest_checkpoint} does not fit this run: {reason}") from error
            self._saved = None
            self._keep_best_in_step()
        else:
            self._directory.best_checkpoint.unlink(missing_ok=True)  # of a run that was begun anew
        self._save(self._directory.latest_checkpoint)
        self._write_status("running")
        if self.peers.size > 1:
            self._agreed_to_end = self._wants_to_end
            states = {name: part.state_dict() for name, part in parts.items()}
            self.peers.share(Start(asdict(self.counters), self.wall_seconds, self._due, self._agreed_to_end, states))
            self.peers.take_sent()  # counts from here
        self._has_begun = True
        self.clock.start()
        self.timer.start()

    def restore(self, **parts: Part) -> None:
        """The former name of `begin`."""
        warnings.warn("Session.restore is called Session.begin now.", DeprecationWarning, stacklevel=2)
        self.begin(**parts)

    def count(self, n_agent_steps: int, episodes: Sequence[Episode] = ()) -> None:
        """Counts agent steps that were taken (phantoms left out), and the games that ended with them."""
        self.counters.agent_steps += n_agent_steps
        self.counters.frames += n_agent_steps * self.config.env.frame_skip
        if episodes:
            self._recorder.add_episodes(self._now(), episodes)

    def updated(self, figures: Figures, fit: Fit | None = None, n_updates: int = 1) -> None:
        """Counts updates and keeps their figures for the next row, which has the mean of each over those that gave it.

        Args:
            figures: of one update, scalars on any device; or of several, flat arrays of any length. They are columns
                of metrics.csv: `Algorithm.columns` are an algorithm's own.
            fit: values, returns and mask of the samples, of one shape: they give explained_variance.
            n_updates: how many these are.
        """
        self.counters.updates += n_updates
        self._recorder.add_updates(figures, fit)

    def ratio(self, column: str, part: Scalar, whole: Scalar) -> None:
        """Adds to two sums; the next row has their ratio in this column."""
        self._recorder.ratios.add(column, part, whole)

    def take(self, report: WorkerReport) -> None:
        """Takes what a worker did."""
        hand_over(report, self)

    def adjusted(self, window: Window) -> None:
        """Writes what a window of the dynamic adjustment showed."""
        self._recorder.add_adjustment(self._now(), window)

    def meet(self) -> None:
        """Counts what the other ranks have done since the last meeting, and agrees with them on whether the run ends.

        All ranks call it equally often. It is not for runs of one rank, whose counts are known and whose end is seen.
        """
        if self.peers.size == 1:
            return
        counters, own = self.counters, self.counters.agent_steps - self._steps_met
        met = self.peers.meet(own, self._wants_to_end, self._stop.signal or 0)
        self._steps_met = counters.agent_steps = counters.agent_steps - own + met.n_agent_steps
        counters.frames = counters.agent_steps * self.config.env.frame_skip
        if met.signal:
            self._stop.request(signal.Signals(met.signal))
        self._agreed_to_end = met.ends or frames_are_spent(self.config, counters.frames)
        self.timer.lap("communicate")

    @property
    def theta_version(self) -> int:
        """Updates applied to theta so far, whoever acts."""
        return self.counters.updates

    @property
    def frames(self) -> int:
        """Simulated by all so far: the other ranks are taken to have done as much as this one since they met."""
        of_others = (self.peers.size - 1) * (self.counters.agent_steps - self._steps_met)
        return (self.counters.agent_steps + of_others) * self.config.env.frame_skip

    def stamp(self) -> Stamp:
        """Where the run stands; the version is that of the policy that acts, while `version` says so."""
        version = self.counters.updates if self.version is None else self.version
        return Stamp(version, self.frames, self.wall_seconds)

    def running(self, standstill: Callable[[], AbstractContextManager[None]] = nullcontext) -> bool:
        """Does what is due (rows, evaluation, checkpoint) and says whether the run goes on.

        Args:
            standstill: while entered, nothing learns, and all that was done has been counted here.
        """
        if self.is_over:  # the last row is finish()'s
            return False
        evaluates = self._due.evaluation(self.counters.frames)
        if not (evaluates or self._due.row(self.counters.frames)):
            return True
        saves = self.wall_seconds - self._checkpoint_at >= self.config.checkpoint_interval_seconds
        stands = evaluates or saves
        with standstill() if stands or self.peers.size > 1 else nullcontext():
            self._take_reports()
            if self.counters.frames > self._due.row_frames:
                self._end_interval()
            if self.wall_seconds - self._status_at >= SECONDS_BETWEEN_STATUS:
                self._write_status("running")
            # Asked again: the standstill may have handed over the frames that make it due, or those that end the run.
            if stands and self._due.evaluation(self.counters.frames) and not self._budget_is_spent():
                self._run_evaluation(final=False)
            if saves:
                self._save(self._directory.latest_checkpoint)
            if self.peers.size > 1:
                self._agreed_to_end = self._wants_to_end
                self.peers.release(Release(self._agreed_to_end, self.wall_seconds, self._steps_met, self._due))
        self.timer.start()
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, or the run is to stop: of a run that goes on, it may be so from the start."""
        return self._wants_to_end if self.peers.size == 1 else self._agreed_to_end

    # --- what train.py uses -------------------------------------------------------------------------------------

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clock.stop()
        self._progress.close()
        self._recorder.close()

    def finish(self) -> dict[str, Any]:
        """Closes a run whose loop has ended: `preempted` if it was told to stop, else evaluated and `finished`.

        Returns:
            the status that was written.
        """
        status = self._finish()
        if self.peers.size > 1:
            try:
                self.peers.release(Release(True, self.wall_seconds, self._steps_met, self._due, status))
            except RankError as error:
                log.warning("%s It has done its part.", error)
        return status

    def save_what_there_is(self) -> None:
        """Ends the row and saves, for a run whose other ranks are lost: the last update was that of all of them."""
        if self._has_begun:
            if self.counters.frames > self._due.row_frames:
                self._end_interval()
            self._save(self._directory.latest_checkpoint)
            self._write_status("running")

    # --- how ------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        self._take_reports()
        if self.counters.frames > self._due.row_frames:
            self._end_interval()
        self.clock.stop()
        self._progress.close()
        if self._budget_is_spent():
            finished = self._run_evaluation(final=True)
        else:
            finished = False
        self._save(self._directory.latest_checkpoint)
        if finished:
            return self._write_status("finished", finished_at=timestamp())
        assert self._stop.signal is not None  # nothing else ends a loop early or an evaluation
        return self._write_status("preempted", stop_signal=self._stop.signal.name)

    @property
    def _wants_to_end(self) -> bool:
        return self._budget_is_spent() or self._stop.signal is not None

    def _take_reports(self) -> None:
        """Of the other ranks, which stand still now."""
        if self.peers.size > 1:
            for report in self.peers.gather(None):
                self.take(report)
            self._steps_met = self.counters.agent_steps
            mib, n_messages = self.peers.take_sent()
            seconds = self.wall_seconds - self._sent_at
            self.ratio("sent_mib_per_second", mib, seconds)
            self.ratio("sent_messages_per_second", n_messages, seconds)
            self._sent_at = self.wall_seconds

    def _now(self) -> dict[str, float]:
        return asdict(self.counters) | {"wall_seconds": self.wall_seconds}

    def _budget_is_spent(self) -> bool:
        """Once it is, it stays so: a game that workers report after that may lower the mean return again."""
        budget = self.config.budget
        recent, target = self._recorder.recent_returns, budget.target_return
        self._budget_was_spent = (
            self._budget_was_spent
            or frames_are_spent(self.config, self.counters.frames)
            or (budget.wall_clock_seconds is not None and self.wall_seconds >= budget.wall_clock_seconds)
            or (target is not None and len(recent) == recent.maxlen and (self._recorder.mean_return or 0.0) >= target)
        )
        return self._budget_was_spent

    def _end_interval(self) -> None:
        self._due.row_frames = self.counters.frames
        row = self._recorder.end_interval(self._now(), self.timer.shares() | dict(self.gauges()) | self._memory())
        self._progress.update(row)

    def _memory(self) -> dict[str, float]:
        """Measured rarely: it is read page by page."""
        if self.wall_seconds < self._memory_at + SECONDS_BETWEEN_MEMORY:
            return {}
        self._memory_at = self.wall_seconds
        in_use = machine.memory_mib()
        return {} if in_use is None else {"memory_mib": in_use}

    def _run_evaluation(self, final: bool) -> bool:
        """Evaluates, unless told to stop meanwhile; then it stays due. Gives whether it took place."""
        network = self._parts["network"]
        assert isinstance(network, ActorCritic | QNetwork)
        with self.clock.paused():
            try:
                result = self._evaluate(network, self._n_evaluations)
            except RankError as error:
                if not final:
                    raise
                log.warning("%s It has done its part.", error)
                self.peers = ALONE
                result = self._evaluate(network, self._n_evaluations)
        if result is None:
            return False
        self._due.evaluated_frames = self.counters.frames
        self._n_evaluations += 1
        self._last_evaluation = dict(result.summary)
        self._recorder.add_evaluation(self._now(), final, result.games, result.summary)
        mean_return = result.summary["evaluation_mean_return"]
        with self._progress.set_aside():
            frames, n_games = f"{self.counters.frames:,}", len(result.games)
            log.info("frame %s: evaluation return %.1f over %d games", frames, mean_return, n_games)
        if mean_return > self._best_return:
            self._best_return, self._best_updates = mean_return, self.counters.updates
            self._save(self._directory.latest_checkpoint)  # first: the run never goes back behind its best network
            checkpoint.copy(self._directory.latest_checkpoint, self._directory.best_checkpoint)
        return True

    def _keep_best_in_step(self) -> None:
        """Makes best.pt belong to what this run goes on from: a kill may have come before it was copied, and before
        latest.pt came up with it in runs of older versions, which saved it alone."""
        latest, best = self._directory.latest_checkpoint, self._directory.best_checkpoint
        if self._best_updates == self.counters.updates:
            checkpoint.copy(latest, best)
        elif best.exists() and checkpoint.updates_of(best) > self.counters.updates:
            log.warning("%s is of a part of the run that was lost: the next evaluation replaces it.", best)
            best.unlink()
            self._best_return, self._best_updates = float("-inf"), None

    def _save(self, path: Path) -> None:
        self._recorder.write_histogram()
        content = {
            "algorithm": self.config.algo.name,
            "counters": asdict(self.counters),
            "wall_seconds": self.wall_seconds,
            "budget_was_spent": self._budget_was_spent,
            "budget": asdict(self.config.budget),
            "n_evaluations": self._n_evaluations,
            "evaluated_frames": self._due.evaluated_frames,
            "best_return": self._best_return,
            "best_updates": self._best_updates,
            "last_evaluation": dict(self._last_evaluation),
            "recorder": self._recorder.state_dict(),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        checkpoint.save(path, content)
        if path == self._directory.latest_checkpoint:
            self._checkpoint_at = self.wall_seconds

    def _write_status(self, state: str, **more: Any) -> dict[str, Any]:
        self._status_at = self.wall_seconds
        figures = {"mean_return_100_games": self._recorder.mean_return} | dict(self._last_evaluation)
        seconds = self.wall_seconds
        if seconds > 0:
            figures["agent_steps_per_second"] = self.counters.agent_steps / seconds
        self._directory.write_status(
            state=state, attempts=self.attempt, **self._now(), final=figures, error=None, **more
        )
        return self._directory.read_status()


def _evaluated_frames(saved: Mapping[str, Any]) -> int:
    """Up to where evaluations took place; older versions said whether one was owed."""
    done = 0 if saved.get("evaluation_owed") else saved["counters"]["frames"]
    return int(saved.get("evaluated_frames", done))
