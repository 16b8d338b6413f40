# Helpers of the rules about tasks and their prompts.
TASKS = list(config["tasks"])


def tasks_of(model):
    """The tasks that are for a model."""
    return [name for name in TASKS if model in (config["tasks"][name]["models"] or MODELS)]


def task_settings(wildcards):
    """The config entry of a task, with the file of a task of the user's own as it is found."""
    entry = config["tasks"][wildcards.task]
    settings = {k: v for k, v in entry.items() if k not in ("models", "keep")}
    if "file" in settings:
        settings["file"] = task_files(wildcards)[0]
    return settings


def task_files(wildcards):
    """The Python file of a task of the user's own, none for built-in ones."""
    settings = config["tasks"][wildcards.task]
    if "file" not in settings:
        return []
    return [shown(find_path(settings["file"], Path.cwd(), REPOSITORY))]


def for_tasks(*files):
    """These files of every model and each of its tasks."""
    folders = [f"results/{model}/tasks/{task}" for model in MODELS for task in tasks_of(model)]
    return [f"{folder}/{file}" for folder in folders for file in files]


def prompt_files():
    """The prompts of every task, with their audits."""
    return for_tasks("prompts.jsonl", "audit.json")
