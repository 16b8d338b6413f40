# One pass of the model over the windows, chunk by chunk, and the events of all chunks together.


rule capture_heads:
    """Run the model over one chunk of windows and keep head events, patterns and activations of all layers."""
    input:
        windows=windows_of,
        model_files=model_inputs,
    output:
        chunk=directory("results/{model}/{source}/capture/{chunk}"),
    log:
        "logs/capture_heads/{model}/{source}/{chunk}.log",
    benchmark:
        "results/benchmarks/capture_heads/{model}/{source}/{chunk}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(700, per_weight=4, per_pattern=20),
        runtime=minutes(10, per_token=0.1),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        init=model_init,
        chunk_index=lambda wildcards: int(wildcards.chunk),
        chunk_windows=config["capture"]["chunk_windows"],
        batch_windows=config["capture"]["batch_windows"],
        candidates=config["capture"]["candidates"],
        max_per_document=config["capture"]["max_per_document"],
        quantiles=config["capture"]["quantiles"],
        events_per_quantile=config["capture"]["events_per_quantile"],
        random_events=config["capture"]["random_events"],
        pattern_dtype=config["capture"]["pattern_dtype"],
        activations=captured_points,
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("capture_heads"),
    script:
        "../scripts/capture_heads.py"


rule merge_events:
    """Bring the event candidates of all chunks together: what one chunk alone would have given."""
    input:
        windows=windows_of,
        chunks=chunks_of,
    output:
        events="results/{model}/{source}/heads/raw_events.parquet",
        stats="results/{model}/{source}/heads/head_stats.parquet",
    log:
        "logs/merge_events/{model}/{source}.log",
    benchmark:
        "results/benchmarks/merge_events/{model}/{source}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600, per_window=100),
        runtime=minutes(20),
        gpu=0,
    params:
        topk=config["capture"]["topk"],
        max_per_document=config["capture"]["max_per_document"],
        quantiles=config["capture"]["quantiles"],
        events_per_quantile=config["capture"]["events_per_quantile"],
        seed=config["seed"],
        code=script_digest("merge_events"),
    script:
        "../scripts/merge_events.py"
