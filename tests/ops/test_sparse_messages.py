"""Sparse tensors as TensorFlow 2.21 serialises them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph import codec
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops.strings import texts
from gradserve.v1 import tensor_pb2
from tests.ops.differences import run

AT, SHAPE = np.array([[0, 0], [0, 2], [1, 1]]), np.array([3, 4])
# The values a and c, as TensorFlow packs them.
LAST = [
    b'\x08\t\x12\x08\x12\x02\x08\x01\x12\x02\x08\x01"\x08\x01\x00\x00\x00\x00\x00\x00\x00',
    b'\x08\x07\x12\x04\x12\x02\x08\x01"\x02\x01c',
    b'\x08\t\x12\x04\x12\x02\x08\x01"\x08\x04\x00\x00\x00\x00\x00\x00\x00',
]


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return run(getattr(raw, op).outputs(*inputs, **attrs), [], [])


def test_each_row_is_three_strings() -> None:
    rows = _run("SerializeManySparse", AT, texts(b"a", b"", b"c"), SHAPE)[0]
    assert rows.shape == (3, 3)
    assert rows[1].tolist() == LAST


@pytest.mark.parametrize("values", [np.array([1.5, 2.5, 3.5]), np.array([1, 2, 3]), texts(b"a", b"", b"c")])
def test_rows_come_back_as_they_went(values: Any) -> None:
    kind = "string" if values.dtype == object else str(values.dtype)
    rows = _run("SerializeManySparse", AT, values, SHAPE)[0]
    indices, found, shape = _run("DeserializeManySparse", rows, dtype=kind)
    assert (indices.tolist(), found.tolist(), shape.tolist()) == (AT.tolist(), values.tolist(), SHAPE.tolist())
    whole = _run("SerializeSparse", AT, values, SHAPE)[0]
    indices, found, shape = _run("DeserializeSparse", whole, dtype=kind)
    assert (indices.tolist(), found.tolist(), shape.tolist()) == (AT.tolist(), values.tolist(), SHAPE.tolist())


def test_another_dtype_and_other_strings_are_refused() -> None:
    whole = _run("SerializeSparse", AT, np.ones(3), SHAPE)[0]
    with pytest.raises(InvalidArgument, match="a tensor of int64 is wanted"):
        _run("DeserializeSparse", whole, dtype="int64")
    with pytest.raises(InvalidArgument, match="no serialised tensor"):
        _run("DeserializeSparse", texts(b"\xff", b"", b""), dtype="int64")


@pytest.mark.parametrize("content", [b"\x01", b"\x01ab", b"\x80"])
def test_strings_that_are_packed_wrongly_are_refused(content: bytes) -> None:
    message = tensor_pb2.TensorProto(dtype=tensor_pb2.DT_STRING, tensor_content=content)
    message.tensor_shape.dim.add(size=1)
    with pytest.raises(InvalidArgument, match="no packed tensor"):
        codec.array_from_message(message)
