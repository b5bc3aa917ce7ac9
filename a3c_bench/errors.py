"""The errors a user may cause or meet: one clear sentence each, and the exit status that goes with it."""


class UserError(Exception):
    """Something asked for cannot be done; the message is one sentence that says what is wrong and what to do."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration value, or a combination of values, that cannot run."""


class RunDirectoryError(UserError):
    """A run directory that is foreign, in use, corrupt or not writable."""


class RunDirectoryInUseError(RunDirectoryError):
    """Another process is running in the directory."""


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt or made by something else."""


class TrainingError(Exception):
    """Training cannot go on, for instance because a loss became NaN."""

    exit_status = 1


class DivergedError(TrainingError):
    """A figure of the updates became NaN or infinite: trying again would only hide how often that happens."""


class RankError(TrainingError):
    """Another rank failed, died or went silent; the message names it."""


class WorkerError(TrainingError):
    """A worker process or thread raised, died or went silent; the message ends with its traceback, if it left one."""
