"""Input pipelines and queues don't run, but what comes out of them can be fed and differentiated."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import UnsupportedOp
from gradserve.graph import codec
from gradserve.graph.graph import Graph, Tensor
from gradserve.v1 import graph_pb2, tensor_pb2
from tests.ops.differences import run

_KINDS = [tensor_pb2.DT_INT64, tensor_pb2.DT_DOUBLE]


def _graph(op: str, types: str, *, shapes: bool) -> Graph:
    """y = sin(values) of a source of labels and values."""
    message = graph_pb2.GraphDef()
    source = message.node.add(name="source", op=op)
    source.attr[types].list.type.extend(_KINDS)
    if shapes:
        for shape in ((None,), (None, 2)):
            source.attr["output_shapes"].list.shape.append(codec.shape_to_message(shape))
    message.node.add(name="y", op="Sin", input=["source:1"]).attr["T"].type = tensor_pb2.DT_DOUBLE
    return codec.graph_from_message(message)


@pytest.mark.parametrize(
    ("op", "types", "shapes"),
    [
        ("IteratorGetNext", "output_types", True),
        ("QueueDequeueManyV2", "component_types", False),
        ("Unstage", "dtypes", False),
    ],
)
def test_what_comes_out_is_of_the_types_that_the_node_names(op: str, types: str, shapes: bool) -> None:
    graph = _graph(op, types, shapes=shapes)
    labels, values, y = graph.tensor("source"), graph.tensor("source:1"), graph.tensor("y")
    assert [labels.dtype.name, values.dtype.name] == ["int64", "float64"]
    assert values.shape == ((None, 2) if shapes else None)
    (dx,) = gradients([y], [values])
    assert isinstance(dx, Tensor)
    x = np.array([[0.1, 0.2]])
    np.testing.assert_allclose(run([dx], [values], [x])[0], np.cos(x))
    with pytest.raises(UnsupportedOp, match=f"the op {op} can't be run"):
        run([dx], [], [])
