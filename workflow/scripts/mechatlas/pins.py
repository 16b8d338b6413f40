"""The pinned environment, once for pip and once for conda, from one list of requirements.

``python -m mechatlas.pins`` writes ``envs/requirements.lock`` (every package that the project's requirements
need, directly or not, at the version installed here) and ``envs/mechatlas.yaml`` (the same pins in conda's form).
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml

from mechatlas.io.atomic import atomic_path

REPOSITORY = Path(__file__).resolve().parents[3]
LOCK = REPOSITORY / "envs" / "requirements.lock"
CONDA = REPOSITORY / "envs" / "mechatlas.yaml"
LOCK_HEAD = (
    "# Every package of the tested environment; written by `python -m mechatlas.pins`, do not edit.\n"
    "# Install torch first and alone, so that a CPU or CUDA build of your choice is kept: see README.md.\n"
)
CONDA_HEAD = "# The pins of requirements.lock for --sdm conda; written by `python -m mechatlas.pins`, do not edit.\n"
PYTHON = "3.11"


def normal_name(name: str) -> str:
    """Return a distribution's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> list[str]:
    """Return the names of the project's requirements, all extras included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return sorted({re.match(r"[\w.-]+", item).group() for group in groups for item in group})


def closure(names: list[str]) -> dict[str, str]:
    """Return the installed version of each named distribution and of all that they require, by name."""
    from packaging.requirements import Requirement

    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(name, "") for name in names]
    while queue:
        name, extra = queue.pop()
        if (normal_name(name), extra) in seen:
            continue
        seen.add((normal_name(name), extra))
        distribution = metadata.distribution(name)
        # A local part such as +cpu names a build, which is the user's choice.
        pins[normal_name(name)] = distribution.version.partition("+")[0]
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                queue.extend((needed.name, e) for e in ("", *needed.extras))
    return dict(sorted(pins.items()))


def read_lock() -> dict[str, str]:
    """Return name and version of every line of the lock file."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda_text(pins: dict[str, str]) -> str:
    """Return a conda environment file that installs exactly ``pins`` by pip."""
    pip = [f"{name}=={version}" for name, version in pins.items()]
    environment = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [f"python={PYTHON}", "pip", {"pip": pip}],
    }
    return CONDA_HEAD + yaml.safe_dump(environment, sort_keys=False)


def main() -> int:
    """Write both files from the environment that runs this."""
    pins = closure(wanted())
    lock = LOCK_HEAD + "".join(f"{name}=={version}\n" for name, version in pins.items())
    for path, text in ((LOCK, lock), (CONDA, conda_text(pins))):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
