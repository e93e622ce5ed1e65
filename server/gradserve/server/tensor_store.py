"""Tensors that travel by reference: files below one folder, read through the page cache, forgotten when unused.

A tensor's name is the digest of its content, so that the same one is stored once. Uploads and downloads move one
chunk at a time: a tensor of any size needs the memory of one chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidType, NotFound
from gradserve.graph import dtypes
from gradserve.server.limits import Limits
from gradserve.v1 import tensor_service_pb2 as wire

CHUNK_BYTES = 1 << 20
NAME = re.compile(r"tensors/[0-9a-f]{64}")

Array = np.ndarray[Any, Any]


def digest_suffix(dtype: int, dims: Sequence[int]) -> bytes:
    """What follows the raw bytes in a tensor's digest."""
    return f"{dtype}:{','.join(map(str, dims))}".encode()


@dataclass(slots=True)
class _Entry:
    header: wire.TensorHeader
    path: Path
    used: float
    array: Array | None = None


class Upload:
    """A tensor that is arriving. close() it, finished or not."""

    def __init__(self, store: TensorStore, header: wire.TensorHeader, path: Path) -> None:
        self.header = header
        self.received = 0
        self._store = store
        self._path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes. Raises InvalidArgument where there are more than announced."""
        self.received += len(chunk)
        if self.received > self.header.size_bytes:
            raise InvalidArgument(
                f"{self.header.name} has more than the {self.header.size_bytes:,} bytes of its header.",
                tensor=self.header.name,
            )
        self._digest.update(chunk)
        self._file.write(chunk)

    def fill(self, array: Array) -> None:
        """Takes all bytes of a contiguous array."""
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), 16 * CHUNK_BYTES):
            self.write(data[start : start + 16 * CHUNK_BYTES])

    def finish(self) -> wire.TensorHeader:
        """Puts the tensor in the store. Raises InvalidArgument where bytes are missing or the digest is another."""
        if self.received != self.header.size_bytes:
            raise InvalidArgument(
                f"{self.header.name} has {self.received:,} bytes, not the {self.header.size_bytes:,} of its header: "
                "write it again.",
                tensor=self.header.name, received=self.received,
            )  # fmt: skip
        self._digest.update(digest_suffix(self.header.dtype, self.header.dims))
        name = f"tensors/{self._digest.hexdigest()}"
        if self.header.name and self.header.name != name:
            raise InvalidArgument(
                f"What was written is {name}, not {self.header.name}: the bytes changed on their way.",
                tensor=self.header.name, found=name,
            )  # fmt: skip
        self.header.name = name
        self._file.close()
        self._store.adopt(self.header, self._path)
        return self.header

    def close(self) -> None:
        """Removes what is left of an unfinished upload."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class TensorStore:
    """The tensors of one server, least recently used first.

    Invariant: `size_bytes` is the sum over the entries, at most the limit whenever a call returns. A tensor that is
    mapped into memory outlives its removal: the file's blocks go when the last reader lets go.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.size_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def header(self, name: str) -> wire.TensorHeader:
        """What is known of a tensor. Raises NotFound, InvalidArgument."""
        return self._entry(name).header

    def array(self, name: str) -> Array:
        """The tensor, read-only. Raises NotFound, InvalidArgument."""
        entry = self._entry(name)
        if entry.array is None:
            dtype = dtypes.from_number(entry.header.dtype).numpy
            shape = tuple(entry.header.dims)
            if entry.header.size_bytes:
                mapped = np.memmap(entry.path, np.uint8, "r")
                entry.array = np.frombuffer(mapped, dtype).reshape(shape)
            else:
                entry.array = np.empty(shape, dtype)
        return entry.array

    def begin(self, header: wire.TensorHeader) -> Upload:
        """Gets ready for a tensor. Raises InvalidArgument, InvalidType, LimitExceeded."""
        if header.name and NAME.fullmatch(header.name) is None:
            raise InvalidArgument(f"{header.name!r} is no tensor name: use tensors/{{sha256}}.", tensor=header.name)
        dtype = dtypes.from_number(header.dtype)
        if dtype.size == 0 or dtype.kind == "s":
            raise InvalidType(f"A tensor of {dtype} can't go by reference: send it inside the message.", dtype=dtype)
        if any(size < 0 for size in header.dims):
            raise InvalidArgument(f"{header.name} has a negative dimension.", tensor=header.name)
        expected = math.prod(header.dims) * dtype.numpy.itemsize
        if header.size_bytes != expected:
            raise InvalidArgument(
                f"A tensor of {dtype} {tuple(header.dims)} has {expected:,} bytes, not {header.size_bytes:,}.",
                tensor=header.name, expected=expected,
            )  # fmt: skip
        self.limits.check("max_tensor_bytes", expected, "The size of the tensor", "send it in parts")
        self.limits.check("max_store_bytes", expected, "The size of the tensor", "send it in parts")
        copied = wire.TensorHeader()
        copied.CopyFrom(header)
        return Upload(self, copied, self.folder / f"{uuid.uuid4().hex}.part")

    def adopt(self, header: wire.TensorHeader, path: Path) -> None:
        """Takes over a finished file."""
        if header.name in self._entries:
            self._entry(header.name)
            return
        final = self.folder / header.name.removeprefix("tensors/")
        os.replace(path, final)
        self._entries[header.name] = _Entry(header, final, time.monotonic())
        self.size_bytes += header.size_bytes
        self.sweep()

    async def write(self, array: Array, dtype: int) -> str:
        """Stores a result and returns its name; the bytes are digested and written on a thread."""
        contiguous = np.ascontiguousarray(array)
        header = wire.TensorHeader(dtype=dtype, dims=array.shape, size_bytes=contiguous.nbytes)  # pyright: ignore[reportArgumentType]
        upload = self.begin(header)
        try:
            await asyncio.to_thread(upload.fill, contiguous)
            return upload.finish().name
        finally:
            upload.close()

    async def write_bytes(self, data: bytes) -> str:
        """Stores plain bytes as a vector of uint8."""
        return await self.write(np.frombuffer(data, np.uint8), dtypes.as_dtype(np.uint8).number)

    def chunks(self, name: str, offset: int) -> Iterator[bytes]:
        """The bytes from an offset on, in chunks. Raises NotFound, InvalidArgument."""
        entry = self._entry(name)
        if not 0 <= offset <= entry.header.size_bytes:
            raise InvalidArgument(
                f"{name} has {entry.header.size_bytes:,} bytes; there is no offset {offset:,}.",
                tensor=name, offset=offset,
            )  # fmt: skip
        return self._read(entry.path.open("rb"), offset)

    def _read(self, file: Any, offset: int) -> Iterator[bytes]:
        with file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def delete(self, name: str) -> None:
        """Forgets a tensor, if there is one."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.size_bytes -= entry.header.size_bytes
            entry.path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Forgets what is too old, and the oldest where there is too much."""
        oldest = time.monotonic() - self.limits.max_tensor_age_seconds
        for name, entry in list(self._entries.items()):
            if entry.used >= oldest and self.size_bytes <= self.limits.max_store_bytes:
                break
            self.delete(name)

    def close(self) -> None:
        """Removes all files."""
        for name in list(self._entries):
            self.delete(name)

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            if NAME.fullmatch(name) is None:
                raise InvalidArgument(f"{name!r} is no tensor name: use tensors/{{sha256}}.", tensor=name)
            raise NotFound(f"The server does not hold {name}: write it (again).", tensor=name)
        entry.used = time.monotonic()
        self._entries.move_to_end(name)
        return entry
