"""config/gpt2.yaml: head-explain's defaults, the commands of the page about it, and a small run to the end."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pages import arguments, commands

from conftest import REPOSITORY, copy_workflow, counts_in, job_counts, snakemake, write_yaml
from dry_runs import dry_runs
from mechatlas.config import ConfigError, complete_config
from mechatlas.corpus.synthetic import generate_documents

GPT2 = REPOSITORY / "config" / "gpt2.yaml"
COMMANDS = list(commands("docs/coming-from.md"))
QUESTION = "Q:\n\nHow?\n\nWhat is it?\n\nA:\n\nSo.\n\n"
# A dry run of these must plan exactly this many jobs, so that merging is seen to work.
PLANNED = {
    "-- heads": {"fetch_model": 1, "fetch_source": 1, "report_heads": 2, "write_manifest": 0},
    "windows.parquet": {"fetch_model": 1, "fetch_source": 1, "sample_windows": 1, "all": 0},
    "raw_events.parquet": {"capture_heads": 1, "merge_events": 1, "explain_heads": 0},
    "{stackexchange: null}": {"prepare_documents": 1, "fetch_source": 1, "report_heads": 1},
    "wikitext: null}": {"prepare_documents": 1, "fetch_source": 0, "report_heads": 1},
    "wiki2": {"prepare_documents": 3, "fetch_source": 2, "report_heads": 3},
    "gpt2-medium": {"fetch_model": 1, "report_heads": 2},
    "[programs]": {"explain_heads": 2, "capture_heads": 2, "ask_explainer": 0},
    "paper-seqcont.yaml -- results/gpt2/tasks/numerals/nodes": {"prune_nodes": 1, "trace_edges": 0},
    "one_iter": {"prune_nodes": 3, "compare_published": 1},
    "circuits --cores 4 --resources gpu=1 --configfile config/paper-seqcont": {"trace_edges": 3},
    "paper-ioi.yaml -- results": {"measure_components": 1, "prune_nodes": 0},
    "mine.yaml": {"prepare_documents": 2, "capture_heads": 8},
}


def merged() -> dict:
    """The embedded default with the differences of gpt2.yaml, as Snakemake merges them."""

    def merge(old: dict, new: dict) -> dict:
        both = dict(old)
        for key, value in new.items():
            inner = isinstance(value, dict) and isinstance(old.get(key), dict)
            both[key] = merge(old[key], value) if inner else value
        return both

    default = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    return merge(default, yaml.safe_load(GPT2.read_text()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with a StackExchange folder and a file of the user's; nothing has run."""
    folder = copy_workflow(tmp_path_factory.mktemp("gpt2") / "mechatlas", stubs=False)
    dump = folder / "data" / "stackexchange"
    dump.mkdir(parents=True)
    (dump / "cooking.stackexchange_0000000001.txt").write_text(QUESTION)
    write_yaml(
        folder / "mine.yaml",
        {"score": {"controls": ["random_weights"]}, "capture": {"chunk_windows": 750}},
    )
    return folder


def test_defaults_are_those_of_head_explain(place: Path) -> None:
    config = complete_config(merged(), place, place)
    assert {m: c["hub"] for m, c in config["models"].items()} == {"gpt2": "openai-community/gpt2"}
    assert [s["kind"] for s in config["sources"].values()] == ["wikitext", "stackexchange"]
    assert config["sources"]["wikitext"]["config"] == "wikitext-103-raw-v1"
    assert config["device"] == "auto"
    assert (config["sampling"]["windows"], config["sampling"]["window_len"]) == (1500, 192)
    assert config["capture"]["topk"] == 200
    assert config["explain"]["max_heads"] == 200
    assert "openai" in config["explain"]["explainers"]
    assert config["explain"]["openai"]["model"] == "gpt-4o-mini"
    assert config["clusters"]["embedding_model"] == "all-MiniLM-L6-v2"
    assert config["clusters"]["min_cluster_size"] == 5


