"""Names, scopes, devices and constants of a graph that is built by hand."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidPlacement
from gradserve.graph import devices
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw


def _placeholder(graph: Graph, name: str = "x"):
    with graph.as_default():
        return raw.Placeholder(dtype="float32", shape=(2, 3), name=name)


def test_names_are_made_unique_ignoring_case() -> None:
    graph = Graph()
    names = [_placeholder(graph, name).node.name for name in ("x", "x", "X", "x_1")]
    assert names == ["x", "x_1", "X_2", "x_1_1"]


def test_scopes_nest_are_unique_and_can_be_entered_again() -> None:
    graph = Graph()
    with graph.name_scope("a") as first:
        with graph.name_scope("b"):
            assert _placeholder(graph).node.name == "a/b/x"
    with graph.name_scope("a"):
        assert _placeholder(graph).node.name == "a_1/x"
    with graph.name_scope(first):
        assert _placeholder(graph).node.name == "a/x"


def test_python_values_take_the_dtype_of_the_tensor_beside_them() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float64", shape=())
        assert (x * 2).dtype.name == "float64"
    with pytest.raises(TypeError, match="can't become int32"):
        raw.Mul(graph.constant(np.int32(1)), 1.5)


def test_dtypes_that_differ_are_refused() -> None:
    graph = Graph()
    with pytest.raises(TypeError, match="add a Cast"):
        raw.Mul(graph.constant(np.float32(1)), graph.constant(np.float64(1)))


def test_a_failed_transaction_leaves_no_trace() -> None:
    graph = Graph()
    x = _placeholder(graph)
    with pytest.raises(KeyError), graph.transaction():
        raw.Neg(x)
        raise KeyError
    assert len(graph) == 1
    assert not x.consumers


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("/job:worker/replica:0/task:1/device:GPU:0", "/job:worker/replica:0/task:1/device:GPU:0"),
        ("/job:worker/task:1", "/job:worker/task:1"),
        ("/gpu:1", "/device:GPU:1"),
        ("/device:CPU", "/device:CPU:*"),
        ("", ""),
    ],
)
def test_device_strings_are_read_in_every_form(text: str, full: str) -> None:
    assert str(devices.parse(text)) == full


def test_a_device_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(InvalidPlacement, match="is not a device"):
        devices.parse("/nonsense:1")


def test_nested_devices_add_up_and_colocation_takes_over() -> None:
    graph = Graph()
    with graph.device("/job:worker/task:1"):
        with graph.device("/device:GPU:0"):
            x = _placeholder(graph)
        with graph.colocate_with(x):
            y = raw.Neg(x)
    assert x.node.device == y.node.device == "/job:worker/task:1/device:GPU:0"
    assert y.node.attrs["_class"] == ["loc:@x"]
