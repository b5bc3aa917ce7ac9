"""What this machine could do at most: the parts of an agent step, each measured alone.

    python -m a3c_bench.calibrate                          # the default run's environment and network
    python -m a3c_bench.calibrate experiment=pong          # takes the same words as a3c_bench.run

The serial bound is what a run would reach if it did nothing but simulate, predict and train, one after the other:

    1 / (1 / simulation + 1 / forward + 1 / forward_backward)   agent steps per second

`a3c_bench.calibration` says what each part is for Q-learning and for processes that work side by side.
"""

import sys
from dataclasses import asdict

from a3c_bench.errors import UserError
from a3c_bench.streams import exit_with


def main() -> int:
    """The command line: overrides as for a3c_bench.run; gives the exit status."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    from a3c_bench.checks import check_settings
    from a3c_bench.config import compose

    try:
        config = compose(sys.argv[1:])
        check_settings(config)
        # torch and EnvPool take seconds to import, for which bad input need not wait.
        from a3c_bench.calibration import calibrate

        calibration = calibrate(config)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(f"{config.env.name}, network {config.network.kind}, device {calibration.device}, "
          f"{calibration.cores} cores; medians of {calibration.repeats}")  # fmt: skip
    for key, value in asdict(calibration).items():
        if key.endswith("per_second"):
            print(f"{key:45s}{value:12,.0f}")
    return 0


if __name__ == "__main__":
    exit_with(main)
