"""Bessel functions, and the integrals of Dawson, Fresnel, Spence and the exponential integral.

JAX has only some of them: they run on the host, between compiled pieces. The rows give the derivative; where a
formula has a removable singularity at 0, `_at_zero` puts the limit there.
"""

from __future__ import annotations

import math
from typing import Any

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Rule, call, define, raw, same_shape
from gradserve.ops.precision import widen

_OUTSIDE = {
    "BesselK0": math.inf,
    "BesselK0e": math.inf,
    "BesselK1": math.inf,
    "BesselK1e": math.inf,
    "BesselY0": -math.inf,
    "BesselY1": -math.inf,
    "Expint": math.nan,
}
"""What TensorFlow gives for negative numbers where the function is not real: for Bessel functions the value at 0."""


def _row(name: str, function: str, dx: Rule, *, domain: str = "positive") -> None:
    def kernel(xp: Any, x: Any) -> Any:
        from scipy import special

        if function == "fresnel_sin":
            return special.fresnel(widen(xp, x))[0].astype(x.dtype)
        if function == "fresnel_cos":
            return special.fresnel(widen(xp, x))[1].astype(x.dtype)
        value = getattr(special, function)(widen(xp, x))
        outside = x < 0
        if name in _OUTSIDE and outside.any():
            value = xp.where(outside, _OUTSIDE[name], value)
        return value.astype(x.dtype)

    define(
        f"{name}(x: T; T: floating) -> (y: T)",
        shape=same_shape,
        gradient=dx,
        kernel=kernel,
        dynamic=True,
        examples=lambda draw: [call(getattr(draw, domain)(*draw.shape()))],
    )


def _at_zero(x: Tensor, limit: float, formula: Any) -> Tensor:
    """formula(x), and the limit where x is 0; no infinity reaches derivatives of it."""
    zero = raw.Equal(x, raw.ZerosLike(x))
    safe = raw.SelectV2(zero, raw.OnesLike(x), x)
    return raw.SelectV2(zero, raw.OnesLike(x) * limit, formula(safe))


def _spence_slope(x: Tensor) -> Tensor:
    """log x / (1 - x), which is -1 at 1."""
    one = raw.Equal(x, raw.OnesLike(x))
    safe = raw.SelectV2(one, raw.OnesLike(x) * 2, x)
    return raw.SelectV2(one, -raw.OnesLike(x), raw.Log(safe) / (1 - safe))


_QUARTER = math.pi / 2

# fmt: off
#     name          function       dx
_row("BesselI0",   "i0",          lambda dy, y, x: dy * raw.BesselI1(x), domain="normal")
_row("BesselI0e",  "i0e",         lambda dy, y, x: dy * (raw.BesselI1e(x) - raw.Sign(x) * y), domain="normal")
_row("BesselI1",   "i1",          lambda dy, y, x: dy * _at_zero(x, 0.5, lambda s: raw.BesselI0(s) - raw.BesselI1(s) / s), domain="normal")
_row("BesselI1e",  "i1e",         lambda dy, y, x: dy * _at_zero(x, 0.5, lambda s: raw.BesselI0e(s) - raw.BesselI1e(s) * (raw.Sign(s) + 1 / s)), domain="normal")
_row("BesselK0",   "k0",          lambda dy, y, x: -dy * raw.BesselK1(x))
_row("BesselK0e",  "k0e",         lambda dy, y, x: dy * (y - raw.BesselK1e(x)))
_row("BesselK1",   "k1",          lambda dy, y, x: -dy * (raw.BesselK0(x) + y / x))
_row("BesselK1e",  "k1e",         lambda dy, y, x: dy * (y * (1 - 1 / x) - raw.BesselK0e(x)))
_row("BesselJ0",   "j0",          lambda dy, y, x: -dy * raw.BesselJ1(x), domain="normal")
_row("BesselJ1",   "j1",          lambda dy, y, x: dy * _at_zero(x, 0.5, lambda s: raw.BesselJ0(s) - raw.BesselJ1(s) / s), domain="normal")
_row("BesselY0",   "y0",          lambda dy, y, x: -dy * raw.BesselY1(x))
_row("BesselY1",   "y1",          lambda dy, y, x: dy * (raw.BesselY0(x) - y / x))
_row("Dawsn",      "dawsn",       lambda dy, y, x: dy * (1 - 2 * x * y), domain="normal")
_row("Expint",     "expi",        lambda dy, y, x: dy * raw.Exp(x) / x)
_row("FresnelSin", "fresnel_sin", lambda dy, y, x: dy * raw.Sin(raw.Square(x) * _QUARTER), domain="normal")
_row("FresnelCos", "fresnel_cos", lambda dy, y, x: dy * raw.Cos(raw.Square(x) * _QUARTER), domain="normal")
_row("Spence",     "spence",      lambda dy, y, x: dy * _spence_slope(x))
# fmt: on
