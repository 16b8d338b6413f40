"""Digest of the library code that a script or notebook uses, found by following its imports.

Reading the syntax trees of a few hundred modules takes seconds, and Snakemake parses its rules in every cluster job. So
what was found in a file is kept, under the SHA-256 of its text, in a file beside Python's own caches.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from mechatlas.io.atomic import atomic_path
from mechatlas.io.digest import PACKAGE, normalised, statements
from mechatlas.io.errors import UserError

# How files are read, written and logged cannot change a result; how seeds are derived can.
NEUTRAL = (
    "io",
    "job.py",
    "config.py",
    "config_circuits.py",
    "config_files.py",
    "config_spread.py",
    "machine.py",
    "start.py",
    "__init__.py",
)
ALWAYS = ("io/seeds.py",)
_WAYS = (__file__, sys.modules[normalised.__module__].__file__)  # under whose text FOUND holds
FOUND = PACKAGE / "__pycache__" / f"closure.{sys.implementation.cache_tag}.json"


def closure_digest(*roots: Path) -> str:
    """Return a 12-digit digest of the executable content of all modules of this package that files import.

    Parameters
    ----------
    *roots : Path
        Scripts (.py) or notebooks (.ipynb), whose own text does not count, only what they import, directly or
        not, anywhere in the file; or modules of this package, which count themselves, too.
    """
    digest = hashlib.sha256()
    modules = {PACKAGE / name for name in ALWAYS} | {m for root in roots for m in closure(root)}
    modules |= {root for root in roots if root.is_relative_to(PACKAGE)}
    for path in sorted(modules):
        digest.update(f"{path.relative_to(PACKAGE)}\0{_read(path)[0]}\0".encode())
    return digest.hexdigest()[:12]


def code_digest(*areas: str) -> str:
    """Return a 12-digit digest of the executable content of parts of this package.

    Parameters
    ----------
    *areas : str
        Subpackages or modules relative to the package, such as ``"capture"`` or ``"explain/programs.py"``.
    """
    digest = hashlib.sha256()
    for path in sorted({path for area in areas for path in _modules(area)}):
        digest.update(f"{path.relative_to(PACKAGE)}\0{_read(path)[0]}\0".encode())
    return digest.hexdigest()[:12]


def _modules(area: str) -> list[Path]:
    path = PACKAGE / area
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    if path.is_file():
        return [path]
    raise FileNotFoundError(f"no area {area!r} in {PACKAGE}")


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
    """Return a digest of the normalised content of a file and the modules it names in its imports."""
    text = path.read_bytes()
    key = f"{path.suffix}:{hashlib.sha256(text).hexdigest()}"
    known = _known()
    if key not in known:
        known[key] = _parsed(text.decode("utf-8"), path.suffix)
    content, names = known[key]
    return content, tuple(p for name in names for p in _module_files(name))


def _parsed(source: str, suffix: str) -> tuple[str, list[str]]:
    """Return a digest of the normalised content of a file and the names in its imports that may be of this package."""
    if suffix == ".ipynb":
        cells = [c for c in json.loads(source)["cells"] if c["cell_type"] == "code"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    tree = ast.parse(source)
    names = sorted({n for n in _imports(tree) if n.split(".")[0] == PACKAGE.name})
    return hashlib.sha256(normalised(tree).encode()).hexdigest(), names


@cache
def _known() -> dict[str, tuple[str, list[str]]]:
    """Return what earlier processes found, to be added to; it is written at the end of this one."""
    known: dict[str, tuple[str, list[str]]] = {}
    ways = hashlib.sha256(b"".join(Path(m).read_bytes() for m in _WAYS)).hexdigest()
    with suppress(OSError, ValueError):
        stored = json.loads(FOUND.read_text(encoding="utf-8"))
        known = stored["found"] if stored["ways"] == ways else {}
    atexit.register(_keep, known, len(known), ways)
    return known


def _keep(known: dict[str, tuple[str, list[str]]], before: int, ways: str) -> None:
    # An installation that may not be written to is read anew every time.
    if len(known) > before:
        with suppress(UserError), atomic_path(FOUND) as temporary:
            temporary.write_text(json.dumps({"ways": ways, "found": known}), encoding="utf-8")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _module_files(name: str) -> list[Path]:
    package, *parts = name.split(".")
    if package != PACKAGE.name or not parts:
        return []
    path = PACKAGE.joinpath(*parts)
    # A package's own file runs when a module inside it is imported.
    files = [PACKAGE.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    return [p for p in (path.with_suffix(".py"), *files) if p.is_file() and not _neutral(p)]


def _neutral(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] in NEUTRAL
