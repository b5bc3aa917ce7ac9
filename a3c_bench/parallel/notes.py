"""What a worker did, kept until it reports."""

from collections.abc import Sequence

from a3c_bench.core.lag import Samples, Stamp
from a3c_bench.envs.episodes import Episode
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.clock import PHASES, PhaseTimer
from a3c_bench.runtime.ledger import Figures, Fit, Ratios, Scalar, WorkerReport


class Notes:
    """A worker's ledger, with the session's face: what is told to it is reported, and the session takes it then.

    What others have to know at once, the agent steps, goes into the tally too. Updates do not: whoever applies one
    counts it there itself, where it is applied.

    Args:
        tally: of everybody.
        writer: its row there.
    """

    def __init__(self, tally: Tally, writer: int) -> None:
        self.tally = tally
        self.writer = writer
        self.timer = PhaseTimer(*PHASES)
        self.version: int | None = None  # of the policy that acts, if it is a copy of theta; None: theta itself
        self.pending = WorkerReport()
        self._ratios = Ratios()

    @property
    def lag(self) -> "Notes":
        """Takes lag."""
        return self

    def add(self, **samples: Samples) -> None:
        """The lags of the samples of one update, by unit."""
        self.pending.lags.append(samples)

    @property
    def theta_version(self) -> int:
        """Updates applied to theta so far, whoever acts."""
        return self.tally.version

    @property
    def frames(self) -> int:
        """Simulated by the whole run so far."""
        return self.tally.frames

    def stamp(self) -> Stamp:
        """Now; the version is that of the policy that acts."""
        return self.tally.stamp(self.version)

    def count(self, n_agent_steps: int, episodes: Sequence[Episode] = ()) -> None:
        """Counts for everybody to see."""
        self.tally.add(self.writer, agent_steps=n_agent_steps)
        self.pending.n_agent_steps += n_agent_steps
        if episodes:  # with where the run stands now: it will be elsewhere when they are reported
            now = self.tally.moment()
            self.pending.episodes.extend(episode._replace(ended=episode.ended or now) for episode in episodes)

    def updated(self, figures: Figures, fit: Fit | None = None, n_updates: int = 1) -> None:
        """Keeps what updates showed."""
        self.pending.n_updates += n_updates
        if figures:
            self.pending.figures.append(figures)
        if fit is not None:
            self.pending.fits.append(fit)

    def ratio(self, column: str, part: Scalar, whole: Scalar) -> None:
        """Adds to the two sums whose ratio is a column of metrics.csv."""
        self._ratios.add(column, part, whole)

    def take(self) -> WorkerReport:
        """All of it, for another thread; and begins anew."""
        report, self.pending = self.pending, WorkerReport()
        report.waiting = self._ratios.waiting()
        report.ratios, report.seconds = self._ratios.sums(), self.timer.take()
        return report

    def report(self) -> WorkerReport:
        """All of it, for another process; and begins anew."""
        ratios = self._ratios.sums()
        report = self.take()
        report.ratios = ratios
        return report.packed()
