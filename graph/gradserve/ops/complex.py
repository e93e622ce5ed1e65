"""Complex numbers: taking them apart and putting them together.

For a real loss L the gradient of a complex x is dL/dRe x + i dL/dIm x. The ops here are not holomorphic: their
rules say the whole of it.
"""

from __future__ import annotations

from typing import Any

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, broadcast_shape, call, define, raw, same_shape

_PRECISE = "complex128"


def _complex_of(real: Any, imag: Any, like: Tensor) -> Tensor:
    """A tensor of the complex dtype of `like`."""
    return raw.Complex(real, imag, Tout=like.dtype.base)


def _one_complex(draw: Any) -> list[Example]:
    return [call(draw.complex(*draw.shape()))]


def _one_complex_with_tout(draw: Any) -> list[Example]:
    return [call(draw.complex(*draw.shape()), Tout="float64")]


def _parts(draw: Any) -> list[Example]:
    x, y = draw.broadcastable_shapes()
    return [call(draw.normal(*x), draw.normal(*y), Tout=_PRECISE)]


def _complex_kernel(xp: Any, real: Any, imag: Any, *, Tout: Any) -> Any:
    """real + i imag; made by filling the two parts, so that an infinite one leaves the other alone."""
    shape = shapes.broadcast(real.shape, imag.shape)
    parts = xp.stack([xp.broadcast_to(real, shape), xp.broadcast_to(imag, shape)], axis=-1)
    return parts.astype(Tout.real.numpy).view(Tout.numpy)[..., 0]


def _complex_gradient(dz: Tensor, z: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    kind = real.dtype.base
    return raw.Real(dz, Tout=kind), raw.Imag(dz, Tout=kind)


def _angle_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dx = -dy / (Im x + i Re x)."""
    kind = dy.dtype.base
    turned = _complex_of(raw.Imag(x, Tout=kind), raw.Real(x, Tout=kind), x)
    return -_complex_of(dy, 0, x) * raw.Reciprocal(turned)


def _abs_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dx = dy x / |x|, and 0 at 0."""
    return raw.DivNoNan(_complex_of(dy, 0, x) * x, _complex_of(y, 0, x))


define(
    "Complex(real: T, imag: T; T: float32|float64 = float32, Tout: complex = complex64) -> (out: Tout)",
    shape=broadcast_shape,
    gradient=_complex_gradient,
    kernel=_complex_kernel,
    broadcasts=True,
    examples=_parts,
)
define(
    "Conj(input: T; T: complex64|complex128|variant = complex64) -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x: raw.Conj(dy),
    kernel=lambda xp, x: xp.conj(x),
    examples=_one_complex,
)
define(
    "Real(input: T; T: complex = complex64, Tout: float32|float64 = float32) -> (output: Tout)",
    shape=same_shape,
    gradient=lambda dy, y, x: _complex_of(dy, 0, x),
    kernel=lambda xp, x, *, Tout: xp.real(x).astype(Tout.numpy),
    examples=_one_complex_with_tout,
)
define(
    "Imag(input: T; T: complex = complex64, Tout: float32|float64 = float32) -> (output: Tout)",
    shape=same_shape,
    gradient=lambda dy, y, x: _complex_of(0, dy, x),
    kernel=lambda xp, x, *, Tout: xp.imag(x).astype(Tout.numpy),
    examples=_one_complex_with_tout,
)
define(
    "Angle(input: T; T: complex = complex64, Tout: float32|float64 = float32) -> (output: Tout)",
    shape=same_shape,
    gradient=_angle_gradient,
    kernel=lambda xp, x, *, Tout: xp.angle(x).astype(Tout.numpy),
    examples=_one_complex_with_tout,
)
define(
    "ComplexAbs(x: T; T: complex = complex64, Tout: float32|float64 = float32) -> (y: Tout)",
    shape=same_shape,
    gradient=_abs_gradient,
    kernel=lambda xp, x, *, Tout: xp.abs(x).astype(Tout.numpy),
    examples=_one_complex_with_tout,
)