def test_other_sizes_are_one_line_away(place: Path) -> None:
    text = GPT2.read_text()
    lines = re.findall(r"^  (?:# )?(gpt2[\w-]*: \{hub.*)$", text, flags=re.MULTILINE)
    sizes = {name: entry for line in lines for name, entry in yaml.safe_load(line).items()}
    assert list(sizes) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert len({entry["revision"] for entry in sizes.values()}) == 4
    # As in the file, the embedded models are left out by null.
    models = {**merged()["models"], **sizes}
    config = complete_config({**merged(), "models": models}, place, place)
    assert all(config["models"][n]["hub"] == f"openai-community/{n}" for n in sizes)


def test_default_run_is_planned(place: Path) -> None:
    planned = job_counts(place, "--configfile", "config/gpt2.yaml")
    expected = {"fetch_model": 1, "fetch_source": 1, "prepare_documents": 2, "sample_windows": 2}
    assert {rule: planned.get(rule) for rule in expected} == expected
    # Two sources, each with its random-weight control.
    assert planned["capture_heads"] == 4 and planned["ask_explainer"] == 2


def test_missing_texts_are_one_line(place: Path) -> None:
    folder = place / "data"
    cases = {"gone": "does not exist", "empty": "holds no .zip", ".": "stackexchange-dataset"}
    (folder / "empty").mkdir(exist_ok=True)
    for name, says in cases.items():
        settings = f"sources={{stackexchange: {{folder: data/{name}}}}}"
        command = ["-n", "--configfile", "config/gpt2.yaml", "--config", settings]
        output = snakemake(place, *command, check=False)
        (line,) = [x for x in output.splitlines() if "sources.stackexchange.folder: " in x]
        assert says in line and "leave the source out" in line
        assert "1 error" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("files", "says"), [(["*.raw"], "matches no file"), (["mine.yaml"], "is no WikiText file")]
)
def test_wrong_wikitext_files_are_one_line(files: list[str], says: str, place: Path) -> None:
    sources = dict.fromkeys(merged()["sources"]) | {"wiki": {"kind": "wikitext", "files": files}}
    with pytest.raises(ConfigError) as caught:
        complete_config({**merged(), "sources": sources}, place, place)
    (line,) = caught.value.errors
    assert line.startswith("sources.wiki.files: ") and says in line


def test_the_tools_own_folder_is_recognised(place: Path) -> None:
    out = place / "data" / "tool" / "out"
    out.mkdir(parents=True)
    (out / "cooking.zip").touch()
    settings = "sources={stackexchange: {folder: data/tool}}"
    command = ["-n", "--configfile", "config/gpt2.yaml", "--config", settings]
    output = snakemake(place, *command, check=False)
    assert re.search(r"did you mean \S*data/tool/out\?", output)


def test_commands_of_the_page_plan_what_it_says(place: Path) -> None:
    checked = [command for command in COMMANDS if any(part in command for part in PLANNED)]
    runs = dry_runs(place, [["-n", "--quiet=rules", *arguments(command)] for command in checked])
    for command, (status, output) in zip(checked, runs, strict=True):
        assert status == 0, f"{command}\n{output}"
        planned = counts_in(output)
        for part, expected in PLANNED.items():
            if part in command:
                assert {rule: planned.get(rule, 0) for rule in expected} == expected, command


def test_page_has_the_commands_that_are_checked() -> None:
    assert len(COMMANDS) > 10
    assert all(any(part in command for command in COMMANDS) for part in PLANNED)


def test_what_merging_does_not_do_is_as_the_page_says(place: Path) -> None:
    base = ["-n", "--configfile", "config/gpt2.yaml"]
    output = snakemake(place, *base, "--config", "sampling.windows=300", check=False)
    assert "Config entry must start with a valid identifier" in output
    output = snakemake(place, *base, "--config", "windows=300", check=False)
    assert "windows: unknown key" in output
    twice = ["--config", "sources={stackexchange: null}", "--config", "seed=1"]
    assert job_counts(place, "--configfile", "config/gpt2.yaml", *twice)["prepare_documents"] == 2
    last = ["--configfile", "config/gpt2.yaml", "--configfile", "mine.yaml"]
    assert "fetch_model" not in job_counts(place, *last)


