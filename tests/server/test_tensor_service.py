"""Large tensors go up and down in chunks, at gRPC's default limits and in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest

from gradserve.errors import InvalidArgument, InvalidType, NotFound
from gradserve.server import embedded
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import tensor_pb2
from gradserve.v1 import tensor_service_pb2 as tensors
from tests.server.serving import chain, inline, remote, sizes

__all__ = ["remote"]


def name_of(array: np.ndarray, suffix: bytes) -> str:
    return f"tensors/{hashlib.sha256(array.tobytes() + suffix).hexdigest()}"


def parts(header: tensors.TensorHeader, *chunks: bytes) -> Iterator[tensors.WriteTensorRequest]:
    yield tensors.WriteTensorRequest(header=header)
    for chunk in chunks:
        yield tensors.WriteTensorRequest(chunk=chunk)


def test_the_name_is_the_digest_of_bytes_dtype_and_shape(remote: Remote) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    header = tensors.TensorHeader(dtype=tensor_pb2.DT_INT32, dims=[2, 3], size_bytes=24)
    answer = remote.call(remote.tensors.WriteTensor, parts(header, array.tobytes()))
    assert answer.header.name == name_of(array, b"3:2,3")
    assert not answer.existed
    header.name = answer.header.name
    assert remote.call(remote.tensors.WriteTensor, parts(header, array.tobytes())).existed


def test_bytes_that_changed_on_their_way_are_refused(remote: Remote) -> None:
    array = np.arange(4, dtype=np.int32)
    header = tensors.TensorHeader(name=name_of(array, b"3:4"), dtype=tensor_pb2.DT_INT32, dims=[4], size_bytes=16)
    with pytest.raises(InvalidArgument, match="bytes changed on their way"):
        remote.call(remote.tensors.WriteTensor, parts(header, bytes(16)))
    with pytest.raises(InvalidArgument, match="write it again"):
        remote.call(remote.tensors.WriteTensor, parts(header, array.tobytes()[:8]))
    with pytest.raises(InvalidArgument, match="more than the"):
        remote.call(remote.tensors.WriteTensor, parts(header, bytes(16), bytes(1)))
    with pytest.raises(NotFound, match=r"write it \(again\)"):
        remote.call(remote.tensors.GetTensor, tensors.GetTensorRequest(name=header.name))


def test_headers_that_contradict_themselves_are_refused(remote: Remote) -> None:
    wrong = tensors.TensorHeader(dtype=tensor_pb2.DT_INT32, dims=[4], size_bytes=15)
    with pytest.raises(InvalidArgument, match="has 16 bytes, not 15"):
        remote.call(remote.tensors.WriteTensor, parts(wrong))
    text = tensors.TensorHeader(dtype=tensor_pb2.DT_STRING, dims=[4], size_bytes=16)
    with pytest.raises(InvalidType, match="inside the message"):
        remote.call(remote.tensors.WriteTensor, parts(text))
    with pytest.raises(InvalidArgument, match="begins with a header"):
        remote.call(remote.tensors.WriteTensor, iter([tensors.WriteTensorRequest(chunk=b"x")]))
    with pytest.raises(InvalidArgument, match="no tensor name"):
        remote.call(remote.tensors.GetTensor, tensors.GetTensorRequest(name="tensors/../../etc/passwd"))


def test_a_download_goes_on_from_an_offset(remote: Remote) -> None:
    array = np.arange(1 << 19, dtype=np.float64)
    name = remote.value(array, "x").reference
    responses = list(remote.tensors.ReadTensor(tensors.ReadTensorRequest(name=name, offset=4_000_000)))
    assert responses[0].header.size_bytes == array.nbytes
    assert b"".join(response.chunk for response in responses[1:]) == array.tobytes()[4_000_000:]


def test_a_deleted_tensor_is_gone(remote: Remote) -> None:
    name = remote.value(np.ones(1 << 19, np.float64), "x").reference
    for _ in range(2):
        remote.call(remote.tensors.DeleteTensor, tensors.DeleteTensorRequest(name=name))
    with pytest.raises(NotFound):
        remote.call(remote.tensors.GetTensor, tensors.GetTensorRequest(name=name))


@pytest.mark.parametrize("megabytes", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_a_large_tensor_passes_both_ways_in_bounded_memory(megabytes: int) -> None:
    x = np.arange(megabytes * 250_000, dtype=np.float32)
    with embedded.start(workers=1, engine="numpy") as server, Remote(server.address) as remote:
        remote.connect()
        before = sizes(server.pid)
        feeds = [wire.NamedTensor(name="x", value=remote.value(x, "x"))]
        run = wire.RunRequest(source=inline(chain(1)), feeds=feeds, fetches=["AddV2"])
        response = remote.call(remote.gradients.Run, run)
        assert response.fetches[0].value.WhichOneof("kind") == "reference"
        np.testing.assert_array_equal(remote.array(response.fetches[0].value, "y"), x + x)
        assert sizes(server.pid) - before < (64 << 20) + x.nbytes // 2
