"""Where dictionaries read and write: our hook points, and what others call them."""

from __future__ import annotations

import re

from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig
from mechatlas.models.points import point_width

#: Hook names of TransformerLens within a block, which SAELens and circuit-tracer use.
LENS_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_in": "ln1.hook_normalized",
    "attn_out": "hook_attn_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
}
#: Further names of the same places.
SYNONYMS = {"mlp.hook_in": "mlp_in", "hook_mlp_in": "resid_mid", "mlp.hook_out": "mlp_out"}
#: Points whose mean over the width is zero in a model whose writing weights are centred.
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def lens_name(point: str, layer: int) -> str:
    """Return TransformerLens's name of a hook point of ours, such as ``blocks.3.hook_mlp_out``."""
    return f"blocks.{layer}.{LENS_HOOKS[point]}"


def from_lens_name(name: str, where: str) -> tuple[str, int | None]:
    """Return hook point and layer (None if the name has none) of a TransformerLens name.

    Raises
    ------
    UserError
        If we have no such point; ``where`` names the file.
    """
    found = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", name)
    points = {hook: point for point, hook in LENS_HOOKS.items()} | SYNONYMS
    if found is None or found[2] not in points:
        raise UserError(
            f"{where}: hook {name!r} is none that we have; there are {', '.join(sorted(points))}"
        )
    return points[found[2]], None if found[1] is None else int(found[1])


def check_fits(sae: SparseAutoencoder, config: ModelConfig, where: str) -> SparseAutoencoder:
    """Return a dictionary if its layer exists in a model and its widths are those of the points it reads and writes.

    Raises
    ------
    UserError
        Otherwise; ``where`` names the file or config entry.
    """
    layer = sae.about.get("layer")
    if layer is not None and not 0 <= layer < config.n_layers:
        raise UserError(
            f"{where}: layer {layer} is out of range; the model has layers 0 to {config.n_layers - 1}"
        )
    parts = len(
        sae.about.get("targets") or [layer]
    )  # layers to which a transcoder's features write
    for key, width in (("reads", sae.d_in), ("writes", sae.d_out / parts)):
        point = sae.about.get(key)
        if point is not None and point_width(point, config) != width:
            raise UserError(
                f"{where}: the dictionary {key} {point} of width {width:g}, but in this model {point} has width "
                f"{point_width(point, config)}; it belongs to another model"
            )
    return sae
