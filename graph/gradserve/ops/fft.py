"""Discrete Fourier transforms over the last one, two or three axes.

The gradient of a linear map A is its adjoint: the adjoint of a transform over N elements is N times the inverse one.
Real transforms keep half of the last axis; their adjoints put zeros for the other half, or count it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Rule, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import IntVector, concat, part, product, shape_of

_SUFFIX = {1: "", 2: "2D", 3: "3D"}


def _axes(count: int) -> tuple[int, ...]:
    return tuple(range(-count, 0))


def scaled(value: Tensor, factor: IntVector, *, divide: bool = False) -> Tensor:
    """A tensor times (or over) an integer that a vector of one entry holds."""
    if isinstance(factor, Tensor):
        number = raw.Cast(raw.Cast(raw.Reshape(factor, np.array([], np.int32)), DstT="float64"), DstT=value.dtype)
    else:
        number = np.array(int(factor[0]), value.dtype.numpy)
    return value / number if divide else value * number


# Complex to complex


def _complex_op(inverse: bool, count: int) -> None:
    name = f"{'I' if inverse else ''}FFT{_SUFFIX[count]}"
    other = f"{'' if inverse else 'I'}FFT{_SUFFIX[count]}"

    def kernel(xp: Any, x: Any) -> Any:
        transform = xp.fft.ifftn if inverse else xp.fft.fftn
        return (transform(x, axes=_axes(count)) if x.size else x).astype(x.dtype)

    def gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        size = product(part(shape_of(x), -count))
        return scaled(getattr(raw, other)(dy), size, divide=inverse)

    define(
        f"{name}(input: Tcomplex; Tcomplex: complex = complex64) -> (output: Tcomplex)",
        shape=lambda x: x.shape,
        gradient=gradient,
        kernel=kernel,
        examples=lambda draw: [call(draw.complex(*draw.shape(0, 1), *[draw.size(0, 3) for _ in range(count)]))],
    )


# Real to complex and back


def _lengths(x: Shape, lengths: Tensor, count: int, *, halved: bool) -> Shape:
    if x is None:
        return None
    known: Sequence[Dimension] = static.shape_value(lengths) or (None,) * count
    last = known[-1]
    return (*x[:-count], *known[:-1], half(last) if halved and last is not None else last)


def half(length: int) -> int:
    """How many entries are kept of the transform of so many real numbers."""
    return length // 2 + 1 if length else 0


def _fitted(xp: Any, x: Any, lengths: Sequence[int]) -> Any:
    """x cut, or filled up with zeros, to these sizes of its last axes."""
    lead = x.ndim - len(lengths)
    x = x[(slice(None),) * lead + tuple(slice(0, n) for n in lengths)]
    missing = [n - have for n, have in zip(lengths, x.shape[lead:], strict=True)]
    return xp.pad(x, [(0, 0)] * lead + [(0, m) for m in missing]) if any(missing) else x


def fit(x: Tensor, target: IntVector) -> Tensor:
    """The same on a graph, to a whole shape."""
    here = shape_of(x)
    if not isinstance(here, Tensor) and not isinstance(target, Tensor):
        if (here == target).all():
            return x
        common: IntVector = np.minimum(here, target)
        begin: IntVector = np.zeros_like(common)
        after: IntVector = target - common
        return raw.Pad(raw.Slice(x, begin, common), np.stack([begin, after], axis=1))
    common = raw.Minimum(here, target)
    begin = raw.ZerosLike(common)
    return raw.Pad(raw.Slice(x, begin, common), raw.Pack([begin, raw.Sub(target, common)], axis=1))


def _int_vector(lengths: Tensor) -> IntVector:
    known = static.value(lengths)
    return lengths if known is None else known.astype(np.int32)


def _real_kernel(count: int) -> Rule:
    def kernel(xp: Any, x: Any, lengths: Any, *, Tcomplex: Any) -> Any:
        sizes = [int(n) for n in lengths]
        if 0 in sizes:
            return xp.zeros((*x.shape[:-count], *sizes[:-1], half(sizes[-1])), Tcomplex.numpy)
        return xp.fft.rfftn(_fitted(xp, x, sizes), axes=_axes(count)).astype(Tcomplex.numpy)

    return kernel


def _real_gradient(count: int) -> Rule:
    def gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor) -> Any:
        """Re of the adjoint of the whole transform, of dy with zeros for the half that was not kept."""
        sizes = _int_vector(lengths)
        whole = fit(dy, concat(part(shape_of(dy), 0, -count), sizes))
        full = raw.Real(getattr(raw, f"IFFT{_SUFFIX[count]}")(whole), Tout=x.dtype)
        return fit(scaled(full, product(sizes)), shape_of(x)), None

    return gradient


def _inverse_kernel(count: int) -> Rule:
    def kernel(xp: Any, x: Any, lengths: Any, *, Treal: Any) -> Any:
        sizes = [int(n) for n in lengths]
        if 0 in sizes:
            return xp.zeros((*x.shape[:-count], *sizes), Treal.numpy)
        kept = _fitted(xp, x, [*sizes[:-1], sizes[-1] // 2 + 1])
        if count > 1:
            kept = xp.fft.ifftn(kept, axes=_axes(count)[:-1])
        return xp.fft.irfft(kept, n=sizes[-1], axis=-1).astype(Treal.numpy)

    return kernel


def _inverse_gradient(count: int) -> Rule:
    def gradient(dy: Tensor, y: Tensor, x: Tensor, lengths: Tensor) -> Any:
        """The transform of dy over N, twice where an entry stands for its mirror image too."""
        sizes = _int_vector(lengths)
        spectrum = getattr(raw, f"RFFT{_SUFFIX[count]}")(dy, lengths, Tcomplex=x.dtype)
        last = part(sizes, -1)
        if isinstance(last, Tensor):
            place = raw.Range(0, raw.FloorDiv(raw.Reshape(last, []), 2) + 1, 1)
            alone = raw.LogicalOr(raw.Equal(place, 0), raw.Equal(place * 2, raw.Reshape(last, [])))
            weight: Any = raw.Cast(raw.Cast(2 - raw.Cast(alone, DstT="int32"), DstT="float64"), DstT=x.dtype)
        else:
            places = np.arange(int(last[0]) // 2 + 1)
            weight = np.where((places == 0) | (2 * places == int(last[0])), 1, 2).astype(x.dtype.numpy)
        return fit(scaled(spectrum * weight, product(sizes), divide=True), shape_of(x)), None

    return gradient


def _real_ops(count: int) -> None:
    suffix = _SUFFIX[count]
    types = "Treal: float32|float64 = float32, Tcomplex: complex = complex64"

    def sizes(draw: Any, whole: Any) -> Any:
        return np.array([n + draw.size(0, 1) for n in whole], np.int32)

    define(
        f"RFFT{suffix}(input: Treal, fft_length: int32; {types}) -> (output: Tcomplex)",
        shape=lambda x, lengths: _lengths(x.shape, lengths, count, halved=True),
        gradient=_real_gradient(count),
        kernel=_real_kernel(count),
        host=("fft_length",),
        examples=lambda draw: [
            call(
                draw.normal(draw.size(), *(n := [draw.size(0, 4) for _ in range(count)])),
                sizes(draw, n),
                Tcomplex="complex128",
            )
        ],
    )
    define(
        f"IRFFT{suffix}(input: Tcomplex, fft_length: int32; {types}) -> (output: Treal)",
        shape=lambda x, lengths: _lengths(x.shape, lengths, count, halved=False),
        gradient=_inverse_gradient(count),
        kernel=_inverse_kernel(count),
        host=("fft_length",),
        examples=lambda draw: [
            call(
                draw.complex(draw.size(), *(n := [draw.size(1, 4) for _ in range(count)])),
                np.array([*n[:-1], 2 * n[-1] - draw.size(1, 2)], np.int32),
                Treal="float64",
            )
        ],
    )


for _count in _SUFFIX:
    for _inverse in (False, True):
        _complex_op(_inverse, _count)
    _real_ops(_count)
