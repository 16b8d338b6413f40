"""The rules of the house, checked in the text of the workflow."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from mechatlas import pins
from mechatlas.config import TABLES, load_schema

RULES = REPOSITORY / "workflow" / "rules"
SCRIPTS = REPOSITORY / "workflow" / "scripts"
PACKAGE = SCRIPTS / "mechatlas"
DIRECTIVES = (
    *("input", "output", "log", "benchmark", "conda", "threads", "resources", "params", "script"),
)
# What these rules cannot have by their nature.
WITHOUT = {
    "fetch_model": {"input"},
    "fetch_source": {"input"},
    "fetch_dictionary": {"input"},
    # They print or check, each time anew: with a benchmark file they would run once only.
    "forecast": {"output", "benchmark"},
    "forecast_resources": {"input", "output", "benchmark"},
    "doctor": {"input", "output", "benchmark"},
    "verify": {"input", "output", "benchmark"},
}
# Rules that only name what others make.
TARGETS = {
    *("all", "atlas", "circuits", "dictionaries", "heads", "figures", "latents", "prompts"),
    *("report_all", "retrain_demo_models", "sweeps", "transcoder"),
}


def rules() -> dict[str, str]:
    """Return the text of every rule by its name."""
    found = {}
    for path in (REPOSITORY / "Snakefile", *sorted(RULES.rglob("*.smk"))):
        parts = re.split(r"^rule (\w+):\n", path.read_text(), flags=re.MULTILINE)
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            assert name not in found, f"{name} is defined twice"
            found[name] = re.split(r"^\S", body, flags=re.MULTILINE)[0]
    return found


WORKING = {name: body for name, body in rules().items() if name not in TARGETS}


def directive(body: str, name: str) -> str:
    """Return the content of one directive of a rule."""
    found = re.search(rf"^    {name}:(.*?)(?=^    \S|\Z)", body, flags=re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


def sources() -> list[Path]:
    """Return every Python file of the library and every script."""
    return sorted([*PACKAGE.rglob("*.py"), *SCRIPTS.glob("*.py")])


@pytest.mark.parametrize("rule", WORKING)
def test_rule_has_every_directive(rule: str) -> None:
    body = WORKING[rule]
    assert re.match(r'    """\S', body), "no docstring"
    missing = {d for d in DIRECTIVES if not directive(body, d)} - WITHOUT.get(rule, set())
    assert not missing


@pytest.mark.parametrize("rule", WORKING)
def test_rule_script_log_and_benchmark_have_one_name(rule: str) -> None:
    body = WORKING[rule]
    assert f'"../scripts/{rule}.py"' in directive(body, "script")
    assert (SCRIPTS / f"{rule}.py").is_file()
    logs = re.findall(r'"([^"]+)"', directive(body, "log"))
    assert logs and all(path.startswith(f"logs/{rule}/") for path in logs)
    if "benchmark" not in WITHOUT.get(rule, set()):
        assert f'"results/benchmarks/{rule}/' in directive(body, "benchmark")


@pytest.mark.parametrize("rule", WORKING)
def test_rule_names_its_files_and_resources(rule: str) -> None:
    body = WORKING[rule]
    for name in ("input", "output", "params"):
        lines = re.findall(r"^        (\S.*)$", directive(body, name), flags=re.MULTILINE)
        unnamed = [line for line in lines if not re.match(r"(\w+=|[)\]}])", line)]
        assert not unnamed, f"{name} without a name: {unnamed}"
    assert re.findall(r"^        (\w+)=", directive(body, "resources"), flags=re.MULTILINE) == [
        *("mem_mb", "runtime", "gpu"),
    ]
    assert re.search(r"mem_mb=memory\(", body) and re.search(r"runtime=minutes\(", body)


