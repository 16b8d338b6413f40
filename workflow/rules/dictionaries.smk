# Sparse autoencoders and transcoders: trained or fetched, checked, measured.


wildcard_constraints:
    dictionary="|".join(map(re.escape, DICTIONARIES)) or NOTHING,


rule fetch_dictionary:
    """Download one of OpenAI's sparse autoencoders."""
    output:
        file="resources/downloads/dictionaries/{dictionary}/{layer}.pt",
        checksum="resources/downloads/dictionaries/{dictionary}/{layer}.pt.sha256",
        record="resources/downloads/dictionaries/{dictionary}/{layer}.pt.source.json",
    log:
        "logs/fetch_dictionary/{dictionary}/{layer}.log",
    benchmark:
        "results/benchmarks/fetch_dictionary/{dictionary}/{layer}.tsv"
    wildcard_constraints:
        layer=r"[0-9]+",
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(500),
        runtime=minutes(60),
        gpu=0,
    params:
        site=lambda wildcards: config["dictionaries"][wildcards.dictionary]["site"],
        version=lambda wildcards: config["dictionaries"][wildcards.dictionary]["version"],
        layer=lambda wildcards: int(wildcards.layer),
        sha256=dictionary_digest,
    script:
        "../scripts/fetch_dictionary.py"


rule import_dictionary:
    """Check dictionaries that others made against a model, and say where they are."""
    input:
        dictionary_files=foreign_files,
        model_files=model_inputs,
    output:
        weights=directory("results/{model}/{source}/dictionaries/{dictionary}/weights"),
    log:
        "logs/import_dictionary/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/import_dictionary/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
        dictionary="|".join(map(re.escape, FOREIGN)) or NOTHING,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600, per_latent=3),
        runtime=minutes(20),
        gpu=0,
    params:
        entries=foreign_entries,
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        dictionary=lambda wildcards: wildcards.dictionary,
        code=script_digest("import_dictionary"),
    script:
        "../scripts/import_dictionary.py"


rule train_sae:
    """Train the sparse autoencoders of a dictionary, all layers, on the activations of train documents."""
    input:
        windows=windows_of,
        chunks=chunks_of,
    output:
        weights=directory("results/{model}/{source}/dictionaries/{dictionary}/weights"),
        training="results/{model}/{source}/dictionaries/{dictionary}/training.parquet",
    log:
        "logs/train_sae/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/train_sae/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
        dictionary="|".join(map(re.escape, TRAINED_HERE)) or NOTHING,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(700, per_latent=12, per_window=50),
        runtime=minutes(60, per_token=0.1),
        gpu=gpu_request,
    params:
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        dictionary=lambda wildcards: wildcards.dictionary,
        reads=lambda wildcards: dictionary_points(wildcards)[0],
        writes=lambda wildcards: dictionary_points(wildcards)[1],
        layers=lambda wildcards: config["dictionaries"][wildcards.dictionary]["layers"],
        settings=training_settings,
        checkpoints="results/{model}/{source}/dictionaries/{dictionary}/checkpoints",
        checkpoint_every=checkpoint_every,
        seed=config["seed"],
        device=config["device"],
        code=script_digest("train_sae"),
    script:
        "../scripts/train_sae.py"


rule evaluate_sae:
    """Measure reconstruction, sparsity and the model's loss on the reconstruction, on test documents."""
    input:
        weights="results/{model}/{source}/dictionaries/{dictionary}/weights",
        windows=windows_of,
        chunks=chunks_of,
        model_files=model_inputs,
        dictionary_files=foreign_files,
    output:
        evaluation="results/{model}/{source}/dictionaries/{dictionary}/evaluation.parquet",
        latents="results/{model}/{source}/dictionaries/{dictionary}/latents.parquet",
    log:
        "logs/evaluate_sae/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/evaluate_sae/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_weight=4, per_latent=4, per_window=50),
        runtime=minutes(30, per_token=0.2),
        gpu=gpu_request,
    params:
        model=model_folder,
        dictionary=lambda wildcards: wildcards.dictionary,
        causal_windows=config["score"]["causal_windows"],
        batch_windows=config["capture"]["batch_windows"],
        bootstrap=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("evaluate_sae"),
    script:
        "../scripts/evaluate_sae.py"


rule draw_frontier:
    """Draw variance unexplained against active latents for all dictionaries of a model and source."""
    input:
        evaluations=evaluations_of,
    output:
        table="results/{model}/{source}/dictionaries/frontier.parquet",
        svg="results/{model}/{source}/dictionaries/frontier.svg",
        png="results/{model}/{source}/dictionaries/frontier.png",
    log:
        "logs/draw_frontier/{model}/{source}.log",
    benchmark:
        "results/benchmarks/draw_frontier/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600),
        runtime=minutes(10),
        gpu=0,
    params:
        dictionaries=compared_dictionaries,
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        code=script_digest("draw_frontier"),
    script:
        "../scripts/draw_frontier.py"
