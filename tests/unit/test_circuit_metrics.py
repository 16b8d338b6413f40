"""Metrics against their formulas on the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from edge_models import make_model

from mechatlas.circuits import metrics as mt
from mechatlas.io import UserError


@pytest.fixture
def case():
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, model.config.d_model, dtype=torch.float64, generator=generator)
    answers, wrong = torch.randint(0, model.config.vocab_size, (2, 5), generator=generator)
    return model, x, answers, wrong


def expected(name, model, x, clean, answers, wrong):
    logits, rows = x @ model.weights.unembedding.T, torch.arange(5)
    p = logits.softmax(-1)
    if name == "logit_difference":
        return logits[:, rows, answers] - logits[:, rows, wrong]
    if name == "probability_difference":
        return p[:, rows, answers] - p[:, rows, wrong]
    if name == "kl":
        q = (clean @ model.weights.unembedding.T).softmax(-1)
        return (q * (q / p).log()).sum(-1)
    order = logits.argsort(-1, descending=True)
    return (order == answers[:, None]).double().argmax(-1).double()


@pytest.mark.parametrize("name", mt.METRICS)
@pytest.mark.parametrize("chunk", [1, 100, 2**23])
def test_values_equal_the_formula(name, chunk, case, monkeypatch):
    model, x, answers, wrong = case
    monkeypatch.setattr(mt, "LOGITS_PER_CHUNK", chunk)
    metric = mt.make_metric(name, model, answers, wrong, clean=x[0])
    wanted = expected(name, model, x, x[0], answers, wrong)
    torch.testing.assert_close(metric(x), wanted, atol=1e-12, rtol=0)
    some = torch.tensor([3, 0])
    torch.testing.assert_close(metric.select(some)(x[:, some]), wanted[:, some], atol=1e-12, rtol=0)


def test_kl_of_the_clean_run_is_zero(case):
    model, x, answers, wrong = case
    metric = mt.make_metric("kl", model, answers, wrong, clean=x[1])
    assert metric(x[1]).abs().max() < 1e-14 < metric(x[2]).min()


def test_user_errors(case):
    model, _, answers, wrong = case
    with pytest.raises(UserError, match="metric"):
        mt.make_metric("accuracy", model, answers, wrong)
    for difference in (torch.tensor([-1.0, 0.5]), torch.tensor([torch.nan])):
        with pytest.raises(UserError, match="does not do the task"):
            mt.require_solved(difference, "ioi")
