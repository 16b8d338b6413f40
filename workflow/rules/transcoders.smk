# Cross-layer transcoders: trained, measured, and used to draw attribution graphs of prompts.


wildcard_constraints:
    transcoder="|".join(map(re.escape, TRANSCODERS)) or NOTHING,
    graph="|".join(map(re.escape, GRAPHS)) or NOTHING,
    graph_set="|".join(map(re.escape, GRAPH_SETS)) or NOTHING,
    sweep="|".join(map(re.escape, SWEEPS)) or NOTHING,
    decoders="cross|per_layer|tied",
    value=r"[0-9.e+-]+",
    seed=r"[0-9]+",


rule train_clt:
    """Train a cross-layer transcoder on the activations of train documents."""
    input:
        windows=windows_of,
        chunks=chunks_of,
    output:
        clt="results/{model}/{source}/transcoders/{transcoder}/clt.safetensors",
        training="results/{model}/{source}/transcoders/{transcoder}/training.parquet",
    log:
        "logs/train_clt/{model}/{source}/{transcoder}.log",
    benchmark:
        "results/benchmarks/train_clt/{model}/{source}/{transcoder}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_weight=8, per_window=100),
        runtime=minutes(60, per_token=0.2),
        gpu=gpu_request,
    params:
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        transcoder=lambda wildcards: wildcards.transcoder,
        settings=clt_settings,
        checkpoint="results/{model}/{source}/transcoders/{transcoder}/checkpoint.safetensors",
        checkpoint_every=lambda w: config["transcoders"][w.transcoder]["checkpoint_every"],
        seed=config["seed"],
        device=config["device"],
        code=script_digest("train_clt"),
    script:
        "../scripts/train_clt.py"


rule evaluate_clt:
    """Measure reconstruction, sparsity and the replacement model on test documents."""
    input:
        clt="results/{model}/{source}/transcoders/{transcoder}/clt.safetensors",
        windows=windows_of,
        chunks=chunks_of,
        model_files=model_inputs,
    output:
        evaluation="results/{model}/{source}/transcoders/{transcoder}/evaluation.parquet",
        features="results/{model}/{source}/transcoders/{transcoder}/features.parquet",
        examples="results/{model}/{source}/transcoders/{transcoder}/examples.parquet",
    log:
        "logs/evaluate_clt/{model}/{source}/{transcoder}.log",
    benchmark:
        "results/benchmarks/evaluate_clt/{model}/{source}/{transcoder}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(900, per_weight=8, per_window=100),
        runtime=minutes(30, per_token=0.2),
        gpu=gpu_request,
    params:
        model=model_folder,
        causal_windows=config["score"]["causal_windows"],
        batch_windows=config["capture"]["batch_windows"],
        bootstrap=config["score"]["bootstrap"],
        confidence=config["score"]["confidence"],
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("evaluate_clt"),
    script:
        "../scripts/evaluate_clt.py"


rule attribution_graph:
    """Trace one prompt through a transcoder's features, check the graph by interventions, draw its page."""
    input:
        clt="results/{model}/{source}/transcoders/{transcoder}/clt.safetensors",
        features="results/{model}/{source}/transcoders/{transcoder}/features.parquet",
        examples="results/{model}/{source}/transcoders/{transcoder}/examples.parquet",
        explanations=feature_explanations,
        windows=windows_of,
        prompts=graph_prompts,
        model_files=model_inputs,
    output:
        graph="results/{model}/{source}/transcoders/{transcoder}/graphs/{graph}.safetensors",
        public="results/{model}/{source}/transcoders/{transcoder}/graphs/{graph}.json",
        consistency="results/{model}/{source}/transcoders/{transcoder}/graphs/{graph}.consistency.parquet",
        summary="results/{model}/{source}/transcoders/{transcoder}/graphs/{graph}.summary.json",
        page="results/{model}/{source}/transcoders/{transcoder}/graphs/{graph}.html",
    log:
        "logs/attribution_graph/{model}/{source}/{transcoder}/{graph}.log",
    benchmark:
        "results/benchmarks/attribution_graph/{model}/{source}/{transcoder}/{graph}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_weight=6),
        runtime=minutes(30),
        gpu=0,
    params:
        model=model_folder,
        about=lambda wildcards: dict(wildcards.items()),
        settings=graph_settings,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        dtype=config["dtype"],
        code=script_digest("attribution_graph"),
    script:
        "../scripts/attribution_graph.py"


rule trace_prompts:
    """Trace a set of prompts of a task: scores, mean graph with intervals, and what the models write on."""
    input:
        clt="results/{model}/{source}/transcoders/{transcoder}/clt.safetensors",
        prompts=set_prompts,
        model_files=model_inputs,
    output:
        scores="results/{model}/{source}/transcoders/{transcoder}/sets/{graph_set}/scores.parquet",
        edges="results/{model}/{source}/transcoders/{transcoder}/sets/{graph_set}/edges.parquet",
        features="results/{model}/{source}/transcoders/{transcoder}/sets/{graph_set}/features.parquet",
        generation="results/{model}/{source}/transcoders/{transcoder}/sets/{graph_set}/generation.parquet",
    log:
        "logs/trace_prompts/{model}/{source}/{transcoder}/{graph_set}.log",
    benchmark:
        "results/benchmarks/trace_prompts/{model}/{source}/{transcoder}/{graph_set}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1200, per_weight=6),
        runtime=minutes(60),
        gpu=0,
    params:
        model=model_folder,
        about=lambda wildcards: dict(wildcards.items()),
        settings=set_settings,
        seed=config["seed"],
        bos=lambda wildcards: model_config(wildcards)["bos"],
        dtype=config["dtype"],
        code=script_digest("trace_prompts"),
    script:
        "../scripts/trace_prompts.py"


