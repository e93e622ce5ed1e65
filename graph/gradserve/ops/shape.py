"""Ops about shapes: asking for one, changing it, and making arrays of a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import shapes, static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, raw, same_shape
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import shape_of

# What is the shape?


def _rank_vector(x: Tensor, **_: Any) -> Shape:
    return (None if x.shape is None else len(x.shape),)


def _known_shape(x: Tensor, *, out_type: DType) -> Any:
    return np.array(x.shape, out_type.numpy) if shapes.is_static(x.shape) else None


def _known_size(x: Tensor, *, out_type: DType) -> Any:
    count = shapes.num_elements(x.shape)
    return None if count is None else np.array(count, out_type.numpy)


define(
    "Shape(input: T; T: type, out_type: index = int32) -> (output: out_type)",
    shape=_rank_vector,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, out_type: np.array(np.shape(x), out_type.numpy),
    static=_known_shape,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)
define(
    "ShapeN(input: N * T; N: int, T: type, out_type: index = int32) -> (output: N * out_type)",
    shape=lambda inputs: [_rank_vector(x) for x in inputs],
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, inputs, *, out_type: [np.array(np.shape(x), out_type.numpy) for x in inputs],
    static=lambda inputs: None,
    examples=lambda draw: [call([draw.normal(*draw.shape()), draw.normal(2)])],
)
define(
    "Size(input: T; T: type, out_type: index = int32) -> (output: out_type)",
    shape=lambda x: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, out_type: np.array(np.size(x), out_type.numpy),
    static=_known_size,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)
define(
    "Rank(input: T; T: type) -> (output: int32)",
    shape=lambda x: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: np.array(np.ndim(x), np.int32),
    static=lambda x: None if x.shape is None else np.array(len(x.shape), np.int32),
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)


# Another shape for the same elements


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.ravel(values))


def _inferred(old: Sequence[int], wanted: Sequence[int]) -> int:
    """The size that -1 stands for; where another wanted size is 0, axes of size 0 count on neither side."""
    empty = 0 in wanted
    count = math.prod(size for size in old if size or not empty)
    return count // (math.prod(size for size in wanted if size > 0) or 1)


def _reshape(xp: Any, x: Any, shape: Any) -> Any:
    sizes = _sizes(shape)
    if sizes.count(-1) == 1 and not x.size:
        sizes = tuple(_inferred(x.shape, sizes) if size == -1 else size for size in sizes)
    return xp.reshape(x, sizes)


def _reshaped(x: Tensor, target: Tensor) -> Shape:
    wanted = static.shape_value(target)
    if wanted is None:
        return None
    known = static.value(target)
    count = shapes.num_elements(x.shape)
    if known is not None and None in wanted and count is not None:
        rest = shapes.num_elements(tuple(size for size in wanted if size is not None)) or 0
        if sum(size is None for size in wanted) > 1 or (rest and count % rest):
            raise InvalidShape(f"{x.shape} can't be reshaped to {_sizes(known)}.", shape=x.shape)
        old = [size for size in x.shape or () if size is not None]
        certain = len(old) == len(x.shape or ()) or rest
        inferred = _inferred(old, [-1 if size is None else size for size in wanted]) if certain else None
        return tuple(inferred if size is None else size for size in wanted)
    total = shapes.num_elements(wanted)
    if known is not None and count is not None and total is not None and count != total:
        raise InvalidShape(f"{x.shape} with {count} elements can't be reshaped to {wanted}.", shape=x.shape)
    return wanted


def _reshape_example(draw: Any) -> list[Example]:
    a, b = draw.size(), draw.size()
    target = draw.pick([(a * b,), (b, a), (b, 1, a), (a, b)])
    return [
        call(draw.normal(a, b), np.array(target, np.int32)),
        call(draw.normal(2, 3), np.array([-1], np.int32)),
        call(draw.normal(0, 2, 6), np.array([0, 3, -1], np.int32)),
        call(draw.normal(0, 2), np.array([3, -1], np.int32)),
    ]


define(
    "Reshape(tensor: T, shape: Tshape; T: type, Tshape: index = int32) -> (output: T)",
    shape=_reshaped,
    gradient=lambda dy, y, x, shape: (raw.Reshape(dy, shape_of(x)), None),
    kernel=_reshape,
    host=("shape",),
    examples=_reshape_example,
)


def _expanded(x: Tensor, dim: Tensor) -> Shape:
    axis = static.scalar(dim)
    if x.shape is None or axis is None:
        return None if x.shape is None else (None,) * (len(x.shape) + 1)
    place = shapes.normalise_axis(axis, len(x.shape) + 1)
    return (*x.shape[:place], 1, *x.shape[place:])


define(
    "ExpandDims(input: T, dim: Tdim; T: type, Tdim: index = int32) -> (output: T)",
    shape=_expanded,
    gradient=lambda dy, y, x, dim: (raw.Reshape(dy, shape_of(x)), None),
    kernel=lambda xp, x, dim: xp.expand_dims(x, int(np.reshape(dim, ()))),
    host=("dim",),
    examples=lambda draw: [
        call(draw.normal(*(s := draw.shape())), np.int32(draw.size(0, len(s)) - draw.pick([0, len(s) + 1])))
    ],
)


def _squeezed(x: Tensor, *, squeeze_dims: Sequence[int]) -> Shape:
    if x.shape is None:
        return None
    if not squeeze_dims:
        return None if None in x.shape else tuple(size for size in x.shape if size != 1)
    dropped = {shapes.normalise_axis(axis, len(x.shape)) for axis in squeeze_dims}
    for axis in dropped:
        if x.shape[axis] not in (1, None):
            raise InvalidShape(f"Axis {axis} of {x.shape} has size {x.shape[axis]} and can't be squeezed.", axis=axis)
    return tuple(size for axis, size in enumerate(x.shape) if axis not in dropped)


define(
    "Squeeze(input: T; T: type, squeeze_dims: list(int) = []) -> (output: T)",
    shape=_squeezed,
    gradient=lambda dy, y, x: raw.Reshape(dy, shape_of(x)),
    kernel=lambda xp, x, *, squeeze_dims: xp.squeeze(x, tuple(squeeze_dims) or None),
    examples=lambda draw: [call(draw.normal(1, n := draw.size(), 1)), call(draw.normal(1, n, 1), squeeze_dims=[-1])],
)


def _ensured(x: Tensor, *, shape: Shape) -> Shape:
    return shapes.merge(x.shape, shape)


def _ensure(xp: Any, x: Any, *, shape: Shape) -> Any:
    if not shapes.compatible(tuple(x.shape), shape):
        raise InvalidShape(f"The shape is {tuple(x.shape)}, but must be {shape}.", shape=shape)
    return x


define(
    "EnsureShape(input: T; shape: shape, T: type) -> (output: T)",
    shape=_ensured,
    gradient=lambda dy, y, x: dy,
    kernel=_ensure,
    takes_slices=True,
    examples=lambda draw: [call(draw.normal(draw.size(), 2), shape=(None, 2))],
)


# Arrays of a given shape


def _shape_argument(target: Tensor, *_: Any) -> Shape:
    return static.shape_value(target)


define(
    "Fill(dims: index_type, value: T; T: type, index_type: index = int32) -> (output: T)",
    shape=_shape_argument,
    gradient=lambda dy, y, dims, value: (None, raw.Sum(dy, raw.Range(0, raw.Rank(dy), 1))),
    kernel=lambda xp, dims, value: xp.full(_sizes(dims), value, value.dtype),
    host=("dims",),
    examples=lambda draw: [call(np.array(draw.shape(), np.int32), draw.normal())],
)


def _broadcast_to_gradient(dy: Tensor, y: Tensor, x: Tensor, shape: Tensor) -> tuple[Tensor, None]:
    """The sweep sums dy over the axes that were broadcast."""
    return dy, None


def _broadcast_to_shape(x: Tensor, target: Tensor) -> Shape:
    wanted = static.shape_value(target)
    if wanted is not None and x.shape is not None and static.value(target) is not None:
        joint = shapes.broadcast(x.shape, wanted)
        if joint is not None and len(joint) != len(wanted):
            raise InvalidShape(f"{x.shape} can't be broadcast to {wanted}.", shape=x.shape)
    return wanted


def _broadcast_to_example(draw: Any) -> list[Example]:
    _, shape = draw.broadcastable_shapes()
    full = np.broadcast_shapes(shape, (draw.size(1, 2), *shape))
    return [call(draw.normal(*shape), np.array(full, np.int32))]


define(
    "BroadcastTo(input: T, shape: Tidx; T: type, Tidx: index = int32) -> (output: T)",
    shape=_broadcast_to_shape,
    gradient=_broadcast_to_gradient,
    kernel=lambda xp, x, shape: xp.broadcast_to(x, _sizes(shape)),
    host=("shape",),
    broadcasts=True,
    examples=_broadcast_to_example,
)
define(
    "BroadcastArgs(s0: T, s1: T; T: index = int32) -> (r0: T)",
    shape=lambda a, b: (None,),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, a, b: np.array(np.broadcast_shapes(_sizes(a), _sizes(b)), a.dtype),
    host=("s0", "s1"),
    examples=lambda draw: [call(np.array([2, 1], np.int32), np.array([3, 1, 4], np.int32))],
)


def _range_shape(start: Tensor, limit: Tensor, delta: Tensor) -> Shape:
    values = [static.value(entry) for entry in (start, limit, delta)]
    if any(value is None for value in values):
        return (None,)
    return (len(_range(np, *values)),)


def _range(xp: Any, start: Any, limit: Any, delta: Any) -> Any:
    if not float(delta):
        raise InvalidArgument("The delta of a Range must not be 0.")
    return np.arange(start, limit, delta).astype(start.dtype)


define(
    "Range(start: Tidx, limit: Tidx, delta: Tidx; Tidx: floating|int8|int16|int32|int64|uint16|uint32|uint64 = int32)"
    " -> (output: Tidx)",
    shape=_range_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_range,
    host=("start", "limit", "delta"),
    examples=lambda draw: [call(np.int32(1), np.int32(draw.size(0, 9)), np.int32(2))],
)


def _steps(num: Tensor, dtype: DType) -> Tensor:
    """i / (n - 1) for each i below n; 0 where n is 1."""
    positions = raw.Cast(raw.Range(0, num, 1), DstT=dtype)
    return positions / raw.Cast(raw.Maximum(num - 1, 1), DstT=dtype)


def _linspace_gradient(dy: Tensor, y: Tensor, start: Tensor, stop: Tensor, num: Tensor) -> Any:
    """y_i = start + t_i (stop - start)."""
    t = _steps(num if num.dtype.name == "int32" else raw.Cast(num, DstT="int32"), dy.dtype)
    axis = np.array([0], np.int32)
    return raw.Sum(dy * (1 - t), axis), raw.Sum(dy * t, axis), None


def _linspace(xp: Any, start: Any, stop: Any, num: Any) -> Any:
    """start + i step, as rounded as TensorFlow's, and stop itself at the end."""
    count = int(num)
    if count < 1:
        raise InvalidArgument(f"LinSpace needs at least 1 element, not {count}.", num=count)
    numbers = xp.asarray(np.arange(count).astype(start.dtype))
    step = (stop - start) / start.dtype.type(max(count - 1, 1))
    inner = xp.where(numbers == 0, start, start + step * numbers)
    return xp.where((numbers > 0) & (numbers == count - 1), stop, inner).astype(start.dtype)


