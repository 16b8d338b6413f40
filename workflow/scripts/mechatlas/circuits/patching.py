"""Activation patching: one activation of one run put into another run of the paired prompt.

``denoise`` puts clean activations into the corrupted run and asks what suffices to bring the answer back; ``noise``
puts corrupted activations into the clean run and asks what is needed (Vig et al. 2020; Meng et al. 2022; Heimersheim
and Nanda 2024, arXiv 2404.15255). A patch reaches the rest of the model only as a change of the residual stream, so a
sweep is one batch of changed residuals for each layer, and nothing below the patched layer runs again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.engine import (
    Run,
    Start,
    attend,
    first_difference,
    pair_slices,
    rows_at_once,
)
from mechatlas.circuits.metrics import make_metric, measure
from mechatlas.circuits.resume import Store
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer

HEAD_POINTS = ("z", "pattern", "q", "k", "v")
LAYER_POINTS = ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
DIRECTIONS = ("denoise", "noise")
ENDS = ("clean", "corrupted")


@dataclass(frozen=True)
class Sweep:
    """The metric under every patch of one hook point.

    Attributes
    ----------
    point, direction, metric : str
    places : tuple of str
        Where was patched: ``all`` or roles.
    patched : Tensor [L, U, P, N]
        U heads (key/value heads for ``k`` and ``v``, 1 for a point of the whole layer), P places, N pairs; NaN where a
        pair lacks the role.
    clean, corrupted : Tensor [N]
        Metric of the two runs.
    shared : bool
        Whether the units are key/value heads that several heads share.
    """

    point: str
    direction: str
    metric: str
    places: tuple[str, ...]
    patched: Tensor
    clean: Tensor
    corrupted: Tensor
    shared: bool = False


def patch(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    answers: Tensor,
    wrong: Tensor,
    *,
    point: str = "z",
    direction: str = "denoise",
    places: Mapping[str, Tensor] | None = None,
    metrics: Sequence[str] = ("logit_difference",),
    rows: int | None = None,
    parts: Store | None = None,
    layers: range | None = None,
) -> list[Sweep]:
    """Patch a hook point in every layer (and head), once for each place.

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
        Paired prompts of equal length; the last token predicts the answer.
    answers, wrong : int64 Tensor [N]
    point : str
        One of `HEAD_POINTS` or `LAYER_POINTS`, as named by `mechatlas.models.transformer`. ``pattern`` patches the
        queries' rows.
    direction : {"denoise", "noise"}
    places : mapping of str to bool Tensor [N, T], optional
        Positions to patch (`role_places`, `every_position`); all together by default.
    metrics : sequence of str
        All are read off the same runs.
    rows : int, optional
        Tokens that run at once.
    parts : Store, optional
        Keeps what is finished, so that a killed sweep continues. Its facts have to name the model and the prompts;
        those of the sweep are in the names of the parts.
    layers : range, optional
        Do only what begins in these layers, for ``parts``, in which another call finds it joined to the rest. What runs
        together is the same as without, so that not a digit differs.

    Returns
    -------
    list of Sweep
        One for each metric; none if only some layers were patched.

    Raises
    ------
    UserError
        If the point, direction or a metric does not exist.
    """
    _check(point, direction)
    places = places or {"all": torch.ones_like(clean, dtype=torch.bool)}
    units = _units(model, point)
    first = first_difference(clean, corrupted)
    length, rows = clean.shape[1] - first, rows or rows_at_once(model.device)
    where = torch.stack(list(places.values())).to(model.device)
    wide = torch.promote_types(model.dtype, torch.float32)

    def one(pairs: slice) -> dict[str, np.ndarray]:
        runs = [Run(model, x[pairs].to(model.device), first) for x in (clean, corrupted)]
        ends = [run.finish([_at_end(run)])[0] for run in runs]
        base, source = runs if direction == "noise" else reversed(runs)
        made = [make_metric(n, model, answers[pairs], wrong[pairs], ends[0]) for n in metrics]
        values = {end: measure(made, x) for end, x in zip(ENDS, ends, strict=True)}
        swept = _swept(base, source, point, where[:, pairs, first:], rows, layers)
        chunks = [[x.new_empty(0, units, len(x)) for x in values["clean"]]]
        chunks += [measure(made, x) for x in swept]
        values["patched"] = [torch.cat(column) for column in zip(*chunks, strict=True)]
        return {
            f"{n} {k}": x.to(wide).cpu().numpy()
            for k, columns in values.items()
            for n, x in zip(metrics, columns, strict=True)
        }

    found = []
    with fast_matmul(), torch.inference_mode():
        for pairs in pair_slices(len(clean), units * length, rows):
            name = "-".join((point, direction, *metrics, *places, f"{pairs.start}-{pairs.stop}"))
            found.append(one(pairs) if parts is None else parts.get(name, partial(one, pairs)))
    if layers is not None:
        return []
    absent, sweeps = ~where.any(-1).cpu(), []
    shared = point in ("k", "v") and units != model.config.n_heads
    for name in metrics:
        patched, *ends = (
            torch.from_numpy(np.concatenate([part[f"{name} {key}"] for part in found], axis=-1))
            for key in ("patched", *ENDS)
        )
        patched = patched.view(-1, len(places), *patched.shape[1:]).transpose(1, 2)
        patched = patched.contiguous().masked_fill(absent, torch.nan)
        sweeps.append(Sweep(point, direction, name, tuple(places), patched, *ends, shared))
    return sweeps


def role_places(roles: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Turn role positions ``[N]`` (-1 where absent) into places, bool ``[N, T]`` each."""
    positions = torch.arange(length)
    return {name: torch.as_tensor(at)[:, None] == positions for name, at in roles.items()}


