"""Graphs with something wrong in them are refused by an error that says so, or load; nothing else ever happens."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.errors import GradserveError, InvalidGraph
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.v1 import graph_pb2, tensor_pb2
from tests.graph.frames import Writer
from tests.graph.test_raising import MODELS

MUTANTS = 150
_FLOAT = graph_pb2.AttrValue(type=tensor_pb2.DT_FLOAT)
_REFERENCE = graph_pb2.AttrValue(type=tensor_pb2.DT_FLOAT_REF)
Draw = random.Random


def _drop_attr(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    if node.attr:
        del node.attr[draw.choice(sorted(node.attr))]


def _change_attr(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    if not node.attr:
        return
    value = node.attr[draw.choice(sorted(node.attr))]
    match value.WhichOneof("value"):
        case "i":
            value.i = draw.choice([-1, 0, 3, 2**40])
        case "type":
            value.type = draw.choice([tensor_pb2.DT_INT32, tensor_pb2.DT_STRING, tensor_pb2.DT_FLOAT_REF])
        case "tensor":
            value.tensor.tensor_shape.dim.add(size=draw.choice([-1, 0, 2, 2**40]))
        case "s":
            value.s = draw.choice([b"", b"\xff", b"other"])
        case _:
            value.b = True


def _redirect(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    if node.input:
        place = draw.randrange(len(node.input))
        node.input[place] = draw.choice(message.node).name + draw.choice(["", ":1", ":9"])


def _drop_input(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    if node.input:
        del node.input[draw.randrange(len(node.input))]


def _add_input(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    node.input.append(draw.choice(["", "^"]) + draw.choice(message.node).name)


def _change_type(message: graph_pb2.GraphDef, node: graph_pb2.NodeDef, draw: Draw) -> None:
    node.op = draw.choice(message.node).op


MUTATIONS = (_drop_attr, _change_attr, _redirect, _drop_input, _add_input, _change_type)


@pytest.mark.parametrize("name", MODELS)
def test_a_mutant_is_refused_by_name_or_loads(name: str) -> None:
    w = Writer(p=True, q=False)
    y = MODELS[name](w, w.placeholder("x"))
    refused: list[GradserveError] = []
    for seed in range(MUTANTS):
        draw = random.Random(seed)
        mutant = graph_pb2.GraphDef()
        mutant.CopyFrom(w.message)
        for _ in range(draw.choice([1, 1, 2])):
            draw.choice(MUTATIONS)(mutant, draw.choice(mutant.node), draw)
        try:
            graph = codec.graph_from_message(mutant)
            gradients(graph.tensor(y), graph.tensor("x"))
        except GradserveError as error:
            refused.append(error)
    assert len(refused) > MUTANTS // 10
    assert all(error.code != "INTERNAL" for error in refused)


def _node(name: str, op: str, *inputs: str, **attrs: graph_pb2.AttrValue) -> graph_pb2.NodeDef:
    return graph_pb2.NodeDef(name=name, op=op, input=inputs, attr=attrs)


def _constant(dims: list[int], values: int) -> graph_pb2.NodeDef:
    tensor = tensor_pb2.TensorProto(dtype=tensor_pb2.DT_FLOAT, float_val=[0.5] * values)
    for size in dims:
        tensor.tensor_shape.dim.add(size=size)
    kind = graph_pb2.AttrValue(type=tensor_pb2.DT_FLOAT)
    return _node("c", "Const", dtype=kind, value=graph_pb2.AttrValue(tensor=tensor))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (_constant([-1], 1), "dimensions must be known"),
        (_constant([2**40, 2**40], 1), "No memory holds"),
        (_constant([2**31], 2), "too large for that"),
        (_node("s", "Switch", T=_REFERENCE), "can't be a type of references"),
        (_node("m", "Merge", N=graph_pb2.AttrValue(i=2), T=_FLOAT), "needs 2 inputs and has 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(node: graph_pb2.NodeDef, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        codec.graph_from_message(graph_pb2.GraphDef(node=[node]))


def test_an_attr_can_not_ask_for_any_number_of_outputs() -> None:
    graph = Graph()
    with graph.as_default(), pytest.raises(InvalidGraph, match="num_split asks for"):
        raw.Split.outputs(np.int32(0), np.zeros(4), num_split=2**40)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: raw.StridedSlice(x, [0], [2], [0]),
        lambda x: raw.SpaceToBatch(raw.Reshape(x, [1, 2, 2, 1]), np.zeros((2, 2), np.int32), block_size=0),
    ],
    ids=["a step of 0", "a block of 0"],
)
def test_attrs_that_make_no_sense_are_refused_with_the_nodes_name(make: Callable[..., object]) -> None:
    graph = Graph()
    with graph.as_default(), pytest.raises(GradserveError) as raised:
        make(np.zeros(4))
    assert raised.value.code == "INVALID_ARGUMENT"
    assert raised.value.metadata["node"] in raised.value.message


def test_one_value_for_a_large_constant_stays_one_value() -> None:
    """A few bytes of a graph must not become gigabytes of the coordinator's memory."""
    message = graph_pb2.GraphDef(node=[_constant([2**20, 2**15], 1)])
    graph = codec.graph_from_message(message)
    value = graph.node("c").attrs["value"]
    assert value.shape == (2**20, 2**15)
    assert not any(value.strides)
    graph.node("c").source = None
    again = codec.node_to_message(graph.node("c"))
    assert again.attr["value"].tensor == message.node[0].attr["value"].tensor


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint64", "bool", "complex64", "string"])
def test_a_repeated_value_of_any_type_comes_back(dtype: str) -> None:
    one = b"text" if dtype == "string" else 1
    found = dtypes.as_dtype(dtype)
    array = np.broadcast_to(np.array(one, found.numpy), (3, 2**17))
    message = codec.constant_to_message(array, found)
    assert message.ByteSize() < 64
    back = codec.array_from_message(message)
    assert back.dtype == found.numpy
    assert back.shape == array.shape
    assert np.array_equal(back, array)
