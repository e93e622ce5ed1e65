"""Graphs that TensorFlow wrote are parsed and written back without a loss."""

from __future__ import annotations

import pytest

from gradserve.graph import codec
from gradserve.graph.op import raw
from gradserve.v1 import graph_pb2
from tests.paths import CASES, needs_cases

# Field 1000, wire type 2 (bytes), value "new": a field that this version does not know.
_UNKNOWN = b"\xc2\x3e\x03new"


@needs_cases
def test_every_graph_survives_a_round_trip_byte_for_byte() -> None:
    for path in sorted(CASES.glob("*.pb")):
        data = path.read_bytes()
        message = graph_pb2.GraphDef.FromString(data)
        written = message.SerializeToString(deterministic=True)
        assert written == data or graph_pb2.GraphDef.FromString(written) == message, path.name


@needs_cases
def test_an_imported_graph_is_given_back_as_it_came() -> None:
    import gradserve.ops  # noqa: F401

    for path in sorted(CASES.glob("b_*.pb")):
        message = codec.read_graph(path.read_bytes())
        assert codec.graph_to_message(codec.graph_from_message(message)) == message, path.name


@pytest.mark.parametrize("where", ["graph", "node", "attr"])
def test_unknown_fields_are_kept(where: str) -> None:
    attr = graph_pb2.AttrValue(i=7).SerializeToString() + (_UNKNOWN if where == "attr" else b"")
    entry = b"\x0a\x01k\x12" + bytes([len(attr)]) + attr
    node = graph_pb2.NodeDef(name="n", op="Unheard").SerializeToString()
    node += b"\x2a" + bytes([len(entry)]) + entry + (_UNKNOWN if where == "node" else b"")
    data = b"\x0a" + bytes([len(node)]) + node + (_UNKNOWN if where == "graph" else b"")
    graph = codec.graph_from_message(codec.read_graph(data))
    with graph.as_default():
        raw.NoOp.run(name="added")
    written = codec.graph_to_message(graph).SerializeToString()
    assert _UNKNOWN in written
    assert b"added" in written


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ValueError, match="no GraphDef"):
        codec.read_graph(b"\xff\xff\xff")
