"""A real SLURM for the tests that need one; where there can be none, they are skipped, and the summary says so."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from one_node import SEARCH, NoSlurmError, OneNode

_skipped: list[str] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[OneNode]:
    """A SLURM of one node, which every command that is started here finds."""
    yield from _started(1)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[OneNode]:
    """A SLURM of two nodes, for the tests of one module."""
    yield from _started(2)


def _started(n_nodes: int) -> Iterator[OneNode]:
    try:
        node = OneNode.start(n_nodes=n_nodes)
    except NoSlurmError as error:
        _skipped.append(str(error))
        pytest.skip(f"NO SLURM: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(node.conf))
        patch.setenv("PATH", SEARCH)
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
            patch.delenv(name)
        yield node
    node.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Loudly."""
    if _skipped:
        text = f"NO SLURM HERE: the tests on a cluster did not run, because {_skipped[0]}"
        terminalreporter.write_line(text, red=True, bold=True)
