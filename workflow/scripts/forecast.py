"""Tell what language models will be asked, before anything is sent: requests, tokens and price per stage and model.

Inputs, one for each model and source: windows, events, head_stats (raw_events.parquet, head_stats.parquet) where heads
are to be explained, items (items.parquet) where explanations are to be judged; the same for latents, one for each
dictionary. Params: places
(name and folder of the model, bos, paths of explanations that may exist already), sections of the configuration. No
output: the table is printed. Its requests are made by the code that will send them; re-asks, revisions and the
comparison of candidates depend on answers and come on top.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.llm.forecast import tabulate
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import llm_settings_from
from mechatlas.score.judge.expected import (
    Place,
    explain_requests,
    judge_requests,
    latent_judge_requests,
    latent_requests,
)


def main(
    windows: Sequence[str],
    events: Sequence[str],
    head_stats: Sequence[str],
    test_items: Sequence[str],
    latent_windows: Sequence[str],
    latent_activations: Sequence[str],
    latent_events: Sequence[str],
    latent_items: Sequence[str],
    places: Sequence[Place],
    latent_places: Sequence[Place],
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
        files = zip(latent_windows, latent_activations, latent_events, strict=True)
        for place, paths in zip(latent_places, files, strict=bool(latent_events)):
            for request in latent_requests(place, *paths, openai, seed):
                yield f"explain {place['name']}", request
        for place, path in zip(latent_places, latent_items, strict=bool(latent_items)):
            for request in latent_judge_requests(place, path, judge, explainers, seed):
                yield f"judge {place['name']}", request

    print(tabulate(requests(), llm_settings_from(llm)).table())  # noqa: T201 - what it is for


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
