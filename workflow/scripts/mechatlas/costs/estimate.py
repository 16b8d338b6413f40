"""Time, memory and disk of each rule: its work times what a unit of work cost in measured runs.

resources/benchmarks/runs.csv holds, for two runs of different size, jobs, work and processor seconds of each rule. Two
points give a rule's start-up and its seconds for a unit of work. Matrix products become faster with the model's width:
from the rate of the embedded models, measured for each rule, to that of a capture at width 768
(resources/benchmarks/rates.csv), in proportion to the logarithm of the width, and not beyond.

A GPU does the products of the rules that ask for one at a rate that is given, or at `GPU_RATE`; their start-up stays.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechatlas.costs.work import Work
from mechatlas.io import UserError, read_json

TABLES = Path(__file__).resolve().parents[4] / "resources" / "benchmarks"
GPU_RATE = (
    13e12  # operations a second of a capture on an H200 in float32 (benchmarks/results/gpu.json)
)
#: Rules that do the work of others in several jobs, and were not run when those were measured.
LIKE = {
    "fit_heads": "explain_heads",
    "fit_latents": "explain_latents",
    "patch_layers": "measure_components",
    "prune_halves": "prune_nodes",
    "trace_parts": "trace_edges",
}
LIBRARIES_MB = 600  # resident memory of a job that has imported torch, and nothing else


@dataclass(frozen=True)
class Measured:
    """A rule in one run: jobs, work, processor seconds and largest resident memory of a job."""

    jobs: float
    operations: float
    cpu_s: float
    max_mb: float


@dataclass(frozen=True)
class Cost:
    """A rule in a run to come. ``gpu_hours`` replaces most of ``core_hours`` where there is a GPU (``with_gpu``)."""

    rule: str
    jobs: float
    core_hours: float
    with_gpu: float
    gpu_hours: float
    memory_gb: float
    disk_gb: float


def read_runs(path: Path = TABLES / "runs.csv") -> dict[str, list[Measured]]:
    """Return the measured runs of each rule, the smaller work first."""
    found: dict[str, list[Measured]] = {}
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            values = (float(row[key]) for key in ("jobs", "operations", "cpu_s", "max_mb"))
            found.setdefault(row["rule"], []).append(Measured(*values))
    return {rule: sorted(m, key=lambda m: m.operations / m.jobs) for rule, m in found.items()}


def read_rates(path: Path = TABLES / "rates.csv") -> dict[int, float]:
    """Return operations a second and core of a capture, by width of the model."""
    with path.open(newline="", encoding="utf-8") as handle:
        return {int(r["width"]): float(r["operations_per_s"]) for r in csv.DictReader(handle)}


def gpu_rate(path: str | Path) -> float:
    """Return the operations a second of a long capture in a table of ``make bench-gpu``, in float32."""
    parts = read_json(path).get("parts", {})
    try:
        part = parts["capture"]["float32"]
        return 1e12 * part["forward_tflop_per_s"] / part["further_windows_over_forward"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no capture on a GPU; make it with make bench-gpu") from error


def start_and_slope(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return seconds of a job without work, and for each unit of work, through one or two measured runs."""
    first = measured[0]
    base, work = first.cpu_s / first.jobs, first.operations / first.jobs
    if len(measured) == 1:
        return base, 0.0
    last = measured[-1]
    more = last.operations / last.jobs - work
    slope = max(0.0, (last.cpu_s / last.jobs - base) / more) if more > 0 else 0.0
    return max(0.0, base - slope * work), slope


def faster(width: int, small: int, rates: Mapping[int, float], slope: float) -> float:
    """Return seconds for an operation at a width, given those at the width of the embedded models."""
    large = max(rates)
    if slope <= 0 or width <= small:
        return slope
    share = min(1.0, math.log(width / small) / math.log(large / small))
    best = min(slope, 1 / rates[large])
    return math.exp((1 - share) * math.log(slope) + share * math.log(best))


def estimate(
    work: Sequence[Work],
    width: int,
    *,
    gpu: float = GPU_RATE,
    runs: Mapping[str, Sequence[Measured]] | None = None,
    rates: Mapping[int, float] | None = None,
) -> list[Cost]:
    """Return the cost of each rule.

    Parameters
    ----------
    work : sequence of Work
    width : int
        Of the widest model.
    gpu : float
        Operations a second of a GPU.
    runs, rates : mapping, optional
        Measured; the shipped ones by default.
    """
    runs, rates = runs or read_runs(), rates or read_rates()
    costs = []
    for part in work:
        measured = runs.get(LIKE.get(part.rule, part.rule))
        start, slope = start_and_slope(measured) if measured else (4.0, 0.0)
        each = faster(width, min(rates), rates, slope) if part.products else slope
        starts, seconds = start * part.jobs, each * part.operations
        on_gpu = part.operations / gpu if part.gpu and part.products else 0.0
        costs.append(
            Cost(
                rule=part.rule,
                jobs=part.jobs,
                core_hours=(starts + seconds) / 3600,
                with_gpu=(starts + (0.0 if on_gpu else seconds)) / 3600,
                gpu_hours=(on_gpu + starts * bool(on_gpu)) / 3600,
                memory_gb=LIBRARIES_MB / 1e3 + part.memory / 1e9,
                disk_gb=part.disk / 1e9,
            )
        )
    return costs


def table(costs: Sequence[Cost]) -> list[str]:
    """Return the costs as lines of text, the dearest rule first, with their sum."""
    head = ("core hours", "or with GPU:", "GPU hours", "GB a job", "GB disk")
    lines = [f"{'rule':<24}{'jobs':>7}" + "".join(f"{name:>13}" for name in head)]
    ordered = sorted(costs, key=lambda cost: -cost.core_hours)
    for cost in ordered:
        lines.append(_line(cost.rule, cost.jobs, cost, cost.memory_gb))
    total = [
        sum(getattr(c, name) for c in costs)
        for name in ("core_hours", "with_gpu", "gpu_hours", "disk_gb")
    ]
    whole = Cost(
        "all", sum(c.jobs for c in costs), *total[:3], max(c.memory_gb for c in costs), total[3]
    )
    return [*lines, _line("all", whole.jobs, whole, whole.memory_gb)]


def _line(name: str, jobs: float, cost: Cost, memory: float) -> str:
    numbers = (cost.core_hours, cost.with_gpu, cost.gpu_hours, memory, cost.disk_gb)
    return f"{name:<24}{jobs:>7.0f}" + "".join(f"{short(value):>13}" for value in numbers)


def short(value: float) -> str:
    """Return a number with two digits that matter."""
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"
