"""Linear algebra: inverses, solves, determinants, Cholesky factors and eigenvalues of batches of matrices.

A is the matrix, Xᴴ its conjugate transpose. The rules are those of Giles 2008, "An extended collection of matrix
derivative results", extended to complex numbers by conjugation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw, same_shape, within
from gradserve.graph.shapes import Shape
from gradserve.ops.elementwise import real_part
from gradserve.ops.precision import widen
from gradserve.ops.recurrence import through


def product(a: Tensor, b: Tensor, *, left: bool = False, right: bool = False) -> Tensor:
    """a b, with a (left) or b (right) replaced by its adjoint."""
    return raw.BatchMatMulV2(a, b, adj_x=left, adj_y=right)


def adjoint(x: Tensor) -> Tensor:
    """Xᴴ, also where the rank is not known."""
    if x.shape is not None:
        order: Any = np.array([*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2], np.int32)
    else:
        rank = raw.Rank(x)
        last = raw.Pack([rank - 1, rank - 2])
        order = raw.ConcatV2([raw.Range(0, rank - 2, 1), last], np.int32(0))
    return raw.ConjugateTranspose(x, order) if x.dtype.is_complex else raw.Transpose(x, order)


def _flipped(xp: Any, x: Any) -> Any:
    return xp.conj(xp.swapaxes(x, -1, -2))


def finite_or_zero(xp: Any, x: Any) -> tuple[Any, Any]:
    """The matrices, zeros for one that holds an infinity or NaN, and which ones do not [..., 1, 1].

    LAPACK's iterations for singular values may never end on such a matrix: its results are NaN without asking.
    """
    finite = xp.isfinite(x).all(axis=(-2, -1), keepdims=True)
    return xp.where(finite, x, xp.zeros_like(x)), finite


def _square(draw: Any, *batch: int, domain: str = "normal") -> Any:
    """A well-conditioned matrix."""
    n = draw.size(0, 3)
    return getattr(draw, domain)(*batch, n, n) + 4 * np.eye(n)


def _matrix_examples(draw: Any) -> list[Example]:
    return [call(_square(draw)), call(_square(draw, draw.size())), call(_square(draw, domain="complex"))]


# Inverse and determinants


def _inverse(xp: Any, x: Any, *, adjoint: bool) -> Any:
    y = xp.linalg.inv(widen(xp, x))
    return (_flipped(xp, y) if adjoint else y).astype(x.dtype)


def _inverse_gradient(dy: Tensor, y: Tensor, x: Tensor, *, node: Any) -> Tensor:
    """dX = -Yᴴ dY Yᴴ; for Y = X⁻ᴴ it is -Y dYᴴ Y."""
    if node.attrs["adjoint"]:
        return -product(y, product(dy, y, left=True))
    return -product(y, product(dy, y, right=True), left=True)


define(
    "MatrixInverse(input: T; adjoint: bool = false, T: factorable) -> (output: T)",
    shape=same_shape,
    gradient=_inverse_gradient,
    kernel=_inverse,
    examples=lambda draw: [
        example._replace(attrs={"adjoint": flag}) for example in _matrix_examples(draw) for flag in (False, True)
    ],
)


def _batch(x: Tensor) -> Shape:
    return None if x.shape is None else x.shape[:-2]


def _over_matrix(value: Tensor) -> Tensor:
    """A scalar a matrix, lined up with the matrices."""
    return raw.ExpandDims(raw.ExpandDims(value, np.int32(-1)), np.int32(-1))


define(
    "MatrixDeterminant(input: T; T: factorable) -> (output: T)",
    shape=_batch,
    gradient=lambda dy, y, x: (
        _over_matrix(dy * raw.Conj(y)) * raw.MatrixInverse(x, adjoint=True)
        if x.dtype.is_complex
        else _over_matrix(dy * y) * raw.MatrixInverse(x, adjoint=True)
    ),
    kernel=lambda xp, x: xp.linalg.det(x).astype(x.dtype),
    examples=_matrix_examples,
)


def _log_determinant(xp: Any, x: Any) -> tuple[Any, Any]:
    sign, log = xp.linalg.slogdet(x)
    return xp.asarray(sign).astype(x.dtype), xp.asarray(log).astype(x.dtype)


def _log_determinant_gradient(dsign: Tensor, dlog: Tensor, sign: Tensor, log: Tensor, x: Tensor) -> Tensor:
    """dA = (Re dlog + i Im (dsign sign*)) A⁻ᴴ: the sign of a complex determinant turns, that of a real one does not."""
    if x.dtype.is_complex:
        turn = dsign * raw.Conj(sign)
        dlog = real_part(dlog) + turn - real_part(turn)
    return _over_matrix(dlog) * raw.MatrixInverse(x, adjoint=True)


define(
    "LogMatrixDeterminant(input: T; T: factorable) -> (sign: T, log_abs_determinant: T)",
    shape=lambda x: [_batch(x), _batch(x)],
    gradient=_log_determinant_gradient,
    kernel=_log_determinant,
    examples=_matrix_examples,
)


# Solves


def _solve(xp: Any, a: Any, b: Any, *, adjoint: bool) -> Any:
    return xp.linalg.solve(_flipped(xp, a) if adjoint else a, b).astype(b.dtype)


def _solve_gradient(dy: Tensor, y: Tensor, a: Tensor, b: Tensor, *, node: Any) -> tuple[Tensor, Tensor]:
    """dB = A⁻ᴴ dY, dA = -dB Yᴴ; with A and its adjoint exchanged where the adjoint was solved with."""
    flag = node.attrs["adjoint"]
    db = raw.MatrixSolve(a, dy, adjoint=not flag)
    return (-product(y, db, right=True) if flag else -product(db, y, right=True)), db


define(
    "MatrixSolve(matrix: T, rhs: T; adjoint: bool = false, T: factorable) -> (output: T)",
    shape=lambda a, b: b.shape,
    gradient=_solve_gradient,
    kernel=_solve,
    examples=lambda draw: [
        call(a := _square(draw), draw.normal(len(a), 2)),
        call(a, draw.normal(len(a), 1), adjoint=True),
        call(a := _square(draw, domain="complex"), draw.complex(len(a), 2), adjoint=True),
    ],
)


def _triangle(xp: Any, a: Any, lower: bool) -> Any:
    return xp.tril(a) if lower else xp.triu(a)


def _triangular_solve(xp: Any, a: Any, b: Any, *, lower: bool, adjoint: bool) -> Any:
    """x of Lx = b by LU; NumPy refuses a zero on the diagonal, where substitution gives infinities and NaN."""
    half = _triangle(xp, a, lower)
    half = _flipped(xp, half) if adjoint else half
    try:
        return xp.linalg.solve(half, b).astype(b.dtype)
    except np.linalg.LinAlgError:
        return _substitute(half, b, forward=lower != adjoint).astype(b.dtype)


def _substitute(a: Any, b: Any, *, forward: bool) -> Any:
    """x of a triangular system row by row, dividing by whatever stands on the diagonal."""
    x = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), b.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(a.shape[-1]) if forward else reversed(range(a.shape[-1])):
            done = slice(0, i) if forward else slice(i + 1, None)
            known = (a[..., i, done, None] * x[..., done, :]).sum(axis=-2)
            x[..., i, :] = (b[..., i, :] - known) / a[..., i, i, None]
    return x


def _triangular_shape(a: Tensor, b: Tensor) -> Shape:
    if a.shape is None or b.shape is None:
        return None
    batch = shapes.broadcast(a.shape[:-2], b.shape[:-2])
    return None if batch is None else (*batch, *b.shape[-2:])


def _triangular_gradient(
    dy: Tensor, y: Tensor, a: Tensor, b: Tensor, *, lower: bool, node: Any
) -> tuple[Tensor, Tensor]:
    """As for MatrixSolve, kept to the triangle that is read."""
    flag = node.attrs["adjoint"]
    db = raw.MatrixTriangularSolve(a, dy, lower=lower, adjoint=not flag)
    da = -product(y, db, right=True) if flag else -product(db, y, right=True)
    return raw.MatrixBandPart(da, *((-1, 0) if lower else (0, -1))), db


define(
    "MatrixTriangularSolve(matrix: T, rhs: T; lower: bool = true, adjoint: bool = false, T: inexact) -> (output: T)",
    shape=_triangular_shape,
    gradient=_triangular_gradient,
    kernel=_triangular_solve,
    broadcasts=True,
    examples=lambda draw: [
        call(a := _square(draw), draw.normal(len(a), 2), lower=bool(draw.size(0, 1)), adjoint=bool(draw.size(0, 1))),
        call(a := _square(draw, domain="complex"), draw.complex(len(a), 2), adjoint=True),
        call(a := _square(draw), draw.normal(2, len(a), 2)),
    ],
)


# Factors


def _cholesky(xp: Any, x: Any) -> Any:
    """L of the lower triangle of A; NaN for a matrix that is not positive definite, and for that matrix alone."""
    whole = xp.tril(x) + _flipped(xp, xp.tril(x, -1))
    try:
        return xp.linalg.cholesky(whole).astype(x.dtype)
    except np.linalg.LinAlgError:
        return np.stack([_factor_or_nan(matrix) for matrix in whole.reshape(-1, *x.shape[-2:])]).reshape(x.shape)


def _factor_or_nan(x: Any) -> Any:
    try:
        return np.linalg.cholesky(x).astype(x.dtype)
    except np.linalg.LinAlgError:
        return np.tril(np.full_like(x, np.nan))


def _cholesky_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """S = L⁻ᴴ Φ(Lᴴ dL) L⁻¹ with Φ the lower triangle and half the diagonal; dA = (S + Sᴴ) / 2.   Murray 2016."""
    inner = raw.MatrixBandPart(product(y, dy, left=True), -1, 0)
    inner = raw.MatrixSetDiag(inner, raw.MatrixDiagPart(inner) * 0.5)
    once = raw.MatrixTriangularSolve(y, inner, adjoint=True)  # L⁻ᴴ Φ
    twice = adjoint(raw.MatrixTriangularSolve(y, adjoint(once), adjoint=True))  # (L⁻ᴴ Φᴴ L⁻¹)ᴴ
    return (twice + adjoint(twice)) * 0.5


def _definite(draw: Any, domain: str = "normal") -> Any:
    x = _square(draw, domain=domain)
    return x @ x.conj().T


def symmetric_examples(draw: Any, factor: Callable[[Tensor], Tensor], *domains: str) -> list[Example]:
    """Only one triangle is read, but the gradient is symmetric: it agrees with differences of symmetric matrices."""
    return [
        within(lambda x: [factor((x + adjoint(x)) * 0.5)], np.stack([_definite(draw, domain)] * 2))
        for domain in domains
    ]


define(
    "Cholesky(input: T; T: factorable) -> (output: T)",
    shape=same_shape,
    gradient=_cholesky_gradient,
    kernel=_cholesky,
    examples=lambda draw: [
        call(_definite(draw, "complex"), differences=False),
        *symmetric_examples(draw, raw.Cholesky, "normal", "complex"),
    ],
)


# The gradient of the Cholesky factor as an op of its own


def _of_factor(xp: Any, factor: Any, dy: Any) -> Any:
    lower = xp.tril(factor)
    inner = xp.tril(_flipped(xp, lower) @ dy)
    inner = inner - xp.eye(inner.shape[-1], dtype=inner.dtype) * inner * 0.5
    once = xp.linalg.solve(_flipped(xp, lower), inner)
    twice = _flipped(xp, xp.linalg.solve(_flipped(xp, lower), _flipped(xp, once)))
    return ((twice + _flipped(xp, twice)) * 0.5).astype(dy.dtype)


def _of_factor_gradient(cotangent: Tensor, y: Tensor, factor: Tensor, dy: Tensor, *, sweep: Any) -> list[Any]:
    """Through the rule of Cholesky, which is the formula of the op."""

    def formula(factor: Tensor, dy: Tensor) -> list[Tensor]:
        return [_cholesky_gradient(dy, raw.MatrixBandPart(factor, -1, 0), dy)]

    return through(formula, [cotangent], [factor, dy], sweep)


def factor_examples(draw: Any) -> list[Example]:
    """Factors and cotangents."""
    return [call(x, draw.normal(*x.shape)) for x in (_square(draw), _square(draw, draw.size()))]


define(
    "CholeskyGrad(l: T, grad: T; T: float16|float32|float64) -> (output: T)",
    shape=same_shape,
    gradient=_of_factor_gradient,
    kernel=_of_factor,
    examples=factor_examples,
)


def eigen(xp: Any, x: Any, *, compute_v: bool) -> tuple[Any, Any]:
    """Eigenvalues [..., n], rising, and eigenvectors [..., n, n] in columns, of the matrix that the lower triangle says."""
    values, vectors = xp.linalg.eigh(xp.tril(x) + _flipped(xp, xp.tril(x, -1)))
    kept = vectors if compute_v else xp.zeros((0,), x.dtype)
    return values.astype(x.dtype), kept.astype(x.dtype)


def eigen_gradient(de: Tensor, dv: Tensor, e: Tensor, v: Tensor, x: Tensor, *, compute_v: bool) -> Tensor:
    """dA = V (diag de + F ∘ Vᴴ dV) Vᴴ with F_ij = 1 / (e_j - e_i), as the gradient of the lower triangle."""
    if compute_v:
        gaps = raw.ExpandDims(e, np.int32(-2)) - raw.ExpandDims(e, np.int32(-1))
        inner = raw.MatrixDiag(de) + raw.DivNoNan(product(v, dv, left=True), gaps)
    else:
        _, v = raw.SelfAdjointEigV2.outputs(x)
        inner = raw.MatrixDiag(de)
    dx = product(v, product(inner, v, right=True))
    lower = raw.MatrixBandPart(dx + adjoint(dx), -1, 0)
    return raw.MatrixSetDiag(lower, raw.MatrixDiagPart(lower) * 0.5)


def eigen_input(draw: Any) -> Any:
    """Eigenvalues far from each other; vectors are unique up to their sign, and LAPACK's are steady."""
    return np.diag(draw.distinct(n := draw.size(0, 3))) * 4 + draw.unit(n, n) * 0.1


def _eigen_phases(x: Tensor) -> list[Tensor]:
    """Of complex vectors the squares of sizes, which do not depend on their phases."""
    e, v = raw.SelfAdjointEigV2.outputs(x)
    return [e, v * raw.Conj(v)]


define(
    "SelfAdjointEigV2(input: T; compute_v: bool = true, T: factorable) -> (e: T, v: T)",
    shape=lambda x, *, compute_v: [None if x.shape is None else x.shape[:-1], x.shape if compute_v else None],
    gradient=eigen_gradient,
    kernel=eigen,
    examples=lambda draw: [
        call(eigen_input(draw), compute_v=False),
        call(eigen_input(draw)),
        call(eigen_input(draw) + 0.05j, compute_v=False),
        within(_eigen_phases, np.stack([eigen_input(draw) + 0.05j] * 2)),
    ],
)
