"""Ask a language model what the heads of a model do.

Inputs: windows.parquet, the chunk folders with attention patterns (validation, to try programs on), raw_events.parquet,
head_stats.parquet, the model folder (tokenizer only).
Output: explanations/openai.jsonl, one record per head; a head that was not explained has an empty text and a reason.
The model is shown train events; explanations are compared on validation documents; test documents are not read. Answers
are kept in the store of ``llm`` as they come, so that a run that ends early goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.cases import Cases
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.excerpts import HEAD
from mechatlas.explain.language import ask_settings, explain_units
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import endpoint_from, llm_settings_from
from mechatlas.explain.prompts import PROMPT_VERSION
from mechatlas.explain.validation import Validation
from mechatlas.io import provenance, write_jsonl
from mechatlas.score.judge.scorers import fuzzing_rater


def main(
    windows: str,
    chunks: Sequence[str],
    events: str,
    head_stats: str,
    model: str,
    bos: str | None,
    max_heads: int,
    openai: Mapping[str, Any],
    openai_at: Mapping[str, Any],
    judge: Mapping[str, Any] | None,
    judge_at: Mapping[str, Any],
    llm: Mapping[str, Any],
    seed: int,
    explanations: str,
) -> None:
    """Explain the heads with the largest write norm, as many at a time as ``llm.concurrency`` allows."""
    data = HeadData(windows, chunks, model, bos)
    settings = ask_settings(openai, endpoint_from({**openai, **openai_at}))
    cases = Cases(data, events, head_stats, openai, max_heads, seed)
    rate = fuzzing_rater({**judge, **judge_at}, HEAD, seed) if judge else None
    works = explain_units(cases, settings, Validation(data), rate)
    records = run_units(llm_settings_from(llm), works, "explain heads", total=len(cases))
    facts = provenance(
        **data.facts,
        max_heads=max_heads,
        openai=dict(openai),
        judge=judge and {key: judge[key] for key in ("provider", "model", "temperature")},
        prompt_version=PROMPT_VERSION,
        seed=seed,
    )
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
