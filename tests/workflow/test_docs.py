"""Every command of the README and of the documentation is run, or stands here with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
import yaml
from pages import arguments, commands, configurations, pages, read

from conftest import REPOSITORY, copy_workflow, counts_in, fake_model
from dry_runs import dry_runs
from mechatlas.config import ConfigError, complete_config
from test_hygiene import WORKING, directive

#: Commands that no test of this file can run: the beginning of a command, and why.
NOT_RUN = {
    "make install": "installs from the network; CI begins with it",
    "make demo": "installs and runs for minutes; its target is dry-run here, a small run is in test_run.py",
    "make test": "is this suite",
    "export ": "sets a variable of the shell",
    "pip install": "installs from the network",
    "python3 -m venv": "makes an environment",
    "make bench-gpu": "needs a GPU and takes minutes",
    "python benchmarks/run.py": "takes minutes",
    "python -m mechatlas.costs": "test_costs.py calls it",
    "python -m mechatlas.explain.llm.store": "needs a store; test_llm_store.py calls these commands",
    "snakemake --unlock": "has nothing to unlock; test_dag.py kills a run and does it",
    "snakemake --report": "needs a finished run; test_dag.py does it",
    "snakemake figures --report": "needs a finished run; test_dag.py does it",
    "snakemake --dag": "only draws",
    "snakemake doctor --workflow-profile profiles/slurm": "needs SLURM and its plugin; tests/slurm does it",
    "snakemake --workflow-profile profiles/slurm": "needs SLURM and its plugin; tests/slurm does it",
    "snakemake --sdm conda": "needs conda",
}
#: What a dry run of a command with this part plans at least, or, with 0, does not plan.
PLANNED = {
    "docs/tutorial.md: circuits": {"prune_nodes": 5, "capture_heads": 0},
    "docs/tutorial.md: verify": {"verify": 1},
    "docs/tutorial.md: figures": {"draw_circuits": 2, "draw_heads": 3, "draw_dictionaries": 1, "write_manifest": 0},
    "docs/own-model.md: my-model.yaml": {"capture_heads": 4, "train_sae": 0, "prune_nodes": 2},
    "docs/own-model.md: hub.yaml": {"fetch_model": 1},
    "docs/own-corpus.md: my-corpus.yaml": {"sample_windows": 2, "prepare_documents": 1},
    "docs/own-task.md: prompts": {"prepare_prompts": 7, "prune_nodes": 0},
    "docs/own-task.md: circuits": {"prune_nodes": 7},
    "docs/paper-figures.md: paper-ioi": {"draw_circuits": 1, "compare_published": 1},
    "docs/paper-figures.md: paper-openai-sae": {"draw_dictionaries": 1, "fetch_dictionary": 24},
    "docs/paper-figures.md: paper-clt": {"draw_transcoders": 1, "train_clt": 2},
    "README.md: mine.yaml": {"capture_heads": 2, "prune_nodes": 1},
    "README.md: forecast": {"forecast": 1, "ask_explainer": 0},
}  # fmt: skip


def excluded(command: str) -> str | None:
    """Return why a command is not run, None if it is run."""
    return next((why for part, why in NOT_RUN.items() if command.startswith(part)), None)


def found() -> list[tuple[str, str]]:
    """Return (page, command) of everything that is to be run."""
    both = [(page, command) for page in pages() for command in commands(page)]
    return [(page, command) for page, command in both if excluded(command) is None]


def named(page: str, name: str) -> str:
    """Return where a page's configuration lies: several pages have one of the same name."""
    return f"{Path(page).stem}-{name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with fake models and whatever the pages speak of; nothing has run."""
    folder = copy_workflow(tmp_path_factory.mktemp("docs") / "mechatlas", stubs=False)
    for path in ("path/to/folder", "models/gpt2"):
        fake_model(folder / path, context=1024)
    dump = folder / "data" / "stackexchange"
    dump.mkdir(parents=True)
    (dump / "cooking.stackexchange_0000000001.txt").write_text("Q:\n\nHow?\n\nA:\n\nSo.\n\n")
    for name in ("notes/a.txt", "data/wikitext-103-raw-v1/train-0.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("Some text.\n")
    (folder / "notes" / "a.txt").write_text("Some text.\n")
    for page in pages():
        for name, text in configurations(page):
            (folder / named(page, name)).write_text(text)
        for name, text in re.findall(
            r"```python\n# (\w+\.py)\n(.*?)```", read(page), flags=re.DOTALL
        ):
            (folder / name).write_text(text)
    (folder / "mine.yaml").write_text("seed: 1\n")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """Exit status and output of a dry run of every command, those that mean the same only once."""
    wanted: dict[tuple[str, str], tuple[str, ...]] = {}
    for page, command in found():
        # How many cores there are plans nothing; some pages say N.
        words = [w for w in arguments(re.sub(r"--cores \S+", "--cores 2", command)) if w != "-n"]
        words = [named(page, w) if (place / named(page, w)).exists() else w for w in words]
        wanted[page, command] = tuple(words)
    unique = list(dict.fromkeys(wanted.values()))
    results = dry_runs(place, [["-n", "--quiet=rules", *words] for words in unique])
    known = dict(zip(unique, results, strict=True))
    return {key: known[words] for key, words in wanted.items()}


def test_commands_are_planned(runs: dict[tuple[str, str], tuple[int, str]]) -> None:
    assert len(runs) > 40
    for (page, command), (status, output) in runs.items():
        assert status == 0, f"{page}: {command}\n{output}"
        assert counts_in(output), f"{page}: {command}\n{output}"


def test_commands_plan_what_the_pages_say(runs: dict[tuple[str, str], tuple[int, str]]) -> None:
    wrong = {}
    for part, expected in PLANNED.items():
        page, _, word = part.partition(": ")
        mine = [
            counts_in(out)
            for (p, command), (_, out) in runs.items()
            if p == page and word in command
        ]
        assert mine, part
        for counts in mine:
            planned = {rule: counts.get(rule, 0) for rule in expected}
            if planned != expected:
                wrong[part] = planned
    assert not wrong


def test_reasons_are_of_commands_that_exist() -> None:
    every = [command for page in pages() for command in commands(page)]
    unused = {part for part in NOT_RUN if not any(c.startswith(part) for c in every)}
    assert not unused
    assert all(command.startswith("snakemake") for _, command in found())


def test_configurations_of_the_pages_are_sound(place: Path) -> None:
    default = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    checked = 0
    for page in pages():
        for name, text in configurations(page):
            try:
                complete_config(merged(base_of(page, default), yaml.safe_load(text)), place, place)
            except ConfigError as error:
                pytest.fail(f"{page}, {name}: {error}")
            checked += 1
    assert checked >= 7


def base_of(page: str, default: dict) -> dict:
    """Return what the differences on a page are merged into."""
    if page != "docs/coming-from.md":
        return default
    return merged(default, yaml.safe_load((REPOSITORY / "config" / "gpt2.yaml").read_text()))


def merged(old: dict, new: dict) -> dict:
    """Merge as Snakemake does."""
    both = dict(old)
    for key, value in new.items():
        inner = isinstance(value, dict) and isinstance(old.get(key), dict)
        both[key] = merged(old[key], value) if inner else value
    return both


# --- captions of the engine's report ----------------------------------------------------------------


def reported() -> list[tuple[str, str, set[str]]]:
    """Return rule, caption file and wildcards of every output that the report of the engine shows."""
    rows = []
    for rule, body in WORKING.items():
        for part in re.findall(
            r"=report\((.*?)\n        \),", directive(body, "output"), flags=re.DOTALL
        ):
            (caption,) = re.findall(r'caption="\.\./report/([^"]+)"', part)
            paths = re.findall(r'"([^"]*\{[^"]*)"', part.split("caption=")[0])
            rows.append((rule, caption, set(re.findall(r"\{(\w+)", " ".join(paths)))))
    return rows


def test_every_caption_resolves(place: Path) -> None:
    default = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    config = complete_config(default, place, place)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    found = reported()
    assert {rule for rule, *_ in found} >= {
        "draw_circuits",
        "draw_heads",
        "render_heads",
        "report_heads",
    }
    for rule, caption, wildcards in found:
        text = (REPOSITORY / "workflow" / "report" / caption).read_text()
        values = {name: f"a-{name}" for name in wildcards}
        job = {
            "wildcards": values,
            "config": config,
            "params": {"captions": {"a-figure": "Shown."}},
        }
        shown = environment.from_string(text).render(snakemake=job)
        assert shown.strip() and "{{" not in shown, f"{rule}: {caption}"


def test_every_caption_is_used() -> None:
    files = {path.name for path in (REPOSITORY / "workflow" / "report").glob("*.rst")}
    assert files == {caption for _, caption, _ in reported()} | {"workflow.rst"}
