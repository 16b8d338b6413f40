# What carries each task: patching, roles and lenses; pruned circuits of nodes; circuits of edges; all tasks compared.


rule patch_layers:
    """Patch the components of some layers of a model on one task, for `measure_components` to gather."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        model_files=model_inputs,
    output:
        patched=LAYER_BATCH,
    log:
        "logs/patch_layers/{model}/{task}/{batch}.log",
    benchmark:
        "results/benchmarks/patch_layers/{model}/{task}/{batch}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_weight=4),
        runtime=minutes(240),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        batch=place_among(layer_jobs),
        bos=lambda wildcards: model_config(wildcards)["bos"],
        patching=config["circuits"]["patching"],
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/patching",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("patch_layers"),
    script:
        "../scripts/patch_layers.py"


rule measure_components:
    """Patch every component of a model on one task, measure the roles of heads, and read the residual stream."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        batches=gathered(layer_jobs, LAYER_BATCH),
        model_files=model_inputs,
        task_files=task_files,
    output:
        effects="results/{model}/tasks/{task}/patching/effects.parquet",
        pair_effects="results/{model}/tasks/{task}/patching/pair_effects.parquet",
        strongest="results/{model}/tasks/{task}/patching/strongest.csv",
        roles="results/{model}/tasks/{task}/roles/heads.parquet",
        logit_lens="results/{model}/tasks/{task}/lens/logit_lens.parquet",
        transitions="results/{model}/tasks/{task}/lens/transitions.parquet",
        direct="results/{model}/tasks/{task}/lens/direct.parquet",
        attention="results/{model}/tasks/{task}/lens/attention.parquet",
        patterns="results/{model}/tasks/{task}/lens/patterns.parquet",
        positions="results/{model}/tasks/{task}/lens/positions.parquet",
        qk="results/{model}/tasks/{task}/lens/qk.parquet",
        qk_members="results/{model}/tasks/{task}/lens/qk_members.parquet",
        ov="results/{model}/tasks/{task}/lens/ov.parquet",
        ov_members="results/{model}/tasks/{task}/lens/ov_members.parquet",
        matrices="results/{model}/tasks/{task}/lens/matrices.parquet",
    log:
        "logs/measure_components/{model}/{task}.log",
    benchmark:
        "results/benchmarks/measure_components/{model}/{task}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_weight=4),
        runtime=minutes(240),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        settings=task_settings,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        patching=config["circuits"]["patching"],
        thresholds=config["circuits"]["roles"],
        options=circuit_options(),
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/patching",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("measure_components"),
    script:
        "../scripts/measure_components.py"


rule prune_halves:
    """Prune nodes on some random halves of the prompts of one task, for `prune_nodes` to gather."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        model_files=model_inputs,
    output:
        halves=HALF_BATCH,
    log:
        "logs/prune_halves/{model}/{task}/{batch}.log",
    benchmark:
        "results/benchmarks/prune_halves/{model}/{task}/{batch}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_weight=4),
        runtime=minutes(480),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        batch=place_among(half_jobs),
        bos=lambda wildcards: model_config(wildcards)["bos"],
        nodes=node_settings,
        seed=config["seed"],
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/nodes",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("prune_halves"),
    script:
        "../scripts/prune_halves.py"


rule prune_nodes:
    """Find the heads and MLPs that a task needs by ablation, and judge that circuit on held-out prompts."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        audit="results/{model}/tasks/{task}/audit.json",
        halves=gathered(half_jobs, HALF_BATCH),
        model_files=model_inputs,
    output:
        circuit="results/{model}/tasks/{task}/nodes/circuit.json",
        least_harmful="results/{model}/tasks/{task}/nodes/least_harmful.json",
        effects="results/{model}/tasks/{task}/nodes/effects.parquet",
        pruning="results/{model}/tasks/{task}/nodes/pruning.parquet",
        curve="results/{model}/tasks/{task}/nodes/curve.parquet",
        stability="results/{model}/tasks/{task}/nodes/stability.parquet",
        completeness="results/{model}/tasks/{task}/nodes/completeness.parquet",
        minimality="results/{model}/tasks/{task}/nodes/minimality.parquet",
        random="results/{model}/tasks/{task}/nodes/random.parquet",
    log:
        "logs/prune_nodes/{model}/{task}.log",
    benchmark:
        "results/benchmarks/prune_nodes/{model}/{task}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_weight=4),
        runtime=minutes(480),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        nodes=node_settings,
        options=circuit_options(),
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/nodes",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("prune_nodes"),
    script:
        "../scripts/prune_nodes.py"


