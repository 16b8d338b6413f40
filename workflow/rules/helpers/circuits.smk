# Helpers of the rules about circuits.
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


def node_settings(wildcards):
    """Param: how nodes are pruned, with the nodes that a task keeps."""
    kept = config["tasks"][wildcards.task]["keep"]
    return config["circuits"]["nodes"] | ({} if kept is None else {"keep": kept})


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
