"""Sparse tensors as strings and back: indices, values and shape, each a serialised tensor.

They cross TensorFlow's queues and batches as such rows of three strings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gradserve.errors import InvalidArgument, Unsupported
from gradserve.graph import codec, dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import MISSING, NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops.coordinates import flat, sizes_of
from gradserve.ops.messages import varint
from gradserve.ops.strings import texts
from gradserve.v1 import tensor_pb2

Array = np.ndarray[Any, Any]


def _text(array: Any, kind: DType) -> bytes:
    message = codec.array_to_message(np.ascontiguousarray(array), kind)
    if kind.kind == "s":
        lengths = b"".join(varint(len(text)) for text in array.tolist())
        message = tensor_pb2.TensorProto(
            dtype=message.dtype, tensor_shape=message.tensor_shape, tensor_content=lengths + b"".join(array.tolist())
        )
    return message.SerializeToString(deterministic=True)


def _row(indices: Any, values: Any, shape: Any, kind: DType) -> list[bytes]:
    return [_text(indices, dtypes.int64), _text(values, kind), _text(shape, dtypes.int64)]


def _check(indices: Any, values: Any, shape: Any, out_type: DType, node: Node) -> None:
    if out_type.kind != "s":
        raise Unsupported(f"{node.name}: sparse tensors are serialised as strings only.", node=node.name)
    flat(np, indices, sizes_of(shape))
    if len(indices) != len(values):
        raise InvalidArgument(f"{node.name}: {len(indices)} indices for {len(values)} values.", node=node.name)


def _one(xp: Any, indices: Any, values: Any, shape: Any, *, T: DType, out_type: DType, node: Node) -> Array:
    """[3]."""
    _check(indices, values, shape, out_type, node)
    return texts(*_row(indices, values, shape, T))


def _many(xp: Any, indices: Any, values: Any, shape: Any, *, T: DType, out_type: DType, node: Node) -> Array:
    """[rows, 3]: each row of the first axis by itself."""
    _check(indices, values, shape, out_type, node)
    if len(shape) < 2:
        raise InvalidArgument(f"{node.name}: rows are cut from 2 axes or more, not from {list(shape)}.", node=node.name)
    rows = [indices[:, 0] == row for row in range(int(shape[0]))]
    cells = [cell for kept in rows for cell in _row(indices[kept, 1:], values[kept], shape[1:], T)]
    return texts(*cells).reshape(-1, 3)


def _tensor(text: bytes, kind: DType, node: Node) -> Array:
    try:
        array = codec.array_from_message(tensor_pb2.TensorProto.FromString(text))
    except DecodeError:
        raise InvalidArgument(f"{node.name}: a string is no serialised tensor.", node=node.name) from None
    if array.dtype != kind.numpy:
        raise InvalidArgument(
            f"{node.name}: a tensor of {kind} is wanted, but the string holds one of {array.dtype}.", node=node.name
        )
    return array


def _parsed(xp: Any, rows: Any, *, dtype: DType, node: Node) -> tuple[Array, Array, Array]:
    """Rows [..., 3] become one sparse tensor with their axes before its own; its size is the largest of each axis."""
    if not rows.ndim or rows.shape[-1] != 3:
        raise InvalidArgument(f"{node.name}: wants rows of 3 strings, not {rows.shape}.", node=node.name)
    outer = rows.shape[:-1]
    found: list[tuple[Array, Array, Array]] = []
    for place in np.ndindex(outer):
        index, value, size = rows[place].tolist()
        indices, sizes = _tensor(index, dtypes.int64, node), _tensor(size, dtypes.int64, node)
        before = np.broadcast_to(np.array(place, np.int64), (len(indices), len(outer)))
        found.append((np.concatenate([before, indices], 1), _tensor(value, dtype, node), sizes))
    if len({len(sizes) for _, _, sizes in found}) != 1:
        raise InvalidArgument(f"{node.name}: wants sparse tensors of one rank, one at least.", node=node.name)
    shape = np.concatenate([np.array(outer, np.int64), np.max([sizes for _, _, sizes in found], axis=0)])
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found]), shape


def _sparse_draw(draw: Any) -> tuple[Array, Array, Array]:
    at = draw.coordinates(2, 3)
    return at, draw.normal(len(at)), np.array([2, 3])


def _many_shape(indices: Tensor, values: Tensor, shape: Tensor) -> Shape:
    return (None, 3)


_SPARSE = "sparse_indices: int64, sparse_values: T, sparse_shape: int64; T: type, out_type: string|variant = string"
for _name, _kernel, _shape in (
    ("SerializeSparse", _one, lambda *inputs: (3,)),
    ("SerializeManySparse", _many, _many_shape),
):
    define(
        f"{_name}({_SPARSE}) -> (serialized_sparse: out_type)",
        shape=_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_kernel,
        dynamic=True,
        examples=lambda draw: [call(*_sparse_draw(draw))],
    )
_PARTS = "(sparse_indices: int64, sparse_values: dtype, sparse_shape: int64)"
for _line in (
    f"DeserializeSparse(serialized_sparse: Tserialized; dtype: type, Tserialized: string|variant = string) -> {_PARTS}",
    f"DeserializeManySparse(serialized_sparse: string; dtype: type) -> {_PARTS}",
):
    define(
        _line,
        shape=lambda rows: [(None, None), (None,), (None,)],
        gradient=MISSING,
        kernel=_parsed,
        dynamic=True,
        examples=lambda draw: [
            call(texts(*_row(*_sparse_draw(draw), dtypes.float64) * 2).reshape(2, 3), dtype="float64")
        ],
    )
