"""A layer of a cross-layer transcoder as a dictionary, so that its features are explained and shown as latents are.

A feature writes to several layers. Its decoder row here is all that it writes, side by side: ``[F, T d]`` for T targets
of width d, so that norms and cosines of rows are those of everything a feature writes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.clt import CrossLayerTranscoder

#: What stands for the hook point in names of features, such as ``L3.clt.F120``.
UNIT = "clt"


def layer_dictionary(clt: CrossLayerTranscoder, layer: int) -> SparseAutoencoder:
    """Return the features of one layer.

    `about` says under ``targets`` to which layers' ``writes`` the parts of a decoder row go. Its reconstruction is what
    this layer's features alone write, without biases.
    """
    targets = list(clt.targets(layer))
    rows = torch.cat([clt.decoder_rows(layer, target) for target in targets], dim=1)
    about = {"reads": clt.reads, "writes": "mlp_out", "layer": layer, "targets": targets}
    return SparseAutoencoder(
        clt.encoder[layer],
        clt.encoder_bias[layer],
        rows.contiguous(),
        rows.new_zeros(rows.shape[1]),
        clt.activation[layer],
        subtract_bias=False,
        about={**clt.about, **about, "unit": UNIT},
    )


def target_parts(sae: SparseAutoencoder, rows: Tensor, layer: int) -> dict[int, Tensor]:
    """Return decoder rows ``[..., T d]`` by the layer to which each part goes; ``layer`` in a plain dictionary."""
    targets = sae.about.get("targets") or [layer]
    return dict(zip(targets, rows.chunk(len(targets), dim=-1), strict=True))
