# Prompts of the tasks that circuits are found for.

TASKS = list(config["tasks"])


wildcard_constraints:
    task="|".join(map(re.escape, TASKS)),


def task_settings(wildcards):
    """The config entry of a task, with the file of a task of the user's own as it is found."""
    settings = dict(config["tasks"][wildcards.task])
    if "file" in settings:
        settings["file"] = task_files(wildcards)[0]
    return settings


def task_files(wildcards):
    """The Python file of a task of the user's own, none for built-in ones."""
    settings = config["tasks"][wildcards.task]
    if "file" not in settings:
        return []
    return [shown(find_path(settings["file"], Path.cwd(), REPOSITORY))]


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
