"""What is planned: jobs for each option, and what a change makes run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from llm_server import LlmServer

from conftest import copy_workflow, job_counts, snakemake, write_yaml

OF_TASKS = ("prepare_prompts", "measure_components", "prune_nodes", "trace_edges")
TOGETHER = {"tabulate_heads", "render_atlas"}
FROM_SCORES = {"report_heads", "render_heads", "render_index", "write_manifest", "all"} | TOGETHER

DICTIONARY = ("train_sae", "evaluate_sae", "draw_frontier")
FROM_LATENTS = ("score_latents", "report_latents", "render_latents")
TRANSCODER = {
    **{"train_clt": 1, "evaluate_clt": 1, "describe_clt": 1, "render_transcoder": 1},
    **{"attribution_graph": 3, "trace_prompts": 1},
}
LATENTS = ("capture_latents", "merge_latents", "explain_latents", "measure_latents", *FROM_LATENTS)


def jobs(
    models: int,
    places: int,
    chunks: int,
    *,
    sources: int = 2,
    control: bool = True,
    dictionaries: int = 1,
    tasks: int | None = None,
) -> dict[str, int]:
    """Return how many jobs the default target must have; places are models with one of their sources."""
    # demo-4l has all four tasks, demo-2l one.
    tasks = {1: 4, 2: 5}[models] if tasks is None else tasks
    captured = places * (2 if control else 1)
    both = ("merge_events", "explain_heads", "score_heads")
    trained = (
        *("sample_windows", "replace_heads", "summarise_scores", "cluster_explanations"),
        *("report_heads", "render_heads"),
    )
    return {
        "prepare_documents": sources,
        "capture_heads": captured * chunks,
        **dict.fromkeys(both, captured),
        **dict.fromkeys(trained, places),
        **dict.fromkeys((*DICTIONARY, *LATENTS) if dictionaries else (), 1),
        **({"capture_latents": chunks} if dictionaries else {}),
        **(TRANSCODER if dictionaries else {}),
        **dict.fromkeys(OF_TASKS, tasks),
        **dict.fromkeys(("compare_circuits", "render_circuits", "tabulate_heads"), models),
        **{"render_atlas": 1, "render_index": 1, "write_manifest": 1, "all": 1},
    }


OPTIONS = {
    "default": ([], jobs(2, 3, 1)),
    "three chunks": (["capture={chunk_windows: 200}", "sampling={windows: 600}"], jobs(2, 3, 3)),
    "no random-weight control": (["score={controls: [swapped]}"], jobs(2, 3, 1, control=False)),
    "one model": (["models={demo-2l: null}"], jobs(1, 2, 1)),
    "all sources": (["models={demo-2l: {sources: null}}"], jobs(2, 4, 1)),
    "its source is left out": (
        ["sources={synthetic-wiki: null}", "transcoders={clt: null}", "dictionaries={resid: null}"],
        jobs(2, 2, 1, sources=1, dictionaries=0),
    ),
    "a language model explains too": (
        ["explain={explainers: [programs, openai]}"],
        jobs(2, 3, 1) | {"ask_explainer": 3, "ask_latents": 1},
    ),
    "a language model alone explains": (
        ["explain={explainers: [openai]}"],
        {
            rule: count
            for rule, count in (
                jobs(2, 3, 1, control=False) | {"ask_explainer": 3, "ask_latents": 1}
            ).items()
            if rule not in ("explain_heads", "explain_latents")
        },
    ),
    "model from the hub": (
        [f"models={{hub: {{hub: a/b, revision: {'0' * 40}}}, demo-2l: null, demo-4l: null}}"],
        jobs(1, 2, 1, dictionaries=0, tasks=1) | {"fetch_model": 1},
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_job_counts(option: str, workflow: Path) -> None:
    settings, expected = OPTIONS[option]
    arguments = ["--config", *settings] if settings else []
    assert job_counts(workflow, *arguments) == expected


def test_catalog_entry_plans_the_same(workflow: Path) -> None:
    assert job_counts(workflow, "-s", "workflow/Snakefile") == jobs(2, 3, 1)


def test_named_targets(workflow: Path) -> None:
    listed = snakemake(workflow, "--list-target-rules")
    for target in ("heads", "circuits", "report_all", "figures", "all", "verify"):
        assert f"\n{target} (" in f"\n{listed}"
    planned = job_counts(workflow, "heads")
    assert planned["report_heads"] == 3 and not planned.keys() & {"render_heads", "write_manifest"}
    assert job_counts(workflow, "verify") == {"verify": 1}


@pytest.mark.parametrize("target", ["verify", "forecast", "forecast_resources", "doctor"])
def test_what_checks_or_prints_does_so_every_time(finished: Path, target: str) -> None:
    for _ in range(2):
        snakemake(finished, target, "--cores", "1")
        assert job_counts(finished, target) == {target: 1}


@pytest.mark.parametrize(("given", "kept"), [([], False), (["50/1s"], True)])
def test_scheduler_wakes_for_jobs_alone(given: list[str], kept: bool, finished: Path) -> None:
    """Snakemake's default limit of starts is lifted, which wakes it every second; a user's own limit stays."""
    (finished / "asking.smk").write_text(
        'include: "Snakefile"\n\n\nonsuccess:\n'
        '    print("limited:", workflow.scheduler.job_rate_limiter is not None)\n'
    )
    option = ["--max-jobs-per-timespan", *given] if given else []
    output = snakemake(finished, "-s", "asking.smk", "verify", "--cores", "1", *option)
    assert f"limited: {kept}" in output


@pytest.mark.parametrize(
    "form", (["--workflow-profile", "profiles/slrum"], ["--workflow-profile=x"])
)
def test_a_misspelt_workflow_profile_is_refused(workflow: Path, form: list[str]) -> None:
    output = snakemake(workflow, "-n", *form, check=False)
    assert "there is no such profile" in output and "Traceback" not in output


def test_workflow_as_a_module_of_another(workflow: Path, tmp_path: Path) -> None:
    place = tmp_path / "my project"
    (place / "config").mkdir(parents=True)
    config = yaml.safe_load((workflow / "config" / "config.yaml").read_text())
    config["models"].pop("demo-4l")
    for section in ("dictionaries", "transcoders", "graphs", "graph_sets", "sweeps"):
        config.pop(section)
    for task in ("ioi", "months", "induction"):
        config["tasks"].pop(task)
    write_yaml(place / "config" / "config.yaml", config)
    (place / "Snakefile").write_text(
        'configfile: "config/config.yaml"\n'
        "module mechatlas:\n"
        f'    snakefile: "{workflow}/workflow/Snakefile"\n'
        "    config: config\n"
        "use rule * from mechatlas as mechatlas_*\n"
        "rule everything:\n"
        "    input: rules.mechatlas_all.input\n"
        "    default_target: True\n"
    )
    expected = {
        f"mechatlas_{name}": count
        for name, count in jobs(1, 1, 1, sources=1, dictionaries=0, tasks=1).items()
    }
    expected.pop("mechatlas_all")
    assert job_counts(place) == expected | {"everything": 1}


def test_another_working_directory_needs_no_config(workflow: Path, tmp_path: Path) -> None:
    assert job_counts(workflow, "--directory", str(tmp_path / "a b")) == jobs(2, 3, 1)


# --- a finished run: what a change makes run again -----------------------------------------------


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """Replace text in a file for a while."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(text)


