"""Quantising and dequantising at once: floats rounded to as many levels as the bits allow.

The scale makes the greatest quantised number reach the wider side of the range, so 0 is exact. Gradients pass
straight through; those of the fourth version stop where the input is outside of the given range.
Source: TensorFlow's QuantizeAndDequantize ops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.checks import refuse_if
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw, same_shape
from gradserve.graph.shapes import Shape


class _Scale(NamedTuple):
    """Levels a unit and its inverse, and the range that the levels cover; each broadcasts against the input."""

    levels: Any
    unit: Any
    low: Any
    high: Any


def _scale(xp: Any, low: Any, high: Any, bits: int, signed: bool, narrow: bool) -> _Scale:
    """The coarser of the two scales that reach the lower or the upper end of the range."""
    if not 0 < bits < (63 if signed else 64):
        raise InvalidArgument(f"num_bits is {bits}, which is out of range.", num_bits=bits)
    last = float(2 ** (bits - 1) - 1 if signed else 2**bits - 1)
    first = float(narrow - 2 ** (bits - 1)) if signed else 0.0
    greatest = float(np.finfo(low.dtype).max)
    by_low = xp.where(first * low > 0, first / xp.where(low == 0, xp.ones_like(low), low), greatest).astype(low.dtype)
    by_high = xp.where(last * high > 0, last / xp.where(high == 0, xp.ones_like(high), high), greatest).astype(
        low.dtype
    )
    low_side = by_low < by_high
    unit = xp.where(low_side, low / (first or 1.0), high / last)
    return _Scale(
        xp.where(low_side, by_low, by_high),
        unit,
        xp.where(low_side, low, first * unit),
        xp.where(low_side, last * unit, high),
    )


def _round(xp: Any, x: Any, mode: str) -> Any:
    if mode == "HALF_TO_EVEN":
        return xp.round(x)
    if mode == "HALF_UP":
        return xp.floor(x + 0.5)
    raise InvalidArgument(f"round_mode is {mode!r}, but must be HALF_TO_EVEN or HALF_UP.", round_mode=mode)


def _along(bound: Any, x: Any, axis: int) -> Any:
    """A bound, or one for each entry of an axis, in a shape that broadcasts against x."""
    if axis == -1:
        if bound.size != 1:
            raise InvalidArgument(f"Without an axis a bound must be one number, but has the shape {bound.shape}.")
        return bound.reshape(())
    if not 0 <= axis < x.ndim or bound.shape != x.shape[axis : axis + 1]:
        raise InvalidArgument(
            f"A bound of shape {bound.shape} does not fit axis {axis} of an input of shape {x.shape}."
        )
    return bound.reshape([-1 if place == axis else 1 for place in range(x.ndim)])


def _quantised(
    xp: Any,
    x: Any,
    low: Any,
    high: Any,
    *,
    num_bits: int,
    signed: bool,
    given: bool,
    narrow: bool,
    axis: int,
    mode: str,
) -> Any:
    if not x.size:
        return x
    if given:
        low, high = _along(low, x, axis), _along(high, x, axis)
        refuse_if(xp.any(low > high), "input_min must not be greater than input_max.")
    else:
        others = tuple(place for place in range(x.ndim) if place != axis)
        low, high = xp.min(x, axis=others, keepdims=True), xp.max(x, axis=others, keepdims=True)
    scale = _scale(xp, low, high, num_bits, signed, narrow)
    # Where the range is empty, the lower end decides.
    inside = xp.maximum(xp.minimum(x, scale.high), scale.low) if given else x
    return _round(xp, inside * scale.levels, mode) * scale.unit


def _with_attrs(
    xp: Any, x: Any, low: Any, high: Any, *, num_bits: int, signed_input: bool, range_given: bool, narrow_range: bool,
    axis: int, round_mode: str,
) -> Any:  # fmt: skip
    return _quantised(
        xp, x, low, high, num_bits=num_bits, signed=signed_input, given=range_given, narrow=narrow_range, axis=axis,
        mode=round_mode,
    )  # fmt: skip


def _with_bits(
    xp: Any,
    x: Any,
    low: Any,
    high: Any,
    bits: Any,
    *,
    signed_input: bool,
    range_given: bool,
    narrow_range: bool,
    axis: int,
) -> Any:
    return _quantised(
        xp, x, low, high, num_bits=int(bits), signed=signed_input, given=range_given, narrow=narrow_range, axis=axis,
        mode="HALF_TO_EVEN",
    )  # fmt: skip


def _with_bounds(
    xp: Any, x: Any, *, signed_input: bool, num_bits: int, range_given: bool, input_min: float, input_max: float
) -> Any:
    low, high = (xp.asarray(bound, dtype=x.dtype) for bound in (input_min, input_max))
    return _quantised(
        xp, x, low, high, num_bits=num_bits, signed=signed_input, given=range_given, narrow=False, axis=-1,
        mode="HALF_TO_EVEN",
    )  # fmt: skip


_RANGE = "signed_input: bool = true, num_bits: int = 8, range_given: bool = false"


def _examples(draw: Any, *more: Any, **attrs: Any) -> list[Example]:
    rows, columns = draw.size(), draw.size()
    x, low, high = draw.normal(rows, columns), np.array(-1.1), np.array(0.9)
    lows, highs = np.full(columns, -1.1), np.full(columns, 0.9)
    return [
        call(x, low, high, *more, differences=False, **attrs),
        call(x, low, high, *more, signed_input=False, narrow_range=True, differences=False, **attrs),
        call(x, lows, highs, *more, range_given=True, axis=1, differences=False, **attrs),
    ]


define(
    f"QuantizeAndDequantize(input: T; {_RANGE}, input_min: float = 0.0, input_max: float = 0.0, T: floating)"
    " -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x: dy,
    kernel=_with_bounds,
    takes_slices=True,
    examples=lambda draw: [
        call(draw.normal(*draw.shape()), num_bits=4, differences=False),
        call(draw.normal(*draw.shape()), range_given=True, input_min=-1.0, input_max=0.5, differences=False),
    ],
)
define(
    f"QuantizeAndDequantizeV2(input: T, input_min: T, input_max: T; {_RANGE}, T: floating,"
    " round_mode: string = 'HALF_TO_EVEN', narrow_range: bool = false, axis: int = -1) -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x, low, high: (dy, None, None),
    kernel=_with_attrs,
    takes_slices=True,
    examples=lambda draw: _examples(draw, round_mode=draw.pick(["HALF_UP", "HALF_TO_EVEN"])),
)
define(
    "QuantizeAndDequantizeV3(input: T, input_min: T, input_max: T, num_bits: int32; signed_input: bool = true,"
    " range_given: bool = true, T: floating, narrow_range: bool = false, axis: int = -1) -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x, low, high, bits: (dy, None, None, None),
    kernel=_with_bits,
    takes_slices=True,
    host=("num_bits",),
    examples=lambda draw: _examples(draw, np.int32(5)),
)
define(
    f"QuantizeAndDequantizeV4(input: T, input_min: T, input_max: T; {_RANGE}, T: floating,"
    " round_mode: string = 'HALF_TO_EVEN', narrow_range: bool = false, axis: int = -1) -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x, low, high, *, axis: raw.QuantizeAndDequantizeV4Grad.outputs(dy, x, low, high, axis=axis),
    kernel=_with_attrs,
    examples=_examples,
)


def _backprop(xp: Any, dy: Any, x: Any, low: Any, high: Any, *, axis: int) -> Any:
    """dy inside of the range. The bounds get zeros: TensorFlow's convention."""
    inside = (x >= _along(low, x, axis)) & (x <= _along(high, x, axis))
    return xp.where(inside, dy, xp.zeros_like(dy)), xp.zeros_like(low), xp.zeros_like(high)


