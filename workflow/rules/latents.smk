# Latents of dictionaries: where they are active, explanations of the most important ones, and tests of these.


rule capture_latents:
    """Encode the activations of one chunk of windows and keep what is active, sparse, all layers."""
    input:
        chunk="results/{model}/{source}/capture/{chunk}",
        weights=latent_weights,
        dictionary_files=latent_files,
    output:
        codes=directory("results/{model}/{source}/latents/{dictionary}/codes/{chunk}"),
    log:
        "logs/capture_latents/{model}/{source}/{dictionary}/{chunk}.log",
    benchmark:
        "results/benchmarks/capture_latents/{model}/{source}/{dictionary}/{chunk}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_latent=4, per_window=50),
        runtime=minutes(10, per_token=0.1),
        gpu=gpu_request,
    params:
        dictionary=lambda wildcards: wildcards.dictionary,
        device=config["device"],
        code=script_digest("capture_latents"),
    script:
        "../scripts/capture_latents.py"


rule merge_latents:
    """Bring all chunks together: statistics of all latents, events of the most important ones, neighbours, controls."""
    input:
        codes=codes_of,
        chunks=chunks_of,
        windows=windows_of,
        weights=latent_weights,
        dictionary_files=latent_files,
    output:
        events="results/{model}/{source}/latents/{dictionary}/raw_events.parquet",
        stats="results/{model}/{source}/latents/{dictionary}/latent_stats.parquet",
        neighbours="results/{model}/{source}/latents/{dictionary}/neighbours.parquet",
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
    log:
        "logs/merge_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/merge_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_latent=4, per_window=200),
        runtime=minutes(30, per_token=0.1),
        gpu=0,
    params:
        sizes=latent_sizes,
        event_sizes=latent_event_sizes(),
        seed=config["seed"],
        code=script_digest("merge_latents"),
    script:
        "../scripts/merge_latents.py"


rule fit_latents:
    """Fit a program to some of the explained latents and their controls, for `explain_latents` to gather."""
    input:
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        explanations=LATENT_BATCH,
    log:
        "logs/fit_latents/{model}/{source}/{dictionary}/{batch}.log",
    benchmark:
        "results/benchmarks/fit_latents/{model}/{source}/{dictionary}/{batch}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(800, per_window=200),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        batch=place_among(latent_jobs),
        programs=config["latents"]["programs"],
        controls=latent_controls("shuffled", "random_direction"),
        seed=config["seed"],
        code=script_digest("fit_latents"),
    script:
        "../scripts/fit_latents.py"


rule explain_latents:
    """Fit a program to every explained latent on train documents, chosen by validation, and to its controls."""
    input:
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        batches=gathered(latent_jobs, LATENT_BATCH),
        tokenizer_files=tokenizer_inputs,
    output:
        explanations="results/{model}/{source}/latents/{dictionary}/explanations/programs.jsonl",
    log:
        "logs/explain_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/explain_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(800, per_window=200),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        programs=config["latents"]["programs"],
        controls=latent_controls("shuffled", "random_direction"),
        seed=config["seed"],
        code=script_digest("explain_latents"),
    script:
        "../scripts/explain_latents.py"


rule ask_latents:
    """Ask a language model what every explained latent stands for; what it answers is stored as it comes."""
    input:
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        events="results/{model}/{source}/latents/{dictionary}/raw_events.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        explanations="results/{model}/{source}/latents/{dictionary}/explanations/openai.jsonl",
    log:
        "logs/ask_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/ask_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
    localrule: True
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_window=200),
        runtime=minutes(240),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        openai=language_model(config["explain"]["openai"]),
        openai_at=reached_at(config["explain"]["openai"]),
        judge=explainer_judge() and language_model(explainer_judge()),
        judge_at=reached_at(config["judge"]),
        llm=not_compared(config["llm"]),
        seed=config["seed"],
        code=script_digest("ask_latents"),
    script:
        "../scripts/ask_latents.py"


rule measure_latents:
    """Run the model without latents, on what programs predict of them, and steered by them."""
    input:
        explanations=latent_explanations,
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        weights=latent_weights,
        model_files=model_inputs,
        dictionary_files=latent_files,
    output:
        losses="results/{model}/{source}/latents/{dictionary}/causal_losses.parquet",
        steering="results/{model}/{source}/latents/{dictionary}/steering.parquet",
        promoted="results/{model}/{source}/latents/{dictionary}/promoted.parquet",
        promoted_tokens="results/{model}/{source}/latents/{dictionary}/promoted_tokens.parquet",
    log:
        "logs/measure_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/measure_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_weight=4, per_latent=4, per_window=200),
        runtime=minutes(60, per_token=1),
        gpu=gpu_request,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        controls=latent_controls("swapped", "shuffled"),
        sizes=measure_sizes(),
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("measure_latents"),
    script:
        "../scripts/measure_latents.py"


rule score_latents:
    """Score explanations of latents on test documents against controls, with intervals and false discovery rate."""
    input:
        explanations=latent_explanations,
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        events="results/{model}/{source}/latents/{dictionary}/raw_events.parquet",
        losses=measured("causal_losses.parquet"),
        promoted=measured("promoted.parquet"),
        tokenizer_files=tokenizer_inputs,
    output:
        scores="results/{model}/{source}/latents/{dictionary}/scores.parquet",
    log:
        "logs/score_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/score_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=EVERY_MODEL,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_window=200),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        controls=latent_controls("swapped", "shuffled"),
        active_share=config["latents"]["active_share"],
        bootstrap=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        fdr=config["score"]["fdr"],
        min_events=config["score"]["min_events"],
        seed=config["seed"],
        code=script_digest("score_latents"),
    script:
        "../scripts/score_latents.py"


