"""The nearest of some points, as a served k-means model looks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import call, define, raw
from gradserve.graph.shapes import Shape


def _nearest(xp: Any, points: Any, centres: Any, count: Any, *, node: Node) -> tuple[Any, Any]:
    """[points, k]: the numbers of the nearest centres, and their squared distances |p|² - 2 p·c + |c|², nearest first."""
    if points.ndim != 2 or centres.ndim != 2 or points.shape[1] != centres.shape[1] or int(count) < 1:
        raise InvalidArgument(
            f"{node.name}: there are no {int(count)} nearest among points {centres.shape} for {points.shape}.",
            node=node.name,
        )
    half = np.float32(0.5)
    without = half * (centres * centres).sum(1) - points @ centres.T
    places = np.argsort(without, axis=1, kind="stable")[:, : int(count)]
    distances = np.take_along_axis(without, places, 1) + half * (points * points).sum(1, keepdims=True)
    return places, np.float32(2) * distances


def _gradient(
    d_places: None, dy: Tensor, places: Tensor, y: Tensor, points: Tensor, centres: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, None]:
    """dp = 2 Σ dy (p - c) over the nearest, and dc the negative of what its points get."""
    apart = raw.ExpandDims(points, np.int32(1)) - raw.GatherV2(centres, places, np.int32(0))
    moved = apart * raw.ExpandDims(dy, np.int32(-1)) * 2.0
    rows = raw.StridedSlice(raw.Shape(centres), [0], [1], [1], shrink_axis_mask=1)
    return raw.Sum(moved, np.array([1], np.int32)), -raw.UnsortedSegmentSum(moved, places, rows), None


def _shapes(points: Tensor, centres: Tensor, count: Tensor) -> list[Shape]:
    rows, most = (None if x.shape is None else x.shape[0] for x in (points, centres))
    wanted = static.scalar(count)
    shape = (rows, None if wanted is None or most is None else min(wanted, most))
    return [shape, shape]


define(
    "NearestNeighbors(points: float32, centers: float32, k: int64)"
    " -> (nearest_center_indices: int64, nearest_center_distances: float32)",
    shape=_shapes,
    gradient=_gradient,
    kernel=_nearest,
    host=("k",),
    dynamic=True,
    examples=lambda draw: [
        call(draw.normal(draw.size(), 2).astype(np.float32), draw.normal(draw.size(1), 2).astype(np.float32),
             np.int64(draw.size(1)))
    ],
)  # fmt: skip
