"""The explainer `programs` for latents: from activations on train documents to one explanation per latent.

Candidates are rules, look-ups and n-grams; the simplest one whose correlation with validation activations comes within
``parsimony`` of the best is the explanation. Test documents are never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechatlas.dictionaries.latent_merge import RANDOM_DIRECTION
from mechatlas.explain.latents.conditions import Condition
from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.explain.latents.fit_ngrams import GROUPS, fit_lookup, fit_ngrams
from mechatlas.explain.latents.fit_rules import Bank, correlation, fit_rules
from mechatlas.explain.latents.programs import LatentForm, LatentProgram, Lookup, NGrams, Rule
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import progress, rng_for
from mechatlas.stats.shuffles import derangement

EXPLAINER = "programs"


@dataclass(frozen=True)
class LatentFitSettings:
    """Settings of the fit (config: latents.programs).

    Attributes
    ----------
    max_conditions : int
        Conditions that hold together in a rule.
    max_rules : int
        Rules of one program.
    max_entries : int
        Entries of a look-up or of n-grams.
    parsimony : float
        How much validation correlation a simpler program may lack.
    """

    max_conditions: int = 3
    max_rules: int = 3
    max_entries: int = 200
    parsimony: float = 0.02


@dataclass(frozen=True)
class Activations:
    """Windows and the activations of one latent on them (float32 [W, T], 0 at BOS)."""

    view: TokenView
    values: np.ndarray


def candidate_programs(
    bank: Bank, values: np.ndarray, settings: LatentFitSettings
) -> list[LatentProgram]:
    """Return the programs that are tried on a latent, all fitted on train activations ``values [W, T]``."""
    view = bank.view
    programs = [LatentProgram(parts=())]
    programs += [
        LatentProgram(parts=rules)
        for rules in fit_rules(bank, values, settings.max_conditions, settings.max_rules)
    ]
    tables: list[LatentForm | None] = [
        fit_lookup(view, values, back, settings.max_entries) for back in (0, 1)
    ]
    tables += [fit_ngrams(view, values, groups, settings.max_entries) for groups in GROUPS]
    programs += [LatentProgram(parts=(table,)) for table in tables if table is not None]
    return sorted(programs, key=lambda program: program.size)


def explain_latent(
    unit: Mapping[str, Any],
    bank: Bank,
    train: np.ndarray,
    validation: Activations,
    settings: LatentFitSettings,
    control: str = "none",
) -> dict[str, Any]:
    """Explain one latent.

    Parameters
    ----------
    unit : mapping
        ``unit``, ``layer``, ``latent``.
    bank : Bank
        Of the train windows.
    train : float [W, T]
        Activations on them.
    validation : Activations
    settings : LatentFitSettings
    control : str
        Written into the record.

    Returns
    -------
    dict
        An explanation record (see docs/files.md); without a program, and with a reason, where the latent is not active
        on train documents.
    """
    record = {**unit, "explainer": EXPLAINER, "control": control}
    if not train[:, 1:].any():
        why = "the latent is not active on train documents"
        return record | {
            **{"text": "", "kind": "", "validation_correlation": None, "candidates": []},
            **{"program": None, "status": "unexplained", "reason": why},
        }
    programs = candidate_programs(bank, train, settings)
    true = validation.values[:, 1:]
    matches = [correlation(p.predict(validation.view)[:, 1:], true) for p in programs]
    best = max(matches)
    # The first with a part: "never active" says nothing of a latent that is.
    chosen = (
        next(
            i for i, m in enumerate(matches) if programs[i].parts and m >= best - settings.parsimony
        )
        if best > 0
        else _first_with_parts(programs)
    )
    program = programs[chosen]
    return record | {
        "text": program.english(bank.view.vocabulary),
        "kind": kind_of(program),
        "validation_correlation": round(matches[chosen], 6),
        "candidates": [
            {"forms": [form_key(part) for part in p.parts], "correlation": round(m, 6)}
            for p, m in zip(programs, matches, strict=True)
        ],
        "program": program.to_json(),
        **{"status": "explained", "reason": ""},
    }


def _first_with_parts(programs: list[LatentProgram]) -> int:
    return next((i for i, program in enumerate(programs) if program.parts), 0)


def kind_of(program: LatentProgram) -> str:
    """Return "rule", "lookup", "ngrams" or "" (no parts)."""
    return program.parts[0].form if program.parts else ""


def form_key(form: LatentForm) -> str:
    """Return a short stable name of a part, such as ``rule(class[-1], regex[0])``."""
    if isinstance(form, Rule):
        return f"rule({', '.join(_condition_key(c) for c in form.conditions)})"
    if isinstance(form, Lookup):
        return f"lookup[{-form.back}]({len(form.tokens)})"
    assert isinstance(form, NGrams)
    return f"ngrams({len(form.contexts)})"


def _condition_key(condition: Condition) -> str:
    return f"{condition.on}[{-condition.back}]"


def shuffle_tokens(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give every token the activation of the same position in another window (the control `shuffled`).

    Parameters
    ----------
    values : float [W, T]
    rng : numpy.random.Generator
    """
    order = np.stack([derangement(len(values), rng) for _ in range(values.shape[1])], axis=1)
    return np.take_along_axis(values, order, axis=0)


def explain_all(
    data: LatentData,
    settings: LatentFitSettings,
    controls: Sequence[str],
    seed: int,
    latents: Sequence[Latent] | None = None,
) -> list[dict[str, Any]]:
    """Explain some latents, all by default, and fit the controls that are wanted: "shuffled", "random_direction"."""
    bank = Bank(data.view("train"))
    view = data.view("validation")
    records = []
    wanted = data.latents if latents is None else latents
    for latent in progress(wanted, desc="explain latents", unit="latents"):
        train, validation = data.values(latent, "train"), data.values(latent, "validation")
        known = Activations(view, validation)
        records.append(explain_latent(latent.named, bank, train, known, settings))
        if "shuffled" in controls:
            rng = rng_for(seed, "shuffled", latent.unit)
            shuffled = shuffle_tokens(train, rng)
            known = Activations(view, shuffle_tokens(validation, rng))
            records.append(
                explain_latent(latent.named, bank, shuffled, known, settings, "shuffled")
            )
        if RANDOM_DIRECTION in controls:
            other = data.values(latent, "train", RANDOM_DIRECTION)
            known = Activations(view, data.values(latent, "validation", RANDOM_DIRECTION))
            records.append(
                explain_latent(latent.named, bank, other, known, settings, RANDOM_DIRECTION)
            )
    return records