define(
    "LinSpace(start: T, stop: T, num: Tidx; T: floating, Tidx: index = int32) -> (output: T)",
    shape=lambda start, stop, num: (static.scalar(num),),
    gradient=_linspace_gradient,
    kernel=_linspace,
    host=("num",),
    examples=lambda draw: [call(draw.normal(), draw.normal(), np.int32(draw.size(1, 5)))],
)


# Pass-throughs that only some shapes or places need

define(
    "PlaceholderWithDefault(input: dtype; dtype: type, shape: shape) -> (output: dtype)",
    shape=lambda x, *, shape: shape,
    gradient=lambda dy, y, x: dy,
    kernel=lambda xp, x: x,
    takes_slices=True,
    examples=lambda draw: [call(draw.normal(draw.size(), 3), shape=(None, 3))],
)
define(
    "IdentityN(input: T; T: list(type)) -> (output: T)",
    shape=lambda inputs: [x.shape for x in inputs],
    gradient=lambda dys, ys, xs: [dys],
    kernel=lambda xp, inputs: list(inputs),
    takes_slices=True,
    examples=lambda draw: [call([draw.normal(2), draw.normal(*draw.shape())])],
)
for _name in ("Snapshot", "GuaranteeConst", "DeepCopy"):
    _argument = "x: T; T: type) -> (y: T)" if _name == "DeepCopy" else "input: T; T: type) -> (output: T)"
    define(
        f"{_name}({_argument}",
        shape=same_shape,
        gradient=lambda dy, y, x: dy,
        kernel=lambda xp, x: x,
        takes_slices=True,
        examples=lambda draw: [call(draw.normal(*draw.shape()))],
    )
