"""Token windows on which the embedded models are trained: cuts of text and repeated random blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mechatlas.corpus.document import Document
from mechatlas.io import UserError

ENCODE_CHUNK = 2_000


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes
    ----------
    steps, windows, length : int
        Steps, windows per step, tokens per window (BOS included).
    repeated_share, drill_share : float
        Shares of windows in a step that are repeated random blocks and cuts of drills
        (`mechatlas.corpus.synthetic.generate_drills`); the others are cuts of articles and threads.
    scattered_share, varied_share : float
        Shares of the drills whose clauses are scattered over random words, and varied.
    substituted_share, varied_substituted_share : float
        Shares of the drills, and of the varied ones, in which names and other words are replaced by random tokens, see
        `substituted`. If the second is not 0, only other words are replaced in the rest of the varied ones.
    shortest_period, longest_period : int
        Range, ends included, from which the lengths of the blocks are drawn.
    """

    steps: int
    windows: int
    length: int
    repeated_share: float
    drill_share: float
    scattered_share: float
    varied_share: float
    substituted_share: float
    varied_substituted_share: float
    shortest_period: int
    longest_period: int

    def __post_init__(self) -> None:
        if self.scattered_share + self.varied_share > 1:
            raise UserError(
                "phases: scattered_share and varied_share are shares of the drills; keep their sum at most 1"
            )
        if not 2 <= self.shortest_period <= self.longest_period <= self.length // 2 - 1:
            raise UserError(
                f"phases: periods {self.shortest_period} to {self.longest_period} do not repeat in windows of "
                f"{self.length} tokens; keep them between 2 and {self.length // 2 - 1}"
            )


def encode_documents(
    documents: Iterable[Document], encode_batch: Callable[[list[str]], list[list[int]]]
) -> list[np.ndarray]:
    """Return the token ids (uint16) of each document; ``encode_batch`` adds no special tokens."""
    encoded: list[np.ndarray] = []
    chunk: list[str] = []
    for document in documents:
        chunk.append(document.text)
        if len(chunk) == ENCODE_CHUNK:
            encoded.extend(np.asarray(ids, dtype=np.uint16) for ids in encode_batch(chunk))
            chunk = []
    encoded.extend(
        np.asarray(ids, dtype=np.uint16) for ids in (encode_batch(chunk) if chunk else [])
    )
    return encoded


