"""What the rest of the code talks to: a model with its tokenizer, and the interface of dictionaries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechatlas.io import UserError
from mechatlas.models import sampling
from mechatlas.models.cache import KeyValueCache
from mechatlas.models.config import ModelConfig
from mechatlas.models.hooks import Hook, Hooks, check_points
from mechatlas.models.locate import find_model
from mechatlas.models.tdb import is_tdb, load_tdb
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.models.transformer import Transformer
from mechatlas.models.transformer import load as load_folder

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
ON_RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@runtime_checkable
class AutoencoderContext(Protocol):
    """A dictionary of one hook point in one layer, as far as code outside `mechatlas.dictionaries` needs to know it.

    Attributes
    ----------
    about : mapping
        ``layer``, and the hook points that it ``reads`` and (if another) ``writes``.
    n_latents, d_in, d_out : int
    decoder : Tensor [n_latents, d_out]
        What one unit of each latent adds, heads side by side.
    """

    about: Mapping[str, Any]
    decoder: Tensor

    @property
    def n_latents(self) -> int: ...

    @property
    def d_in(self) -> int: ...

    @property
    def d_out(self) -> int: ...

    def encode(self, x: Tensor, latents: Any = ...) -> Tensor:
        """Return latents ``[..., n]`` of activations ``[..., d_in]``."""

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return reconstructions ``[..., d_out]`` of latents ``[..., n_latents]`` (of the inputs ``x``)."""


@dataclass(frozen=True)
class Samples:
    """Continuations of prompts: the new ``tokens`` of each, and their text (None without a tokenizer)."""

    tokens: list[list[int]]
    strings: list[str] | None


