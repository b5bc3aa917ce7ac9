"""What can be said of a configuration as a whole without torch: bad input is refused before torch is imported."""

from a3c_bench import plugins
from a3c_bench.algos import algorithm_names, find_settings
from a3c_bench.envs.step_time import check_step_time
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.machine import check_device
from a3c_bench.schema import ADVANTAGE_KINDS, NETWORK_KINDS, Config, check


def check_settings(config: Config) -> None:
    """Checks a run before torch or a simulator is there; `train.check_run` checks the rest.

    Raises:
        ConfigError: one sentence.
    """
    check(config)
    check_device(config.device)
    budget = config.budget
    if budget.frames is None and budget.wall_clock_seconds is None and budget.target_return is None:
        raise ConfigError("There is no budget: set budget.frames, budget.wall_clock_seconds or budget.target_return.")
    if budget.frames is None and config.algo.optimizer.anneal:
        raise ConfigError("algo.optimizer.anneal=true needs budget.frames, over which the learning rate falls to 0.")
    lr_range = config.algo.optimizer.lr_range
    if lr_range is not None and lr_range[0] > lr_range[1]:
        raise ConfigError(f"algo.optimizer.lr_range={list(lr_range)} must be [lowest, highest].")
    if config.tuned_for not in (None, config.env.name):
        raise ConfigError(
            f"These settings are tuned for {config.tuned_for}, and this is {config.env.name}: say settings=paper, "
            f"without an experiment, or tuned_for={config.env.name} to use them all the same."
        )
    for part, group, kinds in (
        ("network", plugins.NETWORKS, NETWORK_KINDS),
        ("advantage", plugins.ADVANTAGES, ADVANTAGE_KINDS),
    ):
        kind = getattr(config, part).kind
        own = None if kind in kinds else plugins.load(group, kind).config_class
        if own is not None and not isinstance(getattr(config, part), own):
            raise ConfigError(f"{part}.kind={kind} has keys of its own: say {part}={kind}.")
    check_step_time(config.env)
    check_compute(config)
    check_ranks(config)
    find_settings(config.algo.name).check(config)


def check_ranks(config: Config) -> None:
    """Raises ConfigError for several ranks of what runs as one."""
    name = config.algo.name
    if config.ranks > 1 and not find_settings(name).ranks:
        others = " or ".join(f"algo={other}" for other in algorithm_names() if find_settings(other).ranks)
        raise ConfigError(f"algo={name} does not train on several ranks: ranks={config.ranks} is for {others}.")
    if config.ranks > 1 and ":" in config.device:
        raise ConfigError(
            f"device={config.device} is one GPU, and ranks={config.ranks} take one each: say device=cuda."
        )


def check_compute(config: Config) -> None:
    """Raises ConfigError for callables that cannot be run as config.compute says."""
    options, algo = config.compute, config.algo
    asked = [key for key in ("compile", "cuda_graphs") if getattr(options, key)]
    if asked and not find_settings(algo.name).computes:
        others = " or ".join(f"algo={name}" for name in algorithm_names() if find_settings(name).computes)
        raise ConfigError(f"algo={algo.name} runs as it is written: compute.{asked[0]}=true is for {others}.")
    if options.compile and config.network.compile:
        raise ConfigError(
            "compute.compile=true compiles the network with all else: leave network.compile=true to algorithms that "
            "refuse it, and to what is to be compiled alone."
        )
    if options.cuda_graphs and not config.device.startswith("cuda"):
        raise ConfigError(f"compute.cuda_graphs=true needs a GPU, and device={config.device} is none: say device=cuda.")
    if options.cuda_graphs and algo.optimizer.kind == "adagrad":
        raise ConfigError(
            "compute.cuda_graphs=true is not for algo.optimizer.kind=adagrad, which counts its steps in main memory: "
            "say rmsprop or adam."
        )
