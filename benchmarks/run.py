"""Run the benchmarks, print their tables, write benchmarks/results/<name>.json.

Usage: python benchmarks/run.py [--quick] [--out FOLDER] [NAME ...]
       python benchmarks/run.py --device cuda [--quick] [--out FOLDER] [PART ...]

With a device, the parts of `bench_gpu` run on it and write benchmarks/results/gpu.json (cpu.json on a CPU).
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


def accelerator(device: str) -> dict[str, str | int | float]:
    """Return what identifies a device."""
    import torch

    if torch.device(device).type != "cuda":
        return {"device": device}
    about = torch.cuda.get_device_properties(torch.device(device))
    return {
        "device": about.name,
        "memory_gb": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "cuda": str(torch.version.cuda),
    }


def on_device(device: str, names: list[str], quick: bool, out: Path) -> None:
    """Run the named parts (all by default) on a device."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"error: --device {device}, but torch finds no GPU; choose another device")
    import bench_gpu

    facts = {"machine": {**machine(), **accelerator(device)}, "quick": quick}
    file = "cpu" if torch.device(device).type == "cpu" else "gpu"

    def save(result: dict) -> None:
        write(out, file, {**facts, **result})

    result = bench_gpu.run(quick, device, names, save)
    print("\n".join([str(facts["machine"]), *bench_gpu.table(result)]))
    if any("failed" in part for part in result["parts"].values()):
        sys.exit(1)


def write(folder: Path, name: str, result: dict) -> None:
    """Write a result to its file."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main(names: list[str], quick: bool, out: Path) -> None:
    """Run the named benchmarks (all by default)."""
    files = [path for folder in (HERE, PEERS) for path in folder.glob("bench_*.py")]
    every = sorted(path.stem.removeprefix("bench_") for path in files)
    every.remove("gpu")
    unknown = set(names) - set(every)
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])
    for name in names or every:
        module = importlib.import_module(f"bench_{name}")
        result = {"machine": machine(), "quick": quick, **module.run(quick)}
        print("\n".join(module.table(result)))
        if "skipped" not in result:
            write(out, name, result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", help="cuda, cuda:N, cpu or auto")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results", help="folder for the JSON files"
    )
    given = parser.parse_args()
    if given.device:
        on_device(given.device, given.names, given.quick, given.out)
    else:
        main(given.names, given.quick, given.out)
