"""The names that batches of matrices had before every linear-algebra op took them: BatchCholesky and the like.

Each has the rules of its later namesake. `SelfAdjointEig` and its batch form give the eigenvalues as a row above the
eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, NoRule, Op, call, define, lookup, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import concat, part, shape_of
from gradserve.ops import (
    diagonal,  # noqa: F401  # pyright: ignore[reportUnusedImport]  (defines later names)
    fft,  # noqa: F401  # pyright: ignore[reportUnusedImport]  (as well)
    linalg,
)

Examples = Callable[[Any], list[Example]]


def _again(text: str, later: Op, examples: Examples) -> None:
    """Defines an op with the rules of another."""
    define(
        text,
        shape=None if later.shape is None else later.shape.function,
        gradient=later.gradient if isinstance(later.gradient, NoRule) else later.gradient.function,
        kernel=None if later.kernel is None else later.kernel.function,
        host=tuple(later.host),
        broadcasts=later.broadcasts,
        holomorphic=later.holomorphic,
        dynamic=later.dynamic,
        examples=examples,
    )


def _matrices(draw: Any) -> list[Example]:
    return [call(_regular(draw, *draw.shape(0, 1)))]


def _systems(draw: Any) -> list[Example]:
    x = _regular(draw, *draw.shape(0, 1))
    return [call(x, draw.normal(*x.shape[:-1], draw.size()), adjoint=draw.pick([True, False]))]


def _regular(draw: Any, *batch: int) -> Any:
    n = draw.size(0, 3)
    return draw.normal(*batch, n, n) + 4 * np.eye(n)


def _signals(count: int) -> Examples:
    return lambda draw: [call(draw.complex(draw.size(), *(draw.size(0, 3) for _ in range(count))).astype(np.complex64))]


_REAL = "T: float32|float64"
_ADJOINT = f"adjoint: bool = false, {_REAL}"
_LINES: tuple[tuple[str, Examples], ...] = (
    (
        f"BatchCholesky(input: T; {_REAL}) -> (output: T)",
        lambda draw: linalg.symmetric_examples(draw, raw.BatchCholesky, "normal"),
    ),
    (f"BatchCholeskyGrad(l: T, grad: T; {_REAL}) -> (output: T)", linalg.factor_examples),
    (
        f"BatchSelfAdjointEigV2(input: T; compute_v: bool = true, {_REAL}) -> (e: T, v: T)",
        lambda draw: [call(linalg.eigen_input(draw), compute_v=draw.pick([True, False]))],
    ),
    (f"BatchMatrixInverse(input: T; {_ADJOINT}) -> (output: T)", _matrices),
    ("BatchMatrixDeterminant(input: T; T: complex128|complex64|float32|float64) -> (output: T)", _matrices),
    (f"BatchMatrixSolve(matrix: T, rhs: T; {_ADJOINT}) -> (output: T)", _systems),
    (f"BatchMatrixTriangularSolve(matrix: T, rhs: T; lower: bool = true, {_ADJOINT}) -> (output: T)", _systems),
    ("BatchMatrixDiag(diagonal: T; T: type) -> (output: T)", lambda draw: [call(draw.normal(*draw.shape(1, 3)))]),
    (
        "BatchMatrixDiagPart(input: T; T: type) -> (diagonal: T)",
        lambda draw: [call(draw.normal(*draw.shape(0, 1), draw.size(1), draw.size(1)))],
    ),
    (
        "BatchMatrixSetDiag(input: T, diagonal: T; T: type) -> (output: T)",
        lambda draw: [call(draw.normal(2, 3, n := draw.size(1, 4)), draw.normal(2, min(3, n)))],
    ),
    (
        "BatchMatrixBandPart(input: T, num_lower: int64, num_upper: int64; T: type) -> (band: T)",
        lambda draw: [call(draw.normal(*draw.shape(0, 1), draw.size(), 3), np.int64(draw.size(0, 2) - 1), np.int64(1))],
    ),
    *(
        (f"Batch{way}FFT{axes}(input: complex64) -> (output: complex64)", _signals(count))
        for way in ("", "I")
        for count, axes in ((1, ""), (2, "2D"), (3, "3D"))
    ),
)
for _line, _examples in _LINES:
    _again(_line, lookup(_line.partition("(")[0].removeprefix("Batch")), _examples)


# Eigenvalues as a row above the eigenvectors


def _stacked_shape(x: Tensor) -> Shape:
    if x.shape is None:
        return None
    count = shapes.merge_dimension(*x.shape[-2:])
    return (*x.shape[:-2], None if count is None else count + 1, count)


def _stacked(xp: Any, x: Any) -> Any:
    e, v = linalg.eigen(xp, x, compute_v=True)
    return xp.concatenate([e[..., None, :], v], axis=-2)


def _stacked_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """That of SelfAdjointEigV2, of the first row and of the others."""
    count = part(shape_of(x), -1)
    sizes, axis = concat(np.ones(1, np.int32), count), np.int32(-2)
    (de, dv), (e, v) = (raw.SplitV.outputs(whole, sizes, axis, num_split=2) for whole in (dy, y))
    de, e = (raw.Squeeze(row, squeeze_dims=[-2]) for row in (de, e))
    return linalg.eigen_gradient(de, dv, e, v, x, compute_v=True)


for _name, _types in (("SelfAdjointEig", "float16|float32|float64"), ("BatchSelfAdjointEig", "float32|float64")):
    define(
        f"{_name}(input: T; T: {_types}) -> (output: T)",
        shape=_stacked_shape,
        gradient=_stacked_gradient,
        kernel=_stacked,
        # Only the lower triangle is read, and the gradient is that triangle's.
        examples=lambda draw: [
            call(linalg.eigen_input(draw)),
        ],
    )
