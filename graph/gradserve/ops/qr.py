"""The QR factorisation of batches of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import Size, size_of, vector
from gradserve.ops.elementwise import real_part
from gradserve.ops.linalg import adjoint, product
from gradserve.ops.precision import widen


def _factors_shape(x: Tensor, *, full_matrices: bool) -> list[Shape]:
    if x.shape is None:
        return [None, None]
    rows, columns = x.shape[-2:]
    inner = rows if full_matrices else None if rows is None or columns is None else min(rows, columns)
    return [(*x.shape[:-2], rows, inner), (*x.shape[:-2], inner, columns)]


def _factors(xp: Any, x: Any, *, full_matrices: bool) -> tuple[Any, Any]:
    q, r = xp.linalg.qr(widen(xp, x), mode="complete" if full_matrices else "reduced")
    return q.astype(x.dtype), r.astype(x.dtype)


def _over_adjoint(x: Tensor, r: Tensor) -> Tensor:
    """X R⁻ᴴ."""
    return adjoint(raw.MatrixTriangularSolve(r, adjoint(x), lower=False))


def _deep_gradient(dq: Tensor, dr: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """dA = Q (dR + L R⁻ᴴ) + (dQ - Q Qᴴ dQ) R⁻ᴴ with L the lower triangle of Qᴴ dQ - dQᴴ Q + R dRᴴ - dR Rᴴ.

    Walter, Lehmann and Lamour 2012, for at least as many rows as columns; complex as in TensorFlow's Qr.
    """
    inner = product(q, dq, left=True)
    outer = product(r, dr, right=True)
    lower = raw.MatrixBandPart((inner - adjoint(inner)) + (outer - adjoint(outer)), -1, 0)
    dx = product(q, dr + _over_adjoint(lower, r)) + _over_adjoint(dq - product(q, inner), r)
    if not q.dtype.is_complex:
        return dx
    phases = raw.MatrixDiagPart(outer - adjoint(inner))
    correction = raw.MatrixDiag(phases - real_part(phases))
    return dx + _over_adjoint(product(q, correction, right=True), r)


def _gradient(dq: Tensor, dr: Tensor, q: Tensor, r: Tensor, x: Tensor, *, full_matrices: bool) -> Tensor:
    """A wide matrix is [X Y] with X square: X = Q U and Y = Q V for R = [U V].

    Columns Q₂ beyond the first k only complete Q₁: a change of Q₁ turns them the other way, so dQ₁ becomes
    dQ₁ - Q₂ dQ₂ᴴ Q₁.
    """
    rows, columns = size_of(x, -2), size_of(x, -1)
    is_known = isinstance(rows, int) and isinstance(columns, int)
    inner = min(rows, columns) if is_known else raw.Minimum(rows, columns)
    if full_matrices and not (is_known and rows <= columns):
        (q, rest), (dq, drest), (r, _), (dr, _) = (
            _halves(y, inner, axis) for y, axis in ((q, -1), (dq, -1), (r, -2), (dr, -2))
        )
        dq -= product(rest, product(drest, q, left=True))
    if is_known and rows >= columns:
        return _deep_gradient(dq, dr, q, r)
    (_, right), (upper, _), (du, dv) = (_halves(y, inner, -1) for y in (x, r, dr))
    left = _deep_gradient(dq + product(right, dv, right=True), du, q, upper)
    return raw.ConcatV2([left, product(q, dv)], np.int32(-1))


def _halves(x: Tensor, size: Size, axis: int) -> Sequence[Tensor]:
    """x cut along an axis after so many entries."""
    return raw.SplitV.outputs(x, vector(size, size_of(x, axis) - size), np.int32(axis), num_split=2)


def _examples(draw: Any) -> list[Example]:
    """Of full rank; a factor is unique up to signs, and LAPACK's are steady."""
    rows, columns = draw.size(0, 3), draw.size(0, 3)
    x = draw.unit(2, rows, columns) + 3 * np.eye(rows, columns)
    return [
        call(x[0]),
        call(x),
        call(x, full_matrices=True, differences=rows - columns < 2),
        call(x[0] + 1j * draw.unit(rows, columns)),
    ]


define(
    "Qr(input: T; full_matrices: bool = false, T: factorable) -> (q: T, r: T)",
    shape=_factors_shape,
    gradient=_gradient,
    kernel=_factors,
    examples=_examples,
)
