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

from mechatlas.cluster import missing_profile
from mechatlas.config import RANDOM_SUFFIX, ConfigError, complete_config
from mechatlas.config_files import dictionary_paths, find_path, model_files, source_files
from mechatlas.corpus.stackexchange import dump_files
from mechatlas.dictionaries.published import LAYERS as OPENAI_LAYERS
from mechatlas.dictionaries.published import SITES as OPENAI_SITES
from mechatlas.io.atomic import clean_temporaries
from mechatlas.io.closure import closure_digest
from mechatlas.io.digest import code_digest
from mechatlas.io.errors import UserError
from mechatlas.machine import gpu_present

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
    return f"resources/downloads/models/{base_model(wildcards)}"


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


def for_each(*patterns):
    """Expand file patterns over every model and source."""
    return expand(list(patterns), model=MODELS, source=SOURCES)


def every_result():
    """Every result file and folder, for all models, their random-weight controls and all sources."""
    controls = [name + RANDOM_SUFFIX for name in MODELS] if RANDOM_CONTROL else []
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
    both = MODELS + controls
    return [
        *expand("results/sources/{source}/documents.parquet", source=SOURCES),
        *for_each("results/{model}/{source}/windows.parquet"),
        *expand(
            "results/{model}/{source}/capture/{chunk}", model=both, source=SOURCES, chunk=CHUNKS
        ),
        *expand(heads, model=both, source=SOURCES, file=captured),
        *expand(heads, model=controls, source=SOURCES, file="explanations/programs.jsonl"),
        *expand(heads, model=MODELS, source=SOURCES, file=judged),
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


# For tasks.

TASKS = list(config["tasks"])


def tasks_of(model):
    """The tasks that are for a model."""
    return [name for name in TASKS if model in (config["tasks"][name]["models"] or MODELS)]


def task_settings(wildcards):
    """The config entry of a task, with the file of a task of the user's own as it is found."""
    settings = {k: v for k, v in config["tasks"][wildcards.task].items() if k != "models"}
    if "file" in settings:
        settings["file"] = task_files(wildcards)[0]
    return settings


def task_files(wildcards):
    """The Python file of a task of the user's own, none for built-in ones."""
    settings = config["tasks"][wildcards.task]
    if "file" not in settings:
        return []
    return [shown(find_path(settings["file"], Path.cwd(), REPOSITORY))]


def for_tasks(*files):
    """These files of every model and each of its tasks."""
    folders = [f"results/{model}/tasks/{task}" for model in MODELS for task in tasks_of(model)]
    return [f"{folder}/{file}" for folder in folders for file in files]


def prompt_files():
    """The prompts of every task, with their audits."""
    return for_tasks("prompts.jsonl", "audit.json")


# For dictionaries.

DICTIONARIES = list(config["dictionaries"])
TRAINED_HERE = [n for n in DICTIONARIES if config["dictionaries"][n]["kind"] == "trained"]
FOREIGN = [name for name in DICTIONARIES if name not in TRAINED_HERE]
# Dictionaries that are the features of a transcoder, and that transcoder.
OF_FEATURES = {
    name: entry["transcoder"]
    for name, entry in config["dictionaries"].items()
    if entry["kind"] == "transcoder"
}
NOTHING = r"(?!)"  # a pattern that matches no name
NOT_TRAINING = ("kind", "models", "sources", "layers", "reads", "writes", "checkpoint_every")


def entries_of(table, **wanted):
    """The entries of a config table that are for a model and a source, by name."""
    return [
        name
        for name, entry in config[table].items()
        if all(entry[key] is None or value in entry[key] for key, value in wanted.items())
    ]


def dictionaries_of(model, source):
    """The dictionaries that are for a model and a source, by name; none for a random-weight control."""
    if model not in MODELS:
        return []
    names = entries_of("dictionaries", models=model, sources=source)
    known = transcoders_of(model, source)
    return [name for name in names if name not in OF_FEATURES or OF_FEATURES[name] in known]


def dictionary_places():
    """Every (model, source, dictionary)."""
    return [
        (model, source, dictionary)
        for model in MODELS
        for source in SOURCES
        for dictionary in dictionaries_of(model, source)
    ]


def dictionary_results():
    """The files of all dictionaries, and the figures that compare them."""
    measured = [place for place in dictionary_places() if place[2] not in OF_FEATURES]
    folders = {f"results/{model}/{source}/dictionaries" for model, source, _ in measured}
    frontiers = expand(
        "{folder}/frontier.{end}", folder=sorted(folders), end=["parquet", "svg", "png"]
    )
    files = ["evaluation.parquet", "latents.parquet"]
    found = [
        f"results/{model}/{source}/dictionaries/{dictionary}/{file}"
        for model, source, dictionary in measured
        for file in files + ["training.parquet"] * (dictionary in TRAINED_HERE)
    ]
    weights = [f"results/{m}/{s}/dictionaries/{d}/weights" for m, s, d in dictionary_places()]
    return frontiers + found + weights


def dictionary_points(wildcards):
    """What a dictionary that is trained here reads and writes."""
    entry = config["dictionaries"][wildcards.dictionary]
    return entry["reads"], entry["writes"] or entry["reads"]


def captured_points(wildcards):
    """Param: hook points that are stored: the configured ones, and what dictionaries of this model and source need."""
    points = set(config["capture"]["activations"])
    # The dictionaries of random weights are read for a control only.
    trained = not wildcards.model.endswith(RANDOM_SUFFIX)
    for name in dictionaries_of(base_model(wildcards), wildcards.source):
        if trained or random_latents(Names(dictionary=name)):
            points.update(entry_points(config["dictionaries"][name]))
    for name in transcoders_of(wildcards.model, wildcards.source):
        points.update((config["transcoders"][name]["reads"], "mlp_out"))
    return sorted(points)


def entry_points(entry):
    """The hook points of an entry of the table of dictionaries."""
    if entry["kind"] == "openai":
        return [OPENAI_SITES[entry["site"]]]
    if entry["kind"] == "trained":
        return [entry["reads"], entry["writes"] or entry["reads"]]
    if entry["kind"] == "transcoder":
        return []  # captured for the transcoder
    return entry["points"]


def training_settings(wildcards):
    """Param: how a dictionary is trained."""
    entry = config["dictionaries"][wildcards.dictionary]
    return {key: value for key, value in entry.items() if key not in NOT_TRAINING}


def checkpoint_every(wildcards, threads):
    """Param that makes nothing run again (see `not_compared`)."""
    return config["dictionaries"][wildcards.dictionary]["checkpoint_every"]


def dictionary_digest(wildcards):
    """Param: the SHA-256 that a download must have, if the configuration says it."""
    digests = config["dictionaries"][wildcards.dictionary]["sha256"]
    return {str(layer): digest for layer, digest in digests.items()}.get(wildcards.layer)


def foreign_entries(wildcards):
    """Param: format and place of each layer of a dictionary that others made."""
    name = wildcards.dictionary
    entry = config["dictionaries"][name]
    if name in OF_FEATURES:
        return {"every": {"format": "transcoder", "path": clt_file(wildcards)}}
    if entry["kind"] == "openai":
        place = {"format": "openai", "version": entry["version"], "site": entry["site"]}
        folder = f"resources/downloads/dictionaries/{name}"
        layers = OPENAI_LAYERS if entry["layers"] is None else entry["layers"]
        return {layer: place | {"path": f"{folder}/{layer}.pt"} for layer in layers}
    paths = dictionary_paths(entry, Path.cwd(), REPOSITORY)
    # Transcoders are read by way of the config of their folder.
    whole = entry["format"] == "circuit-tracer"
    return {
        layer: {"format": entry["format"], "path": shown(path.parent if whole else path)}
        for layer, path in paths.items()
    }


def foreign_files(wildcards):
    """The files of a dictionary that others made; none for one that is trained here."""
    if wildcards.dictionary in TRAINED_HERE:
        return []
    entry = config["dictionaries"][wildcards.dictionary]
    if wildcards.dictionary in OF_FEATURES:
        return [clt_file(wildcards)]
    if entry["kind"] == "openai":
        return [place["path"] for place in foreign_entries(wildcards).values()]
    return [shown(path) for path in dictionary_paths(entry, Path.cwd(), REPOSITORY).values()]


def clt_file(wildcards):
    """The transcoder whose features a dictionary is."""
    name = OF_FEATURES[wildcards.dictionary]
    return f"results/{wildcards.model}/{wildcards.source}/transcoders/{name}/clt.safetensors"


def compared_dictionaries(wildcards):
    """Param: the dictionaries of a model and source that are evaluated as such."""
    names = dictionaries_of(wildcards.model, wildcards.source)
    return [name for name in names if name not in OF_FEATURES]


def evaluations_of(wildcards):
    """The evaluations of these dictionaries."""
    folder = f"results/{wildcards.model}/{wildcards.source}/dictionaries"
    return [f"{folder}/{name}/evaluation.parquet" for name in compared_dictionaries(wildcards)]


# For circuits.

PATCHING = tuple(
    f"patching/{x}" for x in ("effects.parquet", "pair_effects.parquet", "strongest.csv")
)
LENS_TABLES = (
    *("logit_lens", "transitions", "direct", "attention", "patterns", "positions"),
    *("qk", "qk_members", "ov", "ov_members", "matrices"),
)
LENSES = tuple(f"lens/{x}.parquet" for x in LENS_TABLES)
NODE_TABLES = ("effects", "pruning", "curve", "stability", "completeness", "minimality", "random")
NODES = tuple(f"nodes/{x}.parquet" for x in NODE_TABLES)
NODE_CIRCUITS = ("nodes/circuit.json", "nodes/least_harmful.json")
EDGES = tuple(f"edges/{x}.parquet" for x in ("effects", "curve", "agreement", "paths"))
EDGE_CIRCUITS = ("edges/circuit.json", "edges/acdc.json")
TASK_RESULTS = (
    *(*PATCHING, "roles/heads.parquet", *LENSES),
    *(*NODES, *NODE_CIRCUITS, *EDGES, *EDGE_CIRCUITS),
)
SHARED = ("overlap", "cross_task", "generation", "generation_random")


def with_tasks():
    """The models that have a task."""
    return [model for model in MODELS if tasks_of(model)]


def circuit_files():
    """Everything about circuits but the pages."""
    shared = expand("results/{model}/circuits/{file}.parquet", model=with_tasks(), file=SHARED)
    published = [f"results/{m}/circuits/published.parquet" for m in with_tasks() if m in PUBLISHED]
    return [*for_tasks(*TASK_RESULTS), *shared, *published]


def circuit_pages():
    """The page of each model that has a task, and its notebook."""
    return expand(
        "results/report/{model}/circuits.{kind}", model=with_tasks(), kind=["html", "ipynb"]
    )


def shown_files(wildcards):
    """Everything about the circuits of a model that its page shows."""
    name = wildcards.model
    shared = [f"results/{name}/circuits/{file}.parquet" for file in SHARED]
    return [path for file in TASK_RESULTS for path in of_tasks(file)(wildcards)] + shared


def of_tasks(file):
    """Input function: a file of each task of a model."""

    def files(wildcards):
        return [f"results/{wildcards.model}/tasks/{t}/{file}" for t in tasks_of(wildcards.model)]

    return files


def circuit_options():
    """Param: how intervals are made."""
    return {
        "confidence": config["circuits"]["confidence"],
        "bootstrap": config["circuits"]["bootstrap"],
        "seed": config["seed"],
    }


PUBLISHED = config["circuits"]["published"]


def published_inputs(wildcards):
    """The published numbers of a model."""
    return shown(find_path(PUBLISHED[wildcards.model]["file"], Path.cwd(), REPOSITORY))


def published_of(wildcards):
    """The comparison of a model with published numbers, if there are any."""
    name = wildcards.model
    return [f"results/{name}/circuits/published.parquet"] if name in PUBLISHED else []


def extra_circuits(wildcards):
    """The files of further circuits of a model."""
    return [shown(find_path(e["file"], Path.cwd(), REPOSITORY)) for e in _extra(wildcards).values()]


def extra_names(wildcards):
    """Param: the names of these circuits."""
    return list(_extra(wildcards))


def _extra(wildcards):
    entries = config["circuits"]["extra"]
    return {k: e for k, e in entries.items() if wildcards.model in (e["models"] or MODELS)}


def question_files():
    """The files with questions of the user's own."""
    files = config["circuits"]["generation"]["files"]
    return [shown(find_path(file, Path.cwd(), REPOSITORY)) for file in files]


# For transcoders and graphs.

TRANSCODERS = list(config["transcoders"])
GRAPHS = list(config["graphs"])
NOT_CLT_TRAINING = ("models", "sources", "checkpoint_every")
NOT_GRAPH = ("models", "transcoders", "task")
GRAPH_SETS = list(config["graph_sets"])
SET_TABLES = ("scores", "edges", "features", "generation")
DESCRIPTION = ("activations", "text_map", "correlations", "virtual_weights", "layer_weights")
SWEEPS = list(config["sweeps"])


def transcoders_of(model, source):
    """The transcoders that are for a model and a source, by name."""
    return entries_of("transcoders", models=model, sources=source)


def transcoder_places():
    """Every (model, source, transcoder)."""
    return [
        (model, source, transcoder)
        for model in MODELS
        for source in SOURCES
        for transcoder in transcoders_of(model, source)
    ]


def transcoder_pages():
    """The page of each of these."""
    return [f"results/report/{m}/{s}/transcoders/{t}.html" for m, s, t in transcoder_places()]


def transcoder_results():
    """The files of all transcoders and of their graphs."""
    tables = ("evaluation.parquet", "features.parquet", "examples.parquet", "training.parquet")
    of_graph = ("safetensors", "json", "html", "consistency.parquet", "summary.json")
    files = transcoder_pages()
    files += [path.removesuffix("html") + "ipynb" for path in files]
    for model, source, transcoder in transcoder_places():
        folder = f"results/{model}/{source}/transcoders/{transcoder}"
        graphs = traced("graphs", model, transcoder)
        sets = traced("graph_sets", model, transcoder)
        files += [f"{folder}/{name}" for name in ("clt.safetensors", *tables)]
        files += [f"{folder}/graphs/{name}.{end}" for name in graphs for end in of_graph]
        files += [f"{folder}/sets/{n}/{t}.parquet" for n in sets for t in SET_TABLES]
        files += [f"{folder}/description/{name}.parquet" for name in DESCRIPTION]
    return files


def graph_summaries(wildcards):
    """The summaries of all graphs of a transcoder."""
    folder = transcoder_folder(wildcards)
    names = traced("graphs", wildcards.model, wildcards.transcoder)
    return [f"{folder}/graphs/{name}.summary.json" for name in names]


def set_folders(wildcards):
    """Param: the folders of all sets of prompts of a transcoder."""
    folder = transcoder_folder(wildcards)
    names = traced("graph_sets", wildcards.model, wildcards.transcoder)
    return [f"{folder}/sets/{name}" for name in names]


def set_files(wildcards):
    """The tables of all sets of prompts of a transcoder."""
    return [f"{folder}/{t}.parquet" for folder in set_folders(wildcards) for t in SET_TABLES]


def transcoder_folder(wildcards):
    place = f"{wildcards.model}/{wildcards.source}/transcoders/{wildcards.transcoder}"
    return f"results/{place}"


def traced(section, model, transcoder):
    """The graphs, or sets of prompts, of a model's tasks that are traced with a transcoder."""
    names = entries_of(section, models=model, transcoders=transcoder)
    return [name for name in names if config[section][name]["task"] in tasks_of(model)]


def clt_settings(wildcards):
    """Param: how a transcoder is trained."""
    entry = config["transcoders"][wildcards.transcoder]
    return {key: value for key, value in entry.items() if key not in NOT_CLT_TRAINING}


def graph_prompts(wildcards):
    """The prompts of a graph's task."""
    return prompts_of(wildcards.model, config["graphs"][wildcards.graph]["task"])


def prompts_of(model, task):
    return f"results/{model}/tasks/{task}/prompts.jsonl"


def graph_settings(wildcards):
    """Param: which prompt, and how its graph is made."""
    entry = config["graphs"][wildcards.graph]
    return {key: value for key, value in entry.items() if key not in NOT_GRAPH}


def feature_explanations(wildcards):
    """Explanations of a transcoder's features, where a dictionary asks for them: one file for each such dictionary."""
    folder = f"results/{wildcards.model}/{wildcards.source}/latents"
    return [
        f"{folder}/{name}/explanations.jsonl"
        for name in dictionaries_of(wildcards.model, wildcards.source)
        if OF_FEATURES.get(name) == wildcards.transcoder
    ]


def set_prompts(wildcards):
    """The prompts of the task of a set."""
    return prompts_of(wildcards.model, config["graph_sets"][wildcards.graph_set]["task"])


def set_settings(wildcards):
    """Param: which prompts of a set, and what is made of them."""
    entry = config["graph_sets"][wildcards.graph_set]
    own = {key: value for key, value in entry.items() if key not in NOT_GRAPH}
    return own | {name: config["score"][name] for name in ("bootstrap", "confidence")}


def sweep_points(model, source, sweep):
    """The folders of all trainings of a sweep, by kind of decoder, value and seed."""
    entry = config["sweeps"][sweep]
    folder = f"results/{model}/{source}/sweeps/{sweep}"
    return [
        f"{folder}/{kind}/{value:g}/seed_{seed}"
        for kind in entry["decoders"]
        for value in entry["values"]
        for seed in entry["seeds"]
    ]


def sweep_evaluations(wildcards):
    places = sweep_points(wildcards.model, wildcards.source, wildcards.sweep)
    return [f"{place}/evaluation.parquet" for place in places]


def sweep_prompts(wildcards):
    """The prompts on which a sweep measures graphs, if it does."""
    task = config["sweeps"][wildcards.sweep]["task"]
    wanted = task in tasks_of(wildcards.model)
    return [prompts_of(wildcards.model, task)] if wanted else []


def sweep_settings(wildcards):
    """Param: how one transcoder of a sweep is trained."""
    entry = config["sweeps"][wildcards.sweep]
    base = config["transcoders"][entry["transcoder"]]
    settings = {key: value for key, value in base.items() if key not in NOT_CLT_TRAINING}
    value = float(wildcards.value)
    settings[entry["vary"]] = int(value) if entry["vary"] == "k" else value
    settings |= {key: entry[key] for key in ("features", "tokens") if entry[key] is not None}
    return settings | {"decoders": wildcards.decoders, "seed": int(wildcards.seed)}


def sweep_sizes(wildcards):
    """Param: on how much text and on how many prompts a transcoder of a sweep is measured."""
    names = ("causal_windows", "bootstrap", "confidence")
    return {
        **{name: config["score"][name] for name in names},
        "batch_windows": config["capture"]["batch_windows"],
        "prompts": config["sweeps"][wildcards.sweep]["prompts"],
        "seed": config["seed"],
    }


def sweep_places():
    """Every (model, source, sweep) whose transcoder is in the configuration."""
    return [
        (model, source, sweep)
        for model in MODELS
        for source in SOURCES
        for sweep in SWEEPS
        if config["sweeps"][sweep]["transcoder"] in transcoders_of(model, source)
    ]


def sweep_results():
    """The figures of all sweeps and what they show."""
    return [
        f"results/{model}/{source}/sweeps/{sweep}/{file}"
        for model, source, sweep in sweep_places()
        for file in ("frontier.parquet", "compared.parquet", "frontier.svg", "frontier.png")
    ]


# For the judge.


def judged_explainers():
    """Explainers whose explanations are judged."""
    wanted = config["judge"]["explainers"]
    return [name for name in EXPLAINERS if wanted is None or name in wanted]


def baseline_programs(wildcards):
    """The explanations of the embedded explainer, with which a judge is compared, if it is among the explainers."""
    folder = f"results/{wildcards.model}/{wildcards.source}/heads/explanations"
    return [f"{folder}/programs.jsonl"] if "programs" in EXPLAINERS else []


def judged_explanations(wildcards):
    folder = f"results/{wildcards.model}/{wildcards.source}/heads/explanations"
    return [f"{folder}/{name}.jsonl" for name in judged_explainers()]


def item_sizes():
    """Param: how many test items of each kind."""
    names = ("items", "pairs", "sequences", "trials", "context_tokens")
    sizes = {name: config["judge"][name] for name in names}
    return sizes | {"max_per_document": config["capture"]["max_per_document"]}


def judge_scores_of(wildcards):
    """The judge's scores of a model and source, if there is a judge."""
    scores = f"results/{wildcards.model}/{wildcards.source}/heads/judge_scores.parquet"
    return [scores] if config["judge"]["scorers"] else []


# For latents.

LATENTS = "results/{model}/{source}/latents/{dictionary}"


def latent_folder(wildcards):
    return LATENTS.format(**dict(wildcards.items()))


def latent_places():
    """Every (model, source, dictionary) whose latents are explained."""
    return dictionary_places()


def random_latents(wildcards):
    """Whether a dictionary is trained on the random-weight model too, as a control."""
    wanted = "random_weights" in config["latents"]["controls"] and "programs" in EXPLAINERS
    return wanted and wildcards.dictionary in TRAINED_HERE


def latent_files(wildcards):
    """The files of a dictionary that others made, which its folder only points to."""
    return foreign_files(wildcards)


def latent_weights(wildcards):
    return (
        f"results/{wildcards.model}/{wildcards.source}/dictionaries/{wildcards.dictionary}/weights"
    )


def codes_of(wildcards):
    return [f"{latent_folder(wildcards)}/codes/{chunk}" for chunk in CHUNKS]


def latent_sizes(wildcards):
    """Param: which latents, and the controls that have activations; a control model has none itself."""
    return {
        "max_latents": config["latents"]["max_latents"],
        "neighbours": config["latents"]["neighbours"],
        "dense_rate": config["latents"]["dense_rate"],
        "random_directions": bool(latent_controls("random_direction")(wildcards)),
    }


def latent_event_sizes():
    """Param: how many events of each kind."""
    own = {"topk": config["latents"]["topk"], "negatives": config["latents"]["negatives"]}
    shared = ("max_per_document", "quantiles", "events_per_quantile", "random_events")
    return own | {name: config["capture"][name] for name in shared}


def measure_sizes():
    """Param: how much is measured in the running model."""
    return {
        "causal_windows": config["latents"]["causal_windows"],
        "steering_windows": config["latents"]["steering_windows"],
        "divergence": config["latents"]["divergence"],
        "active_share": config["latents"]["active_share"],
        "batch_windows": config["capture"]["batch_windows"],
    }


def latent_controls(*kinds):
    """Param: the configured controls of these kinds; a control model is not controlled itself."""

    def controls(wildcards):
        if model_init(wildcards) == "random":
            return []
        return [kind for kind in config["latents"]["controls"] if kind in kinds]

    return controls


def latent_explanations(wildcards):
    """The explanations of latents of all explainers, one file each."""
    random = model_init(wildcards) == "random"
    names = [name for name in EXPLAINERS if name == "programs" or not random]
    return [f"{latent_folder(wildcards)}/explanations/{name}.jsonl" for name in names]


def measured(name):
    """Input function: a file of the causal checks, which a control model does without."""

    def files(wildcards):
        return [] if model_init(wildcards) == "random" else [f"{latent_folder(wildcards)}/{name}"]

    return files


def latent_baselines(wildcards):
    """The programs with which a judge is compared, if the embedded explainer is among the explainers."""
    path = f"{latent_folder(wildcards)}/explanations/programs.jsonl"
    return [path] if "programs" in EXPLAINERS else []


def judged_latents(wildcards):
    folder = f"{latent_folder(wildcards)}/explanations"
    return [f"{folder}/{name}.jsonl" for name in judged_explainers()]


def judge_scores_of_latents(wildcards):
    """The judge's scores of a dictionary's latents, if there is a judge."""
    return (
        [f"{latent_folder(wildcards)}/judge_scores.parquet"] if config["judge"]["scorers"] else []
    )


def random_latent_scores(wildcards):
    """The scores of the random-weight model's dictionary, if that control is wanted."""
    if not random_latents(wildcards):
        return []
    folder = f"results/{wildcards.model}{RANDOM_SUFFIX}/{wildcards.source}/latents"
    return [f"{folder}/{wildcards.dictionary}/scores.parquet"]


def for_each_dictionary(*patterns):
    """Expand file patterns over every model, source and dictionary."""
    return [
        pattern.format(model=model, source=source, dictionary=dictionary)
        for model, source, dictionary in latent_places()
        for pattern in patterns
    ]


def latent_results():
    """Every result file and folder about latents, random-weight controls included."""
    merged = ("raw_events", "latent_stats", "neighbours", "activations")
    causal = ("causal_losses", "steering", "promoted", "promoted_tokens")
    files = [f"{name}.parquet" for name in (*merged, *causal, "scores")]
    files += ["report.md", "summary.csv", "headline.json", "explanations.jsonl"]
    files += [f"explanations/{name}.jsonl" for name in EXPLAINERS]
    files += [f"codes/{chunk}" for chunk in CHUNKS]
    if config["judge"]["scorers"]:
        files += ["judge_scores.parquet"]
        files += [f"judge/{name}.parquet" for name in ("items", "judgements", "judge_usage")]
    found = for_each_dictionary(*(f"{LATENTS}/{file}" for file in files))
    page = "results/report/{model}/{source}/latents/{dictionary}"
    found += for_each_dictionary(f"{page}.html", f"{page}.ipynb")
    for place in latent_places():
        found += random_latent_scores(Names(**dict(zip(("model", "source", "dictionary"), place))))
    return found


# For figures.


def figure_folders():
    """The folders of figures of every analysis that there is."""
    folders = [f"results/figures/{model}/circuits" for model in with_tasks()]
    for model in MODELS:
        for source in SOURCES:
            place = f"results/figures/{model}/{source}"
            folders.append(f"{place}/heads")
            folders += [f"{place}/dictionaries"] if dictionaries_of(model, source) else []
            folders += [f"{place}/transcoders"] if transcoders_of(model, source) else []
    return folders


def captions_in(folder):
    """Param: the captions of figures that are there, by name, for the report of the engine; not compared."""

    def captions(wildcards, threads):
        path = Path(folder.format(**dict(wildcards.items())), "captions.json")
        if not path.exists():
            return {}
        texts = json.loads(path.read_text(encoding="utf-8"))
        # What means something in reStructuredText is shown as it is.
        return {name: re.sub(r"([\\*`|_])", r"\\\1", text) for name, text in texts.items()}

    return captions


def dictionary_files(file, among):
    """Input function: a file of those dictionaries of a model and source that are among others."""

    def files(wildcards):
        names = [n for n in dictionaries_of(wildcards.model, wildcards.source) if n in among]
        folder = f"results/{wildcards.model}/{wildcards.source}/dictionaries"
        return [f"{folder}/{name}/{file}" for name in names]

    return files


def latent_tables(file):
    """Input function: a file about the latents of each dictionary of a model and source."""

    def files(wildcards):
        names = dictionaries_of(wildcards.model, wildcards.source)
        return [f"results/{wildcards.model}/{wildcards.source}/latents/{n}/{file}" for n in names]

    return files


def transcoder_files(file):
    """Input function: a file of each transcoder of a model and source."""

    def files(wildcards):
        names = transcoders_of(wildcards.model, wildcards.source)
        return [
            f"results/{wildcards.model}/{wildcards.source}/transcoders/{n}/{file}" for n in names
        ]

    return files


def graph_files(ending):
    """Input function: a file of each graph of each transcoder of a model and source."""

    def files(wildcards):
        folder = f"results/{wildcards.model}/{wildcards.source}/transcoders"
        names = transcoders_of(wildcards.model, wildcards.source)
        return [
            f"{folder}/{name}/graphs/{graph}.{ending}"
            for name in names
            for graph in traced("graphs", wildcards.model, name)
        ]

    return files


# For the atlas.


def of_sources(file):
    """Input function: a file of each source of a model."""

    def files(wildcards):
        return [f"results/{wildcards.model}/{source}/{file}" for source in SOURCES]

    return files


def places_of(model):
    """The (source, dictionary) of a model, as lists, which is how params keep them."""
    return [[s, dictionary] for m, s, dictionary in dictionary_places() if m == model]


def of_dictionaries(file):
    """Input function: a file of each dictionary of a model."""

    def files(wildcards):
        return [
            f"results/{wildcards.model}/{source}/dictionaries/{dictionary}/{file}"
            for source, dictionary in places_of(wildcards.model)
        ]

    return files


def of_foreign_dictionaries(wildcards):
    """The files of dictionaries of a model that others made, which their folders only point to."""
    places = places_of(wildcards.model)
    return [path for _, name in places for path in foreign_files(Names(dictionary=name))]


def task_kinds(wildcards):
    """Param: the kind of each task of a model."""
    return {task: config["tasks"][task]["kind"] for task in tasks_of(wildcards.model)}


def tables_of_heads():
    """The tables in which everything about the heads of each model is joined."""
    files = ["cross_table.parquet", "written_latents.parquet", "agreement.json"]
    return expand("results/{model}/{file}", model=MODELS, file=files)


#: What the atlas reads of each task and of each dictionary's latents.
ATLAS_OF_TASKS = (
    *("prompts.jsonl", "nodes/circuit.json", "edges/circuit.json", "edges/effects.parquet"),
    *("nodes/curve.parquet", "nodes/random.parquet", "nodes/stability.parquet"),
    *("nodes/effects.parquet", "edges/curve.parquet"),
)
ATLAS_OF_LATENTS = (
    *("summary.csv", "latent_stats.parquet", "raw_events.parquet", "activations.parquet"),
    *("scores.parquet", "neighbours.parquet", "promoted_tokens.parquet"),
)


def graph_names():
    """Every (model, source, transcoder, graph)."""
    return [
        (model, source, transcoder, graph)
        for model in MODELS
        for source in SOURCES
        for transcoder in transcoders_of(model, source)
        for graph in traced("graphs", model, transcoder)
    ]


def atlas_of_transcoders():
    """The features of each transcoder, and what is said of each attribution graph."""
    folder = "results/{}/{}/transcoders/{}"
    features = [
        f"{folder.format(model, source, name)}/{file}.parquet"
        for model in MODELS
        for source in SOURCES
        for name in transcoders_of(model, source)
        for file in ("features", "examples")
    ]
    graphs = [f"{folder.format(*p)}/graphs/{graph}.summary.json" for *p, graph in graph_names()]
    return features + graphs


def all_tokenizers():
    """The tokenizers of all models."""
    return [path for model in MODELS for path in tokenizer_inputs(Names(model=model))]


def atlas_files():
    """Style and scripts of the atlas, whose change draws it anew."""
    folder = REPOSITORY / "workflow/scripts/mechatlas/figures"
    own = sorted((folder / "atlas/static").iterdir())
    return [shown(path) for path in (*own, folder / "vendor/echarts/echarts.min.js")]


def atlas_models():
    """Param: what the atlas shows of each model."""
    return {
        model: {
            "path": model_folder(Names(model=model)),
            "bos": config["models"][model]["bos"],
            "sources": SOURCES,
            "tasks": task_kinds(Names(model=model)),
            "dictionaries": places_of(model),
            "transcoders": [[s, name] for s in SOURCES for name in transcoders_of(model, s)],
            "graphs": [list(place[1:]) for place in graph_names() if place[0] == model],
        }
        for model in MODELS
    }


# For the forecast.

ASKS_EXPLAINER = "openai" in EXPLAINERS
ASKS_JUDGE = bool(config["judge"]["scorers"])


def explained_places(pattern):
    return for_each(pattern) if ASKS_EXPLAINER else []


def forecast_places():
    """Param: every model and source, with what the forecast needs to know beyond files."""
    return [
        {
            "name": f"{model}, {source}",
            "model": model_folder(Names(model=model, source=source)),
            "bos": config["models"][model]["bos"],
            "explanations": judged_explanations(Names(model=model, source=source)),
        }
        for model in MODELS
        for source in SOURCES
    ]


def asked_latents(pattern):
    return for_each_dictionary(pattern) if ASKS_EXPLAINER else []


def forecast_latents():
    """Param: every dictionary, as `forecast_places`."""
    places = []
    for model, source, dictionary in latent_places():
        names = Names(model=model, source=source, dictionary=dictionary)
        explained = [
            f"results/{model}/{source}/latents/{dictionary}/explanations/{name}.jsonl"
            for name in judged_explainers()
        ]
        places.append(
            {
                "name": f"{model}, {source}, {dictionary}",
                "model": model_folder(names),
                "bos": config["models"][model]["bos"],
                "explanations": explained,
            }
        )
    return places


# Resources, fitted on results/benchmarks: memory in MB and time in minutes, doubled with each attempt.


def weights_mb(wildcards):
    """Size of a model's weights; an assumption until they are downloaded."""
    folder = Path(model_folder(wildcards))
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return math.ceil(sum(sizes) / 1e6) if sizes else 2000


def dictionary_mb(wildcards):
    """Size of one layer of a dictionary, for a width of 1024."""
    entry = config["dictionaries"][wildcards.dictionary]
    if wildcards.dictionary in OF_FEATURES:
        # All layers of the file, whose features write to several layers.
        return (
            20 * config["transcoders"][OF_FEATURES[wildcards.dictionary]]["features"] * 4096 / 1e6
        )
    published = 131072 if entry.get("version") == "_v5_128k" else 32768
    return 2 * entry.get("latents", published) * 1024 * 4 / 1e6


def memory(base, *, per_weight=0.0, per_window=0.0, per_pattern=0.0, per_latent=0.0):
    """Memory function: a base for the libraries plus what grows with model, windows, patterns and dictionary."""

    def mem_mb(wildcards, attempt):
        sampling = config["sampling"]
        windows = sampling["windows"] * sampling["window_len"] / 1e6
        patterns = 3 * sampling["pattern_windows"] * sampling["window_len"] ** 2 / 1e6
        size = base + per_window * windows + per_pattern * patterns
        if per_weight:
            size += per_weight * weights_mb(wildcards)
        if per_latent:
            size += per_latent * dictionary_mb(wildcards)
        return math.ceil(size * 2 ** (attempt - 1))

    return mem_mb


def minutes(base, *, per_token=0.0):
    """Time function: a base plus minutes for each million tokens that a job reads per MB of weights."""

    def runtime(wildcards, attempt):
        sampling = config["sampling"]
        tokens = sampling["windows"] * sampling["window_len"] / 1e6
        work = per_token * tokens * weights_mb(wildcards) if per_token else 0
        return math.ceil((base + work) * 2 ** (attempt - 1))

    return runtime


def gpu_request(wildcards):
    """Ask for a GPU unless there can be none: on a workstation without one, CPU jobs need not queue for it."""
    wanted = config["device"] == "cuda" or gpu_present() or workflow.non_local_exec
    return int(wanted and config["device"] != "cpu")


ASKING = ("ask_explainer", "ask_latents", "judge_heads", "judge_latents")


def check_language_models(dag):
    """Before the first job: will the endpoints answer that this run is going to ask?"""
    if not any(job.rule.name in ASKING for job in dag.needrun_jobs()):
        return
    # Not at the top, as this file is parsed in every job.
    from mechatlas.explain.llm.check import check_endpoints

    try:
        check_endpoints(config)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def clean_up():
    """Remove half-written files of jobs that were killed. The working directory is locked, so no other run writes."""
    for folder in ("results", "resources/downloads"):
        clean_temporaries(folder)


def tell_report():
    for what, name in (("The atlas", "atlas/index.html"), ("The report", "index.html")):
        page = Path("results/report", name)
        if page.exists():
            print(f"{what}: {page.absolute()}", file=sys.stderr)


def tell_failure(log_files):
    print(
        f"Failed. Each rule's own messages: {Path('logs').absolute()}/<rule>/ ; Snakemake's: {' '.join(log_files)}\n"
        "Run the same command again to continue. If it says that the directory is locked, run first:\n"
        "  snakemake --unlock",
        file=sys.stderr,
    )
