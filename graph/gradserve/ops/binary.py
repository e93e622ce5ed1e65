"""Elementwise ops of two inputs, broadcasting as NumPy does: arithmetic, powers, remainders, logarithms with zeros.

Vocabulary of the tables: z is the output, x and y the inputs, dz the cotangent of z. The sweep sums over broadcast
axes and conjugates for complex numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.graph.checks import refuse_if
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, binary, broadcast_shape, call, define, raw
from gradserve.ops.elementwise import SIGNED, is_integer

Pair = tuple[Tensor, Tensor]

# Kernels


def _nonzero(xp: Any, y: Any) -> Any:
    """y with ones for zeros: what is divided by where the quotient is not used."""
    return xp.where(y == 0, xp.ones_like(y), y)


def _divisor(xp: Any, x: Any, y: Any) -> Any:
    """The integers y, without zeros. Raises InvalidArgument if an element of x is divided by one."""
    if math.prod(np.broadcast_shapes(x.shape, y.shape)):
        refuse_if((y == 0).any(), "An integer is divided by zero.")
    return _nonzero(xp, y)


def _zero_where(xp: Any, condition: Any, value: Any) -> Any:
    return xp.where(condition, xp.zeros_like(value), value)


def _truncated_quotient(xp: Any, x: Any, y: Any) -> Any:
    """x/y cut towards zero."""
    if not is_integer(x):
        return xp.trunc(x / y)
    y = _divisor(xp, x, y)
    floor = x // y
    is_above = (floor * y != x) & ((x < 0) != (y < 0))
    return floor + is_above.astype(x.dtype)


def _quotient(xp: Any, x: Any, y: Any) -> Any:
    return _truncated_quotient(xp, x, y) if is_integer(x) else x / y


def _floor_quotient(xp: Any, x: Any, y: Any) -> Any:
    """floor(x/y): for 1/0.1 it is 10, where NumPy's own floor division says 9."""
    if not is_integer(x):
        return xp.floor(x / y)
    return x // _divisor(xp, x, y)


def _floor_remainder(xp: Any, x: Any, y: Any) -> Any:
    return xp.mod(x, _divisor(xp, x, y) if is_integer(x) else y)


def _truncated_remainder(xp: Any, x: Any, y: Any) -> Any:
    return xp.fmod(x, _divisor(xp, x, y) if is_integer(x) else y)


def _quotient_without_nan(xp: Any, x: Any, y: Any) -> Any:
    return _zero_where(xp, y == 0, x / _nonzero(xp, y))


def _power(xp: Any, x: Any, y: Any) -> Any:
    """x to the y. Raises InvalidArgument if an integer is raised to a negative power."""
    if is_integer(x) and y.dtype.kind == "i" and math.prod(np.broadcast_shapes(x.shape, y.shape)):
        refuse_if((y < 0).any(), "An integer is raised to a negative power.")
        y = xp.maximum(y, xp.zeros_like(y))
    return xp.power(x, y)


def _squared_difference(xp: Any, x: Any, y: Any) -> Any:
    difference = x - y
    return xp.conj(difference) * difference if difference.dtype.kind == "c" else difference * difference


# Gradients


def _real_div_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """dx = dz / y, dy = -dz x / y²."""
    return dz / y, dz * (-x / y / y)


def _div_no_nan_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    return raw.DivNoNan(dz, y), dz * raw.DivNoNan(raw.DivNoNan(-x, y), y)


def _squared_difference_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """z = |x - y|² is real: of a complex cotangent only the real part counts."""
    weight = dz + raw.Conj(dz) if dz.dtype.is_complex else dz * 2
    dx = weight * (x - y)
    return dx, -dx


def _pow_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """dx = dz y x^(y-1), dy = dz z log x, with log x = 0 where x has no real logarithm."""
    has_log = raw.NotEqual(x, 0) if x.dtype.is_complex else raw.Greater(x, 0)
    log = raw.SelectV2(has_log, raw.Log(raw.SelectV2(has_log, x, 1)), 0)
    return dz * y * raw.Pow(x, y - 1), dz * z * log


def _maximum_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """A tie is all x's."""
    first = raw.GreaterEqual(x, y)
    return raw.SelectV2(first, dz, 0), raw.SelectV2(first, 0, dz)


def _minimum_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """A tie is all x's."""
    first = raw.LessEqual(x, y)
    return raw.SelectV2(first, dz, 0), raw.SelectV2(first, 0, dz)


