"""Maximum and average over windows of images and volumes, and the ops of their gradients.

The windows move over all axes of an array in its own layout (windows.py). Where several entries of a window are the
largest, the first in scan order takes all of the gradient. A maximum's gradient is piecewise linear in the
cotangent and constant in the images, so MaxPoolGrad and MaxPoolGradGrad are each other's derivatives, and what they
hand to the images is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidShape
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import shape_of
from gradserve.ops import windows
from gradserve.ops.conv import channel_axis
from gradserve.ops.precision import lowest, widen
from gradserve.ops.windows import Axis, pieces, put_back


def _explicit(node: Node) -> list[int]:
    return list(node.attrs.get("explicit_paddings", ()))


def _axes(node: Node, shape: Sequence[int], ksize: Sequence[Any], strides: Sequence[Any]) -> list[Axis]:
    sizes, steps = [int(size) for size in ksize], [int(stride) for stride in strides]
    return windows.axes(shape, sizes, steps, node.attrs["padding"], _explicit(node))


def _shape(x: Tensor, ksize: Sequence[int] | None, strides: Sequence[int] | None, node: Node) -> Shape:
    channel_axis(node.attrs.get("data_format", "NHWC"))
    rank = len(ksize) if ksize is not None else 4
    if x.rank not in (None, rank):
        raise InvalidShape(f"{x.name} must have rank {rank}, but has shape {x.shape}.", tensor=x.name)
    lengths = x.shape or (None,) * rank
    if ksize is None or strides is None:
        return (None,) * rank
    pads = windows.pairs(_explicit(node), rank)
    columns = zip(lengths, ksize, strides, pads, strict=True)
    return tuple(windows.output_size(n, k, s, 1, node.attrs["padding"], pad) for n, k, s, pad in columns)


def _pooled_shape(x: Tensor, *, node: Node) -> Shape:
    return _shape(x, node.attrs["ksize"], node.attrs["strides"], node)


def _known(sizes: Tensor) -> list[int] | None:
    value = static.value(sizes)
    return None if value is None else [int(size) for size in value]


def _pooled_shape_from_inputs(x: Tensor, ksize: Tensor, strides: Tensor, *, node: Node) -> Shape:
    return _shape(x, _known(ksize), _known(strides), node)


def _kept(node: Node) -> dict[str, Any]:
    """The attrs that the gradient ops of a pooling op share, without explicit paddings."""
    names = ("ksize", "strides", "padding", "data_format", "include_batch_in_index")
    return {name: node.attrs[name] for name in names if name in node.attrs}


# The largest entry of each window


def _maximum(xp: Any, x: Any, over: Sequence[Axis]) -> Any:
    return windows.largest(xp, pieces(xp, x, over, lowest(x.dtype)), x.dtype)


def _hits(xp: Any, x: Any, over: Sequence[Axis]) -> Iterator[Any]:
    """For each position inside of the window: where it holds the first of the largest entries."""
    return windows.hits(xp, pieces(xp, x, over, lowest(x.dtype)), _maximum(xp, x, over), _inside(x, over))


def _equals(xp: Any, x: Any, over: Sequence[Axis]) -> Iterator[Any]:
    """For each position inside of the window: where it holds one of the largest entries."""
    return windows.equals(xp, pieces(xp, x, over, lowest(x.dtype)), _maximum(xp, x, over), _inside(x, over))


def _inside(x: Any, over: Sequence[Axis]) -> Iterator[Any] | None:
    """Where each position of the window lies inside of the image, where there is padding."""
    padded = any(window.before + window.after for window in over)
    return pieces(np, np.ones(x.shape, bool), over, False) if padded else None


def _to_image(xp: Any, dy: Any, hits: Iterator[Any], over: Sequence[Axis], shape: Sequence[int]) -> Any:
    """Each window's cotangent to the entry that was hit."""
    wide = widen(xp, dy)
    nothing = xp.zeros_like(wide)
    return put_back(xp, (xp.where(hit, wide, nothing) for hit in hits), over, shape, wide.dtype).astype(dy.dtype)


def _from_image(xp: Any, g: Any, hits: Iterator[Any], over: Sequence[Axis]) -> Any:
    """Of an image, the entry that was hit in each window: the adjoint of `_to_image`."""
    total: Any = None
    for hit, part in zip(hits, pieces(xp, g, over), strict=True):
        picked = xp.where(hit, part, xp.zeros_like(part))
        total = picked if total is None else total + picked
    return total


