"""Every bound is kept, and says which option raises it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from gradserve.errors import LimitExceeded
from gradserve.server import embedded
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire
from tests.server.serving import chain, inline, product, slow


@pytest.fixture(scope="module")
def tight() -> Iterator[Remote]:
    """A server that takes on little."""
    limits = {
        "max_graph_nodes": 500, "max_tensor_bytes": 8 << 20, "max_concurrent_requests": 1, "max_sessions": 1
    }  # fmt: skip
    with embedded.start(workers=1, engine="numpy", **limits) as server, Remote(server.address) as remote:
        remote.connect()
        yield remote


def test_a_graph_with_too_many_nodes_is_refused(tight: Remote) -> None:
    request = wire.CreateGraphRequest(graph=wire.GraphValue(serialized=chain(500)))
    with pytest.raises(LimitExceeded, match=r"over the limit of 500 \(501\).*--max-graph-nodes") as caught:
        tight.call(tight.gradients.CreateGraph, request)
    assert caught.value.metadata["limit"] == "max_graph_nodes"


def test_a_tensor_that_is_too_large_is_refused(tight: Remote) -> None:
    with pytest.raises(LimitExceeded, match="--max-tensor-bytes"):
        tight.value(np.zeros(3 << 20, np.float32), "x")


def test_a_session_too_many_is_refused(tight: Remote) -> None:
    request = wire.CreateSessionRequest(source=inline(product()))
    session = tight.call(tight.gradients.CreateSession, request).session
    with pytest.raises(LimitExceeded, match="--max-sessions"):
        tight.call(tight.gradients.CreateSession, request)
    tight.call(tight.gradients.DeleteSession, wire.DeleteSessionRequest(name=session.name))
    session = tight.call(tight.gradients.CreateSession, request).session
    tight.call(tight.gradients.DeleteSession, wire.DeleteSessionRequest(name=session.name))


def test_a_request_too_many_is_refused_and_the_cluster_still_shown(tight: Remote) -> None:
    matrix = np.eye(1000, dtype=np.float32)
    feeds = [wire.NamedTensor(name="x", value=tight.value(matrix, "x"))]
    request = wire.RunRequest(source=inline(slow(300)), feeds=feeds, fetches=["y"])

    def run() -> None:
        while True:
            try:
                tight.call(tight.gradients.Run, request)
                return
            except LimitExceeded:  # the question below came first
                time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    refused = None
    while thread.is_alive() and refused is None:
        try:
            tight.call(tight.gradients.ListGraphs, wire.ListGraphsRequest())
        except LimitExceeded as error:
            refused = error
        time.sleep(0.01)
    assert refused is not None
    assert "--max-concurrent-requests" in refused.message
    assert tight.call(tight.gradients.GetCluster, wire.GetClusterRequest()).workers
    thread.join()


def test_a_message_that_is_too_large_is_refused(tight: Remote) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        tight.gradients.CreateGraph(wire.CreateGraphRequest(graph=wire.GraphValue(serialized=bytes(5 << 20))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
