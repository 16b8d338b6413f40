"""Requests that explaining and judging begin with, made from files before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.explain.cases import Cases
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.language import ask_settings, first_requests
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.evidence import LatentCases
from mechatlas.explain.latents.prompts import latent_dialogue
from mechatlas.explain.latents.records import read_latent_explanations
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import endpoint_from
from mechatlas.explain.records import read_explanations
from mechatlas.io import read_table
from mechatlas.score.judge.judging import expected_requests
from mechatlas.score.judge.planted import planted_records
from mechatlas.score.judge.planted_latents import planted_latent_records
from mechatlas.score.judge.scorers import judge_settings

#: Name, folder and BOS of a model, and paths of explanations that may exist already.
Place = Mapping[str, Any]


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


def latent_requests(
    place: Place, windows: str, activations: str, events: str, openai: Mapping[str, Any], seed: int
) -> Iterator[Request]:
    """Yield what ask_latents would begin with."""
    data = LatentData(windows, activations, place["model"], place["bos"])
    cases = LatentCases(data, events, openai, seed)
    settings = ask_settings(openai, endpoint_from(openai))
    return first_requests(cases, settings, latent_dialogue(data.vocabulary))


def latent_judge_requests(
    place: Place, path: str, judge: Mapping[str, Any], explainers: Sequence[str], seed: int
) -> Iterator[Request]:
    """Yield what judge_latents would begin with, as `judge_requests` does."""
    found = read_latent_explanations([p for p in place["explanations"] if Path(p).exists()])
    records = planted_latent_records(judge["planted"]) + found
    settings = judge_settings(judge, seed)
    return expected_requests(read_table(path), records, explainers, judge["controls"], settings)
