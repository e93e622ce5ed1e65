"""Images scaled and moved, with a choice of resampling kernels: ScaleAndTranslate and its gradient.

Along each axis an output pixel is a weighted sum of input pixels: a matrix that depends on sizes, scale and
translation alone and is found on the host. All of it is in float32, as TensorFlow computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part, shape_of

Array = np.ndarray[Any, Any]
_SMALLEST_SUM = 1000 * float(np.finfo(np.float32).tiny)


def _lanczos(radius: float) -> Callable[[Array], Array]:
    def kernel(x: Array) -> Array:
        safe = np.where(x > 1e-3, x, 1)
        wave = radius * np.sin(np.pi * safe) * np.sin(np.pi * safe / radius) / (np.pi * safe) ** 2
        return np.where(x > radius, 0, np.where(x > 1e-3, wave, 1))

    return kernel


def _pieces(near: Callable[[Array], Array], far: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: np.where(x >= 2, 0, np.where(x >= 1, far(x), near(x)))


# fmt: off
#  name             radius  weight at a distance
_KERNELS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "lanczos1":      (1.0, _lanczos(1.0)),
    "lanczos3":      (3.0, _lanczos(3.0)),
    "lanczos5":      (5.0, _lanczos(5.0)),
    "gaussian":      (1.5, lambda x: np.where(x >= 1.5, 0, np.exp(-x * x / (2 * 0.5 * 0.5)))),
    "box":           (1.0, lambda x: np.where(x < 0.5, 1.0, np.where(x == 0.5, 0.5, 0.0))),
    "triangle":      (1.0, lambda x: np.maximum(1 - x, 0)),
    "keyscubic":     (2.0, _pieces(lambda x: (1.5 * x - 2.5) * x * x + 1, lambda x: ((-0.5 * x + 2.5) * x - 4) * x + 2)),
    "mitchellcubic": (2.0, _pieces(lambda x: (7 / 6 * x - 2) * x * x + 8 / 9,
                                   lambda x: ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9)),
}
# fmt: on


def _weights(length: int, wanted: int, scale: float, translation: float, node: Node) -> Array:
    """[wanted, length]: how much each input pixel counts for each output pixel; rows sum to 1 or are 0."""
    kind = node.attrs["kernel_type"]
    if kind not in _KERNELS:
        raise InvalidArgument(f"{node.name}: kernel_type {kind!r} is none of {', '.join(_KERNELS)}.", node=node.name)
    if not scale > 0:
        raise InvalidArgument(f"{node.name}: scale {scale} is not positive.", node=node.name)
    radius, kernel = _KERNELS[kind]
    inverse = np.float32(1) / np.float32(scale)
    stretch = max(inverse, np.float32(1)) if node.attrs["antialias"] else np.float32(1)
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * inverse - np.float32(translation) * inverse
    reach = np.float32(radius) * stretch
    first = np.maximum(np.ceil(places - reach - np.float32(0.5)), 0)
    last = np.minimum(np.floor(places + reach - np.float32(0.5)), length - 1)
    pixels = np.arange(length, dtype=np.float32)
    distance = np.abs(pixels + np.float32(0.5) - places[:, None]) / stretch
    spanned = (pixels >= first[:, None]) & (pixels <= last[:, None])
    weights = np.where(spanned, kernel(distance), 0).astype(np.float32)
    total = weights.sum(axis=1, keepdims=True, dtype=np.float32)
    usable = (np.abs(total) >= _SMALLEST_SUM) & ((places >= 0) & (places <= length))[:, None]
    return np.where(usable, weights / np.where(usable, total, 1), 0).astype(np.float32)


def _both(lengths: Any, wanted: Any, scale: Any, translation: Any, node: Node) -> tuple[Array, Array]:
    rows, columns = (
        _weights(int(lengths[k]), int(wanted[k]), float(scale[k]), float(translation[k]), node) for k in (0, 1)
    )
    return rows, columns


def _scale(xp: Any, images: Any, size: Any, scale: Any, translation: Any, *, node: Node) -> Any:
    rows, columns = _both(images.shape[1:3], size, scale, translation, node)
    return xp.einsum("bijc,hi,wj->bhwc", images.astype(xp.float32), xp.asarray(rows), xp.asarray(columns))


def _scale_back(xp: Any, dy: Any, images: Any, scale: Any, translation: Any, *, node: Node) -> Any:
    rows, columns = _both(images.shape[1:3], dy.shape[1:3], scale, translation, node)
    return xp.einsum("bhwc,hi,wj->bijc", dy, xp.asarray(rows), xp.asarray(columns))


def _kept(node: Node) -> dict[str, Any]:
    return {name: node.attrs[name] for name in ("kernel_type", "antialias")}


def _gradient(
    dy: Tensor, y: Tensor, images: Tensor, size: Tensor, scale: Tensor, translation: Tensor, *, node: Node
) -> Any:
    """None for scale and translation, and the image as float32, as TensorFlow has it."""
    like = images if images.dtype is dy.dtype else raw.Cast(images, DstT=dy.dtype)
    dx = raw.ScaleAndTranslateGrad(dy, like, scale, translation, **_kept(node))
    return dx if images.dtype is dy.dtype else raw.Cast(dx, DstT=images.dtype), None, None, None


def _gradient_back(
    dz: Tensor, z: Tensor, dy: Tensor, images: Tensor, scale: Tensor, translation: Tensor, *, node: Node
) -> Any:
    """The map is linear: its adjoint's gradient is the map itself."""
    return raw.ScaleAndTranslate(dz, part(shape_of(dy), 1, 3), scale, translation, **_kept(node)), None, None, None


