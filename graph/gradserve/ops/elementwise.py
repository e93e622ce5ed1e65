"""Elementwise ops of one and two inputs, broadcasting as NumPy does."""

from __future__ import annotations

from gradserve.graph.op import NOT_DIFFERENTIABLE, binary, raw, unary

# fmt: off
#           name          y                                 dx
unary("Neg",        lambda xp, x: -x,                 lambda dy, y, x: -dy,             types="number")
unary("Exp",        lambda xp, x: xp.exp(x),          lambda dy, y, x: dy * y)
unary("Log",        lambda xp, x: xp.log(x),          lambda dy, y, x: dy / x,          domain="positive")
unary("Sin",        lambda xp, x: xp.sin(x),          lambda dy, y, x: dy * raw.Cos(x))
unary("Cos",        lambda xp, x: xp.cos(x),          lambda dy, y, x: -dy * raw.Sin(x))
unary("Tanh",       lambda xp, x: xp.tanh(x),         lambda dy, y, x: raw.TanhGrad(y, dy))
unary("Square",     lambda xp, x: x * x,              lambda dy, y, x: dy * (x * 2),    types="number")
unary("Conj",       lambda xp, x: xp.conj(x),         lambda dy, y, x: raw.Conj(dy),    types="number", holomorphic=False)

#            name         z                                 dx, dy
binary("TanhGrad",  lambda xp, y, dy: dy * (1 - y * y),
                    lambda dz, z, y, dy: (dz * dy * y * -2, dz - dz * y * y), types="inexact")
binary("Add",       lambda xp, x, y: x + y,           lambda dz, z, x, y: (dz, dz))
binary("AddV2",     lambda xp, x, y: x + y,           lambda dz, z, x, y: (dz, dz))
binary("Sub",       lambda xp, x, y: x - y,           lambda dz, z, x, y: (dz, -dz))
binary("Mul",       lambda xp, x, y: x * y,           lambda dz, z, x, y: (dz * y, dz * x))
binary("RealDiv",   lambda xp, x, y: x / y,           lambda dz, z, x, y: (dz / y, -dz * x / y / y), domain=("normal", "positive"))
binary("Less",      lambda xp, x, y: x < y,           NOT_DIFFERENTIABLE,  types="real", result="bool")
# fmt: on