rule describe_clt:
    """Measure what features do on single texts, together over test documents, and on each other by virtual weights."""
    input:
        clt="results/{model}/{source}/transcoders/{transcoder}/clt.safetensors",
        features="results/{model}/{source}/transcoders/{transcoder}/features.parquet",
        windows=windows_of,
        chunks=chunks_of,
        prompts=of_tasks("prompts.jsonl"),
        model_files=model_inputs,
    output:
        activations="results/{model}/{source}/transcoders/{transcoder}/description/activations.parquet",
        text_map="results/{model}/{source}/transcoders/{transcoder}/description/text_map.parquet",
        correlations="results/{model}/{source}/transcoders/{transcoder}/description/correlations.parquet",
        virtual_weights="results/{model}/{source}/transcoders/{transcoder}/description/virtual_weights.parquet",
        layer_weights="results/{model}/{source}/transcoders/{transcoder}/description/layer_weights.parquet",
    log:
        "logs/describe_clt/{model}/{source}/{transcoder}.log",
    benchmark:
        "results/benchmarks/describe_clt/{model}/{source}/{transcoder}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_weight=8, per_window=50),
        runtime=minutes(30, per_token=0.1),
        gpu=0,
    params:
        model=model_folder,
        tasks=lambda wildcards: tasks_of(wildcards.model),
        seed=config["seed"],
        dtype=config["dtype"],
        code=script_digest("describe_clt"),
    script:
        "../scripts/describe_clt.py"


rule render_transcoder:
    """Execute the notebook of one transcoder and render it as one self-contained HTML file."""
    input:
        notebook=repository_file("workflow/notebooks/transcoder.ipynb"),
        evaluation="results/{model}/{source}/transcoders/{transcoder}/evaluation.parquet",
        features="results/{model}/{source}/transcoders/{transcoder}/features.parquet",
        training="results/{model}/{source}/transcoders/{transcoder}/training.parquet",
        activations="results/{model}/{source}/transcoders/{transcoder}/description/activations.parquet",
        text_map="results/{model}/{source}/transcoders/{transcoder}/description/text_map.parquet",
        correlations="results/{model}/{source}/transcoders/{transcoder}/description/correlations.parquet",
        virtual_weights="results/{model}/{source}/transcoders/{transcoder}/description/virtual_weights.parquet",
        layer_weights="results/{model}/{source}/transcoders/{transcoder}/description/layer_weights.parquet",
        graphs=graph_summaries,
        set_files=set_files,
        tokenizer_files=tokenizer_inputs,
    output:
        html=report(
            "results/report/{model}/{source}/transcoders/{transcoder}.html",
            caption="../report/transcoder.rst",
            category="Transcoders",
            subcategory="{model}",
            labels={
                "model": "{model}",
                "source": "{source}",
                "transcoder": "{transcoder}",
                "content": "report",
            },
        ),
        notebook_out="results/report/{model}/{source}/transcoders/{transcoder}.ipynb",
    log:
        text="logs/render_transcoder/{model}/{source}/{transcoder}.log",
        notebook="logs/render_transcoder/{model}/{source}/{transcoder}.ipynb",
    benchmark:
        "results/benchmarks/render_transcoder/{model}/{source}/{transcoder}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500),
        runtime=minutes(20),
        gpu=0,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        source=lambda wildcards: wildcards.source,
        transcoder=lambda wildcards: wildcards.transcoder,
        sets=set_folders,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        code=script_digest("render_transcoder", "transcoder"),
    script:
        "../scripts/render_transcoder.py"


rule train_sweep:
    """Train one transcoder of a sweep, measure it on test documents, and score the graphs of a task's prompts."""
    input:
        windows=windows_of,
        chunks=chunks_of,
        prompts=sweep_prompts,
        model_files=model_inputs,
    output:
        clt="results/{model}/{source}/sweeps/{sweep}/{decoders}/{value}/seed_{seed}/clt.safetensors",
        training="results/{model}/{source}/sweeps/{sweep}/{decoders}/{value}/seed_{seed}/training.parquet",
        evaluation="results/{model}/{source}/sweeps/{sweep}/{decoders}/{value}/seed_{seed}/evaluation.parquet",
    log:
        "logs/train_sweep/{model}/{source}/{sweep}/{decoders}/{value}/{seed}.log",
    benchmark:
        "results/benchmarks/train_sweep/{model}/{source}/{sweep}/{decoders}/{value}/{seed}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, per_weight=8, per_window=100),
        runtime=minutes(60, per_token=0.4),
        gpu=gpu_request,
    params:
        model=model_folder,
        about=lambda wildcards: dict(wildcards.items()),
        settings=sweep_settings,
        checkpoint="results/{model}/{source}/sweeps/{sweep}/{decoders}/{value}/seed_{seed}/checkpoint.safetensors",
        sizes=sweep_sizes,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("train_sweep"),
    script:
        "../scripts/train_sweep.py"


rule draw_sweep:
    """Draw error, divergence and replacement score against active features, for each kind of transcoder of a sweep."""
    input:
        evaluations=sweep_evaluations,
    output:
        table="results/{model}/{source}/sweeps/{sweep}/frontier.parquet",
        compared="results/{model}/{source}/sweeps/{sweep}/compared.parquet",
        svg="results/{model}/{source}/sweeps/{sweep}/frontier.svg",
        png="results/{model}/{source}/sweeps/{sweep}/frontier.png",
    log:
        "logs/draw_sweep/{model}/{source}/{sweep}.log",
    benchmark:
        "results/benchmarks/draw_sweep/{model}/{source}/{sweep}.tsv"
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
        about=lambda wildcards: dict(wildcards.items()),
        code=script_digest("draw_sweep"),
    script:
        "../scripts/draw_sweep.py"
