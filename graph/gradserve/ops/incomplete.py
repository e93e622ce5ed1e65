"""The incomplete gamma functions P(a, x) and Q = 1 - P, and the incomplete beta function, with their derivatives.

P(a, x) = Σ tₙ over n = 0, 1, … with tₙ = x^(a+n) e^(-x) / Γ(a+n+1). The derivatives in a come from the series term by
term: ∂tₙ/∂a = tₙ (log x - ψ(a+n+1)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import dtypes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, broadcast_shape, call, define, raw
from gradserve.graph.symbolic import count_up, rank_of
from gradserve.ops.precision import widen
from gradserve.ops.special import special

# Up to this x the series is summed; its largest term stands at n = x - a, and √x is the width around it.
_LARGEST = 1e4
# Central differences of eighth order: the weights of f(+k h) - f(-k h).
_WEIGHTS = (4 / 5, -1 / 5, 4 / 105, -1 / 280)


# Kernels


def _incomplete(name: str) -> Any:
    def kernel(xp: Any, a: Any, x: Any) -> Any:
        outside = (a <= 0) | (x < 0)
        value = getattr(special(xp), name)(widen(xp, a), widen(xp, x))
        value = xp.where(outside, float("nan"), value)
        if name == "gammainc":
            value = xp.where(x == 0, 0.0, value)  # P(a, 0) is 0 in TensorFlow for every a
        return value.astype(x.dtype)

    return kernel


def _slope_in_a(xp: Any, a: Any, x: Any) -> Any:
    """∂P/∂a in double precision; 0 at x = 0 for every a, NaN outside of a > 0, x >= 0."""
    kind = x.dtype
    a, x = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(x, np.float64))
    inside = (a > 0) & (x > 0) & np.isfinite(x) & np.isfinite(a)
    result = np.where((x == 0) | ((a > 0) & np.isposinf(x)), 0.0, np.nan)
    few, many = inside & (x <= _LARGEST), inside & (x > _LARGEST)
    result[few] = _slope_by_series(a[few], x[few])
    result[many] = _slope_by_differences(a[many], x[many])
    return result.astype(kind)


def _slope_by_series(a: Any, x: Any) -> Any:
    from scipy.special import digamma, gammaln

    log, total = np.log(x), np.zeros_like(x)
    largest = float(np.max(x, initial=0.0))
    for n in range(int(largest + 12 * largest**0.5 + 60)):
        place = a + n
        total += np.exp(place * log - x - gammaln(place + 1)) * (log - digamma(place + 1))
    return total


def _slope_by_differences(a: Any, x: Any) -> Any:
    """P is smooth over √a, the width of the distribution, and 1 where a is far below x."""
    from scipy.special import gammainc, gammaincc

    step = 0.05 * np.sqrt(a)
    total = np.zeros_like(x)
    for k, weight in enumerate(_WEIGHTS, 1):
        above, below = a + k * step, np.maximum(a - k * step, 0.0)
        part = np.where(x < a, gammainc(above, x) - gammainc(below, x), gammaincc(below, x) - gammaincc(above, x))
        total += weight * part
    return total / step


def _beta(xp: Any, a: Any, b: Any, x: Any) -> Any:
    outside = (a <= 0) | (b <= 0) | (x < 0) | (x > 1)
    return xp.where(outside, float("nan"), special(xp).betainc(a, b, x)).astype(x.dtype)


# Gradients


def log_density(a: Tensor, x: Tensor) -> Tensor:
    """log of ∂P/∂x, the density of the gamma distribution: (a - 1) log x - x - log Γ(a)."""
    return (a - 1) * raw.Log(x) - x - raw.Lgamma(a)


def score(a: Tensor, x: Tensor) -> Tensor:
    """∂/∂a of the log density: log x - ψ(a)."""
    return raw.Log(x) - raw.Digamma(a)


def curvature_in_a(a: Tensor, x: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """∂²P/∂a² over exp(log_scale): Σ tₙ ((log x - ψ(a+n+1))² - ψ'(a+n+1)), as many terms as the largest x needs.

    a, x and log_scale are of one shape, or broadcast.
    """
    inside = raw.Greater(x, raw.ZerosLike(x))
    safe = raw.SelectV2(inside, x, raw.OnesLike(x))
    largest = raw.Maximum(raw.Max(raw.StopGradient(safe), count_up(0, rank_of(x))), 1)
    count = raw.Cast(largest + raw.Sqrt(largest) * 12 + 60, DstT="int32")
    last = np.int32(-1)
    place = raw.ExpandDims(a, last) + raw.Cast(raw.Range(0, count, 1), DstT=a.dtype)
    column = raw.ExpandDims(safe, last)
    log = raw.Log(column)
    term = place * log - column - raw.Lgamma(place + 1)
    if log_scale is not None:
        term = term - raw.ExpandDims(log_scale, last)
    spread = raw.Square(log - raw.Digamma(place + 1)) - raw.Polygamma(raw.OnesLike(place), place + 1)
    total = raw.Sum(raw.Exp(term) * spread, np.array([-1], np.int32))
    return raw.SelectV2(inside, total, raw.ZerosLike(total))


def _incomplete_gradient(sign: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def rule(dz: Tensor, z: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """∂P/∂x is the density of the gamma distribution; ∂P/∂a has an op of its own. Q = 1 - P."""
        signed = dz if sign > 0 else -dz
        return signed * _slope(a, x), signed * raw.Exp(log_density(a, x))

    return rule


def _slope(a: Tensor, x: Tensor) -> Tensor:
    """∂P/∂a; the op knows float32 and float64 only."""
    if x.dtype.size > 2:
        return raw.IgammaGradA(a, x)
    wide = (raw.Cast(value, DstT=dtypes.float32) for value in (a, x))
    return raw.Cast(raw.IgammaGradA(*wide), DstT=x.dtype)


def _slope_gradient(dz: Tensor, z: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return dz * curvature_in_a(a, x), dz * raw.Exp(log_density(a, x)) * score(a, x)


def _beta_gradient(dz: Tensor, z: Tensor, a: Tensor, b: Tensor, x: Tensor) -> tuple[None, None, Tensor]:
    """∂/∂x is the density x^(a-1) (1-x)^(b-1) / B(a, b); None for a and b, as TensorFlow has it."""
    log_beta = raw.Lgamma(a) + raw.Lgamma(b) - raw.Lgamma(a + b)
    return None, None, dz * raw.Exp(raw.Xlog1py(b - 1, -x) + raw.Xlogy(a - 1, x) - log_beta)


def _gamma_examples(draw: Any) -> list[Example]:
    a, x = draw.broadcastable_shapes()
    return [call(draw.positive(*a), draw.positive(*x) * draw.pick([0.2, 1.0, 4.0]))]


for _name, _function, _sign in (("Igamma", "gammainc", 1), ("Igammac", "gammaincc", -1)):
    define(
        f"{_name}(a: T, x: T; T: floating) -> (z: T)",
        shape=broadcast_shape,
        gradient=_incomplete_gradient(_sign),
        kernel=_incomplete(_function),
        broadcasts=True,
        examples=_gamma_examples,
    )
define(
    "IgammaGradA(a: T, x: T; T: float32|float64) -> (z: T)",
    shape=broadcast_shape,
    gradient=_slope_gradient,
    kernel=_slope_in_a,
    broadcasts=True,
    dynamic=True,
    examples=_gamma_examples,
)


def _beta_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    return [call(draw.above_one(*shape), draw.above_one(*shape), draw.fraction(*shape), held=("a", "b"))]


define(
    "Betainc(a: T, b: T, x: T; T: float32|float64) -> (z: T)",
    shape=broadcast_shape,
    gradient=_beta_gradient,
    kernel=_beta,
    broadcasts=True,
    examples=_beta_examples,
)
