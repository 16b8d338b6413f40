"""Train one embedded model and measure its card.

Input: the training recipe (sizes, steps, seeds). Output: a folder in Hugging Face format (weights,
configuration, tokenizer) with a model card, its numbers as data and the course of the training.
A checkpoint outside that folder lets a killed run go on where it stopped, with the same result.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechatlas.job import job
from mechatlas.io import atomic_path
from mechatlas.models.device import device_name, pick_device
from mechatlas.models.tokenizer_training import save_tokenizer
from mechatlas.models.training import (
    TrainingRecipe,
    logits_of,
    mean_loss,
    save_model,
    train_model,
)
from mechatlas.tasks import demo_models
from mechatlas.tasks.model_card import model_card


def main(
    model: str,
    recipe_path: str,
    folder: str,
    checkpoint: str,
    prompts: int,
    threads: int,
    device: str,
) -> None:
    """Train ``model`` of the recipe, measure it on ``prompts`` prompts per task and write its folder."""
    torch.set_num_threads(threads)
    recipe = demo_models.read_recipe(recipe_path)
    plan = demo_models.recipe_of(recipe, model)
    tokenizer = demo_models.build_tokenizer(recipe)
    batches = demo_models.build_batches(recipe, model, tokenizer)
    course = Path(checkpoint).with_suffix(".jsonl")
    course.parent.mkdir(parents=True, exist_ok=True)
    with course.open("a", encoding="utf-8") as lines:
        bos = tokenizer.bos_token_id
        trained, seconds = train_model(plan, batches, bos, checkpoint, lines, device)
    windows = demo_models.validation_windows(recipe, tokenizer, plan.context)
    metrics = {
        "model": model,
        "training": {
            "device": device_name(device),
            "minutes": round(seconds / 60, 1),
            "steps": plan.steps,
            "tokens": sum(tokens.size for tokens, _ in batches),
            "parameters": sum(p.numel() for p in trained.parameters()),
            "bos": bos,
        },
        "prompts": prompts,
        **demo_models.measure_card(
            logits_of(trained), tokenizer, windows, lambda w: mean_loss(trained, w), prompts
        ),
    }
    with atomic_path(folder, folder=True) as temporary:
        save_model(trained, temporary)
        save_tokenizer(tokenizer, temporary, plan.context)
        write_card(temporary, plan, metrics)
        (temporary / "training.jsonl").write_text(_course(course), encoding="utf-8")
    for done in (Path(checkpoint), course):
        done.unlink()


def write_card(folder: Path, plan: TrainingRecipe, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` and ``README.md``."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(metrics["model"], plan, metrics), encoding="utf-8")


def _course(path: Path) -> str:
    """Return the logged steps once each: a resumed run has repeated those after its checkpoint."""
    lines = {
        json.loads(line)["step"]: line for line in path.read_text(encoding="utf-8").splitlines()
    }
    return "".join(f"{lines[step]}\n" for step in sorted(lines))


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(
            snakemake.wildcards.model,
            arguments["recipe"],
            str(Path(arguments["weights"]).parent),
            arguments["checkpoint"],
            arguments["prompts"],
            snakemake.threads,
            pick_device(snakemake.resources.gpu, arguments["device"]),
        )