# Identities that say something to a debugger or a compiler: here they say nothing.
_DEBUG = "debug_urls: list(string) = [], "
_TENSOR = "device_name: string = '', tensor_name: string = '', "
for _name, _attrs in (
    ("DebugGradientIdentity", ""),
    ("DebugIdentity", f"{_TENSOR}{_DEBUG}gated_grpc: bool = false"),
    (
        "DebugIdentityV2",
        "tfdbg_context_id: string = '', op_name: string = '', output_slot: int = -1, tensor_debug_mode: int = -1,"
        f" {_DEBUG}circular_buffer_size: int = 1000, tfdbg_run_id: string = ''",
    ),
    (
        "DebugIdentityV3",
        f"{_TENSOR}io_of_node: string = '', is_input: bool = false, io_index: int = -1, {_DEBUG}gated_grpc: bool = false",
    ),
    ("XlaSharding", "sharding: string = '', unspecified_dims: list(int) = []"),
):
    define(
        f"{_name}(input: T; T: type{', ' if _attrs else ''}{_attrs}) -> (output: T)",
        shape=same_shape,
        gradient=lambda dy, y, x: dy,
        kernel=lambda xp, x: x,
        takes_slices=True,
        examples=lambda draw: [call(draw.normal(*draw.shape()))],
    )
