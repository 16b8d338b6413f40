"""The circuits of the embedded model: found on some prompts, tested on prompts with other words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.components import Graph
from mechatlas.circuits.controls import against_random
from mechatlas.circuits.effects import effects_table, top
from mechatlas.circuits.evaluate import faithfulness
from mechatlas.circuits.patching import patch
from mechatlas.circuits.pruning import PruneSettings, prune
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load
from mechatlas.tasks.prepare import collect_prompts, read_settings

MODEL = Path(__file__).parents[2] / "resources" / "models" / "demo-4l"


@pytest.fixture(scope="module")
def model():
    return load(MODEL)


def prompts_of(model, sequence):
    entry = {"kind": "sequence", "sequence": sequence, "prompts": 48, "held_out": 32}
    settings = read_settings(sequence, entry)
    batch = collect_prompts(sequence, settings, model, load_tokenizer(MODEL), 0).batch
    for split in ("discovery", "held_out"):
        part = batch.of_split(split)
        yield [torch.from_numpy(x) for x in (part.clean, part.corrupted, part.answers, part.wrong)]


@pytest.mark.parametrize("sequence", ["numerals", "months"])
def test_circuits_are_faithful_on_held_out_prompts_and_beat_random_ones(model, sequence):
    found_on, held_out = prompts_of(model, sequence)
    circuit = prune(Ablation(model, *found_on), PruneSettings(threshold=20)).keep
    assert 0 < circuit.sum() <= 12
    ablation = Ablation(model, *held_out)
    assert faithfulness(ablation, circuit[None], seed=0)["percent"].item() >= 80
    control = against_random(ablation, circuit, 100, seed=0, profile="size")
    assert control["count"] == 100 and control["max"] < control["percent"]
    # The head that matters most by patching is in the circuit that ablation finds.
    (sweep,) = patch(model, *found_on)
    best = top(effects_table(sweep, seed=0), 1)
    assert best["component"].item() in Graph.of(model.config).names(circuit.numpy())
    assert best["low"].item() > 0.3