def _shape(images: Tensor, size: Tensor, *_: Tensor) -> Shape:
    known = static.shape_value(size)
    height, width = (None, None) if known is None else known
    batch, channels = (None, None) if images.shape is None else (images.shape[0], images.shape[3])
    return batch, height, width, channels


def _examples(draw: Any, *, backward: bool = False) -> list[Example]:
    """Of dtype float32, which the op computes in; it is linear, so differences may be taken in large steps."""
    x = draw.normal(draw.size(0, 2), draw.size(1, 5), draw.size(1, 4), draw.size(1, 2)).astype(np.float32)
    attrs: dict[str, Any] = {"kernel_type": draw.pick(list(_KERNELS)), "antialias": bool(draw.size(0, 1))}
    scale = np.array([draw.pick([0.5, 1.0, 1.7]), draw.pick([0.7, 2.0])], np.float32)
    translation = np.array([draw.pick([-0.4, 0.0, 1.2]), 0.3], np.float32)
    size = np.array([draw.size(1, 5), draw.size(1, 6)], np.int32)
    if backward:
        dy = draw.normal(x.shape[0], *size, x.shape[3]).astype(np.float32)
        return [call(dy, x, scale, translation, step=0.1, held=("scale", "translation"), **attrs)]
    return [call(x, size, scale, translation, step=0.1, held=("scale", "translation"), **attrs)]


_ATTRS = "kernel_type: string = 'lanczos3', antialias: bool = true"
define(
    "ScaleAndTranslate(images: T, size: int32, scale: float32, translation: float32; T: bfloat16|float16|float32|float64|"
    f"int16|int32|int64|int8|uint16|uint8, {_ATTRS}) -> (resized_images: float32)",
    shape=_shape,
    gradient=_gradient,
    kernel=_scale,
    host=("size", "scale", "translation"),
    examples=_examples,
)
define(
    "ScaleAndTranslateGrad(grads: T, original_image: T, scale: float32, translation: float32; T: float32,"
    f" {_ATTRS}) -> (output: T)",
    shape=lambda dy, images, *_: images.shape,
    gradient=_gradient_back,
    kernel=_scale_back,
    host=("scale", "translation"),
    examples=lambda draw: _examples(draw, backward=True),
)
