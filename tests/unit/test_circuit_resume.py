"""Searches and sweeps that were killed continue where they stopped; the published ablation is reproduced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_models import make_model
from node_reference import logit_difference, solved_pairs

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.legacy_ablation import LegacyAblation
from mechatlas.circuits.patching import patch
from mechatlas.circuits.pruning import PruneSettings, prune
from mechatlas.circuits.resume import Parts, StepLog


class Killed(Exception):
    pass


def test_a_killed_search_continues_after_its_last_whole_line(tmp_path):
    model = make_model("llama")
    pairs, settings, facts = solved_pairs(model), PruneSettings(), {"model": "m", "seed": 1}
    whole = prune(Ablation(model, *pairs), settings)
    path, written = tmp_path / "steps.jsonl", []
    log = StepLog(path, facts)

    def dying(record):
        log(record)
        written.append(record)
        if len(written) == 7:
            raise Killed

    with pytest.raises(Killed):
        prune(Ablation(model, *pairs), settings, decided=log.decided, log=dying)
    path.write_text(
        path.read_text() + '{"pass": 0, "node": "L0.'
    )  # cut off in the middle of a line
    again = StepLog(path, facts)
    assert again.decided == written
    found = prune(Ablation(model, *pairs), settings, decided=again.decided, log=again)
    assert torch.equal(found.keep, whole.keep) and found.evaluated < whole.evaluated
    assert StepLog(path, facts).decided == found.records
    assert StepLog(path, {**facts, "seed": 2}).decided == []
    assert StepLog(path, facts).decided == []  # other facts began the file anew


def test_a_killed_sweep_computes_only_what_is_missing(tmp_path, monkeypatch):
    from mechatlas.circuits import patching

    model = make_model()
    pairs = solved_pairs(model)
    (whole,) = patch(model, *pairs, rows=1)
    ran, swept = [], patching._swept

    def counting(*args):
        ran.append(1)
        if len(ran) == 3:
            raise Killed
        return swept(*args)

    monkeypatch.setattr(patching, "_swept", counting)
    with pytest.raises(Killed):
        patch(model, *pairs, rows=1, parts=Parts(tmp_path, {"data": "a"}))
    (again,) = patch(model, *pairs, rows=1, parts=Parts(tmp_path, {"data": "a"}))
    assert torch.equal(again.patched, whole.patched) and len(ran) == 3 + 3
    patch(model, *pairs, rows=1, parts=Parts(tmp_path, {"data": "a"}))
    assert len(ran) == 6
    patch(model, *pairs, rows=1, direction="noise", parts=Parts(tmp_path, {"data": "a"}))
    patch(model, *pairs, rows=1, parts=Parts(tmp_path, {"data": "b"}))
    assert len(ran) == 16


def legacy_run(model, clean, corrupted, keep):
    """The published order: head means, then MLP means with the heads removed, then the clean prompts."""
    seen = {}

    def see(point):
        return lambda value, layer: seen.__setitem__((point, layer), value.mean(0))

    model.forward(corrupted, {"z": see("z")})
    head_means = {layer: seen["z", layer] for layer in range(model.config.n_layers)}

    def z(value, layer):
        out = value.clone()
        for head in np.flatnonzero(~keep[layer, :-1].numpy()):
            out[:, :, head] = head_means[layer][:, head]
        return out

    model.forward(corrupted, {"z": z, "mlp_out": see("mlp_out")})

    def mlp_out(value, layer):
        return value if keep[layer, -1] else seen["mlp_out", layer].expand_as(value)

    return model.forward(clean, {"z": z, "mlp_out": mlp_out}, logits=False)[:, -1]


@pytest.mark.parametrize("rows", [1, None])
def test_the_published_ablation(rows):
    model = make_model()
    clean, corrupted, answers, wrong = solved_pairs(model)
    keeps = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    keeps[0] = True
    legacy = LegacyAblation(model, clean, corrupted, answers, wrong, rows=rows)
    wanted = torch.stack([legacy_run(model, clean, corrupted, keep) for keep in keeps])
    torch.testing.assert_close(legacy.residuals(keeps), wanted, atol=1e-11, rtol=0)
    plain = Ablation(model, clean, corrupted, answers, wrong)
    assert (plain.values(keeps) - legacy.values(keeps)).abs().max() > 1e-3
    heads_only = keeps.clone()
    heads_only[..., -1] = True
    torch.testing.assert_close(
        legacy.values(heads_only), plain.values(heads_only), atol=1e-10, rtol=0
    )
    found = prune(legacy, PruneSettings(threshold=40))
    x = legacy_run(model, clean, corrupted, found.keep)
    full = logit_difference(model, model.forward(clean, logits=False)[:, -1], answers, wrong).mean()
    value = logit_difference(model, x, answers, wrong).mean()
    assert found.score == pytest.approx(float(100 * value / full)) and found.score > 60
