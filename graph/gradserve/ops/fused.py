"""Ops that TensorFlow's optimiser makes of several: a product or a convolution with what follows it.

Graphs that were exported after Grappler has run hold them. `fused_ops` names what follows, one after another; `args`
holds what those ops take beside: the bias, then the second addend, or scale, offset, mean and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node
from gradserve.graph.op import Example, call, raw, within
from gradserve.ops.composites import composite
from gradserve.ops.conv import channel_axis

# What follows


def _tanh_gelu(ops: Any, x: Any) -> Any:
    cubic = x + x * x * x * 0.044715
    return x * 0.5 * (ops.Tanh(cubic * math.sqrt(2 / math.pi)) + 1.0)


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "Elu": lambda ops, x, node: ops.Elu(x),
    "GeluApproximate": lambda ops, x, node: _tanh_gelu(ops, x),
    "GeluExact": lambda ops, x, node: x * 0.5 * (ops.Erf(x * math.sqrt(0.5)) + 1.0),
    "LeakyRelu": lambda ops, x, node: ops.LeakyRelu(x, alpha=node.attrs["leakyrelu_alpha"]),
    "Relu": lambda ops, x, node: ops.Relu(x),
    "Relu6": lambda ops, x, node: ops.Relu6(x),
    "Sigmoid": lambda ops, x, node: ops.Sigmoid(x),
    "Tanh": lambda ops, x, node: ops.Tanh(x),
    "_FusedHardSwish": lambda ops, x, node: x * ops.Relu6(x + 3.0) * (1 / 6),
    "_MklFusedMish": lambda ops, x, node: x * ops.Tanh(ops.Softplus(x)),
    "_MklSwish": lambda ops, x, node: x * ops.Sigmoid(x),
}  # fmt: skip


def _rescaled(ops: Any, y: Any, statistics: Sequence[Any], epsilon: float, data_format: str) -> Any:
    """Batch normalisation by given statistics: scale, offset, mean and variance of each channel."""
    spread = np.array([-1, *[1] * (len(data_format) - 2 if channel_axis(data_format) == 1 else 0)], np.int32)
    scale, offset, mean, variance = (ops.Reshape(vector, spread) for vector in statistics)
    return (y - mean) * (scale * ops.Rsqrt(variance + epsilon)) + offset


def _followed(ops: Any, y: Any, args: Sequence[Any], node: Node, data_format: str = "NHWC") -> Any:
    """y after all that the node's fused_ops name."""
    left = list(args)
    for name in node.attrs["fused_ops"]:
        try:
            if name == "BiasAdd":
                y = ops.BiasAdd(y, left.pop(0), data_format=data_format)
            elif name == "Add":
                y = ops.AddV2(y, left.pop(0))
            elif name == "FusedBatchNorm":
                y = _rescaled(ops, y, [left.pop(0) for _ in range(4)], node.attrs["epsilon"], data_format)
            elif name in _ACTIVATIONS:
                y = _ACTIVATIONS[name](ops, y, node)
            else:
                raise InvalidArgument(f"{node.name}: nothing is known of the fused op {name}.", fused_op=name)
        except IndexError:
            raise InvalidArgument(f"{node.name}: args lack what {name} takes.", fused_op=name) from None
    return y


# A product or a convolution first

_KERNEL = (
    "fused_ops: list(string) = [], epsilon: float = 9.999999747378752e-05, leakyrelu_alpha: float = 0.20000000298023224"
)


def _matmul(ops: Any, a: Any, b: Any, args: list[Any], *, node: Node) -> Any:
    kept = {name: node.attrs[name] for name in ("transpose_a", "transpose_b")}
    return _followed(ops, ops.MatMul(a, b, **kept), args, node)