def _max_pool(xp: Any, x: Any, *, node: Node) -> Any:
    return _maximum(xp, x, _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"]))


def _max_pool_by_inputs(xp: Any, x: Any, ksize: Any, strides: Any, *, node: Node) -> Any:
    return _maximum(xp, x, _axes(node, x.shape, ksize, strides))


def _max_pool_grad(xp: Any, x: Any, y: Any, dy: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    return _to_image(xp, dy, _hits(xp, x, over), over, x.shape)


def _max_pool_grad_by_inputs(xp: Any, x: Any, y: Any, dy: Any, ksize: Any, strides: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, ksize, strides)
    return _to_image(xp, dy, _hits(xp, x, over), over, x.shape)


def _max_volume_grad(xp: Any, x: Any, y: Any, dy: Any, *, node: Node) -> Any:
    """In a volume each of the largest entries gets the whole cotangent, as in TensorFlow's kernel for CPUs."""
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    return _to_image(xp, dy, _equals(xp, x, over), over, x.shape)


def _max_pool_grad_grad(xp: Any, x: Any, y: Any, g: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    return _from_image(xp, g, _hits(xp, x, over), over)


def _max_pool_grad_grad_by_inputs(xp: Any, x: Any, y: Any, g: Any, ksize: Any, strides: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, ksize, strides)
    return _from_image(xp, g, _hits(xp, x, over), over)


# Gradients of the maxima. Let P be the (linear) picking of the largest entries: MaxPoolGradGrad(g) = P g and
# MaxPoolGrad(dy) = P^T dy, both constant in the images.


def _of_max_pool(dy: Tensor, y: Tensor, x: Tensor, *, node: Node) -> Tensor:
    attrs = _kept(node)
    if _explicit(node):
        attrs["explicit_paddings"] = _explicit(node)
    return raw.MaxPoolGrad(x, y, dy, **attrs)


def _of_max_pool_grad(dz: Tensor, z: Tensor, x: Tensor, y: Tensor, dy: Tensor, *, node: Node) -> Any:
    """MaxPoolGradGrad has no explicit paddings: with such, it gets padded images."""
    attrs = _kept(node)
    image = x
    if attrs["padding"] == "EXPLICIT":
        attrs["padding"] = "VALID"
        rank = len(attrs["strides"])
        pads = np.array(windows.pairs(_explicit(node), rank), np.int32)
        image = raw.PadV2(x, pads, np.array(lowest(x.dtype.numpy), x.dtype.numpy))
        dz = raw.Pad(dz, pads)
    return raw.ZerosLike(x), raw.ZerosLike(y), raw.MaxPoolGradGrad(image, y, dz, **attrs)


def _of_max_pool_grad_grad(dz: Tensor, z: Tensor, x: Tensor, y: Tensor, g: Tensor, *, node: Node) -> Any:
    return raw.ZerosLike(x), raw.ZerosLike(y), raw.MaxPoolGrad(x, y, dz, **_kept(node))


def _of_max_pool_by_inputs(dy: Tensor, y: Tensor, x: Tensor, ksize: Tensor, strides: Tensor, *, node: Node) -> Any:
    return raw.MaxPoolGradV2(x, y, dy, ksize, strides, **_kept(node)), None, None


def _of_max_pool_grad_by_inputs(
    dz: Tensor, z: Tensor, x: Tensor, y: Tensor, dy: Tensor, ksize: Tensor, strides: Tensor, *, node: Node
) -> Any:
    picked = raw.MaxPoolGradGradV2(x, y, dz, ksize, strides, **_kept(node))
    return raw.ZerosLike(x), raw.ZerosLike(y), picked, None, None


def _of_max_pool_grad_grad_by_inputs(
    dz: Tensor, z: Tensor, x: Tensor, y: Tensor, g: Tensor, ksize: Tensor, strides: Tensor, *, node: Node
) -> Any:
    back = raw.MaxPoolGradV2(x, y, dz, ksize, strides, **_kept(node))
    return raw.ZerosLike(x), raw.ZerosLike(y), back, None, None


def _of_volume(dy: Tensor, y: Tensor, x: Tensor, *, node: Node) -> Tensor:
    return raw.MaxPool3DGrad(x, y, dy, **_kept(node))


def _of_volume_grad(dz: Tensor, z: Tensor, x: Tensor, y: Tensor, dy: Tensor, *, node: Node) -> Any:
    return raw.ZerosLike(x), raw.ZerosLike(y), raw.MaxPool3DGradGrad(x, y, dz, **_kept(node))


def _of_volume_grad_grad(dz: Tensor, z: Tensor, x: Tensor, y: Tensor, g: Tensor, *, node: Node) -> Any:
    return raw.ZerosLike(x), raw.ZerosLike(y), raw.MaxPool3DGrad(x, y, dz, **_kept(node))


# The largest entry and where it stands


def _numbered(node: Node, shape: Sequence[int], over: Sequence[Axis]) -> Iterator[Any]:
    """For each position inside of the window: the number, in the flattened image, of what stands there."""
    numbers = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)
    if not node.attrs["include_batch_in_index"]:
        numbers = numbers - numbers[:, :1, :1, :1]
    return pieces(np, numbers, over, -1)


def _max_pool_with_argmax(xp: Any, x: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    found: Any = 0
    for hit, number in zip(_hits(xp, x, over), _numbered(node, x.shape, over), strict=True):
        found = found + xp.where(hit, xp.asarray(number), 0)
    return _maximum(xp, x, over), found.astype(node.attrs["Targmax"].numpy)


def _argmax_hits(xp: Any, x: Any, argmax: Any, over: Sequence[Axis], node: Node) -> Iterator[Any]:
    return (argmax == xp.asarray(number.astype(argmax.dtype)) for number in _numbered(node, x.shape, over))


def _to_argmax(xp: Any, x: Any, dy: Any, argmax: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    return _to_image(xp, dy, _argmax_hits(xp, x, argmax, over, node), over, x.shape)


def _from_argmax(xp: Any, x: Any, g: Any, argmax: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    return _from_image(xp, g, _argmax_hits(xp, x, argmax, over, node), over)


def _of_argmax(dy: Tensor, dargmax: Any, y: Tensor, argmax: Tensor, x: Tensor, *, node: Node) -> Tensor:
    return raw.MaxPoolGradWithArgmax(x, dy, argmax, **_kept(node))


def _of_to_argmax(dz: Tensor, z: Tensor, x: Tensor, dy: Tensor, argmax: Tensor, *, node: Node) -> Any:
    return raw.ZerosLike(x), raw.MaxPoolGradGradWithArgmax(x, dz, argmax, **_kept(node)), None


def _of_from_argmax(dz: Tensor, z: Tensor, x: Tensor, g: Tensor, argmax: Tensor, *, node: Node) -> Any:
    return raw.ZerosLike(x), raw.MaxPoolGradWithArgmax(x, dz, argmax, **_kept(node)), None


# Averages: the padding doesn't count


def _shares(xp: Any, shape: Sequence[int], over: Sequence[Axis], dtype: Any) -> Any:
    """One over the number of entries of each window, broadcast over nothing: [windows]."""
    counts = np.ones((1,) * len(shape))
    for k, (length, window) in enumerate(zip(shape, over, strict=True)):
        inside = pieces(np, np.ones(length), [window])
        line = sum(inside, np.zeros(window.count))
        counts = counts * line.reshape((-1,) + (1,) * (len(shape) - 1 - k))
    return xp.asarray((1 / np.maximum(counts, 1)).astype(dtype))


def _average(xp: Any, x: Any, *, node: Node) -> Any:
    over = _axes(node, x.shape, node.attrs["ksize"], node.attrs["strides"])
    wide = widen(xp, x)
    total: Any = 0
    for part in pieces(xp, wide, over):
        total = total + part
    return (total * _shares(xp, x.shape, over, wide.dtype)).astype(x.dtype)


def _average_grad(xp: Any, shape: Any, dy: Any, *, node: Node) -> Any:
    lengths = [int(size) for size in shape]
    over = _axes(node, lengths, node.attrs["ksize"], node.attrs["strides"])
    share = widen(xp, dy)
    share = share * _shares(xp, lengths, over, share.dtype)
    parts = (share for _ in windows.positions(over))
    return put_back(xp, parts, over, lengths, share.dtype).astype(dy.dtype)


def _asked_shape(shape: Tensor, dy: Tensor, *, node: Node) -> Shape:
    known = static.shape_value(shape)
    return (None,) * len(node.attrs["ksize"]) if known is None else known


def _of_average(dy: Tensor, y: Tensor, x: Tensor, *, node: Node) -> Tensor:
    return raw.AvgPoolGrad(shape_of(x), dy, **_kept(node))


def _of_average_grad(dz: Tensor, z: Tensor, shape: Tensor, dy: Tensor, *, node: Node) -> Any:
    return None, raw.AvgPool(dz, **_kept(node))


def _of_volume_average(dy: Tensor, y: Tensor, x: Tensor, *, node: Node) -> Tensor:
    return raw.AvgPool3DGrad(shape_of(x), dy, **_kept(node))


def _of_volume_average_grad(dz: Tensor, z: Tensor, shape: Tensor, dy: Tensor, *, node: Node) -> Any:
    return None, raw.AvgPool3D(dz, **_kept(node))


# Examples


class _Drawn:
    """A drawn image, its pooled maximum, a cotangent of that, and the attrs."""

    def __init__(self, draw: Any, dimensions: int, paddings: Sequence[str], *, last_only: bool = False) -> None:
        first = False if last_only else bool(draw.size(0, 1))
        sizes = [draw.size(1, 3 if dimensions == 2 else 2) for _ in range(dimensions)]
        stride = draw.size(1, 2)
        lengths = [size + draw.size(0, 2) for size in sizes]
        padding = draw.pick(paddings)
        names = {(2, False): "NHWC", (2, True): "NCHW", (3, False): "NDHWC", (3, True): "NCDHW"}
        self.ksize = [1, 1, *sizes] if first else [1, *sizes, 1]
        self.strides = [1, 1, *[stride] * dimensions] if first else [1, *[stride] * dimensions, 1]
        self.attrs: dict[str, Any] = {"padding": padding}
        if not last_only:
            self.attrs["data_format"] = names[dimensions, first]
        explicit: list[int] = []
        if padding == "EXPLICIT":
            pads = [(0, 0) if size == 1 else (draw.size(0, 1), draw.size(0, 1)) for size in self.ksize]
            explicit = [side for pair in pads for side in pair]
            self.attrs["explicit_paddings"] = explicit
        batch, channels = draw.size(0, 2), draw.size(1, 2)
        self.x = draw.distinct(*((batch, channels, *lengths) if first else (batch, *lengths, channels)))
        over = windows.axes(self.x.shape, self.ksize, self.strides, padding, explicit)
        self.y = _maximum(np, self.x, over)
        self.dy, self.g = draw.normal(*self.y.shape), draw.normal(*self.x.shape)

    @property
    def sized(self) -> dict[str, Any]:
        """The attrs with the window's size and strides among them."""
        return {"ksize": self.ksize, "strides": self.strides, **self.attrs}

    @property
    def sizes(self) -> list[Any]:
        """The window's size and strides as arrays."""
        return [np.array(self.ksize, np.int32), np.array(self.strides, np.int32)]

    def argmax(self) -> Any:
        """Where the largest entries stand."""
        over = windows.axes(self.x.shape, self.ksize, self.strides, self.attrs["padding"])
        numbers = np.arange(self.x.size).reshape(self.x.shape)
        numbers = numbers - numbers[:, :1, :1, :1]
        lines = zip(_hits(np, self.x, over), pieces(np, numbers, over), strict=True)
        return sum((np.where(hit, number, 0) for hit, number in lines), np.zeros(self.y.shape, np.int64))


_ALL = ("SAME", "VALID", "EXPLICIT")
_PLAIN = ("SAME", "VALID")


def _volume_examples(draw: Any, which: str) -> list[Example]:
    """Of dtype float32, the only one allowed: linear around each point, so the differences may take a large step."""
    drawn = _Drawn(draw, 3, _PLAIN)
    sources = {"forward": (drawn.x,), "grad": (drawn.x, drawn.y, drawn.dy), "grad_grad": (drawn.x, drawn.y, drawn.g)}
    return [call(*(value.astype(np.float32) for value in sources[which]), step=0.02, **drawn.sized)]


def _max_pool_examples(draw: Any) -> list[Example]:
    drawn = _Drawn(draw, 2, _ALL)
    return [
        call(drawn.x, **drawn.sized),
        call(draw.distinct(2, 3, 3, 4), ksize=[1, 1, 1, 2], strides=[1, 1, 1, 2], padding="VALID"),
    ]


def _max_pool_grad_examples(draw: Any) -> list[Example]:
    drawn = _Drawn(draw, 2, _ALL)
    return [call(drawn.x, drawn.y, drawn.dy, **drawn.sized)]


def _max_pool_grad_grad_examples(draw: Any) -> list[Example]:
    drawn = _Drawn(draw, 2, _PLAIN)
    return [call(drawn.x, drawn.y, drawn.g, **drawn.sized)]


def _by_inputs_examples(draw: Any, which: str) -> list[Example]:
    drawn = _Drawn(draw, 2, _PLAIN)
    sources = {"forward": [drawn.x], "grad": [drawn.x, drawn.y, drawn.dy], "grad_grad": [drawn.x, drawn.y, drawn.g]}
    return [call(*sources[which], *drawn.sizes, **drawn.attrs)]


def _argmax_examples(draw: Any, which: str) -> list[Example]:
    drawn = _Drawn(draw, 2, _PLAIN, last_only=True)
    if which == "forward":
        return [call(drawn.x, **drawn.sized)]
    return [call(drawn.x, drawn.dy if which == "grad" else drawn.g, drawn.argmax(), **drawn.sized)]


def _average_examples(draw: Any, dimensions: int) -> list[Example]:
    drawn = _Drawn(draw, dimensions, _PLAIN)
    return [call(drawn.x, **drawn.sized)]


def _average_grad_examples(draw: Any, dimensions: int) -> list[Example]:
    drawn = _Drawn(draw, dimensions, _PLAIN)
    return [call(np.array(drawn.x.shape, np.int32), drawn.dy, **drawn.sized)]


# The ops

_MOST = "bfloat16|float16|float32|float64|int16|int32|int64|int8|qint8|uint16|uint8"
_SIZES = "ksize: list(int), strides: list(int), padding: string"
_IMAGE = "data_format: string = 'NHWC'"
_VOLUME = f"{_SIZES}, data_format: string = 'NDHWC'"
_NARROW = "bfloat16|float16|float32"

define(
    f"MaxPool(input: T; T: {_MOST} = float32, {_SIZES}, explicit_paddings: list(int) = [], {_IMAGE}) -> (output: T)",
    shape=_pooled_shape,
    gradient=_of_max_pool,
    kernel=_max_pool,
    examples=_max_pool_examples,
)
define(
    f"MaxPoolGrad(orig_input: T, orig_output: T, grad: T; {_SIZES}, explicit_paddings: list(int) = [], {_IMAGE},"
    " T: real = float32) -> (output: T)",
    shape=lambda x, y, dy: x.shape,
    gradient=_of_max_pool_grad,
    kernel=_max_pool_grad,
    examples=_max_pool_grad_examples,
)
define(
    f"MaxPoolGradGrad(orig_input: T, orig_output: T, grad: T; {_SIZES}, {_IMAGE}, T: real) -> (output: T)",
    shape=lambda x, y, g: y.shape,
    gradient=_of_max_pool_grad_grad,
    kernel=_max_pool_grad_grad,
    examples=_max_pool_grad_grad_examples,
)

define(
    f"MaxPoolV2(input: T, ksize: int32, strides: int32; T: {_MOST} = float32, padding: string, {_IMAGE})"
    " -> (output: T)",
    shape=_pooled_shape_from_inputs,
    gradient=_of_max_pool_by_inputs,
    kernel=_max_pool_by_inputs,
    host=("ksize", "strides"),
    examples=lambda draw: _by_inputs_examples(draw, "forward"),
)
define(
    "MaxPoolGradV2(orig_input: T, orig_output: T, grad: T, ksize: int32, strides: int32; padding: string,"
    f" {_IMAGE}, T: real = float32) -> (output: T)",
    shape=lambda x, y, dy, ksize, strides: x.shape,
    gradient=_of_max_pool_grad_by_inputs,
    kernel=_max_pool_grad_by_inputs,
    host=("ksize", "strides"),
    examples=lambda draw: _by_inputs_examples(draw, "grad"),
)
define(
    "MaxPoolGradGradV2(orig_input: T, orig_output: T, grad: T, ksize: int32, strides: int32; padding: string,"
    f" {_IMAGE}, T: real) -> (output: T)",
    shape=lambda x, y, g, ksize, strides: y.shape,
    gradient=_of_max_pool_grad_grad_by_inputs,
    kernel=_max_pool_grad_grad_by_inputs,
    host=("ksize", "strides"),
    examples=lambda draw: _by_inputs_examples(draw, "grad_grad"),
)

define(
    "MaxPoolWithArgmax(input: T; ksize: list(int), strides: list(int), Targmax: index = int64, padding: string,"
    " include_batch_in_index: bool = false, T: real) -> (output: T, argmax: Targmax)",
    shape=lambda x, *, node: [_pooled_shape(x, node=node)] * 2,
    gradient=_of_argmax,
    kernel=_max_pool_with_argmax,
    examples=lambda draw: _argmax_examples(draw, "forward"),
)
define(
    f"MaxPoolGradWithArgmax(input: T, grad: T, argmax: Targmax; {_SIZES}, include_batch_in_index: bool = false,"
    " Targmax: index, T: real) -> (output: T)",
    shape=lambda x, dy, argmax: x.shape,
    gradient=_of_to_argmax,
    kernel=_to_argmax,
    examples=lambda draw: _argmax_examples(draw, "grad"),
)
define(
    f"MaxPoolGradGradWithArgmax(input: T, grad: T, argmax: Targmax; {_SIZES}, include_batch_in_index: bool = false,"
    " Targmax: index, T: real) -> (output: T)",
    shape=lambda x, g, argmax: argmax.shape,
    gradient=_of_from_argmax,
    kernel=_from_argmax,
    examples=lambda draw: _argmax_examples(draw, "grad_grad"),
)

define(
    f"MaxPool3D(input: T; {_VOLUME}, T: {_NARROW}) -> (output: T)",
    shape=_pooled_shape,
    gradient=_of_volume,
    kernel=_max_pool,
    examples=lambda draw: _volume_examples(draw, "forward"),
)
define(
    f"MaxPool3DGrad(orig_input: TInput, orig_output: TInput, grad: T; {_VOLUME}, T: {_NARROW} = float32,"
    f" TInput: {_NARROW} = float32) -> (output: T)",
    shape=lambda x, y, dy: x.shape,
    gradient=_of_volume_grad,
    kernel=_max_volume_grad,
    examples=lambda draw: _volume_examples(draw, "grad"),
)
define(
    f"MaxPool3DGradGrad(orig_input: T, orig_output: T, grad: T; {_VOLUME}, T: real) -> (output: T)",
    shape=lambda x, y, g: y.shape,
    gradient=_of_volume_grad_grad,
    kernel=_max_pool_grad_grad,
    examples=lambda draw: _volume_examples(draw, "grad_grad"),
)

define(
    f"AvgPool(value: T; {_SIZES}, {_IMAGE}, T: floating) -> (output: T)",
    shape=_pooled_shape,
    gradient=_of_average,
    kernel=_average,
    examples=lambda draw: _average_examples(draw, 2),
)
define(
    f"AvgPoolGrad(orig_input_shape: int32, grad: T; {_SIZES}, {_IMAGE}, T: floating) -> (output: T)",
    shape=_asked_shape,
    gradient=_of_average_grad,
    kernel=_average_grad,
    host=("orig_input_shape",),
    examples=lambda draw: _average_grad_examples(draw, 2),
)
define(
    f"AvgPool3D(input: T; {_VOLUME}, T: floating) -> (output: T)",
    shape=_pooled_shape,
    gradient=_of_volume_average,
    kernel=_average,
    examples=lambda draw: _average_examples(draw, 3),
)
define(
    f"AvgPool3DGrad(orig_input_shape: int32, grad: T; {_VOLUME}, T: floating) -> (output: T)",
    shape=_asked_shape,
    gradient=_of_volume_average_grad,
    kernel=_average_grad,
    host=("orig_input_shape",),
    examples=lambda draw: _average_grad_examples(draw, 3),
)
