"""Eigenvalues and eigenvectors of square matrices that need not be self-adjoint: A V = V diag(e).

Those of complex matrices come in the order of their magnitude, as TensorFlow gives them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops.linalg import product


def _shape(x: Tensor, *, compute_v: bool) -> list[Shape]:
    return [None if x.shape is None else x.shape[:-1], x.shape if compute_v else (0,)]


def _eigen(xp: Any, x: Any, *, compute_v: bool, Tout: Any) -> tuple[Any, Any]:
    kind = Tout.numpy
    e, v = xp.linalg.eig(x) if compute_v else (xp.linalg.eigvals(x), None)
    if x.dtype.kind == "c":
        order = xp.argsort(xp.abs(e), axis=-1)
        e = xp.take_along_axis(e, order, -1)
        v = None if v is None else xp.take_along_axis(v, order[..., None, :], -1)
    return e.astype(kind), xp.zeros((0,), kind) if v is None else v.astype(kind)


def _gradient(de: Tensor, dv: Tensor, e: Tensor, v: Tensor, x: Tensor, *, compute_v: bool, Tout: Any) -> Tensor:
    """dA = V⁻ᴴ (diag de + F ∘ (Vᴴ dV - Vᴴ V diag Re(Vᴴ dV))) Vᴴ with F_ij = 1 / conj(e_j - e_i), 0 on the diagonal.

    Boeddeker et al. 2017, with eigenvectors of length 1. A real matrix gets the real part.
    """
    if compute_v:
        gaps = raw.Conj(raw.ExpandDims(e, np.int32(-2)) - raw.ExpandDims(e, np.int32(-1)))
        own = product(v, dv, left=True)
        real = raw.Real(raw.MatrixDiagPart(own), Tout=Tout.real)
        lengths = product(product(v, v, left=True), raw.MatrixDiag(raw.Complex(real, raw.ZerosLike(real), Tout=Tout)))
        inner = raw.MatrixDiag(de) + raw.DivNoNan(own - lengths, gaps)
    else:
        _, v = raw.Eig.outputs(x, Tout=Tout)
        inner = raw.MatrixDiag(de)
    dx = raw.MatrixSolve(v, product(inner, v, right=True), adjoint=True)
    if x.dtype.is_complex:
        return raw.Cast(dx, DstT=x.dtype) if x.dtype is not Tout else dx
    return raw.Cast(raw.Real(dx, Tout=Tout.real), DstT=x.dtype)


def _examples(draw: Any) -> list[Example]:
    """Eigenvalues far from each other; vectors have a free phase, so only gradients of the values are compared."""
    n = draw.size(0, 3)
    x = np.diag(np.arange(1.0, n + 1)) * 2 + draw.unit(n, n) * 0.2
    return [
        call(x, Tout="complex128", compute_v=False),
        call(np.stack([x, x + 1]), Tout="complex128", compute_v=False),
        call(x + 0.1j * draw.unit(n, n), Tout="complex128", compute_v=False),
        call(x, Tout="complex128", differences=False),
    ]


define(
    "Eig(input: T; compute_v: bool = true, T: complex128|complex64|float32|float64, Tout: complex) -> (e: Tout, v: Tout)",
    shape=_shape,
    gradient=_gradient,
    kernel=_eigen,
    examples=_examples,
)
