# Helpers of the rules about the judge.
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
