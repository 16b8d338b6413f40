"""Which (query, key) pairs of a batch become candidate events, for all heads of a layer at once.

Write norms are ``A[q, k] * ||v_k W_O||``. The BOS key is left out of top events, their negatives and the quantile
sample (heads park unused attention there); uniformly random events and the head statistics include it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechatlas.capture.draws import uniform_of
from mechatlas.capture.reservoirs import NEGATIVES, new_events
from mechatlas.io import seed_for

NEGATIVE_SHARE = 0.1  # a matched negative has less than this share of its event's write norm


@dataclass
class Batch:
    """What is known of a batch of B windows before the model runs.

    Attributes
    ----------
    windows, splits : int [B]
    own : bool [B]
        Whether the window belongs to this chunk (others are there to keep batches equal in all chunks).
    queries : int64 Tensor [B, R]
        Sampled query rows; on the device of the model, as the uniform numbers are.
    uniforms : float64 Tensor [B, R, T]
        A uniform number for each entry of these rows.
    pairs : int [m, 3]
        Random events: place in the batch, query, key.
    """

    windows: np.ndarray
    splits: np.ndarray
    own: np.ndarray
    queries: Tensor
    uniforms: Tensor
    pairs: np.ndarray


def top_events(
    pattern: Tensor, norms: Tensor, batch: Batch, count: int, thresholds: np.ndarray, seed: int
) -> np.ndarray:
    """Return the ``count`` strongest events of each window and head, with their matched negatives.

    Parameters
    ----------
    pattern, norms : Tensor [B, H, T, T]
        Attention and write norms, the latter zero at key 0.
    thresholds : float [splits, H]
        Weaker events cannot be selected and are left out.
    seed : int
        Of the layer's negatives.

    Notes
    -----
    The strongest n entries of a matrix lie in the n rows with the largest maxima, so only those are sorted.
    """
    n_heads, length = norms.shape[1], norms.shape[2]
    count = min(count, length)
    rows = (
        norms.amax(-1)
        .sort(dim=-1, descending=True, stable=True)
        .indices[..., :count]
        .sort(-1)
        .values
    )
    flat_rows = torch.arange(rows.shape[0] * n_heads, device=rows.device)[:, None] * length
    strongest = norms.view(-1, length).index_select(0, (flat_rows + rows.flatten(0, 1)).flatten())
    # Rows rise with the query, so that a stable sort breaks ties by query and key.
    values, places = strongest.view(-1, count * length).sort(dim=-1, descending=True, stable=True)
    values, places = values[:, :count], places[:, :count]
    query = rows.flatten(0, 1).gather(1, places // length)
    values, query, key = (x.cpu().numpy() for x in (values, query, places % length))

    where, head = np.divmod(np.arange(len(values)), n_heads)
    least = thresholds[batch.splits[where], head][:, None]
    kept = (values > 0) & (values >= least) & batch.own[where][:, None]
    line, _ = np.nonzero(kept)
    events = new_events(len(line))
    events["head"], events["window"] = head[line], batch.windows[where[line]]
    events["query"], events["key"], events["write_norm"] = query[kept], key[kept], values[kept]
    if len(events):
        events["attention"] = _at(pattern, where[line], events)
        _match(events, where[line], pattern, norms, seed)
    return events


def quantile_candidates(
    pattern: Tensor, norms: Tensor, batch: Batch, thresholds: np.ndarray, count: int
) -> np.ndarray:
    """Return entries of the sampled rows with their sampling priority: write norm / uniform number.

    Keeping the ``count`` largest priorities is priority sampling (Duffield, Lund and Thorup 2007): a sample without
    replacement in which the chance of an event is proportional to its write norm.
    """
    size, n_heads, length = norms.shape[:3]
    device = norms.device
    blocks = torch.arange(size * n_heads, device=device).view(size, n_heads, 1)
    rows = (blocks * length + batch.queries[:, None]).flatten()
    shape = (size, n_heads, -1, length)
    strength = norms.view(-1, length).index_select(0, rows).view(shape)
    attention = pattern.reshape(-1, length).index_select(0, rows).view(shape)
    priority = strength.double() / batch.uniforms[:, None]
    thresholds = _raised(thresholds, priority, batch, count)
    least = np.where(batch.own[:, None], thresholds[batch.splits], np.inf)[..., None, None]
    kept = priority > torch.from_numpy(least).to(device)
    where, head, row, key = place = kept.nonzero(as_tuple=True)
    events = new_events(len(where))
    events["window"] = batch.windows[where.cpu().numpy()]
    _fill(events, head=head, query=batch.queries[where, row], key=key)
    _fill(events, write_norm=strength[place], attention=attention[place].float())
    _fill(events, priority=priority[place])
    return events


def _raised(thresholds: np.ndarray, priority: Tensor, batch: Batch, count: int) -> np.ndarray:
    """Return thresholds ``[splits, H]``, those still at zero raised to what the ``count`` best of the batch leave."""
    raised = thresholds.copy()
    for split in np.flatnonzero((thresholds == 0).any(1)):
        mine = torch.from_numpy(batch.own & (batch.splits == split)).to(priority.device)
        found = priority[mine].transpose(0, 1).flatten(1)
        if found.shape[1] > count:
            last = found.topk(count).values[:, -1].cpu().numpy()
            # Just below, as an event must exceed its threshold.
            raised[split] = np.maximum(thresholds[split], np.nextafter(last, -np.inf))
    return raised


def random_events(pattern: Tensor, value_norms: Tensor, batch: Batch) -> np.ndarray:
    """Return the events at the batch's random pairs; ``value_norms [B, H, T]`` with its true value at BOS."""
    n_heads = pattern.shape[1]
    events = new_events(len(batch.pairs) * n_heads)
    where, query, key = (np.repeat(column, n_heads) for column in batch.pairs.T)
    events["head"] = np.tile(np.arange(n_heads), len(batch.pairs))
    events["window"], events["query"], events["key"] = batch.windows[where], query, key
    if len(events):
        events["attention"] = _at(pattern, where, events)
        place = [torch.from_numpy(np.asarray(x, np.int64)) for x in (where, events["head"], key)]
        norms = value_norms[tuple(x.to(value_norms.device) for x in place)].float().cpu().numpy()
        events["write_norm"] = events["attention"] * norms
    return events