def rerun(folder: Path, *settings: str) -> set[str]:
    return set(job_counts(folder, *(["--config", *settings] if settings else [])))


def test_finished_run_has_nothing_to_do(finished: Path) -> None:
    assert rerun(finished) == set()


def test_every_result_is_in_the_manifests_input(finished: Path) -> None:
    kept = {"benchmarks", "manifest.sha256"}
    made = {
        p.relative_to(finished).as_posix()
        for p in (finished / "results").rglob("*")
        if p.is_file()
        and p.relative_to(finished / "results").parts[0] not in kept
        and not p.name.startswith(".")
    }
    listed = (finished / "results" / "listed.txt").read_text().splitlines()
    covered = {m for m in made if any(m == f or m.startswith(f"{f}/") for f in listed)}
    assert made - covered == {"results/listed.txt"}


AFTER_COMPARISON = {"compare_circuits", "render_circuits", "render_index", "write_manifest", "all"}
AFTER_CIRCUITS = AFTER_COMPARISON | TOGETHER
# The page of a transcoder maps the texts of all prompts.
FROM_PROMPTS = {"describe_clt", "render_transcoder"}
CHANGES = {
    "threshold of pruning": (
        ["circuits={nodes: {threshold: 30}}"],
        AFTER_CIRCUITS | {"prune_nodes"},
    ),
    "metric of edges": (["circuits={edges: {metric: kl}}"], AFTER_CIRCUITS | {"trace_edges"}),
    "patched points": (
        ["circuits={patching: {points: [z]}}"],
        {"measure_components", "render_circuits", "render_index", "write_manifest", "all"}
        | TOGETHER,
    ),
    "generated tokens": (["circuits={generation: {tokens: 2}}"], AFTER_COMPARISON),
    "prompts of one task": (
        ["tasks={months: {prompts: 8}}"],
        AFTER_CIRCUITS | set(OF_TASKS) | FROM_PROMPTS,
    ),
    "cluster size": (["clusters={min_cluster_size: 9}"], FROM_SCORES | {"cluster_explanations"}),
    "topk": (
        ["capture={topk: 100}"],
        FROM_SCORES | {"merge_events", "score_heads", "summarise_scores"},
    ),
    "bootstrap": (
        ["score={bootstrap: 500}"],
        FROM_SCORES
        | {"summarise_scores", "evaluate_sae", "draw_frontier", *FROM_LATENTS}
        | {"evaluate_clt", "attribution_graph", "trace_prompts"}
        | {"describe_clt", "render_transcoder"},
    ),
    "programs": (
        ["explain={programs: {max_parts: 2}}"],
        FROM_SCORES
        | {"explain_heads", "cluster_explanations", "score_heads", "replace_heads"}
        | {"summarise_scores"},
    ),
    "replacement": (
        ["score={random_orders: 7}"],
        FROM_SCORES | {"replace_heads", "summarise_scores"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_config_change_reruns_exactly_its_rules(change: str, finished: Path) -> None:
    settings, expected = CHANGES[change]
    assert rerun(finished, *settings) == expected


def test_another_task_leaves_those_there_alone(finished: Path) -> None:
    planned = job_counts(finished, "--config", "tasks={days: {kind: sequence, sequence: days}}")
    assert {rule: planned[rule] for rule in OF_TASKS} == dict.fromkeys(OF_TASKS, 1)
    assert planned.keys() - set(OF_TASKS) == AFTER_CIRCUITS | FROM_PROMPTS


# --- a language model as explainer ----------------------------------------------------------------

ASKED = "results/demo-4l/synthetic-wiki/heads/explanations/openai.jsonl"
OPENAI = {"model": "scripted", "provider": "test", "api_key_env": None}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with stubs for scripts, run until a language model has explained one model on one source."""
    folder = copy_workflow(tmp_path_factory.mktemp("asked") / "w", stubs=True)
    with LlmServer() as server:
        write_asked(folder, base_url=server.base_url)
        snakemake(
            *(folder, ASKED, "--configfile", "asked.yaml", "--cores", "2", "--resources", "gpu=1")
        )
    return folder


def write_asked(
    folder: Path, llm: dict | None = None, judge: dict | None = None, **openai: object
) -> None:
    explain = {"explainers": ["programs", "openai"], "openai": {**OPENAI, **openai}}
    write_yaml(folder / "asked.yaml", {"explain": explain, "llm": llm or {}, "judge": judge or {}})


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"base_url": "http://elsewhere/v1", "api_key_env": "OTHER_KEY"}, False),
        ({"llm": {"concurrency": 3, "timeout": 9, "budget": {"money": 1}, "mode": "replay"}}, False),
        ({"llm": {"prices": {"scripted": {"input": 1, "output": 1}}}}, False),
        ({"judge": {"scorers": ["fuzzing"], "temperature": 1.0}}, False),
        ({"model": "another"}, True),
        ({"provider": "another"}, True),
        ({"temperature": 0.5}, True),
        ({"examples": 4}, True),
        ({"candidates": 2, "temperature": 0.5}, True),
    ],
)  # fmt: skip
def test_only_what_changes_an_answer_is_asked_again(change: dict, again: bool, asked: Path) -> None:
    write_asked(asked, **change)
    planned = job_counts(asked, ASKED, "--configfile", "asked.yaml")
    assert planned == ({"ask_explainer": 1} if again else {})


def test_atlas_and_cross_table_take_in_what_a_judge_says(finished: Path) -> None:
    """With a judge they wait for its scores of heads and latents; only what shows these is made again."""
    judge = "judge={scorers: [detection], api_key_env: null, provider: test}"
    planned = job_counts(finished, "results/report/atlas", "--config", judge)
    of_judge = ("select_items", "judge_heads", "summarise_judgements")
    of_latents = ("select_latent_items", "judge_latents", "summarise_latent_judgements")
    shown = ("report_heads", "report_latents", *TOGETHER)
    assert planned == dict.fromkeys((*of_judge, *of_latents, *shown), 1)


def test_gpu_limit_threads_and_profile_rerun_nothing(finished: Path) -> None:
    assert job_counts(finished, "--resources", "gpu=0", "--cores", "1") == {}


def test_cosmetic_change_of_the_library_reruns_nothing(finished: Path) -> None:
    module = finished / "workflow/scripts/mechatlas/io/seeds.py"
    with edited(module, '"""One function', '"""The only function'):
        assert rerun(finished) == set()
    with edited(module, "import hashlib", "# a comment\nimport hashlib"):
        assert rerun(finished) == set()


def test_code_change_reruns_the_rules_that_import_it(finished: Path) -> None:
    package = finished / "workflow/scripts/mechatlas"
    with edited(package / "score/summary.py", '"""', 'VALUE = 1\n"""'):
        assert rerun(finished) == FROM_SCORES | {"summarise_scores"}
    with edited(package / "models/weights.py", '"""', 'VALUE = 1\n"""'):
        assert "capture_heads" in (found := rerun(finished))
    assert not found & {"prepare_documents", "sample_windows"}


def test_new_weights_rerun_the_model_but_not_the_text(finished: Path) -> None:
    weights = finished / "resources/models/demo-4l/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        planned = job_counts(finished)
    finally:
        weights.write_bytes(before)
    # The random-weight control keeps its captures: it has none of these weights.
    assert planned["capture_heads"] == 1
    assert not planned.keys() & {"prepare_documents", "sample_windows"}


@pytest.mark.slow
def test_failed_job_shows_its_log_and_the_way_on(finished: Path, tmp_path: Path) -> None:
    script = finished / "workflow/scripts/report_heads.py"
    place = tmp_path / "elsewhere"
    broken = (
        "from mechatlas.io import UserError\n"
        "from mechatlas.job import job\n"
        "with job(snakemake):\n"
        '    raise UserError("scores: none; make some")\n'
    )
    with edited(script, script.read_text(), broken):
        output = snakemake(
            *(finished, "--cores", "2", "--resources", "gpu=1", "--directory", str(place)),
            check=False,
        )
    assert "error: scores: none; make some" in output
    assert "snakemake --unlock" in output
    assert "Traceback" not in output
    assert not list(place.glob("results/*/*/heads/report.md"))


@pytest.mark.slow
def test_killed_run_goes_on_as_the_readme_says(finished: Path, tmp_path: Path) -> None:
    script = finished / "workflow/scripts/merge_events.py"
    place = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1"),
        *("--directory", str(place)),
    ]
    slow = "from pathlib import Path\nimport time\nPath('started').touch()\ntime.sleep(60)\n"
    with edited(script, script.read_text(), slow + script.read_text()):
        run = subprocess.Popen(
            command, cwd=finished, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while not (place / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert (place / "started").exists()
    refused = snakemake(finished, *command[3:], check=False)
    assert "--unlock" in refused
    snakemake(finished, "--unlock", "--directory", str(place))
    snakemake(finished, *command[3:])
    assert (place / "results/manifest.sha256").exists()


def test_report_of_the_engine_is_complete(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    snakemake(finished, "--report", str(page))
    text = page.read_text()
    assert "Attention heads" in text and "demo-4l" in text


def test_report_of_the_engine_shows_figures_with_their_captions(
    finished: Path, tmp_path: Path
) -> None:
    snakemake(finished, "figures", "--cores", "2", "--resources", "gpu=1")
    folder = finished / "results/figures/demo-4l/synthetic-wiki/heads"
    (folder / "heads_map.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "heads_map.csv").write_text("unit,value\nL0.H1,0.5\n")
    words = "IoU of 7 heads_and *others*, no unit."
    (folder / "captions.json").write_text(json.dumps({"heads_map": words}))
    page = tmp_path / "report.html"
    # The folder is newer now; the report is about what is there.
    snakemake(finished, "figures", "--report", str(page), "--rerun-triggers", "params")
    text = page.read_text()
    assert f"<p>{words}</p>" in text and "heads_map.svg" in text and "heads_map.csv" in text
    assert "Figures" in text and "draw_heads" in text
