"""Reads TensorFlow's checkpoints: PREFIX.index, a sorted table of where tensors lie, and PREFIX.data-00000-of-00001, ….

The index is a table as LevelDB writes it: blocks of entries whose keys share prefixes, an index block that says where
the blocks are, and a footer of 48 bytes that says where the index block is. Sizes are checked; checksums are not.

A partitioned variable has an entry that lists its slices, and an entry for each of them, whose key is the name and the
slice in an encoding that sorts as they do.
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
_SLICE = b"\0"  # no name begins like the key of a slice

Array = np.ndarray[Any, Any]
Extents = tuple[tuple[int, int], ...]
"""Start and length in each dimension."""


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
            read = {key: checkpoint_pb2.BundleEntryProto.FromString(value) for key, value in entries.items()}
            self.entries = {key.decode(): entry for key, entry in read.items() if key[:1] != _SLICE}
            self._slices = {key: entry for key, entry in read.items() if key[:1] == _SLICE}
        except (IndexError, KeyError, ValueError, struct.error, DecodeError):
            raise InvalidArgument(f"{path} is no index of a checkpoint, or it is damaged.", file=path) from None
        if header.endianness:
            raise InvalidArgument(f"{path} was written by a big-endian machine, which can't be read here.", file=path)
        self._shards = header.num_shards

    def read(self, key: str, part: Extents | None = None) -> Array:
        """The tensor of this key, or a part of it.

        Raises NotFound, and InvalidArgument for one that is text, is cut short, or has no such part.
        """
        entry = self.entries.get(key)
        if entry is None:
            raise NotFound(f"The checkpoint {self.prefix} has no tensor {key!r}.", tensor=key)
        if dtypes.from_number(entry.dtype).kind == "s":
            raise InvalidArgument(
                f"{key!r} in the checkpoint {self.prefix} holds strings, which is not read here.", tensor=key
            )
        shape = _shape(entry)
        wanted = tuple((0, size) for size in shape) if part is None else part
        if len(wanted) != len(shape) or any(start + n > size for (start, n), size in zip(wanted, shape, strict=True)):
            raise InvalidArgument(
                f"{key!r} in the checkpoint {self.prefix} has the shape {shape}, and no part {wanted}.", tensor=key
            )
        if entry.slices:
            return self._join(key, entry, wanted)
        return self._read(key, entry)[tuple(slice(start, start + n) for start, n in wanted)]

    def _join(self, key: str, entry: checkpoint_pb2.BundleEntryProto, wanted: Extents) -> Array:
        """A part of a tensor that is stored in slices."""
        found = np.empty([n for _, n in wanted], dtypes.from_number(entry.dtype).numpy)
        left = found.size
        for piece in entry.slices:
            sizes = zip(piece.extent, _shape(entry), strict=True)
            stored = tuple((e.start, e.length if e.HasField("length") else size) for e, size in sizes)
            common = [
                (max(a, b), min(a + m, b + n)) for (a, m), (b, n) in zip(wanted, stored, strict=True)
            ]  # fmt: skip
            if any(start >= end for start, end in common):
                continue
            values = self._slices.get(_slice_key(key, piece))
            if values is None:
                raise InvalidArgument(f"The checkpoint {self.prefix} lacks the slice {stored} of {key!r}.", tensor=key)
            into, out = (
                tuple(slice(start - first, end - first) for (start, end), (first, _) in zip(common, where, strict=True))
                for where in (wanted, stored)
            )
            found[into] = self._read(key, values)[out]
            left -= found[into].size
        if left:
            raise InvalidArgument(f"The slices of {key!r} in the checkpoint {self.prefix} leave gaps.", tensor=key)
        return found

    def _read(self, key: str, entry: checkpoint_pb2.BundleEntryProto) -> Array:
        """What lies where an entry says."""
        dtype, shape = dtypes.from_number(entry.dtype), _shape(entry)
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard_id:05d}-of-{self._shards:05d}")
        count = int(np.prod(shape, dtype=np.int64))
        try:
            array = np.fromfile(path, dtype.numpy, count, offset=entry.offset)
        except OSError as error:
            raise InvalidArgument(f"{path} can't be read: {error.strerror}.", file=path) from None
        if array.nbytes != entry.size or len(array) != count:
            raise InvalidArgument(f"{path} is cut short: {key!r} needs {entry.size} bytes.", file=path, tensor=key)
        return array.reshape(shape)


def read_part(text: str, key: str) -> Extents | None:
    """What a RestoreV2 says that it reads of a tensor: "" for all, or its sizes and a slice, as in `5 3 0,2:-`.

    Raises InvalidArgument.
    """
    *sizes, extents = text.split(" ") if text else [""]
    parts = extents.split(":") if sizes else []
    try:
        given = [(0, int(size)) if part == "-" else _pair(part) for part, size in zip(parts, sizes, strict=True)]
    except ValueError:
        raise InvalidArgument(f"{text!r} is no part of {key!r}: sizes and a slice are.", tensor=key) from None
    return tuple(given) if text else None


def _pair(text: str) -> tuple[int, int]:
    start, length = text.split(",")
    return int(start), int(length)


def _shape(entry: checkpoint_pb2.BundleEntryProto) -> tuple[int, ...]:
    return tuple(size or 0 for size in codec.shape_from_message(entry.shape) or ())


# The keys of slices


def _slice_key(key: str, piece: checkpoint_pb2.TensorSliceProto) -> bytes:
    """0, the name, the number of dimensions, and start and length in each of them, -1 for all of it.

    In the name 0 and 255 are escaped, and 0 1 ends it.
    """
    name = key.encode().replace(b"\xff", b"\xff\x00").replace(b"\0", b"\0\xff")
    rank = len(piece.extent)
    places = [number for e in piece.extent for number in (e.start, e.length if e.HasField("length") else -1)]
    count = rank.to_bytes((rank.bit_length() + 7) // 8, "big")
    return _SLICE + name + b"\0\x01" + bytes([len(count)]) + count + b"".join(map(_sorted_number, places))


def _sorted_number(number: int) -> bytes:
    """A signed number so that bytes sort as numbers do: as many leading ones as there are bytes, then the number.

    For a negative one all bits are the other way round.
    """
    magnitude = number if number >= 0 else ~number
    size = magnitude.bit_length() // 7 + 1
    ones = (1 << size) - 1
    encoded = (ones << (7 * size)) | magnitude
    if number < 0:
        encoded ^= (1 << (8 * size)) - 1
    return encoded.to_bytes(size, "big")


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
