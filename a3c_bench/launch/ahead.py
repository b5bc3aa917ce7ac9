"""What a run begins before it imports torch and EnvPool, which takes seconds."""

from pathlib import Path

from a3c_bench.algos import find_settings
from a3c_bench.parallel.fork_server import start_fork_server
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import Config


def start_ahead(config: Config, directory: Path) -> None:
    """Has the fork server, where this run will need one, import side by side with this process.

    Args:
        config: of the run; checked.
        directory: of the run, which is not opened: one that is finished needs nothing.
    """
    forks = find_settings(config.algo.name).forks or config.env.simulate == "processes"
    if forks and read_status(directory).get("state") != "finished":
        imports_it = config.algo.optimizer.kind != "rmsprop"  # torch's own optimisers do so when they step
        start_fork_server(("torch._dynamo",) if imports_it else ())
