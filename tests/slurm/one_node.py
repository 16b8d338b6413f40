"""A private one-node SLURM on loopback: munged, slurmctld and slurmd, started here and stopped here.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. There is no slurmdbd (so no accounting) and
no systemd; the GPU is a device node that nobody opens, which SLURM counts and hands out like a real one. The kernel
limits memory where it offers cgroups of version 1 (version 2 needs systemd); elsewhere SLURM looks at its jobs' memory
every second and ends them by itself.
The daemons are children of the process that starts them and end with it, even if it is killed. Everything lies in one
folder, except two links in /etc/slurm: the executor takes every SLURM_ variable from its jobs, SLURM_CONF too, so that
the configuration must be where the programs look for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = (
    *("munged", "slurmctld", "slurmd", "sbatch", "srun"),
    *("squeue", "scancel", "sinfo", "scontrol", "setpriv"),
)
PLACE = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
CGROUPS = Path("/sys/fs/cgroup/memory")
PREFIX = "slurm-one-"  # of the folder, by which links of a killed run are known
NVIDIA = 195  # the major number of NVIDIA's device nodes; SLURM wants a character device to name in a job

CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
{memory_limits}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=5
GresTypes=gpu
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=2
DefMemPerCPU=500
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=24:00:00 State=UP
"""

BY_KERNEL = "TaskPlugin=task/cgroup"
BY_SLURM = "TaskPlugin=task/none\nJobAcctGatherParams=OverMemoryKill"
CGROUP_CONFIG = f"""\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint={CGROUPS.parent}
ConstrainRAMSpace=yes
"""


def why_not() -> str:
    """Return why no cluster can be started here, "" if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "Snakemake's SLURM executor is not installed: make test-slurm does it"
    if os.geteuid() != 0:
        return "starting slurmctld and slurmd needs root"
    for path in (PLACE / name for name in FILES):
        if path.is_symlink() and path.readlink().parent.name.startswith(PREFIX):
            return f"{path} was left by a killed run of these tests, or another runs now: remove it if none does"
        if os.path.lexists(path):
            return f"{path} exists: this machine has a SLURM of its own"
    return ""


class OneNode:
    """The cluster, as a context manager; ``folder`` holds its configuration, state and logs.

    Parameters
    ----------
    folder : Path
        Empty, with a name that begins with `PREFIX`, and on a path short enough for a socket (108 characters).
    cpus : int
    cgroups : bool, optional
        Whether the kernel limits the memory of jobs; by default, if it can.

    Attributes
    ----------
    over_memory : str
        The state in which a job ends that takes more memory than it asked for.
    """

    def __init__(self, folder: Path, cpus: int = 2, cgroups: bool | None = None):
        self.folder = folder
        self.cpus = cpus
        self.cgroups = has_cgroups() if cgroups is None else cgroups
        self.over_memory = "OUT_OF_MEMORY" if self.cgroups else "FAILED"
        self.daemons: list[subprocess.Popen] = []
        self.made_place = False

    def __enter__(self) -> OneNode:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.daemons) == 3:
            self._end_jobs()
        for daemon in reversed(self.daemons):
            _stop(daemon)
        self.daemons.clear()
        self._remove_cgroups()
        for name in FILES:
            link = PLACE / name
            if link.is_symlink() and link.readlink() == self.folder / name:
                link.unlink()
        if self.made_place:
            PLACE.rmdir()

    def jobs(self) -> dict[str, dict[str, str]]:
        """Return what the controller knows of every job, by its identifier: JobState, Comment, StartTime and others."""
        said = ask("scontrol", "--oneliner", "show", "job")
        records = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in said.splitlines()]
        return {record["JobId"]: record for record in records if "JobId" in record}

    def _remove_cgroups(self) -> None:
        """Remove the groups that slurmd leaves: empty folders, the deepest first."""
        if self.cgroups:
            for group in CGROUPS.glob("slurm*"):
                for folder, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)

    def _end_jobs(self) -> None:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        end = time.monotonic() + 15
        while ask("squeue", "-h") and time.monotonic() < end:
            time.sleep(0.2)

    def _configure(self) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 512
        host = socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        # Clients must reach the socket; the key stays readable by root alone.
        self.folder.chmod(0o711)
        (self.folder / "munge").mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host, folder=self.folder, cpus=self.cpus, memory=memory, ctld_port=_port(), d_port=_port(),
                memory_limits=BY_KERNEL if self.cgroups else BY_SLURM,
            )
        )  # fmt: skip
        (self.folder / "cgroup.conf").write_text(CGROUP_CONFIG if self.cgroups else "")
        gpu = self._gpu()
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={gpu}\n")
        if not PLACE.exists():
            PLACE.mkdir()
            self.made_place = True
        for name in FILES:
            (PLACE / name).symlink_to(self.folder / name)

    def _gpu(self) -> Path:
        """Return the file that stands for the GPU: without one the node has none, and then refuses every job."""
        device = Path("/dev/nvidia0")
        if not device.exists():
            device = self.folder / "nvidia0"
            try:
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(NVIDIA, 0))
            except PermissionError:  # a container: a plain file is counted too, but named in no job
                device.touch()
        return device

    def _start(self) -> None:
        munge = self.folder / "munge"
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._until(lambda: (munge / "socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D")
        self._until(lambda: ask("sinfo", "-h", "-o", "%T") == "idle")

    def _daemon(self, *command: str) -> None:
        log = self.folder / f"{command[0]}.out"
        with log.open("w") as said:
            # Its own session: Ctrl-C is for the tests, which then stop the daemons in order.
            self.daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
                )
            )  # fmt: skip

    def _until(self, ready: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not ready():
            ended = [daemon.args[3] for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                logs = sorted({*self.folder.glob("*.out"), *self.folder.glob("*.log")})
                said = "\n".join(f"{path.name}: {path.read_text()[-1000:]}" for path in logs)
                raise RuntimeError(
                    f"{', '.join(ended) or 'the node'} did not come up within {seconds} s\n{said}"
                )
            time.sleep(0.1)


def has_cgroups() -> bool:
    """Return whether memory can be limited by cgroups of version 1."""
    try:
        trial = Path(tempfile.mkdtemp(prefix=PREFIX, dir=CGROUPS))
        found = (trial / "memory.limit_in_bytes").is_file()
        trial.rmdir()
    except OSError:
        return False
    return found


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
