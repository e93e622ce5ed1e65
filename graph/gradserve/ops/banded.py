"""Banded matrices, kept by their diagonals: tridiagonal products and solves, banded triangular solves.

The solves run LAPACK's banded routines a matrix at a time, on the host: time and memory grow with the band only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import concat, part, shape_of
from gradserve.ops.linalg import product

# Diagonals of a tridiagonal matrix: above (its last entry is not used), main, and below (its first is not used).


def _shifted(x: Tensor, axis: int, by: int) -> Tensor:
    """x moved by one along an axis counted from the end, zeros moving in: `by` is 1 or -1."""
    last = np.int32(axis)
    count = _length(x, axis)
    edge = np.ones(1, np.int32)
    if by > 0:
        kept, _ = raw.SplitV.outputs(x, concat(_less(count), edge), last, num_split=2)
        return raw.ConcatV2([raw.ZerosLike(_edge(x, count, last)), kept], last)
    _, kept = raw.SplitV.outputs(x, concat(edge, _less(count)), last, num_split=2)
    return raw.ConcatV2([kept, raw.ZerosLike(_edge(x, count, last))], last)


def _length(x: Tensor, axis: int) -> Any:
    return part(shape_of(x), axis, axis + 1 or None)


def _less(count: Any) -> Any:
    return count - 1


def _edge(x: Tensor, count: Any, axis: Any) -> Tensor:
    first, _ = raw.SplitV.outputs(x, concat(np.ones(1, np.int32), _less(count)), axis, num_split=2)
    return first


def _banded_solves(bands: Any, lower: int, upper: int, b: Any) -> Any:
    """X of A X = B for each matrix; `bands` [..., lower + upper + 1, M] in LAPACK's order. NaN where A is singular."""
    from scipy.linalg import solve_banded

    batch = np.broadcast_shapes(bands.shape[:-2], b.shape[:-2])
    bands, b = np.broadcast_to(bands, (*batch, *bands.shape[-2:])), np.broadcast_to(b, (*batch, *b.shape[-2:]))
    result = np.full(b.shape, np.nan, b.dtype)
    for place in np.ndindex(batch):
        if not b[place].size:
            continue
        try:
            result[place] = solve_banded((lower, upper), bands[place], b[place], check_finite=False)
        except np.linalg.LinAlgError:
            continue
    return result


# Tridiagonal


def _tridiagonal_solve(xp: Any, diagonals: Any, b: Any, *, perturb_singular: bool, node: Any) -> Any:
    above, main, below = (diagonals[..., k, :] for k in range(3))
    bands = np.stack([np.roll(above, 1, axis=-1), main, np.roll(below, -1, axis=-1)], axis=-2)
    if b.shape[-2] == 1:
        return b / main[..., None]
    x = _banded_solves(bands, 1, 1, b)
    if perturb_singular and np.isnan(x).any() and np.isfinite(diagonals).all() and np.isfinite(b).all():
        raise InvalidArgument(f"{node.name}: a matrix is singular, and perturb_singular is not supported: solve it with"
                              " perturb_singular=False, which gives NaN.", node=node.name)  # fmt: skip
    return x


def _transposed(diagonals: Tensor) -> Tensor:
    above, main, below = raw.Unpack.outputs(diagonals, num=3, axis=-2)
    return raw.Pack([_shifted(below, -1, -1), main, _shifted(above, -1, 1)], axis=-2)


def _tridiagonal_gradient(
    dx: Tensor, x: Tensor, diagonals: Tensor, b: Tensor, *, partial_pivoting: bool, perturb_singular: bool
) -> tuple[Tensor, Tensor]:
    """dB = A⁻ᵀ dX, dA = -dB Xᵀ on the three diagonals."""
    db = raw.TridiagonalSolve(
        _transposed(diagonals), dx, partial_pivoting=partial_pivoting, perturb_singular=perturb_singular
    )
    last = np.array([-1], np.int32)
    above, main, below = (raw.Sum(db * other, last) for other in (_shifted(x, -2, -1), x, _shifted(x, -2, 1)))
    return -raw.Pack([above, main, below], axis=-2), db


def _tridiagonal_examples(draw: Any) -> list[Example]:
    count, columns = draw.size(0, 4), draw.size(0, 2)
    diagonals = draw.unit(3, count)
    diagonals[1] += 3
    return [
        call(diagonals, draw.normal(count, columns), partial_pivoting=bool(draw.size(0, 1))),
        call(np.stack([diagonals, diagonals * 2]), draw.normal(2, count, columns)),
        call(diagonals + 0.5j, draw.complex(count, columns)),
    ]


define(
    "TridiagonalSolve(diagonals: T, rhs: T; partial_pivoting: bool = true, perturb_singular: bool = false,"
    " T: complex128|complex64|float32|float64) -> (output: T)",
    shape=lambda diagonals, b: b.shape,
    gradient=_tridiagonal_gradient,
    kernel=_tridiagonal_solve,
    holomorphic=True,
    dynamic=True,
    examples=_tridiagonal_examples,
)


