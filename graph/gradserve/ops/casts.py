"""Changes of dtype, zeros and ones like a tensor, and the identities that watch or stop a gradient."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import (
    MISSING,
    NOT_DIFFERENTIABLE,
    Example,
    Rule,
    call,
    define,
    raw,
    refused,
    same_shape,
)  # fmt: skip
from gradserve.graph.variants import Variant, zeros_like

# Cast, Bitcast


def _cast(xp: Any, x: Any, *, DstT: DType, Truncate: bool) -> Any:
    """A complex number loses its imaginary part, unless it becomes a truth value."""
    if x.dtype.kind == "c" and DstT.kind not in "cb":
        x = xp.real(x)
    if Truncate and DstT.kind == "f" and x.dtype.kind == "f" and x.dtype.itemsize > max(DstT.size, 2):
        x = _cut(x, DstT)
    return x.astype(DstT.numpy)


def _cut(x: Any, narrow: DType) -> Any:
    """x without the digits that a narrower dtype has no room for: the cast then rounds towards zero."""
    spare = ml_dtypes.finfo(x.dtype).nmant - ml_dtypes.finfo(narrow.numpy).nmant
    bits = x.view(np.int64 if x.dtype.itemsize == 8 else np.int32)
    return (bits >> spare << spare).view(x.dtype)


def _cast_gradient(dy: Tensor | IndexedSlices, y: Tensor, x: Tensor) -> Tensor | IndexedSlices | None:
    if not (x.dtype.is_trainable and y.dtype.is_trainable):
        return None
    if isinstance(dy, IndexedSlices):
        return IndexedSlices(raw.Cast(dy.values, DstT=x.dtype.base), dy.indices, dy.dense_shape)
    return raw.Cast(dy, DstT=x.dtype.base)


def _cast_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    return [
        call(draw.normal(*shape), DstT="complex128"),
        call(draw.complex(*shape), DstT="float64"),
        call(draw.complex(*shape), DstT="bool"),
        call(draw.normal(*shape), DstT=draw.pick(["int32", "bool", "uint8", "bfloat16"]), differences=False),
        call(draw.integers(0, 5, *shape), DstT=draw.pick(["float32", "int64", "bool", "complex64", "float16"])),
        call(draw.boolean(*shape), DstT="float32"),
        call(draw.normal(*shape), DstT=draw.pick(["float32", "float16"]), Truncate=True, differences=False),
    ]


define(
    "Cast(x: SrcT; SrcT: type, DstT: type, Truncate: bool = false) -> (y: DstT)",
    shape=same_shape,
    gradient=_cast_gradient,
    kernel=_cast,
    takes_slices=True,
    examples=_cast_examples,
)


def _bitcast_shape(x: Tensor, *, type: DType) -> Any:
    """A wider dtype takes the last axis up, a narrower one adds an axis."""
    if x.shape is None or type.size == x.dtype.size:
        return x.shape
    if type.size < x.dtype.size:
        return (*x.shape, x.dtype.size // type.size)
    if not x.shape or x.shape[-1] not in (None, type.size // x.dtype.size):
        wanted = type.size // x.dtype.size
        raise InvalidShape(f"The last axis must have size {wanted} to become {type}.", shape=x.shape, dtype=type)
    return x.shape[:-1]


def _bitcast(xp: Any, x: Any, *, type: DType) -> Any:
    dense = xp.ravel(x).reshape(x.shape)
    if type.size == x.dtype.itemsize:
        return dense.view(type.numpy)
    if type.size < x.dtype.itemsize:
        return dense[..., None].view(type.numpy)
    return dense.view(type.numpy)[..., 0]


def _bitcast_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    return [
        call(draw.normal(*shape), type="int64"),
        call(draw.integers(0, 9, *shape), type="uint8"),
        call(draw.integers(0, 9, *shape, 2), type="int64"),
    ]


define(
    "Bitcast(input: T; T: number, type: number) -> (output: type)",
    shape=_bitcast_shape,
    gradient=MISSING,
    kernel=_bitcast,
    examples=_bitcast_examples,
)

# Zeros and ones


def _zeros_like(xp: Any, x: Any) -> Any:
    return zeros_like(x) if isinstance(x, Variant) or x.dtype.kind == "O" else xp.zeros_like(x)


define(
    "ZerosLike(x: T; T: type) -> (y: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_zeros_like,
    examples=lambda draw: [call(draw.normal(*draw.shape())), call(draw.boolean(2))],
)
define(
    "OnesLike(x: T; T: bfloat16|bool|complex128|complex64|float16|float32|float64|int16|int32|int64|int8|uint16"
    "|uint32|uint64|uint8) -> (y: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: xp.ones_like(x),
    examples=lambda draw: [call(draw.normal(*draw.shape())), call(draw.boolean(2))],
)

# Identities that watch or stop

define(
    "StopGradient(input: T; T: type) -> (output: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: x,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)
define(
    "PreventGradient(input: T; T: type, message: string = '') -> (output: T)",
    shape=same_shape,
    gradient=refused("Gradient explicitly disabled by PreventGradient"),
    kernel=lambda xp, x: x,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)


def _check_numerics(xp: Any, x: Any, *, message: str) -> Any:
    """x, where all of it is finite. Raises InvalidArgument."""
    kinds = {"-Inf": x == -math.inf, "+Inf": x == math.inf, "NaN": x != x}
    found = [name for name, hits in kinds.items() if hits.any()]
    if found:
        raise InvalidArgument(f"{message} : Tensor had {' and '.join(found)} values", found=", ".join(found))
    return x


def _check_numerics_gradient(name: str) -> Rule:
    def gradient(dy: Tensor, y: Tensor, x: Tensor, *, message: str) -> Tensor:
        text = f"Not a number (NaN) or infinity (Inf) values detected in gradient. {message}"
        return getattr(raw, name)(dy, message=text)

    return gradient


for _name in ("CheckNumerics", "CheckNumericsV2"):
    define(
        f"{_name}(tensor: T; T: floating, message: string) -> (output: T)",
        shape=same_shape,
        gradient=_check_numerics_gradient(_name),
        kernel=_check_numerics,
        stateful=True,
        dynamic=True,  # it raises by what it sees, which a compiled program can't
        examples=lambda draw: [call(draw.normal(*draw.shape()), message="x")],
    )