def _at(values: Tensor, where: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Return ``values[where, head, query, key]`` of events."""
    fields = (where, events["head"], events["query"], events["key"])
    index = torch.from_numpy(np.stack(fields).astype(np.int64)).to(values.device)
    return values[tuple(index)].float().cpu().numpy()


def _fill(events: np.ndarray, **columns: Tensor) -> None:
    """Set fields of events from tensors of one dtype, which leave the device together."""
    for name, column in zip(columns, torch.stack([*columns.values()]).cpu().numpy(), strict=True):
        events[name] = column


def _match(
    events: np.ndarray, where: np.ndarray, pattern: Tensor, norms: Tensor, seed: int
) -> None:
    """Fill in the matched negatives: same query, same key, same distance, each at another place."""
    length, device = norms.shape[-1], norms.device
    limit = torch.from_numpy(NEGATIVE_SHARE * events["write_norm"]).to(device)[:, None]
    block = where * norms.shape[1] + events["head"]
    given = np.stack([block, events["query"], events["key"]]).astype(np.int64)[..., None]
    block, query, key = torch.from_numpy(given).to(device)
    distance = query - key
    place = torch.arange(length, device=device)[None]
    # For each kind the candidate places: (query, key, admissible), each [events, T]; never the BOS key.
    candidates = {
        "same_query": (query, place, (place >= 1) & (place <= query) & (place != key)),
        "same_key": (place, key, (place >= key) & (place != query)),
        "same_distance": (place, place - distance, (place > distance) & (place != query)),
    }
    flat_norms, flat_pattern = norms.view(-1), pattern.reshape(-1)
    for kind in NEGATIVES:
        queries, keys, admissible = candidates[kind]
        entries = (block * length + queries) * length + keys.where(admissible, 0)
        values = flat_norms[entries]
        pick = _pick(admissible & (values < limit), events, seed_for(seed, "negative", kind))
        at, none = pick.clamp(min=0)[:, None], pick < 0
        entry = entries.gather(1, at)[:, 0]
        chosen = {
            "query": torch.where(none, -1, entry // length % length),
            "key": torch.where(none, -1, entry % length),
        }
        strength = {"write_norm": flat_norms[entry], "attention": flat_pattern[entry].float()}
        strength = {name: torch.where(none, torch.nan, x) for name, x in strength.items()}
        for columns in (chosen, strength):
            _fill(events, **{f"{kind}_{name}": column for name, column in columns.items()})


def _pick(admissible: Tensor, events: np.ndarray, seed: int) -> Tensor:
    """Return a random admissible column of each row, or -1; it depends on the event only."""
    counts = admissible.sum(1)
    u = uniform_of(seed, events["head"], events["window"], events["query"], events["key"])
    wanted = (torch.from_numpy(u).to(counts.device) * counts).long() + 1
    column = (admissible.cumsum(1, dtype=torch.int32) < wanted[:, None]).sum(1)
    return column.where(counts > 0, -1)
