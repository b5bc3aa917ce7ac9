"""How many ranks a run has, as its launcher or torchrun says."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from a3c_bench import checks
from a3c_bench.errors import ConfigError
from a3c_bench.launch.options import LocalOptions, SlurmOptions, gpus_of_a_node, ranks_of_a_node
from a3c_bench.runtime import machine
from a3c_bench.schema import Config


def with_ranks(config: Config, options: LocalOptions | SlurmOptions, words: Sequence[str]) -> Config:
    """The configuration of a run with the number of ranks that its launcher starts.

    Args:
        config: as it was composed.
        options: of the launcher; checked.
        words: the overrides of this run.

    Raises:
        ConfigError: the configuration says another number, or its algorithm cannot have so many.
    """
    if isinstance(options, LocalOptions):
        if options.ranks is None:
            return config
        n_ranks, by = options.ranks, f"hydra.launcher.ranks={options.ranks}"
        instead, alone = "say one of them", f"leave {by} out"
    else:
        n_ranks, by = options.nodes * ranks_of_a_node(options), _in_words(options)
        instead = f"leave ranks out, or say hydra.launcher.ranks_per_node={config.ranks // options.nodes or 1}"
        alone = "say hydra.launcher.nodes=1 and hydra.launcher.ranks_per_node=1 for it"
    return _agreed(config, n_ranks, words, f"{by}: {instead}", alone)


def _agreed(config: Config, n_ranks: int, words: Sequence[str], contradicts: str, alone: str) -> Config:
    said = config.ranks != 1 or any(word.lstrip("+").startswith("ranks=") for word in words)
    if said and config.ranks != n_ranks:
        raise ConfigError(f"ranks={config.ranks} contradicts {contradicts}.")
    config = replace(config, ranks=n_ranks)
    try:
        checks.check_ranks(config)
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')}; {alone}.") from None
    return config


@dataclass(frozen=True)
class TorchrunRank:
    """What torchrun has made of this process."""

    index: int
    size: int
    local_index: int  # among those of its node
    local_size: int

    def with_ranks(self, config: Config, words: Sequence[str]) -> Config:
        """The configuration of the run with the number of ranks that torchrun has started.

        Raises:
            ConfigError: as the function of this name.
        """
        contradicts = f"torchrun, which starts {self.size}: leave ranks out"
        return _agreed(config, self.size, words, contradicts, f"torchrun starts {self.size}")

    def take_share(self, device: str) -> None:
        """Keeps this process to its share of the cores, and of the GPUs if it uses any, that its node's ranks see."""
        cores = sorted(os.sched_getaffinity(0))
        machine.keep_to_cores(machine.shared_out(cores, self.local_size)[self.local_index])
        if device.startswith("cuda"):
            os.environ.update(machine.gpus_of_a_rank(self.local_index, self.local_size))


def started_by_torchrun() -> TorchrunRank | None:
    """The rank that this process is, if torchrun has started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return TorchrunRank(*(int(os.environ[name]) for name in names))


def _in_words(options: SlurmOptions) -> str:
    nodes, n_each = f"hydra.launcher.nodes={options.nodes}", ranks_of_a_node(options)
    if options.ranks_per_node is not None:
        return f"{nodes} and hydra.launcher.ranks_per_node={n_each}"
    by_gpu = " (one for each GPU)" if gpus_of_a_node(options) else ""
    return f"{nodes}, which starts {n_each} rank{'s' if n_each > 1 else ''} on each{by_gpu}"
