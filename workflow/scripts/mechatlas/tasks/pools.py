"""Pools of words and templates, dealt out to the two splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from mechatlas.io import UserError, rng_for
from mechatlas.tasks.pairs import SPLITS

Item = TypeVar("Item")


def split_pool(items: Sequence[Item], split: str, seed: int, *names: str) -> tuple[Item, ...]:
    """Return the half of a pool that belongs to a split; together the halves are the pool.

    Parameters
    ----------
    items : sequence
        Different items.
    split : {"discovery", "held_out"}
    seed : int
        Base seed.
    *names : str
        What the pool is for; the halves depend on seed, names and items only.
    """
    order = rng_for(seed, "pool", *names).permutation(len(items))
    half = (len(items) + 1) // 2
    chosen = order[:half] if split == SPLITS[0] else order[half:]
    return tuple(items[index] for index in sorted(chosen))


def need(task: str, what: str, items: Collection[Item], least: int) -> None:
    """Check that a pool is large enough.

    Raises
    ------
    UserError
        If fewer than ``least`` items are left in it.
    """
    if len(items) < least:
        raise UserError(
            f"task {task}: {len(items)} {what} are usable with this model's tokenizer, but {least} are needed; "
            "name others or drop the task for this model"
        )


def one_of(key: str, value: str, known: Collection[str]) -> None:
    """Check a setting that has to be one of a few words.

    Raises
    ------
    UserError
        If it is not.
    """
    if value not in known:
        raise UserError(f"{key}: {value!r} is not known; choose from {', '.join(known)}")