def every_position(pairs: int, length: int) -> dict[str, Tensor]:
    """Return one place for each position."""
    places = torch.eye(length, dtype=torch.bool)
    return {str(t): places[t].expand(pairs, length) for t in range(length)}


def _check(point: str, direction: str) -> None:
    if point not in HEAD_POINTS + LAYER_POINTS:
        names = ", ".join(HEAD_POINTS + LAYER_POINTS)
        raise UserError(f"patching point {point!r} does not exist; choose one of {names}")
    if direction not in DIRECTIONS:
        raise UserError(f"direction {direction!r} does not exist; choose denoise or noise")


def _units(model: Transformer, point: str) -> int:
    if point in LAYER_POINTS:
        return 1
    return model.config.n_kv_heads if point in ("k", "v") else model.config.n_heads


def _at_end(run: Run) -> Start:
    layers = run.model.config.n_layers
    return Start(layers, False, lambda: run.pre(layers)[None])


def _swept(
    base: Run, source: Run, point: str, places: Tensor, rows: int, layers: range | None
) -> Iterator[Tensor]:
    """Yield the final residuals ``[k, U, N, d]`` of k patches that run together, in order of layers, then places."""
    count, units = base.model.config.n_layers, _units(base.model, point)
    items = [(layer, p) for layer in range(count) for p in range(len(places))]
    pairs, length = places.shape[1:]
    at_once = max(1, rows // (units * pairs * length))
    for i in range(0, len(items), at_once):
        together = items[i : i + at_once]
        if layers is None or together[0][0] in layers:
            starts = [_start(base, source, point, layer, places[p]) for layer, p in together]
            yield base.finish(starts).unflatten(0, (-1, units))


def _start(base: Run, source: Run, point: str, layer: int, place: Tensor) -> Start:
    """Return the changed residuals of a patch in one layer at one place, bool ``[N, S]``."""
    here, after = place[..., None], layer + 1
    if point in HEAD_POINTS:
        rows = lambda: base.mid(layer) + _written(base, source, point, layer, here)  # noqa: E731
        return Start(layer, True, rows)
    # What the two runs write or hold there: residual = where(here, new, old).
    new, old, start = {
        "attn_out": (
            lambda: base.pre(layer) + _attn_out(source, layer),
            lambda: base.mid(layer),
            (layer, True),
        ),
        "mlp_out": (
            lambda: base.mid(layer) + _mlp_out(source, layer),
            lambda: base.pre(after),
            (after, False),
        ),
        "resid_pre": (lambda: source.pre(layer), lambda: base.pre(layer), (layer, False)),
        "resid_mid": (lambda: source.mid(layer), lambda: base.mid(layer), (layer, True)),
        "resid_post": (lambda: source.pre(after), lambda: base.pre(after), (after, False)),
    }[point]
    return Start(*start, lambda: torch.where(here, new(), old())[None])


def _attn_out(run: Run, layer: int) -> Tensor:
    return run.mixed(layer, run.keep[layer][None])[0]


def _mlp_out(run: Run, layer: int) -> Tensor:
    return run.model.mlp(run.mid(layer), layer)


def _written(base: Run, source: Run, point: str, layer: int, here: Tensor) -> Tensor:
    """Return by how much a patch of each head changes what attention writes, ``[U, N, S, d]``."""
    model = base.model
    change = _patched_z(base, source, point, layer, here[..., None]) - base.attention(layer)[3]
    units = _units(model, point)
    change = change.unflatten(2, (units, -1)).flatten(3)
    w_o = model.output_weights(layer).reshape(units, -1, model.config.d_model)
    return torch.einsum("nsue,ued->unsd", change, w_o)


def _patched_z(base: Run, source: Run, point: str, layer: int, here: Tensor) -> Tensor:
    """Return z ``[N, S, H, dh]`` with the point patched in all heads at once."""
    q, k, v, z = base.attention(layer)
    new_q, new_k, new_v, new_z = source.attention(layer)
    scale = base.model.attention_scale(layer)
    if point == "z":
        return torch.where(here, new_z, z)
    if point == "pattern":
        return torch.where(here, attend(new_q, new_k, v, scale), z)
    if point == "q":
        return attend(torch.where(here, new_q, q), k, v, scale)
    # Keys and values of the prefix come first; they are the same in both runs.
    prefix = here.new_zeros(len(here), k.shape[1] - here.shape[1], 1, 1)
    here = torch.cat([prefix, here], dim=1)
    if point == "k":
        return attend(q, torch.where(here, new_k, k), v, scale)
    return attend(q, k, torch.where(here, new_v, v), scale)
