"""Elementwise ops of one input, and the ops that stand in their gradients.

Vocabulary of the tables: y is the output, x the input, dy the cotangent of y. A rule of a holomorphic op says only
the calculus: the sweep conjugates. Four of TensorFlow's gradient ops (SqrtGrad, RsqrtGrad, InvGrad, ReciprocalGrad)
conjugate y themselves, so they and the ops that emit them are written out for complex numbers (holomorphic=False).
What is linear with real factors needs no conjugation.
"""

from __future__ import annotations

from typing import Any

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Op, Rule, call, define, raw, unary

SIGNED = "bfloat16|float16|float32|float64|complex64|complex128|int8|int16|int32|int64"
_SIGNED_REAL = "bfloat16|float16|float32|float64|int8|int16|int32|int64"


def conjugate(x: Tensor) -> Tensor:
    """The conjugate of a complex tensor; a real one as it is."""
    return raw.Conj(x) if x.dtype.is_complex else x


def real_part(x: Tensor) -> Tensor:
    """The real part of a complex tensor, as a complex one; a real tensor as it is."""
    if not x.dtype.is_complex:
        return x
    real = raw.Real(x, Tout=x.dtype.real)
    return raw.Complex(real, raw.ZerosLike(real), Tout=x.dtype.base)


def number(x: Any, value: float) -> Any:
    """A number of an array's dtype: NumPy would take bfloat16 times a Python float for float32."""
    return x.dtype.type(value)


def is_integer(x: Any) -> bool:
    """Whether an array holds integers."""
    return x.dtype.kind in "iu"


def _reciprocal(xp: Any, x: Any) -> Any:
    """1/x; integers are cut to integers, and 1/0 is 0 there."""
    if is_integer(x):
        return xp.where(abs(x) == 1, x, xp.zeros_like(x))
    return 1 / x


def gradient_op(name: str, z: Rule, dy_ddy: Rule, *, holomorphic: bool = True) -> Op:
    """A row: the op z = f(y, dy) that another op's gradient emits; `dy_ddy` is a function of (dz, z, y, dy)."""

    def examples(draw: Any) -> list[Any]:
        shape = draw.shape()
        return [call(draw.normal(*shape), draw.normal(*shape)), call(draw.complex(*shape), draw.complex(*shape))]

    return define(
        f"{name}(y: T, dy: T; T: inexact) -> (z: T)",
        shape=lambda y, dy: shapes.merge(y.shape, dy.shape),
        gradient=dy_ddy,
        kernel=z,
        holomorphic=holomorphic,
        examples=examples,
    )


def _or_zero(xp: Any, dy: Any, value: Any) -> Any:
    """The value, and 0 where dy is 0: TensorFlow's kernels keep what nobody asked for from turning 0 · ∞ into NaN."""
    return xp.where(dy == 0, xp.zeros_like(value), value)


