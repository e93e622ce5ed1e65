"""Least squares: the X of least |A X - B|² + λ |X|²."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import concat, part, shape_of
from gradserve.ops.linalg import adjoint, finite_or_zero, product
from gradserve.ops.precision import widen


def _shape(a: Tensor, b: Tensor, penalty: Tensor) -> Shape:
    if a.shape is None or b.shape is None:
        return None
    return (*b.shape[:-2], a.shape[-1], b.shape[-1])


def _flipped(xp: Any, x: Any) -> Any:
    return xp.conj(xp.swapaxes(x, -1, -2))


def _solve(xp: Any, a: Any, b: Any, penalty: Any, *, fast: bool) -> Any:
    """By the normal equations of the smaller side where `fast`; else by singular values, and λ is not used."""
    wide_a, wide_b = widen(xp, a), widen(xp, b)
    flipped = _flipped(xp, wide_a)
    rows, columns = a.shape[-2:]
    if not fast:
        cut = 10 * max(rows, columns) * float(np.finfo(wide_a.dtype).eps)
        known, finite = finite_or_zero(xp, wide_a)
        x = xp.matmul(xp.linalg.pinv(known, rcond=cut), wide_b)
        return xp.where(finite, x, float("nan")).astype(b.dtype)
    shift = xp.eye(min(rows, columns), dtype=wide_a.dtype) * xp.asarray(penalty).astype(wide_a.dtype)
    if rows >= columns:
        x = xp.linalg.solve(xp.matmul(flipped, wide_a) + shift, xp.matmul(flipped, wide_b))
    else:
        x = xp.matmul(flipped, xp.linalg.solve(xp.matmul(wide_a, flipped) + shift, wide_b))
    return x.astype(b.dtype)


def _first_rows(x: Tensor, like: Tensor) -> Tensor:
    """As many rows of x as `like` has."""
    zeros = raw.ZerosLike(shape_of(x)) if isinstance(shape_of(x), Tensor) else np.zeros(len(shape_of(x)), np.int32)
    sizes = concat(part(shape_of(x), 0, -2), part(shape_of(like), -2, -1), part(shape_of(x), -1))
    return raw.Slice(x, zeros, sizes)


def _gradient(dx: Tensor, x: Tensor, a: Tensor, b: Tensor, penalty: Tensor, *, fast: bool) -> Any:
    """dA = -W Xᴴ + (B - A X) (A⁺ W)ᴴ + A⁺ᴴ X (dX - Aᴴ W)ᴴ and dB = W, with W = A⁺ᴴ dX.

    Golub and Pereyra 1973. With a penalty it is the plain problem with √λ 1 below A and zeros below B. No gradient
    for λ at any order, as TensorFlow has none at the first.
    """
    penalised = fast and not _is_zero(penalty)
    whole_a, whole_b = (a, b) if not penalised else _extended(a, b, x, penalty)
    flipped = adjoint(whole_a)
    w = _pseudo(flipped, dx)
    da = (
        product(whole_b - product(whole_a, x), _pseudo(whole_a, w), right=True)
        + product(_pseudo(flipped, x), dx - product(flipped, w), right=True)
        - product(w, x, right=True)
    )
    return (_first_rows(da, a), _first_rows(w, b), None) if penalised else (da, w, None)


def _is_zero(penalty: Tensor) -> bool:
    known = static.value(penalty)
    return known is not None and float(known) == 0


def _pseudo(a: Tensor, b: Tensor) -> Tensor:
    """A⁺ B."""
    return raw.MatrixSolveLs(a, b, np.float64(0), fast=False)


def _extended(a: Tensor, b: Tensor, x: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """[A; √λ 1] and [B; 0]."""
    root = raw.Cast(raw.Sqrt(raw.StopGradient(penalty)), DstT=a.dtype)
    ones = raw.OnesLike(raw.MatrixDiagPart(product(a, a, left=True)))
    below = raw.MatrixDiag(ones * root)
    return raw.ConcatV2([a, below], np.int32(-2)), raw.ConcatV2([b, raw.ZerosLike(x)], np.int32(-2))


def _examples(draw: Any, *, turned_too: bool = True) -> list[Example]:
    rows, columns = draw.pick([(3, 2), (2, 3), (2, 2), (1, 1)])
    a = np.eye(rows, columns) * 3 + draw.unit(rows, columns)
    b = draw.normal(rows, draw.size(1, 2))
    held = ("l2_regularizer",)
    turned, penalty = a + 0.3j * draw.unit(rows, columns), np.array(draw.pick([0.0, 0.7]))
    return [
        call(a, b, penalty, fast=draw.pick([True, False]), held=held),
        call(np.stack([a, a * 2]), np.stack([b, b + 1]), penalty, held=held),
        *([call(turned, b + 0.5j, penalty, held=held)] if turned_too else []),
    ]


for _name, _types in (
    ("MatrixSolveLs", "complex128|complex64|float16|float32|float64"),
    ("BatchMatrixSolveLs", "float32|float64"),
):
    define(
        f"{_name}(matrix: T, rhs: T, l2_regularizer: float64; T: {_types}, fast: bool = true) -> (output: T)",
        shape=_shape,
        gradient=_gradient,
        kernel=_solve,
        examples=lambda draw, turned_too="complex" in _types: _examples(draw, turned_too=turned_too),
    )
