"""Convolutions of images and volumes, plain, grouped and depthwise, and the ops of their gradients.

z = conv(x, f) is linear in x and in f, so each trio (forward, backprop to the input, backprop to the filter) closes
on itself: every derivative of one of the three is written with the other two.

A kernel brings the layout to channels last, cuts the image into patches (windows.py) and leaves the work to one
matrix product: y [n * windows, k] = patches [n * windows, positions * c] @ f [positions * c, k].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Dimension, Shape, merge_dimension
from gradserve.graph.symbolic import shape_of
from gradserve.ops import windows
from gradserve.ops.precision import widen
from gradserve.ops.windows import Axis, pieces, put_back

# What every op here needs of its attrs


def channel_axis(data_format: str) -> int:
    """The axis of the channels, 1 or -1. Raises InvalidArgument for a format that is not known."""
    if data_format in ("NHWC", "NDHWC"):
        return -1
    if data_format in ("NCHW", "NCDHW"):
        return 1
    raise InvalidArgument(f"The data format {data_format!r} is not supported.", data_format=data_format)


def _spatial(values: Sequence[Any], data_format: str) -> list[Any]:
    return list(values[2:] if channel_axis(data_format) == 1 else values[1:-1])


def _last(xp: Any, x: Any, data_format: str) -> Any:
    """x with its channels last."""
    return xp.moveaxis(x, 1, -1) if channel_axis(data_format) == 1 else x


def _given(xp: Any, x: Any, data_format: str) -> Any:
    """x, whose channels are last, in the layout of the op."""
    return xp.moveaxis(x, -1, 1) if channel_axis(data_format) == 1 else x


def _kept(node: Node, *names: str) -> dict[str, Any]:
    """The attrs that a gradient op takes over from its forward op, those at their defaults left out."""
    wanted = (*names, "strides", "padding", "explicit_paddings", "data_format", "dilations")
    return {name: node.attrs[name] for name in wanted if name in node.attrs}


def _explicit(node: Node) -> list[int]:
    return list(node.attrs.get("explicit_paddings", ()))


def _windows(node: Node, lengths: Sequence[int], sizes: Sequence[int]) -> list[Axis]:
    """The windows over channels-last arrays [n, spatial.., c]; n and c are passed over."""
    attrs = node.attrs
    layout = attrs["data_format"]
    pads = windows.pairs(_explicit(node), len(attrs["strides"]))
    columns = zip(
        lengths,
        sizes,
        _spatial(attrs["strides"], layout),
        _spatial(attrs["dilations"], layout),
        _spatial(pads, layout),
        strict=True,
    )
    return [windows.axis(*column[:4], attrs["padding"], column[4]) for column in columns]


def _around(inner: Sequence[Axis], batch: int, channels: int) -> list[Axis]:
    """Windows of size 1 on the outer axes."""
    return [Axis(1, 1, 1, 0, 0, batch), *inner, Axis(1, 1, 1, 0, 0, channels)]


# Shapes


def _convolved(x: Tensor, f: Tensor, node: Node, *, depthwise: bool) -> Shape:
    rank = len(node.attrs["strides"])
    for tensor in (x, f):
        if tensor.rank not in (None, rank):
            raise InvalidShape(
                f"{tensor.name} must have rank {rank}, but has shape {tensor.shape}.", tensor=tensor.name
            )
    layout = node.attrs["data_format"]
    image: Any = x.shape or (None,) * rank
    kernel: Any = f.shape or (None,) * rank
    channels: Dimension = image[channel_axis(layout)]
    if channels is not None and kernel[-2] is not None:
        whole = channels == kernel[-2] if depthwise else kernel[-2] > 0 and channels % kernel[-2] == 0
        if not whole and (depthwise or channels):
            raise InvalidShape(
                f"The input has {channels} channels, which does not suit a filter of {kernel[-2]}.",
                input=x.shape,
                filter=f.shape,
            )
    last: Dimension = kernel[-1]
    if depthwise:
        channels = merge_dimension(channels, kernel[-2])
        last = None if channels is None or last is None else channels * last
    sizes = _sizes(node, _spatial(image, layout), kernel[:-2])
    return (image[0], last, *sizes) if channel_axis(layout) == 1 else (image[0], *sizes, last)


def _sizes(node: Node, lengths: Sequence[Dimension], sizes: Sequence[Dimension]) -> list[Dimension]:
    attrs = node.attrs
    layout = attrs["data_format"]
    pads = windows.pairs(_explicit(node), len(attrs["strides"]))
    columns = zip(
        lengths,
        sizes,
        _spatial(attrs["strides"], layout),
        _spatial(attrs["dilations"], layout),
        _spatial(pads, layout),
        strict=True,
    )
    return [windows.output_size(*column[:4], attrs["padding"], column[4]) for column in columns]


def _conv_shape(x: Tensor, f: Tensor, *, node: Node) -> Shape:
    return _convolved(x, f, node, depthwise=False)


def _depthwise_shape(x: Tensor, f: Tensor, *, node: Node) -> Shape:
    return _convolved(x, f, node, depthwise=True)


def _input_shape(sizes: Tensor, f: Tensor, dy: Tensor, *, node: Node) -> Shape:
    """The shape that is asked for; a vector of the two spatial sizes alone is completed by dy and f."""
    shape = static.shape_value(sizes)
    rank = len(node.attrs["strides"])
    if shape is not None and len(shape) == rank - 2:
        batch = None if dy.shape is None else dy.shape[0]
        channels = None if f.shape is None else f.shape[-2]
        first = channel_axis(node.attrs["data_format"]) == 1
        return (batch, channels, *shape) if first else (batch, *shape, channels)
    return (None,) * rank if shape is None else shape


def _filter_shape(x: Tensor, sizes: Tensor, dy: Tensor, *, node: Node) -> Shape:
    shape = static.shape_value(sizes)
    return (None,) * len(node.attrs["strides"]) if shape is None else shape


# Kernels


def _patches(xp: Any, x: Any, inner: Sequence[Axis], groups: int) -> Any:
    """[groups, n * windows, positions * c / groups]."""
    batch, channels = x.shape[0], x.shape[-1]
    outer = _around(inner, batch, channels)
    cut = list(pieces(xp, x, outer))
    stacked = cut[0][..., None, :] if len(cut) == 1 else xp.stack(cut, axis=-2)
    rows = _rows(batch, inner)
    width = channels // groups
    if groups == 1:
        return stacked.reshape(1, rows, len(cut) * width)
    split = stacked.reshape(rows, len(cut), groups, width)
    return xp.moveaxis(split, 2, 0).reshape(groups, rows, len(cut) * width)


def _rows(batch: int, inner: Sequence[Axis]) -> int:
    rows = batch
    for window in inner:
        rows *= window.count
    return rows


def _by_group(xp: Any, x: Any, rows: int, groups: int) -> Any:
    """[groups, rows, k / groups] of an array whose last axis has the k channels of all groups."""
    return xp.moveaxis(x.reshape(rows, groups, x.shape[-1] // groups), 1, 0)


def _groups(channels: int, filter_channels: int) -> int:
    return channels // filter_channels if filter_channels and channels else 1


def _filter_by_group(xp: Any, f: Any, groups: int) -> Any:
    """[groups, positions * c, k / groups]."""
    matrix = f.reshape(_product(f.shape[:-1]), groups, f.shape[-1] // groups)
    return xp.moveaxis(matrix, 1, 0)


def _product(sizes: Sequence[int]) -> int:
    return int(np.prod(sizes, dtype=np.int64))


def _conv(xp: Any, x: Any, f: Any, *, node: Node) -> Any:
    layout = node.attrs["data_format"]
    image = widen(xp, _last(xp, x, layout))
    inner = _windows(node, image.shape[1:-1], f.shape[:-2])
    groups = _groups(image.shape[-1], f.shape[-2])
    columns = _patches(xp, image, inner, groups)
    product = xp.matmul(columns, _filter_by_group(xp, widen(xp, f), groups))
    shape = (image.shape[0], *(window.count for window in inner), f.shape[-1])
    return _given(xp, xp.moveaxis(product, 0, 1).reshape(shape), layout).astype(x.dtype)


def _conv_to_input(xp: Any, sizes: Any, f: Any, dy: Any, *, node: Node) -> Any:
    layout = node.attrs["data_format"]
    cotangent = widen(xp, _last(xp, dy, layout))
    lengths = [int(size) for size in (sizes if len(sizes) == f.ndim - 2 else _spatial(sizes, layout))]
    channels = f.shape[-2] if len(sizes) == f.ndim - 2 else int(sizes[channel_axis(layout)])
    batch = cotangent.shape[0]
    inner = _windows(node, lengths, f.shape[:-2])
    _check_windows(cotangent.shape[1:-1], inner)
    groups = _groups(channels, f.shape[-2])
    rows = _rows(batch, inner)
    weights = xp.swapaxes(_filter_by_group(xp, widen(xp, f), groups), 1, 2)
    columns = xp.matmul(_by_group(xp, cotangent, rows, groups), weights)
    positions = _product(f.shape[:-2])
    shape = (batch, *(window.count for window in inner), positions, channels)
    split = xp.moveaxis(columns.reshape(groups, rows, positions, f.shape[-2]), 0, 2).reshape(shape)
    outer = _around(inner, batch, channels)
    parts = (split[..., k, :] for k in range(positions))
    image = put_back(xp, parts, outer, (batch, *lengths, channels), cotangent.dtype)
    return _given(xp, image, layout).astype(dy.dtype)


def _conv_to_filter(xp: Any, x: Any, sizes: Any, dy: Any, *, node: Node) -> Any:
    layout = node.attrs["data_format"]
    image, cotangent = widen(xp, _last(xp, x, layout)), widen(xp, _last(xp, dy, layout))
    shape = tuple(int(size) for size in sizes)
    inner = _windows(node, image.shape[1:-1], shape[:-2])
    _check_windows(cotangent.shape[1:-1], inner)
    groups = _groups(image.shape[-1], shape[-2])
    columns = xp.swapaxes(_patches(xp, image, inner, groups), 1, 2)
    product = xp.matmul(columns, _by_group(xp, cotangent, _rows(image.shape[0], inner), groups))
    return xp.moveaxis(product, 0, 1).reshape(shape).astype(x.dtype)


def _check_windows(found: Sequence[int], inner: Sequence[Axis]) -> None:
    expected = tuple(window.count for window in inner)
    if tuple(found) != expected:
        raise InvalidShape(f"out_backprop has {tuple(found)} windows, but the input has {expected}.")


def _depthwise(xp: Any, x: Any, f: Any, *, node: Node) -> Any:
    """y[.., c, m] = Σ over the positions of x[.., c] f[position, c, m]."""
    layout = node.attrs["data_format"]
    image, weights = widen(xp, _last(xp, x, layout)), widen(xp, f)
    inner = _windows(node, image.shape[1:-1], f.shape[:-2])
    matrix = weights.reshape(-1, *f.shape[-2:]) if f.size else weights.reshape(_product(f.shape[:-2]), *f.shape[-2:])
    outer = _around(inner, image.shape[0], image.shape[-1])
    shape = (image.shape[0], *(window.count for window in inner), f.shape[-2], f.shape[-1])
    total = xp.zeros(shape, dtype=image.dtype)
    for k, piece in enumerate(pieces(xp, image, outer)):
        total = total + piece[..., None] * matrix[k]
    return _given(xp, total.reshape(*shape[:-2], shape[-2] * shape[-1]), layout).astype(x.dtype)


def _depthwise_to_input(xp: Any, sizes: Any, f: Any, dy: Any, *, node: Node) -> Any:
    layout = node.attrs["data_format"]
    cotangent, weights = widen(xp, _last(xp, dy, layout)), widen(xp, f)
    lengths = [int(size) for size in _spatial(sizes, layout)]
    batch, channels = cotangent.shape[0], f.shape[-2]
    inner = _windows(node, lengths, f.shape[:-2])
    _check_windows(cotangent.shape[1:-1], inner)
    split = cotangent.reshape(*cotangent.shape[:-1], *f.shape[-2:])
    matrix = weights.reshape(_product(f.shape[:-2]), *f.shape[-2:])
    parts = (xp.sum(split * matrix[k], axis=-1) for k in range(matrix.shape[0]))
    outer = _around(inner, batch, channels)
    return _given(
        xp, put_back(xp, parts, outer, (batch, *lengths, channels), cotangent.dtype), layout
    ).astype(dy.dtype)  # fmt: skip


def _depthwise_to_filter(xp: Any, x: Any, sizes: Any, dy: Any, *, node: Node) -> Any:
    layout = node.attrs["data_format"]
    image, cotangent = widen(xp, _last(xp, x, layout)), widen(xp, _last(xp, dy, layout))
    shape = tuple(int(size) for size in sizes)
    inner = _windows(node, image.shape[1:-1], shape[:-2])
    _check_windows(cotangent.shape[1:-1], inner)
    split = cotangent.reshape(*cotangent.shape[:-1], *shape[-2:])
    leading = tuple(range(image.ndim - 1))
    outer = _around(inner, image.shape[0], image.shape[-1])
    sums = [xp.sum(piece[..., None] * split, axis=leading) for piece in pieces(xp, image, outer)]
    return (xp.stack(sums) if sums else xp.zeros((0,), dtype=image.dtype)).reshape(shape).astype(x.dtype)


# Gradients: for z = conv(x, f), with X = backprop to the input and F = backprop to the filter,
# dx = X(f, dz), df = F(x, dz); for u = X(f, y), df = F(du, y), dy = conv(du, f); for w = F(x, y), dx = X(dw, y), ..


def _trio(forward: str, to_input: str, to_filter: str, *also: str) -> tuple[Any, Any, Any]:
    """The gradient rules of a trio, by the names of its ops; `also` are further attrs that all three have."""

    def of_forward(dz: Tensor, z: Tensor, x: Tensor, f: Tensor, *, node: Node) -> Any:
        attrs = _kept(node, *also)
        return (
            getattr(raw, to_input)(shape_of(x), f, dz, **attrs),
            getattr(raw, to_filter)(x, shape_of(f), dz, **attrs),
        )

    def of_input(du: Tensor, u: Tensor, sizes: Tensor, f: Tensor, y: Tensor, *, node: Node) -> Any:
        attrs = _kept(node, *also)
        return (
            None,
            getattr(raw, to_filter)(du, shape_of(f), y, **attrs),
            getattr(raw, forward)(du, f, **attrs),
        )

    def of_filter(dw: Tensor, w: Tensor, x: Tensor, sizes: Tensor, y: Tensor, *, node: Node) -> Any:
        attrs = _kept(node, *also)
        return (
            getattr(raw, to_input)(shape_of(x), dw, y, **attrs),
            None,
            getattr(raw, forward)(x, dw, **attrs),
        )

    return of_forward, of_input, of_filter


# Examples


class _Drawn:
    """A drawn convolution: x, f and dy of suiting shapes, and the attrs."""

    def __init__(self, draw: Any, dimensions: int, *, depthwise: bool) -> None:
        first = bool(draw.size(0, 1))
        names = {(2, False): "NHWC", (2, True): "NCHW", (3, False): "NDHWC", (3, True): "NCDHW"}
        groups = 1 if depthwise else draw.size(1, 2)
        channels, last = draw.size(1, 2), draw.size(1, 2)
        sizes = [draw.size(1, 3 if dimensions == 2 else 2) for _ in range(dimensions)]
        stride, step = draw.size(1, 2), draw.size(1, 2)
        lengths = [(size - 1) * step + 1 + draw.size(0, 2) for size in sizes]
        paddings = ["SAME", "VALID", "EXPLICIT"] if dimensions == 2 else ["SAME", "VALID"]
        self.attrs: dict[str, Any] = {"padding": draw.pick(paddings), "data_format": names[dimensions, first]}
        self.attrs["strides"] = self._ordered([1, *[stride] * dimensions, 1], first)
        self.attrs["dilations"] = self._ordered([1, *[step] * dimensions, 1], first)
        pads = [(0, 0), *((draw.size(0, 2), draw.size(0, 1)) for _ in range(dimensions)), (0, 0)]
        if self.attrs["padding"] == "EXPLICIT":
            self.attrs["explicit_paddings"] = [side for pair in self._ordered(pads, first) for side in pair]
        else:
            pads = [(0, 0)] * (dimensions + 2)
        batch = draw.size(0, 2)
        counts = [
            windows.output_size(length, size, stride, step, self.attrs["padding"], pad) or 0
            for length, size, pad in zip(lengths, sizes, pads[1:-1], strict=True)
        ]
        output = channels * last if depthwise else last * groups
        self.x = draw.normal(*self._ordered([batch, *lengths, channels * groups], first))
        self.f = draw.normal(*sizes, channels, last if depthwise else output)
        self.dy = draw.normal(*self._ordered([batch, *counts, output], first))

    @staticmethod
    def _ordered(values: list[Any], first: bool) -> list[Any]:
        return [values[0], values[-1], *values[1:-1]] if first else values


def _examples(dimensions: int, which: str, *, depthwise: bool = False) -> Any:
    def examples(draw: Any) -> list[Example]:
        drawn = _Drawn(draw, dimensions, depthwise=depthwise)
        if which == "forward":
            return [call(drawn.x, drawn.f, **drawn.attrs)]
        if which == "input":
            return [call(np.array(drawn.x.shape, np.int32), drawn.f, drawn.dy, **drawn.attrs)]
        return [call(drawn.x, np.array(drawn.f.shape, np.int32), drawn.dy, **drawn.attrs)]

    return examples


# The ops

_IMAGE_ATTRS = (
    "padding: string, explicit_paddings: list(int) = [], data_format: string = 'NHWC',"
    " dilations: list(int) = [1, 1, 1, 1]"
)
_PLANE = "bfloat16|float16|float32|float64|int32"
_of_conv, _of_conv_to_input, _of_conv_to_filter = _trio(
    "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "use_cudnn_on_gpu"
)
define(
    f"Conv2D(input: T, filter: T; T: {_PLANE}, strides: list(int), use_cudnn_on_gpu: bool = true, {_IMAGE_ATTRS})"
    " -> (output: T)",
    shape=_conv_shape,
    gradient=_of_conv,
    kernel=_conv,
    examples=_examples(2, "forward"),
)
define(
    f"Conv2DBackpropInput(input_sizes: int32, filter: T, out_backprop: T; T: {_PLANE}, strides: list(int),"
    f" use_cudnn_on_gpu: bool = true, {_IMAGE_ATTRS}) -> (output: T)",
    shape=_input_shape,
    gradient=_of_conv_to_input,
    kernel=_conv_to_input,
    host=("input_sizes",),
    examples=_examples(2, "input"),
)
define(
    "Conv2DBackpropFilter(input: T, filter_sizes: int32, out_backprop: T; T: floating, strides: list(int),"
    f" use_cudnn_on_gpu: bool = true, {_IMAGE_ATTRS}) -> (output: T)",
    shape=_filter_shape,
    gradient=_of_conv_to_filter,
    kernel=_conv_to_filter,
    host=("filter_sizes",),
    examples=_examples(2, "filter"),
)

_of_depthwise, _of_depthwise_to_input, _of_depthwise_to_filter = _trio(
    "DepthwiseConv2dNative", "DepthwiseConv2dNativeBackpropInput", "DepthwiseConv2dNativeBackpropFilter"
)
define(
    f"DepthwiseConv2dNative(input: T, filter: T; T: floating, strides: list(int), {_IMAGE_ATTRS}) -> (output: T)",
    shape=_depthwise_shape,
    gradient=_of_depthwise,
    kernel=_depthwise,
    examples=_examples(2, "forward", depthwise=True),
)
define(
    "DepthwiseConv2dNativeBackpropInput(input_sizes: int32, filter: T, out_backprop: T; T: floating,"
    f" strides: list(int), {_IMAGE_ATTRS}) -> (output: T)",
    shape=_input_shape,
    gradient=_of_depthwise_to_input,
    kernel=_depthwise_to_input,
    host=("input_sizes",),
    examples=_examples(2, "input", depthwise=True),
)
define(
    "DepthwiseConv2dNativeBackpropFilter(input: T, filter_sizes: int32, out_backprop: T; T: floating,"
    f" strides: list(int), {_IMAGE_ATTRS}) -> (output: T)",
    shape=_filter_shape,
    gradient=_of_depthwise_to_filter,
    kernel=_depthwise_to_filter,
    host=("filter_sizes",),
    examples=_examples(2, "filter", depthwise=True),
)

_VOLUME_ATTRS = "padding: string, data_format: string = 'NDHWC', dilations: list(int) = [1, 1, 1, 1, 1]"
_of_volume, _of_volume_to_input, _of_volume_to_filter = _trio(
    "Conv3D", "Conv3DBackpropInputV2", "Conv3DBackpropFilterV2"
)
define(
    f"Conv3D(input: T, filter: T; T: floating, strides: list(int), {_VOLUME_ATTRS}) -> (output: T)",
    shape=_conv_shape,
    gradient=_of_volume,
    kernel=_conv,
    examples=_examples(3, "forward"),
)
define(
    "Conv3DBackpropInputV2(input_sizes: Tshape, filter: T, out_backprop: T; T: floating, strides: list(int),"
    f" {_VOLUME_ATTRS}, Tshape: index = int32) -> (output: T)",
    shape=_input_shape,
    gradient=_of_volume_to_input,
    kernel=_conv_to_input,
    host=("input_sizes",),
    examples=_examples(3, "input"),
)
define(
    "Conv3DBackpropFilterV2(input: T, filter_sizes: int32, out_backprop: T; T: floating, strides: list(int),"
    f" {_VOLUME_ATTRS}) -> (output: T)",
    shape=_filter_shape,
    gradient=_of_volume_to_filter,
    kernel=_conv_to_filter,
    host=("filter_sizes",),
    examples=_examples(3, "filter"),
)
