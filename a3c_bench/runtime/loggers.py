"""Loggers beside the CSV files. They are guests: what fails in them is logged once and never ends a run."""

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from a3c_bench.schema import Config

log = logging.getLogger(__name__)

_LONGEST_GROUP = 128  # characters of a group that wandb takes
# TensorBoard's groups, by what the column begins with; the first that fits.
_TAG_GROUPS = {
    "lag": ("lag_", "importance_ratio", "value_lag", "gradient_staleness_", "replay_age_"),
    "returns": ("mean_return_", "discounted_return"),
    "evaluation": ("evaluation_",),
    "losses": ("loss", "entropy_", "gradient_", "explained_variance", "td_error", "max_q"),
    "speed": ("frames_per_second", "pps", "tps", "share_", "sent_", "memory_"),
    "samples": ("clip_share", "effective_", "discarded_", "unusable_", "replay_", "training_", "prediction_"),
    "progress": ("agent_steps", "updates", "wall_seconds", "learning_rate", "epsilon", "n_"),
}


def tensorboard_tag(column: str) -> str:
    """The tag of a column: `group/column`, as TensorBoard shows one block for each group.

    Columns that an algorithm of another package adds are in `other`.
    """
    found = (group for group, starts in _TAG_GROUPS.items() if column.startswith(starts))
    return f"{next(found, 'other')}/{column}"


def seed_group(config: Config, directory: Path) -> str:
    """What the seeds of one configuration have in common, for wandb: name/env/algo[/other overrides].

    A directory that is not where the command line would put the run says nothing of the overrides.
    """
    root, path = Path(config.root).absolute(), directory.absolute()
    head = f"{config.name}/{config.env.name.replace('/', '_')}/{config.algo.name}"
    below = path.parent.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    group = below if below.startswith(head) else head
    if len(group) <= _LONGEST_GROUP:
        return group
    return f"{group[: _LONGEST_GROUP - 13]}-{hashlib.sha256(group.encode()).hexdigest()[:12]}"


class Logger(Protocol):
    """Gets every row that is written to metrics.csv, lag.csv and (as means) eval.csv."""

    def start(self, frames: float) -> None:
        """The run starts, or goes on, at this frame."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row; it holds `frames`."""

    def close(self) -> None:
        """The run is over."""


class Guest:
    """Keeps a logger's errors from the run: after the first one it is left out."""

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        self._name = name
        self._make = make
        self._logger: Logger | None = None

    def start(self, frames: float) -> None:
        """See Logger."""
        self._guarded(self._begin, frames)

    def log(self, row: Mapping[str, Any]) -> None:
        """See Logger."""
        if self._logger is not None:
            self._guarded(self._logger.log, {key: value for key, value in row.items() if value is not None})

    def close(self) -> None:
        """See Logger."""
        if self._logger is not None:
            self._guarded(self._logger.close)

    def _begin(self, frames: float) -> None:
        self._logger = self._make()
        self._logger.start(frames)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # a guest may fail in any way, and the run goes on without it
            log.warning("%s failed and is left out from here on: %s", self._name, error)
            self._logger = None


class WandbLogger:
    """Weights & Biases; a resumed run goes on under its id, which is kept in the run directory."""

    def __init__(self, config: Config, directory: Path, plain_config: Mapping[str, Any]) -> None:
        import wandb

        id_file = directory / "wandb" / "run_id"
        id_file.parent.mkdir(exist_ok=True)
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        label = f"{config.env.name}/{config.algo.name}"
        self._run = wandb.init(
            mode=config.logger.wandb.mode,  # type: ignore[arg-type]
            project=config.logger.wandb.project,
            entity=config.logger.wandb.entity,
            tags=list(config.logger.wandb.tags),
            dir=str(directory),
            id=id_file.read_text().strip(),
            resume="allow",
            group=seed_group(config, directory),
            job_type=label,
            name=f"{label}/seed{config.seed}",
            config=dict(plain_config),
            reinit="create_new",
        )
        self._run.define_metric("*", step_metric="frames")

    def start(self, frames: float) -> None:
        """Nothing: the x axis is `frames`, so a resumed run goes on by itself."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row, by its own frames rather than wandb's step, which would drop rows after a resume."""
        self._run.log(dict(row))

    def close(self) -> None:
        """Ends the wandb run."""
        self._run.finish()


class TensorBoardLogger:
    """TensorBoard event files below the run directory; the x axis is frames."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "tensorboard"
        self._writer: Any = None

    def start(self, frames: float) -> None:
        """Opens the writer; events after `frames` are what a killed attempt left behind, and are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=int(frames) + 1)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row."""
        for key, value in row.items():
            if key != "frames":
                self._writer.add_scalar(tensorboard_tag(key), value, int(row["frames"]))

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def make_loggers(config: Config, directory: Path, plain_config: Mapping[str, Any]) -> list[Logger]:
    """The guests that the configuration asks for."""
    loggers: list[Logger] = []
    if config.logger.wandb.mode != "disabled":
        loggers.append(Guest("wandb", lambda: WandbLogger(config, directory, plain_config)))
    if config.logger.tensorboard:
        loggers.append(Guest("TensorBoard", lambda: TensorBoardLogger(directory)))
    return loggers
