"""Slices: plain ones, strided ones with NumPy's whole notation, and writing into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidShape
from gradserve.graph import dtypes, shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import shape_of
from gradserve.graph.unbroadcast import unbroadcast

_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
MASK_ATTRS = ", ".join(f"{mask}: int = 0" for mask in _MASKS)
Index = tuple[Any, ...]
_PICKED, _SOME = object(), object()
"""Entries of an index that is not known: one place of an axis, and so many that only a run will tell."""


def _index(begin: Any, end: Any, strides: Any, masks: dict[str, int]) -> Index:
    """The slice as NumPy would write it."""
    index: list[Any] = []
    for k in range(len(begin)):
        bit = 1 << k
        if masks["ellipsis_mask"] & bit:
            index.append(Ellipsis)
        elif masks["new_axis_mask"] & bit:
            index.append(None)
        elif masks["shrink_axis_mask"] & bit:
            index.append(int(begin[k]))
        else:
            start = None if masks["begin_mask"] & bit else int(begin[k])
            stop = None if masks["end_mask"] & bit else int(end[k])
            index.append(slice(start, stop, int(strides[k])))
    return tuple(index)


def masked_index(begin: Any, end: Any, strides: Any, node: Any) -> Index:
    """The slice of a node with masks as NumPy would write it."""
    return _index(begin, end, strides, _masks(node))


def _sliced_shape(x: Tensor, begin: Tensor, end: Tensor, strides: Tensor, **masks: int) -> Shape:
    if x.shape is None or begin.shape is None or begin.shape[0] is None:
        return None
    first, last, steps = (static.value(entry) for entry in (begin, end, strides))
    index = (
        _partial_index(begin.shape[0], steps, masks)
        if first is None or last is None or steps is None
        else _index(first, last, steps, masks)
    )
    used = sum(entry is not None and entry is not Ellipsis for entry in index)
    if used > len(x.shape):
        raise InvalidShape(f"{used} axes are sliced, but the shape is {x.shape}.", shape=x.shape)
    if Ellipsis not in index:
        index = (*index, Ellipsis)
    result: list[Dimension] = []
    axis = 0
    entry: Any
    for entry in index:
        if entry is Ellipsis:
            rest = len(x.shape) - used
            result.extend(x.shape[axis : axis + rest])
            axis += rest
        elif entry is None:
            result.append(1)
        elif entry is _PICKED or entry is _SOME:
            result.extend([None] if entry is _SOME else [])
            axis += 1
        else:
            size = x.shape[axis]
            axis += 1
            if isinstance(entry, slice):
                everything = entry.start is None and entry.stop is None and abs(entry.step) == 1
                result.append(size if everything else None if size is None else len(range(*entry.indices(size))))
            elif size is not None and not -size <= entry < size:
                raise InvalidShape(f"Index {entry} is out of range for size {size}.", index=entry, size=size)
    return tuple(result)


def _partial_index(count: int, steps: Any, masks: dict[str, int]) -> Index:
    """The slice where its bounds are not known: some of an axis, one place of it, or all, as the masks say."""
    index: list[Any] = []
    for k in range(count):
        bit = 1 << k
        if masks["ellipsis_mask"] & bit:
            index.append(Ellipsis)
        elif masks["new_axis_mask"] & bit:
            index.append(None)
        elif masks["shrink_axis_mask"] & bit:
            index.append(_PICKED)
        else:
            whole = masks["begin_mask"] & masks["end_mask"] & bit and steps is not None and abs(steps[k]) == 1
            index.append(slice(None, None, 1) if whole else _SOME)
    return tuple(index)


def _sliced_shape_rule(
    x: Tensor, begin: Tensor, end: Tensor, strides: Tensor, *, begin_mask: int, end_mask: int, ellipsis_mask: int,
    new_axis_mask: int, shrink_axis_mask: int,
) -> Shape:  # fmt: skip
    return _sliced_shape(
        x, begin, end, strides, begin_mask=begin_mask, end_mask=end_mask, ellipsis_mask=ellipsis_mask,
        new_axis_mask=new_axis_mask, shrink_axis_mask=shrink_axis_mask,
    )  # fmt: skip


def _masks(node: Any) -> dict[str, Any]:
    return {mask: node.attrs[mask] for mask in _MASKS}


def _strided_slice(xp: Any, x: Any, begin: Any, end: Any, strides: Any, *, node: Any) -> Any:
    return x[masked_index(begin, end, strides, node)]


def write(xp: Any, target: Any, index: Any, value: Any) -> Any:
    """A copy of target with value at an index that names no element twice."""
    target = xp.asarray(target)
    if hasattr(target, "at"):  # arrays that can't be written to, as JAX's
        return target.at[index].set(value)
    result = target.copy()
    result[index] = value
    return result


def _place(xp: Any, shape: Any, begin: Any, end: Any, strides: Any, dy: Any, *, node: Any) -> Any:
    zeros = xp.zeros(tuple(int(size) for size in shape), dy.dtype)
    return write(xp, zeros, masked_index(begin, end, strides, node), dy)


def _strided_slice_gradient(
    dy: Tensor, y: Tensor, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor, *, node: Any
) -> Any:
    shape = shape_of(x)
    if begin.dtype is dtypes.int64:
        shape = shape.astype(np.int64) if isinstance(shape, np.ndarray) else raw.Shape(x, out_type="int64")
    elif begin.dtype is not dtypes.int32:
        begin, end, strides = (raw.Cast(entry, DstT="int32") for entry in (begin, end, strides))
    return raw.StridedSliceGrad(shape, begin, end, strides, dy, **_masks(node)), None, None, None


def _slice_examples(draw: Any) -> list[Example]:
    x = draw.normal(3, 4, 2)

    def bounds(*rows: Any) -> list[Any]:
        return [np.array(row, np.int32) for row in rows]

    return [
        call(x, *bounds([0, 1], [2, 4], [1, 2])),
        call(x, *bounds([1], [2], [1]), shrink_axis_mask=1),
        call(x, *bounds([-1, 0], [-4, 0], [-1, 1]), end_mask=2),
        call(x, *bounds([0, 0, 1], [0, 0, 2], [1, 1, 1]), ellipsis_mask=1, new_axis_mask=2),
        call(draw.normal(draw.size(), 2), *bounds([0], [0], [1]), begin_mask=1, end_mask=1),
        call(x, *bounds([2, 0], [1, 4], [1, 1])),
    ]


define(
    f"StridedSlice(input: T, begin: Index, end: Index, strides: Index; T: type, Index: int16|int32|int64, {MASK_ATTRS})"
    " -> (output: T)",
    shape=_sliced_shape_rule,
    gradient=_strided_slice_gradient,
    kernel=_strided_slice,
    host=("begin", "end", "strides"),
    examples=_slice_examples,
)


def _placed(draw: Any) -> list[Any]:
    """Begin, end and strides of a slice of [3, 4], and a value of its shape."""
    rows = draw.size(0, 3)
    return [*(np.array(v, np.int32) for v in ([0, 1], [rows, 4], [1, 2])), draw.normal(rows, 2)]


define(
    f"StridedSliceGrad(shape: Index, begin: Index, end: Index, strides: Index, dy: T; T: type, Index: index, {MASK_ATTRS})"
    " -> (output: T)",
    shape=lambda shape, begin, end, strides, dy: static.shape_value(shape),
    gradient=lambda dz, z, shape, begin, end, strides, dy, *, node: (
        None,
        None,
        None,
        None,
        raw.StridedSlice(dz, begin, end, strides, **_masks(node)),
    ),
    kernel=_place,
    host=("shape", "begin", "end", "strides"),
    examples=lambda draw: [call(np.array([3, 4], np.int32), *_placed(draw))],
)


def _update(xp: Any, x: Any, begin: Any, end: Any, strides: Any, value: Any, *, node: Any) -> Any:
    return write(xp, x, _index(begin, end, strides, _masks(node)), value)


def _update_gradient(
    dy: Tensor, y: Tensor, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor, value: Tensor, *, node: Any
) -> Any:
    masks = _masks(node)
    dx = raw.TensorStridedSliceUpdate(dy, begin, end, strides, raw.ZerosLike(value), **masks)
    return dx, None, None, None, unbroadcast(raw.StridedSlice(dy, begin, end, strides, **masks), value)


define(
    f"TensorStridedSliceUpdate(input: T, begin: Index, end: Index, strides: Index, value: T; T: type, Index: index,"
    f" {MASK_ATTRS}) -> (output: T)",
    shape=lambda x, begin, end, strides, value: x.shape,
    gradient=_update_gradient,
    kernel=_update,
    host=("begin", "end", "strides"),
    examples=lambda draw: [
        call(draw.normal(3, 4), *(placed := _placed(draw))),
        call(draw.normal(3, 4), *placed[:3], draw.normal(1, 2)),
    ],
)


# Slices by begin and size


def _cut_shape(x: Tensor, begin: Tensor, size: Tensor) -> Shape:
    start, extent = static.value(begin), static.shape_value(size)
    if x.shape is None or extent is None:
        return (
            extent if extent is not None and None not in extent else None if x.shape is None else (None,) * len(x.shape)
        )
    given = static.value(size)
    result: list[Dimension] = []
    for axis, length in enumerate(extent):
        rest = given is not None and given[axis] == -1
        whole = x.shape[axis]
        if rest:
            result.append(None if whole is None or start is None else whole - int(start[axis]))
        else:
            result.append(length)
        first, last = (0 if start is None else int(start[axis])), result[-1]
        if whole is not None and (first < 0 or first + (last or 0) > whole):
            raise InvalidShape(f"Axis {axis} of {x.shape} has no elements {first} to {first + (last or 0)}.", axis=axis)
    return tuple(result)


def _cut(xp: Any, x: Any, begin: Any, size: Any) -> Any:
    index: list[slice] = []
    for axis, (start, length) in enumerate(zip(np.ravel(begin), np.ravel(size), strict=True)):
        stop = x.shape[axis] if length == -1 else int(start + length)
        if start < 0 or stop > x.shape[axis]:
            raise InvalidShape(f"Axis {axis} of {tuple(x.shape)} has no elements {start} to {stop}.", axis=axis)
        index.append(slice(int(start), stop))
    return x[tuple(index)]


def _cut_gradient(dy: Tensor, y: Tensor, x: Tensor, begin: Tensor, size: Tensor) -> Any:
    """dy with zeros around it."""
    start = static.value(begin)
    if start is not None and x.shape is not None and shapes.is_static(x.shape) and shapes.is_static(y.shape):
        after = [a - int(b) - c for a, b, c in zip(x.shape, start, y.shape, strict=True)]  # pyright: ignore
        return raw.Pad(dy, np.stack([start.astype(np.int32), np.array(after, np.int32)], axis=1)), None, None
    kind = begin.dtype
    after = raw.Shape(x, out_type=kind) - begin - raw.Shape(dy, out_type=kind)
    return raw.Pad(dy, raw.Pack([begin, after], axis=1)), None, None


define(
    "Slice(input: T, begin: Index, size: Index; T: type, Index: index) -> (output: T)",
    shape=_cut_shape,
    gradient=_cut_gradient,
    kernel=_cut,
    host=("begin", "size"),
    examples=lambda draw: [
        call(draw.normal(4, 3), np.array([1, 0], np.int32), np.array([2, -1], np.int32)),
        call(draw.normal(draw.size(), 3), np.array([0, 1], np.int32), np.array([-1, 1], np.int32)),
    ],
)
