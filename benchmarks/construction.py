"""Adding gradients to graphs of 1k to 100k nodes, against TensorFlow's own tf.gradients on the same GraphDef."""

from __future__ import annotations

import gc
import time

import gradserve.ops  # noqa: F401
from benchmarks.report import Row
from gradserve.autodiff import gradients
from gradserve.graph import codec
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.v1 import graph_pb2

SIZES = (1_000, 10_000, 100_000)
_GOAL = "at most 0.1, linear in nodes"


def layered_graph(nodes: int) -> Graph:
    """A chain of dense layers with a residual sum, like an unrolled network: four nodes a layer."""
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(8, 16), name="x")
        weight = raw.Placeholder(dtype="float32", shape=(16, 16), name="w")
        h = x
        while len(graph) < nodes - 3:
            h = h + raw.Tanh(raw.BiasAdd(raw.MatMul(h, weight), graph.constant([0.1] * 16)))
        raw.Sum(h, [0, 1], name="y")
    return graph


def ours(message: graph_pb2.GraphDef) -> float:
    """Seconds that our gradients take on this graph."""
    graph = codec.graph_from_message(message)
    gc.collect()
    start = time.perf_counter()
    gradients(graph.tensor("y:0"), [graph.tensor("x:0"), graph.tensor("w:0")])
    return time.perf_counter() - start


def tensorflow(data: bytes) -> float:
    """Seconds that TensorFlow's gradients take on this graph."""
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    message = tf.compat.v1.GraphDef.FromString(data)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(message, name="")
        gc.collect()
        start = time.perf_counter()
        tf.compat.v1.gradients(
            graph.get_tensor_by_name("y:0"), [graph.get_tensor_by_name("x:0"), graph.get_tensor_by_name("w:0")]
        )
        return time.perf_counter() - start


def run(sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """One row a size."""
    rows: list[Row] = []
    for size in sizes:
        message = codec.graph_to_message(layered_graph(size))
        data = message.SerializeToString()
        repeats = 5 if size <= 10_000 else 1
        mine = min(ours(message) for _ in range(repeats))
        theirs = min(tensorflow(data) for _ in range(repeats))
        rows.append(Row(f"add gradients, {size} nodes", mine, theirs, "tf.gradients", _GOAL))
    return rows
