"""How the ranks of a job of SLURM find each other: rank 0 says in a file of the run directory where it listens.

The file names the job, its task of the array and its start: nobody takes what an earlier start left there, and no other
run reads it. Only the user may.
"""

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3c_bench.errors import RankError
from a3c_bench.launch import slurm
from a3c_bench.runtime.directory import replace_file

FILE = ".rendezvous"
LOOPBACK = "127.0.0.1"
_ANY_PORT = 9
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class FileRendezvous:
    """What `parallel.ranks.Rendezvous` tells, by a file that all ranks see.

    Args:
        file: in a directory that is there.
        token: of this start of the run.
        host: the address at which rank 0 listens.
    """

    file: Path
    token: str
    host: str
    is_kept: bool = False

    def publish(self, port: int) -> None:
        """By rank 0, which listens on this port now."""
        self._write(host=self.host, port=port)

    def call_off(self, sentence: str) -> None:
        """By rank 0, which cannot start: the others need not wait for it."""
        with suppress(OSError):
            self._write(failed=sentence)

    def forget(self) -> None:
        """By rank 0, when the run is over."""
        with suppress(OSError):
            self.file.unlink()

    def find(self, timeout: float) -> tuple[str, int]:
        """Host and port of rank 0's store.

        Raises:
            RankError: rank 0 called the run off, or did not publish them within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            said = self._read()
            if said.get("failed"):
                raise RankError(f"Rank 0 failed: {said['failed']}")
            if "port" in said:
                return str(said["host"]), int(said["port"])
            if time.monotonic() > end:
                raise RankError(f"Rank 0 did not say within {timeout:g} seconds where it listens, in {self.file}.")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _write(self, **content: Any) -> None:
        replace_file(self.file, json.dumps({"token": self.token} | content), mode=0o600)

    def _read(self) -> dict[str, Any]:
        """What rank 0 said of this start; nothing yet."""
        try:
            os.listdir(self.file.parent)  # NFS looks again then whether the file is there
            said = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) and said.get("token") == self.token else {}


def of_this_job(directory: Path) -> FileRendezvous:
    """That of the ranks of this start of this job, whose run is in this directory."""
    return FileRendezvous(directory / FILE, token(os.environ), address(os.environ))


def token(environment: Mapping[str, str]) -> str:
    """Of one start of one task of a job."""
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")
    return " ".join(environment.get(name, "-") for name in (*names, "SLURM_STEP_ID"))


def address(environment: Mapping[str, str]) -> str:
    """The address of this node that the other nodes of the job reach; that of the loopback if there is no other.

    Its own name does not tell: on Debian it stands for 127.0.1.1.

    Raises:
        RankError: the names of the others have no address.
    """
    nodes, here = slurm.hosts(environment["SLURM_JOB_NODELIST"]), environment["SLURMD_NODENAME"]
    other = nodes[0] if here == nodes[-1] else nodes[-1]
    if here == other:
        return LOOPBACK
    try:
        return _address_towards(other)
    except OSError as error:
        known = environment.get("SLURM_LAUNCH_NODE_IPADDR")  # of the first node, as SLURM knows it
        if known is None:
            raise RankError(f"The node {other} of this job has no address: {error.strerror or error}.") from error
        return _address_towards(known)


def _address_towards(host: str) -> str:
    """The address of this machine from which a host is reached; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, _ANY_PORT))
        return str(probe.getsockname()[0])


def interface_with(wanted: str) -> str | None:
    """The network interface that has an address; None if none has it."""
    get_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == wanted:
                    return name
    return None
