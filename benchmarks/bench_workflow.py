"""What the engine costs around the work: parsing, planning, starting jobs.

- ``plan``: a dry run of the workflow with about 100, 1,000 and 10,000 jobs (a corpus cut into as many chunks);
- ``jobs``: real runs of the workflow with scripts that only make their files, with two different numbers of jobs: their
  difference gives the seconds of a job, and jobs a second;
- ``start-up``: processor seconds that the script of each rule takes to start Python and import what it needs, times its
  jobs in the default run, over all processor seconds of that run (resources/benchmarks/runs.csv).

Times are of processes of their own, processor seconds with those of their children; the machine's load stands beside.
"""

from __future__ import annotations

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "workflow" / "scripts"
COPIED = ("Snakefile", "config", "profiles", "workflow", "envs", "resources")
NO_OP = '''"""Make every output and nothing else."""
from pathlib import Path

for path in map(Path, snakemake.output):
    (path / "index.json" if not path.suffix else path).parent.mkdir(parents=True, exist_ok=True)
    (path / "index.json" if not path.suffix else path).write_text("{}")
'''
EVENTS = "results/demo-2l/synthetic-wiki/heads/raw_events.parquet"


def child(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return its wall and processor seconds (those of its children included), and the load."""
    # As for a user, who keeps compiled modules.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["OMP_NUM_THREADS"] = "1"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.perf_counter() - start, "cpu_s": cpu, "load": os.getloadavg()[0]}


def snakemake(folder: Path, chunks: int, *arguments: str) -> dict[str, float]:
    """Run the workflow of a folder on a corpus of so many chunks of one window."""
    (folder / "chunks.yaml").write_text(
        f"sampling: {{windows: {chunks}, pattern_windows: 1}}\ncapture: {{chunk_windows: 1}}\n"
    )
    command = [sys.executable, "-m", "snakemake", "--configfile", "chunks.yaml", "--quiet", "all"]
    return child([*command, *arguments, EVENTS], folder)


def plan(folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Time dry runs; each has three jobs besides the chunks."""
    return [{"jobs": n + 3, **snakemake(folder, n, "--cores", "1", "-n")} for n in sizes]


def jobs(folder: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """Time real runs with no-op scripts; the difference of two sizes is the cost of jobs alone."""
    runs = []
    for chunks in sizes:
        for made in ("results", "logs", ".snakemake"):
            shutil.rmtree(folder / made, ignore_errors=True)
        runs.append({"jobs": chunks + 3, **snakemake(folder, chunks, "--cores", "1")})
    more = runs[1]["jobs"] - runs[0]["jobs"]
    each = {key: (runs[1][key] - runs[0][key]) / more for key in ("wall_s", "cpu_s")}
    return {"runs": runs, "per_job": each, "jobs_per_s": 1 / each["wall_s"]}


def start_up(rules: dict[str, tuple[float, float]], repeats: int) -> dict[str, Any]:
    """Time the start of each rule's script; ``rules`` gives jobs and processor seconds of the default run."""
    found = {}
    bare = min(child([sys.executable, "-c", ""], REPOSITORY)["cpu_s"] for _ in range(repeats))
    for rule, (count, total) in rules.items():
        # With the name that tells a script that it runs as a job (see `mechatlas.start`).
        code = f"import sys; snakemake = None; sys.path.insert(0, {str(SCRIPTS)!r}); import {rule}"
        runs = [child([sys.executable, "-c", code], REPOSITORY)["cpu_s"] for _ in range(repeats)]
        found[rule] = {"jobs": count, "start_cpu_s": min(runs), "run_cpu_s": total}
    spent = sum(entry["jobs"] * entry["start_cpu_s"] for entry in found.values())
    whole = sum(total for _, total in rules.values())
    return {"python_cpu_s": bare, "rules": found, "share_of_run": spent / whole}


def default_run() -> dict[str, tuple[float, float]]:
    """Return jobs and processor seconds of the rules of the default run, as they were recorded."""
    path = REPOSITORY / "resources" / "benchmarks" / "runs.csv"
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["run"] == "default"]
    return {row["rule"]: (float(row["jobs"]), float(row["cpu_s"])) for row in rows}


def copied(folder: Path) -> Path:
    """Copy the workflow with scripts that do nothing."""
    for name in COPIED:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    for script in (folder / "workflow" / "scripts").glob("*.py"):
        script.write_text(NO_OP)
    return folder


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    before, rules = os.getloadavg(), default_run()
    if quick:
        rules = dict(sorted(rules.items(), key=lambda item: -item[1][1])[:4])
    with tempfile.TemporaryDirectory() as name:
        folder = copied(Path(name))
        result = {
            "what": "the engine around the work",
            "plan": plan(folder, [97] if quick else [97, 997, 9997]),
            "jobs": jobs(folder, (5, 15) if quick else (20, 120)),
            "start_up": start_up(rules, 1 if quick else 3),
        }
    return {**result, "load_average": {"before": before, "after": os.getloadavg()}}


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [result["what"], f"{'':<30}{'wall s':>9}{'CPU s':>9}{'load':>7}"]

    def line(name: str, t: dict[str, float]) -> str:
        return f"{name:<30}{t['wall_s']:>9.2f}{t['cpu_s']:>9.2f}{t['load']:>7.1f}"

    lines += [line(f"plan of {t['jobs']:,} jobs", t) for t in result["plan"]]
    lines += [line(f"run of {t['jobs']:,} empty jobs", t) for t in result["jobs"]["runs"]]
    each = result["jobs"]["per_job"]
    lines.append(
        f"{1e3 * each['wall_s']:.0f} ms a job ({1e3 * each['cpu_s']:.0f} ms of processor time), "
        f"{result['jobs']['jobs_per_s']:.1f} jobs a second on one core"
    )
    start = result["start_up"]
    for rule, entry in sorted(start["rules"].items(), key=lambda item: -item[1]["start_cpu_s"]):
        share = entry["jobs"] * entry["start_cpu_s"] / entry["run_cpu_s"]
        lines.append(
            f"start of {rule:<24}{entry['start_cpu_s']:>8.2f} CPU s{share:>7.0%} of the rule"
        )
    lines.append(
        f"start-up is {start['share_of_run']:.0%} of the processor time of the rules above"
    )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    return [*lines, f"load average {before:.1f} before, {after:.1f} after"]
