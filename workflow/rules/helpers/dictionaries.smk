# Helpers of the rules about dictionaries: which there are, what they read, where their files lie.
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
        for model, source in PLACES
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