@pytest.mark.parametrize("rule", WORKING)
def test_scripts_of_rules_are_thin(rule: str) -> None:
    text = (SCRIPTS / f"{rule}.py").read_text()
    assert ast.get_docstring(ast.parse(text))
    assert "with job(snakemake" in text
    assert "def main(" in text
    # It makes the imports after it cheaper (mechatlas/start.py).
    assert re.search(r"^ *from mechatlas.*$", text, re.M)[0] == "from mechatlas.job import job"
    # Snakemake puts its own lines before a script, and this import may only come first.
    assert "from __future__" not in text
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize("rule", sorted(set(WORKING) - {"train_demo_model"}))
def test_scripts_take_what_rules_give(rule: str) -> None:
    """Names of files and params are arguments of the script, which gets all that it cannot do without."""
    body, text = WORKING[rule], (SCRIPTS / f"{rule}.py").read_text()
    parts = (directive(body, name) for name in ("input", "output", "params"))
    given = {name for part in parts for name in re.findall(r"^        (\w+)=", part, re.M)}
    given = {n for n in given if not n.endswith("_files")} - {"code", "captions"}
    main = next(x for x in ast.parse(text).body if getattr(x, "name", "") == "main").args
    names = [x.arg for x in main.args + main.kwonlyargs]
    assert main.kwarg or given <= set(names)
    needed = set(names[: len(main.args) - len(main.defaults)])
    assert needed <= given | set(re.findall(r"(\w+)=[\w(]*snakemake\b", text))


def test_targets_do_no_work() -> None:
    for name in TARGETS & rules().keys():
        assert directive(rules()[name], "input") and "script:" not in rules()[name]


def test_workflow_avoids_what_costs_or_hides() -> None:
    text = "\n".join(p.read_text() for p in (REPOSITORY / "Snakefile", *RULES.rglob("*.smk")))
    for pattern in (r"^\s+run:", r"retries:", r"^checkpoint ", r"ancient\(", r"globals\(\)"):
        assert not re.search(pattern, text, flags=re.MULTILINE), pattern
    for path in sources():
        assert "snakemake.config" not in path.read_text(), path


def test_config_is_read_in_params_or_by_helpers_only() -> None:
    for name, body in WORKING.items():
        rest = body.replace(directive(body, "params"), "")
        assert "config[" not in rest, f"{name} reads the configuration outside params"


def test_library_has_no_shortcuts() -> None:
    forbidden = re.compile(
        r"except Exception|except BaseException:\s*\n\s*pass|^\s*import pickle|NotImplementedError"
        r"|\b(?:TODO|FIXME|XXX)\b",
        flags=re.MULTILINE,
    )
    found = {str(p): m.group() for p in sources() if (m := forbidden.search(p.read_text()))}
    assert not found


def test_no_machine_paths_in_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        path = REPOSITORY / name
        if path.suffix in (".py", ".smk", ".yaml", ".md", ".rst", ".ipynb", ".toml", ".json"):
            assert not re.search(r"/(?:home|root|work)/\w", path.read_text()), name


# --- the library ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(WORKING.keys() - WITHOUT.keys()))
def test_rule_depends_on_the_code_that_its_script_uses(rule: str) -> None:
    params = directive(WORKING[rule], "params")
    assert f'code=script_digest("{rule}"' in params or "code=lib_digest(" in params


def _files(name: str) -> list[Path]:
    if not name.startswith("mechatlas."):
        return []
    path = SCRIPTS.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return [p for p in candidates if p.is_file()]


def test_library_layers_import_downwards_only() -> None:
    order = ["io", "models", "corpus", "tasks", "capture", "stats", "dictionaries"]
    order += ["explain", "score", "circuits", "figures"]
    for path in PACKAGE.rglob("*.py"):
        area = path.relative_to(PACKAGE).parts[0]
        if area not in order:
            continue
        used = {p.relative_to(PACKAGE).parts[0] for p in _direct(path)} & set(order)
        above = {u for u in used if order.index(u) > order.index(area)}
        assert not above, f"{path} imports {above}"


