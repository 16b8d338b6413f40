"""The digest that decides what a change of the library makes run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mechatlas.io import closure as module
from mechatlas.io import digest

FILES = {
    "io/seeds.py": "SEED = 1",
    "io/__init__.py": "from mechatlas.io.seeds import SEED",
    "models/__init__.py": "",
    "models/deep.py": "X = 1",
    "models/shallow.py": "def f():\n    from mechatlas.models.deep import X\n    return X",
    "score/__init__.py": "",
    "score/other.py": "Y = 1",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "mechatlas"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "script.py").write_text(
        "from mechatlas.models import shallow\nimport mechatlas.io\n"
    )
    for place in (module, digest):
        monkeypatch.setattr(place, "PACKAGE", root)
    monkeypatch.setattr(module, "FOUND", root / "__pycache__" / "closure.json")
    module._known.cache_clear()
    yield root
    module._known.cache_clear()


def closure_digest(root: Path) -> str:
    module.closure.cache_clear()
    module._read.cache_clear()
    module._module_files.cache_clear()
    return module.closure_digest(root)


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("models/deep.py", "X = 2", True),
        ("models/shallow.py", FILES["models/shallow.py"] + " + 1", True),
        ("models/deep.py", '"""A docstring."""\n# a comment\nX  =  1', False),
        ("io/seeds.py", "SEED = 2", True),
        ("io/__init__.py", "from mechatlas.io.seeds import SEED\nZ = 1", False),
        ("score/other.py", "Y = 2", False),
    ],
)
def test_digest_changes_with_the_code_that_is_imported(
    name: str, text: str, changes: bool, package: Path
) -> None:
    script = package.parent / "script.py"
    before = closure_digest(script)
    (package / name).write_text(text)
    assert (closure_digest(script) != before) == changes


def test_notebooks_are_followed(package: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["not ", "code"]},
        {"cell_type": "code", "source": ["from mechatlas.score ", "import other"]},
    ]
    notebook = package.parent / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    before = closure_digest(notebook)
    (package / "score/other.py").write_text("Y = 2")
    assert closure_digest(notebook) != before


def test_what_was_found_is_kept_for_the_next_process(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept digests are those of reading anew; files that nothing can be written beside are read all the same."""
    ends = []
    monkeypatch.setattr(module.atexit, "register", lambda *call: ends.append(call))
    script = package.parent / "script.py"
    read = closure_digest(script)
    for function, *arguments in ends:
        function(*arguments)
    assert module.FOUND.is_file()
    module._known.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_parsed", None)  # nothing may be read anew
        assert closure_digest(script) == read
    (package / "models/deep.py").write_text("X = 3")
    module._known.cache_clear()
    assert closure_digest(script) != read
    module.FOUND.write_text("damaged")
    (package / "models/deep.py").write_text(FILES["models/deep.py"])
    module._known.cache_clear()
    assert closure_digest(script) == read


def test_modules_of_the_package_count_themselves(package: Path) -> None:
    before = closure_digest(package / "models/shallow.py")
    (package / "models/shallow.py").write_text(FILES["models/shallow.py"] + " + 1")
    assert closure_digest(package / "models/shallow.py") != before


def test_digest_of_areas_is_of_all_their_modules_and_no_others(package: Path) -> None:
    def now(*areas: str) -> str:
        module._read.cache_clear()
        return module.code_digest(*areas)

    before, both = now("models"), now("models", "score/other.py")
    (package / "score/other.py").write_text("# another comment\nY = 1")
    assert now("models", "score/other.py") == both != before
    (package / "score/other.py").write_text("Y = 2")
    assert now("models") == before and now("models", "score/other.py") != both
    (package / "models/deep.py").write_text("X = 2")
    assert now("models") != before
    with pytest.raises(FileNotFoundError, match="no area 'none'"):
        now("none")
