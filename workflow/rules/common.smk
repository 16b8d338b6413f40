# Helpers of the rules: configuration, names, paths, resources. Light on purpose: this is parsed in every job.
import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace as Names
from urllib.parse import urlsplit

from snakemake.exceptions import WorkflowError

REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow" / "scripts"))

from mechatlas.cluster import missing_profile, reasons
from mechatlas.config import RANDOM_SUFFIX, ConfigError, complete_config, sources_of
from mechatlas.config_files import dictionary_paths, find_path, model_files, source_files
from mechatlas.config_spread import (
    DOWNLOADS,
    edge_batches,
    half_batches,
    head_batches,
    latent_batches,
)
from mechatlas.corpus.stackexchange import dump_files
from mechatlas.costs.shapes import shape_of
from mechatlas.dictionaries.published import LAYERS as OPENAI_LAYERS
from mechatlas.dictionaries.published import SITES as OPENAI_SITES
from mechatlas.io.atomic import clean_temporaries
from mechatlas.io.closure import closure_digest, code_digest
from mechatlas.io.errors import UserError
from mechatlas.machine import gpu_present
from mechatlas.spread import batch_names

if (named := missing_profile(sys.argv)) is not None:
    raise WorkflowError(
        f"--workflow-profile {named}: there is no such profile, and Snakemake would run without it; "
        "name a folder that holds a profile.yaml, such as profiles/slurm"
    )

try:
    complete = complete_config(config, Path.cwd(), REPOSITORY)
except ConfigError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(complete)

MODELS = list(config["models"])
SOURCES = list(config["sources"])
# Every model with every source that it is analysed on.
PLACES = [(model, source) for model in MODELS for source in sources_of(config, model)]
EXPLAINERS = config["explain"]["explainers"]
# A language model is never paid for explaining random weights or shuffled rows.
RANDOM_CONTROL = "random_weights" in config["score"]["controls"] and "programs" in EXPLAINERS
CHUNKS = [
    f"{i:04d}"
    for i in range(math.ceil(config["sampling"]["windows"] / config["capture"]["chunk_windows"]))
]
# Random-weight controls go as far as scores; everything after that is about trained models.
TRAINED = "|".join(map(re.escape, MODELS))
EVERY_MODEL = rf"(?:{TRAINED})(?:{re.escape(RANDOM_SUFFIX)})?"


wildcard_constraints:
    source="|".join(map(re.escape, SOURCES)),
    chunk=r"[0-9]+",
    batch=r"[0-9]+",


def lib_digest(*areas):
    """Digest of named areas of the library, such as "corpus" or "models/training.py"."""
    return code_digest("io/seeds.py", *areas)


def script_digest(script, *notebooks):
    """Digest of the part of the library that a script and its notebooks import, directly or not."""
    roots = [REPOSITORY / "workflow" / "scripts" / f"{script}.py"]
    roots += [REPOSITORY / "workflow" / "notebooks" / f"{name}.ipynb" for name in notebooks]
    return closure_digest(*roots)


def shown(path):
    """A path relative to the working directory where it lies inside, else absolute."""
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def repository_file(path):
    return shown(REPOSITORY / path)


def base_model(wildcards):
    """The trained model of a name, which may be that of its random-weight control."""
    return wildcards.model.removesuffix(RANDOM_SUFFIX)


def model_config(wildcards):
    return config["models"][base_model(wildcards)]


def model_folder(wildcards):
    model = model_config(wildcards)
    if "path" in model:
        return shown(find_path(model["path"], Path.cwd(), REPOSITORY))
    return f"{DOWNLOADS}/{base_model(wildcards)}"


def model_inputs(wildcards):
    """The files of a local model, or the folder that a download will make."""
    if "path" not in model_config(wildcards):
        return [model_folder(wildcards)]
    files = model_files(Path(model_folder(wildcards)))
    if wildcards.model.endswith(RANDOM_SUFFIX):
        files = [path for path in files if path.suffix != ".safetensors"]
    return [shown(path) for path in files]


def tokenizer_inputs(wildcards):
    return [path for path in model_inputs(wildcards) if not path.endswith(".safetensors")]


def model_init(wildcards):
    return "random" if wildcards.model.endswith(RANDOM_SUFFIX) else "trained"


def windows_of(wildcards):
    """The windows of a trained model, which its control shares."""
    return f"results/{base_model(wildcards)}/{wildcards.source}/windows.parquet"


def chunks_of(wildcards):
    return [f"results/{wildcards.model}/{wildcards.source}/capture/{chunk}" for chunk in CHUNKS]


def trained_chunks_of(wildcards):
    """The chunks of the trained model, whose statistics choose the heads: its control explains the same ones."""
    model = base_model(wildcards)
    return [f"results/{model}/{wildcards.source}/capture/{chunk}" for chunk in CHUNKS]


def head_stats_of(wildcards):
    """The merged statistics of a trained model's heads."""
    return f"results/{base_model(wildcards)}/{wildcards.source}/heads/head_stats.parquet"


