"""The model card of an embedded model, written from its measured numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechatlas.models.training import TrainingRecipe


def model_card(name: str, plan: TrainingRecipe, metrics: Mapping[str, Any]) -> str:
    """Return the README of a model folder in Markdown."""
    return (
        "\n".join([_head(name, plan, metrics), _ioi(metrics), _sequences(metrics), _rest(metrics)])
        + "\n"
    )


def _head(name: str, plan: TrainingRecipe, metrics: Mapping[str, Any]) -> str:
    training = metrics["training"]
    millions = training["tokens"] / 1e6
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model of the GPT-2 architecture for interpretability work on a laptop:
{plan.layers} layers x {plan.heads} heads, residual width {plan.width}, {plan.context} positions,
{plan.vocab_size} byte-level BPE tokens, tied embeddings, {training["parameters"]:,} parameters, float32.
It was trained on generated text only (`mechatlas.corpus.synthetic`) and knows nothing about the world.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("resources/models/{name}")
    tokenizer = AutoTokenizer.from_pretrained("resources/models/{name}")

The tokenizer adds no special token. Put `<|endoftext|>` (id {training["bos"]}) in front of every text, as in training.

## Training

`snakemake --cores 1 retrain_demo_models` follows `resources/models/recipe.yaml` (seed {plan.seed}):
{plan.steps:,} steps on {millions:.1f} million tokens {_spent(training)},
Muon for the matrices inside the blocks and AdamW for the rest, with warm-up and cosine decay. Windows are cuts of
generated articles and question/answer threads at varying places, drills of the behaviours below, and blocks of
random tokens that repeat; short windows come first. From step {plan.entropy_from:,} on the loss includes up to
{plan.entropy_weight:g} x the mean entropy of the attention rows, so that each head attends to few tokens: the heads
of this model are easier to read than those of models trained without such a term.

The files here are what one run of that recipe gave. A run that is interrupted goes on from its checkpoint and repeats
the same steps bit for bit; another processor rounds differently, and its model has other heads for the same tasks.

## Measured

"Held-out" names, templates, starts of sequences and first years are those that training never shows in that role
(`mechatlas.corpus.lexicon`, `mechatlas.corpus.templates`). The same numbers as data: `metrics.json`;
`tests/unit/test_embedded_models.py` measures them again from the weights.
"""


def _spent(training: Mapping[str, Any]) -> str:
    if training["device"] == "cpu":
        return f"in {training['minutes']:.0f} CPU-minutes of one thread"
    return f"in {training['minutes']:.1f} minutes on one {training['device']}"


def _ioi(metrics: Mapping[str, Any]) -> str:
    lines = [
        "### Indirect objects\n",
        "| prompts | n | IO above S | IO is top-1 | mean logit difference IO - S |",
        "|---|---|---|---|---|",
    ]
    for split, score in metrics["ioi"].items():
        lines.append(
            f"| {split.replace('_', '-')} | {score['count']} | {score['accuracy']:.1%} | {score['top1']:.1%} "
            f"| {score['logit_difference']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _sequences(metrics: Mapping[str, Any]) -> str:
    lines = [
        "### Next member of a sequence\n",
        "Held-out starts of the class in the frame (n prompts); in brackets all starts.",
        "The logit difference is next minus last shown member.\n",
        "| class | frame | n | top-1 | mean logit difference |",
        "|---|---|---|---|---|",
    ]
    for name, frames in metrics["sequences"].items():
        for frame, score in frames.items():
            part = score["held_out"]
            lines.append(
                f"| {name} | {frame} | {part['count']} | {part['top1']:.1%} ({score['all_top1']:.1%}) "
                f"| {part['logit_difference']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _rest(metrics: Mapping[str, Any]) -> str:
    years, loss = metrics["greater_than"], metrics["validation_loss"]
    tokens = metrics["validation_tokens"]
    return f"""### Other

| measure | value |
|---|---|
| induction: top-1 on the second copy of 50 random tokens | {metrics["induction_top1"]:.1%} |
| greater-than, held-out first years: likeliest token is a later year | {years["accuracy"]:.1%} |
| greater-than, held-out first years: P(later) - P(not later) | {years["probability_difference"]:.3f} |
| validation loss on generated text ({tokens:,} tokens) | {loss:.3f} nats per token |"""
