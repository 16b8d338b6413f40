"""Training of the embedded models: data layout, determinism, resume, tokenizer."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from mechatlas.corpus.document import Document
from mechatlas.corpus.training_windows import (
    Phase,
    Substitution,
    cut_windows,
    encode_documents,
    phase_batches,
    repeated_windows,
    substituted,
)
from mechatlas.io import UserError
from mechatlas.models.attention_entropy import mean_entropy, row_entropy, watch_entropy
from mechatlas.models.muon import Muon, orthogonalised
from mechatlas.models.tokenizer_training import train_tokenizer
from mechatlas.models.training import (
    TrainingRecipe,
    build_model,
    mean_loss,
    rate_at,
    sinusoids,
    token_loss,
    train_model,
)

RECIPE = TrainingRecipe(
    layers=1,
    heads=2,
    width=16,
    context=32,
    vocab_size=40,
    steps=12,
    initial_scale=0.05,
    matrix_rate=0.02,
    other_rate=3e-3,
    final_share=0.1,
    warmup_steps=4,
    decay_steps=12,
    weight_decay=0.01,
    momentum=0.95,
    beta2=0.98,
    clip_norm=1.0,
    entropy_weight=0.0,
    entropy_from=4,
    entropy_ramp=3,
    seed=3,
    log_every=3,
    checkpoint_every=5,
)
PHASE = Phase(
    steps=12,
    windows=4,
    length=24,
    repeated_share=0.5,
    drill_share=0.25,
    scattered_share=0.0,
    varied_share=0.0,
    substituted_share=0.0,
    varied_substituted_share=0.0,
    shortest_period=3,
    longest_period=9,
)

RULE = Substitution(
    names=np.arange(1, 6),
    others=np.arange(6, 15),
    pool=np.arange(1, 35),
)


def _batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    text = rng.integers(1, 40, size=(30, 24)).astype(np.uint16)
    drills = {"drill": text[15:], "scattered": text[:0]}
    return phase_batches(text[:15], drills, PHASE, 0, range(1, 40), RULE, RULE, rng)


def test_windows_are_cuts_of_one_document_each():
    documents = [Document(str(n), "x" * n) for n in (3, 10, 25)]
    encoded = encode_documents(documents, lambda texts: [list(range(1, len(t) + 1)) for t in texts])
    windows = cut_windows(encoded, 0, 6, np.random.default_rng(1))
    assert windows.shape == (2 + 5, 6) and (windows[:, 0] == 0).all()
    assert (np.diff(windows[:, 1:].astype(int), axis=1) == 1).all()
    assert (windows[1, 1] == windows[0, 5] + 1) and windows[:2].max() <= 10
    with pytest.raises(UserError, match="no document"):
        cut_windows(encoded, 0, 100, np.random.default_rng(1))


def test_repeated_windows_repeat_and_say_from_where():
    windows, first = repeated_windows(50, PHASE, 0, range(1, 40), np.random.default_rng(0))
    assert (windows[:, 0] == 0).all() and (windows[:, 1:] > 0).all()
    for row, start in zip(windows, first, strict=True):
        period = start - 2
        assert 3 <= period <= 9
        assert (row[1 + period :] == row[1:-period]).all()
    with pytest.raises(UserError, match="periods"):
        Phase(
            steps=1,
            windows=1,
            length=10,
            repeated_share=1,
            drill_share=0,
            scattered_share=0,
            varied_share=0,
            substituted_share=0,
            varied_substituted_share=0,
            shortest_period=3,
            longest_period=9,
        )


def test_batches_use_each_text_window_once_and_refuse_too_little_text():
    batches = _batches()
    rows = [row.tobytes() for tokens, first in batches for row in tokens[first == 1]]
    assert len(batches) == 12 and len(rows) == 24 == len(set(rows))
    assert all((first[:2] > 1).all() and (first[2:] == 1).all() for _, first in batches)
    few, many = batches[0][0], np.concatenate([tokens for tokens, _ in batches])
    rng = np.random.default_rng(0)
    for text, drill, key in (
        (few, many, "documents: 4 windows"),
        (many, few, "drills.drill: 4 windows"),
    ):
        drills = {"drill": drill, "scattered": few}
        with pytest.raises(UserError, match=f"{key} of 24 tokens, 12 needed"):
            phase_batches(text, drills, PHASE, 0, range(1, 40), RULE, RULE, rng)


def test_the_shares_of_drills_are_kept():
    kinds = {"drill": 37, "scattered": 38, "varied": 39}
    drills = {kind: np.full((40, 24), mark, dtype=np.uint16) for kind, mark in kinds.items()}
    text = np.full((40, 24), 36, dtype=np.uint16)
    phase = dataclasses.replace(PHASE, windows=16, drill_share=0.5, scattered_share=0.25, steps=3)
    for varied, wanted in ((0.5, [2, 2, 4]), (0.0, [6, 2, 0])):
        phase = dataclasses.replace(phase, varied_share=varied)
        rng = np.random.default_rng(0)
        for tokens, _ in phase_batches(text, drills, phase, 0, range(1, 40), RULE, RULE, rng):
            assert [int((tokens[:, 0] == mark).sum()) for mark in kinds.values()] == wanted
    with pytest.raises(UserError, match="at most 1"):
        dataclasses.replace(phase, varied_share=0.8)


def test_words_of_varied_drills_are_replaced_with_and_without_names():
    # Names 1 to 5, held-out name 39, other words 6 to 14, and 20, which is kept.
    row = np.array([0, *range(1, 15), *[39] * 5, *[20] * 4], dtype=np.uint16)
    drills = {
        "drill": row[None, :][:0],
        "scattered": row[None, :][:0],
        "varied": np.tile(row, (400, 1)),
    }
    phase = dataclasses.replace(
        PHASE, steps=4, windows=100, repeated_share=0, drill_share=1, varied_share=1
    )
    varied = dataclasses.replace(RULE, names=np.array([1, 2, 3, 4, 5, 39]))
    text, rng = row[None, :][:0], np.random.default_rng(0)
    for share in (0.0, 0.4):
        phase = dataclasses.replace(phase, varied_substituted_share=share)
        for tokens, _ in phase_batches(text, drills, phase, 0, range(1, 40), RULE, varied, rng):
            changed = tokens != row
            named = changed[:, [1, 2, 3, 4, 5, 15]].sum(axis=1) > 2
            assert named[: int(100 * share)].all() and not named[int(100 * share) :].any()
            assert not changed[:, 0].any() and not changed[:, 20:].any()
            assert not (tokens[changed] == 39).any()
            worded = changed[:, 6:15].any(axis=1)
            assert (30 < worded.sum() < 70) if share else not worded.any()


def test_substitution_is_consistent_within_a_window_and_leaves_the_rest():
    windows = np.random.default_rng(0).integers(0, 40, size=(60, 24)).astype(np.uint16)
    result = substituted(windows, RULE, 40, np.random.default_rng(1))
    kept = windows >= 15
    assert (result[kept] == windows[kept]).all() and result.dtype == windows.dtype
    others = [
        (result[row] != windows[row])[(windows[row] >= 6) & (windows[row] < 15)].any()
        for row in range(60)
    ]
    assert 15 < sum(others) < 45
    for before, after in zip(windows, result, strict=True):
        pairs = set(zip(before.tolist(), after.tolist(), strict=True))
        assert len(pairs) == len(set(before.tolist()))
        names = [new for old, new in pairs if 1 <= old < 6]
        assert len(set(names)) == len(names) and max(names, default=1) < 35


def test_loss_counts_only_predictable_tokens():
    model = build_model(RECIPE, 0).eval()
    tokens = torch.randint(1, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    log_probabilities = model(input_ids=tokens).logits.log_softmax(-1)
    wanted = [
        log_probabilities[row, i - 1, tokens[row, i]]
        for row, start in ((0, 4), (1, 1))
        for i in range(start, 10)
    ]
    loss = token_loss(model, tokens, torch.tensor([4, 1]))
    assert loss.item() == pytest.approx(-torch.stack(wanted).mean().item(), rel=1e-5)


def test_rates_warm_up_and_decay():
    shares = [rate_at(RECIPE, step) for step in range(12)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a >= b for a, b in zip(shares[3:], shares[4:], strict=False))
    assert rate_at(RECIPE, 12) == pytest.approx(0.1)


def test_shifting_initial_positions_is_a_rotation():
    waves = sinusoids(32, 16, 0.05).double()
    gram = waves @ waves.T
    assert torch.allclose(gram[1:, 1:], gram[:-1, :-1], atol=1e-6)
    assert float(waves.square().mean().sqrt()) == pytest.approx(0.05, rel=1e-5)


def test_muon_updates_are_orthogonal_and_keep_queries_keys_and_values_apart():
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 16), (16, 64), (64, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(*shape, generator=generator)))
        assert values.min() > 0.6 and values.max() < 1.3
    start = torch.randn(16, 48, generator=generator)
    weights = {"h.0.attn.c_attn.weight": start.clone().requires_grad_()}
    gradient = torch.randn(16, 48, generator=generator)
    # Values with gradients a thousand times larger must not slow the queries and keys down.
    gradient[:, 32:] *= 1_000
    weights["h.0.attn.c_attn.weight"].grad = gradient
    Muon(weights, momentum=0.9, weight_decay=0.0).step(0.1)
    moved = (start - weights["h.0.attn.c_attn.weight"].detach()).chunk(3, dim=1)
    for part, slope in zip(moved, gradient.chunk(3, dim=1), strict=True):
        left, _, right = torch.linalg.svd(slope)
        assert torch.allclose(part, 0.1 * left @ right, atol=0.03)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_training_learns_resumes_exactly_and_is_deterministic(tmp_path, entropy_weight):
    batches = _batches()
    log = io.StringIO()
    recipe = dataclasses.replace(RECIPE, entropy_weight=entropy_weight)
    whole, _ = train_model(recipe, batches, 0, tmp_path / "a.safetensors", log)
    assert [json.loads(line)["step"] for line in log.getvalue().splitlines()] == [3, 6, 9, 12]

    class Killed(Exception):
        pass

    class Batches(list):
        def __getitem__(self, step):
            if step == 7:
                raise Killed
            return super().__getitem__(step)

    checkpoint = tmp_path / "b.safetensors"
    with pytest.raises(Killed):
        train_model(recipe, Batches(batches), 0, checkpoint, io.StringIO())
    log = io.StringIO()
    resumed, _ = train_model(recipe, batches, 0, checkpoint, log)
    assert [json.loads(line)["step"] for line in log.getvalue().splitlines()] == [6, 9, 12]
    for (name, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name
    text = batches[0][0][2:]
    assert mean_loss(whole, text) < mean_loss(build_model(recipe, 0), text)
    other, _ = train_model(
        dataclasses.replace(recipe, seed=4), batches, 0, tmp_path / "c.safetensors", io.StringIO()
    )
    assert not torch.equal(other.lm_head.weight, whole.lm_head.weight)


def test_entropy_is_that_of_the_patterns_and_the_penalty_lowers_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 7, 4, generator=generator) for _ in range(2))
    total = 0.0
    for b in range(2):
        for h in range(3):
            for q in range(7):
                weights = torch.softmax(0.5 * key[b, h, : q + 1] @ query[b, h, q], 0)
                total -= float((weights * weights.log()).sum())
    assert row_entropy(query, key, 0.5).item() == pytest.approx(total / 42, rel=1e-5)

    entropies = []
    for weight in (0.0, 1.0):
        recipe = dataclasses.replace(RECIPE, entropy_weight=weight, matrix_rate=0.1)
        path = tmp_path / f"{weight}.safetensors"
        model, _ = train_model(recipe, _batches(), 0, path, io.StringIO())
        watch_entropy(model)
        model.train()
        tokens = torch.from_numpy(_batches()[0][0].astype(np.int64))
        watched = model(input_ids=tokens).logits
        entropies.append(mean_entropy(model).item())
        model.set_attn_implementation("sdpa")
        assert torch.allclose(watched, model(input_ids=tokens).logits, atol=1e-5)
    assert entropies[1] < entropies[0] - 0.03


def test_bad_batches_and_checkpoints_are_refused(tmp_path):
    batches = _batches()
    with pytest.raises(UserError, match="do not fit 12 steps"):
        train_model(RECIPE, batches[:3], 0, tmp_path / "a.safetensors", io.StringIO())
    broken = tmp_path / "b.safetensors"
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match="delete it"):
        train_model(RECIPE, batches, 0, broken, io.StringIO())


def test_tokenizer_keeps_asked_words_whole():
    texts = ["In 1732 the Zanzibar lighthouse was 1999 feet tall."] * 20
    words = [" Zanzibar", " lighthouse", "32", " 17"]
    tokenizer = train_tokenizer(texts, 290, words, 50)
    assert len(tokenizer) == 290 and tokenizer.bos_token_id == 0
    for word in words:
        assert len(tokenizer(word)["input_ids"]) == 1
    assert tokenizer.tokenize(" 1732") == ["Ġ17", "32"]
    odd = "  naïve\n\n«x» \t1234567 "
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd
    again = train_tokenizer(texts, 290, words, 50)
    assert again.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(UserError, match="raise vocab_size"):
        train_tokenizer(texts, 262, words, 1)
    with pytest.raises(UserError, match="more texts"):
        train_tokenizer(["aa"], 400, [], 1)
