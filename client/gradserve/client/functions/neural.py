"""Activations, softmax, convolution, pooling, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradserve.client.functions.convert import TensorLike, as_tensor, rank_of, unary
from gradserve.client.functions.reductions import mean
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw

relu = unary("Relu", "x, and 0 where it is negative.")
relu6 = unary("Relu6", "x, no lower than 0 and no higher than 6.")
elu = unary("Elu", "x, and eˣ - 1 where it is negative.")
selu = unary("Selu", "The scaled elu.")
softplus = unary("Softplus", "log(1 + eˣ).")
softsign = unary("Softsign", "x/(1 + |x|).")


def leaky_relu(x: TensorLike, alpha: float = 0.2) -> Tensor:
    """x, and alpha x where it is negative."""
    return raw.LeakyRelu(as_tensor(x), alpha=alpha)


def gelu(x: TensorLike) -> Tensor:
    """x Φ(x), Φ the distribution function of the standard normal."""
    tensor = as_tensor(x)
    return tensor * 0.5 * (raw.Erf(tensor * float(np.sqrt(0.5))) + 1.0)


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """eˣ / Σ eˣ along an axis."""
    return _along_last("Softmax", as_tensor(x), axis)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """log softmax(x), without overflow."""
    return _along_last("LogSoftmax", as_tensor(x), axis)


def _along_last(op: str, x: Tensor, axis: int) -> Tensor:
    if axis == -1 or axis + 1 == x.rank:
        return getattr(raw, op)(x)
    order = list(range(rank_of(x, "another axis than the last")))
    order[axis], order[-1] = order[-1], order[axis]
    return raw.Transpose(getattr(raw, op)(raw.Transpose(x, order)), order)


def bias_add(x: TensorLike, bias: TensorLike) -> Tensor:
    """x + bias along the last axis."""
    return raw.BiasAdd(as_tensor(x), bias)


def top_k(x: TensorLike, k: int) -> tuple[Tensor, Tensor]:
    """The k largest elements of the last axis, and their positions."""
    values, indices = raw.TopKV2.outputs(as_tensor(x), np.int32(k))
    return values, indices


def _pair(size: int | Sequence[int]) -> list[int]:
    height, width = (size, size) if isinstance(size, int) else size
    return [1, height, width, 1]


def conv2d(
    x: TensorLike, filters: TensorLike, strides: int | Sequence[int] = 1, padding: str = "SAME",
    dilations: int | Sequence[int] = 1,
) -> Tensor:  # fmt: skip
    """Convolution of `x [batch, height, width, in]` with `filters [height, width, in, out]`."""
    return raw.Conv2D(as_tensor(x), filters, strides=_pair(strides), padding=padding, dilations=_pair(dilations))


def depthwise_conv2d(
    x: TensorLike, filters: TensorLike, strides: int | Sequence[int] = 1, padding: str = "SAME"
) -> Tensor:
    """Convolution of each channel with its own `filters [height, width, in, multiplier]`."""
    return raw.DepthwiseConv2dNative(as_tensor(x), filters, strides=_pair(strides), padding=padding)


def max_pool(
    x: TensorLike, size: int | Sequence[int] = 2, strides: int | Sequence[int] | None = None, padding: str = "VALID"
) -> Tensor:
    """The largest of each window of `x [batch, height, width, channels]`; strides are the size unless given."""
    step = size if strides is None else strides
    return raw.MaxPool(as_tensor(x), ksize=_pair(size), strides=_pair(step), padding=padding)


def avg_pool(
    x: TensorLike, size: int | Sequence[int] = 2, strides: int | Sequence[int] | None = None, padding: str = "VALID"
) -> Tensor:
    """The mean of each window of `x [batch, height, width, channels]`; strides are the size unless given."""
    step = size if strides is None else strides
    return raw.AvgPool(as_tensor(x), ksize=_pair(size), strides=_pair(step), padding=padding)


def layer_norm(x: TensorLike, scale: TensorLike, offset: TensorLike, epsilon: float = 1e-5) -> Tensor:
    """The last axis with mean 0 and variance 1, then scaled and shifted."""
    tensor = as_tensor(x)
    centred = tensor - mean(tensor, -1, keepdims=True)
    return centred * raw.Rsqrt(mean(raw.Square(centred), -1, keepdims=True) + epsilon) * scale + offset


def batch_norm(
    x: TensorLike, scale: TensorLike, offset: TensorLike, epsilon: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels of `x [batch, height, width, channels]` normalised over the batch; with the mean and variance used."""
    tensor = as_tensor(x)
    empty = np.zeros(0, np.float32)
    outputs = raw.FusedBatchNormV3.outputs(tensor, scale, offset, empty, empty, epsilon=epsilon, is_training=True)
    return outputs[0], outputs[1], outputs[2]
