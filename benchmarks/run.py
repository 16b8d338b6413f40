"""Run the benchmarks, print their tables, write benchmarks/results/<name>.json.

Usage: python benchmarks/run.py [--quick] [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow" / "scripts"), str(PEERS)]


def machine() -> dict[str, str | int]:
    """Return what identifies the kind of machine and the versions that matter for speed."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {
        "cpu": name,
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(names: list[str], quick: bool) -> None:
    """Run the named benchmarks (all by default)."""
    files = [path for folder in (HERE, PEERS) for path in folder.glob("bench_*.py")]
    every = sorted(path.stem.removeprefix("bench_") for path in files)
    unknown = set(names) - set(every)
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])
    for name in names or every:
        module = importlib.import_module(f"bench_{name}")
        result = {"machine": machine(), "quick": quick, **module.run(quick)}
        print("\n".join(module.table(result)))
        if "skipped" in result:
            continue
        path = HERE / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    main(given.names, given.quick)