define(
    "Print(input: T, data: U; T: type, U: list(type), message: string = '', first_n: int = -1, summarize: int = 3)"
    " -> (output: T)",
    shape=lambda x, data: x.shape,
    gradient=lambda dy, y, x, data: (dy, [None] * len(data)),
    kernel=lambda xp, x, data: x,
    takes_slices=True,
    examples=lambda draw: [call(draw.normal(*draw.shape()), [draw.normal(3)])],
)


def _assert(xp: Any, condition: Any, data: Any) -> tuple[()]:
    if not bool(np.all(condition)):
        shown = ", ".join(str(np.asarray(entry).ravel()[:3].tolist()) for entry in data)
        raise InvalidArgument(f"Assertion failed: {shown}")
    return ()


define(
    "Assert(condition: bool, data: T; T: list(type), summarize: int = 3) -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_assert,
    host=("condition", "data"),
    stateful=True,
)
define(
    "ControlTrigger() -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp: (),
    stateful=True,
)
for _name, _inputs, _outputs, _attrs, _given in (
    ("_ArrayToList", "input: N * T", "output: out_types", "T: type, N: int, out_types: list(type)",
     {"out_types": ["float64", "float64"]}),
    ("_ListToArray", "input: Tin", "output: N * T", "Tin: list(type), T: type, N: int", {"T": "float64", "N": 2}),
):  # fmt: skip
    define(
        f"{_name}({_inputs}; {_attrs}) -> ({_outputs})",
        shape=lambda inputs: [x.shape for x in inputs],
        gradient=lambda dys, ys, xs: [dys],
        kernel=lambda xp, inputs: list(inputs),
        examples=lambda draw, given=_given: [Example(([draw.normal(2), draw.normal(3)],), given)],
    )
