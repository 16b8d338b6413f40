"""Digest of the library code that a script or notebook uses, found by following its imports."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mechatlas.io.digest import PACKAGE, normalised

# How files are read, written and logged cannot change a result; how seeds are derived can.
NEUTRAL = (
    "io",
    "job.py",
    "config.py",
    "config_circuits.py",
    "config_files.py",
    "machine.py",
    "__init__.py",
)
ALWAYS = ("io/seeds.py",)


def closure_digest(*roots: Path) -> str:
    """Return a 12-digit digest of the executable content of all modules of this package that files import.

    Parameters
    ----------
    *roots : Path
        Scripts (.py) or notebooks (.ipynb). Their own text does not count, only what they import, directly or
        not, anywhere in the file.
    """
    digest = hashlib.sha256()
    modules = {PACKAGE / name for name in ALWAYS} | {m for root in roots for m in closure(root)}
    for path in sorted(modules):
        digest.update(f"{path.relative_to(PACKAGE)}\0{_read(path)[0]}\0".encode())
    return digest.hexdigest()[:12]


@cache
def closure(root: Path) -> frozenset[Path]:
    """Return the files of this package that a script or notebook imports, directly or not, save neutral ones."""
    found: set[Path] = set()
    queue = [root]
    while queue:
        new = set(_read(queue.pop())[1]) - found
        found |= new
        queue.extend(new)
    return frozenset(found)


@cache
def _read(path: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the normalised content of a file and the modules it names in its imports."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(source)["cells"] if c["cell_type"] == "code"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    tree = ast.parse(source)
    names = tuple(p for name in _imports(tree) for p in _module_files(name) if not _neutral(p))
    return normalised(tree), names


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_files(name: str) -> list[Path]:
    package, *parts = name.split(".")
    if package != PACKAGE.name or not parts:
        return []
    path = PACKAGE.joinpath(*parts)
    # A package's own file runs when a module inside it is imported.
    files = [PACKAGE.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    return [p for p in (path.with_suffix(".py"), *files) if p.is_file()]


def _neutral(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] in NEUTRAL
