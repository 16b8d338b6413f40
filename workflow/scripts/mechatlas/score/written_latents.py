"""Which latents heads write to, from weights alone.

A head adds x W_V W_O (times attention) to the residual stream, where x is a normalised residual; a latent reads the
stream along its encoder direction e. Of what the head can write, the share that the latent reads is

    || G W_V W_O e ||^2 / (|| G W_V W_O ||_F^2 || e ||^2)

with G the gains of the norm before the head. It is 1 / d on average over directions, so it is given as a multiple of
that: 1 is chance. Weights say what a head could write for inputs of any direction, not what it writes on text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.collection import layers_of, read_dictionary
from mechatlas.models.transformer import Transformer

#: Latents that are kept for each head and dictionary.
KEPT = 5
#: Hook points that hold the residual stream, with the first layer of heads (relative to theirs) that is not in them.
STREAM = {"resid_pre": 0, "resid_mid": 1, "resid_post": 1}


@torch.inference_mode()
def reading_shares(model: Transformer, layer: int, encoder: Tensor) -> Tensor:
    """Return what latents read of what each head of a layer writes, as a multiple of chance, ``[H, latents]``.

    Parameters
    ----------
    model : Transformer
    layer : int
    encoder : Tensor [latents, d_model]
    """
    config, weights = model.config, model.weights.layers[layer]
    groups = config.n_heads // config.n_kv_heads
    values = weights.w_qkv[:, -config.n_kv_heads * config.d_head :] * weights.norm1[:, None]
    values = values.unflatten(1, (config.n_kv_heads, config.d_head)).double()
    gram = torch.einsum("dhe,dhf->hef", values, values).repeat_interleave(groups, dim=0)
    out = model.output_weights(layer).double()
    unit = encoder.double() / encoder.double().norm(dim=1, keepdim=True).clamp_min(1e-30)
    written = torch.einsum("hed,ld->hel", out, unit)
    along = torch.einsum("hel,hef,hfl->hl", written, gram, written)
    whole = torch.einsum("hed,hef,hfd->h", out, gram, out)
    return config.d_model * along / whole[:, None].clamp_min(1e-30)


def strongest_latents(
    model: Transformer, folder: str | Path, alive: pd.DataFrame, count: int = KEPT
) -> pd.DataFrame:
    """Find for each head the latents of a dictionary that read most of what it writes.

    Parameters
    ----------
    model : Transformer
    folder : path
        The dictionary's layers.
    alive : data frame
        latents.parquet; latents that are never active on test tokens are left out.
    count : int
        Latents a head.

    Returns
    -------
    data frame
        ``component``, ``layer``, ``head``, ``rank`` (from 1), ``latent_layer``, ``latent``, ``unit``, ``times_chance``.
        Empty if the dictionary does not read the residual stream.
    """
    tables = []
    for layer in layers_of(folder):
        sae = read_dictionary(folder, layer, config=model.config)
        used = alive[(alive["layer"] == layer) & (alive["density"] > 0)]["latent"].to_numpy()
        tables += _of_layer(model, sae, layer, np.sort(used), count)
    columns = ["component", "layer", "head", "rank", "latent_layer", "latent", "unit"]
    if not tables:
        return pd.DataFrame(columns=[*columns, "times_chance"])
    table = pd.concat(tables).sort_values(
        ["layer", "head", "times_chance", "latent_layer", "latent"],
        ascending=[True, True, False, True, True],
        kind="stable",
    )
    table = table.groupby(["layer", "head"], sort=False).head(count)
    table["rank"] = table.groupby(["layer", "head"]).cumcount() + 1
    return table[[*columns, "times_chance"]].reset_index(drop=True)


def _of_layer(
    model: Transformer, sae: SparseAutoencoder, layer: int, used: Sequence[int], count: int
) -> list[pd.DataFrame]:
    """The strongest latents of one dictionary for each head whose output is in the stream that it reads."""
    point = sae.about["reads"]
    if point not in STREAM or not len(used):
        return []
    encoder = sae.encoder[torch.as_tensor(used)].to(model.device)
    tables = []
    for below in range(layer + STREAM[point]):
        shares = reading_shares(model, below, encoder)
        values, places = shares.topk(min(count, len(used)), dim=1)
        heads = np.repeat(np.arange(len(values)), values.shape[1])
        latents = np.asarray(used)[places.cpu().numpy().ravel()]
        table = pd.DataFrame({"layer": below, "head": heads, "latent_layer": layer})
        table["component"] = [f"L{below}.H{head}" for head in heads]
        table["latent"] = latents
        table["unit"] = [f"L{layer}.{point}.F{latent}" for latent in latents]
        table["times_chance"] = values.cpu().numpy().ravel()
        tables.append(table)
    return tables
