"""The public service over a real socket: what is asked is what is answered."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gradserve.errors import AlreadyExists, FailedPrecondition, InvalidArgument, InvalidType, NotFound
from gradserve.graph import codec
from gradserve.server.interceptors import status_of
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import graph_pb2, tensor_pb2
from tests.server.serving import compute, inline, product, remote, slow

__all__ = ["remote"]

X = np.array([0.0, 1.0, 2.0], np.float32)
# d/dx exp(x) x² = exp(x) (x² + 2x)
DZ = np.exp(X) * (X * X + 2 * X)


def create(remote: Remote, data: bytes | None = None) -> wire.Graph:
    request = wire.CreateGraphRequest(graph=wire.GraphValue(serialized=data or product()))
    return remote.call(remote.gradients.CreateGraph, request).graph


def dense(remote: Remote, response: wire.ComputeGradientsResponse) -> np.ndarray:
    return remote.array(response.gradients[0].dense, "x")


def test_an_inline_graph_gives_its_gradient(remote: Remote) -> None:
    response = remote.call(remote.gradients.ComputeGradients, compute(remote, inline(product()), X))
    np.testing.assert_allclose(dense(remote, response), DZ, rtol=1e-6)


def test_a_graph_may_be_given_as_a_message(remote: Remote) -> None:
    source = wire.GraphSource(inline=wire.GraphValue(graph_def=graph_pb2.GraphDef.FromString(product())))
    response = remote.call(remote.gradients.ComputeGradients, compute(remote, source, X))
    np.testing.assert_allclose(dense(remote, response), DZ, rtol=1e-6)


def test_values_and_gradients_come_in_one_answer(remote: Remote) -> None:
    request = compute(remote, inline(product()), X)
    request.return_ys = True
    request.fetches.extend(["e", "z:0"])
    response = remote.call(remote.gradients.ComputeGradients, request)
    assert [entry.name for entry in response.ys] == ["z"]
    assert [entry.name for entry in response.fetches] == ["e", "z:0"]
    np.testing.assert_allclose(remote.array(response.ys[0].value, "z"), np.exp(X) * X * X, rtol=1e-6)
    np.testing.assert_allclose(remote.array(response.fetches[0].value, "e"), np.exp(X), rtol=1e-6)


def test_seeds_by_value_are_multiplied_in_and_share_a_plan(remote: Remote) -> None:
    for seed in (np.array([1, 2, 3], np.float32), np.array([5, 0, -1], np.float32)):
        request = compute(remote, inline(product()), X)
        request.gradients.grad_ys.add().value.CopyFrom(remote.value(seed, "seed"))
        response = remote.call(remote.gradients.ComputeGradients, request)
        np.testing.assert_allclose(dense(remote, response), seed * DZ, rtol=1e-6)


def test_no_gradient_comes_with_its_reason(remote: Remote) -> None:
    request = compute(remote, inline(product()), X, xs=["apart", "i"])
    response = remote.call(remote.gradients.ComputeGradients, request)
    kinds = [gradient.none.reason for gradient in response.gradients]
    assert kinds == [wire.NoGradient.REASON_UNCONNECTED, wire.NoGradient.REASON_UNCONNECTED]
    assert "no y depends on it" in response.gradients[0].none.message


def test_computing_gradients_leaves_the_stored_graph_alone(remote: Remote) -> None:
    graph = create(remote)
    source = wire.GraphSource(graph=graph.name)
    np.testing.assert_allclose(
        dense(remote, remote.call(remote.gradients.ComputeGradients, compute(remote, source, X))), DZ, rtol=1e-6
    )
    after = remote.call(remote.gradients.GetGraph, wire.GetGraphRequest(name=graph.name, include_graph_def=True))
    assert after.graph.etag == graph.etag
    assert after.graph_value.graph_def == graph_pb2.GraphDef.FromString(product())


def test_added_gradients_are_named_and_can_be_run(remote: Remote) -> None:
    graph = create(remote)
    options = wire.GradientOptions(ys=["z"], xs=["x", "apart"], name="back")
    request = wire.AddGradientsRequest(source=wire.GraphSource(graph=graph.name), gradients=options)
    response = remote.call(remote.gradients.AddGradients, request)
    assert response.graph.version == 2
    assert response.gradients[0].dense.startswith("back/")
    assert response.gradients[1].none.reason == wire.NoGradient.REASON_UNCONNECTED
    assert all(node.name.startswith("back/") for node in response.added.graph_def.node)
    run = wire.RunRequest(
        source=wire.GraphSource(graph=graph.name),
        feeds=[wire.NamedTensor(name="x", value=remote.value(X, "x"))],
        fetches=[response.gradients[0].dense],
    )
    fetched = remote.call(remote.gradients.Run, run).fetches[0]
    np.testing.assert_allclose(remote.array(fetched.value, "x"), DZ, rtol=1e-6)


def test_an_extended_graph_has_a_new_version(remote: Remote) -> None:
    graph = create(remote)
    node = graph_pb2.NodeDef(name="twice", op="AddV2", input=["x", "x"])
    node.attr["T"].type = tensor_pb2.DT_FLOAT
    addition = wire.GraphValue(graph_def=graph_pb2.GraphDef(node=[node]))
    request = wire.ExtendGraphRequest(name=graph.name, addition=addition, etag=graph.etag)
    assert remote.call(remote.gradients.ExtendGraph, request).graph.version == 2
    with pytest.raises(FailedPrecondition, match="has changed"):
        remote.call(remote.gradients.ExtendGraph, request)
    source = wire.GraphSource(graph=graph.name)
    response = remote.call(remote.gradients.ComputeGradients, compute(remote, source, X, ys=["twice"]))
    np.testing.assert_array_equal(dense(remote, response), [2, 2, 2])


def test_graphs_are_listed_page_by_page_and_deleted(remote: Remote) -> None:
    names = {create(remote).name for _ in range(3)}
    found: list[str] = []
    token = ""
    while True:
        page = remote.call(remote.gradients.ListGraphs, wire.ListGraphsRequest(page_size=2, page_token=token))
        assert len(page.graphs) <= 2
        found += [graph.name for graph in page.graphs]
        token = page.next_page_token
        if not token:
            break
    assert names <= set(found)
    assert len(found) == len(set(found))
    for name in names:
        remote.call(remote.gradients.DeleteGraph, wire.DeleteGraphRequest(name=name))
        with pytest.raises(NotFound, match="create it first"):
            remote.call(remote.gradients.GetGraph, wire.GetGraphRequest(name=name))


def test_a_repeated_request_id_changes_nothing(remote: Remote) -> None:
    request = wire.CreateGraphRequest(
        graph_id=f"g{uuid.uuid4().hex}", graph=wire.GraphValue(serialized=product()), request_id=uuid.uuid4().hex
    )
    first = remote.call(remote.gradients.CreateGraph, request)
    assert remote.call(remote.gradients.CreateGraph, request) == first
    request.graph_id = "another"
    with pytest.raises(InvalidArgument, match="was used for a different request"):
        remote.call(remote.gradients.CreateGraph, request)


def test_a_name_that_is_taken_is_refused(remote: Remote) -> None:
    identifier = f"g{uuid.uuid4().hex}"
    request = wire.CreateGraphRequest(graph_id=identifier, graph=wire.GraphValue(serialized=product()))
    remote.call(remote.gradients.CreateGraph, request)
    with pytest.raises(AlreadyExists, match="extend or delete it"):
        remote.call(remote.gradients.CreateGraph, request)


def test_errors_carry_their_values_as_details(remote: Remote) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        remote.gradients.ComputeGradients(compute(remote, inline(product()), X, ys=["nowhere"]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    status = rpc_status.from_call(caught.value)  # pyright: ignore[reportArgumentType]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["node"]) == ("gradserve", "NOT_FOUND", "nowhere")


def test_an_error_about_bytes_that_are_no_text_can_be_told() -> None:
    text = b"NH\xff".decode("utf-8", "surrogateescape")
    _, message, _ = status_of(InvalidArgument(f"There is no format {text}.", format=text))
    assert message.encode() == rb"There is no format NH\udcff."


def test_a_feed_of_the_wrong_dtype_is_refused(remote: Remote) -> None:
    with pytest.raises(InvalidType, match="is fed float64"):
        remote.call(remote.gradients.ComputeGradients, compute(remote, inline(product()), X.astype(np.float64)))


@pytest.mark.parametrize(
    ("dtype", "what"), [("variant", "feed the tensors that it is made of"), ("resource", "session")]
)
def test_what_is_no_array_is_neither_fed_nor_fetched(remote: Remote, dtype: str, what: str) -> None:
    node = graph_pb2.NodeDef(name="held", op="Placeholder")
    node.attr["dtype"].type = tensor_pb2.DataType.Value(f"DT_{dtype.upper()}")  # pyright: ignore[reportAttributeAccessIssue]
    request = wire.RunRequest(source=inline(graph_pb2.GraphDef(node=[node]).SerializeToString()), fetches=["held:0"])
    with pytest.raises(InvalidType, match=f"held:0 is a {dtype}, which is no array and can't be fetched: fetch "):
        remote.call(remote.gradients.Run, request)
    request.feeds.add(name="held:0", value=remote.value(X, "held"))
    with pytest.raises(InvalidType, match=f"held:0 is a {dtype}, which is no array and can't be fed: .*{what}"):
        remote.call(remote.gradients.Run, request)


def test_a_tensor_fed_twice_is_refused(remote: Remote) -> None:
    request = compute(remote, inline(product()), X)
    request.feeds.add(name="x:0", value=remote.value(X, "x"))
    with pytest.raises(InvalidArgument, match="fed twice"):
        remote.call(remote.gradients.ComputeGradients, request)


def test_a_deadline_ends_the_call_and_frees_the_worker(remote: Remote) -> None:
    matrix = remote.value(np.eye(1000, dtype=np.float32), "x")
    feeds = [wire.NamedTensor(name="x", value=matrix)]
    long = wire.RunRequest(source=inline(slow(60)), feeds=feeds, fetches=["y"])
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        remote.gradients.Run(long, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 2
    response = remote.call(remote.gradients.ComputeGradients, compute(remote, inline(product()), X))
    np.testing.assert_allclose(dense(remote, response), DZ, rtol=1e-6)


def test_many_callers_at_once_get_their_own_answers(remote: Remote) -> None:
    answers: dict[int, np.ndarray] = {}

    def ask(k: int) -> None:
        response = remote.call(remote.gradients.ComputeGradients, compute(remote, inline(product()), X + k))
        answers[k] = dense(remote, response)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(16):
        x = X + k
        np.testing.assert_allclose(answers[k], np.exp(x) * (x * x + 2 * x), rtol=1e-5)


def test_the_plan_is_explained(remote: Remote) -> None:
    request = wire.ExplainPlanRequest(source=inline(product()), gradients=wire.GradientOptions(ys=["z"], xs=["x"]))
    request.feeds.add(name="x", dtype=1, shape=codec.shape_to_message((3,)))
    response = remote.call(remote.gradients.ExplainPlan, request)
    assert {placement.node for placement in response.placements} >= {"e", "s"}
    assert sum(segment.node_count for segment in response.segments) == response.nodes_after


def test_the_cluster_shows_its_workers(remote: Remote) -> None:
    response = remote.call(remote.gradients.GetCluster, wire.GetClusterRequest())
    assert len(response.workers) == 2
    assert all(worker.alive and worker.engine == "numpy" for worker in response.workers)


def test_health_reflection_and_channelz_answer(remote: Remote) -> None:
    with grpc.insecure_channel(remote.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="gradserve.v1.GradientService")
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(reflection.ServerReflectionInfo(iter([listing])))
        names = {service.name for service in answer.list_services_response.service}
        assert {"gradserve.v1.GradientService", "gradserve.v1.TensorService"} <= names
        servers = channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest())
        assert servers.server
