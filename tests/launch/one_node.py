"""A real SLURM of one node for the tests: its own keys, ports, database and folder; nothing of /etc is read or written.

    cluster = OneNode.start()      # raises NoSlurmError with the reason where there can be none
    OneNode.start(n_nodes=2)       # n1 and n2, which are both this machine
    ...                            # sbatch, squeue, sacct, scontrol find it by SLURM_CONF
    cluster.stop()

Where SLURM is not installed, root on Debian or Ubuntu installs it from the distribution's packages; nobody else does
anything. Partitions: `work` (the default), `gpu` (two GPUs that are only counted) and `urgent`, whose jobs preempt
those of the others. Times are short: a requeued job waits 10 s, a job told to end gets 10 s, a preempted one 15 s, a
lost node is noticed after 15 s to 30 s.
"""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PACKAGES = ("munge", "slurm-client", "slurmctld", "slurmd", "slurmdbd", "slurm-wlm-mysql-plugin")
DATABASE_PACKAGES = ("mariadb-server-core", "mariadb-client-core")
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "sbatch", "sacct", "srun")
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
SECONDS_TO_START = 60.0


class NoSlurmError(Exception):
    """There can be no SLURM here; the message says why."""


class OneNode:
    """The daemons, as children of this process."""

    def __init__(self, folder: Path, n_nodes: int = 1) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.nodes = [self.host] if n_nodes == 1 else [f"n{number}" for number in range(1, n_nodes + 1)]
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": SEARCH, "LC_ALL": "C"}
        for name in [name for name in self._environment if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))]:
            if name != "SLURM_CONF":
                del self._environment[name]

    @classmethod
    def start(cls, max_array_size: int = 5, n_nodes: int = 1) -> "OneNode":
        """Installs what is absent if it may, starts everything, waits until the node takes jobs."""
        absent = [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]
        if absent:
            install(absent)
        node = cls(Path(tempfile.mkdtemp(prefix="slurm-")), n_nodes)  # short: of sockets' names
        try:
            node._start(max_array_size)
        except BaseException:
            node.stop()
            raise
        return node

    def _start(self, max_array_size: int) -> None:
        self._configure(max_array_size)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        self._run(
            *("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={munge / 'key'}"),
            *(f"--pid-file={munge / 'pid'}", f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"),
        )
        self._wait("munged", (munge / "socket").exists)
        data, user = self.folder / "db", f"--user={_user()}"
        done = subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", user, "--skip-test-db", "--force"],
            env=self._environment, capture_output=True, text=True, timeout=SECONDS_TO_START,
        )  # fmt: skip
        if done.returncode:
            raise NoSlurmError(f"the accounting database cannot be made: {done.stdout[-300:]}{done.stderr[-300:]}")
        self._run(
            *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={self.folder / 'db.socket'}", user),
            *("--skip-grant-tables", "--skip-networking", f"--pid-file={self.folder / 'db.pid'}"),
            *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=2"),
        )
        self._wait("mariadbd", (self.folder / "db.socket").exists)
        self._run("slurmdbd", "-D", MYSQL_UNIX_PORT=str(self.folder / "db.socket"))
        self._wait("slurmdbd", lambda: self.says("sacctmgr", "-n", "list", "cluster") is not None)
        self.says("sacctmgr", "-i", "add", "cluster", "tests")
        self._run("slurmctld", "-D", "-f", str(self.conf))
        self._wait("slurmctld", lambda: "UP" in (self.says("scontrol", "ping") or ""))
        self.start_node()

    def start_node(self) -> None:
        """Starts slurmd on every node, or starts it again."""
        for node in self.nodes:
            self._run("slurmd", "-D", "-f", str(self.conf), "-N", node, key=f"slurmd-{node}")
        self._wait(f"slurmd-{self.nodes[-1]}", self.takes_jobs)

    def fail_node(self) -> None:
        """The machine loses its power: slurmd and everything in a job is gone at once."""
        for node in self.nodes:
            daemon = self._daemons.pop(f"slurmd-{node}")
            daemon.kill()
            daemon.wait()
        self._kill_jobs()

    def takes_jobs(self) -> bool:
        """Whether every node is up."""
        states = (self.says("sinfo", "-h", "-N", "-o", "%T", "-p", "work") or "").split()
        return len(states) == len(self.nodes) and {*states} <= {"idle", "mixed", "allocated"}

    def says(self, *command: str) -> str | None:
        """What one of SLURM's commands prints; None if it fails."""
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None

    def stop(self) -> None:
        """Ends the jobs, the daemons and the folder."""
        if "slurmctld" in self._daemons:
            with suppress(subprocess.SubprocessError):
                self.says("scancel", "--user", _user())
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            if name.startswith("slurmd-"):
                self._kill_jobs()
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- how ----------------------------------------------------------------------------------------------------

    def _run(self, name: str, *options: str, key: str | None = None, **environment: str) -> None:
        key = key or name
        with open(self.folder / f"{key}.out", "ab") as out:
            self._daemons[key] = subprocess.Popen(
                [name, *options], env=self._environment | environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                cwd=self.folder, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while not ready():
            if self._daemons[name].poll() is not None or time.monotonic() > end:
                text = (self.folder / f"{name}.out").read_text(errors="replace")[-600:]
                raise NoSlurmError(f"{name} does not start: {text}")
            time.sleep(0.2)

    def _kill_jobs(self) -> None:
        """What belongs to this cluster's jobs; it leaves slurmd as its parent, so it is known by its environment."""
        mark = f"SLURM_CONF={self.conf}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                carried = (process / "environ").read_bytes().split(b"\0")
                in_job = any(item.startswith(b"SLURM_JOB_ID=") for item in carried)
                step = (process / "comm").read_text().strip() == "slurmstepd"
                if mark in carried and (in_job or step):
                    os.kill(int(process.name), signal.SIGKILL)

    def _configure(self, max_array_size: int) -> None:
        host = self.host
        ports = _free_ports(2 + len(self.nodes))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        cpus = max(2, os.cpu_count() or 1)
        for name in ("ctld", *(f"d-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} "
            "Gres=gpu:2 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[2:], strict=True)
        )
        self.conf.write_text(f"""\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={_user()}
SlurmdUser={_user()}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={self.folder}/ctld
SlurmdSpoolDir={self.folder}/d-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=3,bf_interval=3
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=10
SlurmdTimeout=15
MessageTimeout=10
InactiveLimit=0
ReturnToService=2
MaxArraySize={max_array_size}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={self.folder}/munge/socket
GresTypes=gpu
SlurmdParameters=config_overrides
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime=15
PartitionName=gpu Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=20 PreemptMode=OFF
""")
        (self.folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        old = (self.says("slurmd", "-V") or "").split()[-1].startswith(("20.", "21.", "22."))
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nIgnoreSystemd=yes\n" if old else "CgroupPlugin=disabled\n"
        )
        database = self.folder / "slurmdbd.conf"
        database.write_text(f"""\
DbdHost=localhost
DbdPort={ports[1]}
SlurmUser={_user()}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
PidFile={self.folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
""")
        database.chmod(0o600)


def install(absent: list[str]) -> None:
    """Installs SLURM from the distribution's packages, where this may be done."""
    missing = f"there is no {', '.join(absent)} here"
    if os.geteuid() != 0:
        raise NoSlurmError(f"{missing}, and only root can install it")
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        raise NoSlurmError(f"{missing}, and this is no Debian on which to install it")
    policy = Path("/usr/sbin/policy-rc.d")  # keeps the packages from starting services of their own
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        options = ["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
        subprocess.run(["apt-get", "-q", "update"], env=environment, capture_output=True, timeout=300)
        done = subprocess.run(
            ["apt-get", *options, "install", *PACKAGES, *DATABASE_PACKAGES],
            env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        raise NoSlurmError(f"{missing}, and installing it failed: {error}") from error
    finally:
        if ours:
            policy.unlink()
    if done.returncode:
        raise NoSlurmError(f"{missing}, and apt-get cannot install it: {done.stderr.strip()[-300:]}")


def _free_ports(number: int) -> list[int]:
    held = [socket.socket() for _ in range(number)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _end_with_parent() -> None:
    """Tests that take too long are killed; their daemons follow."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
