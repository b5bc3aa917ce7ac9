"""The machine: the cores this process may use, and what a run's status says of the hardware and software."""

import ctypes
import importlib.metadata
import itertools
import os
import platform
import re
import resource
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from a3c_bench.errors import ConfigError

if TYPE_CHECKING:
    import torch  # in functions only: who asks for the cores need not wait for it

T = TypeVar("T")

_PACKAGES = ("a3c-bench", "torch", "envpool", "gymnasium", "numpy", "hydra-core")


def usable_cores() -> int:
    """Cores this process may run on: its affinity, which SLURM and taskset set, not the machine's total."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(n_threads: int) -> None:
    """Gives torch that many threads, and keeps the memory that it frees."""
    import torch

    torch.set_num_threads(n_threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory in the process instead of handing it back at once.

    Activations of a batch of frames are tens of megabytes, which glibc maps anew and the kernel zeroes page by page at
    every update: with the nips network and 160 samples that was a third of the time of forward and backward.
    """
    m_trim_threshold, m_mmap_threshold, bytes_kept = -1, -3, 1 << 30
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(m_mmap_threshold, bytes_kept)
    mallopt(m_trim_threshold, bytes_kept)


def die_with_parent(sent: signal.Signals = signal.SIGKILL) -> None:
    """Asks Linux to send this process a signal when the one that started it ends, however that ends."""
    pr_set_pdeathsig = 1
    with suppress(OSError, AttributeError):  # elsewhere, workers look for their parent between updates
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, sent)


def allow_many_files() -> None:
    """Lets this process have as many files open as the system allows, not the thousand that shells begin with."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def keep_to_cores(cores: Iterable[int]) -> None:
    """Keeps this process, with the threads that it has and those that it will start, to some of its cores."""
    wanted = set(cores)
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), wanted)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(itertools.takewhile(_is_a_gpu, map(str.strip, named.split(","))))
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _is_a_gpu(name: str) -> bool:
    """To CUDA, the first word that names none (-1, NoDevFiles, nothing) ends the list."""
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


def check_gpus(device: str, n_ranks: int, n_gpus: int) -> None:
    """Checks that each rank of a run has a GPU of its own on this machine, if it uses one.

    Raises:
        ConfigError: there are fewer.
    """
    if device.startswith("cuda") and 1 < n_ranks > n_gpus:
        have = f"{n_gpus} GPU{'' if n_gpus == 1 else 's'}"
        raise ConfigError(f"ranks={n_ranks} with device={device} takes a GPU for each, but the run has {have}.")


def gpus_of_a_rank(index: int, n_ranks: int) -> dict[str, str]:
    """The environment in which a rank of this node sees its share of the GPUs that this process may use."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(shared_out(visible_gpus(), n_ranks)[index])}


def shared_out(things: Sequence[T], n_ranks: int) -> list[list[T]]:
    """What each rank of a node has of its cores or GPUs: about as many; one of several ranks if there are too few."""
    if 0 < len(things) < n_ranks:
        return [[things[index % len(things)]] for index in range(n_ranks)]
    ends = [len(things) * index // n_ranks for index in range(n_ranks + 1)]
    return [list(things[start:end]) for start, end in itertools.pairwise(ends)]


def python_path() -> str:
    """PYTHONPATH with which another process finds this very package, also in a checkout that is not installed."""
    here = str(Path(__file__).parents[2])
    installed = "site-packages" in here or "dist-packages" in here  # there it would come before Python's own modules
    parts = [] if installed else [here]
    return os.pathsep.join(dict.fromkeys(parts + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]))


def check_device(name: str) -> None:
    """Checks the name of a device without looking whether there is one.

    Raises:
        ConfigError: nothing is called so.
    """
    if re.fullmatch(r"(cpu|cuda)(:\d+)?", name) is None:
        raise ConfigError(f"device={name} is not a device: say cpu, cuda or cuda:0.")


def resolve_device(name: str) -> "torch.device":
    """The torch device of that name.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    check_device(name)
    import torch

    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name} was asked for, but torch finds no CUDA GPU here: say device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name} was asked for, but there are only {torch.cuda.device_count()} GPUs.")
    return device


def memory_mib() -> float | None:
    """What this process and all that it started hold in memory (MiB); pages that they share count once.

    Without the pages of files (libraries, a memory-mapped replay): the system can have those back, and what they count
    for here changes with every process of the machine that maps them too. None where the system does not tell (it takes
    Linux 5.4).
    """
    try:
        return sum(_proportional_kib(pid) for pid in family(os.getpid())) / 1024.0
    except OSError:
        return None


def family(pid: int) -> list[int]:
    """A process and its descendants that are there now."""
    found = [pid]
    for parent in found:  # grows meanwhile
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def _proportional_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        if pid == os.getpid():
            raise OSError("the system does not tell") from error
        return 0  # it ended meanwhile
    parts = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    if not parts:
        raise OSError("the system does not tell")
    return sum(parts)


def describe(device: "torch.device") -> dict[str, Any]:
    """CPU model, usable cores, GPU, host operating system."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the source tree that runs, with "+changes" if it was edited; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "--", str(Path(__file__))):
            return None  # installed inside somebody else's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
