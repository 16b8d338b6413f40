# Helpers of the rules about the atlas.
def of_sources(file):
    """Input function: a file of each source of a model."""

    def files(wildcards):
        sources = sources_of(config, wildcards.model)
        return [f"results/{wildcards.model}/{source}/{file}" for source in sources]

    return files


def judge_scores_of_sources(wildcards):
    """The judge's scores of a model's heads on each source, if there is a judge."""
    files = of_sources("heads/judge_scores.parquet")
    return files(wildcards) if config["judge"]["scorers"] else []


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
        for model, source in PLACES
        for transcoder in transcoders_of(model, source)
        for graph in traced("graphs", model, transcoder)
    ]


def atlas_of_transcoders():
    """The features of each transcoder, and what is said of each attribution graph."""
    folder = "results/{}/{}/transcoders/{}"
    features = [
        f"{folder.format(model, source, name)}/{file}.parquet"
        for model, source in PLACES
        for name in transcoders_of(model, source)
        for file in ("features", "examples")
    ]
    graphs = [f"{folder.format(*p)}/graphs/{graph}.summary.json" for *p, graph in graph_names()]
    return features + graphs


def atlas_of_judge():
    """The judge's scores of all heads and latents, if there is a judge."""
    if not config["judge"]["scorers"]:
        return []
    heads = for_each("results/{model}/{source}/heads/judge_scores.parquet")
    return heads + for_each_dictionary(f"{LATENTS}/judge_scores.parquet")


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
            "sources": sources_of(config, model),
            "tasks": task_kinds(Names(model=model)),
            "dictionaries": places_of(model),
            "transcoders": [[s, name] for m, s, name in transcoder_places() if m == model],
            "graphs": [list(place[1:]) for place in graph_names() if place[0] == model],
            "judged": bool(config["judge"]["scorers"]),
        }
        for model in MODELS
    }
