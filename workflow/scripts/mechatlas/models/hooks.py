"""Hook points of a forward pass, and hooks: plain functions that see a value, or its gradient, and may replace it.

At every point the stages run in this order:

1. ``fwd`` functions, in the order in which they were appended. Each gets the value as the one before left it.
2. ``bwd`` functions get the gradient with respect to the value that the ``fwd`` functions left, of whatever is
   differentiated. In the backward pass the last appended runs first; what one returns goes on to the one appended
   before it, and from the first one on through the ``fwd`` functions to earlier points.
3. ``fwd2`` functions, in order, on the same value. The ``bwd`` functions see the gradient through them: one that
   returns zeros makes it zero.

The order of the stages does not depend on the order of the calls. A function gets ``(value, layer)`` and returns a new
tensor, or None to leave the value as it is; it must not change the value in place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

Hook = Callable[[Tensor, int], Tensor | None]
Condition = Callable[[Tensor, int], bool]
Positions = int | slice | Collection[int]

POINTS = (
    "embed", "resid_pre", "attn_in", "q", "k", "v", "attn_scores", "pattern", "z", "attn_out", "resid_mid",
    "mlp_in", "mlp_pre", "mlp_post", "mlp_out", "resid_post", "final_norm", "logits",
)  # fmt: skip
# Steps of a norm: centred residuals, their root mean square, their quotient (before gain and bias).
NORM_PARTS = {
    point: tuple(f"{point}_{part}" for part in ("centred", "scale", "scaled"))
    for point in ("attn_in", "mlp_in", "final_norm")
}
SCORE_POINTS = ("attn_scores", "attn_denominator", "pattern")
ALL_POINTS = (*POINTS, "attn_denominator", *(p for parts in NORM_PARTS.values() for p in parts))

# The Transformer Debugger's points in the order in which a pass reaches them (those from `attn_in` on in every layer).
TDB_POINTS = {
    "resid.post_emb": "embed",
    "resid.torso.ln_attn.post_mean_subtraction": "attn_in_centred",
    "resid.torso.ln_attn.scale": "attn_in_scale",
    "resid.torso.ln_attn.post_scale": "attn_in_scaled",
    "resid.torso.post_ln_attn": "attn_in",
    "attn.q": "q",
    "attn.k": "k",
    "attn.v": "v",
    "attn.qk_logits": "attn_scores",
    "attn.qk_softmax_denominator": "attn_denominator",
    "attn.qk_probs": "pattern",
    "attn.v_out": "z",
    "resid.torso.delta_attn": "attn_out",
    "resid.torso.post_attn": "resid_mid",
    "resid.torso.ln_mlp.post_mean_subtraction": "mlp_in_centred",
    "resid.torso.ln_mlp.scale": "mlp_in_scale",
    "resid.torso.ln_mlp.post_scale": "mlp_in_scaled",
    "resid.torso.post_ln_mlp": "mlp_in",
    "mlp.pre_act": "mlp_pre",
    "mlp.post_act": "mlp_post",
    "resid.torso.delta_mlp": "mlp_out",
    "resid.torso.post_mlp": "resid_post",
    "resid.ln_f.post_mean_subtraction": "final_norm_centred",
    "resid.ln_f.scale": "final_norm_scale",
    "resid.ln_f.post_scale": "final_norm_scaled",
    "resid.post_ln_f": "final_norm",
    "logits": "logits",
}


@dataclass(frozen=True)
class _Entry:
    function: Hook
    layers: frozenset[int] | None
    positions: Positions | None
    when: Condition | None


class Where(TypedDict, total=False):
    """Where and when a function runs; see `Hooks`."""

    layers: int | Collection[int] | None
    positions: Positions | None
    when: Condition | None


class Hooks(Mapping[str, Hook]):
    """Hooks by point and stage, given to a forward pass in the place of a plain dict of functions.

    Notes
    -----
    Arguments of the three ``append`` methods, which all return the object itself:

    point : str
        One of `ALL_POINTS`.
    function : callable
        ``(value, layer) -> Tensor or None``; for `append_bwd` the value is the gradient.
    layers : int or collection of int, optional
        Where it runs; in all layers by default.
    positions : int, slice or collection of int, optional
        Tokens whose values it may replace (of queries, at `SCORE_POINTS`), counted from the start of the sequence, also
        when a cache makes the value hold only the latest ones. The function still sees all values of the pass.
    when : callable, optional
        ``(value, layer) -> bool``, asked before each call.

    Functions are called, never copied, so they may keep state.
    """

    def __init__(self) -> None:
        self._stages: dict[str, tuple[list[_Entry], list[_Entry], list[_Entry]]] = {}

    def append_fwd(self, point: str, function: Hook, **where: Unpack[Where]) -> Hooks:
        """Append a function of the value, before the point where gradients are seen."""
        return self._append(0, point, function, **where)

    def append_bwd(self, point: str, function: Hook, **where: Unpack[Where]) -> Hooks:
        """Append a function of the gradient. It runs in the backward pass, if there is one."""
        return self._append(1, point, function, **where)

    def append_fwd2(self, point: str, function: Hook, **where: Unpack[Where]) -> Hooks:
        """Append a function of the value, after the point where gradients are seen."""
        return self._append(2, point, function, **where)

    def copy(self) -> Hooks:
        """Return hooks that can be appended to without changing these."""
        other = Hooks()
        other.extend(self)
        return other

    def extend(self, hooks: Mapping[str, Hook]) -> Hooks:
        """Append all of other hooks; functions of a plain mapping become ``fwd`` hooks."""
        if not isinstance(hooks, Hooks):
            for point, function in hooks.items():
                self.append_fwd(point, function)
            return self
        for point, stages in hooks._stages.items():
            mine = self._stages.setdefault(point, ([], [], []))
            for own, other in zip(mine, stages, strict=True):
                own.extend(other)
        return self

    def bound(self, positions: Tensor | None = None) -> dict[str, Hook]:
        """Return one function per point, for values of the tokens at ``positions [B or 1, T]``."""
        return {
            point: _composed(point, stages, positions) for point, stages in self._stages.items()
        }

    def __getitem__(self, point: str) -> Hook:
        return _composed(point, self._stages[point], None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def _append(
        self,
        stage: int,
        point: str,
        function: Hook,
        *,
        layers: int | Collection[int] | None = None,
        positions: Positions | None = None,
        when: Condition | None = None,
    ) -> Hooks:
        check_points([point])
        if layers is not None:
            layers = frozenset([layers] if isinstance(layers, int) else layers)
        if isinstance(positions, slice) and positions.step not in (None, 1):
            raise ValueError(f"positions: a slice with step {positions.step}; give a range instead")
        entry = _Entry(function, layers, positions, when)
        self._stages.setdefault(point, ([], [], []))[stage].append(entry)
        return self


def filled(
    indices: int | Collection[int], value: float = 0.0, *, axis: int = -1
) -> Callable[[Tensor, int], Tensor]:
    """Return a hook that sets entries of an axis to a value: neurons, channels, or with ``axis=-2`` heads of ``z``."""
    chosen = [indices] if isinstance(indices, int) else list(indices)

    def fill(x: Tensor, layer: int) -> Tensor:
        return x.index_fill(axis, torch.tensor(chosen, device=x.device), value)

    return fill


def bind(
    hooks: Mapping[str, Hook] | None, positions: Tensor | None, length: int
) -> Mapping[str, Hook]:
    """Return hooks as a plain mapping for a pass over tokens at ``positions`` (0 to length - 1 if None).

    Raises
    ------
    ValueError
        If a hook is set on a point that does not exist.
    """
    if not hooks:
        return {}
    if isinstance(hooks, Hooks):
        return hooks.bound(torch.arange(length)[None] if positions is None else positions)
    check_points(hooks)
    return hooks


def check_points(points: Collection[str]) -> None:
    """Raise ValueError naming points that do not exist."""
    unknown = set(points) - set(ALL_POINTS)
    if unknown:
        raise ValueError(
            f"no such hook points: {', '.join(sorted(unknown))}; there are {', '.join(ALL_POINTS)}"
        )


def _composed(
    point: str, stages: tuple[list[_Entry], list[_Entry], list[_Entry]], positions: Tensor | None
) -> Hook:
    fwd, bwd, fwd2 = stages

    def run(value: Tensor, layer: int) -> Tensor:
        for entry in fwd:
            value = _applied(entry, value, layer, point, positions)
        if bwd and torch.is_grad_enabled():
            value = _watched(value)
            for entry in bwd:
                value = _Gradient.apply(
                    value, lambda g, e=entry: _applied(e, g, layer, point, positions)
                )
        for entry in fwd2:
            value = _applied(entry, value, layer, point, positions)
        return value

    return run


def _applied(
    entry: _Entry, value: Tensor, layer: int, point: str, positions: Tensor | None
) -> Tensor:
    if entry.layers is not None and layer not in entry.layers:
        return value
    if entry.when is not None and not entry.when(value, layer):
        return value
    replaced = entry.function(value, layer)
    if replaced is None or entry.positions is None:
        return value if replaced is None else replaced
    if positions is None:
        raise ValueError(
            "hooks with positions need a forward pass; give it the Hooks object itself"
        )
    chosen = _among(entry.positions, positions.to(value.device))
    # Tokens (or queries) are on axis 2 of scores and patterns, on axis 1 of everything else.
    chosen = chosen[:, None] if point in SCORE_POINTS else chosen
    return torch.where(chosen[(...,) + (None,) * (value.ndim - chosen.ndim)], replaced, value)


def _among(wanted: Positions, positions: Tensor) -> Tensor:
    if isinstance(wanted, slice):
        chosen = positions >= (wanted.start or 0)
        return chosen if wanted.stop is None else chosen & (positions < wanted.stop)
    wanted = [wanted] if isinstance(wanted, int) else list(wanted)
    return torch.isin(positions, torch.tensor(wanted, device=positions.device))


def _watched(value: Tensor) -> Tensor:
    # Weights are frozen, so at the first point with a gradient hook the gradient has nowhere to come from: start here.
    return value if value.requires_grad else value.detach().requires_grad_()


class _Gradient(torch.autograd.Function):
    """The identity, with a function of the gradient in the backward pass."""

    @staticmethod
    def forward(ctx, value, function):
        ctx.function = function
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.function(gradient), None
