"""Grey-scale morphology: the largest of image plus filter over each window, and the ops of its gradients.

What falls outside of the image never counts; of equal sums the first in scan order takes the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import concat, part, product
from gradserve.ops import windows
from gradserve.ops.precision import lowest, widen
from gradserve.ops.windows import Axis, cut, entry, first_largest, pieces, put_back


def _over(x: Any, f: Any, node: Node) -> list[Axis]:
    attrs = node.attrs
    return windows.axes(x.shape, (1, *f.shape[:2], 1), attrs["strides"], attrs["padding"], dilations=attrs["rates"])


def _sums(xp: Any, x: Any, f: Any, over: Sequence[Axis]) -> Iterator[Any]:
    """For each position inside of the window: image plus filter; the lowest number outside of the image."""
    rows = f.reshape(f.shape[0] * f.shape[1], f.shape[2])
    inside = pieces(np, np.ones(x.shape, bool), over, False)
    nothing = xp.asarray(lowest(x.dtype), dtype=x.dtype)
    for k, (piece, real) in enumerate(zip(pieces(xp, x, over), inside, strict=True)):
        yield xp.where(xp.asarray(real), piece + rows[k], nothing)


def _dilation(xp: Any, x: Any, f: Any, *, node: Node) -> Any:
    return windows.largest(xp, _sums(xp, x, f, _over(x, f, node)), x.dtype)


def _hits(xp: Any, x: Any, f: Any, over: Sequence[Axis], node: Node) -> Iterator[Any]:
    return windows.hits(xp, _sums(xp, x, f, over), _dilation(xp, x, f, node=node))


def _to_input(xp: Any, x: Any, f: Any, dy: Any, *, node: Node) -> Any:
    over, wide = _over(x, f, node), widen(xp, dy)
    parts = (xp.where(hit, wide, xp.zeros_like(wide)) for hit in _hits(xp, x, f, over, node))
    return put_back(xp, parts, over, x.shape, wide.dtype).astype(x.dtype)


def _to_filter(xp: Any, x: Any, f: Any, dy: Any, *, node: Node) -> Any:
    over, wide = _over(x, f, node), widen(xp, dy)
    hits = _hits(xp, x, f, over, node)
    rows = [xp.sum(xp.where(hit, wide, xp.zeros_like(wide)), axis=(0, 1, 2)) for hit in hits]
    return xp.stack(rows).reshape(f.shape).astype(f.dtype)


def _shape(x: Tensor, f: Tensor, *, strides: Sequence[int], rates: Sequence[int], padding: str) -> Shape:
    image: Sequence[Dimension] = x.shape or (None,) * 4
    kernel: Sequence[Dimension] = f.shape or (None,) * 3
    columns = zip(image[1:3], kernel[:2], strides[1:3], rates[1:3], strict=True)
    depth = shapes.merge_dimension(image[3], kernel[2])
    return (image[0], *(windows.output_size(*column, padding) for column in columns), depth)


def _kept(node: Node) -> dict[str, Any]:
    return {name: node.attrs[name] for name in ("strides", "rates", "padding")}


def _of_dilation(dy: Tensor, y: Tensor, x: Tensor, f: Tensor, *, node: Node) -> Any:
    attrs = _kept(node)
    return raw.Dilation2DBackpropInput(x, f, dy, **attrs), raw.Dilation2DBackpropFilter(x, f, dy, **attrs)


def _places(length: Tensor, size: Tensor, count: Tensor, stride: int, rate: int, padding: str) -> tuple[Tensor, Tensor]:
    """[windows, positions]: what each window covers along an axis, and whether that lies inside of the image."""
    numbers = raw.ExpandDims(raw.Range(0, count, 1), 1) * stride
    covered = numbers + raw.ExpandDims(raw.Range(0, size, 1), 0) * rate
    if padding == "SAME":
        total = raw.Maximum((count - 1) * stride + (size - 1) * rate + 1 - length, 0)
        covered = covered - raw.FloorDiv(total, 2)
    inside = raw.LogicalAnd(raw.GreaterEqual(covered, 0), raw.Less(covered, length))
    return raw.Maximum(raw.Minimum(covered, length - 1), 0), inside


class _Picking:
    """Of each window's positions the first of the largest sums, with plain ops: `mask` is [n, h, w, positions, c]."""

    def __init__(self, x: Tensor, f: Tensor, dy: Tensor, node: Node) -> None:
        image, kernel, output = raw.Shape(x), raw.Shape(f), raw.Shape(dy)
        (self._rows, row_inside), (self._columns, column_inside) = (
            _places(
                entry(image, k),
                entry(kernel, k - 1),
                entry(output, k),
                node.attrs["strides"][k],
                node.attrs["rates"][k],
                node.attrs["padding"],
            )
            for k in (1, 2)
        )
        self._positions = concat(product(part(kernel, 0, 2)), part(kernel, 2))
        both = raw.LogicalAnd(_spread(row_inside, (1, 3)), _spread(column_inside, (0, 2)))
        shape = raw.Shape(both)
        inside = raw.Reshape(both, concat(part(shape, 0, 2), product(part(shape, 2)), np.array([1], np.int32)))
        sums = self.of_image(x) + self.of_filter(f)
        outside = np.array(lowest(x.dtype.numpy), x.dtype.numpy)
        self.mask = first_largest(raw.SelectV2(inside, sums, outside))

    def of_image(self, image: Tensor) -> Tensor:
        """What each window of an image sees: [n, h, w, positions, c]."""
        return cut(image, self._rows, self._columns)

    def of_filter(self, f: Tensor) -> Tensor:
        """What each window sees of a filter: [positions, c]."""
        return raw.Reshape(f, self._positions)

    def pick(self, seen: Tensor) -> Tensor:
        """Of what is seen, the entries that the mask names: [n, h, w, c]."""
        return raw.Sum(self.mask * seen, np.array([3], np.int32))


