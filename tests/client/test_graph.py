"""Graphs are built and loaded without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import gradserve.client as gs
from gradserve.errors import InvalidArgument, InvalidGraph, InvalidType
from gradserve.v1 import graph_pb2


def squares() -> gs.Graph:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), name="x")
        gs.raw.Mul(x, x, name="y")
    return graph


class Foreign:
    """A message of other generated code."""

    def SerializeToString(self) -> bytes:
        return squares().as_graph_def().SerializeToString()


def test_every_form_of_a_graphdef_loads(tmp_path: Path) -> None:
    message = squares().as_graph_def()
    binary, text = tmp_path / "graph.pb", tmp_path / "graph.pbtxt"
    binary.write_bytes(message.SerializeToString())
    text.write_text(text_format.MessageToString(message))
    for source in (binary, str(binary), text, message.SerializeToString(), message, Foreign()):
        loaded = gs.load_graph(source)
        assert [node.name for node in loaded.nodes] == ["x", "y"]
        assert loaded.as_graph_def() == message
    assert isinstance(gs.Graph.from_graphdef(message), gs.Graph)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="can't be read"):
        gs.load_graph(tmp_path / "nowhere.pb")
    with pytest.raises(InvalidGraph):
        gs.load_graph(b"\xff\xff")
    with pytest.raises(InvalidType, match="not int"):
        gs.load_graph(3)
    broken = tmp_path / "broken.pbtxt"
    broken.write_text("node {")
    with pytest.raises(InvalidGraph, match="text form"):
        gs.load_graph(broken)


def test_gradients_are_added_without_a_server() -> None:
    graph = squares()
    before = graph.as_graph_def()
    (dx,) = graph.gradients("y", "x")
    assert isinstance(dx, gs.Tensor)
    assert dx.name.startswith("gradients/")
    after = graph.as_graph_def()
    assert list(after.node)[: len(before.node)] == list(before.node)
    assert graph.gradients("x", "y").reasons[0] is not None


def test_devices_scopes_and_colocation_are_written_down() -> None:
    with gs.Graph().as_default() as graph:
        x = gs.constant([1.0, 2.0], name="x")
        with graph.device("/job:worker/task:1"), graph.name_scope("inner"):
            y = gs.tanh(x)
        with graph.colocate_with(y):
            z = gs.exp(x)
    nodes = {node.name: node for node in graph.as_graph_def().node}
    assert nodes["inner/Tanh"].device == "/job:worker/task:1"
    assert list(nodes[z.node.name].attr["_class"].list.s) == [b"loc:@inner/Tanh"]


def test_a_variable_is_the_tensor_of_its_read() -> None:
    with gs.Graph().as_default() as graph:
        w = gs.Variable(np.ones((2, 2)), dtype="float32", name="w")
        y = w @ w
        assert (w.name, w.handle.name, w.initializer.name) == ("w/read:0", "w/handle:0", "w/assign")
        assert y.node.inputs == (w, w)
        assert graph.tensor("w/read") is w
        assert graph.variables == [w]
        assert graph.initializers == [w.initializer]
        assert gs.Variable(1.0, name="w").handle.node.attrs["shared_name"] == "w_1"
    message = graph_pb2.GraphDef.FromString(graph.as_graph_def().SerializeToString())
    assert {node.name for node in gs.load_graph(message).nodes} >= {"w/read", "w/assign"}


def test_the_gradient_of_a_variable_counts_all_its_reads() -> None:
    with gs.Graph().as_default() as graph:
        w = gs.Variable(3.0, name="w")
        (dw,) = graph.gradients(w * w.read(), w)
    assert isinstance(dw, gs.Tensor)
    assert dw.node.type == "AddN"


def test_a_loss_without_variables_is_refused() -> None:
    with gs.Graph().as_default():
        gs.Variable(3.0, name="w")
        with pytest.raises(InvalidArgument, match="none of the variables"):
            gs.GradientDescent().minimize(gs.constant(1.0))
        with pytest.raises(InvalidArgument, match="nothing to group"):
            gs.group()
