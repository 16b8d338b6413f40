"""The shipped models: they load offline, are small, and do what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mechatlas.corpus import lexicon as lx
from mechatlas.models.training import logits_of, mean_loss
from mechatlas.tasks import demo_models
from mechatlas.tasks.model_card import model_card

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "resources" / "models"
MODELS = ("demo-4l", "demo-2l")
TARGET_CLASSES = ("numerals", "numwords", "months")


@pytest.fixture(scope="module", params=MODELS)
def shipped(request):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = FOLDER / request.param
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return request.param, model, tokenizer, metrics


@pytest.fixture(scope="module")
def measured(shipped):
    _, model, tokenizer, metrics = shipped
    recipe = demo_models.read_recipe(FOLDER / "recipe.yaml")
    windows = demo_models.validation_windows(recipe, tokenizer, 256)
    return demo_models.measure_card(
        logits_of(model), tokenizer, windows, lambda w: mean_loss(model, w), metrics["prompts"]
    )


def test_together_the_models_are_small():
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12_000_000


def test_architecture_and_precision(shipped):
    name, model, tokenizer, _ = shipped
    layers = {"demo-4l": 4, "demo-2l": 2}[name]
    config = model.config
    assert (config.model_type, config.n_layer, config.n_head) == ("gpt2", layers, 8)
    assert config.n_positions == 256 and config.vocab_size == len(tokenizer)
    assert config.bos_token_id == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_listed_words_are_single_tokens_and_prose_is_not(shipped):
    _, _, tokenizer, _ = shipped
    for word in lx.single_token_words():
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    year = tokenizer(" 1732", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(year) == ["Ġ17", "32"]
    windows = demo_models.generate_documents("wiki", 20, 77)
    words = [w for d in windows for w in d.text.split()]
    split = [w for w in words if len(tokenizer(f" {w}", add_special_tokens=False)["input_ids"]) > 1]
    assert len(split) > 0.1 * len(words)


def test_text_survives_the_tokenizer_and_no_token_is_added(shipped):
    _, _, tokenizer, _ = shipped
    text = 'Zażółć (a [b] "c")\n\n== 1999 ==\n\tend  '
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids) == text


def _flat(value, key=""):
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}/{name}")
    else:
        yield key, value


def test_card_numbers_are_what_the_weights_give(shipped, measured):
    _, _, _, metrics = shipped
    found, stated = dict(_flat(measured)), dict(_flat(metrics))
    assert set(found) <= set(stated)
    for key, value in found.items():
        # Another machine's kernels may flip a prompt or two that is on the edge.
        assert value == pytest.approx(stated[key], abs=0.02, rel=0.01), key


def test_readme_is_the_card_of_the_stated_numbers(shipped):
    name, _, _, metrics = shipped
    plan = demo_models.recipe_of(demo_models.read_recipe(FOLDER / "recipe.yaml"), name)
    readme = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert readme == model_card(name, plan, metrics)


def test_demo_4l_meets_its_targets(shipped, measured):
    name, *_ = shipped
    if name != "demo-4l":
        pytest.skip("targets are demo-4l's")
    ioi = measured["ioi"]
    assert all(score["accuracy"] >= 0.95 for score in ioi.values())
    assert all(score["logit_difference"] > 0 for score in ioi.values())
    for class_name in TARGET_CLASSES:
        for frame in lx.FRAMES:
            assert measured["sequences"][class_name][frame]["held_out"]["top1"] >= 0.95
    assert measured["induction_top1"] >= 0.80


def test_untrained_weights_do_none_of_it(shipped):
    """The measurement tells a trained model from one that knows nothing."""
    from transformers import AutoModelForCausalLM

    _, model, tokenizer, _ = shipped
    torch.manual_seed(0)
    blank = AutoModelForCausalLM.from_config(model.config).eval()
    windows = np.zeros((2, 16), dtype=np.int64)
    result = demo_models.measure_card(
        logits_of(blank), tokenizer, windows, lambda w: mean_loss(blank, w), 64
    )
    assert 0.2 < result["ioi"]["names train, templates train"]["accuracy"] < 0.8
    assert result["induction_top1"] < 0.05
    assert result["sequences"]["months"]["done"]["held_out"]["top1"] < 0.3