rule trace_parts:
    """Do some of the independent parts of the edges of one task, for `trace_edges` to gather."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        model_files=model_inputs,
    output:
        parts=EDGE_BATCH,
    log:
        "logs/trace_parts/{model}/{task}/{batch}.log",
    benchmark:
        "results/benchmarks/trace_parts/{model}/{task}/{batch}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(2500, per_weight=6),
        runtime=minutes(480),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        batch=place_among(edge_jobs),
        bos=lambda wildcards: model_config(wildcards)["bos"],
        edges=config["circuits"]["edges"],
        seed=config["seed"],
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/edges",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("trace_parts"),
    script:
        "../scripts/trace_parts.py"


rule trace_edges:
    """Score every edge by attribution and exactly, and find circuits of edges by search and by ACDC."""
    input:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        parts=gathered(edge_jobs, EDGE_BATCH),
        model_files=model_inputs,
    output:
        circuit="results/{model}/tasks/{task}/edges/circuit.json",
        acdc="results/{model}/tasks/{task}/edges/acdc.json",
        effects="results/{model}/tasks/{task}/edges/effects.parquet",
        curve="results/{model}/tasks/{task}/edges/curve.parquet",
        agreement="results/{model}/tasks/{task}/edges/agreement.parquet",
        paths="results/{model}/tasks/{task}/edges/paths.parquet",
    log:
        "logs/trace_edges/{model}/{task}.log",
    benchmark:
        "results/benchmarks/trace_edges/{model}/{task}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(2500, per_weight=6),
        runtime=minutes(480),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        edges=config["circuits"]["edges"],
        options=circuit_options(),
        steps=lambda wildcards: f"results/steps/{wildcards.model}/{wildcards.task}/edges",
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("trace_edges"),
    script:
        "../scripts/trace_edges.py"


rule compare_circuits:
    """Compare the circuits of all tasks of one model, and remove each while the model generates."""
    input:
        prompts=of_tasks("prompts.jsonl"),
        circuits=of_tasks("nodes/circuit.json"),
        least_harmful=of_tasks("nodes/least_harmful.json"),
        edge_circuits=of_tasks("edges/circuit.json"),
        extra=extra_circuits,
        questions=question_files(),
        model_files=model_inputs,
    output:
        overlap="results/{model}/circuits/overlap.parquet",
        cross_task="results/{model}/circuits/cross_task.parquet",
        generation="results/{model}/circuits/generation.parquet",
        generation_random="results/{model}/circuits/generation_random.parquet",
    log:
        "logs/compare_circuits/{model}.log",
    benchmark:
        "results/benchmarks/compare_circuits/{model}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, per_weight=4),
        runtime=minutes(120),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        extra_names=extra_names,
        settings=config["circuits"]["generation"],
        ablation={key: config["circuits"]["nodes"][key] for key in ("ablation", "metric")},
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("compare_circuits"),
    script:
        "../scripts/compare_circuits.py"


rule compare_published:
    """Put the numbers of one model beside published ones."""
    input:
        numbers=published_inputs,
        circuits=of_tasks("nodes/circuit.json"),
        node_files=of_tasks("nodes/effects.parquet"),
        role_files=of_tasks("roles/heads.parquet"),
        lens_files=of_tasks("lens/ov.parquet"),
        transition_files=of_tasks("lens/transitions.parquet"),
        cross_task="results/{model}/circuits/cross_task.parquet",
    output:
        published="results/{model}/circuits/published.parquet",
    log:
        "logs/compare_published/{model}.log",
    benchmark:
        "results/benchmarks/compare_published/{model}.tsv"
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
        name=lambda wildcards: wildcards.model,
        code=script_digest("compare_published"),
    script:
        "../scripts/compare_published.py"


rule render_circuits:
    """Execute the notebook of one model's circuits and render it as one self-contained HTML file."""
    input:
        notebook=repository_file("workflow/notebooks/circuits.ipynb"),
        prompts=of_tasks("prompts.jsonl"),
        shown_files=shown_files,
        published=published_of,
    output:
        html=report(
            "results/report/{model}/circuits.html",
            caption="../report/circuits.rst",
            category="Circuits",
            subcategory="{model}",
            labels={"model": "{model}", "content": "report"},
        ),
        notebook_out="results/report/{model}/circuits.ipynb",
    log:
        text="logs/render_circuits/{model}.log",
        notebook="logs/render_circuits/{model}.ipynb",
    benchmark:
        "results/benchmarks/render_circuits/{model}.tsv"
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
        name=lambda wildcards: wildcards.model,
        tasks=lambda wildcards: tasks_of(wildcards.model),
        folder=lambda wildcards: f"results/{wildcards.model}/tasks",
        shared=lambda wildcards: f"results/{wildcards.model}/circuits",
        code=script_digest("render_circuits", "circuits"),
    script:
        "../scripts/render_circuits.py"