class ModelContext:
    """A language model and its tokenizer.

    Parameters
    ----------
    name : str
    model : Transformer
    tokenizer : Tokenizer, optional
        Needed only for what is or shall be text.
    """

    def __init__(self, name: str, model: Transformer, tokenizer: Tokenizer | None = None):
        self.name, self.model, self._tokenizer = name, model, tokenizer

    @property
    def config(self) -> ModelConfig:
        """Shape and constants of the model."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raise `UserError` if the model came without one."""
        if self._tokenizer is None:
            raise UserError(
                f"{self.name} came without a tokenizer; give token ids, or load it with tokenizer=FOLDER, the folder "
                "of a model that has the same one"
            )
        return self._tokenizer

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the token ids of a text, after the BOS token (the model has seen windows that start with it)."""
        ids = self.tokenizer.encode(text)
        return [self.tokenizer.bos_id, *ids] if bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self.tokenizer.decode(ids)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        return self.tokenizer.strings(ids)

    def forward(
        self,
        tokens: Tensor | Sequence[int] | str,
        hooks: Mapping[str, Hook] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, KeyValueCache]:
        """Return logits ``[B, T, V]`` and the cache with which to go on.

        Parameters
        ----------
        tokens : int64 Tensor [B, T], or one sequence of ids, or a text
        hooks : mapping or `Hooks`, optional
        cache : KeyValueCache, optional
            What came before; it is extended and returned. Without it a new one of the model's whole context is made.
        """
        tokens = self._batch(tokens)
        if cache is None:
            size = (len(tokens), self.config.n_ctx)
            cache = KeyValueCache(self.config, *size, self.model.device, self.model.dtype)
        return self.model.forward(tokens, hooks, cache=cache), cache

    def activations(
        self,
        tokens: Tensor | Sequence[int] | str,
        points: str | Collection[str],
        layers: int | Collection[int] | None = None,
        hooks: Mapping[str, Hook] | None = None,
    ) -> dict[tuple[str, int], Tensor]:
        """Return values at hook points, by (point, layer), of all layers by default.

        They are the values that the model goes on with, after ``hooks``.
        """
        points = [points] if isinstance(points, str) else list(points)
        check_points(points)
        found: dict[tuple[str, int], Tensor] = {}
        watch = Hooks().extend(hooks or {})
        for point in points:
            watch.append_fwd2(
                point, lambda v, at, p=point: found.__setitem__((p, at), v), layers=layers
            )
        self.model.forward(self._batch(tokens), watch, logits="logits" in points)
        return found

    def sample(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        num_tokens: int = 5,
        temperature: float = 1.0,
        top_p: float | None = None,
        seed: int = 0,
        hooks: Mapping[str, Hook] | None = None,
        *,
        cached: bool = True,
    ) -> Samples:
        """Continue prompts (see `mechatlas.models.sampling.sample`).

        Texts are read as `encode` does, after the BOS token; token ids are taken as they are. A lone text or a flat
        sequence of ids is one prompt.

        Examples
        --------
        Silence a neuron, number 300 of layer 3, then sample:

        >>> from mechatlas.models.context import load
        >>> from mechatlas.models.hooks import Hooks, filled
        >>> model = load("demo-4l")
        >>> hooks = Hooks().append_fwd("mlp_post", filled(300), layers=3)
        >>> silenced = model.sample("She", 16, temperature=0, hooks=hooks)
        >>> silenced.strings == model.sample("She", 16, temperature=0).strings
        False
        >>> values = model.activations("She", "mlp_post", layers=3, hooks=hooks)
        >>> values["mlp_post", 3][..., 298:302].shape
        torch.Size([1, 3, 4])
        >>> values["mlp_post", 3][..., 300].abs().max().item()
        0.0
        """
        prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
        flat = [prompts] if isinstance(prompts, str) or _is_ids(prompts) else list(prompts)
        ids = [self.encode(p) if isinstance(p, str) else [int(i) for i in p] for p in flat]
        tokens = sampling.sample(
            self.model, ids, num_tokens, temperature=temperature, top_p=top_p, seed=seed,
            hooks=hooks, cached=cached,
        )  # fmt: skip
        strings = None if self._tokenizer is None else [self.decode(row) for row in tokens]
        return Samples(tokens, strings)

    def write_directions(self, point: str, layer: int, vectors: Tensor) -> Tensor:
        """Return what vectors at a hook point, heads side by side, add to the residual stream.

        Parameters
        ----------
        point : str
            ``z``, ``mlp_post`` (their output matrix is applied), or a point on the residual stream or of what is added
            to it, where a vector is itself.
        layer : int
        vectors : Tensor [..., width of the point]

        Returns
        -------
        Tensor [..., d_model]

        Raises
        ------
        ValueError
            If what is at the point does not reach the residual stream linearly.
        """
        weights = self.model.weights.layers[layer]
        maps = {"z": weights.w_o, "mlp_post": weights.w_down}
        if point in maps:
            return vectors @ maps[point]
        if point not in ON_RESIDUAL:
            raise ValueError(
                f"{point} does not write linearly; there are {', '.join((*maps, *ON_RESIDUAL))}"
            )
        return vectors

    def promoted_logits(self, directions: Tensor) -> Tensor:
        """Return by how much a direction in the residual stream raises each logit, directly.

        Parameters
        ----------
        directions : Tensor [..., d_model]

        Returns
        -------
        Tensor [..., V]
            For a final norm whose scale is 1 and stays so, and relative to the mean over the vocabulary, which no
            probability depends on.
        """
        if self.config.architecture == "gpt2":
            directions = directions - directions.mean(-1, keepdim=True)
        logits = self.model.unembed(directions * self.model.weights.final_norm)
        return logits - logits.mean(-1, keepdim=True)

    def latent_logits(
        self, dictionary: AutoencoderContext, latents: slice | Tensor | int = slice(None)
    ) -> Tensor:
        """Return the `promoted_logits` ``[..., V]`` of what one unit of latents of a dictionary writes."""
        about = dictionary.about
        point = about.get("writes") or about["reads"]
        rows = dictionary.decoder[latents]
        return self.promoted_logits(self.write_directions(point, about["layer"], rows))

    def _batch(self, tokens: Tensor | Sequence[int] | str) -> Tensor:
        if isinstance(tokens, str):
            tokens = self.encode(tokens)
        tokens = torch.as_tensor(tokens, dtype=torch.long, device=self.model.device)
        return tokens[None] if tokens.ndim == 1 else tokens


def load(
    name_or_path: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    bos: str | None = None,
) -> ModelContext:
    """Load a model by name, folder or address.

    Parameters
    ----------
    name_or_path : str or Path
        A folder of Hugging Face or the Transformer Debugger, the name of an embedded model, OpenAI's copy of GPT-2, an
        https address or a Hugging Face repository (see `mechatlas.models.locate.find_model`).
    dtype, device : str
        Such as ``"float32"``, ``"bfloat16"``, ``"float64"``; ``"cpu"``, ``"cuda"``.
    revision : str, optional
        Commit of a Hugging Face repository (required there), or digest of a downloaded folder.
    tokenizer : str or Path, optional
        Model with the tokenizer, if it is not in the model's own folder (a Transformer Debugger folder has none).
    bos : str, optional
        The BOS token, if not the tokenizer's own.

    Raises
    ------
    UserError
        If there is no such model, or a file of it is missing or damaged.
    """
    folder = find_model(name_or_path, revision)
    read = load_tdb if is_tdb(folder) else load_folder
    model = read(folder, device=device, dtype=dtype)
    words = find_model(tokenizer) if tokenizer is not None else folder
    has_words = tokenizer is not None or any((words / name).is_file() for name in TOKENIZER_FILES)
    return ModelContext(str(name_or_path), model, load_tokenizer(words, bos) if has_words else None)


def _is_ids(prompts: Any) -> bool:
    return (
        len(prompts) > 0 and not isinstance(prompts[0], str) and not hasattr(prompts[0], "__len__")
    )
