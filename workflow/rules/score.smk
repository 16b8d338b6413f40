# Tests of explanations on held-out documents, against controls.


rule score_heads:
    """Compare predicted and true attention on test documents, for each explanation and its controls."""
    input:
        explanations=explanations_of,
        windows=windows_of,
        chunks=chunks_of,
        events="results/{model}/{source}/heads/raw_events.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        document_scores="results/{model}/{source}/heads/document_scores.parquet",
        event_scores="results/{model}/{source}/heads/event_scores.parquet",
    log:
        "logs/score_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/score_heads/{model}/{source}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(700, per_pattern=200),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        controls=controls_among("swapped", "shuffled", "mean_pattern"),
        active_attention=config["score"]["active_attention"],
        seed=config["seed"],
        code=script_digest("score_heads"),
    script:
        "../scripts/score_heads.py"


rule replace_heads:
    """Run the model with heads replaced by their programs: loss recovered, and the replacement curve."""
    input:
        explanations=explanations_of,
        windows=windows_of,
        chunks=chunks_of,
        model_files=model_inputs,
    output:
        losses="results/{model}/{source}/heads/head_losses.parquet",
        curve_losses="results/{model}/{source}/heads/replacement_losses.parquet",
    log:
        "logs/replace_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/replace_heads/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_weight=4, per_pattern=40),
        runtime=minutes(20, per_token=1),
        gpu=gpu_request,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        controls=controls_among("swapped", "shuffled", "mean_pattern"),
        causal_windows=config["score"]["causal_windows"],
        shares=config["score"]["replacement_shares"],
        random_orders=config["score"]["random_orders"],
        batch_windows=config["capture"]["batch_windows"],
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("replace_heads"),
    script:
        "../scripts/replace_heads.py"


rule summarise_scores:
    """Intervals by bootstrap over documents, differences to the controls, and false discovery rate over heads."""
    input:
        explanations=explanations_of,
        document_scores="results/{model}/{source}/heads/document_scores.parquet",
        event_scores="results/{model}/{source}/heads/event_scores.parquet",
        losses="results/{model}/{source}/heads/head_losses.parquet",
        curve_losses="results/{model}/{source}/heads/replacement_losses.parquet",
        control_document_scores=control_of("document_scores.parquet"),
        control_event_scores=control_of("event_scores.parquet"),
    output:
        scores="results/{model}/{source}/heads/scores.parquet",
        curve="results/{model}/{source}/heads/replacement.parquet",
    log:
        "logs/summarise_scores/{model}/{source}.log",
    benchmark:
        "results/benchmarks/summarise_scores/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(800, per_window=50),
        runtime=minutes(20),
        gpu=0,
    params:
        bootstrap=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        fdr=config["score"]["fdr"],
        min_events=config["score"]["min_events"],
        seed=config["seed"],
        code=script_digest("summarise_scores"),
    script:
        "../scripts/summarise_scores.py"
