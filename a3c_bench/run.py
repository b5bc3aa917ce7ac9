"""The entry point: Hydra in, exit status out.

    python -m a3c_bench.run -m algo=paac seed=0,1,2
    torchrun --nproc-per-node=2 -m a3c_bench.run algo=paac       a run of two ranks, of which rank 0 speaks

Exit status: 0 finished, 1 a run failed, 2 bad input, 128 + n stopped by signal n (saved; the same command goes on).
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # Ctrl-C while the rest is imported is no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hydra
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from a3c_bench.checks import check_settings
from a3c_bench.config import (
    config_directory,
    explain,
    for_each_point,
    from_hydra,
    register_schemas,
    run_directory,
)
from a3c_bench.errors import ConfigError, TrainingError, UserError
from a3c_bench.launch.ahead import start_ahead
from a3c_bench.launch.ranks import started_by_torchrun
from a3c_bench.launch.sweep import exit_statuses, n_points
from a3c_bench.runtime.signals import ended_by_interrupt
from a3c_bench.schema import Config
from a3c_bench.streams import READER_IS_GONE, let_readers_go, mend_streams

log = logging.getLogger(__name__)

_SWEEP_FLAGS = ("-m", "--multirun")


@ended_by_interrupt()  # until a run listens
def main() -> None:
    """Runs one job, or each job of a sweep; a job that fails does not keep the others from running."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a rank that is lost torch tells in twenty lines
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as they are, and leave as one sentence
    mend_streams()
    register_schemas()
    exit_statuses.clear()
    rank = started_by_torchrun()
    if rank is not None and rank.index > 0:
        logging.disable(logging.WARNING)
    if rank is not None and _is_sweep(sys.argv[1:]):
        _say("torchrun starts the ranks of one run: leave -m out, or say -m hydra.launcher.ranks=... without it.")
        sys.exit(2)
    sys.argv[1:] = _in_order(sys.argv[1:])
    logging.getLogger(BasicLauncher.__module__).setLevel(logging.WARNING)  # its lines between points: ours say more

    @hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")
    def job(composed: DictConfig) -> float | None:
        try:
            _refuse_a_launcher_without_a_sweep()
            config = from_hydra(composed)
            if rank is not None:
                config = rank.with_ranks(config, HydraConfig.get().overrides.task)
            check_settings(config)
            if rank is not None:
                rank.take_share(config.device)
            _say_which_point(config)
            directory = run_directory(config, HydraConfig.get().overrides.task)
            # EnvPool and torch take seconds to import, for which bad input need not wait, and no run twice.
            start_ahead(config, directory)
            from a3c_bench.envs import find_spec

            find_spec(config.env)
            from a3c_bench.train import train

            status = train(config, directory)
        except (UserError, TrainingError) as error:
            _say(str(error), by_all=isinstance(error, UserError))
            exit_statuses.append(error.exit_status)
            return None
        except Exception as error:  # its traceback is in the run's log and status.json
            _say(f"The run failed: {type(error).__name__}: {error}", by_all=False)
            exit_statuses.append(1)
            return None
        if rank is not None and rank.index > 0:
            return None  # rank 0 tells how it ended: torchrun ends all at the first that leaves with another status
        if status["state"] == "preempted":
            log.info("Stopped by %s and saved: the same command goes on from here.", status["stop_signal"])
            raise SystemExit(128 + signal.Signals[status["stop_signal"]].value)
        return float(status["final"]["evaluation_mean_return"])

    try:
        job()
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_status)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of algo=null, say
        _say(explain(error))
        sys.exit(2)
    except BrokenPipeError:  # whoever read has read enough: | head -1
        sys.exit(READER_IS_GONE)
    except OSError as error:
        _say(f"{error.filename or 'A file'} cannot be written: {error.strerror}.")
        sys.exit(2)
    finally:
        let_readers_go()
    sys.exit(max(exit_statuses, default=0))


def _in_order(words: Sequence[str]) -> list[str]:
    """The command line with -m in front, where Hydra wants it, and what a sweep sets of algorithms in each point."""
    flags = [word for word in words if word in _SWEEP_FLAGS]
    others = [word for word in words if word not in flags]
    return flags[:1] + (for_each_point(others) if _is_sweep(words) else others)


def _is_sweep(words: Sequence[str]) -> bool:
    return any(word in _SWEEP_FLAGS or word.startswith("+sweeps") for word in words)


def _say_which_point(config: Config) -> None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and n_points:
        number = hydra_config.job.num + 1
        log.info("Run %d of %d: %s seed %d", number, n_points[0], config.algo.name, config.seed)


def _refuse_a_launcher_without_a_sweep() -> None:
    hydra_config = HydraConfig.get()
    launcher = hydra_config.runtime.choices["hydra/launcher"]
    if hydra_config.mode == RunMode.RUN and launcher != "basic":
        raise ConfigError(f"hydra/launcher={launcher} is for sweeps: add -m, also for a single run.")


def _say(sentence: str, by_all: bool = True) -> None:
    """One sentence on stderr; of what all ranks of a run say, rank 0 alone."""
    rank = started_by_torchrun()
    if rank is None or rank.index == 0:
        print(f"a3c_bench: {sentence}", file=sys.stderr)
    elif not by_all:
        print(f"a3c_bench: rank {rank.index}: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
