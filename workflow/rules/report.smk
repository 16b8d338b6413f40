# What people read, and the checksums of everything.


rule report_heads:
    """Write the findings of one model and source as Markdown and as a table."""
    input:
        explanations=explanations_of,
        scores="results/{model}/{source}/heads/scores.parquet",
        document_scores="results/{model}/{source}/heads/document_scores.parquet",
        clusters="results/{model}/{source}/heads/clusters.json",
        curve="results/{model}/{source}/heads/replacement.parquet",
        events="results/{model}/{source}/heads/raw_events.parquet",
        windows="results/{model}/{source}/windows.parquet",
        judge_scores=judge_scores_of,
        tokenizer_files=tokenizer_inputs,
    output:
        report="results/{model}/{source}/heads/report.md",
        summary=report(
            "results/{model}/{source}/heads/summary.csv",
            caption="../report/summary.rst",
            category="Attention heads",
            subcategory="{model}",
            labels={"model": "{model}", "source": "{source}", "content": "table of heads"},
        ),
        headline="results/{model}/{source}/heads/headline.json",
        all_explanations="results/{model}/{source}/heads/explanations.jsonl",
    log:
        "logs/report_heads/{model}/{source}.log",
    benchmark:
        "results/benchmarks/report_heads/{model}/{source}.tsv"
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
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        code=script_digest("report_heads"),
    script:
        "../scripts/report_heads.py"


rule render_heads:
    """Execute the notebook of one model and source and render it as one self-contained HTML file."""
    input:
        notebook=repository_file("workflow/notebooks/heads.ipynb"),
        explanations="results/{model}/{source}/heads/explanations.jsonl",
        scores="results/{model}/{source}/heads/scores.parquet",
        clusters="results/{model}/{source}/heads/clusters.json",
        curve="results/{model}/{source}/heads/replacement.parquet",
        headline="results/{model}/{source}/heads/headline.json",
        events="results/{model}/{source}/heads/raw_events.parquet",
        windows="results/{model}/{source}/windows.parquet",
        judge_scores=judge_scores_of,
        tokenizer_files=tokenizer_inputs,
    output:
        html=report(
            "results/report/{model}/{source}/heads.html",
            caption="../report/heads.rst",
            category="Attention heads",
            subcategory="{model}",
            labels={"model": "{model}", "source": "{source}", "content": "report"},
        ),
        notebook_out="results/report/{model}/{source}/heads.ipynb",
    log:
        text="logs/render_heads/{model}/{source}.log",
        notebook="logs/render_heads/{model}/{source}.ipynb",
    benchmark:
        "results/benchmarks/render_heads/{model}/{source}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_window=50),
        runtime=minutes(20),
        gpu=0,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        code=script_digest("render_heads", "heads"),
    script:
        "../scripts/render_heads.py"


rule render_index:
    """Link the atlas and the reports of all models and sources on one page."""
    input:
        atlas="results/report/atlas",
        pages=for_each("results/report/{model}/{source}/heads.html"),
        summaries=for_each("results/{model}/{source}/heads/summary.csv"),
        headlines=for_each("results/{model}/{source}/heads/headline.json"),
        circuit_pages=[path for path in circuit_pages() if path.endswith(".html")],
        circuits=for_tasks("nodes/circuit.json"),
        latent_pages=for_each_dictionary(
            "results/report/{model}/{source}/latents/{dictionary}.html"
        ),
        latent_summaries=for_each_dictionary(f"{LATENTS}/summary.csv"),
        latent_headlines=for_each_dictionary(f"{LATENTS}/headline.json"),
        transcoder_pages=transcoder_pages(),
    output:
        index="results/report/index.html",
    log:
        "logs/render_index/index.log",
    benchmark:
        "results/benchmarks/render_index/index.tsv"
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(600),
        runtime=minutes(10),
        gpu=0,
    params:
        names=[list(place) for place in PLACES],
        circuit_names=[[model, task] for model in MODELS for task in tasks_of(model)],
        latent_names=[list(place) for place in latent_places()],
        transcoder_names=[list(place) for place in transcoder_places()],
        code=script_digest("render_index"),
    script:
        "../scripts/render_index.py"


rule write_manifest:
    """Write the SHA-256 of every result file, to be checked by sha256sum -c or by the target verify."""
    input:
        files=every_result(),
    output:
        manifest="results/manifest.sha256",
    log:
        "logs/write_manifest/manifest.log",
    benchmark:
        "results/benchmarks/write_manifest/manifest.tsv"
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(300),
        runtime=minutes(10),
        gpu=0,
    params:
        code=script_digest("write_manifest"),
    script:
        "../scripts/write_manifest.py"


rule verify:
    """Compare every result file with the manifest; makes nothing anew."""
    log:
        "logs/verify/verify.log",
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(300),
        runtime=minutes(10),
        gpu=0,
    params:
        manifest="results/manifest.sha256",
    script:
        "../scripts/verify.py"