def _conv(ops: Any, x: Any, f: Any, args: list[Any], host_args: list[Any], *, node: Node) -> Any:
    names = ("strides", "padding", "explicit_paddings", "data_format", "dilations")
    kept = {name: node.attrs[name] for name in names}
    if node.attrs["filter_format"] == "OIHW":
        f = ops.Transpose(f, np.array([2, 3, 1, 0], np.int32))
    return _followed(ops, ops.Conv2D(x, f, **kept), args, node, kept["data_format"])


def _depthwise(ops: Any, x: Any, f: Any, args: list[Any], *, node: Node) -> Any:
    kept = {name: node.attrs[name] for name in ("strides", "padding", "data_format", "dilations")}
    return _followed(ops, ops.DepthwiseConv2dNative(x, f, **kept), args, node, kept["data_format"])


def _volume(ops: Any, x: Any, f: Any, args: list[Any], *, node: Node) -> Any:
    kept = {name: node.attrs[name] for name in ("strides", "padding", "data_format", "dilations")}
    pads = node.attrs["padding_list"]
    if pads:
        x = ops.Pad(x, np.array(pads, np.int32).reshape(-1, 2))
    return _followed(ops, ops.Conv3D(x, f, **kept), args, node, kept["data_format"])


_SMOOTH = ("Tanh", "Sigmoid", "Elu", "_MklSwish", "GeluExact", "GeluApproximate", "_MklFusedMish")


def _single(array: Any) -> Any:
    return np.asarray(array, np.float32)


def _matmul_examples(draw: Any) -> list[Example]:
    """In the widest type that the op takes."""
    a, b = _single(draw.unit(draw.size(), n := draw.size(1, 3))), _single(draw.unit(n, m := draw.size(1, 3)))
    bias, other = _single(draw.unit(m)), _single(draw.unit(1, m))
    return [
        call(a, b, [bias], fused_ops=["BiasAdd", draw.pick(_SMOOTH)]),
        call(a, b, [bias, other], fused_ops=["BiasAdd", "Add", "Tanh"]),
        call(a, b, [bias], fused_ops=["BiasAdd", draw.pick(["Relu", "Relu6", "LeakyRelu"])], differences=False),
    ]


def _images(draw: Any, *, depth: int) -> tuple[Any, Any]:
    return draw.unit(draw.size(0, 2), 3, 3, depth), draw.unit(2, 2, depth, 2)


def _conv_examples(draw: Any) -> list[Example]:
    x, f = _images(draw, depth=draw.size(1, 2))
    attrs: dict[str, Any] = {"strides": [1, 1, 1, 1], "padding": draw.pick(["SAME", "VALID"])}
    moments = [draw.unit(2), draw.unit(2), draw.unit(2), draw.positive(2)]
    return [
        call(x, f, [draw.unit(2)], [], num_args=1, fused_ops=["BiasAdd", draw.pick(_SMOOTH)], **attrs),
        call(x, f, moments, [], num_args=4,
             fused_ops=["FusedBatchNorm", "Tanh"], **attrs),
    ]  # fmt: skip


composite(
    "_FusedMatMul(a: T, b: T, args: num_args * T; transpose_a: bool = false, transpose_b: bool = false,"
    f" T: bfloat16|float16|float32, num_args: int, {_KERNEL}) -> (product: T)",
    _matmul,
    examples=_matmul_examples,
)
composite(
    "_FusedConv2D(input: T, filter: T, args: TArgs, host_args: num_host_args * float32; T: float16|float32|float64|int8|qint8,"
    " TArgs: list(type), num_args: int, num_host_args: int = 0, strides: list(int), padding: string,"
    " explicit_paddings: list(int) = [], data_format: string = 'NHWC', filter_format: string = 'HWIO',"
    f" dilations: list(int) = [1, 1, 1, 1], use_cudnn_on_gpu: bool = true, {_KERNEL}) -> (output: T)",
    _conv,
    examples=_conv_examples,
)
composite(
    "_FusedDepthwiseConv2dNative(input: T, filter: T, args: num_args * T; T: floating, num_args: int, strides: list(int),"
    f" padding: string, data_format: string = 'NHWC', dilations: list(int) = [1, 1, 1, 1], {_KERNEL}) -> (output: T)",
    _depthwise,
    examples=lambda draw: [
        call(
            *_images(draw, depth=1), [draw.unit(2)], strides=[1, 1, 1, 1], padding="SAME", fused_ops=["BiasAdd", "Tanh"]
        )
    ],
)
composite(
    "_FusedConv3D(input: T, filter: T, args: num_args * T; T: bfloat16|float16|float32, num_args: int, strides: list(int),"
    " padding: string, data_format: string = 'NDHWC', dilations: list(int) = [1, 1, 1, 1, 1],"
    f" padding_list: list(int) = [], {_KERNEL}) -> (output: T)",
    _volume,
    examples=lambda draw: [
        call(_single(draw.unit(1, 1, 3, 3, 1)), _single(draw.unit(1, 2, 2, 1, 2)), [_single(draw.unit(2))], strides=[1, 1, 1, 1, 1],
             padding="VALID", fused_ops=["BiasAdd", "Elu"])
    ],
)  # fmt: skip