def test_own_copies_stand_in_for_downloads(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(place / "data", folder / "data")
    downloads = folder / "resources" / "downloads"
    shutil.copytree(place / "resources" / "models" / "demo-2l", downloads / "models" / "gpt2")
    (downloads / "sources").mkdir()
    (downloads / "sources" / "wikitext.parquet").write_bytes(b"PAR1")
    command = ["--configfile", str(GPT2), "--directory", str(folder)]
    planned = job_counts(place, *command)
    assert planned["prepare_documents"] == 2
    assert not planned.keys() & {"fetch_model", "fetch_source"}


# --- a run to the end -----------------------------------------------------------------------------


def tiny_gpt2(folder: Path) -> None:
    """A random GPT-2 in the layout of the hub, with the tokenizer of the embedded models."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2048, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "resources" / "models" / "demo-2l" / name, folder)


def as_wikitext(text: str) -> list[str]:
    """Lines of WikiText that say what a generated article says."""
    lines = []
    for line in text.split("\n"):
        heading = re.fullmatch(r"(=+) (.+?) \1", line)
        if heading:
            marks = " ".join(heading[1])
            lines += ["", f" {marks} {heading[2]} {marks} \n", ""]
        elif line.strip():
            lines.append(" " + re.sub(r'([,.:"()])', r" \1 ", line) + " \n")
    return [*lines, ""]


def write_texts(folder: Path) -> None:
    """A Parquet file as the hub has it, and a zip as stackexchange-dataset writes it."""
    rows = [line for d in generate_documents("wiki", 60, 1) for line in as_wikitext(d.text)]
    path = folder / "resources" / "downloads" / "sources" / "wikitext.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"text": rows}).to_parquet(path)
    dump = folder / "data" / "stackexchange"
    dump.mkdir(parents=True)
    with zipfile.ZipFile(dump / "cooking.stackexchange.zip", "w") as archive:
        for number, document in enumerate(generate_documents("qa", 60, 2)):
            archive.writestr(f"cooking.stackexchange_{number:0>10}.txt", document.text)


@pytest.mark.slow
def test_small_run_to_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_texts(folder)
    tiny_gpt2(folder / "resources" / "downloads" / "models" / "gpt2")
    small = {
        "sampling": {"windows": 60, "window_len": 48, "pattern_windows": 6},
        "capture": {"topk": 30},
        "explain": {
            "explainers": ["programs"],
            "max_heads": 5,
            "programs": {"steps": 4, "rule_windows": 2},
        },
        "score": {
            "bootstrap": 20,
            "min_events": 5,
            "causal_windows": 3,
            "random_orders": 1,
            "controls": ["swapped"],
        },
    }
    write_yaml(folder / "small.yaml", small)
    command = ["-s", str(REPOSITORY / "Snakefile"), "--configfile", str(GPT2), "small.yaml"]
    snakemake(folder, *command, "--cores", "2", timeout=900)
    for source in ("wikitext", "stackexchange"):
        heads = folder / "results" / "gpt2" / source / "heads"
        stats = pd.read_parquet(heads / "head_stats.parquet")
        total = stats.groupby(["layer", "head"])["write_norm"].sum().nlargest(5)
        lines = [json.loads(line) for line in (heads / "explanations.jsonl").open()]
        assert {(r["layer"], r["head"]) for r in lines} == set(total.index)
        assert (heads / "report.md").exists() and (heads / "summary.csv").exists()
    documents = pd.read_parquet(folder / "results" / "sources" / "wikitext" / "documents.parquet")
    titles = [d.text.split("\n")[0].strip("= ") for d in generate_documents("wiki", 60, 1)]
    assert list(documents["doc"]) == [f"{title}#{i}" for i, title in enumerate(titles)]
    assert (folder / "results" / "manifest.sha256").exists()
    assert "Nothing to be done" in snakemake(folder, *command, "--cores", "2")
