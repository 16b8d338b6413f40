# Scores of explanations by a language model that predicts activity from them, on held-out documents.


rule select_items:
    """Choose the questions that a judge is asked: test items of all explained heads and of planted units."""
    input:
        programs=baseline_programs,
        head_stats="results/{model}/{source}/heads/head_stats.parquet",
        windows=windows_of,
        chunks=chunks_of,
        events="results/{model}/{source}/heads/raw_events.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        test_items="results/{model}/{source}/heads/judge/items.parquet",
    log:
        "logs/select_items/{model}/{source}.log",
    benchmark:
        "results/benchmarks/select_items/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_pattern=200),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        max_heads=config["explain"]["max_heads"],
        scorers=config["judge"]["scorers"],
        sizes=item_sizes(),
        planted=config["judge"]["planted"],
        active_attention=config["score"]["active_attention"],
        seed=config["seed"],
        code=script_digest("select_items"),
    script:
        "../scripts/select_items.py"


rule judge_heads:
    """Ask the judge about every explanation; what it answers is stored as it comes."""
    input:
        test_items="results/{model}/{source}/heads/judge/items.parquet",
        explanations=judged_explanations,
    output:
        judgements="results/{model}/{source}/heads/judge/judgements.parquet",
        usage="results/{model}/{source}/heads/judge/judge_usage.parquet",
    log:
        "logs/judge_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/judge_heads/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900),
        runtime=minutes(240),
        gpu=0,
    params:
        judge=language_model(config["judge"]),
        judge_at=reached_at(config["judge"]),
        llm=not_compared(config["llm"]),
        seed=config["seed"],
        code=script_digest("judge_heads"),
    script:
        "../scripts/judge_heads.py"


rule summarise_judgements:
    """Scores by the judge with intervals, gains over program and look-up, controls, failures and spend."""
    input:
        test_items="results/{model}/{source}/heads/judge/items.parquet",
        judgements="results/{model}/{source}/heads/judge/judgements.parquet",
        usage="results/{model}/{source}/heads/judge/judge_usage.parquet",
    output:
        scores="results/{model}/{source}/heads/judge_scores.parquet",
    log:
        "logs/summarise_judgements/{model}/{source}.log",
    benchmark:
        "results/benchmarks/summarise_judgements/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(800),
        runtime=minutes(20),
        gpu=0,
    params:
        bootstrap=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        fdr=config["score"]["fdr"],
        active_attention=config["score"]["active_attention"],
        seed=config["seed"],
        code=script_digest("summarise_judgements"),
    script:
        "../scripts/summarise_judgements.py"
