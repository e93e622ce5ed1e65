"""What a warm ComputeGradients of a 10-op graph costs, against an empty gRPC call to the same server."""

from __future__ import annotations

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

import gradserve.ops  # noqa: F401
from benchmarks.report import Row, alternating
from gradserve.graph import codec
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server import embedded
from gradserve.v1 import gradient_service_pb2, gradient_service_pb2_grpc

_ROUNDS = 30
_CALLS = 60


def ten_op_graph() -> Graph:
    """Two small dense layers: ten nodes."""
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(4, 8), name="x")
        first = graph.constant(np.full((8, 8), 0.1, np.float32))
        hidden = raw.Tanh(raw.MatMul(x, first))
        second = graph.constant(np.full((8, 2), 0.1, np.float32))
        raw.Sum(raw.Square(raw.MatMul(hidden, second)), [0, 1], name="y")
    return graph


def request_for(name: str) -> gradient_service_pb2.ComputeGradientsRequest:
    """The warm request: the stored graph, one feed, one gradient."""
    feed = np.ones((4, 8), np.float32)
    return gradient_service_pb2.ComputeGradientsRequest(
        source=gradient_service_pb2.GraphSource(graph=name),
        feeds=[
            gradient_service_pb2.NamedTensor(
                name="x:0", value=gradient_service_pb2.TensorValue(tensor=codec.array_to_message(feed))
            )
        ],
        gradients=gradient_service_pb2.GradientOptions(ys=["y:0"], xs=["x:0"]),
        return_ys=True,
    )


def run() -> list[Row]:
    """One row: both calls in turns, on one connection, with the reference engine."""
    server = embedded.start(workers=1, engine="numpy")
    try:
        with grpc.insecure_channel(server.address) as channel:
            service = gradient_service_pb2_grpc.GradientServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            graph = codec.graph_to_message(ten_op_graph())
            created = service.CreateGraph(
                gradient_service_pb2.CreateGraphRequest(graph=gradient_service_pb2.GraphValue(graph_def=graph))
            )
            request = request_for(created.graph.name)
            ours, empty = alternating(
                lambda: service.ComputeGradients(request),
                lambda: health.Check(health_pb2.HealthCheckRequest()),  # pyright: ignore[reportAttributeAccessIssue]
                _ROUNDS,
                _CALLS,
            )
    finally:
        server.stop()
    return [Row("warm ComputeGradients, 10 ops", ours, empty, "empty call (health check)", "at most 1.5")]
