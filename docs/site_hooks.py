"""Pages of the site that are made from the repository: the configuration's keys, its files, and the library.

Links from pages to files beside ``docs/`` are turned to these pages, so that they lead somewhere in both places.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "workflow" / "scripts" / "mechatlas"
PACKAGES = (
    *("io", "models", "corpus", "tasks", "capture", "stats", "dictionaries"),
    *("explain", "score", "circuits", "figures"),
)
OUTSIDE = re.compile(r"\]\(\.\./((?:config|resources)/[^)#\s]+)(#[^)\s]*)?\)")


def modules(package: str) -> list[str]:
    """Return the dotted names of a package's modules that have something public."""
    names = []
    for path in sorted((LIBRARY / package).rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        public = any(
            isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            for node in ast.parse(path.read_text(encoding="utf-8")).body
        )
        if public and parts[-1] != "__init__":
            names.append(".".join(("mechatlas", *parts)))
    return names


def library_page(package: str) -> str:
    """Return the page of a package."""
    about = ast.get_docstring(ast.parse((LIBRARY / package / "__init__.py").read_text()))
    parts = [f"# {package}\n\n{about}\n", *(f"::: {name}\n" for name in modules(package))]
    return "\n".join(parts)


def shown_at(path: str) -> str:
    """Return where the site has a file of the repository."""
    return "config.md" if path == "config/README.md" else path


def linked_files() -> list[str]:
    """Return the files beside ``docs/`` to which pages link, but the page of the configuration."""
    found = {
        match[1]
        for page in (ROOT / "docs").glob("*.md")
        for match in OUTSIDE.finditer(page.read_text(encoding="utf-8"))
    }
    return sorted(found - {"config/README.md"})


def on_files(files, config):
    """Add the pages and files that lie elsewhere."""
    keys = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "config.md", content=keys))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=library_page(package)))
    for path in linked_files():
        content = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links to files beside ``docs/`` to where the site has them."""
    return OUTSIDE.sub(lambda m: f"]({shown_at(m[1])}{m[2] or ''})", markdown)
