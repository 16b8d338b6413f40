"""Explanation records of latents: the lines of latents/{dictionary}/explanations/{explainer}.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mechatlas.explain.latents.programs import LatentProgram, parse_latent_program
from mechatlas.io import UserError, read_jsonl, rng_for
from mechatlas.stats.shuffles import derangement

OWN = "none"
Key = tuple[int, int]  # layer, latent


def read_latent_explanations(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read explanation records of latents, programs parsed.

    Raises
    ------
    UserError
        If a record lacks a field, its program is not valid or it is there twice; the message names the line.
    """
    records: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for path in paths:
        for number, record in enumerate(read_jsonl(path), 1):
            missing = {"unit", "layer", "latent", "explainer", "control", "text", "program"}
            missing -= set(record)
            if missing:
                raise UserError(
                    f"{path}, line {number} lacks {', '.join(sorted(missing))}; delete the file and rerun"
                )
            key = tuple(record[name] for name in ("unit", "explainer", "control"))
            if key in seen:
                raise UserError(
                    f"{path}, line {number} explains {record['unit']} again; delete the file and rerun"
                )
            seen.add(key)
            if record["program"] is not None:
                record["program"] = parse_latent_program(record["program"])
            records.append(record)
    return records


def latent_programs(
    records: Iterable[Mapping[str, Any]], explainer: str, control: str = OWN
) -> dict[Key, LatentProgram]:
    """Return the programs of one explainer and control by (layer, latent)."""
    return {
        (r["layer"], r["latent"]): r["program"]
        for r in records
        if r["explainer"] == explainer and r["control"] == control and r["program"] is not None
    }


def swapped_latents(programs: Mapping[Key, LatentProgram], seed: int) -> dict[Key, LatentProgram]:
    """Give every latent the program of another one of its layer, in a seeded random order, each program once.

    A layer with one latent has no swap and is left out.
    """
    swapped = {}
    for layer in sorted({layer for layer, _ in programs}):
        keys = sorted(key for key in programs if key[0] == layer)
        if len(keys) < 2:
            continue
        donors = derangement(len(keys), rng_for(seed, "swapped latents", layer))
        swapped |= {key: programs[keys[donor]] for key, donor in zip(keys, donors, strict=True)}
    return swapped