rule select_latent_items:
    """Choose the questions that a judge is asked about latents: test items of all explained and of planted ones."""
    input:
        programs=latent_baselines,
        windows=windows_of,
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        tokenizer_files=tokenizer_inputs,
    output:
        test_items="results/{model}/{source}/latents/{dictionary}/judge/items.parquet",
    log:
        "logs/select_latent_items/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/select_latent_items/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_window=400),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        scorers=config["judge"]["scorers"],
        sizes=item_sizes(),
        planted=config["judge"]["planted"],
        active_share=config["latents"]["active_share"],
        seed=config["seed"],
        code=script_digest("select_latent_items"),
    script:
        "../scripts/select_latent_items.py"


rule judge_latents:
    """Ask the judge about every explanation of latents; what it answers is stored as it comes."""
    input:
        test_items="results/{model}/{source}/latents/{dictionary}/judge/items.parquet",
        explanations=judged_latents,
    output:
        judgements="results/{model}/{source}/latents/{dictionary}/judge/judgements.parquet",
        usage="results/{model}/{source}/latents/{dictionary}/judge/judge_usage.parquet",
    log:
        "logs/judge_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/judge_latents/{model}/{source}/{dictionary}.tsv"
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
        code=script_digest("judge_latents"),
    script:
        "../scripts/judge_latents.py"


rule summarise_latent_judgements:
    """Scores of latents by the judge with intervals, gains over program and look-up, controls, failures and spend."""
    input:
        test_items="results/{model}/{source}/latents/{dictionary}/judge/items.parquet",
        judgements="results/{model}/{source}/latents/{dictionary}/judge/judgements.parquet",
        usage="results/{model}/{source}/latents/{dictionary}/judge/judge_usage.parquet",
    output:
        scores="results/{model}/{source}/latents/{dictionary}/judge_scores.parquet",
    log:
        "logs/summarise_latent_judgements/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/summarise_latent_judgements/{model}/{source}/{dictionary}.tsv"
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
        active_share=config["latents"]["active_share"],
        seed=config["seed"],
        code=script_digest("summarise_latent_judgements"),
    script:
        "../scripts/summarise_latent_judgements.py"


rule report_latents:
    """Write the findings about the latents of one dictionary as Markdown and as a table."""
    input:
        explanations=latent_explanations,
        scores="results/{model}/{source}/latents/{dictionary}/scores.parquet",
        stats="results/{model}/{source}/latents/{dictionary}/latent_stats.parquet",
        judge_scores=judge_scores_of_latents,
        random_scores=random_latent_scores,
    output:
        report="results/{model}/{source}/latents/{dictionary}/report.md",
        summary=report(
            "results/{model}/{source}/latents/{dictionary}/summary.csv",
            caption="../report/latents_summary.rst",
            category="Latents",
            subcategory="{model}",
            labels={
                "model": "{model}",
                "source": "{source}",
                "dictionary": "{dictionary}",
                "content": "table of latents",
            },
        ),
        headline="results/{model}/{source}/latents/{dictionary}/headline.json",
        all_explanations="results/{model}/{source}/latents/{dictionary}/explanations.jsonl",
    log:
        "logs/report_latents/{model}/{source}/{dictionary}.log",
    benchmark:
        "results/benchmarks/report_latents/{model}/{source}/{dictionary}.tsv"
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
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        dictionary=lambda wildcards: wildcards.dictionary,
        code=script_digest("report_latents"),
    script:
        "../scripts/report_latents.py"


rule render_latents:
    """Execute the notebook of one dictionary of latents and render it as one self-contained HTML file."""
    input:
        notebook=repository_file("workflow/notebooks/latents.ipynb"),
        explanations="results/{model}/{source}/latents/{dictionary}/explanations.jsonl",
        scores="results/{model}/{source}/latents/{dictionary}/scores.parquet",
        stats="results/{model}/{source}/latents/{dictionary}/latent_stats.parquet",
        headline="results/{model}/{source}/latents/{dictionary}/headline.json",
        events="results/{model}/{source}/latents/{dictionary}/raw_events.parquet",
        activations="results/{model}/{source}/latents/{dictionary}/activations.parquet",
        neighbours="results/{model}/{source}/latents/{dictionary}/neighbours.parquet",
        steering="results/{model}/{source}/latents/{dictionary}/steering.parquet",
        promoted_tokens="results/{model}/{source}/latents/{dictionary}/promoted_tokens.parquet",
        windows="results/{model}/{source}/windows.parquet",
        judge_scores=judge_scores_of_latents,
        tokenizer_files=tokenizer_inputs,
    output:
        html=report(
            "results/report/{model}/{source}/latents/{dictionary}.html",
            caption="../report/latents.rst",
            category="Latents",
            subcategory="{model}",
            labels={
                "model": "{model}",
                "source": "{source}",
                "dictionary": "{dictionary}",
                "content": "report",
            },
        ),
        notebook_out="results/report/{model}/{source}/latents/{dictionary}.ipynb",
    log:
        text="logs/render_latents/{model}/{source}/{dictionary}.log",
        notebook="logs/render_latents/{model}/{source}/{dictionary}.ipynb",
    benchmark:
        "results/benchmarks/render_latents/{model}/{source}/{dictionary}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_window=200),
        runtime=minutes(20),
        gpu=0,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        dictionary=lambda wildcards: wildcards.dictionary,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        code=script_digest("render_latents", "latents"),
    script:
        "../scripts/render_latents.py"
