"""Values that are known before anything runs: constants, and the shape arithmetic on top of them.

`value` gives a tensor's whole value or None; `shape_value` reads a tensor that holds a shape and keeps what is
known of it, dimension by dimension. Shape rules and gradient rules ask these to stay with static shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import GradserveError
from gradserve.graph import shapes
from gradserve.graph.graph import UNKNOWN_YET, Tensor, group
from gradserve.graph.op import FAILURES
from gradserve.graph.shapes import Dimension, Shape

_LARGEST = 4096
_DEEPEST = 64


def value(tensor: Tensor) -> np.ndarray[Any, Any] | None:
    """The tensor's value where it can be known now; None otherwise. Do not write to it."""
    return _value(tensor, 0)


def scalar(tensor: Tensor) -> int | None:
    """The value of an integer scalar (or one-element array) as an int, where it is known."""
    known = _value(tensor, 0)
    return None if known is None else int(known.reshape(()))


def axes(tensor: Tensor, rank: int) -> list[int] | None:
    """Reduction indices as sorted non-negative axes, where they are known."""
    known = _value(tensor, 0)
    if known is None or known.size > _LARGEST:
        return None
    return sorted({shapes.normalise_axis(int(axis), rank) for axis in known.reshape(-1)})


def shape_value(tensor: Tensor) -> Shape:
    """The shape that an integer vector holds; -1 and unknown entries become None."""
    return _piece(tensor, 0)


def _value(tensor: Tensor, depth: int) -> np.ndarray[Any, Any] | None:
    if tensor.static_cache is UNKNOWN_YET:
        if depth > _DEEPEST:
            return None
        tensor.static_cache = _compute(tensor, depth)
    return tensor.static_cache


def _compute(tensor: Tensor, depth: int) -> np.ndarray[Any, Any] | None:
    node = tensor.node
    definition = node.op
    if definition is None:
        return None
    if node.type == "Const":
        return node.attrs["value"]
    if definition.static is not None:
        return definition.static(node, node.attrs, *node.arguments())
    if definition.kernel is None or definition.stateful or not node.inputs:
        return None
    count = shapes.num_elements(tensor.shape)
    if tensor.dtype.kind not in "iub" or (count is not None and count > _LARGEST):
        return None
    values: list[Any] = []
    for source in node.inputs:
        known = _value(source, depth + 1)
        if known is None or known.size > _LARGEST:
            return None
        values.append(known)
    arguments = group(definition.signature.inputs, node.attrs, values)
    try:
        result = definition.kernel(node, node.attrs, np, *arguments)
    except (GradserveError, *FAILURES):  # a division by zero, say: the run will raise it, if it gets here at all
        return None
    return np.asarray(result[tensor.index] if isinstance(result, (tuple, list)) else result)


def _partial(tensor: Tensor, depth: int) -> Shape:
    """Shape pieces through the ops that shape arithmetic is written with."""
    node = tensor.node
    if depth <= _DEEPEST:
        if node.type in ("Shape", "ShapeN"):
            return node.inputs[tensor.index].shape
        if node.type == "Cast":
            return _partial(node.inputs[0], depth + 1)
        if node.type == "Pack":
            return tuple(_dimension(source) for source in node.inputs)
        if node.type == "ConcatV2":
            pieces = [_piece(source, depth + 1) for source in node.inputs[:-1]]
            return None if None in pieces else tuple(size for piece in pieces if piece is not None for size in piece)
        if node.type == "StridedSlice" and not any(
            node.attrs[mask] for mask in ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        ):
            return _slice(tensor, depth)
    if tensor.shape is not None and len(tensor.shape) == 1 and tensor.shape[0] is not None:
        return (None,) * tensor.shape[0]
    return None


def _piece(tensor: Tensor, depth: int) -> Shape:
    known = _value(tensor, depth)
    if known is not None and known.size > _LARGEST:
        return None
    if known is not None:
        return tuple(None if size < 0 else int(size) for size in known.reshape(-1))
    return _partial(tensor, depth)


def _dimension(tensor: Tensor) -> Dimension:
    """One entry of a packed shape: a known scalar, or one picked out of a partly known shape."""
    known = _value(tensor, 0)
    if known is not None:
        return None if int(known) < 0 else int(known)
    node = tensor.node
    if node.type == "StridedSlice" and node.attrs["shrink_axis_mask"] == 1:
        source = shape_value(node.inputs[0])
        begin = _value(node.inputs[1], 0)
        if source is not None and begin is not None and begin.size == 1 and -len(source) <= begin[0] < len(source):
            return source[int(begin[0])]
    return None


def _slice(tensor: Tensor, depth: int) -> Shape:
    node = tensor.node
    source = _piece(node.inputs[0], depth + 1)
    begin, end, strides = (_value(entry, depth + 1) for entry in node.inputs[1:])
    if source is None or begin is None or end is None or strides is None or begin.size != 1:
        return None
    start = None if node.attrs["begin_mask"] & 1 else int(begin[0])
    stop = None if node.attrs["end_mask"] & 1 else int(end[0])
    return source[start : stop : int(strides[0])]
