"""TensorService: decode, call the store, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gradserve.errors import InvalidArgument
from gradserve.server.tensor_store import CHUNK_BYTES, TensorStore
from gradserve.v1 import tensor_service_pb2 as wire
from gradserve.v1 import tensor_service_pb2_grpc


class TensorService(tensor_service_pb2_grpc.TensorServiceServicer):
    """Moves tensors in and out of the store, a chunk at a time."""

    def __init__(self, store: TensorStore) -> None:
        self.store = store

    async def WriteTensor(self, request_iterator: Any, context: Any) -> wire.WriteTensorResponse:
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("An upload begins with a header.")
        if first.header.name in self.store:
            return wire.WriteTensorResponse(header=self.store.header(first.header.name), existed=True)
        upload = self.store.begin(first.header)
        try:
            async for request in requests:
                if request.WhichOneof("part") != "chunk":
                    raise InvalidArgument("Only the first message of an upload may be a header.")
                if len(request.chunk) > CHUNK_BYTES:
                    raise InvalidArgument(
                        f"A chunk may have {CHUNK_BYTES:,} bytes, and this one has {len(request.chunk):,}.",
                        bound=CHUNK_BYTES,
                    )
                await asyncio.to_thread(upload.write, request.chunk)
            return wire.WriteTensorResponse(header=upload.finish())
        finally:
            upload.close()

    async def ReadTensor(self, request: wire.ReadTensorRequest, context: Any) -> AsyncIterator[wire.ReadTensorResponse]:
        header = self.store.header(request.name)
        chunks = self.store.chunks(request.name, request.offset)
        yield wire.ReadTensorResponse(header=header)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield wire.ReadTensorResponse(chunk=chunk)

    async def GetTensor(self, request: wire.GetTensorRequest, context: Any) -> wire.GetTensorResponse:
        return wire.GetTensorResponse(header=self.store.header(request.name))

    async def DeleteTensor(self, request: wire.DeleteTensorRequest, context: Any) -> wire.DeleteTensorResponse:
        self.store.delete(request.name)
        return wire.DeleteTensorResponse()
