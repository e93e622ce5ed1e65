"""Activations, softmax, biases, and the gradient ops of each.

The gradient ops take the cotangent first (TensorFlow's order): `ReluGrad(gradients, features)`. Rules of the kinked
ones pass the output where it says as much as the input does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidShape
from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, Op, Rule, call, define, raw, same_shape, unary
from gradserve.ops.elementwise import number
from gradserve.ops.precision import widen

_SCALE = 1.0507009873554804934193349852946
_SCALE_ALPHA = 1.7580993408473768599402175208123


def activation(name: str, y: Rule, dx: Rule, *, types: str = "floating") -> Op:
    """A row: an elementwise op features -> activations. `dx` is a function of (dy, y, x)."""
    return unary(name, y, dx, types=types, argument="features", result="activations", holomorphic=False)


def backprop_op(name: str, z: Rule, ddy_dx: Rule, *, types: str = "floating", second: str = "features") -> Op:
    """A row: the op z = f(dy, x) that an activation's gradient emits; `ddy_dx` is a function of (dz, z, dy, x)."""

    def examples(draw: Any) -> list[Example]:
        shape = draw.shape()
        return [call(draw.normal(*shape), draw.normal(*shape))]

    return define(
        f"{name}(gradients: T, {second}: T; T: {types}) -> (backprops: T)",
        shape=lambda gradients, x: shapes.merge(gradients.shape, x.shape),
        gradient=ddy_dx,
        kernel=z,
        examples=examples,
    )


def _only_where(dy: Any, mask: Any) -> Any:
    """dy times the mask as numbers: an infinite cotangent of a closed unit shows as NaN, as TensorFlow's does."""
    return dy * mask.astype(dy.dtype)


