"""Arithmetic in quantised numbers: what TensorFlow 1's quantised graphs are made of. They run forward only.

A quantised tensor comes with the ends of the range that its integers cut into equal steps; results come with theirs.
`zero` is the integer that stands for 0. Sums and products are taken in 32 bits.
Source: TensorFlow's quantization_utils, in its double and single precision, and the quantized_* kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes, static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.op import MISSING, Example, Rule, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops import windows
from gradserve.ops.composites import Kernels
from gradserve.ops.precision import lowest
from gradserve.ops.windows import pieces

Array = np.ndarray[Any, Any]
_single = np.float32


class _Range(NamedTuple):
    """The ends of a tensor's range, and the integers of its type."""

    low: Any
    high: Any
    kind: Any

    @property
    def first(self) -> int:
        return int(np.iinfo(self.kind).min)

    @property
    def last(self) -> int:
        return int(np.iinfo(self.kind).max)

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    @property
    def span(self) -> float:
        """From the lowest end to one step above the highest."""
        return float(self.high - self.low) * (self.steps / (self.steps - 1.0))

    @property
    def level(self) -> Any:
        """What one step stands for, in single precision."""
        return (self.high - self.low) / _single(self.last - self.first)

    def unclamped(self, x: Any) -> Any:
        """The integers (int64) that stand for x, which may lie outside of the range."""
        if self.low == self.high:
            return np.zeros(np.shape(x), np.int64)
        scale = self.steps / self.span
        return (_rounded(np.asarray(x, np.float64) * scale) - _rounded(float(self.low) * scale)).astype(
            np.int64
        ) + self.first

    @property
    def zero(self) -> int:
        return int(self.unclamped(0.0))

    def quantised(self, x: Any) -> Any:
        return np.clip(self.unclamped(x), self.first, self.last).astype(self.kind)

    def floats(self, x: Any) -> Any:
        """What integers stand for."""
        if self.low == self.high:
            return np.full(np.shape(x), self.low, np.float32)
        unit = self.span / self.steps
        single_unit = _single(unit)
        start = _rounded(float(self.low) / float(single_unit)) * float(single_unit)
        return (start + (np.asarray(x, np.float64) - self.first) * unit).astype(np.float32)


def _rounded(x: Any) -> Any:
    """To the nearest integer, halves away from 0."""
    return np.trunc(x + np.copysign(np.asarray(x).dtype.type(0.5), x))


def _moved(x: Any, a: _Range, b: _Range) -> Any:
    """The integers of one range in those of another, in single precision, as TensorFlow's vector code has it."""
    unit = _single((a.high - a.low) / (a.steps - 1.0))
    start = a.low if a.low == a.high else _rounded(a.low / unit) * unit
    floats = (x.astype(np.float32) - _single(a.first)) * unit + start
    scale = _single(0 if b.low == b.high else (b.steps - 1.0) / (b.high - b.low))
    places = _rounded(floats * scale) - (_rounded(b.low * scale) - _single(b.first))
    return np.clip(places, _single(b.first), min(b.last, 2147483520)).astype(np.int64).astype(b.kind)


def _range(low: Any, high: Any, kind: DType, node: Node) -> _Range:
    ends = [np.ravel(end) for end in (low, high)]
    if any(len(end) != 1 for end in ends) or not ends[0][0] <= ends[1][0]:
        raise InvalidArgument(f"{node.name}: a range must be two rising numbers, not {low} and {high}.", node=node.name)
    return _Range(_single(ends[0][0]), _single(ends[1][0]), kind.numpy)


def _of_products(a: _Range, b: _Range, kind: DType) -> tuple[Any, Any]:
    """The range of integers that are sums of products."""
    level, limits = a.level * b.level, np.iinfo(kind.numpy)
    return level * _single(limits.min), level * _single(limits.max)


def _of_sums(a: _Range, b: _Range, room: int) -> tuple[Any, Any]:
    """A range with room for so many times the greatest of both."""
    most = max(a.high, -a.low, b.high, -b.low) * _single(room)
    return -most, most


