"""Digests of code and files, so that a change of the mathematics reruns its rules and nothing else does."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def code_digest(*areas: str) -> str:
    """Return a 12-digit digest of the executable content of parts of this package.

    Parameters
    ----------
    *areas : str
        Subpackages or modules relative to the package, such as ``"capture"`` or ``"explain/programs.py"``.

    Notes
    -----
    The syntax tree without docstrings is hashed: comments, formatting and documentation do not count.
    """
    digest = hashlib.sha256()
    for path in sorted({path for area in areas for path in _modules(area)}):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0")
        digest.update(normalised(ast.parse(path.read_text(encoding="utf-8"))).encode() + b"\0")
    return digest.hexdigest()[:12]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _modules(area: str) -> list[Path]:
    path = PACKAGE / area
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    if path.is_file():
        return [path]
    raise FileNotFoundError(f"no area {area!r} in {PACKAGE}")


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield a syntax tree and all statements in it, and nothing below them."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting.extend(getattr(node, name, ()))


def normalised(tree: ast.AST) -> str:
    """Return a syntax tree as text, without docstrings (they are removed from ``tree``)."""
    for node in statements(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:]
    return ast.dump(tree)
