"""The embedded models: what their recipe trains them on, and the numbers on their cards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.corpus.document import Document
from mechatlas.corpus.synthetic import generate_documents, generate_drills
from mechatlas.corpus.training_windows import (
    Phase,
    Substitution,
    cut_windows,
    encode_documents,
    first_windows,
    phase_batches,
)
from mechatlas.io import UserError, rng_for
from mechatlas.models.tokenizer_training import train_tokenizer
from mechatlas.models.training import TrainingRecipe
from mechatlas.tasks.behaviours import Logits, induction_top1, measure, measure_choices
from mechatlas.tasks.greater_than import build_greater_than
from mechatlas.tasks.induction import repeated_tokens
from mechatlas.tasks.ioi import build_ioi
from mechatlas.tasks.sequences import build_sequences, held_out_starts

STYLES = ("wiki", "qa")
CARD_SEED = 101
IOI_SPLITS = (
    ("held_out", "held_out"),
    ("held_out", "train"),
    ("train", "held_out"),
    ("train", "train"),
)
INDUCTION_PERIOD = 50
KEPT_WORDS = "and to the a an in at near by it was were had with of but then The It In".split()
"""Words that hold a sentence together and are never replaced in drills."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the training recipe.

    Raises
    ------
    UserError
        If the file is missing or is not a recipe.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"recipe {path} cannot be read ({error}); restore it from the repository"
        ) from error
    missing = {"tokenizer", "text", "drills", "phases", "models"} - set(recipe or {})
    if missing:
        raise UserError(
            f"recipe {path} lacks {', '.join(sorted(missing))}; restore it from the repository"
        )
    return recipe


def recipe_of(recipe: Mapping[str, Any], model: str) -> TrainingRecipe:
    """Return the training recipe of one model.

    Raises
    ------
    UserError
        If the recipe has no such model.
    """
    if model not in recipe["models"]:
        known = ", ".join(recipe["models"])
        raise UserError(f"model {model!r} is not in the training recipe; use one of {known}")
    steps = sum(phase.steps for phase in phases_of(recipe, model))
    return TrainingRecipe(**recipe["models"][model], steps=steps)


def phases_of(recipe: Mapping[str, Any], model: str) -> list[Phase]:
    """Return the phases of training of a model, in order."""
    return [Phase(**phase) for phase in recipe["phases"][model]]


def substitution_of(tokenizer: Any) -> Substitution:
    """Return which tokens may be replaced in drills; held-out names and words of held-out templates stay out of it."""
    # The texts of the templates, their slots taken out.
    texts = [re.sub(r"\{\w+\}", "", t) for t in tp.HELD_OUT_OPENERS + tp.HELD_OUT_CLOSERS]
    held_out = {i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row}
    rule = varied_substitution_of(tokenizer)
    names = _ids(tokenizer, lx.NAMES)
    return Substitution(
        names=np.array(sorted(names)),
        others=rule.others,
        pool=np.array([i for i in rule.pool if i not in held_out]),
    )


def varied_substitution_of(tokenizer: Any) -> Substitution:
    """Return which tokens may be replaced in varied drills, in which held-out names are common.

    These are replaced as well, and by the same random tokens as the others, but never put in for another one. Every
    word of text may be put in: a model that has never met a token before a name takes it for part of the name. What
    holds the words of a held-out template together, their order, is not shown by single random tokens.
    """
    names, held_out = _ids(tokenizer, lx.NAMES), _ids(tokenizer, lx.HELD_OUT_NAMES)
    kept = {tokenizer.bos_token_id} | held_out | _ids(tokenizer, KEPT_WORDS)
    kept |= _ids(tokenizer, lx.SUBJECTS) | _ids(tokenizer, lx.FRAMES)
    kept |= {i for members in lx.SEQUENCES.values() for i in _ids(tokenizer, members)}
    digits = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().isdigit()}
    marks = {i for i in range(len(tokenizer)) if not any(map(str.isalnum, tokenizer.decode([i])))}
    others = set(range(len(tokenizer))) - kept - names - digits - marks
    return Substitution(
        names=np.array(sorted(names | held_out)),
        others=np.array(sorted(others)),
        pool=np.array(sorted(others | names)),
    )


def _ids(tokenizer: Any, words: Iterable[str]) -> set[int]:
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return {i for word in encoded for i in word}


