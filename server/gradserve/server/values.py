"""Tensor values of requests to arrays, and arrays to values of responses.

What is small travels inside the message. What is larger than a chunk, or would make the message larger than any
client takes, goes to the tensor store and travels by reference.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, NotFound
from gradserve.graph import codec, dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.variants import cannot_feed
from gradserve.server.tensor_store import CHUNK_BYTES, TensorStore
from gradserve.v1 import gradient_service_pb2 as wire

Array = np.ndarray[Any, Any]

INLINE_BYTES = CHUNK_BYTES
MESSAGE_BYTES = 3 << 20  # of the 4 MiB that every gRPC implementation takes by default
BLOCK = re.compile(r"gradserve[A-Za-z0-9._-]*")
SHARED_MEMORY = Path("/dev/shm")


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
            return _from_shared_memory(value.shared_memory)
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


def _from_shared_memory(block: wire.SharedMemory) -> Array:
    if BLOCK.fullmatch(block.block) is None:
        raise InvalidArgument(
            f"{block.block!r} can't be a block of shared memory: its name must begin with 'gradserve'.",
            block=block.block,
        )
    dtype = dtypes.from_number(block.dtype).numpy
    shape = tuple(block.dims)
    if block.offset < 0 or any(size < 0 for size in shape):
        raise InvalidArgument(f"The offset or a size of {block.block!r} is negative.", block=block.block)
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype)
    # All pages at once, where the system can: a fault a page would cost more than the copy that follows.
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    try:
        descriptor = os.open(SHARED_MEMORY / block.block, os.O_RDONLY)
        try:
            memory = mmap.mmap(descriptor, block.offset + count * dtype.itemsize, flags, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return np.frombuffer(memory, dtype, count, block.offset).reshape(shape)
    except (FileNotFoundError, PermissionError):
        raise NotFound(
            f"The server can't read shared memory {block.block!r} on its host: send the tensor another way.",
            block=block.block,
        ) from None
    except ValueError as error:
        raise InvalidArgument(f"{block.block!r} does not hold {dtype} {shape}: {error}.", block=block.block) from None


class Encoder:
    """Writes the arrays of one response."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._used = 0

    async def encode(self, value: wire.TensorValue, array: Array, dtype: DType) -> None:
        """Fills in a value."""
        size = array.nbytes
        if dtype.kind == "s":
            value.tensor.CopyFrom(codec.array_to_message(array, dtype))
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
