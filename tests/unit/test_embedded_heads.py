"""On demo-2l, heads that an independent test calls previous-token or induction heads are explained as such.

The independent test uses transformers' own attention output and plain indexing, nothing of the library: mean attention
to the previous token on text, and mean attention to the token after the previous occurrence on random repeated tokens
(Olsson et al. 2022, prefix matching). Some heads copy there and do something else on text, which is what explanations
are about: an induction head has to spend some of its attention off BOS on such tokens in text as well.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechatlas.corpus.synthetic import generate_documents
from mechatlas.explain.dataset import Sample
from mechatlas.explain.fit import FitSettings, explain_layer
from mechatlas.explain.fit_rules import overlap_ratio
from mechatlas.explain.programs import parse_program
from mechatlas.explain.records import MeanPattern, programs_of, swapped_programs
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load

FOLDER = Path(__file__).parents[2] / "resources" / "models" / "demo-2l"
LENGTH, WINDOWS = 96, 30
CALLED = 0.4  # mean attention from which the independent test calls a head by a name
ON_TEXT = 0.1  # least share of attention off BOS, on text, for an induction head


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Windows of different documents, cut into three parts."""
    rows = []
    for document in generate_documents("wiki", 400, seed=5):
        ids = tokenizer.encode(document.text)
        if len(ids) >= LENGTH:
            rows.append([tokenizer.bos_id, *ids[: LENGTH - 1]])
        if len(rows) == 3 * WINDOWS:
            break
    return np.array(rows).reshape(3, WINDOWS, LENGTH)


@pytest.fixture(scope="module")
def called(windows, tokenizer):
    """Head -> name, by transformers' own attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager")
    with torch.inference_mode():
        text = model(torch.from_numpy(windows[2]), output_attentions=True).attentions
        block = np.random.default_rng(0).integers(1, tokenizer.vocab_size, (16, 45))
        repeated = np.concatenate([np.full((16, 1), tokenizer.bos_id), block, block], axis=1)
        copies = model(torch.from_numpy(repeated), output_attentions=True).attentions
    names = {}
    for layer in range(len(text)):
        for head in range(text[layer].shape[1]):
            previous = np.mean([text[layer][:, head, q, q - 1].mean() for q in range(2, LENGTH)])
            induction = np.mean([copies[layer][:, head, q, q - 44].mean() for q in range(46, 91)])
            if previous > CALLED:
                names[(layer, head)] = "previous token"
            elif induction > CALLED and _on_text(text[layer][:, head], windows[2]) > ON_TEXT:
                names[(layer, head)] = "induction"
    return names


def _on_text(attention: torch.Tensor, tokens: np.ndarray) -> float:
    """Share of the attention off BOS that goes to tokens after an earlier copy of the query."""
    follows = np.zeros(attention.shape, dtype=bool)
    follows[:, :, 2:] = tokens[:, :, None] == tokens[:, None, 1:-1]
    earlier = np.tril(np.ones(attention.shape[1:], dtype=bool))
    return float(attention[torch.from_numpy(follows & earlier)].sum() / attention[:, 1:, 1:].sum())


@pytest.fixture(scope="module")
def explained(windows, tokenizer):
    """Records of all heads, and their true test patterns."""
    vocabulary = Vocabulary(tokenizer.strings(range(tokenizer.vocab_size)), tokenizer.bos_id)
    model = load(FOLDER)
    views = [TokenView(part, vocabulary) for part in windows]
    patterns = []
    for view in views:
        kept = {}
        hook = {"pattern": lambda value, layer, kept=kept: kept.__setitem__(layer, value.numpy())}
        with torch.inference_mode():
            model.forward(torch.from_numpy(view.tokens), hook, logits=False)
        patterns.append(kept)
    records = []
    for layer in range(model.config.n_layers):
        train, validation = (Sample(views[i], patterns[i][layer]) for i in range(2))
        records += explain_layer(layer, train, validation, FitSettings())
    means = {
        (r["layer"], r["head"]): patterns[0][r["layer"]][:, r["head"]].mean(0) for r in records
    }
    for record in records:
        record["program"] = parse_program(record["program"])
    return records, views[2], patterns[2], means


def test_the_model_has_both_kinds_of_heads(called):
    kinds = list(called.values())
    assert kinds.count("previous token") >= 1 and kinds.count("induction") >= 4, called


def test_called_heads_get_their_explanation_far_above_controls(called, explained):
    records, view, true, means = explained
    own = programs_of(records, "programs")
    swapped = swapped_programs(own, seed=0)
    texts = {(r["layer"], r["head"]): r["text"] for r in records}
    for (layer, head), name in called.items():
        assert name in texts[(layer, head)], (
            f"L{layer}.H{head} is a {name} head: {texts[(layer, head)]}"
        )
        score, other, position = (
            overlap_ratio(p.predict(view)[:, 1:, 1:], true[layer][:, head, 1:, 1:])
            for p in (own[(layer, head)], swapped[(layer, head)], MeanPattern(means[(layer, head)]))
        )
        # Position alone explains a previous-token head; it cannot explain induction.
        if name == "induction":
            assert score > 3 * position, f"L{layer}.H{head}"
        # Another head of the same kind may explain this one as well.
        if called.get(_donor(swapped, own, (layer, head))) != name:
            assert score > 3 * other, f"L{layer}.H{head}"


def _donor(swapped, own, head):
    return next(h for h, program in own.items() if program is swapped[head])
