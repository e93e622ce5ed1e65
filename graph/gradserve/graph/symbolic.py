"""Shape arithmetic for gradient rules: constants where shapes are static, nodes where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph import shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw

IntVector = Any
"""A NumPy int32 vector, or a Tensor of one: what the shape inputs of raw ops take."""

Size = Any
"""The size of an axis: an int, or an int32 scalar Tensor where it is not known."""


def shape_of(x: Tensor) -> IntVector:
    """The shape of x."""
    return np.array(x.shape, np.int32) if shapes.is_static(x.shape) else raw.Shape(x)


def kept_shape(x: Tensor, axes: Tensor) -> IntVector:
    """The shape of x reduced over the axes, with each of them kept as 1."""
    if x.shape is not None and shapes.is_static(x.shape):
        known = static.axes(axes, len(x.shape))
        if known is not None:
            return np.array([1 if k in known else size for k, size in enumerate(x.shape)], np.int32)
    rank = raw.Rank(x)
    positive = raw.FloorMod(raw.Cast(raw.Reshape(axes, [-1]), DstT="int32") + rank, rank)
    return raw.DynamicStitch([raw.Range(0, rank, 1), positive], [raw.Shape(x), raw.OnesLike(positive)])


def spread(dy: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> Tensor:
    """dy, the cotangent of a reduction of x over the axes, broadcast back to the shape of x."""
    return raw.BroadcastTo(with_kept(dy, x, axes, keep_dims=keep_dims), shape_of(x))


def with_kept(y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> Tensor:
    """y, a reduction of x over the axes, with each axis kept as 1."""
    return y if keep_dims else raw.Reshape(y, kept_shape(x, axes))


def concat(*parts: IntVector) -> IntVector:
    """Integer vectors one after another: an array where all of them are arrays."""
    if any(isinstance(part, Tensor) for part in parts):
        whole = [part for part in parts if isinstance(part, Tensor) or len(part)]
        return raw.ConcatV2(whole, np.int32(0)) if len(whole) > 1 else whole[0]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def part(vector: IntVector, start: int, stop: int | None = None) -> IntVector:
    """The entries from start to stop of an integer vector."""
    if not isinstance(vector, Tensor):
        return vector[start:stop]
    end = 0 if stop is None else stop
    return raw.StridedSlice(
        vector,
        np.array([start], np.int32),
        np.array([end], np.int32),
        np.array([1], np.int32),
        end_mask=int(stop is None),
    )


def product(vector: IntVector) -> IntVector:
    """The product of the entries of an integer vector, as a vector of one."""
    if not isinstance(vector, Tensor):
        return np.array([np.prod(vector, dtype=np.int64)], np.int32)
    return raw.Reshape(raw.Prod(vector, np.array([0], np.int32)), np.array([1], np.int32))


def size_of(x: Tensor, axis: int) -> Size:
    """The size of one axis of x."""
    size = None if x.shape is None else x.shape[axis]
    return raw.Shape(x)[axis] if size is None else size


def vector(*sizes: Size) -> IntVector:
    """The vector of these sizes."""
    if any(isinstance(size, Tensor) for size in sizes):
        return raw.Pack([size if isinstance(size, Tensor) else np.int32(size) for size in sizes])
    return np.array(sizes, np.int32)


def rank_of(x: Tensor) -> Any:
    """The rank of x: an int, or a Tensor where it is not known."""
    return raw.Rank(x) if x.shape is None else len(x.shape)


def count_up(start: Any, stop: Any) -> IntVector:
    """The integers from start (included) to stop (excluded)."""
    if isinstance(start, Tensor) or isinstance(stop, Tensor):
        return raw.Range(start, stop, 1)
    return np.arange(start, stop, dtype=np.int32)


def is_zero(dy: Tensor) -> bool:
    """Whether a cotangent is zero by construction: no one reads the output that it belongs to."""
    return dy.node.type == "ZerosLike"
