"""Functions of square matrices: exponential, logarithm, square root.

The derivative of f at A in the direction E is the upper right block of f([[A, E], [0, A]])   (Mathias 1996); f of the
adjoint is the adjoint of f, so the gradient is that block at Aᴴ in the direction dY. It is made of f again, and so
are the derivatives of every order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops.linalg import adjoint
from gradserve.ops.precision import widen


def _square(x: Tensor) -> Shape:
    if x.shape is not None:
        shapes.merge_dimension(*x.shape[-2:])
    return x.shape


def _each_matrix(function: Callable[[Any], Any]) -> Any:
    """A kernel that applies SciPy's function to each matrix; NaN where the result is not of the matrix's dtype."""

    def kernel(xp: Any, x: Any) -> Any:
        result = np.full_like(widen(xp, x), np.nan)
        for place in np.ndindex(x.shape[:-2]):
            matrix = widen(xp, x[place])
            if matrix.size and np.isfinite(matrix).all():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of singular matrices: infinity or NaN in the result says it
                    value = function(matrix)
                if value.dtype.kind == matrix.dtype.kind:
                    result[place] = value
        return result.astype(x.dtype)

    return kernel


def _exponential(x: Any) -> Any:
    from scipy.linalg import expm

    return expm(x)


def _logarithm(x: Any) -> Any:
    from scipy.linalg import logm

    return logm(x)


def _square_root(x: Any) -> Any:
    from scipy.linalg import sqrtm

    return sqrtm(x)


def _gradient(name: str) -> Any:
    def rule(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
        flipped = adjoint(x)
        rows, columns = np.int32(-2), np.int32(-1)
        upper = raw.ConcatV2([flipped, dy], columns)
        lower = raw.ConcatV2([raw.ZerosLike(flipped), flipped], columns)
        whole = getattr(raw, name)(raw.ConcatV2([upper, lower], rows))
        above, _ = raw.Split.outputs(rows, whole, num_split=2)
        _, block = raw.Split.outputs(columns, above, num_split=2)
        return block

    return rule


def _examples(draw: Any, *, real: bool) -> list[Example]:
    """Matrices near multiples of the identity, which have logarithms and square roots."""
    n = draw.size(0, 3)
    x = 2 * np.eye(n) + draw.unit(n, n) * 0.4
    turned = x + 0.3j * draw.unit(n, n)
    return [call(turned), call(turned[None]), *([call(x), call(x[None][:0])] if real else [])]


_TYPES = "complex128|complex64|float16|float32|float64"
for _name, _function, _allowed in (
    ("MatrixExponential", _exponential, _TYPES),
    ("MatrixLogarithm", _logarithm, "complex"),
    ("MatrixSquareRoot", _square_root, _TYPES),
):
    define(
        f"{_name}(input: T; T: {_allowed}) -> (output: T)",
        shape=_square,
        gradient=_gradient(_name),
        kernel=_each_matrix(_function),
        dynamic=True,
        examples=lambda draw, real=_allowed is _TYPES: _examples(draw, real=real),
    )
