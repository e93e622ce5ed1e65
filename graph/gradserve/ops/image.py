"""Resizing of images, and the ops of its gradients.

A resize is separable and linear: along each axis an output pixel is a weighted sum of a few input pixels (one, two
or four), whose places and weights depend on sizes alone and are found on the host. The gradient op is the transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes, static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops.precision import widen


class _Taps(NamedTuple):
    """Where the pixels of a resized axis come from: `places` and `weights` are [taps, output pixels]."""

    places: Any
    weights: Any

    def matrix(self, length: int) -> Any:
        """[output pixels, length]: the resize of an axis of this length as a matrix (float32)."""
        rows = np.arange(self.places.shape[1])
        result = np.zeros((len(rows), length), np.float32)
        for places, weights in zip(self.places, self.weights, strict=True):
            np.add.at(result, (rows, places), weights)
        return result


def _scale(length: int, wanted: int, align_corners: bool) -> Any:
    if align_corners and wanted > 1:
        return np.float32(length - 1) / np.float32(wanted - 1)
    return np.float32(length) / np.float32(wanted)


def _positions(length: int, wanted: int, node: Node) -> Any:
    """The place in the input, in pixels and parts of them, of each output pixel."""
    align_corners, half_pixel = node.attrs["align_corners"], node.attrs["half_pixel_centers"]
    if align_corners and half_pixel:
        raise InvalidArgument("If half_pixel_centers is True, align_corners must be False.", node=node.name)
    if length < 1 or wanted < 1:
        raise InvalidArgument(f"Images can't be resized from {length} to {wanted} pixels.", node=node.name)
    half = np.float32(0.5)
    numbers, scale = np.arange(wanted, dtype=np.float32), _scale(length, wanted, align_corners)
    return (numbers + half) * scale - half if half_pixel else numbers * scale


def _nearest(length: int, wanted: int, node: Node) -> _Taps:
    positions = _positions(length, wanted, node)
    if node.attrs["align_corners"]:
        places = np.floor(positions + np.float32(0.5))
    elif node.attrs["half_pixel_centers"]:
        numbers = np.arange(wanted, dtype=np.float32) + np.float32(0.5)
        places = np.floor(numbers * _scale(length, wanted, False))
    else:
        places = np.floor(positions)
    places = np.clip(places.astype(np.int64), 0, length - 1)[None]
    return _Taps(places, np.ones(places.shape, np.float32))


def _bilinear(length: int, wanted: int, node: Node) -> _Taps:
    positions = _positions(length, wanted, node)
    floor = np.floor(positions)
    lower, upper = np.maximum(floor, 0), np.minimum(np.ceil(positions), length - 1)
    beyond = (positions - floor).astype(np.float32)
    return _Taps(np.stack([lower, upper]).astype(np.int64), np.stack([1 - beyond, beyond]))


_TABLE = 1024


def _bicubic(length: int, wanted: int, node: Node) -> _Taps:
    """Keys' kernel with a = -0.75, or with half-pixel centres a = -0.5 and no weight for pixels outside.

    Weights are read, as TensorFlow does, from a table of 1,024 steps between two pixels.
    """
    positions = _positions(length, wanted, node)
    floor = np.floor(positions)
    first = floor.astype(np.int64)
    steps = np.rint((positions - floor) * np.float32(_TABLE)) / _TABLE
    keys = node.attrs["half_pixel_centers"]
    a = -0.5 if keys else -0.75

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = np.stack([far(steps + 1), near(steps), near(1 - steps), far(2 - steps)]).astype(np.float32)
    wished = np.stack([first - 1, first, first + 1, first + 2])
    places = np.clip(wished, 0, length - 1)
    if keys:
        weights = np.where(places == wished, weights, np.float32(0))
        total = np.sum(weights, axis=0)
        usable = np.abs(total) >= 1000 * np.finfo(np.float32).tiny
        weights = np.where(usable, weights / np.where(usable, total, 1), weights)
    return _Taps(places, weights.astype(np.float32))


Rule = Callable[[int, int, Node], _Taps]


def _resized(xp: Any, x: Any, axis: int, taps: _Taps) -> Any:
    total: Any = None
    shape = [1] * x.ndim
    shape[axis] = -1
    for places, weights in zip(taps.places, taps.weights, strict=True):
        taken = xp.take(x, places, axis=axis)
        if len(taps.places) > 1:
            taken = taken * xp.asarray(weights.reshape(shape).astype(x.dtype))
        total = taken if total is None else total + taken
    return total


def _returned(xp: Any, dy: Any, length: int, wanted: int, rows: _Taps, columns: _Taps) -> Any:
    """The transposed resize of [n, h, w, c], back to [n, length, wanted, c]."""
    n, h, w, c = dy.shape
    first = xp.matmul(xp.asarray(rows.matrix(length).T.astype(dy.dtype)), dy.reshape(n, h, w * c))
    second = xp.matmul(xp.asarray(columns.matrix(wanted).T.astype(dy.dtype)), first.reshape(n * length, w, c))
    return second.reshape(n, length, wanted, c)


def _resize(rule: Rule) -> Any:
    def kernel(xp: Any, x: Any, size: Any, *, node: Node) -> Any:
        image = x if rule is _nearest else x.astype(xp.float32)
        for axis in (1, 2):
            taps = rule(x.shape[axis], int(size[axis - 1]), node)
            image = _resized(xp, image, axis, taps)
        return image

    return kernel


def _resize_grad(rule: Rule) -> Any:
    def kernel(xp: Any, dy: Any, image: Any, *, node: Node) -> Any:
        lengths = image.shape[1:3]
        taps = [rule(length, count, node) for length, count in zip(lengths, dy.shape[1:3], strict=True)]
        return _returned(xp, dy, *lengths, *taps).astype(image.dtype)

    return kernel


def _nearest_grad(xp: Any, dy: Any, size: Any, *, node: Node) -> Any:
    lengths = [int(length) for length in size]
    taps = [_nearest(length, count, node) for length, count in zip(lengths, dy.shape[1:3], strict=True)]
    return _returned(xp, widen(xp, dy), lengths[0], lengths[1], *taps).astype(dy.dtype)


def _resized_shape(images: Tensor, size: Tensor) -> Shape:
    known = static.shape_value(size)
    height, width = (None, None) if known is None else known
    batch, channels = (None, None) if images.shape is None else (images.shape[0], images.shape[3])
    return batch, height, width, channels


_CENTRES = ("align_corners", "half_pixel_centers")


def _kept(node: Node) -> dict[str, Any]:
    return {name: node.attrs[name] for name in _CENTRES}


def _of_bilinear(dy: Tensor, y: Tensor, images: Tensor, size: Tensor, *, node: Node) -> Any:
    return raw.ResizeBilinearGrad(dy, images, **_kept(node)), None


def _of_bicubic(dy: Tensor, y: Tensor, images: Tensor, size: Tensor, *, node: Node) -> Any:
    """None for 16-bit images, as TensorFlow has it: ResizeBicubicGrad takes none."""
    if images.dtype not in (dtypes.float32, dtypes.float64):
        return None, None
    return raw.ResizeBicubicGrad(dy, images, **_kept(node)), None


def _of_nearest(dy: Tensor, y: Tensor, images: Tensor, size: Tensor, *, node: Node) -> Any:
    return raw.ResizeNearestNeighborGrad(dy, _size(images), **_kept(node)), None


def _of_bilinear_grad(dz: Tensor, z: Tensor, dy: Tensor, image: Tensor, *, node: Node) -> Any:
    return raw.ResizeBilinear(dz, _size(dy), **_kept(node)), None


def _of_bicubic_grad(dz: Tensor, z: Tensor, dy: Tensor, image: Tensor, *, node: Node) -> Any:
    return raw.ResizeBicubic(dz, _size(dy), **_kept(node)), None


def _of_nearest_grad(dz: Tensor, z: Tensor, dy: Tensor, size: Tensor, *, node: Node) -> Any:
    return raw.ResizeNearestNeighbor(dz, _size(dy), **_kept(node)), None


def _size(images: Tensor) -> Any:
    """Height and width."""
    return part(shape_of(images), 1, 3)


def _centres(draw: Any) -> dict[str, Any]:
    return {name: True for name in (draw.pick(["", *_CENTRES]),) if name}


def _resize_examples(draw: Any, *, backward: bool = False) -> list[Example]:
    """Of dtype float32, which the op computes in. It is linear, so the differences may take a large step."""
    x = draw.normal(draw.size(0, 2), draw.size(1, 4), draw.size(1, 4), draw.size(1, 2)).astype(np.float32)
    height, width = draw.size(1, 5), draw.size(1, 5)
    if backward:
        dy = draw.normal(x.shape[0], height, width, x.shape[3]).astype(np.float32)
        return [call(dy, x, step=0.5, **_centres(draw))]
    return [call(x, np.array([height, width], np.int32), step=0.5, **_centres(draw))]


def _nearest_examples(draw: Any) -> list[Example]:
    x = draw.normal(draw.size(0, 2), draw.size(1, 4), draw.size(1, 4), draw.size(1, 2))
    return [call(x, np.array([draw.size(1, 5), draw.size(1, 5)], np.int32), **_centres(draw))]


_BOTH = "align_corners: bool = false, half_pixel_centers: bool = false"
_PIXELS = "bfloat16|float16|float32|float64|int16|int32|int64|int8|uint16|uint8"

define(
    f"ResizeBilinear(images: T, size: int32; T: {_PIXELS}, {_BOTH}) -> (resized_images: float32)",
    shape=_resized_shape,
    gradient=_of_bilinear,
    kernel=_resize(_bilinear),
    host=("size",),
    examples=_resize_examples,
)
define(
    f"ResizeBilinearGrad(grads: float32, original_image: T; T: floating, {_BOTH}) -> (output: T)",
    shape=lambda dy, image: image.shape,
    gradient=_of_bilinear_grad,
    kernel=_resize_grad(_bilinear),
    examples=lambda draw: _resize_examples(draw, backward=True),
)
define(
    f"ResizeBicubic(images: T, size: int32; T: {_PIXELS}, {_BOTH}) -> (resized_images: float32)",
    shape=_resized_shape,
    gradient=_of_bicubic,
    kernel=_resize(_bicubic),
    host=("size",),
    examples=_resize_examples,
)
define(
    f"ResizeBicubicGrad(grads: float32, original_image: T; T: float32|float64, {_BOTH}) -> (output: T)",
    shape=lambda dy, image: image.shape,
    gradient=_of_bicubic_grad,
    kernel=_resize_grad(_bicubic),
    examples=lambda draw: _resize_examples(draw, backward=True),
)
define(
    f"ResizeNearestNeighbor(images: T, size: int32; T: {_PIXELS}, {_BOTH}) -> (resized_images: T)",
    shape=_resized_shape,
    gradient=_of_nearest,
    kernel=_resize(_nearest),
    host=("size",),
    examples=_nearest_examples,
)
define(
    "ResizeNearestNeighborGrad(grads: T, size: int32;"
    f" T: bfloat16|float16|float32|float64|int32|int8|uint8, {_BOTH}) -> (output: T)",
    shape=_resized_shape,
    gradient=_of_nearest_grad,
    kernel=_nearest_grad,
    host=("size",),
    examples=_nearest_examples,
)