def _direct(path: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(_files(node.module))
        elif isinstance(node, ast.Import):
            found.update(p for alias in node.names for p in _files(alias.name))
    return found


# --- parsing is light ---------------------------------------------------------------------------


def test_parsing_imports_nothing_heavy(workflow: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snakemake", "-n", "-q", "all"],
        cwd=workflow,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    heavy = {"torch", "pandas", "transformers", "pyarrow", "sklearn", "scipy", "matplotlib"}
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not heavy & loaded


# --- files around the workflow --------------------------------------------------------------------


def test_scripts_without_tensors_import_no_torch() -> None:
    """Importing torch costs a second or two in every job."""
    with_tensors = {
        "capture_heads",
        "explain_heads",
        "fit_heads",
        "patch_layers",
        "prune_halves",
        "trace_parts",
        "replace_heads",
        "train_demo_model",
        "fetch_model",
        "prepare_prompts",
        "train_sae",
        "import_dictionary",
        "evaluate_sae",
        "measure_components",
        "prune_nodes",
        "trace_edges",
        "compare_circuits",
        "capture_latents",
        "measure_latents",
        "train_clt",
        "evaluate_clt",
        "attribution_graph",
        "trace_prompts",
        "describe_clt",
        "train_sweep",
    }
    light = sorted(WORKING.keys() - with_tensors)
    code = (
        "import importlib, sys\n"
        f"for name in {light}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    scripts = REPOSITORY / "workflow" / "scripts"
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_conda_file_has_the_pins_of_the_lock_file() -> None:
    assert pins.CONDA.read_text() == pins.conda_text(pins.read_lock()), "python -m mechatlas.pins"


def test_lock_file_pins_every_requirement() -> None:
    missing = {pins.normal_name(name) for name in pins.wanted()} - pins.read_lock().keys()
    assert not missing, "write it again: python -m mechatlas.pins"
    assert pins.read_lock()["torch"] == "2.13.0"


def test_rules_use_the_environment_that_exists() -> None:
    for name, body in WORKING.items():
        (path,) = re.findall(r'"([^"]+)"', directive(body, "conda"))
        assert (RULES / path).resolve() == pins.CONDA, name


def test_captions_exist_and_reports_are_labelled() -> None:
    text = "\n".join(WORKING.values())
    captions = re.findall(r'caption="([^"]+)"', text)
    assert captions and all((RULES / path).is_file() for path in captions)
    for word in ("caption=", "category=", "labels="):
        assert len(re.findall(rf"\b{word}", text)) == len(re.findall(r"=report\(", text))


def test_notebooks_hold_no_outputs() -> None:
    for path in (REPOSITORY / "workflow" / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        assert notebook["metadata"]["language_info"]["name"] == "python"
        assert not any(cell.get("outputs") for cell in notebook["cells"]), path


def test_catalog_requirements() -> None:
    readme = (REPOSITORY / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    catalog = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    assert {"software-stack-deployment", "report"} <= catalog["usage"].keys()
    for name in ("LICENSE", "CITATION.cff", "CHANGELOG.md", "config/README.md"):
        assert (REPOSITORY / name).is_file()
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert f'"{version}"' in (PACKAGE / "__init__.py").read_text()


def test_profiles_limit_gpus_and_survive_interruption() -> None:
    for name in ("default", "slurm"):
        profile = yaml.safe_load((REPOSITORY / "profiles" / name / "profile.yaml").read_text())
        assert profile["resources"] == {"gpu": 1}
        assert profile["rerun-incomplete"] and profile["show-failed-logs"]


def test_every_key_of_the_configuration_reaches_a_rule() -> None:
    text = "\n".join(p.read_text() for p in RULES.rglob("*.smk"))
    for section, schema in load_schema()["properties"].items():
        # Some sections are tables of names, some are handed over whole.
        if section in TABLES or re.search(rf'\(config\["{section}"\]\)', text):
            continue
        for key in schema.get("properties", {}):
            assert f'config["{section}"]["{key}"]' in text or (
                section == "sampling" and f'sampling["{key}"]' in text
            ), f"{section}.{key} is read by no rule"
