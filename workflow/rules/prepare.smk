# Models and text: downloads, documents, windows.


rule fetch_model:
    """Download one model of the Hugging Face hub at its pinned revision."""
    output:
        folder=directory("resources/downloads/models/{model}"),
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        "results/benchmarks/fetch_model/{model}.tsv"
    wildcard_constraints:
        model=TRAINED,
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=minutes(60),
        gpu=0,
    params:
        hub=lambda wildcards: model_config(wildcards)["hub"],
        revision=lambda wildcards: model_config(wildcards)["revision"],
    script:
        "../scripts/fetch_model.py"


rule fetch_source:
    """Download one corpus of the Hugging Face hub at its pinned revision."""
    output:
        text="resources/downloads/sources/{source}.parquet",
        checksum="resources/downloads/sources/{source}.parquet.sha256",
    log:
        "logs/fetch_source/{source}.log",
    benchmark:
        "results/benchmarks/fetch_source/{source}.tsv"
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500),
        runtime=minutes(60),
        gpu=0,
    params:
        source=lambda wildcards: wildcards.source,
        config=lambda wildcards: config["sources"][wildcards.source]["config"],
        split=lambda wildcards: config["sources"][wildcards.source]["split"],
        revision=lambda wildcards: config["sources"][wildcards.source]["revision"],
    script:
        "../scripts/fetch_source.py"


rule prepare_documents:
    """Read or generate the documents of one source."""
    input:
        files=source_inputs,
    output:
        documents="results/sources/{source}/documents.parquet",
    log:
        "logs/prepare_documents/{source}.log",
    benchmark:
        "results/benchmarks/prepare_documents/{source}.tsv"
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600),
        runtime=minutes(10),
        gpu=0,
    params:
        source=lambda wildcards: wildcards.source,
        settings=source_settings,
        seed=config["seed"],
        code=script_digest("prepare_documents"),
    script:
        "../scripts/prepare_documents.py"


rule sample_windows:
    """Cut windows from the documents and deal the documents out to train, validation and test."""
    input:
        documents="results/sources/{source}/documents.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        windows="results/{model}/{source}/windows.parquet",
    log:
        "logs/sample_windows/{model}/{source}.log",
    benchmark:
        "results/benchmarks/sample_windows/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600, per_window=50),
        runtime=minutes(10),
        gpu=0,
    params:
        model=model_folder,
        source=lambda wildcards: wildcards.source,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        windows_count=config["sampling"]["windows"],
        window_len=config["sampling"]["window_len"],
        split=config["sampling"]["split"],
        pattern_windows=config["sampling"]["pattern_windows"],
        seed=config["seed"],
        code=script_digest("sample_windows"),
    script:
        "../scripts/sample_windows.py"
