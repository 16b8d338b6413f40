# Resources, fitted on results/benchmarks: memory in MB and time in minutes, doubled with each attempt.
# On a cluster two Snakemakes of 180 MB each, which import the executor, are in the memory of every job.
ENGINE_MB = 400


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
        size += ENGINE_MB * workflow.non_local_exec
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
