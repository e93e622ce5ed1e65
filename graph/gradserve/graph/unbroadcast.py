"""Sums a cotangent over the axes along which its tensor was broadcast."""

from __future__ import annotations

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw


def unbroadcast(dx: Tensor, x: Tensor) -> Tensor:
    """dx, which has the shape of the broadcast result, summed to the shape of x.

    With static shapes a Sum and a Reshape at most; otherwise the axes are found at run time
    (TensorFlow's BroadcastGradientArgs).
    """
    if dx.shape is not None and x.shape is not None and shapes.is_static(dx.shape) and shapes.is_static(x.shape):
        return _static(dx, x.shape, dx.shape)  # pyright: ignore[reportArgumentType]
    if x.shape is not None and dx.shape is not None and len(x.shape) == len(dx.shape) and 1 not in x.shape:
        known = [a is not None and a == b for a, b in zip(x.shape, dx.shape, strict=True)]
        if all(known):
            return dx
    shape = raw.Shape(x)
    axes, _ = raw.BroadcastGradientArgs.outputs(shape, raw.Shape(dx))
    return raw.Reshape(raw.Sum(dx, axes), shape)


def _static(dx: Tensor, source: shapes.StaticShape, target: shapes.StaticShape) -> Tensor:
    if source == target:
        return dx
    axes = shapes.reduction_axes(source, target)
    summed = raw.Sum(dx, np.array(axes, np.int32)) if axes else dx
    if summed.shape == source:
        return summed
    return raw.Reshape(summed, np.array(source, np.int32))
