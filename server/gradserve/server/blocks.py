"""Blocks of shared memory that callers on this host made: large feeds are read from them, large results written there.

Whoever made a block removes it. Nothing is kept here between calls, so that neither end's death leaves anything.
"""

from __future__ import annotations

import asyncio
import errno
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, NotFound
from gradserve.graph import dtypes
from gradserve.graph.dtypes import DType
from gradserve.v1 import gradient_service_pb2 as wire

Array = np.ndarray[Any, Any]

BLOCK = re.compile(r"gradserve[A-Za-z0-9._-]*")
OFFERED = re.compile(r"gradserve-client-[A-Za-z0-9._-]+")
SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64
_AT_ONCE_BYTES = 1 << 20  # more is copied on a thread
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_block(block: wire.SharedMemory) -> Array:
    """A tensor in a block, read-only. Raises InvalidArgument, and NotFound where it can't be read on this host."""
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


class Results:
    """A block that a caller offered for results, "" where none was."""

    def __init__(self, block: str) -> None:
        """Raises InvalidArgument for a name that is no client's block."""
        if block and OFFERED.fullmatch(block) is None:
            raise InvalidArgument(
                f"{block!r} can't be a block for results: its name must begin with 'gradserve-client-'.", block=block
            )
        self._block = block
        self._end = 0

    async def write(self, array: Array, dtype: DType) -> wire.SharedMemory | None:
        """Appends a tensor; None where there is no block, it can't be written on this host, or it can't grow."""
        if not self._block:
            return None
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if len(data) <= _AT_ONCE_BYTES:
            fits = _write(self._block, data, self._end)
        else:
            fits = await asyncio.to_thread(_write, self._block, data, self._end)
        if not fits:
            self._block = ""
            return None
        found = wire.SharedMemory(block=self._block, offset=self._end, dims=array.shape)
        found.dtype = dtype.number  # pyright: ignore[reportAttributeAccessIssue]
        self._end = -(-(self._end + len(data)) // _ALIGNMENT) * _ALIGNMENT
        return found


def _write(block: str, data: memoryview, offset: int) -> bool:
    """Copies bytes into a block and says whether that was possible. No mapping: it would cost a fault a page."""
    try:
        descriptor = os.open(SHARED_MEMORY / block, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError:
        return False  # another host's, another user's, or its owner is gone
    try:
        length = os.fstat(descriptor).st_size
        try:
            while data:
                count = os.pwrite(descriptor, data, offset)
                offset, data = offset + count, data[count:]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            os.ftruncate(descriptor, length)
            return False
        return True
    finally:
        os.close(descriptor)
