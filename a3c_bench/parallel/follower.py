"""The ledger of a rank above 0: the session's face, without files. What it is told, rank 0 writes down."""

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from a3c_bench.core.lag import Stamp
from a3c_bench.envs.episodes import Episode
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.clock import PhaseTimer, TrainingClock
from a3c_bench.runtime.ledger import Counters, Figures, Fit, Scalar, WorkerReport, hand_over
from a3c_bench.runtime.peers import Due, Peers, Start, frames_are_spent
from a3c_bench.runtime.session import Part
from a3c_bench.runtime.signals import StopRequest
from a3c_bench.schema import Config


class Follower:
    """What `runtime.session.Session` is to an algorithm, on a rank above 0.

    Args:
        config: of the run, as rank 0 has it.
        attempt: of the run, as rank 0 counts.
        directory: of the run; rank 0 writes there, and on another machine it need not be seen.
        peers: the other ranks.
        stop: told by signals.
    """

    def __init__(self, config: Config, attempt: int, directory: Path, peers: Peers, stop: StopRequest) -> None:
        self.config = config
        self.attempt = attempt
        self.directory = directory
        self.peers = peers
        self.counters = Counters()
        self.clock = TrainingClock()
        self.gauges: Callable[[], Mapping[str, float]] = dict  # rank 0 has them too
        self.is_over = False
        self._stop = stop
        self._steps_met = 0  # that all ranks know of
        self._due = Due(config)
        self._tally = Tally(1, config.env.frame_skip, self.clock, peers.size)
        self._notes = Notes(self._tally, 0)

    @property
    def timer(self) -> PhaseTimer:
        """Gets the seconds of the phases."""
        return self._notes.timer

    @property
    def lag(self) -> Notes:
        """Takes lag."""
        return self._notes

    @property
    def version(self) -> int | None:
        """Of the policy that acts, if it is a copy of theta; None: theta itself."""
        return self._notes.version

    @version.setter
    def version(self, version: int | None) -> None:
        self._notes.version = version

    @property
    def wall_seconds(self) -> float:
        """Training seconds, all attempts together, without evaluation."""
        return self.clock.seconds

    def begin(self, **parts: Part) -> None:
        """Begins the run where rank 0 does: its parts have the states that rank 0's have."""
        start: Start = self.peers.share()
        self.peers.take_sent()  # counts from here
        for name, part in parts.items():
            if name in start.states:
                part.load_state_dict(start.states[name])
        self.counters = Counters(**start.counters)
        self._steps_met = self.counters.agent_steps
        self._tally.begin(self.counters.agent_steps, 0)
        self._due, self.is_over = start.due, start.ends
        self.clock.set(start.wall_seconds)
        self.clock.start()
        self.timer.start()

    def count(self, n_agent_steps: int, episodes: Sequence[Episode] = ()) -> None:
        """See `Session`."""
        self.counters.agent_steps += n_agent_steps
        self.counters.frames += n_agent_steps * self.config.env.frame_skip
        self._notes.count(n_agent_steps, episodes)

    def updated(self, figures: Figures, fit: Fit | None = None, n_updates: int = 1) -> None:
        """See `Session`; rank 0 counts the update too, and alone writes it down."""
        self.counters.updates += n_updates
        self._notes.updated(figures, fit, n_updates=0)

    def ratio(self, column: str, part: Scalar, whole: Scalar) -> None:
        """See `Session`."""
        self._notes.ratio(column, part, whole)

    def take(self, report: WorkerReport) -> None:
        """See `Session`."""
        hand_over(report, self)

    @property
    def theta_version(self) -> int:
        """Updates applied to theta so far, whoever acts."""
        return self.counters.updates

    @property
    def frames(self) -> int:
        """See `Session`."""
        return self._tally.frames

    def stamp(self) -> Stamp:
        """See `Session`."""
        version = self.counters.updates if self.version is None else self.version
        return Stamp(version, self.frames, self.wall_seconds)

    def meet(self) -> None:
        """See `Session`."""
        counters, own = self.counters, self.counters.agent_steps - self._steps_met
        met = self.peers.meet(own, False, self._signal())
        self._count_all(counters.agent_steps - own + met.n_agent_steps)
        if met.signal:
            self._stop.request(signal.Signals(met.signal))
        self.is_over = met.ends or frames_are_spent(self.config, counters.frames)
        self.timer.lap("communicate")

    def running(self, standstill: Callable[[], AbstractContextManager[None]] = nullcontext) -> bool:
        """See `Session`: reports what rank 0 is to write down, and stands still until it has done so."""
        if self.is_over:
            return False
        frames = self.counters.frames
        if not (self._due.evaluation(frames) or self._due.row(frames)):
            return True
        with standstill(), self.clock.paused():
            self._report_and_stand()
        self.timer.start()
        return not self.is_over

    def finish(self) -> Mapping[str, Any]:
        """Gives what rank 0 writes into status.json at the end of the run, once it has done so."""
        self.clock.stop()
        return self._report_and_stand()

    def _report_and_stand(self) -> Mapping[str, Any]:
        mib, n_messages = self.peers.take_sent()
        self.ratio("sent_mib_per_second", mib, 0.0)  # rank 0 tells the seconds, once for all
        self.ratio("sent_messages_per_second", n_messages, 0.0)
        report = self._notes.report()
        report.n_agent_steps = self.counters.agent_steps - self._steps_met  # the others were told when the ranks met
        self.peers.gather(report)
        release = self.peers.stand(self._signal)
        self.clock.set(release.wall_seconds)
        self._count_all(release.agent_steps)
        self._due, self.is_over = release.due, release.ends
        return release.status

    def _count_all(self, agent_steps: int) -> None:
        """Counts those of all ranks."""
        self._steps_met = self.counters.agent_steps = agent_steps
        self.counters.frames = agent_steps * self.config.env.frame_skip
        self._tally.correct(agent_steps)

    def _signal(self) -> int:
        return self._stop.signal or 0
