"""Running a model on a dictionary: hooks that replace activations by reconstructions, ablate latents or steer by them.

All functions return a mapping from hook points to hooks for `mechatlas.models.transformer.Transformer.forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.models import hooks as stages

#: Changes latents ``[N, F]``; returns the changed ones. Not in place.
Edit = Callable[[Tensor], Tensor]
Hooks = Mapping[str, Callable[[Tensor, int], Tensor | None]]


def replace_by_reconstruction(
    sae: SparseAutoencoder,
    edit: Edit | None = None,
    *,
    error: bool = False,
    positions: slice = slice(1, None),
) -> Hooks:
    """Put the reconstruction in the place of the activation that a dictionary writes.

    Parameters
    ----------
    sae : SparseAutoencoder
        With ``layer``, ``reads`` and ``writes`` in `about`. A transcoder reads another point of the same layer, which
        the forward pass must come to first.
    edit : callable, optional
        Changes the latents before they are decoded.
    error : bool
        Add what the unedited reconstruction lacks: without an edit the model runs as before, and an edit changes only
        what its latents write.
    positions : slice
        Positions that are replaced, counted from the start of the sequence also when a cache leaves only the latest to
        a pass; by default all but BOS, on which dictionaries are not trained.

    Raises
    ------
    ValueError
        If the dictionary does not say where it belongs.
    """
    layer, reads, writes = _place(sae)
    seen: dict[str, Tensor] = {}

    def read(value: Tensor, at: int) -> None:
        seen["x"] = _flat(value)

    def write(value: Tensor, at: int) -> Tensor:
        kept = _flat(value)
        x = kept if reads == writes else seen.pop("x")
        z = sae.encode(x)
        output = sae.decode(edit(z) if edit else z, x)
        if error:
            output = kept + (output - sae.decode(z, x)) if edit else kept
        return output.view(value.shape).to(value.dtype)

    hooks = stages.Hooks()
    if reads != writes:
        hooks.append_fwd(reads, read, layers=layer)
    return hooks.append_fwd(writes, write, layers=layer, positions=positions)


def ablate(latents: Tensor | list[int], value: float | Tensor = 0.0) -> Edit:
    """Return an edit that sets latents (indices) to a value, 0 by default."""

    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, latents] = value
        return z

    return edit


def scale(latents: Tensor | list[int], factor: float) -> Edit:
    """Return an edit that multiplies latents (indices) by a factor."""

    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, latents] *= factor
        return z

    return edit


def steer(sae: SparseAutoencoder, latent: int, amount: float) -> Hooks:
    """Add ``amount`` times a latent's decoder row at all positions, whatever its activation."""
    layer, _, writes = _place(sae)
    direction = amount * sae.decoder[latent]

    def write(value: Tensor, at: int) -> Tensor | None:
        if at != layer:
            return None
        return value + direction.to(value.dtype).view(value.shape[2:])

    return {writes: write}


def merge_hooks(*parts: Hooks) -> stages.Hooks:
    """Run the hooks of several mappings one after the other, each on what the one before returned."""
    merged = stages.Hooks()
    for part in parts:
        merged.extend(part)
    return merged


def _place(sae: SparseAutoencoder) -> tuple[int, str, str]:
    missing = [key for key in ("layer", "reads") if sae.about.get(key) is None]
    if missing:
        raise ValueError(f"{sae.label} does not say its {' and '.join(missing)} (about)")
    return sae.about["layer"], sae.about["reads"], sae.about.get("writes") or sae.about["reads"]


def _flat(value: Tensor) -> Tensor:
    """Return activations ``[N, d]`` of ``[B, T, ...]``, heads side by side."""
    return value.reshape(value.shape[0] * value.shape[1], -1)
