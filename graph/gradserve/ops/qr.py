"""The QR factorisation of batches of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import UndefinedGradient
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
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
    real = raw.Real(phases, Tout=q.dtype.real)
    correction = raw.MatrixDiag(phases - raw.Complex(real, raw.ZerosLike(real), Tout=q.dtype))
    return dx + _over_adjoint(product(q, correction, right=True), r)


def _gradient(dq: Tensor, dr: Tensor, q: Tensor, r: Tensor, x: Tensor, *, full_matrices: bool) -> Tensor:
    """A wide matrix is [X Y] with X square: X = Q U and Y = Q V for R = [U V]."""
    rows, columns = (None, None) if x.shape is None else x.shape[-2:]
    if full_matrices and (rows is None or columns is None or rows > columns):
        raise UndefinedGradient(f"The gradient of Qr needs full_matrices=False; {x.name} is {x.shape}.", tensor=x.name)
    if rows is None or columns is None or rows >= columns:
        return _deep_gradient(dq, dr, q, r)
    sizes, last = np.array([rows, columns - rows]), np.int32(-1)
    _, right = raw.SplitV.outputs(x, sizes, last, num_split=2)
    upper, _ = raw.SplitV.outputs(r, sizes, last, num_split=2)
    du, dv = raw.SplitV.outputs(dr, sizes, last, num_split=2)
    left = _deep_gradient(dq + product(right, dv, right=True), du, q, upper)
    return raw.ConcatV2([left, product(q, dv)], last)


def _examples(draw: Any) -> list[Example]:
    columns = draw.size(1, 3)
    rows = columns + draw.size(0, 2)
    return [call(draw.normal(rows, columns)), call(draw.normal(2, rows, columns))]


define(
    "Qr(input: T; full_matrices: bool = false, T: factorable) -> (q: T, r: T)",
    shape=_factors_shape,
    gradient=_gradient,
    kernel=_factors,
    examples=_examples,
)
