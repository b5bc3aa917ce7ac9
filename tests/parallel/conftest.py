"""What tests of several ranks share."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from forking import Forked, ForkingServer, end
from ranked import TINY, Start


@pytest.fixture
def ranks(forking: ForkingServer, tmp_path: Path) -> Iterator[Start]:
    """`ranks(n, *words)`: the n processes of a run, started as torchrun does; root is tmp_path."""
    started: list[Forked] = []

    def start(n_ranks: int, *words: str, setup_of_1: str = "") -> list[Forked]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = []
        for index in range(n_ranks):
            said = {key: str(value) for key, value in {**common, "RANK": index, "LOCAL_RANK": index}.items()}
            setup = f"import os, torch; os.environ.update({said!r}); torch.set_num_threads(1)\n"
            setup += setup_of_1 if index == 1 else ""
            asked = (*TINY, f"root={tmp_path}", *words, *([f"ranks={n_ranks}"] if n_ranks > 1 else []))
            processes.append(forking.start(asked, setup if n_ranks > 1 else "import torch; torch.set_num_threads(1)"))
        started.extend(processes)
        return processes

    yield start
    for process in started:
        end(process)
