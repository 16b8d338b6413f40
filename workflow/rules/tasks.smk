# Prompts of the tasks that circuits are found for.


wildcard_constraints:
    task="|".join(map(re.escape, TASKS)),


rule prepare_prompts:
    """Make the clean and corrupted prompts of one task for one model and measure the model on them."""
    input:
        model_files=model_inputs,
        task_files=task_files,
    output:
        prompts="results/{model}/tasks/{task}/prompts.jsonl",
        audit="results/{model}/tasks/{task}/audit.json",
    log:
        "logs/prepare_prompts/{model}/{task}.log",
    benchmark:
        "results/benchmarks/prepare_prompts/{model}/{task}.tsv"
    wildcard_constraints:
        model=TRAINED,
    conda:
        "../../envs/mechatlas.yaml"
    threads: 1
    resources:
        mem_mb=memory(700, per_weight=4),
        runtime=minutes(20),
        gpu=gpu_request,
    params:
        model=model_folder,
        name=lambda wildcards: wildcards.model,
        task=lambda wildcards: wildcards.task,
        settings=task_settings,
        bos=lambda wildcards: model_config(wildcards)["bos"],
        seed=config["seed"],
        device=config["device"],
        dtype=config["dtype"],
        code=script_digest("prepare_prompts"),
    script:
        "../scripts/prepare_prompts.py"
