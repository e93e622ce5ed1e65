"""Crops of images, resized to one size: CropAndResize, the ops of its gradients, and their gradients.

Box (y1, x1, y2, x2) is in parts of the image: row j of h crop rows is read at y = (H - 1)(y1 (1 - t) + y2 t) with
t = j / (h - 1), or 1/2 where h is 1; columns likewise. A pixel read outside of the image is the extrapolation value.
The gradient for boxes is that of the bilinear crop, also for method 'nearest', as in TensorFlow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes, static
from gradserve.graph.checks import refuse_outside
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops.gather import combine

# Kernels. Everything is float32, as TensorFlow computes it.


class _Reads(NamedTuple):
    """Where one axis is read, each [boxes, places]: pixel before and after, how far between, and whether inside."""

    before: Any
    after: Any
    between: Any
    inside: Any


def _steps(xp: Any, count: int) -> Any:
    """The t of each place."""
    return xp.arange(count, dtype=xp.float32) / (count - 1) if count > 1 else xp.full((1,), 0.5, xp.float32)


def _reads(xp: Any, first: Any, last: Any, count: int, length: int) -> _Reads:
    if count > 1:
        place = first[:, None] * (length - 1) + xp.arange(count, dtype=xp.float32) * (
            (last - first)[:, None] * (length - 1) / (count - 1)
        )
    else:
        place = (0.5 * (first + last) * (length - 1))[:, None]
    inside = (place >= 0) & (place <= length - 1)
    place = xp.where(inside, place, xp.zeros_like(place))
    before = xp.floor(place)
    return _Reads(before.astype(xp.int32), xp.ceil(place).astype(xp.int32), place - before, inside)


def _both(xp: Any, boxes: Any, counts: Any, lengths: Any) -> tuple[_Reads, _Reads]:
    rows = _reads(xp, boxes[:, 0], boxes[:, 2], int(counts[0]), int(lengths[0]))
    return rows, _reads(xp, boxes[:, 1], boxes[:, 3], int(counts[1]), int(lengths[1]))


def _corners(rows: _Reads, columns: _Reads, method: str, xp: Any) -> list[tuple[Any, Any, Any]]:
    """Row, column and weight of each pixel that a crop pixel is read from, each [boxes, h, w]."""
    down, over = rows.between[:, :, None], columns.between[:, None, :]
    if method == "nearest":
        row = xp.where(down < 0.5, rows.before[:, :, None], rows.after[:, :, None])
        column = xp.where(over < 0.5, columns.before[:, None, :], columns.after[:, None, :])
        return [(*xp.broadcast_arrays(row, column), xp.ones_like(down * over))]
    if method != "bilinear":
        raise InvalidArgument(f"method must be bilinear or nearest, and is {method!r}.")
    return [
        (row[:, :, None], column[:, None, :], weight_down * weight_over)
        for row, weight_down in ((rows.before, 1 - down), (rows.after, down))
        for column, weight_over in ((columns.before, 1 - over), (columns.after, over))
    ]


def _crop(
    xp: Any, image: Any, boxes: Any, number: Any, size: Any, *, method: str, extrapolation_value: float
) -> Any:  # fmt: skip
    refuse_outside(number, image.shape[0], "box_ind")
    if min(int(length) for length in size) < 1:
        raise InvalidArgument(f"Crops must have a positive size, not {np.ravel(size).tolist()}.")
    rows, columns = _both(xp, boxes, size, image.shape[1:3])
    batch, image = number[:, None, None], image.astype(xp.float32)
    value: Any = 0
    for row, column, weight in _corners(rows, columns, method, xp):
        value = value + image[batch, row, column] * weight[..., None]
    inside = (rows.inside[:, :, None] & columns.inside[:, None, :])[..., None]
    return xp.where(inside, value, xp.asarray(extrapolation_value, dtype=xp.float32))


def _image_gradient(xp: Any, dy: Any, boxes: Any, number: Any, size: Any, *, T: Any, method: str) -> Any:
    """Each cotangent goes to the pixels that were read, with their weights."""
    shape = tuple(int(length) for length in size)
    refuse_outside(number, shape[0], "box_ind")
    rows, columns = _both(xp, boxes, dy.shape[1:3], shape[1:3])
    inside = (rows.inside[:, :, None] & columns.inside[:, None, :])[..., None]
    dy = xp.where(inside, dy, xp.zeros_like(dy))
    result = xp.zeros(shape, xp.float32)
    for row, column, weight in _corners(rows, columns, method, xp):
        index = xp.broadcast_arrays(number[:, None, None], row, column)
        result = combine(xp, "add", result, tuple(index), dy * weight[..., None])
    return result.astype(T.numpy)


def _boxes_gradient(xp: Any, dy: Any, image: Any, boxes: Any, number: Any, *, method: str) -> Any:
    """The slope of the bilinear surface in y and x, times how much each edge of the box moves the place."""
    if method != "bilinear":
        raise InvalidArgument(f"CropAndResizeGradBoxes: method must be bilinear, and is {method!r}.")
    refuse_outside(number, image.shape[0], "box_ind")
    height, width = image.shape[1:3]
    rows, columns = _both(xp, boxes, dy.shape[1:3], (height, width))
    batch, image = number[:, None, None], image.astype(xp.float32)
    a, b, c, d = (
        image[batch, row[:, :, None], column[:, None, :]]
        for row in (rows.before, rows.after)
        for column in (columns.before, columns.after)
    )
    down, over = rows.between[:, :, None, None], columns.between[:, None, :, None]
    inside = (rows.inside[:, :, None] & columns.inside[:, None, :])[..., None]
    dy = xp.where(inside, dy, xp.zeros_like(dy))
    vertical = xp.sum(dy * ((1 - over) * (c - a) + over * (d - b)), axis=(2, 3)) * (height - 1)
    horizontal = xp.sum(dy * ((1 - down) * (b - a) + down * (d - c)), axis=(1, 3)) * (width - 1)
    t, u = _steps(xp, dy.shape[1]), _steps(xp, dy.shape[2])
    edges = [vertical * (1 - t), horizontal * (1 - u), vertical * t, horizontal * u]
    return xp.stack([xp.sum(edge, axis=1) for edge in edges], axis=1)


# Gradients


def _of_crop(
    dy: Tensor, y: Tensor, image: Tensor, boxes: Tensor, number: Tensor, size: Tensor, *, method: str
) -> Any:  # fmt: skip
    floating = image.dtype in (dtypes.float16, dtypes.float32, dtypes.float64)
    d_image = (
        raw.CropAndResizeGradImage(dy, boxes, number, shape_of(image), T=image.dtype, method=method)
        if floating
        else None
    )
    return d_image, raw.CropAndResizeGradBoxes(dy, image, boxes, number), None, None


def _of_image_gradient(
    dz: Tensor, z: Tensor, dy: Tensor, boxes: Tensor, number: Tensor, size: Tensor, *, method: str
) -> Any:  # fmt: skip
    """<dz, adjoint of crop (dy)> = <crop (dz), dy>: linear in dy, and a crop of dz as far as boxes go."""
    back = raw.CropAndResize(dz, boxes, number, part(shape_of(dy), 1, 3), method=method)
    return back, raw.CropAndResizeGradBoxes(dy, dz, boxes, number), None, None


class _Axis(NamedTuple):
    """One axis on the graph, each [boxes, places]: pixel before and after, how far between, inside (1 or 0), and t."""

    before: Tensor
    after: Tensor
    between: Tensor
    inside: Tensor
    step: Tensor
    reach: Tensor


def _axis(first: Tensor, last: Tensor, dy: Tensor, image: Tensor, axis: int) -> _Axis:
    """first and last: [boxes, 1]."""
    scalar = np.zeros(0, np.int32)
    counts, lengths = part(shape_of(dy), axis, axis + 1), part(shape_of(image), axis, axis + 1)
    graph = dy.graph
    count, reach = (
        raw.Cast(raw.Reshape(value if isinstance(value, Tensor) else graph.constant(value), scalar), DstT="float32")
        for value in (counts, lengths)
    )
    reach = reach - 1
    places = raw.Range(np.float32(0), count, np.float32(1))
    step = raw.SelectV2(raw.Greater(count, 1), raw.DivNoNan(places, count - 1), raw.OnesLike(places) * 0.5)
    place = (first * (1 - step) + last * step) * reach
    inside = raw.LogicalAnd(raw.GreaterEqual(place, raw.ZerosLike(place)), raw.LessEqual(place, reach))
    safe = raw.SelectV2(inside, place, raw.ZerosLike(place))
    before, after = (raw.Cast(edge, DstT="int32") for edge in (raw.Floor(safe), raw.Ceil(safe)))
    return _Axis(before, after, safe - raw.Floor(safe), raw.Cast(inside, DstT="float32"), step, reach)


def _places(number: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """[boxes, h, w, 3]: image, row and column of each pixel."""
    first = raw.ExpandDims(raw.ExpandDims(number, np.int32(1)), np.int32(2))
    down, over = raw.ExpandDims(row, np.int32(2)), raw.ExpandDims(column, np.int32(1))
    zeros = raw.ZerosLike(first + down + over)
    return raw.Pack([first + zeros, down + zeros, over + zeros], axis=3)


def _of_boxes_gradient(
    dz: Tensor, z: Tensor, dy: Tensor, image: Tensor, boxes: Tensor, number: Tensor
) -> Any:  # fmt: skip
    """z = Σ dy (Gy ∂y + Gx ∂x) over the crop, Gy and Gx the slopes of the surface, ∂y and ∂x how boxes move places.

    With a b above c d the four pixels, v and u the distances: Gy = (1-u)(c-a) + u(d-b), Gx = (1-v)(b-a) + v(d-c).
    """
    top, left, bottom, right = raw.Split.outputs(np.int32(1), boxes, num_split=4)
    z_top, z_left, z_bottom, z_right = raw.Split.outputs(np.int32(1), dz, num_split=4)
    rows, columns = _axis(top, bottom, dy, image, 1), _axis(left, right, dy, image, 2)
    pixels = raw.Cast(image, DstT="float32")
    corners = [_places(number, row, column) for row in rows[:2] for column in columns[:2]]
    a, b, c, d = (raw.GatherNd(pixels, corner) for corner in corners)

    def wide(value: Tensor, *axes: int) -> Tensor:
        for axis in axes:
            value = raw.ExpandDims(value, np.int32(axis))
        return value

    v, u = wide(rows.between, 2, 3), wide(columns.between, 1, 3)
    kept = wide(rows.inside, 2, 3) * wide(columns.inside, 1, 3)
    moved_down = wide((z_top * (1 - rows.step) + z_bottom * rows.step) * rows.reach, 2, 3) * kept
    moved_over = wide((z_left * (1 - columns.step) + z_right * columns.step) * columns.reach, 1, 3) * kept
    slope_down, slope_over = (1 - u) * (c - a) + u * (d - b), (1 - v) * (b - a) + v * (d - c)
    d_dy = slope_down * moved_down + slope_over * moved_over
    down, over = dy * moved_down, dy * moved_over
    # The cotangents of a, b, c and d; then of v and u, which the boxes move.
    terms = (
        -(1 - u) * down - (1 - v) * over,
        (1 - v) * over - u * down,
        (1 - u) * down - v * over,
        u * down + v * over,
    )
    scattered = [raw.ScatterNd(corner, term, shape_of(image)) for corner, term in zip(corners, terms, strict=True)]
    d_image = raw.Cast(raw.AddN(scattered), DstT=image.dtype) if image.dtype.kind == "f" else None
    twist = (d - c) - (b - a)
    d_rows = raw.Sum(over * twist, np.array([2, 3], np.int32)) * rows.reach
    d_columns = raw.Sum(down * twist, np.array([1, 3], np.int32)) * columns.reach
    edges = [d_rows * (1 - rows.step), d_columns * (1 - columns.step), d_rows * rows.step, d_columns * columns.step]
    d_boxes = raw.Pack([raw.Sum(edge, np.array([1], np.int32)) for edge in edges], axis=1)
    return d_dy, d_image, d_boxes, None


# Shapes and examples


def _crop_shape(image: Tensor, boxes: Tensor, number: Tensor, size: Tensor) -> Shape:
    height, width = static.shape_value(size) or (None, None)
    count = None if boxes.shape is None else boxes.shape[0]
    return count, height, width, None if image.shape is None else image.shape[3]


def _inputs(draw: Any) -> tuple[Any, Any, Any, Any]:
    """Image, boxes, numbers and crop size; every place that is read lies 0.3 pixels behind a pixel's centre."""
    image = draw.normal(draw.size(1, 2), draw.size(4, 5), draw.size(4, 5), draw.size(1, 2))
    count, size = draw.size(0, 2), np.array([draw.size(1, 3), draw.size(1, 3)], np.int32)
    reach = np.array(image.shape[1:3]) - 1
    first = draw.integers(0, 2, count, 2) + 0.3
    boxes = np.concatenate([first / reach, (first + np.minimum(size - 1, 1) * (size - 1)) / reach], axis=1)
    number = draw.integers(0, len(image), count)
    return image.astype(np.float32), boxes.astype(np.float32), number, size