def _spread(x: Tensor, axes: tuple[int, int]) -> Tensor:
    """A matrix with two axes of size 1 put in."""
    for axis in axes:
        x = raw.ExpandDims(x, axis)
    return x


def _of_to_input(dz: Tensor, z: Tensor, x: Tensor, f: Tensor, dy: Tensor, *, node: Node) -> Any:
    """What was handed to the image's entries is read from there again; image and filter get zeros."""
    picking = _Picking(x, f, dy, node)
    return raw.ZerosLike(x), raw.ZerosLike(f), picking.pick(picking.of_image(dz))


def _of_to_filter(dz: Tensor, z: Tensor, x: Tensor, f: Tensor, dy: Tensor, *, node: Node) -> Any:
    """What was handed to the filter's entries is read from there again; image and filter get zeros."""
    picking = _Picking(x, f, dy, node)
    return raw.ZerosLike(x), raw.ZerosLike(f), picking.pick(picking.of_filter(dz))


def _examples(draw: Any, *, backward: bool = False) -> list[Example]:
    height, width = draw.size(1, 3), draw.size(1, 2)
    stride, rate, channels = draw.size(1, 2), draw.size(1, 2), draw.size(1, 2)
    lengths = [(size - 1) * rate + 1 + draw.size(0, 2) for size in (height, width)]
    attrs: dict[str, Any] = {"strides": [1, stride, stride, 1], "rates": [1, rate, rate, 1]}
    attrs["padding"] = draw.pick(["SAME", "VALID"])
    x = draw.distinct(draw.size(0, 2), *lengths, channels)
    f = draw.distinct(height, width, channels) / 100
    if not backward:
        return [call(x, f, **attrs)]
    columns = zip(lengths, (height, width), strict=True)
    counts = [windows.output_size(length, size, stride, rate, attrs["padding"]) or 0 for length, size in columns]
    return [call(x, f, draw.normal(x.shape[0], *counts, channels), **attrs)]


def _backward_examples(draw: Any) -> list[Example]:
    return _examples(draw, backward=True)


_ATTRS = "T: real, strides: list(int), rates: list(int), padding: string"
define(
    f"Dilation2D(input: T, filter: T; {_ATTRS}) -> (output: T)",
    shape=_shape,
    gradient=_of_dilation,
    kernel=_dilation,
    examples=_examples,
)
define(
    f"Dilation2DBackpropInput(input: T, filter: T, out_backprop: T; {_ATTRS}) -> (in_backprop: T)",
    shape=lambda x, f, dy: x.shape,
    gradient=_of_to_input,
    kernel=_to_input,
    examples=_backward_examples,
)
define(
    f"Dilation2DBackpropFilter(input: T, filter: T, out_backprop: T; {_ATTRS}) -> (filter_backprop: T)",
    shape=lambda x, f, dy: f.shape,
    gradient=_of_to_filter,
    kernel=_to_filter,
    examples=_backward_examples,
)
