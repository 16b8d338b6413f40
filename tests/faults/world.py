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

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "MECHATLAS_FAULTS"
#: One model, one short corpus in two chunks, one task, one dictionary, one transcoder, and a language model to ask.
CONFIG = {
    "models": {"demo-4l": None, "demo-2l": {"path": str(REPOSITORY / "resources/models/demo-2l")}},
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 60},
    },
    "tasks": {
        "ioi": None,
        "numerals": None,
        "months": None,
        "induction": {"kind": "induction", "prompts": 4, "held_out": 4},
    },
    "circuits": {
        "patching": {"points": ["z"]},
        "nodes": {
            **{"random_circuits": 4, "stability_samples": 1, "subset_samples": 1},
            "least_harmful_step": 8,
        },
        "edges": {
            **{"acdc_orders": 1, "acdc_prompts": 1, "acdc_threshold": 0.5, "random_sets": 2},
            **{"curve_random_sets": 1, "path_receivers": 1, "shares": [0.05, 1.0]},
        },
        "generation": {"prompts": 4},
    },
    "sampling": {"windows": 48, "window_len": 32, "pattern_windows": 6},
    "capture": {"chunk_windows": 24, "topk": 40},
    "dictionaries": {
        "resid": {
            **{"models": ["demo-2l"], "latents": 32, "k": 4, "tokens": 1024, "batch_tokens": 128},
            "dead_tokens": 500,
        }
    },
    "transcoders": {"clt": {"models": ["demo-2l"], "features": 32, "k": 4, "tokens": 1024,
                            "batch_tokens": 128}},
    "graphs": {"ioi": None, "numerals": None,
               "induction": {"models": ["demo-2l"], "task": "induction"}},
    "latents": {"max_latents": 2, "causal_windows": 2, "steering_windows": 1},
    "explain": {"explainers": ["programs", "openai"], "programs": {"steps": 2, "rule_windows": 2}},
    "score": {
        **{"bootstrap": 20, "min_events": 5, "causal_windows": 2, "random_orders": 1},
        **{"replacement_shares": [1.0], "controls": ["swapped", "mean_pattern"]},
    },
}  # fmt: skip


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
