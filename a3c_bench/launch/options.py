"""What can be said of a launcher: `hydra/launcher=local` and `hydra/launcher=slurm_...`; the presets are in conf/."""

from dataclasses import dataclass, field
from typing import Any

from a3c_bench.errors import ConfigError
from a3c_bench.schema import check, option

_SECONDS_TO_SAVE = 10  # at least, between SLURM's signal and its end of the job


@dataclass(frozen=True)
class LocalOptions:
    """Runs on this machine."""

    _target_: str = "hydra_plugins.a3c_bench_sweeps.LocalLauncher"
    runs_at_once: int = option(2, at_least=1)  # fewer where there are fewer cores
    cores_per_run: int | None = option(None, at_least=1)  # null: an equal share of the cores this process may use
    gpus_per_run: int | None = option(None, at_least=0)  # null: an equal share, of one GPU if need be
    ranks: int | None = option(None, at_least=1)  # of one run, which share its cores and GPUs; null: what `ranks` says
    detach: bool = False  # leave the runs to a process of their own and return


@dataclass(frozen=True)
class SlurmOptions:
    """Runs as jobs of SLURM; what is null is left to the cluster."""

    _target_: str = "hydra_plugins.a3c_bench_sweeps.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = option(1, at_least=1)  # of one run
    ranks_per_node: int | None = option(None, at_least=1)  # null: one for each GPU, or one where there is none
    cpus_per_task: int = option(4, at_least=1)  # cores of one rank
    gpus_per_node: int | None = option(None, at_least=1)  # GPUs of one run on each of its nodes
    gres: str | None = None  # for instance gpu:a100:1, in place of gpus_per_node
    mem_gb: int | None = option(8, at_least=1)  # of one run on each of its nodes; null: the cluster's default
    timeout_min: int = option(240, at_least=1)  # of one start; a run that needs longer is started again
    signal_delay_s: int = option(120, at_least=1)  # the run is told to save so long before that limit
    array_parallelism: int = option(256, at_least=1)  # runs at once
    requeue: bool = True  # after preemption, a time limit or a lost node; false: only when the command is repeated
    setup: tuple[str, ...] = ()  # lines of shell before a run: module load ...
    python: str | None = None  # what starts Python in the job: "apptainer exec image.sif python"; null: this one
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch: {nodelist: n1}
    detach: bool = False  # submit, print the ids of the jobs, return
    poll_seconds: float = option(10.0, above=0.0)  # between looks at the queue


def check_slurm(options: SlurmOptions) -> None:
    """Checks what is to be said to SLURM.

    Raises:
        ConfigError: in one sentence.
    """
    check(options, "hydra.launcher.")
    seconds = 60 * options.timeout_min
    if options.signal_delay_s > seconds - _SECONDS_TO_SAVE:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={options.signal_delay_s} must be well below the limit of "
            f"hydra.launcher.timeout_min={options.timeout_min} ({seconds} seconds)."
        )
    if options.gres is not None and options.gpus_per_node is not None:
        raise ConfigError("hydra.launcher.gres and hydra.launcher.gpus_per_node say the same: give one of them.")
    n_gpus, n_ranks = gpus_of_a_node(options), ranks_of_a_node(options)
    if n_gpus % n_ranks:
        raise ConfigError(
            f"hydra.launcher.ranks_per_node={n_ranks} cannot share the {n_gpus} GPU{'s' if n_gpus > 1 else ''} of a "
            f"node, whole ones and as many for each: say hydra.launcher.gpus_per_node={n_ranks}."
        )


def gpus_of_a_node(options: SlurmOptions) -> int:
    """The GPUs that one run has on each of its nodes."""
    if options.gpus_per_node is not None:
        return options.gpus_per_node
    kinds = [kind.split(":") for kind in (options.gres or "").split(",")]
    return sum(int(kind[-1]) if kind[-1].isdecimal() else 1 for kind in kinds if kind[0] == "gpu")


def ranks_of_a_node(options: SlurmOptions) -> int:
    """The ranks that one run has on each of its nodes."""
    return options.ranks_per_node or gpus_of_a_node(options) or 1


def check_local(options: LocalOptions) -> None:
    """Checks what is to be said to this machine.

    Raises:
        ConfigError: in one sentence.
    """
    check(options, "hydra.launcher.")
