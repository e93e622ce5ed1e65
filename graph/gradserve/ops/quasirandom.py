"""Numbers that fill a cube evenly, and numbers that nobody can repeat."""

from __future__ import annotations

import importlib
import math
import secrets
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape

_MOST_DIMENSIONS = 1111
"""Of TensorFlow's table of directions   (Joe and Kuo 2008)."""


def _sobol(xp: Any, dim: Any, count: Any, skip: Any, *, dtype: Any, node: Node) -> Any:
    """[count, dim]: Sobol's sequence without its first point, the origin, and `skip` more."""
    sizes = dimensions, rows, left_out = int(dim), int(count), int(skip)
    if not 1 <= dimensions <= _MOST_DIMENSIONS or rows < 0 or left_out < 0:
        raise InvalidArgument(f"{node.name}: dim, num_results and skip can't be {sizes}.", node=node.name)
    sequence = importlib.import_module("scipy.stats.qmc").Sobol(dimensions, scramble=False, bits=32)
    sequence.fast_forward(left_out + 1)
    return (sequence.random(rows) if rows else np.zeros((0, dimensions))).astype(dtype.numpy)


def _points(dim: Tensor, count: Tensor, skip: Tensor) -> Shape:
    return (static.scalar(count), static.scalar(dim))


define(
    "SobolSample(dim: int32, num_results: int32, skip: int32; dtype: float32|float64 = float32) -> (samples: dtype)",
    shape=_points,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_sobol,
    host=("dim", "num_results", "skip"),
    dynamic=True,
    examples=lambda draw: [call(np.int32(draw.size(1, 4)), np.int32(draw.size()), np.int32(draw.size()))],
)


def _unrepeatable(xp: Any, shape: Any, *, dtype: Any) -> Any:
    sizes = tuple(int(size) for size in np.ravel(shape))
    drawn = secrets.token_bytes(math.prod(sizes) * dtype.size)
    return np.frombuffer(drawn, dtype.numpy).reshape(sizes).copy()


define(
    "NonDeterministicInts(shape: shape_dtype; dtype: type = int64, shape_dtype: type = int64) -> (output: dtype)",
    shape=static.shape_value,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_unrepeatable,
    host=("shape",),
    stateful=True,
    dynamic=True,
    examples=lambda draw: [call(np.array([draw.size(), 2], np.int64), dtype=draw.pick(["int32", "uint64"]))],
)
