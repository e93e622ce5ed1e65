"""Convolutions in other forms: with padding or resizing before, by the image in place of its sizes, of any rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node
from gradserve.graph.op import Example, call
from gradserve.graph.symbolic import concat, part, shape_of
from gradserve.ops.composites import composite

_FORMATS = {
    ("CHANNELS_LAST", 2): "NHWC", ("CHANNELS_FIRST", 2): "NCHW",
    ("CHANNELS_LAST", 3): "NDHWC", ("CHANNELS_FIRST", 3): "NCDHW",
}  # fmt: skip


def _kept(node: Node, *names: str) -> dict[str, Any]:
    return {name: node.attrs[name] for name in ("strides", "padding", *names)}


# With padding or resizing before


def _padded(ops: Any, x: Any, paddings: Any, f: Any, *, node: Node) -> Any:
    return ops.Conv2D(ops.MirrorPad(x, paddings, mode=node.attrs["mode"]), f, **_kept(node))


def _resized(ops: Any, x: Any, size: Any, paddings: Any, f: Any, *, node: Node) -> Any:
    larger = ops.ResizeBilinear(x, size, align_corners=node.attrs["resize_align_corners"])
    return _padded(ops, ops.Cast(larger, SrcT=larger.dtype, DstT=node.attrs["T"]), paddings, f, node=node)


def _fused_examples(draw: Any, *size: Any) -> list[Example]:
    x, f = draw.normal(draw.size(0, 2), 3, draw.size(3, 4), 2), draw.normal(2, draw.size(1, 2), 2, draw.size(1, 2))
    paddings = np.array([[0, 0], [draw.size(0, 2), draw.size(0, 2)], [draw.size(0, 1), 1], [0, 0]], np.int32)
    attrs = {"mode": draw.pick(["REFLECT", "SYMMETRIC"]), "padding": draw.pick(["SAME", "VALID"])}
    step = draw.size(1, 2)
    return [call(x, *size, paddings, f, strides=[1, step, step, 1], **attrs)]


_ATTRS = "mode: string, strides: list(int), padding: string"
composite(
    f"FusedPadConv2D(input: T, paddings: int32, filter: T; T: floating, {_ATTRS}) -> (output: T)",
    _padded,
    host=("paddings",),
    examples=_fused_examples,
)
composite(
    "FusedResizeAndPadConv2D(input: T, size: int32, paddings: int32, filter: T; T: float16|float32|float64,"
    f" resize_align_corners: bool = false, {_ATTRS}) -> (output: T)",
    _resized,
    host=("size", "paddings"),
    examples=lambda draw: [
        example._replace(inputs=tuple(np.asarray(v, np.float32) if np.ndim(v) == 4 else v for v in example.inputs),
                         attrs={**example.attrs, "resize_align_corners": bool(draw.size(0, 1))}, step=0.1)
        for example in _fused_examples(draw, np.array([draw.size(3, 5), 4], np.int32))
    ],
)  # fmt: skip

# By the image or the filter in place of its sizes


def _to_input(name: str, *names: str) -> Any:
    def formula(ops: Any, x: Any, f: Any, dy: Any, *, node: Node) -> Any:
        return getattr(ops, name)(shape_of(x), f, dy, **_kept(node, *names))

    return formula


def _to_filter(name: str, *names: str) -> Any:
    def formula(ops: Any, x: Any, f: Any, dy: Any, *, node: Node) -> Any:
        return getattr(ops, name)(x, shape_of(f), dy, **_kept(node, *names))

    return formula


def _backprop_examples(draw: Any, dimensions: int) -> list[Example]:
    lengths = [draw.size(2, 3) for _ in range(dimensions)]
    x = draw.normal(draw.size(0, 2), *lengths, n := draw.size(1, 2))
    f = draw.normal(*[2] * dimensions, n, m := draw.size(1, 2))
    return [call(x, f, draw.normal(len(x), *lengths, m), strides=[1] * (dimensions + 2), padding="SAME")]


_PLANE = (
    "strides: list(int), use_cudnn_on_gpu: bool = true, padding: string, explicit_paddings: list(int) = [],"
    " data_format: string = 'NHWC', dilations: list(int) = [1, 1, 1, 1]"
)
_ALL = ("use_cudnn_on_gpu", "explicit_paddings", "data_format", "dilations")
_VOLUME = "strides: list(int), padding: string, dilations: list(int) = [1, 1, 1, 1, 1]"
_THREE = "(input: T, filter: T, out_backprop: T;"
for _form, _types, _formula in (
    ("Input", "floating|int32", _to_input("Conv2DBackpropInput", *_ALL)),
    ("Filter", "floating", _to_filter("Conv2DBackpropFilter", *_ALL)),
):
    composite(
        f"Conv2DBackprop{_form}V2{_THREE} T: {_types}, {_PLANE}) -> (output: T)",
        _formula,
        examples=lambda draw: _backprop_examples(draw, 2),
    )
for _form, _formula in (
    ("Input", _to_input("Conv3DBackpropInputV2", "dilations")),
    ("Filter", _to_filter("Conv3DBackpropFilterV2", "dilations")),
):
    composite(
        f"Conv3DBackprop{_form}{_THREE} T: float16|float32|float64, {_VOLUME}) -> (output: T)",
        _formula,
        examples=lambda draw: _backprop_examples(draw, 3),
    )

# Of any rank


def _any_rank(ops: Any, x: Any, f: Any, *, node: Node) -> Any:
    """A plane or a volume, with any number of axes of batches before it."""
    attrs = node.attrs
    axes = len(attrs["strides"])
    layout = _FORMATS.get((attrs["data_format"], axes - 2))
    if layout is None:
        raise InvalidArgument(f"Conv moves along 2 or 3 axes of {', '.join(dict.fromkeys(k for k, _ in _FORMATS))}.")
    shape, batches = shape_of(x), attrs["batch_dims"]
    if batches != 1:
        x = ops.Reshape(x, concat(np.array([-1], np.int32), part(shape, batches)))
    kept = {"strides": attrs["strides"], "data_format": layout, "dilations": attrs["dilations"] or [1] * axes}
    if axes == 4:
        y = ops.Conv2D(x, f, padding=attrs["padding"], explicit_paddings=attrs["explicit_paddings"], **kept)
    elif attrs["padding"] == "EXPLICIT":
        pads = np.array(attrs["explicit_paddings"], np.int32).reshape(-1, 2)
        y = ops.Conv3D(ops.Pad(x, pads), f, padding="VALID", **kept)
    else:
        y = ops.Conv3D(x, f, padding=attrs["padding"], **kept)
    return y if batches == 1 else ops.Reshape(y, concat(part(shape, 0, batches), part(shape_of(y), 1)))


def _any_rank_examples(draw: Any) -> list[Example]:
    first, dimensions = draw.pick([False, True]), draw.size(2, 3)
    batches = draw.pick([(), (2,), (2, 1)])
    lengths, n = [draw.size(2, 3) for _ in range(dimensions)], draw.size(1, 2)
    x = draw.normal(*batches, *((n, *lengths) if first else (*lengths, n)))
    f = draw.normal(*[2] * dimensions, n, draw.size(1, 2))
    attrs: dict[str, Any] = {"padding": draw.pick(["SAME", "VALID", "EXPLICIT"])}
    if attrs["padding"] == "EXPLICIT":
        pads = [[0, 0], *[[1, draw.size(0, 1)] for _ in range(dimensions)]]
        pads.insert(1 if first else len(pads), [0, 0])
        attrs["explicit_paddings"] = [side for pair in pads for side in pair]
    layout = "CHANNELS_FIRST" if first else "CHANNELS_LAST"
    return [call(x, f, strides=[1] * (dimensions + 2), data_format=layout, batch_dims=len(batches), **attrs)]


composite(
    "Conv(input: T, filter: T; T: floating|int32, strides: list(int), padding: string,"
    " explicit_paddings: list(int) = [], data_format: string = 'CHANNELS_LAST', dilations: list(int) = [],"
    " batch_dims: int = 1, groups: int = 1) -> (output: T)",
    _any_rank,
    examples=_any_rank_examples,
)
