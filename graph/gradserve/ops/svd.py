"""The singular value decomposition of batches of matrices: A = U diag(s) Vᴴ."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops.elementwise import real_part
from gradserve.ops.linalg import adjoint, finite_or_zero, product
from gradserve.ops.precision import widen


def _factors_shape(x: Tensor, *, compute_uv: bool, full_matrices: bool) -> list[Shape]:
    """s is [..., k] with k = min(m, n); u is [..., m, k] and v [..., n, k], or square with full_matrices."""
    if x.shape is None:
        return [None, None, None] if compute_uv else [None, (0,), (0,)]
    *batch, rows, columns = x.shape
    inner = None if rows is None or columns is None else min(rows, columns)
    if not compute_uv:
        return [(*batch, inner), (0,), (0,)]
    left, right = (rows, columns) if full_matrices else (inner, inner)
    return [(*batch, inner), (*batch, rows, left), (*batch, columns, right)]


def _factors(xp: Any, x: Any, *, compute_uv: bool, full_matrices: bool) -> tuple[Any, Any, Any]:
    """s, U and V; NaN for a matrix that holds an infinity or NaN."""
    wide, finite = finite_or_zero(xp, widen(xp, x))

    def said(factor: Any, known: Any) -> Any:
        return xp.where(known, factor, float("nan")).astype(x.dtype)

    if not compute_uv:
        s = xp.linalg.svd(wide, compute_uv=False)
        return said(s, finite[..., 0]), xp.zeros((0,), x.dtype), xp.zeros((0,), x.dtype)
    u, s, vh = xp.linalg.svd(wide, full_matrices=full_matrices)
    return said(s, finite[..., 0]), said(u, finite), said(xp.conj(xp.swapaxes(vh, -1, -2)), finite)


def _split_columns(x: Tensor, count: Tensor | Any) -> tuple[Tensor, Tensor]:
    """The first `count` (a vector of one) columns of x, and the others."""
    zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
    first = raw.StridedSlice(x, _lengthened(zero), _lengthened(count), _lengthened(one), ellipsis_mask=1, begin_mask=2)
    others = raw.StridedSlice(
        x, _lengthened(count), _lengthened(zero), _lengthened(one), ellipsis_mask=1, end_mask=2
    )  # fmt: skip
    return first, others


def _lengthened(entry: Any) -> Any:
    """An entry of a slice of the last axis, behind the ellipsis."""
    if isinstance(entry, Tensor):
        return raw.ConcatV2([np.zeros(1, np.int32), entry], np.int32(0))
    return np.concatenate([np.zeros(1, np.int32), entry])


def _without_own_part(dx: Tensor, x: Tensor) -> Tensor:
    """(1 - X Xᴴ) dX: what moves the space that the columns of X span."""
    return dx - product(x, product(x, dx, left=True))


def _gradient(
    ds: Tensor, du: Tensor, dv: Tensor, s: Tensor, u: Tensor, v: Tensor, x: Tensor,
    *, compute_uv: bool, full_matrices: bool,
) -> Tensor:  # fmt: skip
    """dA = U (diag ds + J S + S K) Vᴴ + (1 - U Uᴴ) dU S⁻¹ Vᴴ + U S⁻¹ dVᴴ (1 - V Vᴴ).

    J = F ∘ (Uᴴ dU - dUᴴ U), K = F ∘ (Vᴴ dV - dVᴴ V), F_ij = 1 / (s_j² - s_i²), 0 for equal ones.   Townsend 2016.
    For complex numbers U S⁻¹ i Im(Uᴴ dU)ᵈⁱᵃᵍ Vᴴ is added, in the form of Wan and Zhang 2019. Columns U₂ beyond the
    first k only complete U₁: a change of U₁ turns them the other way, so dU₁ becomes dU₁ - U₂ dU₂ᴴ U₁.
    """
    ds = real_part(ds)  # as s is
    if not compute_uv:
        _, u, v = raw.Svd.outputs(x)
        return product(u, product(raw.MatrixDiag(ds), v, right=True))
    if full_matrices:
        count = part(shape_of(s), -1)
        (u, rest_u), (du, rest_du) = _split_columns(u, count), _split_columns(du, count)
        (v, rest_v), (dv, rest_dv) = _split_columns(v, count), _split_columns(dv, count)
        du = du - product(rest_u, product(rest_du, u, left=True))
        dv = dv - product(rest_v, product(rest_dv, v, left=True))
    squares = raw.Square(s)
    gaps = raw.ExpandDims(squares, np.int32(-2)) - raw.ExpandDims(squares, np.int32(-1))
    own_u, own_v = product(u, du, left=True), product(v, dv, left=True)
    turn_u, turn_v = raw.DivNoNan(own_u - adjoint(own_u), gaps), raw.DivNoNan(own_v - adjoint(own_v), gaps)
    row, column = raw.ExpandDims(s, np.int32(-2)), raw.ExpandDims(s, np.int32(-1))
    inner = raw.MatrixDiag(ds) + turn_u * row + turn_v * column
    if x.dtype.is_complex:
        phases = raw.MatrixDiagPart(own_v)
        inner = inner + raw.MatrixDiag(raw.DivNoNan((raw.Conj(phases) - phases) * 0.5, s))
    dx = product(product(u, inner), v, right=True)
    rows, columns = (None, None) if x.shape is None else x.shape[-2:]
    if rows is None or columns is None or rows > columns:
        dx = dx + product(raw.DivNoNan(_without_own_part(du, u), row), v, right=True)
    if rows is None or columns is None or rows < columns:
        dx = dx + product(u, raw.DivNoNan(_without_own_part(dv, v), row), right=True)
    return dx


def _examples(draw: Any) -> list[Example]:
    """Singular values far from each other and from 0; vectors are unique up to their sign, and LAPACK's are steady."""
    rows, columns = draw.size(0, 4), draw.size(0, 4)
    x = draw.unit(rows, columns) * 0.2
    np.fill_diagonal(x, 1.5 + np.arange(min(rows, columns)))
    return [
        call(x),
        call(x, compute_uv=False),
        call(np.stack([x, x + 1]), compute_uv=False),
        call(x, full_matrices=True, differences=abs(rows - columns) < 2),
        call(x + 0.1j * draw.unit(rows, columns), compute_uv=False),
    ]


for _name, _types in (
    ("Svd", "complex128|complex64|float16|float32|float64"),
    ("BatchSvd", "complex128|complex64|float32|float64"),
):
    define(
        f"{_name}(input: T; compute_uv: bool = true, full_matrices: bool = false, T: {_types}) -> (s: T, u: T, v: T)",
        shape=_factors_shape,
        gradient=_gradient,
        kernel=_factors,
        examples=_examples,
    )
