# Explanations of heads, and groups of explanations.


rule fit_heads:
    """Fit an explanation to every head of some layers, for `explain_heads` to gather."""
    input:
        windows=windows_of,
        chunks=chunks_of,
        trained_chunks=trained_chunks_of,
        tokenizer_files=tokenizer_inputs,
    output:
        explanations=HEAD_BATCH,
    log:
        "logs/fit_heads/{model}/{source}/{batch}.log",
    benchmark:
        "results/benchmarks/fit_heads/{model}/{source}/{batch}.tsv"
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
        batch=place_among(head_jobs),
        max_heads=config["explain"]["max_heads"],
        programs=config["explain"]["programs"],
        controls=controls_among("shuffled"),
        seed=config["seed"],
        device=config["device"],
        code=script_digest("fit_heads"),
    script:
        "../scripts/fit_heads.py"


rule explain_heads:
    """Fit an explanation to every head, from patterns of train documents, chosen by validation."""
    input:
        windows=windows_of,
        chunks=chunks_of,
        trained_chunks=trained_chunks_of,
        batches=gathered(head_jobs, HEAD_BATCH),
        tokenizer_files=tokenizer_inputs,
    output:
        explanations="results/{model}/{source}/heads/explanations/programs.jsonl",
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
        gpu=gpu_unless(head_jobs),
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        max_heads=config["explain"]["max_heads"],
        programs=config["explain"]["programs"],
        controls=controls_among("shuffled"),
        seed=config["seed"],
        device=config["device"],
        code=script_digest("explain_heads"),
    script:
        "../scripts/explain_heads.py"


rule ask_explainer:
    """Ask a language model what every head does, from train events; what it answers is stored as it comes."""
    input:
        windows=windows_of,
        chunks=chunks_of,
        events="results/{model}/{source}/heads/raw_events.parquet",
        head_stats=head_stats_of,
        tokenizer_files=tokenizer_inputs,
    output:
        explanations="results/{model}/{source}/heads/explanations/openai.jsonl",
    log:
        "logs/ask_explainer/{model}/{source}.log",
    benchmark:
        "results/benchmarks/ask_explainer/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_window=50, per_pattern=100),
        runtime=minutes(240),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        max_heads=config["explain"]["max_heads"],
        openai=language_model(config["explain"]["openai"]),
        openai_at=reached_at(config["explain"]["openai"]),
        judge=explainer_judge() and language_model(explainer_judge()),
        judge_at=reached_at(config["judge"]),
        llm=not_compared(config["llm"]),
        seed=config["seed"],
        code=script_digest("ask_explainer"),
    script:
        "../scripts/ask_explainer.py"


rule cluster_explanations:
    """Group the heads of a model by what their explanations say."""
    input:
        explanations=explanations_of,
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
