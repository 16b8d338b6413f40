# Helpers of the rules whose work may be spread over several jobs: programs, patching, edges, halves of prompts.
EXPLAINED_AT_ONCE = config["explain"]["units_per_job"]
PATCHED_AT_ONCE = config["circuits"]["layers_per_job"]
PARTS_AT_ONCE = config["circuits"]["parts_per_job"]


def shape_of_model(wildcards):
    """The size of a model, which the check of the configuration has found to be known."""
    return shape_of(base_model(wildcards), model_config(wildcards), model_folder(wildcards))


def head_jobs(wildcards):
    """The jobs in which a model's heads are explained, none if the rule that gathers does it itself."""
    if not EXPLAINED_AT_ONCE:
        return []
    return head_batches(shape_of_model(wildcards), EXPLAINED_AT_ONCE)


def latent_jobs(wildcards):
    """The same for the latents of a dictionary."""
    if not EXPLAINED_AT_ONCE:
        return []
    entry, most = config["dictionaries"][wildcards.dictionary], config["latents"]["max_latents"]
    return latent_batches(shape_of_model(wildcards), entry, most, EXPLAINED_AT_ONCE)


def layer_jobs(wildcards):
    """The jobs in which the layers of a model are patched."""
    if not PATCHED_AT_ONCE:
        return []
    return batch_names(shape_of_model(wildcards).layers, PATCHED_AT_ONCE)


def edge_jobs(wildcards):
    """The jobs that share what is independent in tracing edges."""
    if not PARTS_AT_ONCE:
        return []
    return edge_batches(shape_of_model(wildcards), config["circuits"]["edges"], PARTS_AT_ONCE)


def half_jobs(wildcards):
    """The jobs in which nodes are pruned on halves of the prompts."""
    return half_batches(config["circuits"]["nodes"], PARTS_AT_ONCE)


def gathered(jobs, pattern):
    """Input function: what these jobs make, for the rule that brings it together."""

    def files(wildcards):
        return [pattern.format(**dict(wildcards.items()), batch=name) for name in jobs(wildcards)]

    return files


def place_among(jobs):
    """Param: number of a job, and how many there are."""
    return lambda wildcards: [int(wildcards.batch), len(jobs(wildcards))]


def gpu_unless(jobs):
    """Ask for a GPU unless all that is left to do is to gather what jobs made."""
    return lambda wildcards: 0 if jobs(wildcards) else gpu_request(wildcards)


HEAD_BATCH = "results/steps/{model}/{source}/heads/{batch}.jsonl"
LATENT_BATCH = "results/steps/{model}/{source}/latents/{dictionary}/{batch}.jsonl"
LAYER_BATCH = "results/steps/{model}/{task}/patching/{batch}.safetensors"
EDGE_BATCH = "results/steps/{model}/{task}/edges/{batch}.safetensors"
HALF_BATCH = "results/steps/{model}/{task}/nodes/{batch}.safetensors"
