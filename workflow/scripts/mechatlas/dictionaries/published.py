"""Which autoencoders OpenAI published for GPT-2 small, and where (no torch here)."""

from __future__ import annotations

from typing import Any

from mechatlas.io.errors import UserError

BASE = "https://openaipublic.blob.core.windows.net/sparse-autoencoder/gpt2-small"
LAYERS = range(12)
#: The hook point of each site.
SITES = {
    "mlp_post_act": "mlp_post",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
}
#: What each version is: its sites, its activation, and how its inputs are normalised.
VERSIONS: dict[str, dict[str, Any]] = {
    "": {"sites": ("mlp_post_act", "resid_delta_mlp"), "activation": "ReLU", "normalised": "none"},
    "_v4": {
        "sites": ("mlp_post_act", "resid_delta_mlp", "resid_delta_attn"),
        "activation": "ReLU",
        "normalised": "none",
    },
    **{
        version: {
            "sites": ("resid_delta_attn", "resid_delta_mlp", "resid_post_attn", "resid_post_mlp"),
            "activation": "TopK",
            "normalised": "layer_norm",
        }
        for version in ("_v5_32k", "_v5_128k")
    },
}


def check_published(site: str, version: str, layer: int, where: str = "dictionary") -> None:
    """Raise `UserError` if OpenAI published no autoencoder of this site, version and layer."""
    if version not in VERSIONS:
        known = ", ".join(repr(name) for name in VERSIONS)
        raise UserError(f"{where}: version {version!r} is not known; choose from {known}")
    sites = VERSIONS[version]["sites"]
    if site not in sites:
        raise UserError(
            f"{where}: site {site!r} does not exist in version {version!r}; choose from {', '.join(sites)}"
        )
    if layer not in LAYERS:
        raise UserError(
            f"{where}: layer {layer} is out of range; choose from 0 to {LAYERS.stop - 1}"
        )


def address(site: str, version: str, layer: int, base: str = BASE) -> str:
    """Return the address of a published file (checked by `check_published`)."""
    check_published(site, version, layer)
    return f"{base}/{site}{version}/autoencoders/{layer}.pt"