def cut_windows(
    encoded: Iterable[np.ndarray], bos: int, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut every document into as many windows as it holds.

    Parameters
    ----------
    encoded : iterable of numpy.ndarray
        Token ids of each document.
    bos : int
        Id put in front of every window.
    length : int
        Tokens per window, BOS included.
    rng : numpy.random.Generator
        Chooses the first cut of each document, so that text stands at varying positions.

    Returns
    -------
    numpy.ndarray
        [N, length] uint16, in document order. Documents shorter than a window are left out.

    Raises
    ------
    UserError
        If no document is long enough.
    """
    body = length - 1
    windows = []
    for ids in encoded:
        count = len(ids) // body
        if count:
            first = int(rng.integers(0, len(ids) - count * body + 1))
            windows.append(ids[first : first + count * body].reshape(count, body))
    if not windows:
        raise UserError(f"length: no document has {body} tokens; use a shorter window")
    return np.pad(np.concatenate(windows), ((0, 0), (1, 0)), constant_values=bos)


def first_windows(encoded: Iterable[np.ndarray], bos: int, length: int) -> np.ndarray:
    """Take the beginning of every document that fills a window.

    Prompts begin behind BOS, so a behaviour has to be seen there as well as in the middle of text.

    Parameters and result are those of `cut_windows`.

    Raises
    ------
    UserError
        If no document is long enough.
    """
    windows = [ids[: length - 1] for ids in encoded if len(ids) >= length - 1]
    if not windows:
        raise UserError(f"length: no drill has {length - 1} tokens; use a shorter window")
    return np.pad(np.stack(windows), ((0, 0), (1, 0)), constant_values=bos)


def repeated_windows(
    count: int, phase: Phase, bos: int, vocabulary: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make windows of a random block of tokens that repeats to the end.

    Parameters
    ----------
    count : int
        Number of windows.
    phase : Phase
        Gives their length and the range of periods.
    bos : int
        Id put in front.
    vocabulary : sequence of int
        Ids to draw from.
    rng : numpy.random.Generator

    Returns
    -------
    tuple of numpy.ndarray
        Windows [count, length] uint16, and per window [count] int64 the first index whose token can be predicted
        (the second token of the second copy).
    """
    length = phase.length
    periods = rng.integers(phase.shortest_period, phase.longest_period + 1, size=count)
    blocks = rng.choice(np.asarray(vocabulary, dtype=np.uint16), size=(count, length))
    index = np.arange(length - 1)[None, :] % periods[:, None]
    windows = np.full((count, length), bos, dtype=np.uint16)
    windows[:, 1:] = np.take_along_axis(blocks, index, axis=1)
    return windows, periods + 2


@dataclass(frozen=True)
class Substitution:
    """Which tokens of a drill may be replaced by which.

    Attributes
    ----------
    names : numpy.ndarray
        Ids that are always replaced.
    others : numpy.ndarray
        Ids of which a random half is replaced in every second window.
    pool : numpy.ndarray
        Ids that replace them, more than there are names; no held-out name is among them.
    """

    names: np.ndarray
    others: np.ndarray
    pool: np.ndarray


def substituted(
    windows: np.ndarray, rule: Substitution, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Replace names, and some other words, by random tokens: the same ones throughout a window.

    What a sentence asks for stays the same, but can no longer be found by knowing names or phrases by heart.

    Parameters
    ----------
    windows : numpy.ndarray
        [N, T] ids below ``size``.
    rule : Substitution
    size : int
        Size of the vocabulary.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        [N, T] of the same dtype.
    """
    result = windows.copy()
    for row in result:
        table = np.arange(size, dtype=windows.dtype)
        table[rule.names] = rng.choice(rule.pool, size=len(rule.names), replace=False)
        if rng.random() < 0.5:
            chosen = rule.others[rng.random(len(rule.others)) < 0.5]
            table[chosen] = rng.choice(rule.pool, size=len(chosen))
        row[:] = table[row]
    return result


def phase_batches(
    text: np.ndarray,
    drills: Mapping[str, np.ndarray],
    phase: Phase,
    bos: int,
    vocabulary: Sequence[int],
    rule: Substitution,
    varied_rule: Substitution,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lay out the steps of a phase: repeated blocks, drills and text in random order, each cut used once.

    Parameters
    ----------
    text : numpy.ndarray
        [N, phase.length] windows of text.
    drills : mapping of str to numpy.ndarray
        The same of the kinds of `mechatlas.corpus.synthetic.generate_drills`; ``varied`` may be left out if the phase
        has none.
    phase : Phase
    bos, vocabulary, rng
        As in `repeated_windows`.
    rule, varied_rule : Substitution
        For the phase's shares of substituted drills.

    Returns
    -------
    list of tuple
        Per step: tokens [windows, length] uint16, and per window [windows] int64 the first index whose token counts
        for the loss.

    Raises
    ------
    UserError
        If there are fewer windows of text or drills than the steps need.
    """
    repeated = round(phase.windows * phase.repeated_share)
    drilled = round(phase.windows * phase.drill_share)
    spread = round(drilled * phase.scattered_share)
    varied = round(drilled * phase.varied_share)
    cuts = phase.windows - repeated - drilled
    text_rows = _shuffled("text.documents", len(text), phase, cuts, rng)
    plain_rows = _shuffled(
        "drills.drill", len(drills["drill"]), phase, drilled - spread - varied, rng
    )
    spread_rows = _shuffled("drills.scattered", len(drills["scattered"]), phase, spread, rng)
    # Drawn only where needed, so that a recipe without them keeps its random numbers.
    varied_rows = (
        _shuffled("drills.varied", len(drills["varied"]), phase, varied, rng) if varied else None
    )
    batches = []
    for step in range(phase.steps):
        blocks, starts = repeated_windows(repeated, phase, bos, vocabulary, rng)
        parts = [drills["drill"][plain_rows[step]], drills["scattered"][spread_rows[step]]]
        for part in parts:
            changed = round(len(part) * phase.substituted_share)
            part[:changed] = substituted(part[:changed], rule, len(vocabulary) + 1, rng)
        if varied_rows is not None:
            part = drills["varied"][varied_rows[step]]
            changed = round(varied * phase.varied_substituted_share)
            if changed:
                rest = replace(varied_rule, names=varied_rule.names[:0])
                part[:changed] = substituted(part[:changed], varied_rule, len(vocabulary) + 1, rng)
                part[changed:] = substituted(part[changed:], rest, len(vocabulary) + 1, rng)
            parts.append(part)
        rows = (blocks, *parts, text[text_rows[step]])
        first = np.concatenate([starts, np.ones(drilled + cuts, dtype=np.int64)])
        batches.append((np.concatenate(rows), first))
    return batches


def _shuffled(
    key: str, available: int, phase: Phase, per_step: int, rng: np.random.Generator
) -> np.ndarray:
    needed = phase.steps * per_step
    if needed > available:
        raise UserError(
            f"{key}: {available} windows of {phase.length} tokens, {needed} needed; raise it in the recipe"
        )
    return rng.permutation(available)[:needed].reshape(phase.steps, per_step)
