"""Print, or record, what runs cost.

python -m mechatlas.costs [CONFIGFILE ...] [--gpu gpu.json]     the forecast of a run with these configuration files
python -m mechatlas.costs --docs [--check]                      write docs/scale.md, or compare it
python -m mechatlas.costs --record NAME FOLDER [CONFIGFILE ...] take a finished run's benchmarks into the shipped table
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mechatlas.config import complete_config
from mechatlas.config_files import find_path
from mechatlas.config_spread import DOWNLOADS
from mechatlas.costs.estimate import GPU_RATE, TABLES, estimate, gpu_rate, start_and_slope, table
from mechatlas.costs.scale import page
from mechatlas.costs.shapes import Shape, shape_of
from mechatlas.costs.work import work_of
from mechatlas.io import UserError, read_json, write_text

REPOSITORY = Path(__file__).resolve().parents[4]
DOCS = REPOSITORY / "docs" / "scale.md"
RUN_COLUMNS = ("run", "rule", "jobs", "operations", "cpu_s", "max_mb")
#: How long Snakemake looks at a job every half second, and how long it waits between looks from then on, in seconds.
SAMPLED_CLOSELY, SAMPLED_LATER = 15.5, 30.0


def read_config(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Return the complete configuration of config/config.yaml and files of differences, as Snakemake joins them."""
    config: dict[str, Any] = {}
    for path in (REPOSITORY / "config" / "config.yaml", *map(Path, paths)):
        _join(config, yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return complete_config(config, Path.cwd(), REPOSITORY)


def shapes_of(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes of all models of a configuration."""
    found = {}
    for name, entry in config["models"].items():
        folder = Path(DOWNLOADS, name)
        if "path" in entry:
            folder = find_path(entry["path"], Path.cwd(), REPOSITORY)
        found[name] = shape_of(name, entry, folder)
    return found


def forecast_lines(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], gpu: str | Path | None = None
) -> list[str]:
    """Return the forecast of a run as lines of text."""
    rate = GPU_RATE if gpu is None else gpu_rate(gpu)
    width = max(shape.d for shape in shapes.values())
    said = "assumed" if gpu is None else f"measured, {gpu}"
    return [
        *table(estimate(work_of(config, shapes), width, gpu=rate)),
        f"GPU at {rate / 1e12:.0f} TFLOP/s ({said}); laws and limits: docs/scale.md",
    ]


def record(name: str, results: Path, config: Mapping[str, Any]) -> None:
    """Put the benchmarks of a finished run into resources/benchmarks, in place of an earlier run of that name."""
    path = TABLES / "runs.csv"
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.DictReader(handle) if row["run"] != name]
    for work in work_of(config, shapes_of(config)):
        files = sorted((results / "benchmarks" / work.rule).rglob("*.tsv"))
        if not files:
            continue
        measured = [_benchmark(file) for file in files]
        rows.append(
            {
                "run": name, "rule": work.rule, "jobs": len(files), "operations": f"{work.operations:.4g}",
                "cpu_s": f"{sum(whole_cpu(m['s'], m['cpu_time']) for m in measured):.2f}",
                "max_mb": f"{max(m['max_rss'] for m in measured):.0f}",
            }
        )  # fmt: skip
    _write(path, RUN_COLUMNS, rows)


def record_rates(shape: Shape) -> None:
    """Write the rates of a capture: at the embedded models' width from the runs, at 768 from ``make bench``."""
    from mechatlas.costs.estimate import read_runs

    _, slope = start_and_slope(read_runs()["capture_heads"])
    if slope <= 0:
        return  # one run alone does not tell
    measured = read_json(REPOSITORY / "benchmarks" / "results" / "capture.json")["times"]["capture"]
    large = 1e9 * measured["gflop_per_s"] * measured["wall_s"] / measured["cpu_s"]
    rows = [
        {"width": shape.d, "operations_per_s": f"{1 / slope:.3g}"},
        {"width": 768, "operations_per_s": f"{large:.3g}"},
    ]
    _write(TABLES / "rates.csv", ("width", "operations_per_s"), rows)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("configfiles", nargs="*")
    parser.add_argument("--gpu", help="table of make bench-gpu")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", nargs=2, metavar=("NAME", "FOLDER"))
    given = parser.parse_args(arguments)
    if given.docs:
        text = page()
        if given.check:
            same = DOCS.exists() and DOCS.read_text(encoding="utf-8") == text
            return (
                0
                if same
                else _fail(f"{DOCS} is not up to date; run python -m mechatlas.costs --docs")
            )
        write_text(DOCS, text)
        return 0
    try:
        config = read_config(given.configfiles)
        if given.record:
            record(given.record[0], Path(given.record[1]), config)
            record_rates(min(shapes_of(config).values(), key=lambda shape: shape.d))
        else:
            print("\n".join(forecast_lines(config, shapes_of(config), given.gpu)))  # noqa: T201
    except (UserError, OSError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


def _join(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            _join(config[key], value)
        else:
            config[key] = value


def _benchmark(path: Path) -> dict[str, float]:
    with path.open(newline="") as handle:
        row = next(csv.DictReader(handle, delimiter="\t"))
    # A job that ended before it could be measured has NA or -.
    return {
        key: float(value) if value.replace(".", "", 1).isdigit() else 0.0
        for key, value in row.items()
        if key in ("s", "cpu_time", "max_rss")
    }


def whole_cpu(seconds: float, sampled: float) -> float:
    """Return the processor seconds of a whole job from what Snakemake sampled of it.

    Snakemake 9 looks every half second at first, then every half minute; what a job does after the last look is
    missing. Here it is taken to be as busy as before.

    Parameters
    ----------
    seconds : float
        Wall seconds of the job (column ``s``).
    sampled : float
        Processor seconds up to the last look (column ``cpu_time``).
    """
    if seconds <= SAMPLED_CLOSELY:
        return sampled
    last = seconds - (seconds - SAMPLED_CLOSELY) % SAMPLED_LATER
    return sampled * seconds / last


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [",".join(columns), *(",".join(str(row[c]) for c in columns) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
