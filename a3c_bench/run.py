"""The entry point: Hydra in, exit status out.

    python -m a3c_bench.run -m algo=paac seed=0,1,2

Exit status: 0 finished, 1 a run failed, 2 bad input, 128 + n stopped by signal n (saved; the same command goes on).
"""

import logging
import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C while the rest is imported is no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from a3c_bench.checks import check_settings
from a3c_bench.config import config_directory, explain, from_hydra, register_schemas, run_directory
from a3c_bench.errors import ConfigError, TrainingError, UserError
from a3c_bench.launch.sweep import exit_statuses
from a3c_bench.runtime.signals import ended_by_interrupt

log = logging.getLogger(__name__)


@ended_by_interrupt()  # until a run listens
def main() -> None:
    """Runs one job, or each job of a sweep; a job that fails does not keep the others from running."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as they are, and leave as one sentence
    register_schemas()
    exit_statuses.clear()

    @hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")
    def job(composed: DictConfig) -> float | None:
        try:
            _refuse_a_launcher_without_a_sweep()
            config = from_hydra(composed)
            check_settings(config)
            from a3c_bench.train import train  # torch and EnvPool: seconds that bad input need not wait for

            directory = run_directory(config, HydraConfig.get().overrides.task)
            status = train(config, directory)
        except (UserError, TrainingError) as error:
            _say(str(error))
            exit_statuses.append(error.exit_status)
            return None
        except Exception as error:  # its traceback is in the run's log and status.json
            _say(f"The run failed: {type(error).__name__}: {error}")
            exit_statuses.append(1)
            return None
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
    except OSError as error:
        _say(f"{error.filename or 'A file'} cannot be written: {error.strerror}.")
        sys.exit(2)
    sys.exit(max(exit_statuses, default=0))


def _refuse_a_launcher_without_a_sweep() -> None:
    hydra_config = HydraConfig.get()
    launcher = hydra_config.runtime.choices["hydra/launcher"]
    if hydra_config.mode == RunMode.RUN and launcher != "basic":
        raise ConfigError(f"hydra/launcher={launcher} is for sweeps: add -m, also for a single run.")


def _say(sentence: str) -> None:
    print(f"a3c_bench: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
