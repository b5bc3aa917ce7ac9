"""What Hydra is given of ours: a sweeper that composes fast, and the launchers `local` and `slurm_...`.

Hydra finds plugins in this namespace package, also when it runs somebody else's application: nothing heavy is imported
before it is needed.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from a3c_bench.config import compose_points, from_hydra, open_schema, run_directory
from a3c_bench.errors import ConfigError
from a3c_bench.launch.directories import refuse_one_directory
from a3c_bench.launch.options import LocalOptions, SlurmOptions, check_local, check_slurm
from a3c_bench.launch.ranks import with_ranks
from a3c_bench.launch.sweep import n_points

ConfigStore.instance().store(group="hydra/launcher/schema", name="local", node=open_schema(LocalOptions))
ConfigStore.instance().store(group="hydra/launcher/schema", name="slurm", node=open_schema(SlurmOptions))


class GridSweeper(BasicSweeper):
    """Hydra's own, but for the check of a batch, which composed each point from scratch."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes each point, unless the launcher will do so before it starts anything."""
        if isinstance(self.launcher, BasicLauncher):
            assert self.hydra_context is not None
            assert self.config is not None
            composed = compose_points(self.hydra_context.config_loader, self.config, batch)
            places = []
            for config, words in zip(composed, batch, strict=True):
                with suppress(ConfigError):  # its own job says so, and the others run
                    places.append((run_directory(from_hydra(config), words), words))
            refuse_one_directory(places)
            n_points[:] = [len(batch)]


class _SweepLauncher(Launcher):
    """Composes every point, then hands the sweep over."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra gives."""
        self.hydra_context = hydra_context
        self.config = config

    def read_options(self) -> LocalOptions | SlurmOptions:
        """What was said of this launcher, checked."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the points; how they ended is in `a3c_bench.launch.sweep.exit_statuses`."""
        from a3c_bench.launch import sweep
        from a3c_bench.launch.points import Point

        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        composed = compose_points(self.hydra_context.config_loader, self.config, job_overrides)
        options = self.read_options()
        configs = [
            with_ranks(from_hydra(config), options, words)
            for config, words in zip(composed, job_overrides, strict=True)
        ]
        points = [Point(run_directory(c, words), c, words) for c, words in zip(configs, job_overrides, strict=True)]
        root = Path(self.config.hydra.sweep.dir)
        if isinstance(options, LocalOptions):
            exit_status = sweep.launch_local(points, options, root)
        else:
            exit_status = sweep.launch_slurm(points, options, root)
        sweep.exit_statuses.append(exit_status)
        return [JobReturn(overrides=list(words), status=JobStatus.COMPLETED) for words in job_overrides]


class LocalLauncher(_SweepLauncher):
    """hydra/launcher=local."""

    def read_options(self) -> LocalOptions:
        """See `_SweepLauncher`."""
        options = LocalOptions(**self.options)
        check_local(options)
        return options


class SlurmLauncher(_SweepLauncher):
    """hydra/launcher=slurm_cpu and slurm_gpu."""

    def read_options(self) -> SlurmOptions:
        """See `_SweepLauncher`."""
        options = SlurmOptions(**self.options)
        check_slurm(options)
        return options
