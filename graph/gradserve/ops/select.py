"""Choosing elementwise: by a condition, or by bounds."""

from __future__ import annotations

from typing import Any

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, broadcast_shape, call, define, raw

Choice = tuple[None, Tensor, Tensor]


def _by_rows(condition: Any, t: Any) -> Any:
    """Select's condition lined up with the rows of t, where it is a vector."""
    if condition.ndim == 1 and t.ndim > 1:
        return condition.reshape(condition.shape + (1,) * (t.ndim - 1))
    return condition


def _select_gradient(dy: Tensor, y: Tensor, condition: Tensor, t: Tensor, e: Tensor) -> Choice:
    zeros = raw.ZerosLike(t)
    return None, raw.Select(condition, dy, zeros), raw.Select(condition, zeros, dy)


def _select_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    rows = draw.shape(low=2)
    t, e = draw.normal(*shape), draw.normal(*shape)
    return [
        call(draw.boolean(*shape), t, e),
        call(draw.boolean(), t, e),
        call(draw.boolean(rows[0]), draw.complex(*rows), draw.complex(*rows)),
    ]


def _select_broadcasting_examples(draw: Any) -> list[Example]:
    t, e = draw.broadcastable_shapes()
    wide = tuple(shapes.broadcast(t, e) or ())
    return [
        call(draw.boolean(*wide), draw.normal(*t), draw.normal(*e)),
        call(draw.boolean(3, *wide), draw.normal(*t), draw.complex(*e).real),
    ]


define(
    "Select(condition: bool, t: T, e: T; T: type) -> (output: T)",
    shape=lambda condition, t, e: shapes.merge(t.shape, e.shape),
    gradient=_select_gradient,
    kernel=lambda xp, condition, t, e: xp.where(_by_rows(condition, t), t, e),
    examples=_select_examples,
)
define(
    "SelectV2(condition: bool, t: T, e: T; T: type) -> (output: T)",
    shape=broadcast_shape,
    gradient=lambda dy, y, condition, t, e: (None, raw.SelectV2(condition, dy, 0), raw.SelectV2(condition, 0, dy)),
    kernel=lambda xp, condition, t, e: xp.where(condition, t, e),
    broadcasts=True,
    examples=_select_broadcasting_examples,
)


def _clip(xp: Any, t: Any, low: Any, high: Any) -> Any:
    """NaN stays, and no bound is NaN; of complex numbers each part is clipped by that of the bounds."""
    if t.dtype.kind == "c":
        return (_clip(xp, t.real, low.real, high.real) + 1j * _clip(xp, t.imag, low.imag, high.imag)).astype(t.dtype)
    below = xp.where(t > high, high, t)
    return xp.where(below < low, low, below)


def _clip_gradient(dy: Tensor, y: Tensor, t: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t's inside of the bounds and on them; outside it is the bound's."""
    below, above = raw.Less(t, low), raw.Greater(t, high)
    dt = raw.SelectV2(raw.LogicalOr(below, above), 0, dy)
    return dt, raw.SelectV2(below, dy, 0), raw.SelectV2(above, dy, 0)


def _clip_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    bounds = shape if draw.size(0, 1) else ()
    return [call(draw.normal(*shape), draw.unit(*bounds) - 1.0, draw.unit(*bounds) + 1.0)]


define(
    "ClipByValue(t: T, clip_value_min: T, clip_value_max: T; T: number) -> (output: T)",
    shape=lambda t, low, high: t.shape,
    gradient=_clip_gradient,
    kernel=_clip,
    broadcasts=True,
    examples=_clip_examples,
)
