"""A private one-node SLURM on loopback: munged, slurmctld and slurmd, started here and stopped here.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. There is no slurmdbd (so no accounting), no
cgroups and no systemd; the GPU is a device node that nobody opens, which SLURM counts and hands out like a real one.
Everything lies in one folder, except two links in /etc/slurm: the executor takes every SLURM_ variable from its jobs,
SLURM_CONF too, so that the configuration must be where the programs look for it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "sinfo",
    "scontrol",
)
PLACE = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf")
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
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/ended.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=5
GresTypes=gpu
MpiDefault=none
ReturnToService=2
MinJobAge=600
KillWait=2
DefMemPerCPU=500
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=24:00:00 State=UP
"""


def why_not() -> str:
    """Return why no cluster can be started here, "" if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "Snakemake's SLURM executor is not installed: pip install -r envs/slurm.txt"
    if os.geteuid() != 0:
        return "starting slurmctld and slurmd needs root"
    taken = [str(PLACE / name) for name in FILES if os.path.lexists(PLACE / name)]
    return f"{taken[0]} exists: this machine has a SLURM of its own" if taken else ""


class OneNode:
    """The cluster, as a context manager; ``folder`` holds its configuration, state and logs.

    Parameters
    ----------
    folder : Path
        Empty, and on a path short enough for a socket (108 characters).
    cpus : int
    """

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder = folder
        self.cpus = cpus
        self.daemons: list[Path] = []

    def __enter__(self) -> OneNode:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemons:
            subprocess.run(["scancel", "--user=root"], capture_output=True)
        for pid_file in reversed(self.daemons):
            _stop(pid_file)
        for name in FILES:
            link = PLACE / name
            if link.is_symlink() and link.resolve() == (self.folder / name).resolve():
                link.unlink()

    def ended(self) -> list[dict[str, str]]:
        """Return a record for each job that has ended: JobId, Name, JobState, StartTime, EndTime and others."""
        path = self.folder / "ended.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def running(self) -> list[tuple[str, str, int]]:
        """Return identifier, comment (what the executor says of the job) and GPUs of every running job."""
        form = "%i|%k|%b"
        done = subprocess.run(
            ["squeue", "-h", "-t", "R", "-o", form], capture_output=True, text=True
        )
        rows = [line.split("|") for line in done.stdout.splitlines()]
        return [(job, comment, int("gpu" in gres)) for job, comment, gres in rows]

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
                host=host, folder=self.folder, cpus=self.cpus, memory=memory, ctld_port=_port(), d_port=_port()
            )
        )  # fmt: skip
        # A GPU without a file is counted as none, and the node then refuses every job.
        device = Path("/dev/nvidia0")
        if not device.exists():
            device = self.folder / "nvidia0"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(NVIDIA, 0))
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={device}\n")
        PLACE.mkdir(exist_ok=True)
        for name in FILES:
            (PLACE / name).symlink_to(self.folder / name)

    def _start(self) -> None:
        munge = self.folder / "munge"
        self._daemon(
            munge / "pid", "munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._daemon(self.folder / "slurmctld.pid", "slurmctld", "-c")
        self._daemon(self.folder / "slurmd.pid", "slurmd")
        for _ in range(150):
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if done.stdout.strip() == "idle":
                return
            time.sleep(0.2)
        raise RuntimeError(
            f"the node did not come up: {done.stdout}{done.stderr}; see {self.folder}"
        )

    def _daemon(self, pid_file: Path, *command: str) -> None:
        self.daemons.append(pid_file)
        subprocess.run(command, check=True, capture_output=True)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _stop(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            for _ in range(50):
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return