# Others


def _normalised(
    ops: Any, x: Any, scale: Any, offset: Any, mean: Any, variance: Any, side: list[Any], *, node: Node
) -> list[Any]:
    """Batch normalisation, then a side input that is added, then the activation."""
    names = ("epsilon", "exponential_avg_factor", "data_format", "is_training")
    y, *rest = ops.FusedBatchNormV3.outputs(x, scale, offset, mean, variance, **{k: node.attrs[k] for k in names})
    for addend in side:
        y = ops.AddV2(y, addend)
    if node.attrs["activation_mode"] not in ("Identity", "Relu"):
        raise InvalidArgument(f"{node.name}: activation_mode must be Identity or Relu.")
    return [ops.Relu(y) if node.attrs["activation_mode"] == "Relu" else y, *rest]


def _normalised_examples(draw: Any) -> list[Example]:
    """The gradient is that of y alone, as FusedBatchNormV3's is."""
    x, side = (_single(draw.normal(2, 3, 3, 2)) for _ in range(2))
    moments = [_single(draw.positive(2)) for _ in range(4)]
    return [
        within(lambda x, side, *moments: [raw._FusedBatchNormEx.outputs(x, *moments, [side])[0]], x, side, *moments),
        call(x, *moments, [side] * draw.size(0, 1), activation_mode="Relu", is_training=draw.pick([True, False]),
             differences=False),
    ]  # fmt: skip


composite(
    "_FusedBatchNormEx(x: T, scale: U, offset: U, mean: U, variance: U, side_input: num_side_inputs * T;"
    " T: bfloat16|float16|float32, U: float32, epsilon: float = 9.999999747378752e-05,"
    " exponential_avg_factor: float = 1.0, num_side_inputs: int = 0, activation_mode: string = 'Identity',"
    " data_format: string = 'NHWC', is_training: bool = true) -> (y: T, batch_mean: U, batch_variance: U,"
    " reserve_space_1: U, reserve_space_2: U, reserve_space_3: U)",
    _normalised,
    examples=_normalised_examples,
)


def _composed(ops: Any, x: Any, *, node: Node) -> Any:
    for name in node.attrs["op_names"]:
        x = getattr(ops, name)(x)
    return x


composite(
    "_UnaryOpsComposition(x: T; T: float16|float32|float64, op_names: list(string)) -> (y: T)",
    _composed,
    examples=lambda draw: [call(draw.normal(*draw.shape()), op_names=["Sin", "Exp", "Sqrt"])],
)
composite(
    "_TensorToHashBucketFast(input: T; T: integer, num_buckets: int) -> (output: int64)",
    lambda ops, x, *, node: ops.StringToHashBucketFast(ops.AsString(x), num_buckets=node.attrs["num_buckets"]),
    is_differentiable=False,
    examples=lambda draw: [call(draw.integers(0, 99, *draw.shape()), num_buckets=7)],
)
