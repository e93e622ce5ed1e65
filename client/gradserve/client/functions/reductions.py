"""Sums, means, extremes and what accumulates along an axis."""

from __future__ import annotations

import numpy as np

from gradserve.client.functions.convert import Axis, TensorLike, as_tensor, axes_of, reduction
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw

sum = reduction("Sum", "The sum.")
mean = reduction("Mean", "The mean.")
prod = reduction("Prod", "The product.")
max = reduction("Max", "The largest element.")
min = reduction("Min", "The smallest element.")
all = reduction("All", "Whether all are true.")
any = reduction("Any", "Whether one is true.")


def var(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The variance: the mean square of the distance from the mean."""
    tensor = as_tensor(x)
    return mean(raw.SquaredDifference(tensor, mean(tensor, axis, keepdims=True)), axis, keepdims)


def std(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The standard deviation."""
    return raw.Sqrt(var(x, axis, keepdims))


def logsumexp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log Σ eˣ, without overflow."""
    tensor = as_tensor(x)
    axes = axes_of(tensor, axis)
    top = raw.StopGradient(raw.Max(tensor, axes, keep_dims=True))
    total = raw.Log(raw.Sum(raw.Exp(tensor - top), axes, keep_dims=True)) + top
    return total if keepdims else raw.Sum(total, axes)


def cumsum(x: TensorLike, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """The running sum; exclusive: without the element itself; reverse: from the end."""
    return raw.Cumsum(as_tensor(x), np.int32(axis), exclusive=exclusive, reverse=reverse)


def cumprod(x: TensorLike, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """The running product."""
    return raw.Cumprod(as_tensor(x), np.int32(axis), exclusive=exclusive, reverse=reverse)


def argmax(x: TensorLike, axis: int = 0) -> Tensor:
    """The position of the largest element along an axis, int64."""
    return raw.ArgMax(as_tensor(x), np.int32(axis))


def argmin(x: TensorLike, axis: int = 0) -> Tensor:
    """The position of the smallest element along an axis, int64."""
    return raw.ArgMin(as_tensor(x), np.int32(axis))
