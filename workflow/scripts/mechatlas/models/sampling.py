"""Continuations of prompts, many at once, with a cache of keys and values and with hooks.

A prompt's continuation is its own: its random numbers come from the seed and its tokens, padding is invisible to it,
and a batch is cut where its cache would grow too large.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mechatlas.io import UserError, rng_for
from mechatlas.models.cache import KeyValueCache
from mechatlas.models.hooks import Hook, bind
from mechatlas.models.transformer import Transformer

CACHE_BYTES = 2**30  # keys and values of all prompts that run at once


@torch.inference_mode()
def sample(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float | None = None,
    seed: int = 0,
    hooks: Mapping[str, Hook] | None = None,
    cached: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> list[list[int]]:
    """Continue prompts by ``num_tokens`` tokens each.

    Parameters
    ----------
    model : Transformer
    prompts : sequence of token ids
        Of any lengths, at least one token each (the BOS token, if it is wanted, is the caller's to put).
    num_tokens : int
    temperature : float
        Divides the logits; 0 takes the most likely token.
    top_p : float, optional
        Draw from the fewest tokens whose probabilities reach this sum (Holtzman et al. 2020).
    seed : int
        With the tokens of a prompt it fixes the draws, whatever else is in the batch. Of equal prompts, the first,
        second, ... draw differently.
    hooks : mapping or `Hooks`, optional
        Applied in every pass: over a prompt, then over each new token.
    cached : bool
        False runs the whole sequence again for every token, which gives the same tokens slowly.
    cache_bytes : int
        Bound on the cache of the prompts that run at once (at least one does).

    Returns
    -------
    list of list of int
        The new tokens of each prompt.

    Raises
    ------
    UserError
        If an argument is out of range, a prompt is empty, holds a token outside the vocabulary, or does not fit the
        model's context with what is to be added; or if a hook has made logits NaN.
    """
    _check(model, prompts, num_tokens, temperature, top_p)
    draws = None if temperature == 0 else _draws(prompts, num_tokens, seed)
    out: list[list[int]] = [[] for _ in prompts]
    for rows in _groups(model, [len(prompt) for prompt in prompts], num_tokens, cache_bytes):
        run = _Run(model, [prompts[row] for row in rows], num_tokens, hooks, cached)
        for step in range(num_tokens):
            uniforms = None if draws is None else draws[rows, step]
            run.append(choose(run.logits(), uniforms, temperature, top_p))
        for row, tokens in zip(rows, run.new_tokens(), strict=True):
            out[row] = tokens
    return out


def choose(
    logits: Tensor,
    uniforms: np.ndarray | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
) -> Tensor:
    """Return one token per row of ``logits [B, V]``, int64 ``[B]``: the best, or that at quantile ``uniforms [B]``."""
    if logits.isnan().any():
        raise UserError(
            "the logits are not numbers (NaN); look for the hook or weights that made them so"
        )
    if uniforms is None or temperature == 0:
        return logits.argmax(-1)
    # In float64, because rounding of a sum over the vocabulary would move the borders between tokens.
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p is not None:
        probabilities = _nucleus(probabilities, top_p)
    sums = probabilities.cumsum(-1)
    quantiles = torch.from_numpy(uniforms).to(sums.device)[:, None] * sums[:, -1:]
    found = torch.searchsorted(sums, quantiles, right=True)[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)


class _Run:
    """Prompts that are continued together."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        hooks: Mapping[str, Hook] | None,
        cached: bool,
    ):
        self.model, self.hooks = model, hooks
        self.starts = [len(prompt) for prompt in prompts]
        self.read, self.step = 0, 0
        width = max(self.starts) + num_tokens
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        self.tokens = torch.from_numpy(tokens).to(model.device)
        self.rows = torch.arange(len(prompts), device=model.device)
        self.ends = torch.tensor(self.starts, device=model.device)
        self.cache = None
        if cached:
            # The last token is never read.
            size = (len(prompts), width - 1)
            self.cache = KeyValueCache(model.config, *size, model.device, model.dtype)

    def logits(self) -> Tensor:
        """Return the logits of the next token of every prompt, ``[B, V]``."""
        if self.cache is not None and self.step:
            tokens, last = self.tokens[self.rows, self.ends - 1][:, None], None
        else:
            tokens, last = self.tokens[:, : max(self.starts) + self.step], self.ends - 1
        x = self.model.forward(tokens, self.hooks, logits=False, cache=self.cache)
        if last is not None:
            x = x[self.rows, last][:, None]
        if self.cache is not None and not self.step:
            self.cache.truncate(self.starts)
        # In this order because a CPU reads the vocabulary's matrix faster as the left factor, by up to twice.
        logits = (self.model.weights.unembedding @ x[:, 0].mT).mT
        hook = bind(self.hooks, (self.ends - 1)[:, None], 1).get("logits")
        replaced = None if hook is None else hook(logits[:, None], self.model.config.n_layers)
        return logits if replaced is None else replaced[:, 0]

    def append(self, tokens: Tensor) -> None:
        """Add a token ``[B]`` to every prompt."""
        self.tokens[self.rows, self.ends] = tokens
        self.ends = self.ends + 1
        self.step += 1

    def new_tokens(self) -> list[list[int]]:
        """Return what was added to each prompt."""
        rows = zip(self.tokens.tolist(), self.starts, strict=True)
        return [row[start : start + self.step] for row, start in rows]


def _groups(
    model: Transformer, lengths: Sequence[int], num_tokens: int, cache_bytes: int
) -> Iterator[list[int]]:
    """Yield the rows that run together: of similar length, with a cache of bounded size."""
    config = model.config
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    token_bytes = 2 * config.n_layers * config.n_kv_heads * config.d_head * itemsize
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Ascending, so this row would set the width of all.
        size = (len(group) + 1) * (lengths[row] + num_tokens) * token_bytes
        if group and size > cache_bytes:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _draws(prompts: Sequence[Sequence[int]], num_tokens: int, seed: int) -> np.ndarray:
    """Return uniform numbers ``[N, num_tokens]``: those of a prompt depend on its tokens and its earlier copies."""
    copies: Counter[str] = Counter()
    draws = np.empty((len(prompts), num_tokens))
    for row, prompt in enumerate(prompts):
        name = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).hexdigest()
        draws[row] = rng_for(seed, "sample", name, copies[name]).random(num_tokens)
        copies[name] += 1
    return draws


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    return torch.where(kept, ordered, 0).gather(-1, order.argsort(-1))


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    temperature: float,
    top_p: float | None,
) -> None:
    config = model.config
    if num_tokens < 1:
        raise UserError(f"num_tokens: {num_tokens} is too small; set it to at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(
            f"temperature: {temperature} is not a number from 0 up; 0 takes the most likely token"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(
            f"top_p: {top_p} is not above 0 and at most 1; leave it out to draw from all tokens"
        )
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(
                f"prompt {number} is empty; give it at least one token, such as the BOS token"
            )
        if len(prompt) + num_tokens > config.n_ctx:
            raise UserError(
                f"prompt {number} of {len(prompt)} tokens and {num_tokens} new ones exceed the model's context of "
                f"{config.n_ctx}; shorten the prompt or lower num_tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise UserError(
                f"prompt {number} holds a token outside 0 to {config.vocab_size - 1}; it was made by another tokenizer"
            )
