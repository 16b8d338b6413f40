"""The explainer `programs`: from a layer's attention patterns to one explanation per head.

Programs are fitted on train documents. The simplest one whose `match` on validation documents comes within
``parsimony`` of the best is the explanation. The test documents are never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechatlas.explain.dataset import Sample
from mechatlas.explain.fit_rules import Bank, fit_rules, match, overlap_ratio, rule_match
from mechatlas.explain.fit_scores import ScoreFit, fit_scores
from mechatlas.explain.programs import Part, Program, form_key
from mechatlas.explain.render import render
from mechatlas.explain.scores_form import Scores, softmax
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import rng_for, seed_for
from mechatlas.stats.shuffles import derangement

GAINS = (1.0, 1.25, 1.5)


@dataclass(frozen=True)
class FitSettings:
    """Settings of the explainer `programs` (config: explain.programs).

    Attributes
    ----------
    max_parts : int
        Most symbolic parts in one program.
    parsimony : float
        How much validation `match` a simpler program may lack.
    rule_windows : int
        Train windows that symbolic mixtures are fitted on; they have so few parameters that more change nothing.
    scores : ScoreFit
        Of the learned form.
    """

    max_parts: int = 3
    parsimony: float = 0.02
    rule_windows: int = 10
    scores: ScoreFit = field(default_factory=ScoreFit)


def intersection_over_union(predicted: np.ndarray, true: np.ndarray) -> float:
    """Sum of minima over sum of maxima of two attention patterns, query 0 left out (its row is trivial).

    Parameters
    ----------
    predicted, true : float32 [W, T, T]
    """
    return overlap_ratio(predicted[:, 1:], true[:, 1:])


def shuffle_rows(patterns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give every query the attention row of the same position in another window (the control `shuffled`).

    Parameters
    ----------
    patterns : float32 [W, H, T, T]
    rng : numpy.random.Generator

    Returns
    -------
    float32 [W, H, T, T]
        Rows still sum to 1 and stay causal; position and distance survive, content does not.
    """
    windows, _, length, _ = patterns.shape
    shuffled = np.empty_like(patterns)
    for query in range(length):
        shuffled[:, :, query] = patterns[derangement(windows, rng), :, query]
    return shuffled


def explain_layer(
    layer: int,
    train: Sample,
    validation: Sample,
    settings: FitSettings,
    *,
    control: str = "none",
    device: str = "cpu",
    heads: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Explain the heads of one layer.

    Parameters
    ----------
    layer : int
    train, validation : Sample
    settings : FitSettings
    control : str
        Written into the records: "none", or "shuffled" if the patterns were.
    device : str
        Where the learned form is fitted.
    heads : sequence of int, optional
        Which heads, all by default.

    Returns
    -------
    list of dict
        One explanation record per head (see docs/files.md).
    """
    heads = list(range(train.patterns.shape[1])) if heads is None else list(heads)
    if not heads:
        return []
    few = Bank.of(train.view.first(settings.rule_windows))
    checked = Bank.of(validation.view)
    learned = fit_scores(train.view, _heads_of(train.patterns, heads), settings.scores, device)
    records = []
    for form, head in zip(learned, heads, strict=True):
        # The empty program, "rests on BOS", comes first: nothing is simpler.
        programs = [Program(parts=())]
        programs += fit_rules(few, train.patterns[: few.view.shape[0], head], settings.max_parts)
        true = validation.patterns[:, head]
        target = checked.target(true)
        matches = [rule_match(program, checked, target) for program in programs]
        program, reached = sharpest(form, validation.view, true)
        programs.append(program)
        matches.append(reached)
        chosen = choose(matches, settings.parsimony)
        program = programs[chosen]
        records.append(
            {
                "unit": f"L{layer}.H{head}",
                "layer": layer,
                "head": head,
                "explainer": "programs",
                "control": control,
                "text": render(program, train.view),
                "kind": "scores" if chosen == len(programs) - 1 else "rules",
                "validation_iou": round(
                    intersection_over_union(program.predict(validation.view), true), 6
                ),
                "candidates": [
                    {"forms": [form_key(part.form) for part in p.parts], "match": round(m, 6)}
                    for p, m in zip(programs, matches, strict=True)
                ],
                "program": program.to_json(),
            }
        )
    return records


def _heads_of(patterns: np.ndarray, heads: list[int]) -> np.ndarray:
    return patterns if heads == list(range(patterns.shape[1])) else patterns[:, heads]


def sharpest(form: Scores, view: TokenView, patterns: np.ndarray) -> tuple[Program, float]:
    """Return the learned form as a program, with the gain of `GAINS` that fits validation windows best, and its match.

    The fit minimises cross-entropy, whose optimum hedges: where a head looks at one of two keys it predicts both. The
    intersection over union rewards deciding.
    """
    scores = form.scores(view)
    matches = {gain: match(softmax(gain * scores), patterns) for gain in GAINS}
    best = max(matches, key=matches.__getitem__)
    sharpened = form.sharpened(best) if best != 1 else form
    return Program(parts=(Part(share=1.0, form=sharpened),)), matches[best]


def choose(matches: list[float], parsimony: float) -> int:
    """Index of the first (simplest) program within ``parsimony`` of the best `match`."""
    best = max(matches)
    return next(i for i, value in enumerate(matches) if value >= best - parsimony)


def settings_from(programs: Mapping[str, Any], seed: int) -> FitSettings:
    """Build the settings from the config section ``explain.programs`` and the seed."""
    values = dict(programs)
    rules = {name: values.pop(name) for name in ("max_parts", "parsimony", "rule_windows")}
    return FitSettings(**rules, scores=ScoreFit(**values, seed=seed_for(seed, "score tables")))


def shuffled_sample(sample: Sample, seed: int, *names: str | int) -> Sample:
    """Return the sample with shuffled rows, seeded by the given names."""
    return Sample(sample.view, shuffle_rows(sample.patterns, rng_for(seed, "shuffled", *names)))
