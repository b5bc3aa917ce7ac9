"""How many ranks a run has, as its launcher says."""

from collections.abc import Sequence
from dataclasses import replace

from a3c_bench import checks
from a3c_bench.errors import ConfigError
from a3c_bench.launch.options import LocalOptions, SlurmOptions, gpus_of_a_node, ranks_of_a_node
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
    said = config.ranks != 1 or any(word.lstrip("+").startswith("ranks=") for word in words)
    if said and config.ranks != n_ranks:
        raise ConfigError(f"ranks={config.ranks} contradicts {by}: {instead}.")
    config = replace(config, ranks=n_ranks)
    try:
        checks.check_ranks(config)
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')}; {alone}.") from None
    return config


def _in_words(options: SlurmOptions) -> str:
    nodes, n_each = f"hydra.launcher.nodes={options.nodes}", ranks_of_a_node(options)
    if options.ranks_per_node is not None:
        return f"{nodes} and hydra.launcher.ranks_per_node={n_each}"
    by_gpu = " (one for each GPU)" if gpus_of_a_node(options) else ""
    return f"{nodes}, which starts {n_each} rank{'s' if n_each > 1 else ''} on each{by_gpu}"
