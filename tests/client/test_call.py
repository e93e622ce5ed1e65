"""A call is a generator: what it asks for, how it tries again and when it gives up is seen without a network."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.client import calls
from gradserve.client.call import ATTEMPTS, CHUNK_BYTES, Deadline, Download, Pause, Received, Unary, Upload
from gradserve.client.messages import Uploaded, digest_name
from gradserve.errors import DeadlineExceeded, NotFound, Unavailable
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import tensor_service_pb2


class Unconnected:
    """A client that no transport drives."""

    timeout_seconds: float | None = None

    def __init__(self) -> None:
        self.uploaded = Uploaded()


def finish(call: Generator[Any, Any, Any], answer: Any) -> Any:
    """Sends the last answer, and returns the result."""
    with pytest.raises(StopIteration) as stop:
        call.send(answer)
    return stop.value.value


def test_what_can_not_be_reached_is_tried_again_after_growing_pauses() -> None:
    call = calls.cluster(Unconnected())
    command = next(call)
    pauses: list[float] = []
    for _ in range(ATTEMPTS - 1):
        assert isinstance(command, Unary)
        assert command.method == "GetCluster"
        pause = call.throw(Unavailable("gone"))
        assert isinstance(pause, Pause)
        pauses.append(pause.seconds)
        command = call.send(None)
    assert pauses[0] < pauses[1] < pauses[2]
    with pytest.raises(Unavailable):
        call.throw(Unavailable("gone"))


def test_a_repeated_change_keeps_its_request_id() -> None:
    call = calls.delete_graph(Unconnected(), "graphs/g")
    first = next(call)
    assert isinstance(call.throw(Unavailable("gone")), Pause)
    again = call.send(None)
    assert isinstance(first, Unary)
    assert isinstance(again, Unary)
    assert first.request.request_id == again.request.request_id != ""


def test_no_attempt_begins_after_the_deadline() -> None:
    call = calls.cluster(Unconnected(), timeout_seconds=0.01)
    next(call)
    with pytest.raises(Unavailable):
        call.throw(Unavailable("gone"))
    with pytest.raises(DeadlineExceeded):
        next(calls.cluster(Unconnected(), timeout_seconds=-1.0))


def test_a_large_tensor_goes_ahead_once() -> None:
    large = np.zeros(CHUNK_BYTES, np.uint16)
    name = digest_name(large.view(np.uint8).data, 17, large.shape)
    call = calls.run(Unconnected(), b"", {"x": large}, "x")
    asked = next(call)
    assert isinstance(asked, Unary)
    assert (asked.method, asked.request.name) == ("GetTensor", name)
    upload = call.throw(NotFound("not here", tensor=name))
    assert isinstance(upload, Upload)
    messages = list(upload.messages())
    assert messages[0].header.name == name
    assert [len(message.chunk) for message in messages[1:]] == [CHUNK_BYTES, CHUNK_BYTES]
    run = call.send(None)
    assert isinstance(run, Unary)
    assert run.request.feeds[0].value.reference == name
    asked = call.throw(NotFound("forgotten", tensor=name))
    assert isinstance(asked, Unary)
    assert asked.method == "GetTensor"
    run = call.send(tensor_service_pb2.GetTensorResponse())
    assert isinstance(run, Unary)
    assert finish(call, wire.RunResponse()) == []


def test_no_message_outgrows_the_limit() -> None:
    call = calls.run(Unconnected(), b"", {f"x{k}": np.zeros(1 << 20, np.uint8) + k for k in range(5)}, "x")
    command = next(call)
    while isinstance(command, Unary) and command.method == "GetTensor":
        command = call.send(None)
    assert isinstance(command, Unary)
    kinds = [feed.value.WhichOneof("kind") for feed in command.request.feeds]
    assert kinds == ["tensor"] * 3 + ["reference"] * 2
    assert command.request.ByteSize() < 4 << 20


def test_a_broken_download_goes_on_where_it_stopped() -> None:
    call = Deadline(None).download("tensors/t")
    download = next(call)
    assert isinstance(download, Download)
    header = tensor_service_pb2.TensorHeader(dtype=3, dims=[3], size_bytes=12)  # pyright: ignore[reportArgumentType]
    data = np.array([1, 2, 3], np.int32).tobytes()
    download.received.take(tensor_service_pb2.ReadTensorResponse(header=header))
    download.received.take(tensor_service_pb2.ReadTensorResponse(chunk=data[:5]))
    assert isinstance(call.throw(Unavailable("broken")), Pause)
    again = call.send(None)
    assert isinstance(again, Download)
    assert again.request.offset == 5
    again.received.take(tensor_service_pb2.ReadTensorResponse(header=header))
    again.received.take(tensor_service_pb2.ReadTensorResponse(chunk=data[5:]))
    np.testing.assert_array_equal(finish(call, None), [1, 2, 3])
    with pytest.raises(Unavailable, match="broke off"):
        Received().array()


def test_a_large_graph_is_sent_once_and_then_named() -> None:
    with gs.Graph().as_default() as graph:
        gs.constant(np.zeros(20_000, np.float32), name="c")
    client = Unconnected()
    sent: list[str] = []
    for _ in range(2):
        call = calls.run(client, graph, fetches="c")
        command = next(call)
        while isinstance(command, Unary) and command.method != "Run":
            sent.append(command.method)
            command = call.send(None)
        assert isinstance(command, Unary)
        assert command.request.source.inline.reference.startswith("tensors/")
        assert command.request.ByteSize() < 200
    assert sent == ["GetTensor"]
    with graph.as_default():
        gs.constant(1.0)
    asked = next(calls.run(client, graph, fetches="c"))
    assert isinstance(asked, Unary)
    assert asked.method == "GetTensor"
