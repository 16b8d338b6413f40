"""Causal checks: run the model on predicted attention instead of its own.

For one head at a time the pattern is replaced by what its program predicts, by what a control predicts, and by the mean
pattern of the head over train windows (mean-pattern ablation). The share of the ablation's loss increase that the
program avoids is the loss recovered. For the whole model a growing share of the heads runs on programs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.explain.records import (
    MEAN_PATTERN,
    OWN,
    SHARED,
    Head,
    Predictor,
    Variant,
    explainers_of,
    programs_of,
)
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import progress, rng_for
from mechatlas.models.transformer import Hook, Transformer

Patterns = Mapping[Head, torch.Tensor]
Variants = Mapping[Variant, Mapping[Head, Predictor]]
MEAN = MEAN_PATTERN[1]
#: The untouched model among the keys of `Replacer.single_heads`.
MODEL = (-1, -1, SHARED, "model")
CURVE_COLUMNS = ["explainer", "order", "repeat", "share", "heads", "doc", "loss", "tokens"]


def replace_patterns(patterns: Patterns) -> dict[str, Hook]:
    """Return hooks that put given patterns in the place of the heads' own.

    Parameters
    ----------
    patterns : mapping
        (layer, head) -> attention pattern [B, T, T] or [T, T], rows summing to 1.
    """
    by_layer: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for (layer, head), pattern in patterns.items():
        by_layer.setdefault(layer, []).append((head, pattern))

    def hook(value: torch.Tensor, layer: int) -> torch.Tensor | None:
        if layer not in by_layer:
            return None
        value = value.clone()
        for head, pattern in by_layer[layer]:
            value[:, head] = pattern.to(value.dtype)
        return value

    return {"pattern": hook}


class _Run:
    """One pass of the untouched model over a batch, from which heads are replaced one at a time.

    What a head writes is its pattern times its values times its output weights, so another pattern adds the difference
    of the two to the residual stream; the rest of its layer's attention stays as it was, and the model goes on from
    there, with fused attention.
    """

    def __init__(self, model: Transformer, tokens: torch.Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.kept: dict[str, list[torch.Tensor]] = {"v": [], "pattern": [], "resid_mid": []}
        record = {
            point: lambda value, _layer, kept=kept: kept.append(value)
            for point, kept in self.kept.items()
        }
        self.losses = model.losses(tokens, record)

    def replaced(self, head: Head, pattern: torch.Tensor) -> torch.Tensor:
        """Losses [B, T-1] with the pattern of one head replaced by another, [B, T, T] or [T, T]."""
        layer, place = head
        model, config = self.model, self.model.config
        v = self.kept["v"][layer][:, :, place * config.n_kv_heads // config.n_heads]
        difference = pattern.to(v.dtype) - self.kept["pattern"][layer][:, place].to(v.dtype)
        written = (difference @ v) @ model.output_weights(layer)[place]
        x = self.kept["resid_mid"][layer] + written
        return model.losses(self.tokens, resume=(layer + 1, x + model.mlp(x, layer)))


class Replacer:
    """Losses of a model under replaced attention on a set of windows.

    Parameters
    ----------
    model : Transformer
    tokens : int64 [W, T]
        Test windows.
    vocabulary : Vocabulary
    mean_patterns : mapping
        (layer, head) -> mean train pattern, float32 [T, T], of every head to be replaced.
    batch_windows : int
        Windows per forward pass.
    """

    def __init__(
        self,
        model: Transformer,
        tokens: np.ndarray,
        vocabulary: Vocabulary,
        mean_patterns: Mapping[Head, np.ndarray],
        batch_windows: int,
    ) -> None:
        self.model = model
        self.mean = {h: torch.from_numpy(p).to(model.device) for h, p in mean_patterns.items()}
        self.batches = [tokens[i : i + batch_windows] for i in range(0, len(tokens), batch_windows)]
        self.vocabulary = vocabulary
        #: Tokens of a window that have a loss: all but the first.
        self.predicted_tokens = tokens.shape[1] - 1

    @torch.inference_mode()
    def single_heads(self, variants: Variants) -> dict[Any, np.ndarray]:
        """Replace one head at a time.

        Returns
        -------
        dict
            (layer, head, explainer, control) -> summed loss per window, float64 [W], in nats; variants are those
            given, and `MEAN_PATTERN` whether given or not; `MODEL` is the untouched model.
        """
        parts: dict[Any, list[np.ndarray]] = {}
        for tokens, view in self._views("replace single heads"):
            run = _Run(self.model, tokens)
            self._add(parts, MODEL, run.losses)
            predicted: dict[int, torch.Tensor] = {}
            for head in self.mean:
                for variant, pattern in self._single(head, view, variants, predicted):
                    self._add(parts, (*head, *variant), run.replaced(head, pattern))
        return {key: np.concatenate(values) for key, values in parts.items()}

    @torch.inference_mode()
    def groups(
        self, programs: Mapping[Head, Predictor], groups: Mapping[Any, tuple[str, Sequence[Head]]]
    ) -> dict[Any, np.ndarray]:
        """Replace groups of heads at once.

        Parameters
        ----------
        programs : mapping
            (layer, head) -> program.
        groups : mapping
            Key -> ("program" or `MEAN`, heads).

        Returns
        -------
        dict
            Key -> summed loss per window, float64 [W].
        """
        parts: dict[Any, list[np.ndarray]] = {}
        for tokens, view in self._views("replace groups of heads"):
            predicted = {head: self._predict(program, view) for head, program in programs.items()}
            for key, (kind, heads) in groups.items():
                source = self.mean if kind == MEAN else predicted
                hooks = replace_patterns({head: source[head] for head in heads})
                self._add(parts, key, self.model.losses(tokens, hooks))
        return {key: np.concatenate(values) for key, values in parts.items()}

    def _views(self, desc: str) -> Iterator[tuple[torch.Tensor, TokenView]]:
        for batch in progress(self.batches, desc=desc, unit="batch"):
            tokens = torch.from_numpy(batch).to(self.model.device)
            yield tokens, TokenView(batch, self.vocabulary)

    def _single(
        self,
        head: Head,
        view: TokenView,
        variants: Variants,
        predicted: dict[int, torch.Tensor],
    ) -> Iterator[tuple[Variant, torch.Tensor]]:
        for variant, programs in variants.items():
            if head in programs and variant != MEAN_PATTERN:
                program = programs[head]
                # A program is that of one head and, swapped, that of another.
                if id(program) not in predicted:
                    predicted[id(program)] = self._predict(program, view)
                yield variant, predicted[id(program)]
        yield MEAN_PATTERN, self.mean[head]

    def _predict(self, program: Predictor, view: TokenView) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(program.predict(view))).to(self.model.device)

    @staticmethod
    def _add(parts: dict[Any, list[np.ndarray]], key: Any, losses: torch.Tensor) -> None:
        parts.setdefault(key, []).append(losses.double().sum(-1).cpu().numpy())


def curve_groups(
    ranked: Sequence[Head],
    shares: Sequence[float],
    random_orders: int,
    seed: int,
    heads: int,
) -> dict[tuple[str, int, float], tuple[str, Sequence[Head]]]:
    """Plan the replacement curve.

    Parameters
    ----------
    ranked : sequence of (layer, head)
        Heads with a program, best explained first (by validation score, so that the test documents do not choose).
    shares : sequence of float
        Shares of heads to replace, in (0, 1]; at least one head is replaced.
    random_orders : int
        Number of random orders beside the ranking.
    seed : int
    heads : int
        How many heads a share of 1 stands for: those of the model. A share of more heads than have a program is
        left out.

    Returns
    -------
    dict
        (order, repeat, share) -> (kind, heads) with orders "model" (nothing replaced), "best" and "random" (run on
        programs) and "mean_pattern" (the best order run on mean patterns).
    """
    orders: list[tuple[str, int, str, Sequence[Head]]] = [("best", 0, "program", ranked)]
    for repeat in range(random_orders):
        shuffled = rng_for(seed, "random order", repeat).permutation(len(ranked))
        orders.append(("random", repeat, "program", [ranked[i] for i in shuffled]))
    orders.append((MEAN, 0, MEAN, ranked))
    groups: dict[tuple[str, int, float], tuple[str, Sequence[Head]]] = {
        ("model", 0, 0.0): ("program", [])
    }
    for name, repeat, kind, ordered in orders:
        for share in shares:
            count = max(1, round(share * heads))
            if count <= len(ordered):
                groups[(name, repeat, float(share))] = (kind, ordered[:count])
    return groups


def rank_heads(records: Sequence[Mapping[str, Any]], explainer: str) -> list[Head]:
    """Order the heads that have a program by its validation IoU, best first, ties by place."""
    programs = programs_of(records, explainer)
    own = [
        r
        for r in records
        if r["explainer"] == explainer
        and r["control"] == OWN
        and (r["layer"], r["head"]) in programs
    ]
    own.sort(key=lambda r: (-r["validation_iou"], r["layer"], r["head"]))
    return [(r["layer"], r["head"]) for r in own]


def head_table(
    losses: Mapping[Any, np.ndarray], documents: np.ndarray, replacer: Replacer
) -> pd.DataFrame:
    """Sum single-head losses per document: layer, head, explainer, variant, doc, loss (nats), tokens."""
    keys = pd.DataFrame(list(losses), columns=["layer", "head", "explainer", "variant"])
    return _by_document(keys, losses, documents, replacer.predicted_tokens)


def curves(
    replacer: Replacer,
    records: Sequence[Mapping[str, Any]],
    documents: np.ndarray,
    shares: Sequence[float],
    random_orders: int,
    seed: int,
    heads: int,
) -> pd.DataFrame:
    """Measure the replacement curve of every explainer that wrote programs.

    Parameters
    ----------
    replacer : Replacer
        With the mean patterns of all heads that have a program.
    records : sequence of mapping
        See `mechatlas.explain.records.read_explanations`.
    documents : array of str [W]
        Document of each of the replacer's windows.
    shares, random_orders, seed, heads
        See `curve_groups`.

    Returns
    -------
    data frame
        `CURVE_COLUMNS`, see `curve_table`; empty if there are no programs.
    """
    tables = []
    for explainer in explainers_of(records):
        ranked = rank_heads(records, explainer)
        if ranked:
            groups = curve_groups(ranked, shares, random_orders, seed, heads)
            losses = replacer.groups(programs_of(records, explainer), groups)
            tables.append(curve_table(losses, groups, documents, replacer, explainer))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=CURVE_COLUMNS)


def curve_table(
    losses: Mapping[Any, np.ndarray],
    groups: Mapping[Any, tuple[str, Sequence[Head]]],
    documents: np.ndarray,
    replacer: Replacer,
    explainer: str,
) -> pd.DataFrame:
    """Sum losses of one explainer's replacement curve per document, as `CURVE_COLUMNS` (losses in nats)."""
    keys = pd.DataFrame(list(losses), columns=["order", "repeat", "share"])
    keys.insert(0, "explainer", explainer)
    keys["heads"] = [len(groups[key][1]) for key in losses]
    return _by_document(keys, losses, documents, replacer.predicted_tokens)


def _by_document(
    keys: pd.DataFrame, losses: Mapping[Any, np.ndarray], documents: np.ndarray, tokens: int
) -> pd.DataFrame:
    names, inverse = np.unique(documents.astype(str), return_inverse=True)
    table = keys.loc[keys.index.repeat(len(names))].reset_index(drop=True)
    table["doc"] = np.tile(names, len(keys))
    table["loss"] = np.concatenate([np.bincount(inverse, value) for value in losses.values()])
    table["tokens"] = np.tile(np.bincount(inverse) * tokens, len(keys))
    return table
