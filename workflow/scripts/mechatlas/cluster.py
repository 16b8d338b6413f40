"""Is this cluster fit for a run? What the SLURM profile takes for granted, checked one by one before it matters.

Each check gives a state (``ok``, ``note`` or ``wrong``) and one sentence that says what was seen and, if wrong, the way
out. The last check sends one small job through the queue, as only that shows whether a compute node sees the working
directory and the environment. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mechatlas.io import UserError

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PLUGIN = "snakemake-executor-plugin-slurm"
# The plugin looks at the jobs ever more rarely while none ends, every 180 s at last: one that ends and is no longer
# listed at the next look would be waited for for ever.
LISTED_SECONDS = 240
ANSWER_SECONDS = 30
CONFIGURED = Path("/etc/slurm/slurm.conf")

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is (``ok``, ``note``, ``wrong``), and a sentence about it."""

    name: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5}  {self.name:<11}  {self.text}"


def examine(folder: str | Path, *, trial_seconds: int, latency_seconds: int) -> list[Check]:
    """Check a cluster from a login node.

    Parameters
    ----------
    folder : str or Path
        The working directory of the run.
    trial_seconds : int
        How long the trial job may wait and run.
    latency_seconds : int
        How long a file made on a compute node may take to appear in ``folder`` (the profile's ``latency-wait``).

    Returns
    -------
    list of Check
        Ends early when nothing further can be asked: without SLURM's commands or an answer from its controller.
    """
    checks = [check_plugin(), check_commands()]
    if checks[-1].state == WRONG:
        return checks
    checks.append(check_controller())
    if checks[-1].state == WRONG:
        return checks
    settings = read_settings()
    checks += [
        check_config_place(),
        check_listing(settings),
        check_accounting(settings),
        *check_partitions(),
        check_gpus(),
        check_trial(Path(folder), trial_seconds, latency_seconds),
    ]
    return checks


def require(checks: Sequence[Check]) -> None:
    """Raise `UserError` naming what is wrong, if anything is."""
    wrong = [check.name for check in checks if check.state == WRONG]
    if wrong:
        raise UserError(
            f"the cluster is not ready: {', '.join(wrong)}; each line marked wrong says the way out"
        )


def check_plugin() -> Check:
    """Is Snakemake's SLURM executor in this environment?"""
    try:
        return Check("plugin", OK, f"{PLUGIN} {metadata.version(PLUGIN)}")
    except metadata.PackageNotFoundError:
        return Check("plugin", WRONG, f"{PLUGIN} is not installed; pip install -r envs/slurm.txt")


def check_commands() -> Check:
    """Are SLURM's commands on the PATH?"""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        where = "run this on a login node of the cluster, or load its module"
        return Check("commands", WRONG, f"not on the PATH: {', '.join(missing)}; {where}")
    return Check("commands", OK, ", ".join(COMMANDS))


def check_controller() -> Check:
    """Does the controller answer?"""
    done = ask("scontrol", "ping")
    if done.returncode == 0 and re.search(r"\bis UP\b", done.stdout):
        return Check("controller", OK, done.stdout.strip().splitlines()[0])
    said = _first_line(done.stderr) or _first_line(done.stdout) or "no answer"
    return Check(
        "controller", WRONG, f"slurmctld does not answer ({said}); ask the cluster's staff"
    )


def read_settings() -> dict[str, str]:
    """Return what ``scontrol show config`` says, by key."""
    lines = ask("scontrol", "show", "config").stdout.splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def check_config_place() -> Check:
    """Do jobs find SLURM's configuration? The executor takes every SLURM_ variable from them."""
    chosen = os.environ.get("SLURM_CONF")
    if chosen and not CONFIGURED.exists():
        text = (
            f"SLURM_CONF={chosen} is not passed on to jobs, whose srun will find no configuration; "
            f"have it at {CONFIGURED} on every node"
        )
        return Check("config", WRONG, text)
    return Check("config", OK, "found without SLURM_CONF")


def check_listing(settings: dict[str, str]) -> Check:
    """Do finished jobs stay in squeue's list for long enough to be seen?"""
    found = re.match(r"(\d+)", settings.get("MinJobAge", ""))
    seconds = int(found.group(1)) if found else 0
    if seconds >= LISTED_SECONDS:
        return Check("listing", OK, f"finished jobs stay listed for {seconds} s (MinJobAge)")
    text = (
        f"MinJobAge is {seconds} s, squeue would miss finished jobs; with accounting set "
        f"slurm-status-command: sacct in the profile, else have MinJobAge raised to {LISTED_SECONDS}"
    )
    return Check("listing", WRONG if not _accounting(settings) else NOTE, text)


