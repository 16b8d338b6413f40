"""A copy of the workflow whose scripts only make files, so that the engine's behaviour can be tested in seconds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from forks import shared

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "config", "profiles", "workflow", "envs")
STUB = '''"""Stands in for the real script: makes every output and nothing else."""
from pathlib import Path

for path in snakemake.output:
    path = Path(path)
    if path.suffix in ("",):
        path.mkdir(parents=True, exist_ok=True)
        (path / "index.json").write_text(snakemake.rule)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{snakemake.rule} {dict(snakemake.wildcards)}")
if snakemake.rule == "write_manifest":
    Path("results/listed.txt").write_text("\\n".join(snakemake.input))
for path in snakemake.log:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
'''

# What some stubs seem to import, so that a change there must run them again.
STUB_IMPORTS = {
    "capture_heads": "mechatlas.models.transformer",
    "summarise_scores": "mechatlas.score.summary",
}


#: Files whose tests take minutes, longest first.
LONG = ("test_run.py", "test_asked.py", "test_dag.py", "test_config.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, so that parallel workers end together."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def fake_model(folder: Path, *, context: int = 256, model_type: str = "gpt2") -> Path:
    """Write a folder that looks like a model as far as the checks before a run can see."""
    folder.mkdir(parents=True)
    config = {
        "model_type": model_type,
        "n_positions": context,
        **{"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 32},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    return folder


def copy_workflow(folder: Path, *, stubs: bool) -> Path:
    """Copy what a run needs into ``folder``, with fake models in place of the embedded ones."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            # With what Python and `mechatlas.io.closure` keep, which saves every copy seconds.
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    for name in ("demo-4l", "demo-2l"):
        fake_model(folder / "resources" / "models" / name)
    for name in ("circuits", "questions", "reference"):
        shutil.copytree(REPOSITORY / "resources" / name, folder / "resources" / name)
    recipe = REPOSITORY / "resources" / "models" / "recipe.yaml"
    if recipe.exists():
        shutil.copy(recipe, folder / "resources" / "models")
    if stubs:
        for script in (folder / "workflow" / "scripts").glob("*.py"):
            name = STUB_IMPORTS.get(script.stem, "pathlib")
            script.write_text(f"{STUB}\n\ndef unused():\n    import {name}\n")
    return folder


def snakemake(folder: Path, *arguments: str, check: bool = True, timeout: int = 120) -> str:
    """Run Snakemake in ``folder``; return stdout and stderr together."""
    status, output = shared().run(folder, arguments, timeout)
    if check:
        assert status == 0, output
    else:
        assert status != 0, output
    return output


def job_counts(folder: Path, *arguments: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run plans."""
    return counts_in(snakemake(folder, "-n", "--quiet=rules", *arguments))


def counts_in(output: str) -> dict[str, int]:
    """Return how many jobs of each rule the output of a dry run lists."""
    if "Nothing to be done" in output:
        return {}
    assert "Job stats:" in output, output
    table = output.split("Job stats:", 1)[1]
    rows = re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule != "total"}


def write_yaml(path: Path, value: object) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the files of a model and a text, which configurations may name."""
    fake_model(tmp_path / "model")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    return tmp_path


@pytest.fixture(scope="session")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with fake models and real scripts; nothing has run."""
    return copy_workflow(tmp_path_factory.mktemp("plain") / "mechatlas", stubs=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with one model, one source and stubs for scripts, run to the end, in a path with a space."""
    folder = copy_workflow(tmp_path_factory.mktemp("finished") / "with space", stubs=True)
    config = yaml.safe_load((folder / "config" / "config.yaml").read_text())
    config["models"].pop("demo-2l")
    config["sources"].pop("synthetic-qa")
    write_yaml(folder / "config" / "config.yaml", config)
    snakemake(folder, "--cores", "2", "--resources", "gpu=1")
    return folder
