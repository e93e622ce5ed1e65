"""Protocol buffers field by field, for the few messages of TensorFlow that ops read and write."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gradserve.errors import InvalidArgument

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
"""How a field stands in a message."""


def varint(number: int) -> bytes:
    """An integer, seven bits a byte."""
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def bytes_field(field: int, payload: bytes) -> bytes:
    """A string or another message."""
    return varint(field << 3 | BYTES) + varint(len(payload)) + payload


def integer_field(field: int, number: int) -> bytes:
    """An integer; nothing where it is 0, the default."""
    return varint(field << 3) + varint(number) if number else b""


def double_field(field: int, number: float) -> bytes:
    """A double; nothing where it is 0, the default."""
    packed = struct.pack("<d", number)
    return varint(field << 3 | EIGHT_BYTES) + packed if any(packed) else b""


def float_field(field: int, number: float) -> bytes:
    """A float, 0 too."""
    return varint(field << 3 | FOUR_BYTES) + struct.pack("<f", number)


def read_varint(text: bytes, at: int) -> tuple[int, int]:
    """The integer that stands there and the place behind it. Raises InvalidArgument where it has no end."""
    number, shift = 0, 0
    while at < len(text):
        byte = text[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise InvalidArgument("A protocol buffer ends in the middle of a number.")


def fields(text: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, way of standing and value (an int for VARINT, else bytes) of each field of a message.

    Raises InvalidArgument where the bytes are no message.
    """
    at = 0
    while at < len(text):
        key, at = read_varint(text, at)
        number, way = key >> 3, key & 7
        if way == VARINT:
            value, at = read_varint(text, at)
            yield number, way, value
            continue
        if way == BYTES:
            length, at = read_varint(text, at)
        elif way in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if way == EIGHT_BYTES else 4
        else:
            raise InvalidArgument("The bytes are no protocol buffer of the kind that is read here.")
        if not number or at + length > len(text):
            raise InvalidArgument("The bytes are no protocol buffer of the kind that is read here.")
        yield number, way, text[at : at + length]
        at += length
