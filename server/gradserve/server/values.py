"""Tensor values of requests to arrays, and arrays to values of responses.

What is small travels inside the message. What is larger than a chunk, or would make the message larger than any
client takes, goes to the tensor store and travels by reference, or into a block that a caller on this host offers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import codec, dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.variants import cannot_feed
from gradserve.server.blocks import Results, read_block
from gradserve.server.tensor_store import CHUNK_BYTES, TensorStore
from gradserve.v1 import gradient_service_pb2 as wire

Array = np.ndarray[Any, Any]

INLINE_BYTES = CHUNK_BYTES
MESSAGE_BYTES = 3 << 20  # of the 4 MiB that every gRPC implementation takes by default
BLOCK_BYTES = 64 << 10  # of a result that is worth a block


def canonical(name: str) -> str:
    """`node:0` for `node`."""
    return name if ":" in name else f"{name}:0"


def decode(value: wire.TensorValue, store: TensorStore, what: str) -> Array:
    """The array of a value, read-only. Raises InvalidArgument, InvalidGraph, NotFound."""
    match value.WhichOneof("kind"):
        case "tensor":
            return codec.array_from_message(value.tensor)
        case "reference":
            return store.array(value.reference)
        case "shared_memory":
            return read_block(value.shared_memory)
        case _:
            raise InvalidArgument(f"{what} has no value: set tensor, reference or shared_memory.", tensor=what)


def decode_feeds(feeds: Iterable[wire.NamedTensor], store: TensorStore) -> dict[str, Array]:
    """Arrays by tensor name. Raises InvalidArgument for a name fed twice, InvalidType for what is no array."""
    arrays: dict[str, Array] = {}
    for feed in feeds:
        name = feed.name if ":" in feed.name else f"{feed.name}:0"
        if name in arrays:
            raise InvalidArgument(f"{name} is fed twice: drop one.", tensor=name)
        kind = dtypes.from_number(feed.value.tensor.dtype) if feed.value.HasField("tensor") else None
        if kind is not None and kind.base.kind in "rv":
            raise cannot_feed(name, kind)
        arrays[name] = decode(feed.value, store, name)
    return arrays


class Encoder:
    """Writes the arrays of one response.

    Raises InvalidArgument where the block that the caller offered for large ones can't be one.
    """

    def __init__(self, store: TensorStore, block: str = "") -> None:
        self._store = store
        self._results = Results(block)
        self._used = 0

    async def encode(self, value: wire.TensorValue, array: Array, dtype: DType) -> None:
        """Fills in a value."""
        size = array.nbytes
        if dtype.kind == "s":
            value.tensor.CopyFrom(codec.array_to_message(array, dtype))
        elif size > BLOCK_BYTES and (shared := await self._shared(array, dtype)) is not None:
            value.shared_memory.CopyFrom(shared)
        elif size <= INLINE_BYTES and self._used + size <= MESSAGE_BYTES:
            self._used += size
            tensor = value.tensor
            tensor.dtype = dtype.number  # pyright: ignore[reportAttributeAccessIssue]
            shape = tensor.tensor_shape
            shape.SetInParent()
            for length in array.shape:
                shape.dim.add(size=length)
            tensor.tensor_content = array.tobytes()
        else:
            value.reference = await self._store.write(array, dtype.number)

    async def _shared(self, array: Array, dtype: DType) -> wire.SharedMemory | None:
        limits = self._store.limits
        limits.check("max_tensor_bytes", array.nbytes, "The size of a result", "fetch it in parts")
        return await self._results.write(array, dtype)
