"""Special functions: error functions, gamma functions and their inverses.

The libraries keep them apart from the arrays: SciPy for NumPy, jax.scipy for jax.numpy, cupyx for CuPy. `special`
finds the one that belongs to an array namespace when a kernel first runs, so that none is imported with the ops.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, Op, Rule, broadcast_shape, call, define, raw, unary
from gradserve.ops.precision import widen

_MODULES = {
    "numpy": "scipy.special",
    "jax.numpy": "jax.scipy.special",
    "cupy": "cupyx.scipy.special",
}


@functools.cache
def _module(namespace: str) -> Any:
    return importlib.import_module(_MODULES[namespace])


def special(xp: Any) -> Any:
    """The module of special functions that takes the arrays of the namespace xp."""
    return _module(xp.__name__)


def _function(name: str) -> Rule:
    """A kernel that applies the function of this name and keeps the dtype; half precision is computed in float32."""

    def kernel(xp: Any, x: Any) -> Any:
        return getattr(special(xp), name)(widen(xp, x)).astype(x.dtype)

    return kernel


def _special(name: str, function: str, dx: Rule, *, domain: str = "normal") -> Op:
    return unary(name, _function(function), dx, types="floating", domain=domain)


# fmt: off
#        name       function      dx
_special("Erf",     "erf",        lambda dy, y, x: dy * (2 / math.sqrt(math.pi)) * raw.Exp(-raw.Square(x)))
_special("Erfc",    "erfc",       lambda dy, y, x: dy * (-2 / math.sqrt(math.pi)) * raw.Exp(-raw.Square(x)))
_special("Erfinv",  "erfinv",     lambda dy, y, x: dy * (math.sqrt(math.pi) / 2) * raw.Exp(raw.Square(y)), domain="unit")
_special("Ndtri",   "ndtri",      lambda dy, y, x: dy * math.sqrt(2 * math.pi) * raw.Exp(raw.Square(y) * 0.5), domain="fraction")
# fmt: on


def _lgamma(xp: Any, x: Any) -> Any:
    """log |Γ(x)|, which SciPy has as -∞ at -∞, but C as ∞."""
    return xp.where(xp.isinf(x), xp.abs(x), _log_gamma(xp, x))


_log_gamma = _function("gammaln")
unary("Lgamma", _lgamma, lambda dy, y, x: dy * raw.Digamma(x), types="floating", domain="positive")


def _digamma_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dx = dy polygamma(1, x); Polygamma knows float32 and float64 only."""
    if x.dtype.size == 2:
        wide = raw.Polygamma(1, raw.Cast(x, DstT="float32"))
        return dy * raw.Cast(wide, DstT=x.dtype.base)
    return dy * raw.Polygamma(1, x)


def _is_pole(xp: Any, x: Any) -> Any:
    """Whether Γ has a pole at x: zero and the negative integers."""
    return (x <= 0) & (x == xp.floor(x))


def _digamma(xp: Any, x: Any) -> Any:
    """ψ(x), and NaN at its poles, which have a different sign on either side."""
    wide = widen(xp, x)
    return xp.where(_is_pole(xp, wide), float("nan"), special(xp).digamma(wide)).astype(x.dtype)


unary("Digamma", _digamma, _digamma_gradient, types="floating", domain="positive")


def _hurwitz(xp: Any, x: Any, q: Any) -> Any:
    """ζ(x, q), which vanishes as q grows; JAX has NaN at infinity."""
    return xp.where((x > 1) & (q == float("inf")), 0, special(xp).zeta(x, q))


def _zeta(xp: Any, x: Any, q: Any) -> Any:
    return _hurwitz(xp, x, q).astype(x.dtype)


def _polygamma(xp: Any, a: Any, x: Any) -> Any:
    """The a-th derivative of digamma: (-1)^(a+1) a! ζ(a+1, x); NaN where a is no natural number.

    So it is too at poles of odd order, where the sign differs on either side: those of even a.
    """
    functions = special(xp)
    sign = xp.where(a % 2 == 0, -xp.ones_like(a), xp.ones_like(a))
    higher = sign * xp.exp(functions.gammaln(a + 1)) * _hurwitz(xp, a + 1, x)
    value = xp.where(a == 0, functions.digamma(x), higher)
    torn = (a % 2 == 0) & _is_pole(xp, x)
    return xp.where((a >= 0) & (a == xp.floor(a)) & ~torn, value, float("nan")).astype(x.dtype)


def _zeta_gradient(dz: Tensor, z: Tensor, x: Tensor, q: Tensor) -> tuple[None, Tensor]:
    """None for x, as in TensorFlow: of a second derivative, too, one part alone would be wrong."""
    x = raw.StopGradient(x)
    return None, -dz * x * raw.Zeta(x + 1, q)


def _polygamma_gradient(dz: Tensor, z: Tensor, a: Tensor, x: Tensor) -> tuple[None, Tensor]:
    return None, dz * raw.Polygamma(a + 1, x)


def _polygamma_examples(draw: Any) -> list[Example]:
    a, x = draw.broadcastable_shapes()
    return [call(draw.integers(0, 4, *a, dtype="float64"), draw.positive(*x), held=("a",))]


def _zeta_examples(draw: Any) -> list[Example]:
    x, q = draw.broadcastable_shapes()
    return [call(draw.above_one(*x), draw.positive(*q), held=("x",))]


define(
    "Zeta(x: T, q: T; T: float32|float64) -> (z: T)",
    shape=broadcast_shape,
    gradient=_zeta_gradient,
    kernel=_zeta,
    broadcasts=True,
    examples=_zeta_examples,
)
define(
    "Polygamma(a: T, x: T; T: float32|float64) -> (z: T)",
    shape=broadcast_shape,
    gradient=_polygamma_gradient,
    kernel=_polygamma,
    broadcasts=True,
    examples=_polygamma_examples,
)