def _atan2_gradient(dz: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Pair:
    """dy = dz x / (x² + y²), dx = -dz y / (x² + y²)."""
    scaled = dz / (raw.Square(x) + raw.Square(y))
    return x * scaled, -y * scaled


def _truncated_remainder_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    """z = x - y trunc(x/y), and trunc(x/y) is constant between its steps."""
    return dz, -dz * raw.Rint((x - z) / y)


def _where_nonzero(x: Tensor) -> Tensor:
    """1 where x is not 0, 0 where it is: the weight that keeps 0 log 0 out of a gradient."""
    return raw.Cast(raw.NotEqual(x, 0), DstT=x.dtype.base)


def _xlogy_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    return dz * raw.Xlogy(_where_nonzero(x), y), dz * raw.Xdivy(x, y)


def _xlog1py_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    return dz * raw.Xlog1py(_where_nonzero(x), y), dz * raw.Xdivy(x, y + 1)


def _xdivy_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Pair:
    return dz * raw.Xdivy(_where_nonzero(x), y), dz * raw.Xdivy(-x, raw.Square(y))


_ADD = "bfloat16|float16|float32|float64|complex64|complex128|int8|int16|int32|int64|uint8|string"
_DIFFERENCE = "bfloat16|float16|float32|float64|complex64|complex128|int32|int64"
_REMAINDER = "bfloat16|float16|float32|float64|int32|int64"
_OVER_POSITIVE = ("normal", "positive")

# fmt: off
#      name                 z                                dx, dy
binary("Add",               lambda xp, x, y: x + y,          lambda dz, z, x, y: (dz, dz),         types=_ADD, holomorphic=False, takes_slices=True)
binary("AddV2",             lambda xp, x, y: x + y,          lambda dz, z, x, y: (dz, dz),         holomorphic=False, takes_slices=True)
binary("Sub",               lambda xp, x, y: x - y,          lambda dz, z, x, y: (dz, -dz),        holomorphic=False, takes_slices=True)
binary("Mul",               lambda xp, x, y: x * y,          lambda dz, z, x, y: (dz * y, dz * x))
binary("MulNoNan",          lambda xp, x, y: _zero_where(xp, y == 0, x * y),
                            lambda dz, z, x, y: (raw.MulNoNan(dz, y), raw.MulNoNan(x, dz)), types="inexact")
binary("Div",               _quotient,                       _real_div_gradient,                   domain=_OVER_POSITIVE)
binary("RealDiv",           _quotient,                       _real_div_gradient,                   domain=_OVER_POSITIVE)
binary("DivNoNan",          _quotient_without_nan,           _div_no_nan_gradient,                 types="inexact", domain=_OVER_POSITIVE)
binary("SquaredDifference", _squared_difference,             _squared_difference_gradient,         types=_DIFFERENCE, holomorphic=False)
binary("Pow",               _power,                          _pow_gradient,                        types=SIGNED, domain=("positive", "normal"))
binary("Maximum",           lambda xp, x, y: xp.maximum(x, y), _maximum_gradient,                  types="real")
binary("Minimum",           lambda xp, x, y: xp.minimum(x, y), _minimum_gradient,                  types="real")
binary("Atan2",             lambda xp, y, x: xp.arctan2(y, x), _atan2_gradient,                    types="floating", arguments=("y", "x"))
binary("FloorDiv",          _floor_quotient,                 NOT_DIFFERENTIABLE,                   complex_examples=False)
binary("TruncateDiv",       _truncated_quotient,             NOT_DIFFERENTIABLE,                   complex_examples=False)
binary("FloorMod",          _floor_remainder,                lambda dz, z, x, y: (dz, -dz * raw.FloorDiv(x, y)), types="real", domain=_OVER_POSITIVE)
binary("TruncateMod",       _truncated_remainder,            _truncated_remainder_gradient,        types=_REMAINDER, domain=_OVER_POSITIVE)
binary("Mod",               _truncated_remainder,            _truncated_remainder_gradient,        types=_REMAINDER, domain=_OVER_POSITIVE)

binary("Xlogy",             lambda xp, x, y: _zero_where(xp, x == 0, x * xp.log(y)),   _xlogy_gradient,   types="inexact", domain=_OVER_POSITIVE)
binary("Xlog1py",           lambda xp, x, y: _zero_where(xp, x == 0, x * xp.log1p(y)), _xlog1py_gradient, types="inexact", domain=_OVER_POSITIVE)
binary("Xdivy",             lambda xp, x, y: _zero_where(xp, x == 0, x / y),           _xdivy_gradient,   types="inexact", domain=_OVER_POSITIVE)
# fmt: on


def _next_after_examples(draw: Any) -> list[Example]:
    x, y = draw.broadcastable_shapes()
    return [call(draw.normal(*x), draw.normal(*y))]


define(
    "NextAfter(x1: T, x2: T; T: float32|float64 = float32) -> (output: T)",
    shape=broadcast_shape,
    gradient=lambda dy, y, x1, x2: (dy, raw.ZerosLike(x2)),
    kernel=lambda xp, x1, x2: xp.nextafter(x1, x2),
    broadcasts=True,
    examples=_next_after_examples,
)
