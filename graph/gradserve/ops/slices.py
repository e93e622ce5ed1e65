"""IndexedSlices: made dense, and led through a concatenation, where each value gets slices of its own.

Along a later axis the rows of the slices are cut as the values lie in them. Along axis 0 each value gets the rows whose
index falls among its own, counted from its first one. Source: TensorFlow's gradient of Concat.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gradserve.graph import dtypes, shapes, static
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import IntVector, concat, part, shape_of

_FIRST = np.int32(0)


def densify(term: Tensor | IndexedSlices) -> Tensor:
    """A dense tensor: rows of equal index added up."""
    if isinstance(term, Tensor):
        return term
    rows = raw.StridedSlice(
        term.dense_shape,
        np.array([0], np.int32),
        np.array([1], np.int32),
        np.array([1], np.int32),
        shrink_axis_mask=1,
    )
    return raw.UnsortedSegmentSum(term.values, term.indices, rows)


def can_cut(values: Sequence[Tensor], axis: Tensor) -> bool:
    """Whether slices can be cut: the axis must be known, counted from the front."""
    position = static.scalar(axis)
    return position is not None and (position >= 0 or values[0].shape is not None)


def cut_slices(dy: IndexedSlices, values: Sequence[Tensor], axis: Tensor) -> list[IndexedSlices]:
    """The slices of each value of a concatenation along a known axis."""
    position = static.scalar(axis)
    assert position is not None
    place = position if position >= 0 else shapes.normalise_axis(position, len(values[0].shape or ()))
    extents = [shape_of(value) for value in values]
    sizes = [part(extent, place, place + 1) for extent in extents]
    if place == 0:
        return _by_rows(dy, extents, sizes)
    pieces = raw.SplitV.outputs(dy.values, concat(*sizes), np.int32(place), num_split=len(values))
    return [IndexedSlices(piece, dy.indices, _tensor(dy, e)) for piece, e in zip(pieces, extents, strict=True)]


def _by_rows(dy: IndexedSlices, extents: Sequence[IntVector], sizes: Sequence[IntVector]) -> list[IndexedSlices]:
    kind = dy.indices.dtype
    bounds = [_scalar(dy, np.array([0], np.int32))]
    for size in sizes:
        bounds.append(bounds[-1] + _scalar(dy, size))
    found: list[IndexedSlices] = []
    for extent, (start, end) in zip(extents, pairwise(bounds), strict=True):
        own = raw.LogicalAnd(raw.GreaterEqual(dy.indices, start), raw.Less(dy.indices, end))
        places = raw.Squeeze(raw.Where(own), squeeze_dims=[1])
        rows = raw.GatherV2(dy.values, places, _FIRST)
        indices = raw.GatherV2(dy.indices, places, _FIRST) - start
        assert indices.dtype is kind
        found.append(IndexedSlices(rows, indices, _tensor(dy, extent)))
    return found


def _scalar(dy: IndexedSlices, size: IntVector) -> Tensor:
    """A vector of one as a scalar of the indices' dtype."""
    kind = dy.indices.dtype
    if not isinstance(size, Tensor):
        return dy.indices.graph.constant(np.asarray(size[0], kind.numpy), kind)
    scalar = raw.Reshape(size, np.array([], np.int32))
    return scalar if kind is scalar.dtype else raw.Cast(scalar, DstT=kind)


def _tensor(dy: IndexedSlices, shape: IntVector) -> Tensor:
    return shape if isinstance(shape, Tensor) else dy.values.graph.constant(shape, dtypes.int32, name="Shape")