def _backprop_shape(dy: Tensor, x: Tensor, low: Tensor, high: Tensor) -> list[Shape]:
    return [x.shape, low.shape, high.shape]


def _backprop_gradient(
    dinside: Tensor, dlow: Tensor, dhigh: Tensor, inside: Tensor, tolow: Tensor, tohigh: Tensor,
    dy: Tensor, x: Tensor, low: Tensor, high: Tensor, *, axis: int,
) -> Any:  # fmt: skip
    """Linear in dy, and a step function of the rest."""
    return raw.QuantizeAndDequantizeV4Grad.outputs(dinside, x, low, high, axis=axis)[0], None, None, None


def _backprop_examples(draw: Any) -> list[Example]:
    rows, columns = draw.size(), draw.size()
    dy, x = draw.normal(rows, columns), draw.integers(-3, 4, rows, columns) + 0.5
    bounds = np.full(columns, -1.0), np.full(columns, 1.0)
    return [call(dy, x, np.array(-1.0), np.array(2.0)), call(dy, x, *bounds, axis=1)]


define(
    "QuantizeAndDequantizeV4Grad(gradients: T, input: T, input_min: T, input_max: T; T: floating, axis: int = -1)"
    " -> (input_backprop: T, input_min_backprop: T, input_max_backprop: T)",
    shape=_backprop_shape,
    gradient=_backprop_gradient,
    kernel=_backprop,
    examples=_backprop_examples,
)
