"""Quantised tensors: small integers that stand for floats of a range, there and back.

A range [low, high] is cut into as many steps as the type has numbers. MIN_COMBINED counts from the low end, MIN_FIRST
too, but with the range moved so that 0 is hit exactly, SCALED from 0, with one step for both signs.
Source: TensorFlow's QuantizeV2, Dequantize, UniformQuantize and UniformDequantize, in float32 throughout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import MISSING, Example, call, define, same_shape
from gradserve.graph.shapes import Shape

Array = np.ndarray[Any, Any]
_single = np.float32
_MODES = ("MIN_COMBINED", "MIN_FIRST", "SCALED")


class _Type(NamedTuple):
    """The numbers of a quantised type."""

    first: int
    last: int

    @property
    def half(self) -> np.float32:
        """What makes the first number 0."""
        return _single((self.last - self.first + 1) / 2 if self.first else 0)

    @property
    def greatest(self) -> float:
        """The greatest number that is also a float."""
        last = _single(self.last)
        return float(last if float(last) <= self.last else np.nextafter(last, _single(0)))


def _limits(kind: DType) -> _Type:
    info = np.iinfo(kind.numpy)
    return _Type(int(info.min), int(info.max))


def _away_from_zero(x: Any) -> Any:
    return np.trunc(x + np.copysign(_single(0.5), x))


def _bounds(low: Any, high: Any, x: Any, axis: int, node: Node) -> tuple[Array, Array]:
    """Both ends of the range, one number or one for each entry of the axis, in a shape that broadcasts against x."""
    lows, highs = (np.ravel(bound).astype(np.float32) for bound in (low, high))
    count = 1 if axis == -1 else x.shape[axis] if 0 <= axis < x.ndim else -1
    if len(lows) != count or len(highs) != count or (lows > highs).any():
        raise InvalidArgument(
            f"{node.name}: ranges of shapes {np.shape(low)} and {np.shape(high)} don't fit axis {axis} of a tensor of"
            f" shape {x.shape}, or end before they begin.",
            node=node.name,
        )
    form = [-1 if place == axis else 1 for place in range(x.ndim)] if axis != -1 else []
    return lows.reshape(form), highs.reshape(form)


def _check_mode(mode: str, axis: int, node: Node) -> None:
    if mode not in _MODES:
        raise InvalidArgument(f"{node.name}: mode is {mode!r}, but must be one of {', '.join(_MODES)}.", node=node.name)
    if mode == "MIN_FIRST" and axis != -1:
        raise InvalidArgument(f"{node.name}: MIN_FIRST has one range for all: use SCALED with an axis.", node=node.name)


# To integers


def _apart(low: Array, high: Array, least: float) -> tuple[Array, Array]:
    """The range with 0 in it, and never narrower than a share of its reach."""
    low = np.minimum(_single(0), low)
    reach = np.maximum(_single(1), np.maximum(np.abs(low), np.abs(high)))
    return low, np.maximum(_single(0), np.maximum(high, low + reach * _single(least))).astype(np.float32)


def _first_exact(x: Any, low: Array, high: Array, kind: _Type) -> Array:
    """Steps from the low end, which is itself a whole number of steps from 0."""
    steps = float(kind.last - kind.first)
    span = (high.astype(np.float64) - low) * ((steps + 1) / steps)
    scale = np.where(span == 0, 0.0, (steps + 1) / np.where(span == 0, 1, span)).astype(np.float32)
    offset = _away_from_zero(low * scale)
    return _away_from_zero(x * scale) - (offset - _single(kind.first))


def _scaled_range(low: Array, high: Array, kind: _Type, narrow: bool) -> tuple[Array, Array, Array]:
    """The steps a unit, and the range that they cover."""
    first = kind.first + narrow
    with np.errstate(divide="ignore", invalid="ignore"):
        by_low = np.where(first * low > 0, _single(first) / low, np.finfo(np.float32).max)
        by_high = np.where(kind.last * high > 0, _single(kind.last) / high, np.finfo(np.float32).max)
    scale = np.minimum(by_low, by_high).astype(np.float32)
    return scale, (_single(first) / scale).astype(np.float32), (_single(kind.last) / scale).astype(np.float32)


def _quantised(
    xp: Any, x: Any, low: Any, high: Any, *, T: DType, mode: str, round_mode: str, narrow_range: bool, axis: int,
    ensure_minimum_range: float, node: Node,
) -> tuple[Array, Array, Array]:  # fmt: skip
    _check_mode(mode, axis, node)
    if round_mode != "HALF_AWAY_FROM_ZERO" and (round_mode != "HALF_TO_EVEN" or mode != "SCALED"):
        raise InvalidArgument(
            f"{node.name}: round_mode is {round_mode!r}, but must be HALF_AWAY_FROM_ZERO, or HALF_TO_EVEN with SCALED.",
            node=node.name,
        )
    kind = _limits(T)
    lows, highs = _apart(*_bounds(low, high, x, axis, node), ensure_minimum_range)
    if mode == "SCALED":
        scale, lows, highs = _scaled_range(lows, highs, kind, narrow_range)
        inside = np.clip(x, lows, highs) * scale
        steps = np.round(inside) if round_mode == "HALF_TO_EVEN" else _away_from_zero(inside)
    elif mode == "MIN_FIRST":
        steps = _first_exact(x, lows, highs, kind)
    else:
        scale = (_single(kind.last - kind.first) / (highs - lows)).astype(np.float32)
        above = (np.clip(x, lows, highs) - lows) * scale
        steps = _away_from_zero(above - kind.half) if kind.first else np.trunc(above + _single(0.5))
    # TensorFlow lets the greatest of 32 bits run over into the least.
    form = () if axis == -1 else (-1,)
    return np.clip(steps, kind.first, kind.greatest).astype(T.numpy), lows.reshape(form), highs.reshape(form)


# And back


def _dequantised(
    xp: Any, x: Any, low: Any, high: Any, *, T: DType, mode: str, narrow_range: bool, axis: int, dtype: DType,
    node: Node,
) -> Array:  # fmt: skip
    _check_mode(mode, axis, node)
    kind = _limits(T)
    lows, highs = _bounds(low, high, x, axis, node)
    floats = x.astype(np.float32)
    steps = _single(_single(kind.last) - _single(kind.first))
    if mode == "SCALED":
        unit = highs / _single(kind.last)
        if kind.first:
            unit = np.maximum(lows / _single(kind.first + narrow_range), unit)
        return (floats * unit.astype(np.float32)).astype(dtype.numpy)
    if mode == "MIN_FIRST":
        count = _single(2.0 ** (8 * T.size))
        unit = ((highs - lows) * (count / (count - _single(1))) / count).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            at_zero = np.where(highs == lows, lows, _away_from_zero(lows / unit) * unit).astype(np.float32)
        return ((at_zero - _single(kind.first) * unit) + floats * unit).astype(dtype.numpy)
    unit = ((highs - lows) / steps).astype(np.float32)
    return ((floats + kind.half) * unit + lows).astype(dtype.numpy)


# With scales and zero points


def _points(scales: Any, zeros: Any, x: Any, axis: int, node: Node) -> tuple[Array, Array]:
    if scales.shape != zeros.shape or (scales <= 0).any():
        raise InvalidArgument(
            f"{node.name}: scales {scales.shape} and zero points {zeros.shape} must have one shape, and scales be over 0.",
            node=node.name,
        )
    if axis == -1 and scales.ndim == 0:
        return scales, zeros
    if not 0 <= axis < x.ndim or scales.shape != (x.shape[axis],):
        raise InvalidArgument(
            f"{node.name}: scales of shape {scales.shape} don't fit axis {axis} of {x.shape}.", node=node.name
        )
    form = [-1 if place == axis else 1 for place in range(x.ndim)]
    return scales.reshape(form), zeros.reshape(form)


def _uniform(
    xp: Any, x: Any, scales: Any, zeros: Any, *, Tout: DType, quantization_axis: int, quantization_min_val: int,
    quantization_max_val: int, node: Node,
) -> Array:  # fmt: skip
    units, points = _points(scales, zeros, x, quantization_axis, node)
    steps = np.floor(x * (_single(1) / units) + _single(0.5)) + points.astype(np.float32)
    wide = np.clip(steps.astype(np.float64), quantization_min_val, quantization_max_val)
    return wide.astype(Tout.numpy)


def _from_uniform(xp: Any, x: Any, scales: Any, zeros: Any, *, quantization_axis: int, node: Node) -> Array:
    units, points = _points(scales, zeros, x, quantization_axis, node)
    return (x.astype(np.int32) - points).astype(np.float32) * units


# The ops


def _shapes(x: Tensor, low: Tensor, high: Tensor, *, axis: int) -> list[Shape]:
    ends: Shape = () if axis == -1 else (None if x.shape is None else x.shape[axis],)
    return [x.shape, ends, ends]


def _examples(draw: Any, *, integers: bool, **attrs: Any) -> list[Example]:
    rows, columns = draw.size(), draw.size()
    x = (
        draw.integers(0, 100, rows, columns, dtype=np.uint8)
        if integers
        else draw.normal(rows, columns).astype(np.float32)
    )
    one = np.float32(-1.5), np.float32(2.5)
    many = np.full(columns, -1.5, np.float32), np.full(columns, 2.5, np.float32)
    plain = [call(x, *one, T="quint8", mode=mode, **attrs) for mode in _MODES]
    return [*plain, call(x, *many, T="quint8", mode="SCALED", axis=1, **attrs)]


_QUANTISED = "T: qint16|qint32|qint8|quint16|quint8, mode: string = 'MIN_COMBINED'"
define(
    f"QuantizeV2(input: float32, min_range: float32, max_range: float32; {_QUANTISED},"
    " round_mode: string = 'HALF_AWAY_FROM_ZERO', narrow_range: bool = false, axis: int = -1,"
    " ensure_minimum_range: float = 0.009999999776482582)"
    " -> (output: T, output_min: float32, output_max: float32)",
    shape=_shapes, gradient=MISSING, kernel=_quantised, dynamic=True,
    examples=lambda draw: _examples(draw, integers=False),
)  # fmt: skip
define(
    f"Dequantize(input: T, min_range: float32, max_range: float32; {_QUANTISED}, narrow_range: bool = false,"
    " axis: int = -1, dtype: bfloat16|float32 = float32) -> (output: dtype)",
    shape=same_shape, gradient=MISSING, kernel=_dequantised, dynamic=True,
)  # fmt: skip
_SCALES = "quantization_axis: int = -1, quantization_min_val: int, quantization_max_val: int"
define(
    "UniformQuantize(input: Tin, scales: float32, zero_points: int32; Tin: float32, Tout: qint32|qint8|quint8,"
    f" {_SCALES}) -> (output: Tout)",
    shape=same_shape, gradient=MISSING, kernel=_uniform, dynamic=True,
    examples=lambda draw: [
        call(draw.normal(draw.size(), 2).astype(np.float32), np.float32(0.1), np.int32(3), Tout="qint8",
             quantization_min_val=-128, quantization_max_val=127)
    ],
)  # fmt: skip
define(
    "UniformDequantize(input: Tin, scales: float32, zero_points: int32; Tin: qint32|qint8|quint8, Tout: float32,"
    f" {_SCALES}) -> (output: Tout)",
    shape=same_shape, gradient=MISSING, kernel=_from_uniform, dynamic=True,
)  # fmt: skip