def _over(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dy / x; complex numbers by 1/x, so that a pole gives NaN in both parts, as in TensorFlow."""
    return dy * raw.Reciprocal(x) if x.dtype.is_complex else dy / x


# fmt: off
#           name          y                                 dx
unary("Neg",        lambda xp, x: -x,                 lambda dy, y, x: -dy,                              types=SIGNED, holomorphic=False, takes_slices=True)
unary("Abs",        lambda xp, x: xp.abs(x),          lambda dy, y, x: dy * raw.Sign(x),                 types=_SIGNED_REAL)
unary("Square",     lambda xp, x: x * x,              lambda dy, y, x: dy * (x * 2),                     types="arithmetic")
unary("Inv",        _reciprocal,                      lambda dy, y, x: raw.InvGrad(y, dy),               types=SIGNED, holomorphic=False)
unary("Reciprocal", _reciprocal,                      lambda dy, y, x: raw.ReciprocalGrad(y, dy),        types=SIGNED, holomorphic=False)
unary("Sqrt",       lambda xp, x: xp.sqrt(x),         lambda dy, y, x: raw.SqrtGrad(y, dy),              domain="positive", holomorphic=False)
unary("Rsqrt",      lambda xp, x: 1 / xp.sqrt(x),     lambda dy, y, x: raw.RsqrtGrad(y, dy),             domain="positive", holomorphic=False)

unary("Exp",        lambda xp, x: xp.exp(x),          lambda dy, y, x: dy * y)
unary("Expm1",      lambda xp, x: xp.expm1(x),        lambda dy, y, x: dy * raw.Exp(x))
unary("Log",        lambda xp, x: xp.log(x),          _over,                                             domain="positive")
unary("Log1p",      lambda xp, x: xp.log1p(x),        lambda dy, y, x: dy / (x + 1),                     domain="positive")
unary("Sigmoid",    lambda xp, x: 1 / (1 + xp.exp(-x)), lambda dy, y, x: raw.SigmoidGrad(y, dy))
unary("Tanh",       lambda xp, x: xp.tanh(x),         lambda dy, y, x: raw.TanhGrad(y, dy))

unary("Sin",        lambda xp, x: xp.sin(x),          lambda dy, y, x: dy * raw.Cos(x))
unary("Cos",        lambda xp, x: xp.cos(x),          lambda dy, y, x: -dy * raw.Sin(x))
unary("Tan",        lambda xp, x: xp.tan(x),          lambda dy, y, x: dy * raw.Square(raw.Reciprocal(raw.Cos(x))), domain="unit")
unary("Sinh",       lambda xp, x: xp.sinh(x),         lambda dy, y, x: dy * raw.Cosh(x))
unary("Cosh",       lambda xp, x: xp.cosh(x),         lambda dy, y, x: dy * raw.Sinh(x))
unary("Asin",       lambda xp, x: xp.arcsin(x),       lambda dy, y, x: dy / raw.Sqrt(1 - raw.Square(x)),  domain="unit")
unary("Acos",       lambda xp, x: xp.arccos(x),       lambda dy, y, x: -dy / raw.Sqrt(1 - raw.Square(x)), domain="unit")
unary("Atan",       lambda xp, x: xp.arctan(x),       lambda dy, y, x: dy / (raw.Square(x) + 1))
unary("Asinh",      lambda xp, x: xp.arcsinh(x),      lambda dy, y, x: dy / raw.Cosh(y))
unary("Acosh",      lambda xp, x: xp.arccosh(x),      lambda dy, y, x: dy / raw.Sinh(y),                 domain="above_one")
unary("Atanh",      lambda xp, x: xp.arctanh(x),      lambda dy, y, x: dy / (1 - raw.Square(x)),         domain="unit")

unary("Sign",       lambda xp, x: xp.sign(x),         lambda dy, y, x: raw.ZerosLike(x),                 types=SIGNED, differences=False)
unary("Floor",      lambda xp, x: xp.floor(x),        NOT_DIFFERENTIABLE,                                types="floating")
unary("Ceil",       lambda xp, x: xp.ceil(x),         NOT_DIFFERENTIABLE,                                types="floating")
unary("Rint",       lambda xp, x: xp.rint(x),         NOT_DIFFERENTIABLE,                                types="floating")
unary("Round",      lambda xp, x: xp.round(x),        NOT_DIFFERENTIABLE,                                types=SIGNED)

#           name              z                                         dy, ddy
gradient_op("SigmoidGrad",    lambda xp, y, dy: dy * y * (1 - y),
                              lambda dz, z, y, dy: (dz * dy * (1 - y * 2), raw.SigmoidGrad(y, dz)))
gradient_op("TanhGrad",       lambda xp, y, dy: dy * (1 - y * y),
                              lambda dz, z, y, dy: (dz * dy * y * -2, raw.TanhGrad(y, dz)))
gradient_op("SqrtGrad",       lambda xp, y, dy: _or_zero(xp, dy, dy * (number(y, 0.5) / xp.conj(y))),
                              lambda dz, z, y, dy: (-conjugate(dz / y) * z, dz / y * 0.5), holomorphic=False)
gradient_op("RsqrtGrad",      lambda xp, y, dy: _or_zero(xp, dy, dy * number(y, -0.5) * xp.conj(y * y * y)),
                              lambda dz, z, y, dy: (conjugate(dz) * dy * raw.Square(conjugate(y)) * -1.5,
                                                    raw.RsqrtGrad(conjugate(y), dz)), holomorphic=False)
gradient_op("InvGrad",        lambda xp, y, dy: _or_zero(xp, dy, -dy * xp.conj(y * y)),
                              lambda dz, z, y, dy: (conjugate(dz) * dy * conjugate(y) * -2,
                                                    raw.InvGrad(conjugate(y), dz)), holomorphic=False)
gradient_op("ReciprocalGrad", lambda xp, y, dy: _or_zero(xp, dy, -dy * xp.conj(y * y)),
                              lambda dz, z, y, dy: (conjugate(dz) * dy * conjugate(y) * -2,
                                                    raw.ReciprocalGrad(conjugate(y), dz)), holomorphic=False)
# fmt: on