def _tridiagonal_product(xp: Any, above: Any, main: Any, below: Any, x: Any) -> Any:
    """The last entry above and the first below lie outside of the matrix: they may be anything, NaN too."""
    edge = xp.zeros_like(x[..., :1, :])
    column = [xp.swapaxes(diagonal, -1, -2) for diagonal in (above, main, below)]
    after = xp.concatenate([column[0][..., :-1, :] * x[..., 1:, :], edge], axis=-2)
    before = xp.concatenate([edge, column[2][..., 1:, :] * x[..., :-1, :]], axis=-2)
    return after + column[1] * x + before


def _product_gradient(
    dy: Tensor, y: Tensor, above: Tensor, main: Tensor, below: Tensor, x: Tensor
) -> tuple[Tensor, ...]:
    """dX = Aᵀ dY; each diagonal gets the sum over the columns of dY times the entries of X that it multiplied."""
    last, row = np.array([-1], np.int32), np.int32(-2)
    diagonals = (
        raw.ExpandDims(raw.Sum(dy * other, last), row) for other in (_shifted(x, -2, -1), x, _shifted(x, -2, 1))
    )
    return (*diagonals, raw.TridiagonalMatMul(_shifted(below, -1, -1), main, _shifted(above, -1, 1), dy))


def _product_examples(draw: Any) -> list[Example]:
    count, columns = draw.size(0, 4), draw.size(0, 2)
    kind = draw.pick([draw.normal, draw.complex])
    return [call(*(kind(*lead, 1, count) for _ in range(3)), kind(*lead, count, columns)) for lead in ((), (2,))]


define(
    "TridiagonalMatMul(superdiag: T, maindiag: T, subdiag: T, rhs: T; T: complex128|complex64|float32|float64)"
    " -> (output: T)",
    shape=lambda above, main, below, x: x.shape,
    gradient=_product_gradient,
    kernel=_tridiagonal_product,
    holomorphic=True,
    examples=_product_examples,
)


# Banded triangular: `matrix` [..., K, M] has the main diagonal first (lower) or last (upper). Entry j of diagonal k
# stands in row j of A if lower, so its first k are not used; in column j - k if upper, so its last k are not used.


def _banded_solve(xp: Any, bands: Any, b: Any, *, lower: bool, adjoint: bool) -> Any:
    count = bands.shape[-2]
    if adjoint:  # the diagonals of the adjoint stand where LAPACK wants them
        ordered, lower = np.conj(bands[..., ::-1, :]), not lower
    else:
        shifts = [-k for k in range(count)] if lower else [count - 1 - k for k in range(count)]
        ordered = np.stack([np.roll(bands[..., k, :], shift, axis=-1) for k, shift in enumerate(shifts)], axis=-2)
    return _banded_solves(ordered, *((count - 1, 0) if lower else (0, count - 1)), b)


def _banded_shape(bands: Tensor, b: Tensor) -> Shape:
    if bands.shape is None or b.shape is None:
        return None
    batch = shapes.broadcast(bands.shape[:-2], b.shape[:-2])
    return None if batch is None else (*batch, *b.shape[-2:])


def _banded_gradient(
    dx: Tensor, x: Tensor, bands: Tensor, b: Tensor, *, lower: bool, node: Any
) -> tuple[Tensor, Tensor]:
    """dB = A⁻ᴴ dX, dA = -dB Xᴴ on the diagonals that are kept; exchanged where the adjoint was solved with."""
    flag = node.attrs["adjoint"]
    db = raw.BandedTriangularSolve(bands, dx, lower=lower, adjoint=not flag)
    da = -product(x, db, right=True) if flag else -product(db, x, right=True)
    count = _length(bands, -2)
    zero = np.zeros(1, np.int32)
    k = concat(1 - count, zero) if lower else concat(zero, count - 1)
    padding = np.zeros((), x.dtype.numpy)
    kept = raw.MatrixDiagPartV3(da, k, padding, align="LEFT_RIGHT")
    return raw.Reshape(kept, concat(part(shape_of(da), 0, -2), count, _length(da, -1))), db


def _banded_examples(draw: Any) -> list[Example]:
    count = draw.size(0, 4)
    width = draw.size(1, max(count, 1))
    kind = draw.pick([draw.unit, draw.complex])
    lower, adjoint = bool(draw.size(0, 1)), bool(draw.size(0, 1))
    bands = kind(width, count)
    bands[0 if lower else -1] += 3
    return [
        call(bands, kind(*lead, count, 2), lower=lower, adjoint=adjoint) for lead in ((), (2,))
    ]  # fmt: skip


define(
    "BandedTriangularSolve(matrix: T, rhs: T; lower: bool = true, adjoint: bool = false,"
    " T: complex128|complex64|float16|float32|float64) -> (output: T)",
    shape=_banded_shape,
    gradient=_banded_gradient,
    kernel=_banded_solve,
    broadcasts=True,
    dynamic=True,
    examples=_banded_examples,
)
