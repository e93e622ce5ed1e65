"""Isotonic regression: the nearest non-increasing sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import call, define, raw
from gradserve.graph.symbolic import part, product, shape_of


def _pool(row: Any) -> tuple[list[float], list[int]]:
    """Adjacent violators pooled, equal neighbours left apart: means and sizes of the blocks.   Best and Chakravarti 1990."""
    means: list[float] = []
    sizes: list[int] = []
    for value in row.tolist():
        mean, size = value, 1
        while means and means[-1] < mean:
            last, count = means.pop(), sizes.pop()
            mean, size = (last * count + mean * size) / (count + size), count + size
        means.append(mean)
        sizes.append(size)
    return means, sizes


def _regress(xp: Any, x: Any, *, output_dtype: Any) -> tuple[Any, Any]:
    flat = x.reshape(-1, x.shape[-1]) if x.size else np.zeros((0, x.shape[-1]))
    y, segments = np.zeros(flat.shape, output_dtype.numpy), np.zeros(flat.shape, np.int32)
    for k, row in enumerate(flat.astype(np.float64)):
        means, sizes = _pool(row)
        y[k], segments[k] = np.repeat(means, sizes), np.repeat(np.arange(len(sizes)), sizes)
    return y.reshape(x.shape), segments.reshape(x.shape)


def _gradient(dy: Tensor, dsegments: Any, y: Tensor, segments: Tensor, x: Tensor) -> Tensor:
    """Each entry gets the mean of dy over its block."""
    shape = shape_of(x)
    length = part(shape, -1)
    count = raw.Reshape(raw.Size(x), np.array([], np.int32))
    positions = raw.Range(0, count, 1)
    rows = raw.FloorDiv(positions, raw.Reshape(length, np.array([], np.int32)))
    flat = np.array([-1], np.int32)
    ids = raw.Reshape(segments, flat) + rows * raw.Reshape(product(length), np.array([], np.int32))
    sums = raw.UnsortedSegmentSum(raw.Reshape(dy, flat), ids, count)
    sizes = raw.UnsortedSegmentSum(raw.OnesLike(raw.Reshape(dy, flat)), ids, count)
    mean = raw.GatherV2(raw.DivNoNan(sums, sizes), ids, np.int32(0))
    dx = raw.Reshape(mean, shape)
    return dx if dx.dtype is x.dtype else raw.Cast(dx, DstT=x.dtype)


define(
    "IsotonicRegression(input: T; T: real, output_dtype: floating = float32) -> (output: output_dtype, segments: int32)",
    shape=lambda x: [x.shape, x.shape],
    gradient=_gradient,
    kernel=_regress,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(draw.size(), draw.size(1)), output_dtype="float64")],
)