def build_tokenizer(recipe: Mapping[str, Any]) -> Any:
    """Train the tokenizer of the embedded models on generated text."""
    plan = recipe["tokenizer"]
    texts = (document.text for document in _documents(plan["documents"], plan["seed"]))
    whole = [f" {word}" for word in lx.single_token_words()] + [f"{n:02d}" for n in range(100)]
    return train_tokenizer(texts, plan["vocab_size"], whole, plan["repeats"])


def _documents(count: int, seed: int) -> Iterator[Document]:
    return chain.from_iterable(generate_documents(style, count, seed) for style in STYLES)


def _encoded(documents: Iterator[Document], tokenizer: Any) -> list[np.ndarray]:
    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    return encode_documents(documents, encode)


def validation_windows(recipe: Mapping[str, Any], tokenizer: Any, length: int) -> np.ndarray:
    """Return windows [N, length] of generated text that training does not see."""
    plan = recipe["text"]
    encoded = _encoded(_documents(plan["validation_documents"], plan["seed"] + 1), tokenizer)
    rng = rng_for(plan["seed"], "validation")
    return cut_windows(encoded, tokenizer.bos_token_id, length, rng)


def build_batches(
    recipe: Mapping[str, Any], model: str, tokenizer: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the batches of all training steps of a model, see `mechatlas.corpus.training_windows.phase_batches`."""
    text, bos = recipe["text"], tokenizer.bos_token_id
    phases, seed = phases_of(recipe, model), recipe["models"][model]["seed"]
    documents = _encoded(_documents(text["documents"], text["seed"]), tokenizer)
    drills = {
        kind: _encoded(generate_drills(count, text["seed"], kind), tokenizer)
        for kind, count in recipe["drills"][model].items()
        if count
    }
    rules = substitution_of(tokenizer), varied_substitution_of(tokenizer)
    batches = []
    for number, phase in enumerate(phases):
        rng = rng_for(text["seed"], "batches", seed, number)
        cuts = cut_windows(documents, bos, phase.length, rng)
        starts = {kind: first_windows(part, bos, phase.length) for kind, part in drills.items()}
        batches += phase_batches(cuts, starts, phase, bos, range(1, len(tokenizer)), *rules, rng)
    return batches


def measure_card(
    logits: Logits,
    tokenizer: Any,
    windows: np.ndarray,
    loss: Callable[[np.ndarray], float],
    count: int,
) -> dict[str, Any]:
    """Measure the numbers of a model card on held-out names, templates and members.

    Parameters
    ----------
    logits : callable
        See `mechatlas.tasks.behaviours.Logits`.
    tokenizer : transformers tokenizer
    windows : numpy.ndarray
        [N, T] validation windows.
    loss : callable
        Windows to their mean next-token loss in nats.
    count : int
        Prompts per task (per class and frame: a quarter).

    Returns
    -------
    dict
        JSON values, in the order of the card.
    """
    bos = tokenizer.bos_token_id

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ioi = {
        f"names {names}, templates {templates}": asdict(
            measure(logits, build_ioi(encode, bos, count, CARD_SEED, names, templates))
        )
        for names, templates in IOI_SPLITS
    }
    block = repeated_tokens(
        range(1, len(tokenizer)), bos, max(8, count // 8), INDUCTION_PERIOD, CARD_SEED
    )
    return {
        "validation_loss": loss(windows),
        "validation_tokens": int(windows.shape[0] * (windows.shape[1] - 1)),
        "ioi": ioi,
        "sequences": _measure_sequences(logits, encode, bos, max(8, count // 4)),
        "induction_top1": induction_top1(logits, block, INDUCTION_PERIOD),
        "greater_than": measure_choices(logits, build_greater_than(encode, bos, count, CARD_SEED)),
    }


def _measure_sequences(
    logits: Logits, encode: Callable[[str], list[int]], bos: int, count: int
) -> dict[str, Any]:
    """Return class -> frame -> scores on the held-out starts, and on all starts."""
    scores: dict[str, Any] = {}
    for name in lx.SEQUENCES:
        scores[name] = {}
        for frame in lx.FRAMES:
            held_out = held_out_starts(name, frame)
            part = build_sequences(encode, bos, name, frame, count, CARD_SEED, held_out)
            every = build_sequences(encode, bos, name, frame, count, CARD_SEED)
            scores[name][frame] = {
                "held_out": asdict(measure(logits, part)),
                "all_top1": measure(logits, every).top1,
            }
    return scores
