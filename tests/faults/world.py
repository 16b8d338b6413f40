"""A workflow that is small and complete, and what can be done to it: runs, kills, looking for what they leave."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import ctrl_c
import yaml
from llm_server import Call, LlmServer
from small_run import small_run

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "MECHATLAS_FAULTS"
#: In two chunks, with one task, and with a language model to ask.
CONFIG = small_run()
CONFIG["capture"]["chunk_windows"] = 24
CONFIG["tasks"]["induction"] = {"kind": "induction", "prompts": 4, "held_out": 4}
CONFIG["graphs"]["induction"] = {"models": ["demo-2l"], "task": "induction"}
CONFIG["explain"]["explainers"] = ["programs", "openai"]


def explainer(call: Call) -> str:
    """Answer each question in the same way whenever it is asked."""
    digest = hashlib.sha256(call.body["messages"][-1]["content"].encode()).hexdigest()
    return f'{{"notes": "x", "text": "Attends to {digest[:8]}.", "program": null}}'


class World:
    """A working directory with the reduced configuration, and what happens in it."""

    def __init__(self, folder: Path, server: LlmServer):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load(yaml.safe_dump(CONFIG))
        config["explain"]["openai"] = {
            **{"model": "scripted", "base_url": server.base_url, "api_key_env": None},
            "provider": "test",
        }
        (folder / "small.yaml").write_text(yaml.safe_dump(config))
        # Every process of this world carries the mark, wherever it ends up in the tree of processes.
        self.mark = uuid.uuid4().hex
        self.environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}

    def command(self, *arguments: str, cores: int = 1) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile")),
            *("--configfile", "small.yaml", "--cores", str(cores), *arguments),
        ]

    def start(self, *arguments: str, cores: int = 1) -> Run:
        return Run(self, self.command(*arguments, cores=cores))

    def run(self, *arguments: str, ok: bool = True, cores: int = 1, timeout: float = 900) -> str:
        """Run to the end; return what was said."""
        run = self.start(*arguments, cores=cores)
        code = run.wait(timeout)
        assert (code == 0) == ok, f"exit {code}\n{run.said()[-6000:]}"
        return run.said()

    def unlock(self) -> None:
        self.run("--unlock")

    def results(self) -> dict[str, str]:
        """Return the SHA-256 of every result; benchmarks and steps that a study goes on from are none."""
        names = (p.relative_to(self.folder) for p in (self.folder / "results").rglob("*"))
        return {
            name.as_posix(): hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            for name in names
            if not {"benchmarks", "steps", ".seals"} & set(name.parts)
            and not name.name.startswith(".snakemake")
            and (self.folder / name).is_file()
        }

    def processes(self) -> list[int]:
        """Return the processes of this world that are alive."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (place / "environ").read_bytes().split(b"\0"):
                    state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(place.name)] if state != "Z" else []
            except OSError:
                continue
        return found

    def jobs(self) -> list[int]:
        """Return the processes that run a script of a rule, and the kernels of notebooks."""
        return [
            pid for pid in self.processes() if re.search(r"\.snakemake/scripts/", _command(pid))
        ]

    def kernels(self) -> list[int]:
        return [pid for pid in self.processes() if "ipykernel" in _command(pid)]

    def wait_until_empty(self, seconds: float = 20) -> list[int]:
        """Return the processes that are still alive after some seconds: none, unless something was orphaned."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return left

    def leftovers(self) -> list[str]:
        """Return temporary files."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob(".tmp-*"))


class Run:
    """One run of Snakemake in a session of its own."""

    def __init__(self, world: World, command: list[str]):
        self.world = world
        self.path = world.folder / f"said-{uuid.uuid4().hex[:8]}.txt"
        with self.path.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=world.folder, env=world.environment, stdout=out,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=ctrl_c.hear,
            )  # fmt: skip

    def said(self) -> str:
        return self.path.read_text(errors="replace")

    def started(self) -> list[str]:
        """Return the rules of the jobs that have started, in order."""
        return re.findall(r"^(?:local)?rule (\w+):", self.said(), re.MULTILINE)

    def wait(self, timeout: float = 900) -> int:
        return self.process.wait(timeout)

    def wait_for(self, happened: object, timeout: float = 300) -> bool:
        """Wait until ``happened()``; return False if the run ended before."""
        end = time.monotonic() + timeout
        while not happened():  # type: ignore[operator]
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.said()[-4000:]
            time.sleep(0.02)
        return True

    def signal(self, number: int) -> None:
        """Send a signal to Snakemake alone."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole session, as a terminal or the system does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        """End everything, whatever state it is in."""
        self.signal_group(signal.SIGKILL)
        self.process.wait()


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""
