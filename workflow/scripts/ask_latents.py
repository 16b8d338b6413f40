"""Ask a language model what the latents of a dictionary stand for.

Inputs: windows.parquet, activations.parquet, raw_events.parquet, the model folder (tokenizer only).
Output: explanations/openai.jsonl, one record per latent; one that was not explained has an empty text and a reason.
The model is shown train events; explanations are compared on validation documents; test documents are not read. Answers
are kept in the store of ``llm`` as they come, so that a run that ends early goes on where it stopped.
"""

from collections.abc import Mapping
from typing import Any

from mechatlas.job import job
from mechatlas.explain.excerpts import LATENT
from mechatlas.explain.language import ask_settings, explain_units
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.evidence import LatentCases, LatentValidation
from mechatlas.explain.latents.prompts import PROMPT_VERSION, latent_dialogue
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import endpoint_from, llm_settings_from
from mechatlas.io import provenance, write_jsonl
from mechatlas.score.judge.scorers import fuzzing_rater


def main(
    windows: str,
    activations: str,
    events: str,
    model: str,
    bos: str | None,
    openai: Mapping[str, Any],
    openai_at: Mapping[str, Any],
    judge: Mapping[str, Any] | None,
    judge_at: Mapping[str, Any],
    llm: Mapping[str, Any],
    seed: int,
    explanations: str,
) -> None:
    """Explain the most important latents, as many at a time as ``llm.concurrency`` allows."""
    data = LatentData(windows, activations, model, bos)
    settings = ask_settings(openai, endpoint_from({**openai, **openai_at}))
    cases = LatentCases(data, events, openai, seed)
    rate = fuzzing_rater({**judge, **judge_at}, LATENT, seed) if judge else None
    dialogue = latent_dialogue(data.vocabulary)
    works = explain_units(cases, settings, LatentValidation(data), rate, dialogue)
    records = run_units(llm_settings_from(llm), works, "explain latents", total=len(cases))
    facts = provenance(
        **data.facts,
        openai=dict(openai),
        judge=judge and {key: judge[key] for key in ("provider", "model", "temperature")},
        prompt_version=PROMPT_VERSION,
        seed=seed,
    )
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