def _softplus(xp: Any, x: Any) -> Any:
    """log(1 + exp x), which does not overflow."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _softsign_grad_gradient(dz: Tensor, z: Tensor, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """z = dy / (1 + |x|)², so dx = -2 dz dy sign x / (1 + |x|)³."""
    width = raw.Abs(x) + 1
    return raw.SoftsignGrad(dz, x), dz * z * raw.Sign(x) * -2 / width


def _softplus_grad_gradient(dz: Tensor, z: Tensor, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """z = dy sigmoid x, so dx = dz dy / (exp(-x) + 2 + exp x)."""
    return raw.SoftplusGrad(dz, x), dz * dy / (raw.Exp(-x) + 2 + raw.Exp(x))


# fmt: off
#           name          y                                                            dx
activation("Relu",     lambda xp, x: xp.maximum(x, 0),                             lambda dy, y, x: raw.ReluGrad(dy, y),  types="real|qint8")
activation("Relu6",    lambda xp, x: xp.minimum(xp.maximum(x, 0), 6),              lambda dy, y, x: raw.Relu6Grad(dy, y), types="real")
activation("Elu",      lambda xp, x: xp.where(x < 0, xp.expm1(x), x),              lambda dy, y, x: raw.EluGrad(dy, y))
activation("Selu",     lambda xp, x: xp.where(x < 0, number(x, _SCALE_ALPHA) * xp.expm1(x), number(x, _SCALE) * x),
                                                                                   lambda dy, y, x: raw.SeluGrad(dy, y))
activation("Softplus", _softplus,                                                  lambda dy, y, x: raw.SoftplusGrad(dy, x))
activation("Softsign", lambda xp, x: x / (1 + xp.abs(x)),                          lambda dy, y, x: raw.SoftsignGrad(dy, x))

#            name             z                                                        ddy, dx
backprop_op("ReluGrad",     lambda xp, dy, x: _only_where(dy, x > 0),
                            lambda dz, z, dy, x: (raw.ReluGrad(dz, x), raw.ZerosLike(x)), types="real")
backprop_op("Relu6Grad",    lambda xp, dy, x: _only_where(dy, (x > 0) & (x < 6)),
                            lambda dz, z, dy, x: (raw.Relu6Grad(dz, x), raw.ZerosLike(x)), types="real")
backprop_op("EluGrad",      lambda xp, dy, y: xp.where(y < 0, (y + 1) * dy, dy),
                            lambda dz, z, dy, y: (raw.EluGrad(dz, y), raw.SelectV2(y < 0, dz * dy, 0)), second="outputs")
backprop_op("SeluGrad",     lambda xp, dy, y: xp.where(y < 0, (y + number(y, _SCALE_ALPHA)) * dy, number(y, _SCALE) * dy),
                            lambda dz, z, dy, y: (raw.SeluGrad(dz, y), raw.SelectV2(y < 0, dz * dy, 0)), second="outputs")
backprop_op("SoftplusGrad", lambda xp, dy, x: dy / (xp.exp(-x) + 1),               _softplus_grad_gradient)
backprop_op("SoftsignGrad", lambda xp, dy, x: dy / ((1 + xp.abs(x)) * (1 + xp.abs(x))), _softsign_grad_gradient)
# fmt: on


def _leaky(xp: Any, value: Any, x: Any, alpha: float) -> Any:
    """The value, times alpha where x is not above 0."""
    return xp.where(x > 0, value, value * number(value, alpha))


define(
    "LeakyRelu(features: T; alpha: float = 0.20000000298023224, T: floating = float32) -> (activations: T)",
    shape=same_shape,
    gradient=lambda dy, y, x, *, alpha: raw.LeakyReluGrad(dy, x, alpha=alpha),
    kernel=lambda xp, x, *, alpha: _leaky(xp, x, x, alpha),
    examples=lambda draw: [call(draw.normal(*draw.shape())), call(draw.normal(3), alpha=1.5)],
)
define(
    "LeakyReluGrad(gradients: T, features: T; alpha: float = 0.20000000298023224, T: floating = float32)"
    " -> (backprops: T)",
    shape=lambda dy, x: shapes.merge(dy.shape, x.shape),
    gradient=lambda dz, z, dy, x, *, alpha: (raw.LeakyReluGrad(dz, x, alpha=alpha), raw.ZerosLike(x)),
    kernel=lambda xp, dy, x, *, alpha: _leaky(xp, dy, x, alpha),
    examples=lambda draw: [call(draw.normal(*(s := draw.shape())), draw.normal(*s))],
)

# Softmax


def shifted(xp: Any, logits: Any) -> Any:
    """Logits less the largest of their row, widened: their exponentials do not overflow."""
    wide = widen(xp, logits)
    return wide - xp.max(wide, axis=-1, keepdims=True) if logits.shape[-1] else wide


def _softmax(xp: Any, logits: Any) -> Any:
    powers = xp.exp(shifted(xp, logits))
    return (powers / xp.sum(powers, axis=-1, keepdims=True)).astype(logits.dtype)


def _log_softmax(xp: Any, logits: Any) -> Any:
    below = shifted(xp, logits)
    return (below - xp.log(xp.sum(xp.exp(below), axis=-1, keepdims=True))).astype(logits.dtype)


def _softmax_shape(logits: Tensor) -> Any:
    if logits.shape == ():
        raise InvalidShape("Logits must have an axis of classes, but are a scalar.", shape=logits.shape)
    return logits.shape


def softmax_backprop(dy: Tensor, softmax: Tensor) -> Tensor:
    """dx = (dy - Σ dy y) y for y = softmax x over the last axis."""
    return (dy - raw.Sum(dy * softmax, -1, keep_dims=True)) * softmax


def _log_softmax_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dx = dy - exp(y) Σ dy."""
    return dy - raw.Sum(dy, -1, keep_dims=True) * raw.Exp(y)


def _rows(draw: Any) -> list[Example]:
    return [call(draw.normal(*draw.shape(low=1))), call(draw.normal(2, draw.size()))]


define(
    "Softmax(logits: T; T: floating) -> (softmax: T)",
    shape=_softmax_shape,
    gradient=lambda dy, y, x: softmax_backprop(dy, y),
    kernel=_softmax,
    examples=_rows,
)
define(
    "LogSoftmax(logits: T; T: floating) -> (logsoftmax: T)",
    shape=_softmax_shape,
    gradient=_log_softmax_gradient,
    kernel=_log_softmax,
    examples=_rows,
)

# Biases


def _channel_axis(rank: int, data_format: str) -> int:
    return 1 if data_format == "NCHW" else rank - 1


