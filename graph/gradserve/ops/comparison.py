"""Comparisons, logic, bits and tests of single numbers: none of them carries a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidShape
from gradserve.graph import shapes
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import (
    NOT_DIFFERENTIABLE,
    Example,
    Op,
    Rule,
    binary,
    broadcast_shape,
    call,
    define,
    same_shape,
    scalar_shape,
)  # fmt: skip


def _equality_shape(x: Tensor, y: Tensor, *, incompatible_shape_error: bool) -> Any:
    """The broadcast shape; a scalar where the shapes do not fit and that is no error."""
    if incompatible_shape_error:
        return broadcast_shape(x, y)
    if not (shapes.is_static(x.shape) and shapes.is_static(y.shape)):
        return None
    return broadcast_shape(x, y) if _fit(x, y) else ()


def _fit(x: Any, y: Any) -> bool:
    try:
        shapes.broadcast(tuple(x.shape), tuple(y.shape))
    except InvalidShape:
        return False
    return True


def _equal(xp: Any, x: Any, y: Any, *, incompatible_shape_error: bool) -> Any:
    return x == y if incompatible_shape_error or _fit(x, y) else xp.zeros((), bool)


def _not_equal(xp: Any, x: Any, y: Any, *, incompatible_shape_error: bool) -> Any:
    return x != y if incompatible_shape_error or _fit(x, y) else xp.ones((), bool)


def _equality(name: str, z: Rule) -> Op:
    def examples(draw: Any) -> list[Example]:
        x, y = draw.broadcastable_shapes()
        return [
            call(draw.integers(0, 3, *x), draw.integers(0, 3, *y)),
            call(draw.boolean(2), draw.boolean(3), incompatible_shape_error=False),
        ]

    return define(
        f"{name}(x: T, y: T; T: type, incompatible_shape_error: bool = true) -> (z: bool)",
        shape=_equality_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=z,
        examples=examples,
    )


def _logical(name: str, z: Rule) -> Op:
    def examples(draw: Any) -> list[Example]:
        x, y = draw.broadcastable_shapes()
        return [call(draw.boolean(*x), draw.boolean(*y))]

    return define(
        f"{name}(x: bool, y: bool) -> (z: bool)",
        shape=broadcast_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=z,
        examples=examples,
    )


def _bits(name: str, z: Rule) -> Op:
    def examples(draw: Any) -> list[Example]:
        x, y = draw.broadcastable_shapes()
        return [call(draw.integers(-9, 9, *x), draw.integers(-2, 40, *y))]

    return define(
        f"{name}(x: T, y: T; T: integer) -> (z: T)",
        shape=broadcast_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=z,
        examples=examples,
    )


def _test(name: str, y: Rule) -> Op:
    return define(
        f"{name}(x: T; T: floating) -> (y: bool)",
        shape=same_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=y,
        examples=lambda draw: [call(draw.normal(*draw.shape()))],
    )


def _shift(xp: Any, x: Any, y: Any) -> Any:
    """The number of bits to shift by, cut to what the dtype has."""
    return xp.clip(y, 0, 8 * x.dtype.itemsize - 1).astype(x.dtype)


def _population_count(xp: Any, x: Any) -> Any:
    """The number of bits that are set."""
    bits = x.astype(f"u{x.dtype.itemsize}")
    count = xp.zeros(x.shape, "u1")
    for position in range(8 * x.dtype.itemsize):
        count = count + ((bits >> position) & 1).astype("u1")
    return count


# fmt: off
#        name                z                                   dx, dy
binary("Less",           lambda xp, x, y: x < y,             NOT_DIFFERENTIABLE,  types="real", result="bool")
binary("LessEqual",      lambda xp, x, y: x <= y,            NOT_DIFFERENTIABLE,  types="real", result="bool")
binary("Greater",        lambda xp, x, y: x > y,             NOT_DIFFERENTIABLE,  types="real", result="bool")
binary("GreaterEqual",   lambda xp, x, y: x >= y,            NOT_DIFFERENTIABLE,  types="real", result="bool")
_equality("Equal",       _equal)
_equality("NotEqual",    _not_equal)
_logical("LogicalAnd",   lambda xp, x, y: x & y)
_logical("LogicalOr",    lambda xp, x, y: x | y)
_bits("BitwiseAnd",      lambda xp, x, y: x & y)
_bits("BitwiseOr",       lambda xp, x, y: x | y)
_bits("BitwiseXor",      lambda xp, x, y: x ^ y)
_bits("LeftShift",       lambda xp, x, y: xp.left_shift(x, _shift(xp, x, y)))
_bits("RightShift",      lambda xp, x, y: xp.right_shift(x, _shift(xp, x, y)))
_test("IsFinite",        lambda xp, x: xp.isfinite(x))
_test("IsInf",           lambda xp, x: xp.isinf(x))
_test("IsNan",           lambda xp, x: xp.isnan(x))
# fmt: on

define(
    "ApproximateEqual(x: T, y: T; T: number, tolerance: float = 9.999999747378752e-06) -> (z: bool)",
    shape=broadcast_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, y, *, tolerance: xp.abs(x - y) < tolerance,
    examples=lambda draw: [call(draw.normal(2, 3), draw.normal(2, 3), tolerance=0.5)],
)
define(
    "LogicalNot(x: bool) -> (y: bool)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: ~x,
    examples=lambda draw: [call(draw.boolean(*draw.shape()))],
)
define(
    "Invert(x: T; T: integer) -> (y: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: ~x,
    examples=lambda draw: [call(draw.integers(-9, 9, *draw.shape()))],
)
define(
    "PopulationCount(x: T; T: integer) -> (y: uint8)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_population_count,
    examples=lambda draw: [call(draw.integers(-9, 9, *draw.shape()))],
)


def _truth(xp: Any, x: Any, *, T: DType) -> Any:
    """A number that is not 0, a string that is not empty; of anything but a scalar, whether it has entries."""
    if x.ndim:
        return np.array(x.size > 0)
    return np.array(len(x.item()) > 0 if T.kind == "s" else bool(x != 0))


define(
    "ToBool(input: T; T: type) -> (output: bool)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_truth,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(*draw.shape())), call(np.int32(draw.size())), call(np.array(b"", object))],
)
