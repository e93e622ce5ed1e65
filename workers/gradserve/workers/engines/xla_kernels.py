"""Kernels of the xla engine's own, for ops whose reference kernel NumPy alone runs, or runs rightly: JAX has the
primitive.

They take arrays of jax.numpy under a trace, and give what the reference gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradserve.graph.checks import refuse_if
from gradserve.graph.op import BoundRule
from gradserve.ops.precision import widen


def _lu(xp: Any, x: Any, *, output_idx_type: Any) -> tuple[Any, Any]:
    from jax.lax import linalg

    if not x.size:
        return x, xp.zeros(x.shape[:-1], output_idx_type.numpy)
    packed, _, order = linalg.lu(widen(xp, x))
    pivots = xp.diagonal(packed, axis1=-2, axis2=-1)
    refuse_if(xp.any(pivots == 0), "Lu: a matrix of the batch can't be inverted.")
    return packed.astype(x.dtype), order.astype(output_idx_type.numpy)


def _exponential(xp: Any, x: Any) -> Any:
    from jax.scipy.linalg import expm

    if not x.size:
        return x
    wide = widen(xp, x)
    finite = xp.isfinite(wide).all(axis=(-2, -1), keepdims=True)
    return xp.where(finite, expm(wide), xp.nan).astype(x.dtype)


def _tridiagonal(xp: Any, diagonals: Any, b: Any, *, perturb_singular: bool) -> Any:
    from jax.lax import linalg

    if not b.size or b.shape[-2] == 1:
        return b / diagonals[..., 1, :, None]
    batch = xp.broadcast_shapes(diagonals.shape[:-2], b.shape[:-2])
    above, main, below = (xp.broadcast_to(diagonals[..., k, :], (*batch, b.shape[-2])) for k in range(3))
    inner = xp.arange(b.shape[-2])
    x = linalg.tridiagonal_solve(
        xp.where(inner > 0, below, 0).astype(b.dtype),
        main,
        xp.where(inner < b.shape[-2] - 1, above, 0).astype(b.dtype),
        xp.broadcast_to(b, (*batch, *b.shape[-2:])),
    )
    if perturb_singular:
        known = xp.isfinite(diagonals).all() & xp.isfinite(b).all()
        refuse_if(
            known & xp.isnan(x).any(),
            "TridiagonalSolve: a matrix is singular, and perturb_singular is not supported: solve it with"
            " perturb_singular=False, which gives NaN.",
        )
    return x


def _complex(xp: Any, real: Any, imag: Any, *, Tout: Any) -> Any:
    """The primitive: jax.numpy makes real + i imag of the parts, and NaN of an infinite imaginary one."""
    from jax import lax

    return lax.complex(*xp.broadcast_arrays(real, imag)).astype(Tout.numpy)


KERNELS: Mapping[str, BoundRule] = {
    "Complex": BoundRule(_complex),
    "Lu": BoundRule(_lu),
    "MatrixExponential": BoundRule(_exponential),
    "TridiagonalSolve": BoundRule(_tridiagonal),
}
"""Op type to the kernel that a compiled piece runs in place of the op's own."""
