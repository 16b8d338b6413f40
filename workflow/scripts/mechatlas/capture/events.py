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
    queries : int [B, R]
        Sampled query rows.
    uniforms : float64 [B, R, T]
        A uniform number for each entry of these rows.
    pairs : int [m, 3]
        Random events: place in the batch, query, key.
    """

    windows: np.ndarray
    splits: np.ndarray
    own: np.ndarray
    queries: np.ndarray
    uniforms: np.ndarray
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
    pattern: Tensor, norms: Tensor, batch: Batch, thresholds: np.ndarray
) -> np.ndarray:
    """Return entries of the sampled rows with their sampling priority: write norm / uniform number.

    Keeping the largest priorities is priority sampling (Duffield, Lund and Thorup 2007): a sample without
    replacement in which the chance of an event is proportional to its write norm.
    """
    size, n_heads, length = norms.shape[:3]
    heads = np.arange(n_heads)[None, :, None]
    flat = (np.arange(size)[:, None, None] * n_heads + heads) * length + batch.queries[:, None]
    flat = torch.from_numpy(flat.ravel()).to(norms.device)
    shape = (size, n_heads, -1, length)
    strength = norms.view(-1, length).index_select(0, flat).view(shape).cpu().numpy()
    attention = pattern.reshape(-1, length).index_select(0, flat).view(shape).float().cpu().numpy()
    priority = strength / batch.uniforms[:, None]
    kept = (priority > thresholds[batch.splits][..., None, None]) & batch.own[:, None, None, None]
    where, head, row, key = np.nonzero(kept)
    events = new_events(len(where))
    events["head"], events["window"], events["key"] = head, batch.windows[where], key
    events["query"] = batch.queries[where, row]
    events["write_norm"], events["attention"] = strength[kept], attention[kept]
    events["priority"] = priority[kept]
    return events


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


def _at(values: Tensor, where: np.ndarray, events: np.ndarray, kind: str = "") -> np.ndarray:
    """Return ``values[where, head, query, key]`` of events, or of their negatives of one kind."""
    fields = (events["head"], events[f"{kind}query"], events[f"{kind}key"])
    index = (torch.from_numpy(np.asarray(x, np.int64)).to(values.device) for x in (where, *fields))
    return values[tuple(index)].float().cpu().numpy()


def _match(
    events: np.ndarray, where: np.ndarray, pattern: Tensor, norms: Tensor, seed: int
) -> None:
    """Fill in the matched negatives: same query, same key, same distance, each at another place."""
    length = norms.shape[-1]
    place = np.arange(length)[None]
    query, key = events["query"][:, None].astype(np.int64), events["key"][:, None].astype(np.int64)
    distance = query - key
    # For each kind the candidate places: (query, key, admissible), each [events, T]; never the BOS key.
    candidates = {
        "same_query": (query, place, (place >= 1) & (place <= query) & (place != key)),
        "same_key": (place, key, (place >= key) & (place != query)),
        "same_distance": (place, place - distance, (place > distance) & (place != query)),
    }
    device = norms.device
    block = torch.from_numpy(where * norms.shape[1] + events["head"])[:, None].to(device)
    maps, flat_norms = block * (length * length), norms.view(-1)
    limit = NEGATIVE_SHARE * events["write_norm"][:, None]
    for kind in NEGATIVES:
        queries, keys, admissible = candidates[kind]
        entry = torch.from_numpy(queries * length + np.where(admissible, keys, 0)).to(device)
        values = flat_norms[maps + entry].cpu().numpy()
        admissible = admissible & (values < limit)
        pick = _pick(admissible, events, seed_for(seed, "negative", kind))
        found = np.flatnonzero(pick >= 0)
        at = (found, pick[found])
        events[f"{kind}_query"][found] = np.broadcast_to(queries, values.shape)[at]
        events[f"{kind}_key"][found] = np.broadcast_to(keys, values.shape)[at]
        events[f"{kind}_write_norm"][found] = values[at]
        events[f"{kind}_attention"][found] = _at(pattern, where[found], events[found], f"{kind}_")


def _pick(admissible: np.ndarray, events: np.ndarray, seed: int) -> np.ndarray:
    """Return a random admissible column of each row, or -1; it depends on the event only."""
    counts = admissible.sum(1)
    u = uniform_of(seed, events["head"], events["window"], events["query"], events["key"])
    wanted = np.floor(u * counts).astype(np.int64) + 1
    column = (admissible.cumsum(1) == wanted[:, None]).argmax(1)
    return np.where(counts > 0, column, -1)
