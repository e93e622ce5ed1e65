"""Images seen through a projective transform: ImageProjectiveTransformV2 and V3.

Output pixel (x, y) is read at ((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k) with k = c0 x + c1 y + 1, the eight
numbers of a transform in this order. The gradient warps dy by the inverse transform, as TensorFlow's does: it is the
adjoint for pure moves by whole pixels, and close to it for others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops.precision import widen


def _reflected(xp: Any, place: Any, length: int) -> Any:
    """dcba|abcd|dcba: the image mirrored at its borders."""
    if length <= 1:
        return xp.zeros_like(place)
    double = 2 * length
    left = xp.where(place < double, double * xp.trunc(-place / double) + place, place)
    left = xp.where(left < -length, left + double, -left - 1)
    right = place - double * xp.trunc(place / double)
    right = xp.where(right >= length, double - right - 1, right)
    return xp.clip(xp.where(place < 0, left, xp.where(place > length - 1, right, place)), 0, length - 1)


def _wrapped(xp: Any, place: Any, length: int) -> Any:
    """abcd|abcd|abcd: the image repeated."""
    if length <= 1:
        return xp.zeros_like(place)
    left = place + length * (xp.trunc(-place / (length - 1)) + 1)
    right = place - length * xp.trunc(place / (length - 1))
    return xp.clip(xp.where(place < 0, left, xp.where(place > length - 1, right, place)), 0, length - 1)


_BEYOND = {
    "CONSTANT": lambda xp, place, length: place,
    "REFLECT": _reflected,
    "WRAP": _wrapped,
    "NEAREST": lambda xp, place, length: xp.clip(place, 0, length - 1),
}


def _places(xp: Any, transforms: Any, height: int, width: int) -> tuple[Any, Any, Any]:
    """Where each output pixel is read, [transforms, height, width] of x and of y, and whether it is anywhere."""
    x, y = xp.arange(width, dtype=xp.float32)[None, None, :], xp.arange(height, dtype=xp.float32)[None, :, None]
    numbers = [transforms[:, k, None, None] for k in range(8)]
    depth = numbers[6] * x + numbers[7] * y + 1
    safe = xp.where(depth == 0, xp.ones_like(depth), depth)
    return (
        (numbers[0] * x + numbers[1] * y + numbers[2]) / safe,
        (numbers[3] * x + numbers[4] * y + numbers[5]) / safe,
        depth != 0,
    )


def _warp(xp: Any, images: Any, transforms: Any, size: Any, fill: Any, *, interpolation: str, fill_mode: str) -> Any:
    if interpolation not in ("NEAREST", "BILINEAR") or fill_mode not in _BEYOND:
        raise InvalidArgument(
            f"interpolation={interpolation!r}, fill_mode={fill_mode!r}: they must be NEAREST or BILINEAR, and one of"
            f" {', '.join(_BEYOND)}."
        )
    count, height, width, _ = images.shape
    flat = xp.reshape(transforms, (-1, 8))
    x, y, anywhere = _places(xp, flat, int(size[0]), int(size[1]))
    x, y = _BEYOND[fill_mode](xp, x, width), _BEYOND[fill_mode](xp, y, height)
    batch = xp.arange(count)[:, None, None]
    fill = xp.asarray(fill).astype(images.dtype)

    def read(row: Any, column: Any) -> Any:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        rows = xp.clip(xp.where(inside, row, 0), 0, max(height - 1, 0)).astype(xp.int32)
        columns = xp.clip(xp.where(inside, column, 0), 0, max(width - 1, 0)).astype(xp.int32)
        return widen(xp, xp.where(inside[..., None], images[batch, rows, columns], fill))

    if interpolation == "NEAREST":
        value = read(xp.trunc(y + xp.copysign(0.5, y)), xp.trunc(x + xp.copysign(0.5, x)))
    else:
        top, left = xp.floor(y), xp.floor(x)
        down, over = (y - top)[..., None], (x - left)[..., None]
        upper = (1 - over) * read(top, left) + over * read(top, left + 1)
        lower = (1 - over) * read(top + 1, left) + over * read(top + 1, left + 1)
        value = (1 - down) * upper + down * lower
    return xp.where(anywhere[..., None], value, fill).astype(images.dtype)


def _inverted(transforms: Tensor) -> Tensor:
    """The eight numbers of the inverse transforms."""
    flat = raw.Reshape(transforms, np.array([-1, 8], np.int32))
    ones = raw.OnesLike(raw.Slice(flat, np.zeros(2, np.int32), np.array([-1, 1], np.int32)))
    whole = raw.Reshape(raw.ConcatV2([flat, ones], np.int32(1)), np.array([-1, 3, 3], np.int32))
    inverse = raw.Reshape(raw.MatrixInverse(whole), np.array([-1, 9], np.int32))
    numbers, last = raw.SplitV.outputs(inverse, np.array([8, 1], np.int32), np.int32(1), num_split=2)
    return numbers / last


def _gradient_of_second(
    dy: Tensor, y: Tensor, images: Tensor, transforms: Tensor, size: Tensor, *, interpolation: str, fill_mode: str
) -> Any:
    back = raw.ImageProjectiveTransformV2(
        dy, _inverted(transforms), part(shape_of(images), 1, 3), interpolation=interpolation, fill_mode=fill_mode
    )
    return back, None, None


def _gradient_of_third(
    dy: Tensor, y: Tensor, images: Tensor, transforms: Tensor, size: Tensor, fill: Tensor, *, node: Node
) -> Any:
    kept = {name: node.attrs[name] for name in ("interpolation", "fill_mode")}
    zero = np.float32(0)
    back = raw.ImageProjectiveTransformV3(dy, _inverted(transforms), part(shape_of(images), 1, 3), zero, **kept)
    return back, None, None, None


def _shape(images: Tensor, transforms: Tensor, size: Tensor, *_: Tensor) -> Shape:
    known = static.shape_value(size)
    height, width = (None, None) if known is None else known
    batch, channels = (None, None) if images.shape is None else (images.shape[0], images.shape[3])
    return batch, height, width, channels


def _examples(draw: Any, *more: Any) -> list[Example]:
    """The gradient is a convention: differences agree only where the transform is a move by whole pixels."""
    x = draw.normal(draw.size(1, 2), draw.size(1, 4), draw.size(1, 4), 2)
    size = np.array([draw.size(1, 4), draw.size(1, 5)], np.int32)
    attrs = {
        "interpolation": draw.pick(["NEAREST", "BILINEAR"]),
        "fill_mode": draw.pick(list(_BEYOND)),
    }
    general = np.array([[1.1, 0.2, -0.6, 0.1, 0.9, 0.7, 0.02, -0.01]], np.float32)
    moved = np.array([[1, 0, 1, 0, 1, -1, 0, 0]], np.float32)
    same, held = np.array(x.shape[1:3], np.int32), ("transforms", "fill_value")
    return [
        call(x, general, size, *more, differences=False, **attrs),
        call(x, moved, same, *more, held=held, interpolation=attrs["interpolation"], fill_mode="CONSTANT"),
    ]


_ATTRS = (
    "dtype: bfloat16|float16|float32|float64|int32|int64|uint8, interpolation: string, fill_mode: string = 'CONSTANT'"
)
define(
    f"ImageProjectiveTransformV2(images: dtype, transforms: float32, output_shape: int32; {_ATTRS})"
    " -> (transformed_images: dtype)",
    shape=_shape,
    gradient=_gradient_of_second,
    kernel=lambda xp, images, transforms, size, *, interpolation, fill_mode: _warp(
        xp, images, transforms, size, 0.0, interpolation=interpolation, fill_mode=fill_mode
    ),
    host=("output_shape",),
    examples=_examples,
)
define(
    f"ImageProjectiveTransformV3(images: dtype, transforms: float32, output_shape: int32, fill_value: float32; {_ATTRS})"
    " -> (transformed_images: dtype)",
    shape=_shape,
    gradient=_gradient_of_third,
    kernel=_warp,
    host=("output_shape",),
    examples=lambda draw: _examples(draw, np.float32(0)),
)
