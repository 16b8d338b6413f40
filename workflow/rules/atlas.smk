# Words beside causes, and the pages in which everything is looked at together.


rule tabulate_heads:
    """Join everything about the heads of one model, and compare what words say with what measurements show."""
    input:
        summaries=of_sources("heads/summary.csv"),
        roles=of_tasks("roles/heads.parquet"),
        nodes=of_tasks("nodes/effects.parquet"),
        patching=of_tasks("patching/effects.parquet"),
        ov=of_tasks("lens/ov.parquet"),
        ov_members=of_tasks("lens/ov_members.parquet"),
        qk_members=of_tasks("lens/qk_members.parquet"),
        circuits=of_tasks("nodes/circuit.json"),
        least_harmful=of_tasks("nodes/least_harmful.json"),
        edge_circuits=of_tasks("edges/circuit.json"),
        weights=of_dictionaries("weights"),
        latent_tables=of_dictionaries("latents.parquet"),
        judge_scores=judge_scores_of_sources,
        dictionary_files=of_foreign_dictionaries,
        model_files=model_inputs,
    output:
        table="results/{model}/cross_table.parquet",
        written="results/{model}/written_latents.parquet",
        agreement="results/{model}/agreement.json",
    log:
        "logs/tabulate_heads/{model}.log",
    benchmark:
        "results/benchmarks/tabulate_heads/{model}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_weight=4),
        runtime=minutes(20),
        gpu=0,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        sources=lambda wildcards: sources_of(config, wildcards.model),
        tasks=task_kinds,
        dictionaries=lambda wildcards: places_of(wildcards.model),
        thresholds=config["circuits"]["roles"],
        draws=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        seed=config["seed"],
        code=script_digest("tabulate_heads"),
    script:
        "../scripts/tabulate_heads.py"


rule render_atlas:
    """Write the atlas of all models: static pages that open from disk and ask nothing of a network."""
    input:
        heads_files=for_each(
            "results/{model}/{source}/windows.parquet",
            "results/{model}/{source}/heads/raw_events.parquet",
            "results/{model}/{source}/heads/scores.parquet",
            "results/{model}/{source}/heads/explanations.jsonl",
            "results/{model}/{source}/heads/clusters.json",
        ),
        captured_files=for_each("results/{model}/{source}/capture/{chunk}", chunk=CHUNKS),
        task_files=for_tasks(*ATLAS_OF_TASKS),
        latents_files=for_each_dictionary(*(f"{LATENTS}/{file}" for file in ATLAS_OF_LATENTS)),
        transcoders_files=atlas_of_transcoders(),
        judged_files=atlas_of_judge(),
        tables_files=tables_of_heads(),
        tokenizers_files=all_tokenizers(),
        static_files=atlas_files(),
    output:
        atlas=directory("results/report/atlas"),
    log:
        "logs/render_atlas/atlas.log",
    benchmark:
        "results/benchmarks/render_atlas/atlas.tsv"
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_window=100),
        runtime=minutes(20),
        gpu=0,
    params:
        results=lambda wildcards: "results",
        models=atlas_models(),
        chunks=CHUNKS,
        seed=config["seed"],
        code=script_digest("render_atlas"),
    script:
        "../scripts/render_atlas.py"
