"""Tell what language models will be asked, before anything is sent: requests, tokens and price per stage and model.

Inputs, one for each model and source: windows, events, head_stats (raw_events.parquet, head_stats.parquet) where heads
are to be explained, items (items.parquet) where explanations are to be judged. Params: places (name and folder of the
model, bos, paths of explanations that may exist already), sections of the configuration. No output: the table is
printed. Its requests are made by the code that will send them; re-asks, revisions and the comparison of candidates
depend on answers and come on top.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.explain.cases import Cases
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.language import ask_settings, first_requests
from mechatlas.explain.llm.forecast import tabulate
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import endpoint_from, llm_settings_from
from mechatlas.explain.records import read_explanations
from mechatlas.io import read_table
from mechatlas.score.judge.judging import expected_requests
from mechatlas.score.judge.planted import planted_records
from mechatlas.score.judge.scorers import judge_settings

Place = Mapping[str, Any]


def main(
    windows: Sequence[str],
    events: Sequence[str],
    head_stats: Sequence[str],
    test_items: Sequence[str],
    places: Sequence[Place],
    openai: Mapping[str, Any],
    max_heads: int,
    judge: Mapping[str, Any],
    explainers: Sequence[str],
    llm: Mapping[str, Any],
    seed: int,
) -> None:
    """Print the forecast of all models and sources."""

    def requests() -> Iterator[tuple[str, Request]]:
        for place, *files in zip(places, windows, events, head_stats, strict=bool(events)):
            for request in explain_requests(place, *files, openai, max_heads, seed):
                yield f"explain {place['name']}", request
        for place, path in zip(places, test_items, strict=bool(test_items)):
            for request in judge_requests(place, path, judge, explainers, seed):
                yield f"judge {place['name']}", request

    print(tabulate(requests(), llm_settings_from(llm)).table())  # noqa: T201 - what it is for


def explain_requests(
    place: Place,
    windows: str,
    events: str,
    head_stats: str,
    openai: Mapping[str, Any],
    max_heads: int,
    seed: int,
) -> Iterator[Request]:
    """Yield what ask_explainer would begin with."""
    data = HeadData(windows, [], place["model"], place["bos"])
    cases = Cases(data, events, head_stats, openai, max_heads, seed)
    return first_requests(cases, ask_settings(openai, endpoint_from(openai)))


def judge_requests(
    place: Place, path: str, judge: Mapping[str, Any], explainers: Sequence[str], seed: int
) -> Iterator[Request]:
    """Yield what judge_heads would begin with; the longest text stands in for explanations yet to come."""
    found = read_explanations([path for path in place["explanations"] if Path(path).exists()])
    records = planted_records(judge["planted"]) + found
    settings = judge_settings(judge, seed)
    return expected_requests(read_table(path), records, explainers, judge["controls"], settings)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
