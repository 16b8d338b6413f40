# Helpers of the rules about transcoders, attribution graphs, sets of prompts and sweeps.
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
        for model, source in PLACES
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
        for model, source in PLACES
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
