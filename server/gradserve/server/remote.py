"""The command line's way to a server: the generated stubs, tensors by reference, errors as exceptions.

This is not the SDK; it is what a thin program in any language would write.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradserve.errors import GradserveError, Unavailable, by_reason
from gradserve.graph import codec, dtypes
from gradserve.saved.model import Model
from gradserve.server.tensor_store import CHUNK_BYTES, digest_suffix
from gradserve.v1 import (
    gradient_service_pb2,
    gradient_service_pb2_grpc,
    tensor_pb2,
    tensor_service_pb2,
    tensor_service_pb2_grpc,
)

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]  # what is moved, bytes so far, bytes in all

CONNECT_SECONDS = 5.0


def silent(what: str, done: int, total: int) -> None:
    """The progress of who does not watch."""


class Remote:
    """A server that is called synchronously. close() it."""

    def __init__(self, address: str, progress: Progress = silent) -> None:
        self.address = address
        self._progress = progress
        self._channel = grpc.insecure_channel(address)
        self.gradients = gradient_service_pb2_grpc.GradientServiceStub(self._channel)
        self.tensors = tensor_service_pb2_grpc.TensorServiceStub(self._channel)

    def connect(self) -> None:
        """Raises Unavailable where nothing answers."""
        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise Unavailable(
                f"No server answers at {self.address}: start one with 'gradserve serve', or leave --server out.",
                address=self.address,
            ) from None

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, method: Callable[[Any], Any], request: Any) -> Any:
        """The answer of a method. Raises the server's error."""
        try:
            return method(request)
        except grpc.RpcError as error:
            raise error_of(error) from None

    def value(self, array: Array, what: str) -> gradient_service_pb2.TensorValue:
        """The value of an array, uploaded where it is large."""
        if array.nbytes <= CHUNK_BYTES or array.dtype.kind in "OSU":
            return gradient_service_pb2.TensorValue(tensor=codec.array_to_message(array))
        number = dtypes.as_dtype(array.dtype).number
        return gradient_service_pb2.TensorValue(reference=self._upload(array, number, what))

    def graph(self, data: bytes) -> gradient_service_pb2.GraphValue:
        """The value of a serialised GraphDef, uploaded where it is large."""
        if len(data) <= CHUNK_BYTES:
            return gradient_service_pb2.GraphValue(serialized=data)
        name = self._upload(np.frombuffer(data, np.uint8), tensor_pb2.DT_UINT8, "graph")
        return gradient_service_pb2.GraphValue(reference=name)

    @contextlib.contextmanager
    def source(self, model: Model) -> Generator[gradient_service_pb2.GraphSource]:
        """Where a model is to be run: as it is, or in a session for this once where its variables have values."""
        if not model.targets:
            yield gradient_service_pb2.GraphSource(inline=self.graph(model.graph))
            return
        session = self.open(model)
        try:
            yield gradient_service_pb2.GraphSource(session=session)
        finally:
            self.call(self.gradients.DeleteSession, gradient_service_pb2.DeleteSessionRequest(name=session))

    def open(self, model: Model) -> str:
        """The name of a new session, the model's variables having their values."""
        request = gradient_service_pb2.CreateSessionRequest(
            source=gradient_service_pb2.GraphSource(inline=self.graph(model.graph)),
            init_targets=model.targets,
            feeds=[
                gradient_service_pb2.NamedTensor(name=name, value=self.value(array, name))
                for name, array in model.values.items()
            ],
        )
        return self.call(self.gradients.CreateSession, request).session.name

    def array(self, value: gradient_service_pb2.TensorValue, what: str) -> Array:
        """The array of a value, downloaded where it is by reference."""
        if value.WhichOneof("kind") == "tensor":
            return codec.array_from_message(value.tensor)
        try:
            return self._download(value.reference, what)
        except grpc.RpcError as error:
            raise error_of(error) from None

    def _upload(self, array: Array, number: int, what: str) -> str:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(data)
        digest.update(digest_suffix(number, array.shape))
        header = tensor_service_pb2.TensorHeader(
            name=f"tensors/{digest.hexdigest()}", dtype=number, dims=array.shape, size_bytes=len(data)  # pyright: ignore[reportArgumentType]
        )  # fmt: skip

        def parts() -> Iterator[tensor_service_pb2.WriteTensorRequest]:
            yield tensor_service_pb2.WriteTensorRequest(header=header)
            for start in range(0, len(data), CHUNK_BYTES):
                yield tensor_service_pb2.WriteTensorRequest(chunk=bytes(data[start : start + CHUNK_BYTES]))
                self._progress(f"Sending {what}", min(start + CHUNK_BYTES, len(data)), len(data))

        self.call(self.tensors.WriteTensor, parts())
        return header.name

    def _download(self, name: str, what: str) -> Array:
        responses = iter(self.tensors.ReadTensor(tensor_service_pb2.ReadTensorRequest(name=name)))
        header = next(responses).header
        buffer = np.empty(header.size_bytes, np.uint8)
        position = 0
        for response in responses:
            buffer[position : position + len(response.chunk)] = np.frombuffer(response.chunk, np.uint8)
            position += len(response.chunk)
            self._progress(f"Receiving {what}", position, header.size_bytes)
        return buffer.view(dtypes.from_number(header.dtype).numpy).reshape(tuple(header.dims))


def error_of(error: Any) -> GradserveError:
    """The exception of a failed call."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.reason in by_reason():
            return by_reason()[info.reason](error.details(), **dict(info.metadata))
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"The server can't be reached: {error.details()}.")
    return GradserveError(f"{error.code().name}: {error.details()}")