# Products and sums


def _centred(x: Any, a: _Range) -> Any:
    return x.astype(np.int32) - np.int32(a.zero)


def _matmul(
    xp: Any, x: Any, y: Any, low_x: Any, high_x: Any, low_y: Any, high_y: Any, *, T1: DType, T2: DType, Toutput: DType,
    transpose_a: bool, transpose_b: bool, node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    a, b = _range(low_x, high_x, T1, node), _range(low_y, high_y, T2, node)
    product = Kernels(np, node).MatMul(_centred(x, a), _centred(y, b), transpose_a=transpose_a, transpose_b=transpose_b)
    return product.astype(Toutput.numpy), *_of_products(a, b, Toutput)


def _conv(
    xp: Any, x: Any, f: Any, low_x: Any, high_x: Any, low_f: Any, high_f: Any, *, Tinput: DType, Tfilter: DType,
    out_type: DType, node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    a, b = _range(low_x, high_x, Tinput, node), _range(low_f, high_f, Tfilter, node)
    kept = {name: node.attrs[name] for name in ("strides", "padding", "dilations")}
    product = Kernels(np, node).Conv2D(_centred(x, a), _centred(f, b), **kept)
    return product.astype(out_type.numpy), *_of_products(a, b, out_type)


def _multiplied(
    xp: Any, x: Any, y: Any, low_x: Any, high_x: Any, low_y: Any, high_y: Any, *, T1: DType, T2: DType, Toutput: DType,
    node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    a, b = _range(low_x, high_x, T1, node), _range(low_y, high_y, T2, node)
    return (_centred(x, a) * _centred(y, b)).astype(Toutput.numpy), *_of_products(a, b, Toutput)


def _added(
    xp: Any, x: Any, y: Any, low_x: Any, high_x: Any, low_y: Any, high_y: Any, *, T1: DType, T2: DType, Toutput: DType,
    node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    """As TensorFlow does, the integers of each addend are spread evenly, in whole steps of the sum's range."""
    a, b = _range(low_x, high_x, T1, node), _range(low_y, high_y, T2, node)
    low, high = _of_sums(a, b, 1 << 14)
    whole = _Range(low, high, Toutput.numpy)

    def spread(z: Any, of: _Range) -> Any:
        zero, one = (int(whole.unclamped(of.floats(k))) for k in (0, 1))
        return np.clip(zero + z.astype(np.int64) * (one - zero), whole.first, whole.last).astype(whole.kind)

    left = whole.quantised(a.floats(x)) if x.size == 1 else spread(x, a)
    right = whole.quantised(b.floats(y)) if y.size == 1 != x.size else spread(y, b)
    return left + right, low, high


def _with_bias(
    xp: Any, x: Any, bias: Any, low_x: Any, high_x: Any, low_b: Any, high_b: Any, *, T1: DType, T2: DType,
    out_type: DType, node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    a, b = _range(low_x, high_x, T1, node), _range(low_b, high_b, T2, node)
    low, high = _of_sums(a, b, 1 << 17)
    whole = _Range(low, high, out_type.numpy)
    return _moved(x, a, whole) + _moved(bias, b, whole), low, high


# Fewer bits


def _narrowed(x: Any, a: _Range, low: Any, high: Any, kind: DType) -> Any:
    """The integers of 8 bits for those of 32, in fixed-point arithmetic with 16 bits behind the point."""
    if kind.name != "quint8" or a.kind != np.int32:
        return _Range(low, high, kind.numpy).quantised(a.floats(x))
    one, width = 1 << 16, high - low
    if width == 0:
        return np.zeros(x.shape, np.uint8)
    scale = int(255.0 * one * float(a.high - a.low) / float(width))
    offset = int(float((a.low + a.high) / _single(2.0)) * float(_single(255.0 / float(width))) * one)
    start = int(one * (float(low) * 255.0) / float(width))
    fixed = ((x.astype(np.int64) * scale) >> 32) + offset - start + one // 2
    return np.clip(fixed >> 16, 0, 255).astype(np.uint8)


def _used(x: Any, a: _Range) -> tuple[Any, Any]:
    """The range that the integers really use, 0 in it."""
    if not x.size:
        return a.low, a.high
    return min(_single(0), a.floats(x.min())[()]), a.floats(x.max())[()]


def _requantised(
    xp: Any, x: Any, low: Any, high: Any, new_low: Any, new_high: Any, *, Tinput: DType, out_type: DType, node: Node
) -> tuple[Any, ...]:
    a, b = _range(low, high, Tinput, node), _range(new_low, new_high, out_type, node)
    if b.low > 0:
        raise InvalidArgument(f"{node.name}: requested_output_min must not be over 0, and is {b.low}.", node=node.name)
    return _narrowed(x, a, b.low, b.high, out_type), b.low, b.high


def _shrunk(xp: Any, x: Any, low: Any, high: Any, *, Tinput: DType, out_type: DType, node: Node) -> tuple[Any, ...]:
    a = _range(low, high, Tinput, node)
    ends = _used(x, a)
    return _narrowed(x, a, *ends, out_type), *ends


# Entry by entry


def _clipped(bound: float | None) -> Any:
    def kernel(xp: Any, x: Any, low: Any, high: Any, *, Tinput: DType, out_type: DType, node: Node) -> tuple[Any, ...]:
        a = _range(low, high, Tinput, node)
        y = np.maximum(x, a.quantised(0.0))
        return (y if bound is None else np.minimum(y, a.quantised(bound))).astype(out_type.numpy), a.low, a.high

    return kernel


def _windows(x: Any, node: Node) -> list[windows.Axis]:
    return windows.axes(x.shape, node.attrs["ksize"], node.attrs["strides"], node.attrs["padding"])


def _max_pool(xp: Any, x: Any, low: Any, high: Any, *, node: Node) -> tuple[Any, ...]:
    seen = pieces(np, x, _windows(x, node), lowest(x.dtype))
    return windows.largest(np, seen, x.dtype), np.float32(low), np.float32(high)


def _average_pool(xp: Any, x: Any, low: Any, high: Any, *, node: Node) -> tuple[Any, ...]:
    """The mean of what lies in the image, without what is behind the point."""
    over = _windows(x, node)
    total: Any = sum(pieces(np, x.astype(np.int64), over))
    count: Any = sum(pieces(np, np.ones(x.shape, np.int64), over))
    return (np.sign(total) * (np.abs(total) // count)).astype(x.dtype), np.float32(low), np.float32(high)


def _concatenated(
    xp: Any, axis: Any, values: list[Any], lows: list[Any], highs: list[Any], *, T: DType, node: Node
) -> tuple[Any, ...]:
    """In a range with 0 that holds all; that of signed integers has 0 in its middle."""
    parts = [_range(low, high, T, node) for low, high in zip(lows, highs, strict=True)]
    low, high = min(_single(0), *(part.low for part in parts)), max(part.high for part in parts)
    if np.iinfo(T.numpy).min:
        high = max(abs(low), abs(high))
        low = -high
    whole = _Range(low, high, T.numpy)
    pieces_of = [
        x if (a.low, a.high) == (low, high) else _moved(x, a, whole) for x, a in zip(values, parts, strict=True)
    ]
    return np.concatenate(pieces_of, axis=int(axis)), low, high


# The ops

_KINDS = "qint16|qint32|qint8|quint16|quint8"


def _enter(
    text: str, kernel: Rule, shape: Callable[..., Shape], examples: Callable[[Any], Sequence[Example]], *, ends: bool = True,
    host: Sequence[str] = (),
) -> None:  # fmt: skip
    """An op whose first output has this shape, and whose others are the ends of its range."""

    def rule(*inputs: Any, node: Node) -> list[Shape]:
        return [shape(*inputs, node=node), (), ()] if ends else [(), ()]

    define(text, shape=rule, gradient=MISSING, kernel=kernel, host=host, dynamic=True, examples=examples)


def _bytes(draw: Any, *shape: int) -> Any:
    return draw.integers(0, 256, *shape, dtype=np.uint8)


_ENDS = np.float32(-1.5), np.float32(2.5)
_QUANTISED: dict[str, Any] = {"T1": "quint8", "T2": "quint8"}


def _like_first(x: Tensor, *_: Any, node: Node) -> Shape:
    return x.shape


def _inferred(name: str, *names: str) -> Callable[..., Shape]:
    """The shape that another op gives for the first two inputs."""

    def shape(x: Tensor, y: Tensor, *_: Any, node: Node) -> Shape:
        with Graph().as_default():
            inputs = [raw.Placeholder(dtype="int32", shape=tensor.shape) for tensor in (x, y)]
            return getattr(raw, name)(*inputs, **{key: node.attrs[key] for key in names}).shape

    return shape


def _joined(axis: Tensor, values: Sequence[Tensor], *_: Any, node: Node) -> Shape:
    with Graph().as_default() as graph:
        known = static.value(axis)
        inputs = [raw.Placeholder(dtype="int32", shape=tensor.shape) for tensor in values]
        place = raw.Placeholder(dtype="int32", shape=()) if known is None else graph.constant(known)
        return raw.ConcatV2(inputs, place).shape


def _pooled(x: Tensor, *_: Any, node: Node) -> Shape:
    with Graph().as_default():
        image = raw.Placeholder(dtype="float32", shape=x.shape)
        return raw.AvgPool(image, **{name: node.attrs[name] for name in ("ksize", "strides", "padding")}).shape


def _pair_examples(draw: Any) -> list[Example]:
    return [call(_bytes(draw, 2, 3), _bytes(draw, 3), *_ENDS, *_ENDS, **_QUANTISED)]


for _name, _kernel in (("Add", _added), ("Mul", _multiplied)):
    _enter(
        f"Quantized{_name}(x: T1, y: T2, min_x: float32, max_x: float32, min_y: float32, max_y: float32; T1: {_KINDS},"
        f" T2: {_KINDS}, Toutput: {_KINDS} = qint32) -> (z: Toutput, min_z: float32, max_z: float32)",
        _kernel,
        lambda x, y, *_, node: shapes.broadcast(x.shape, y.shape),
        _pair_examples,
    )
_enter(
    f"QuantizedBiasAdd(input: T1, bias: T2, min_input: float32, max_input: float32, min_bias: float32,"
    f" max_bias: float32; T1: {_KINDS}, T2: {_KINDS}, out_type: {_KINDS})"
    " -> (output: out_type, min_out: float32, max_out: float32)",
    _with_bias,
    _like_first,
    lambda draw: [call(_bytes(draw, 2, 3), _bytes(draw, 3), *_ENDS, *_ENDS, out_type="qint32", **_QUANTISED)],
)
_enter(
    f"QuantizedMatMul(a: T1, b: T2, min_a: float32, max_a: float32, min_b: float32, max_b: float32; T1: {_KINDS},"
    f" T2: {_KINDS}, Toutput: {_KINDS} = qint32, transpose_a: bool = false, transpose_b: bool = false,"
    f" Tactivation: {_KINDS} = quint8) -> (out: Toutput, min_out: float32, max_out: float32)",
    _matmul,
    _inferred("MatMul", "transpose_a", "transpose_b"),
    lambda draw: [call(_bytes(draw, 2, 3), _bytes(draw, 4, 3), *_ENDS, *_ENDS, transpose_b=True, **_QUANTISED)],
)
_enter(
    "QuantizedConv2D(input: Tinput, filter: Tfilter, min_input: float32, max_input: float32, min_filter: float32,"
    f" max_filter: float32; Tinput: {_KINDS}, Tfilter: {_KINDS}, out_type: {_KINDS} = qint32, strides: list(int),"
    " padding: string, dilations: list(int) = [1, 1, 1, 1])"
    " -> (output: out_type, min_output: float32, max_output: float32)",
    _conv,
    _inferred("Conv2D", "strides", "padding", "dilations"),
    lambda draw: [
        call(_bytes(draw, 2, 4, 4, 2), _bytes(draw, 2, 2, 2, 3), *_ENDS, *_ENDS, strides=[1, 1, 1, 1],
             padding=draw.pick(["SAME", "VALID"]), Tinput="quint8", Tfilter="quint8")
    ],
)  # fmt: skip
for _name, _bound in (("Relu", None), ("Relu6", 6.0)):
    _enter(
        f"Quantized{_name}(features: Tinput, min_features: float32, max_features: float32; Tinput: {_KINDS},"
        f" out_type: {_KINDS} = quint8) -> (activations: out_type, min_activations: float32, max_activations: float32)",
        _clipped(_bound),
        _like_first,
        lambda draw: [call(_bytes(draw, *draw.shape()), *_ENDS, Tinput="quint8")],
    )
for _name, _kernel in (("Max", _max_pool), ("Avg", _average_pool)):
    _enter(
        f"Quantized{_name}Pool(input: T, min_input: float32, max_input: float32; T: {_KINDS}, ksize: list(int),"
        " strides: list(int), padding: string) -> (output: T, min_output: float32, max_output: float32)",
        _kernel,
        _pooled,
        lambda draw: [
            call(_bytes(draw, 2, 3, 4, 2), *_ENDS, T="quint8", ksize=[1, 2, 2, 1], strides=[1, 2, 1, 1],
                 padding=draw.pick(["SAME", "VALID"]))
        ],
    )  # fmt: skip
_enter(
    "QuantizedConcat(concat_dim: int32, values: N * T, input_mins: N * float32, input_maxes: N * float32; N: int, T: type)"
    " -> (output: T, output_min: float32, output_max: float32)",
    _concatenated,
    _joined,
    lambda draw: [
        call(np.int32(1), [_bytes(draw, 2, 1), _bytes(draw, 2, 3)], [_ENDS[0], np.float32(0)], [_ENDS[1], np.float32(4)],
             T="quint8")
    ],
    host=("concat_dim",),
)  # fmt: skip
_enter(
    "QuantizedReshape(tensor: T, shape: Tshape, input_min: float32, input_max: float32; T: type, Tshape: index = int32)"
    " -> (output: T, output_min: float32, output_max: float32)",
    lambda xp, x, shape, low, high: (np.reshape(x, tuple(shape)), low, high),
    lambda x, shape, *_, node: static.shape_value(shape),
    lambda draw: [call(_bytes(draw, 2, 3), np.array([3, 2], np.int32), *_ENDS, T="quint8")],
    host=("shape",),
)


def _integers(draw: Any) -> Any:
    return draw.integers(-(1 << 30), 1 << 30, *draw.shape())


_FROM = f"input: Tinput, input_min: float32, input_max: float32; Tinput: {_KINDS}"
_enter(
    f"QuantizeDownAndShrinkRange({_FROM}, out_type: {_KINDS})"
    " -> (output: out_type, output_min: float32, output_max: float32)",
    _shrunk,
    _like_first,
    lambda draw: [call(_integers(draw), *_ENDS, Tinput="qint32", out_type="quint8")],
)
_enter(
    "Requantize(input: Tinput, input_min: float32, input_max: float32, requested_output_min: float32,"
    f" requested_output_max: float32; Tinput: {_KINDS}, out_type: {_KINDS})"
    " -> (output: out_type, output_min: float32, output_max: float32)",
    _requantised,
    _like_first,
    lambda draw: [call(_integers(draw), *_ENDS, np.float32(-1), np.float32(2), Tinput="qint32", out_type="quint8")],
)
_enter(
    f"RequantizationRange({_FROM}) -> (output_min: float32, output_max: float32)",
    lambda xp, x, low, high, *, Tinput, node: _used(x, _range(low, high, Tinput, node)),
    _like_first,
    lambda draw: [call(_integers(draw), *_ENDS, Tinput="qint32")],
    ends=False,
)