def _lined_up(bias: Any, rank: int, data_format: str) -> Any:
    """The bias with axes of size 1 behind it where channels come before space."""
    axis = _channel_axis(rank, data_format)
    return bias.reshape(bias.shape + (1,) * (rank - 1 - axis))


def _bias_add_shape(value: Tensor, bias: Tensor, *, data_format: str) -> Any:
    if value.shape is None or bias.shape is None:
        return value.shape
    if len(bias.shape) != 1 or len(value.shape) < 2:
        raise InvalidShape(
            f"A bias of shape {bias.shape} can't be added to channels of {value.shape}: it must be a vector.",
            bias=bias.shape, value=value.shape,
        )  # fmt: skip
    axis = _channel_axis(len(value.shape), data_format)
    channels = shapes.merge_dimension(value.shape[axis], bias.shape[0])
    return (*value.shape[:axis], channels, *value.shape[axis + 1 :])


def _bias_add_grad_shape(dy: Tensor, *, data_format: str) -> Any:
    return (None,) if dy.shape is None else (dy.shape[_channel_axis(len(dy.shape), data_format)],)


def _bias_add_grad(xp: Any, dy: Any, *, data_format: str) -> Any:
    """Sums over all axes but the channels'."""
    axis = _channel_axis(dy.ndim, data_format)
    others = tuple(k for k in range(dy.ndim) if k != axis)
    wide = widen(xp, dy)
    return xp.sum(wide, axis=others, dtype=wide.dtype).astype(dy.dtype)


def _bias_add_grad_gradient(dz: Tensor, z: Tensor, dy: Tensor, *, data_format: str) -> Tensor:
    """The cotangent of the sum, spread over the axes that were summed."""
    rank = dy.rank
    if data_format == "NCHW":
        if rank is None:
            behind = raw.Fill(raw.ExpandDims(raw.Rank(dy) - 2, 0), 1)
            dz = raw.Reshape(dz, raw.ConcatV2([raw.Shape(dz), behind], 0))
        else:
            dz = raw.Reshape(dz, np.array([-1] + [1] * (rank - 2), np.int32))
    known = dy.shape if shapes.is_static(dy.shape) else None
    return raw.BroadcastTo(dz, raw.Shape(dy) if known is None else np.array(known, np.int32))


def _bias_add_v1_gradient(dy: Tensor, y: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return dy, raw.BiasAddGrad(dy)


def _bias_examples(draw: Any) -> list[Example]:
    batch, channels, width = draw.size(), draw.size(1), draw.size()
    return [
        call(draw.normal(batch, channels), draw.normal(channels)),
        call(draw.normal(batch, width, 2, channels), draw.normal(channels)),
        call(draw.normal(batch, channels, width, 2), draw.normal(channels), data_format="NCHW"),
        call(draw.normal(batch, channels), draw.normal(channels), data_format="NCHW"),
    ]


def _bias_grad_examples(draw: Any) -> list[Example]:
    return [Example(example.inputs[:1], example.attrs) for example in _bias_examples(draw)]


define(
    "BiasAdd(value: T, bias: T; T: number, data_format: string = 'NHWC') -> (output: T)",
    shape=_bias_add_shape,
    gradient=lambda dy, y, value, bias, *, data_format: (dy, raw.BiasAddGrad(dy, data_format=data_format)),
    kernel=lambda xp, value, bias, *, data_format: value + _lined_up(bias, value.ndim, data_format),
    examples=_bias_examples,
)
define(
    "BiasAddV1(value: T, bias: T; T: number) -> (output: T)",
    shape=lambda value, bias: _bias_add_shape(value, bias, data_format="NHWC"),
    gradient=_bias_add_v1_gradient,
    kernel=lambda xp, value, bias: value + bias,
    examples=lambda draw: [call(draw.normal(draw.size(), 3), draw.normal(3))],
)
define(
    "BiasAddGrad(out_backprop: T; T: number, data_format: string = 'NHWC') -> (output: T)",
    shape=_bias_add_grad_shape,
    gradient=_bias_add_grad_gradient,
    kernel=_bias_add_grad,
    examples=_bias_grad_examples,
)
