"""Evaluates a checkpoint of a run by the protocol of `a3c_bench.evaluation`.

python -m a3c_bench.evaluate runs/default/CartPole-v1/paac/seed0
python -m a3c_bench.evaluate RUN --games 100 --policy greedy --checkpoint best
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from a3c_bench.errors import CheckpointError, ConfigError, UserError
from a3c_bench.runtime.machine import check_device
from a3c_bench.schema import Config, EvaluationConfig, check
from a3c_bench.streams import exit_with


def parse_run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> tuple[argparse.Namespace, Config]:
    """Adds what `evaluate` and `play` have in common, parses, and loads the configuration of the run.

    Without torch and EnvPool, which take seconds to import: bad input need not wait for them.

    Returns:
        what was chosen, with the checkpoint's file as `file`; the run's configuration, with what was chosen.

    Raises:
        UserError: one sentence.
    """
    parser.add_argument("run", type=Path, help="a run directory, runs/.../seed<k>")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    parser.add_argument("--policy", choices=("sample", "greedy"), help="default: the run's evaluation.policy")
    parser.add_argument("--seed", type=int, default=0, help="of environments and actions (default 0)")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    if chosen.seed < 0:
        raise ConfigError(f"--seed {chosen.seed} must be at least 0.")
    check_device(chosen.device)
    from a3c_bench.config import load_config  # Hydra, which --help need not wait for

    config = load_config(chosen.run)
    chosen.file = chosen.run / "checkpoint" / f"{chosen.checkpoint}.pt"
    if not chosen.file.exists():
        raise CheckpointError(f"There is no checkpoint at {chosen.file}.")
    protocol: EvaluationConfig = config.evaluation
    if chosen.policy:
        protocol = dataclasses.replace(protocol, policy=chosen.policy)
    return chosen, dataclasses.replace(config, evaluation=protocol, device=chosen.device)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m a3c_bench.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--games", type=int, help="default: the run's evaluation.n_games")
    try:
        chosen, config = parse_run(parser, arguments)
        if chosen.games is not None:
            if chosen.games < 1:
                raise ConfigError(f"--games {chosen.games} must be at least 1.")
            config = dataclasses.replace(
                config, evaluation=dataclasses.replace(config.evaluation, n_games=chosen.games)
            )
        check(config)
        from a3c_bench.evaluation import evaluate, evaluation_seed, load_network, policy_name
        from a3c_bench.runtime.machine import resolve_device

        network = load_network(config, chosen.file, resolve_device(config.device))
        # The run's own evaluations are numbered from 0: these seeds lie beyond any of them.
        result = evaluate(config, network, evaluation_seed(config, 1_000_000 + chosen.seed))
        assert result is not None  # nobody interrupts
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    env = config.env
    print(f"{env.name}, {config.algo.name}, seed {config.seed}, {chosen.checkpoint} checkpoint, "
          f"{policy_name(config, network)} policy")  # fmt: skip
    print("returns: " + " ".join(f"{game['episode_return']:g}" for game in result.games))
    for key, value in result.summary.items():
        print(f"{key}: {value:.2f}")
    return 0


if __name__ == "__main__":
    exit_with(main)
