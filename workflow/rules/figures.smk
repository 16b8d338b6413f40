# Figures of a paper: SVG, PDF, PNG, the data behind each and captions, one job for each analysis and model.
# Nothing here is made by `all`; ask for `figures`.


rule draw_circuits:
    """Draw the circuits of one model."""
    input:
        prompts=of_tasks("prompts.jsonl"),
        shown_files=shown_files,
        published=published_of,
    output:
        figures=report(
            directory("results/figures/{model}/circuits"),
            patterns=["{figure}.{kind,svg|csv}"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"analysis": "circuits", "figure": "{figure}", "file": "{kind}"},
        ),
    log:
        "logs/draw_circuits/{model}.log",
    benchmark:
        "results/benchmarks/draw_circuits/{model}.tsv"
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
        name=lambda wildcards: wildcards.model,
        tasks=lambda wildcards: tasks_of(wildcards.model),
        folder=lambda wildcards: f"results/{wildcards.model}/tasks",
        shared=lambda wildcards: f"results/{wildcards.model}/circuits",
        captions=captions_in("results/figures/{model}/circuits"),
        code=script_digest("draw_circuits"),
    script:
        "../scripts/draw_circuits.py"


rule draw_heads:
    """Draw the explanations of the heads of one model on one source."""
    input:
        explanations="results/{model}/{source}/heads/explanations.jsonl",
        scores="results/{model}/{source}/heads/scores.parquet",
        clusters="results/{model}/{source}/heads/clusters.json",
        curve="results/{model}/{source}/heads/replacement.parquet",
    output:
        figures=report(
            directory("results/figures/{model}/{source}/heads"),
            patterns=["{figure}.{kind,svg|csv}"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"analysis": "heads, {source}", "figure": "{figure}", "file": "{kind}"},
        ),
    log:
        "logs/draw_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/draw_heads/{model}/{source}.tsv"
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
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        captions=captions_in("results/figures/{model}/{source}/heads"),
        code=script_digest("draw_heads"),
    script:
        "../scripts/draw_heads.py"


rule draw_dictionaries:
    """Draw the dictionaries of one model on one source, their latents and the explanations of these."""
    input:
        frontier="results/{model}/{source}/dictionaries/frontier.parquet",
        evaluations=evaluations_of,
        training=dictionary_files("training.parquet", TRAINED_HERE),
        statistics=latent_tables("latent_stats.parquet"),
        scores=latent_tables("scores.parquet"),
    output:
        figures=report(
            directory("results/figures/{model}/{source}/dictionaries"),
            patterns=["{figure}.{kind,svg|csv}"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"analysis": "dictionaries, {source}", "figure": "{figure}", "file": "{kind}"},
        ),
    log:
        "logs/draw_dictionaries/{model}/{source}.log",
    benchmark:
        "results/benchmarks/draw_dictionaries/{model}/{source}.tsv"
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
        dictionaries=lambda wildcards: dictionaries_of(wildcards.model, wildcards.source),
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        captions=captions_in("results/figures/{model}/{source}/dictionaries"),
        code=script_digest("draw_dictionaries"),
    script:
        "../scripts/draw_dictionaries.py"


rule draw_transcoders:
    """Draw the transcoders of one model on one source, and their attribution graphs."""
    input:
        evaluations=transcoder_files("evaluation.parquet"),
        training=transcoder_files("training.parquet"),
        graphs=graph_files("json"),
        consistency=graph_files("consistency.parquet"),
    output:
        figures=report(
            directory("results/figures/{model}/{source}/transcoders"),
            patterns=["{figure}.{kind,svg|csv}"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"analysis": "transcoders, {source}", "figure": "{figure}", "file": "{kind}"},
        ),
    log:
        "logs/draw_transcoders/{model}/{source}.log",
    benchmark:
        "results/benchmarks/draw_transcoders/{model}/{source}.tsv"
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
        transcoders=lambda wildcards: transcoders_of(wildcards.model, wildcards.source),
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        captions=captions_in("results/figures/{model}/{source}/transcoders"),
        code=script_digest("draw_transcoders"),
    script:
        "../scripts/draw_transcoders.py"