def explanations_of(wildcards):
    """The explanations of all explainers of a model, one file each."""
    random = model_init(wildcards) == "random"
    names = [name for name in EXPLAINERS if name == "programs" or not random]
    folder = f"results/{wildcards.model}/{wildcards.source}/heads/explanations"
    return [f"{folder}/{name}.jsonl" for name in names]


def language_model(settings):
    """Param: a section about a language model without what only says where and with which key it is reached."""
    kept = {key: value for key, value in settings.items() if key not in ("base_url", "api_key_env")}
    return kept | {"provider": settings["provider"] or urlsplit(settings["base_url"]).hostname}


def reached_at(settings):
    """Param: what `language_model` leaves out; it may change without a question being asked again."""
    return not_compared({key: settings[key] for key in ("base_url", "api_key_env")})


def explainer_judge():
    """The judge by which candidates and revisions are compared, if there is anything to compare and a judge."""
    explainer = config["explain"]["openai"]
    compares = explainer["candidates"] > 1 or explainer["revise"]
    return config["judge"] if compares and config["judge"]["scorers"] else None


def not_compared(value):
    """Param whose change makes nothing run again: Snakemake does not compare what a function makes of the threads."""
    return lambda wildcards, threads: value


def control_of(name):
    """Input function: the same file of the random-weight control, if that control is wanted."""

    def files(wildcards):
        folder = f"results/{wildcards.model}{RANDOM_SUFFIX}/{wildcards.source}/heads"
        return [f"{folder}/{name}"] if RANDOM_CONTROL else []

    return files


def controls_among(*kinds):
    """Param: the configured controls of these kinds that a model needs; a control model is not controlled itself."""

    def controls(wildcards):
        if model_init(wildcards) == "random":
            return []
        return [kind for kind in config["score"]["controls"] if kind in kinds]

    return controls


def source_inputs(wildcards):
    """The files of a source: those that its entry names, or what a download will make."""
    source = config["sources"][wildcards.source]
    if source["kind"] == "stackexchange":
        folder = find_path(source["folder"], Path.cwd(), REPOSITORY)
        return [shown(path) for path in dump_files(folder)]
    if source["kind"] == "wikitext" and not source["files"]:
        return [f"resources/downloads/sources/{wildcards.source}.parquet"]
    return [shown(path) for path in source_files(source.get("files", []), Path.cwd(), REPOSITORY)]


def source_settings(wildcards):
    """Param: a source's entry without what says where its files are."""
    source = config["sources"][wildcards.source]
    return {key: value for key, value in source.items() if key not in ("files", "folder")}


def for_each(*patterns, places=PLACES, **wildcards):
    """Expand file patterns over every model and source, and over further wildcards."""
    return [
        path
        for model, source in places
        for path in expand(list(patterns), model=model, source=source, **wildcards)
    ]


def every_result():
    """Every result file and folder, for all models, their random-weight controls and all sources."""
    controls = [(m + RANDOM_SUFFIX, s) for m, s in PLACES] if RANDOM_CONTROL else []
    captured = (
        "raw_events.parquet",
        "head_stats.parquet",
        "document_scores.parquet",
        "event_scores.parquet",
    )
    judged = (
        *("head_losses.parquet", "replacement_losses.parquet", "scores.parquet"),
        *("replacement.parquet", "clusters.json"),
        *("report.md", "summary.csv", "headline.json", "explanations.jsonl"),
        *(f"explanations/{name}.jsonl" for name in EXPLAINERS),
    )
    if config["judge"]["scorers"]:
        judged += ("judge_scores.parquet",)
        judged += tuple(f"judge/{name}.parquet" for name in ("items", "judgements", "judge_usage"))
    heads = "results/{model}/{source}/heads/{file}"
    both = PLACES + controls
    return [
        *(f"results/sources/{source}/documents.parquet" for source in {s: m for m, s in PLACES}),
        *for_each("results/{model}/{source}/windows.parquet"),
        *for_each("results/{model}/{source}/capture/{chunk}", places=both, chunk=CHUNKS),
        *for_each(heads, places=both, file=captured),
        *for_each(heads, places=controls, file="explanations/programs.jsonl"),
        *for_each(heads, file=judged),
        *for_each("results/report/{model}/{source}/heads.html"),
        *for_each("results/report/{model}/{source}/heads.ipynb"),
        *prompt_files(),
        *dictionary_results(),
        *latent_results(),
        *circuit_files(),
        *circuit_pages(),
        *transcoder_results(),
        *tables_of_heads(),
        "results/report/atlas",
        "results/report/index.html",
    ]


# The rest by subject; a file may use what the files before it define.
include: "helpers/tasks.smk"
include: "helpers/dictionaries.smk"
include: "helpers/circuits.smk"
include: "helpers/transcoders.smk"
include: "helpers/judge.smk"
include: "helpers/latents.smk"
include: "helpers/figures.smk"
include: "helpers/atlas.smk"
include: "helpers/forecast.smk"
include: "helpers/resources.smk"
include: "helpers/spread.smk"
include: "helpers/messages.smk"
