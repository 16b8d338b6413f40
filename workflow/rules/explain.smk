# Explanations of heads, and groups of explanations.


rule explain_heads:
    """Fit an explanation to every head, from patterns of train documents, chosen by validation."""
    input:
        windows=windows_of,
        chunks=chunks_of,
        tokenizer_files=tokenizer_inputs,
    output:
        explanations="results/{model}/{source}/heads/explanations.jsonl",
    log:
        "logs/explain_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/explain_heads/{model}/{source}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(700, per_pattern=200),
        runtime=minutes(60),
        gpu=gpu_request,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        explainers=config["explain"]["explainers"],
        programs=config["explain"]["programs"],
        controls=controls_among("shuffled"),
        seed=config["seed"],
        device=config["device"],
        code=script_digest("explain_heads"),
    script:
        "../scripts/explain_heads.py"


rule cluster_explanations:
    """Group the heads of a model by what their explanations say."""
    input:
        explanations="results/{model}/{source}/heads/explanations.jsonl",
    output:
        clusters="results/{model}/{source}/heads/clusters.json",
    log:
        "logs/cluster_explanations/{model}/{source}.log",
    benchmark:
        "results/benchmarks/cluster_explanations/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=minutes(20),
        gpu=0,
    params:
        min_cluster_size=config["clusters"]["min_cluster_size"],
        embedding_model=config["clusters"]["embedding_model"],
        seed=config["seed"],
        code=script_digest("cluster_explanations"),
    script:
        "../scripts/cluster_explanations.py"
