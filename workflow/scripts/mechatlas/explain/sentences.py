"""Sentence embeddings by BERT with mean pooling, in numpy.

The encoder that `mechatlas.explain.clusters` uses by default is small, and a run embeds a few dozen short texts;
importing sentence-transformers takes longer than all of it. The forward pass is that of BERT (Devlin et al. 2019,
arXiv 1810.04805) with the mean over tokens (Reimers and Gurevych 2019, arXiv 1908.10084), one text at a time, so that
a text's vector does not depend on the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: The modules of a sentence-transformers folder that `read_encoder` can run.
MODULES = ["Transformer", "Pooling", "Normalize"]


class Encoder:
    """A BERT encoder with mean pooling to unit length.

    Parameters
    ----------
    config : dict
        config.json of the folder.
    arrays : dict
        Weights by their names in the folder, float32; anything that gives rows on indexing serves for the embeddings.
    tokenizer : tokenizers.Tokenizer
        Which cuts texts to the encoder's length.
    """

    def __init__(self, config: dict[str, Any], arrays: dict[str, Any], tokenizer: Any) -> None:
        self.config, self.arrays, self.tokenizer = config, arrays, tokenizer
        self.heads = int(config["num_attention_heads"])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 [n, d], rows of unit length."""
        vectors = np.stack([self._hidden(text).mean(0) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _hidden(self, text: str) -> np.ndarray:
        """Last hidden states of one text, [T, d]."""
        ids = self.tokenizer.encode(text).ids
        a = self.arrays
        words = np.concatenate([a["embeddings.word_embeddings.weight"][i : i + 1] for i in ids])
        positions = a["embeddings.position_embeddings.weight"][: len(ids)]
        kind = a["embeddings.token_type_embeddings.weight"][0:1]
        x = self._norm(words + positions + kind, "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}."
            z = self._linear(
                self._attention(x, f"{name}attention.self."), f"{name}attention.output.dense"
            )
            x = self._norm(x + z, f"{name}attention.output.LayerNorm")
            z = self._linear(
                gelu(self._linear(x, f"{name}intermediate.dense")), f"{name}output.dense"
            )
            x = self._norm(x + z, f"{name}output.LayerNorm")
        return x

    def _attention(self, x: np.ndarray, name: str) -> np.ndarray:
        q, k, v = (
            self._linear(x, name + part).reshape(len(x), self.heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.float32(q.shape[-1] ** 0.5)
        rows = np.exp(scores - scores.max(-1, keepdims=True))
        rows /= rows.sum(-1, keepdims=True)
        return (rows @ v).transpose(1, 0, 2).reshape(x.shape)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.config["layer_norm_eps"]))
        return x / scale * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x, elementwise."""
    from scipy.special import erf

    return x * (np.float32(0.5) + np.float32(0.5) * erf(x / np.float32(2**0.5)))


def read_encoder(folder: str | Path) -> Encoder | None:
    """Read the encoder of a sentence-transformers folder.

    Returns
    -------
    Encoder, optional
        None if the folder is not a BERT encoder with mean pooling and normalisation in float32, or lacks a file.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    try:
        config, modules, settings = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "modules.json", "sentence_bert_config.json")
        )
        pooling = json.loads((folder / modules[1]["path"] / "config.json").read_text())
        known = (
            config["model_type"] == "bert"
            and config["hidden_act"] == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not settings.get("do_lower_case")
            and [module["type"].rsplit(".", 1)[-1] for module in modules] == MODULES
            and {k for k, on in pooling.items() if k.startswith("pooling_mode") and on}
            == {"pooling_mode_mean_tokens"}
        )
        return _read(folder, config, settings) if known else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _read(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> Encoder | None:
    from safetensors import safe_open
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(settings["max_seq_length"]))
    with safe_open(folder / "model.safetensors", framework="numpy") as handle:
        names = [name for name in handle.keys() if name.startswith(("embeddings.", "encoder."))]  # noqa: SIM118
        # The table of words is most of the file; its rows are read as they are asked for.
        arrays = {
            name: handle.get_slice(name)
            if name == "embeddings.word_embeddings.weight"
            else handle.get_tensor(name)
            for name in names
        }
    floats = all(
        a.dtype == np.float32
        for a in arrays.values()
        if isinstance(a, np.ndarray) and a.dtype.kind == "f"
    )
    return Encoder(config, arrays, tokenizer) if floats and arrays else None