def check_accounting(settings: dict[str, str]) -> Check:
    """Is there accounting (slurmdbd)? Only said: the profile does without."""
    if _accounting(settings):
        return Check("accounting", OK, "on: why a job failed can be read with sacct")
    return Check("accounting", NOTE, "off: jobs are followed by squeue, as the profile does")


def check_partitions() -> list[Check]:
    """Which partitions are there, and is one the default?"""
    rows = [
        line.split("|") for line in ask("sinfo", "-h", "-o", "%P|%l|%m|%c|%a").stdout.splitlines()
    ]
    rows = [row for row in rows if len(row) == 5 and row[4] == "up"]
    if not rows:
        return [Check("partitions", WRONG, "sinfo lists no partition that is up; ask the staff")]
    text = "; ".join(
        f"{name} (time {time_}, {mem} MB, {cpus} CPUs)" for name, time_, mem, cpus, _ in rows
    )
    if any(name.endswith("*") for name, *_ in rows):
        return [Check("partitions", OK, text)]
    way = "none is the default: --default-resources slurm_partition=NAME, or set it in the profile"
    return [Check("partitions", OK, text), Check("default", WRONG, way)]


def check_gpus() -> Check:
    """Does SLURM know of GPUs?"""
    listed = set(ask("sinfo", "-h", "-o", "%P|%G").stdout.split())
    gpus = sorted(line.replace("|", " ") for line in listed if "gpu" in line)
    if gpus:
        return Check("gpu", OK, "; ".join(gpus))
    text = (
        "no node has one (gres/gpu): jobs that ask for a GPU would wait for ever; set device: cpu"
    )
    return Check("gpu", NOTE, text)


def check_trial(folder: Path, trial_seconds: int, latency_seconds: int) -> Check:
    """Send one small job: does a compute node see this directory and this environment?"""
    token = folder / f".doctor-{uuid.uuid4().hex[:8]}"
    code = (
        "import pathlib, socket, sys; import mechatlas, snakemake; "
        "pathlib.Path(sys.argv[1]).write_text(socket.gethostname())"
    )
    command = (
        "srun",
        "--ntasks=1",
        "--mem=500",
        "--time=2",
        "--job-name=doctor",
        f"--chdir={folder}",
    )
    library = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": library}
    start = time.monotonic()
    done = ask(
        *command, sys.executable, "-c", code, str(token), seconds=trial_seconds, env=environment
    )
    took = time.monotonic() - start
    if done.returncode != 0:
        said = _last_line(done.stderr) or f"no end within {trial_seconds} s; is the queue full?"
        return Check("trial job", WRONG, f"it failed ({said})")
    try:
        if not _until(token.exists, latency_seconds):
            text = (
                f"it ran, but its file did not appear in {folder} within {latency_seconds} s; "
                "work in a folder that all nodes share, or raise latency-wait"
            )
            return Check("trial job", WRONG, text)
        seen = time.monotonic() - start - took
        return Check(
            "trial job",
            OK,
            f"ran on {token.read_text()} in {took:.1f} s, its file seen after {seen:.1f} s",
        )
    finally:
        token.unlink(missing_ok=True)


def ask(
    *command: str, seconds: int = ANSWER_SECONDS, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run a command; one that does not end in time counts as failed (return code 124)."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "")


def missing_profile(arguments: Sequence[str]) -> str | None:
    """Return the workflow profile that a command line names but that does not exist.

    Snakemake ignores it without a word, and the run meant for the cluster would start on the login node.
    """
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != "--workflow-profile":
            continue
        profile = value if equals else "".join(arguments[number + 1 : number + 2])
        folder = Path(profile)
        files = folder.glob("profile*.yaml"), folder.glob("config*.yaml")
        if profile != "none" and not any(any(found) for found in files):
            return profile
    return None


def reasons(said: str) -> list[str]:
    """Return why SLURM ended jobs, a line for each that failed and of which it said so.

    Without accounting Snakemake says only that a job failed, and in which file SLURM wrote more.

    Parameters
    ----------
    said : str
        What Snakemake said in a run, its log.
    """
    logs = dict(re.findall(r"SLURM jobid (\d+) \(log: (.+?)\)\.", said))
    found = []
    for job in dict.fromkeys(re.findall(r"SLURM-job '(\d+)' failed", said)):
        path = Path(logs.get(job, ""))
        text = path.read_text(errors="replace") if path.is_file() else ""
        if reason := re.search(r"^slurmstepd\S*: error: (.+)", text, flags=re.MULTILINE):
            found.append(f"SLURM job {job}: {reason.group(1)} ({path})")
    return found


def _accounting(settings: dict[str, str]) -> bool:
    kind = settings.get("AccountingStorageType", "")
    return bool(kind) and not kind.endswith("none")


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
