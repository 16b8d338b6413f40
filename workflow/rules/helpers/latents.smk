# Helpers of the rules about latents.
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