_STEP = 3e-3  # of differences in float32


def _crop_examples(draw: Any) -> list[Example]:
    image, boxes, number, size = _inputs(draw)
    return [
        call(image, boxes, number, size, extrapolation_value=draw.pick([0.0, 2.5]), step=_STEP),
        call(image, boxes * 1.5 - 0.2, number, size, extrapolation_value=2.5, method="nearest", differences=False),
    ]


def _image_examples(draw: Any) -> list[Example]:
    image, boxes, number, size = _inputs(draw)
    dy = draw.normal(len(boxes), *size, image.shape[3]).astype(np.float32)
    whole = np.array(image.shape, np.int32)
    return [
        call(dy, boxes, number, whole, T="float32", step=_STEP),
        call(dy, boxes * 1.5 - 0.2, number, whole, T="float32", method="nearest", differences=False),
    ]


def _boxes_examples(draw: Any) -> list[Example]:
    image, boxes, number, size = _inputs(draw)
    dy = draw.normal(len(boxes), *size, image.shape[3]).astype(np.float32)
    return [call(dy, image, boxes, number, step=_STEP)]


_TYPES = "float16|float32|float64|int16|int32|int64|int8|uint16|uint8"
define(
    f"CropAndResize(image: T, boxes: float32, box_ind: int32, crop_size: int32; T: {_TYPES}, method: string = 'bilinear',"
    " extrapolation_value: float = 0.0) -> (crops: float32)",
    shape=_crop_shape,
    gradient=_of_crop,
    kernel=_crop,
    host=("crop_size",),
    examples=_crop_examples,
)
define(
    "CropAndResizeGradImage(grads: float32, boxes: float32, box_ind: int32, image_size: int32; T: float16|float32|float64,"
    " method: string = 'bilinear') -> (output: T)",
    shape=lambda dy, boxes, number, size: static.shape_value(size),
    gradient=_of_image_gradient,
    kernel=_image_gradient,
    host=("image_size",),
    examples=_image_examples,
)
define(
    f"CropAndResizeGradBoxes(grads: float32, image: T, boxes: float32, box_ind: int32; T: {_TYPES},"
    " method: string = 'bilinear') -> (output: float32)",
    shape=lambda dy, image, boxes, number: boxes.shape,
    gradient=_of_boxes_gradient,
    kernel=_boxes_gradient,
    examples=_boxes_examples,
)
