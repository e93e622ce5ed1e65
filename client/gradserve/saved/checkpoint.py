"""Reads TensorFlow's checkpoints: PREFIX.index, a sorted table of where tensors lie, and PREFIX.data-00000-of-00001, ….

The index is a table as LevelDB writes it: blocks of entries whose keys share prefixes, an index block that says where
the blocks are, and a footer of 48 bytes that says where the index block is. Sizes are checked; checksums are not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gradserve.errors import InvalidArgument, NotFound
from gradserve.files.v1 import checkpoint_pb2
from gradserve.graph import codec, dtypes

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_UNCOMPRESSED = 0


class Checkpoint:
    """A checkpoint on disk. Its tensors are read one by one.

    Attributes:
        prefix: of its files.
        entries: where each tensor lies, by key.
    """

    def __init__(self, prefix: Path) -> None:
        """Reads the index. Raises InvalidArgument where there is none, or none that can be read."""
        self.prefix = prefix
        path = prefix.with_name(f"{prefix.name}.index")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidArgument(f"{path} can't be read: {error.strerror}.", file=path) from None
        try:
            entries = dict(_table(data))
            header = checkpoint_pb2.BundleHeaderProto.FromString(entries.pop(b""))
            self.entries = {
                key.decode(): checkpoint_pb2.BundleEntryProto.FromString(value) for key, value in entries.items()
            }
        except (IndexError, KeyError, ValueError, struct.error, DecodeError):
            raise InvalidArgument(f"{path} is no index of a checkpoint, or it is damaged.", file=path) from None
        if header.endianness:
            raise InvalidArgument(f"{path} was written by a big-endian machine, which can't be read here.", file=path)
        self._shards = header.num_shards

    def read(self, key: str) -> np.ndarray[Any, Any]:
        """The tensor of this key. Raises NotFound, and InvalidArgument for one that is sliced, text, or cut short."""
        entry = self.entries.get(key)
        if entry is None:
            raise NotFound(f"The checkpoint {self.prefix} has no tensor {key!r}.", tensor=key)
        dtype = dtypes.from_number(entry.dtype)
        shape = codec.shape_from_message(entry.shape) or ()
        if entry.slices or dtype.kind == "s":
            what = "is stored in slices" if entry.slices else "holds strings"
            raise InvalidArgument(
                f"{key!r} in the checkpoint {self.prefix} {what}, which is not read here.", tensor=key
            )
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard_id:05d}-of-{self._shards:05d}")
        count = int(np.prod([size or 0 for size in shape], dtype=np.int64))
        try:
            array = np.fromfile(path, dtype.numpy, count, offset=entry.offset)
        except OSError as error:
            raise InvalidArgument(f"{path} can't be read: {error.strerror}.", file=path) from None
        if array.nbytes != entry.size or len(array) != count:
            raise InvalidArgument(f"{path} is cut short: {key!r} needs {entry.size} bytes.", file=path, tensor=key)
        return array.reshape([size or 0 for size in shape])


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table, in order of key. Raises ValueError, IndexError or struct.error where it is damaged."""
    footer = data[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError
    _, place = _handle(footer, 0)  # of a block about the table, which is empty
    index, _ = _handle(footer, place)
    for _, where in _block(data, *index):
        yield from _block(data, *_handle(where, 0)[0])


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key repeats so many bytes of the one before it."""
    block = data[offset : offset + size]
    if len(block) != size or data[offset + size] != _UNCOMPRESSED:
        raise ValueError
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, size - 4 * (restarts + 1), b""
    while place < end:
        shared, place = _varint(block, place)
        rest, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + rest]
        place += rest
        yield key, block[place : place + length]
        place += length


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the place after them."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
