"""Discrete Fourier transforms over axes that are named, each cut or filled up with zeros to a given length.

With N the product of the lengths and C what cuts or fills: the adjoint of F C is Cᵀ N F⁻¹. Real transforms keep half
of the axis that is named last; their adjoints put zeros for the other half, or count it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.graph import shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, Rule, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import IntVector, part, product, shape_of
from gradserve.ops.fft import fit, half, scaled


def _integers(vector: Any) -> list[int]:
    return [int(entry) for entry in np.ravel(vector)]


def _kernel(name: str, dtype_attr: str = "") -> Rule:
    """NumPy's function of this name; `dtype_attr` names the attr that holds the dtype of the result."""

    def kernel(xp: Any, x: Any, lengths: Any, axes: Any, *, node: Any) -> Any:
        kind = node.attrs[dtype_attr].numpy if dtype_attr else x.dtype
        sizes, places = _integers(lengths), _integers(axes)
        if 0 in sizes:
            return xp.zeros(_sized(x.shape, places, sizes, name == "rfftn"), kind)
        return getattr(xp.fft, name)(x, s=sizes, axes=places).astype(kind)

    return kernel


def _shape(x: Tensor, lengths: Tensor, axes: Tensor, halved: bool = False) -> Shape:
    places = static.value(axes)
    if x.shape is None or places is None:
        return None if x.shape is None else (None,) * len(x.shape)
    known = static.shape_value(lengths) or (None,) * places.size
    return _sized(x.shape, _integers(places), known, halved)


def _sized(shape: Sequence[Dimension], places: Sequence[int], lengths: Sequence[Dimension], halved: bool) -> Any:
    """A shape with these lengths at the axes, the last one of them halved."""
    result = list(shape)
    for axis, length in zip(places, lengths, strict=True):
        result[shapes.normalise_axis(axis, len(shape))] = length
    last = lengths[-1] if lengths else None
    if halved and last is not None:
        result[places[-1]] = half(last)
    return tuple(result)


def _places(x: Tensor, axes: Tensor) -> IntVector:
    """The axes, counted from 0."""
    known = static.value(axes)
    if known is not None and x.shape is not None:
        return np.array([shapes.normalise_axis(axis, len(x.shape)) for axis in _integers(known)], np.int32)
    rank = raw.Rank(x)
    return raw.FloorMod(axes + rank, rank)


def _with_sizes(shape: IntVector, places: IntVector, sizes: IntVector) -> IntVector:
    """A shape with other sizes at some places."""
    if not any(isinstance(each, Tensor) for each in (shape, places, sizes)):
        shape = shape.copy()
        shape[places] = sizes
        return shape
    return raw.TensorScatterUpdate(shape, raw.ExpandDims(places, np.int32(1)), sizes)


def _whole(dy: Tensor, lengths: Tensor, axes: Tensor) -> IntVector:
    """The shape of dy with the lengths at the axes."""
    known = static.value(lengths)
    return _with_sizes(shape_of(dy), _places(dy, axes), lengths if known is None else known)


def _count(lengths: Tensor) -> IntVector:
    known = static.value(lengths)
    return product(lengths if known is None else known)


def _forward_gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor, axes: Tensor) -> Any:
    back = scaled(raw.IFFTND(dy, lengths, axes), _count(lengths))
    return fit(back, shape_of(x)), None, None


def _inverse_gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor, axes: Tensor) -> Any:
    back = scaled(raw.FFTND(dy, lengths, axes), _count(lengths), divide=True)
    return fit(back, shape_of(x)), None, None


def _real_gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor, axes: Tensor) -> Any:
    """Re of the adjoint of the whole transform, of dy with zeros for the half that was not kept."""
    full = raw.IFFTND(fit(dy, _whole(dy, lengths, axes)), lengths, axes)
    return fit(scaled(raw.Real(full, Tout=x.dtype), _count(lengths)), shape_of(x)), None, None


def _real_inverse_gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor, axes: Tensor) -> Any:
    """The transform of dy over N, twice where an entry stands for its mirror image too."""
    spectrum = raw.RFFTND(dy, lengths, axes, Tcomplex=x.dtype)
    scalar = np.zeros(0, np.int32)
    last = raw.Reshape(raw.StridedSlice(lengths, [-1], [0], [1], end_mask=1), scalar)
    place = raw.Range(0, raw.FloorDiv(last, 2) + 1, 1)
    alone = raw.LogicalOr(raw.Equal(place, 0), raw.Equal(place * 2, last))
    weight = raw.Cast(raw.Cast(2 - raw.Cast(alone, DstT="int32"), DstT="float64"), DstT=x.dtype)
    # [1, .., kept, .., 1]: the weights along the axis that was halved.
    where = part(_places(x, axes), -1)
    column = _with_sizes(raw.OnesLike(raw.Shape(x)), where, raw.Reshape(raw.Size(weight), np.array([1], np.int32)))
    weighted = spectrum * raw.Reshape(weight, column)
    return fit(scaled(weighted, _count(lengths), divide=True), shape_of(x)), None, None


def _examples(domain: str, **attrs: Any) -> Any:
    def examples(draw: Any) -> list[Example]:
        x = getattr(draw, domain)(draw.size(0, 3), draw.size(0, 3), draw.size(0, 3))
        axes = np.array(draw.pick([[0, 1, 2], [1, 2], [2, 0], [-1], [0]]), np.int32)
        lengths = np.array([x.shape[axis] + draw.size(0, 1) for axis in axes], np.int32)
        return [call(x, lengths, axes, **attrs)]

    return examples


_HOST = ("fft_length", "axes")
_COMPLEX = "Tcomplex: complex = complex64"
_REAL = f"Treal: float32|float64 = float32, {_COMPLEX}"
for _name, _function, _rule in (("FFTND", "fftn", _forward_gradient), ("IFFTND", "ifftn", _inverse_gradient)):
    define(
        f"{_name}(input: Tcomplex, fft_length: int32, axes: int32; {_COMPLEX}) -> (output: Tcomplex)",
        shape=lambda x, lengths, axes: _shape(x, lengths, axes),
        gradient=_rule,
        kernel=_kernel(_function),
        host=_HOST,
        examples=_examples("complex"),
    )
define(
    f"RFFTND(input: Treal, fft_length: int32, axes: int32; {_REAL}) -> (output: Tcomplex)",
    shape=lambda x, lengths, axes: _shape(x, lengths, axes, halved=True),
    gradient=_real_gradient,
    kernel=_kernel("rfftn", "Tcomplex"),
    host=_HOST,
    examples=_examples("normal", Tcomplex="complex128"),
)
define(
    f"IRFFTND(input: Tcomplex, fft_length: int32, axes: int32; {_REAL}) -> (output: Treal)",
    shape=lambda x, lengths, axes: _shape(x, lengths, axes),
    gradient=_real_inverse_gradient,
    kernel=_kernel("irfftn", "Treal"),
    host=_HOST,
    examples=_examples("complex", Treal="float64"),
)
