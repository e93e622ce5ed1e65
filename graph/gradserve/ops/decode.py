"""Texts decoded: rows of separated values, training examples written as JSON, compressed bytes."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf import json_format

from gradserve.errors import InvalidArgument, LimitExceeded
from gradserve.files.v1 import example_pb2
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node
from gradserve.graph.op import MISSING, call, define, same_shape
from gradserve.ops.strings import encoded, number_of, texts

Array = np.ndarray[Any, Any]

# Rows of separated values


def _cells(row: bytes, separator: bytes, quotes: bool) -> Iterator[bytes]:
    """The cells of a row. A quoted one holds separators and line ends, and quotes that are written twice.

    Raises InvalidArgument where quotes stand anywhere else.
    """
    at = 0
    while at < len(row):
        if row[at : at + 1] in (b"\n", b"\r"):
            at += 1
        elif quotes and row[at : at + 1] == b'"':
            cell, at = _quoted(row, at + 1, separator)
            yield cell
        else:
            end = row.find(separator, at)
            cell = row[at : end if end >= 0 else len(row)]
            if any(mark in cell for mark in ((b'"', b"\n", b"\r") if quotes else (b"\n", b"\r"))):
                raise InvalidArgument("a cell that holds quotes or line ends must be quoted")
            yield cell
            at += len(cell) + 1
    if row.endswith(separator):
        yield b""


def _quoted(row: bytes, at: int, separator: bytes) -> tuple[bytes, int]:
    """The cell that begins behind a quote, and where the next one begins."""
    pieces: list[bytes] = []
    while True:
        end = row.find(b'"', at)
        if end < 0:
            raise InvalidArgument("a quoted cell does not end")
        pieces.append(row[at:end])
        behind = row[end + 1 : end + 2]
        if behind in (b"", separator):
            return b"".join(pieces), end + 2
        if behind != b'"':
            raise InvalidArgument("a quote within a quoted cell must be written twice")
        pieces.append(b'"')
        at = end + 2


def _csv(
    xp: Any, records: Any, defaults: list[Any], *, OUT_TYPE: list[DType], field_delim: str, use_quote_delim: bool,
    na_value: str, select_cols: list[int], node: Node,
) -> list[Array]:  # fmt: skip
    separator = encoded(field_delim)
    if len(separator) != 1:
        raise InvalidArgument(f"{node.name}: field_delim must be one letter, not {field_delim!r}.")
    if select_cols and (len(select_cols) != len(defaults) or select_cols != sorted(set(select_cols))):
        raise InvalidArgument(f"{node.name}: select_cols must rise and be {len(defaults)}, not {select_cols}.")
    columns: list[list[Any]] = [[] for _ in defaults]
    read = select_cols[-1] + 1 if select_cols else None  # what lies behind need not even be well formed
    for number, row in enumerate(np.ravel(records).tolist()):
        try:
            cells = list(itertools.islice(_cells(row, separator, use_quote_delim), read))
            if select_cols:
                cells = [cells[column] for column in select_cols if column < len(cells)]
            if len(cells) != len(defaults):
                raise InvalidArgument(f"there are {len(cells)} cells where {len(defaults)} are expected")
            for place, (column, cell) in enumerate(zip(columns, cells, strict=True)):
                missing = not cell or cell == encoded(na_value)
                column.append(_default(defaults[place], place) if missing else _value(cell, OUT_TYPE[place]))
        except InvalidArgument as error:
            raise InvalidArgument(
                f"{node.name}: record {number}: {error.message.rstrip('.')}.", node=node.name
            ) from None
    return [
        (texts(*column) if kind.kind == "s" else np.array(column, kind.numpy)).reshape(np.shape(records))
        for column, kind in zip(columns, OUT_TYPE, strict=True)
    ]


def _value(cell: bytes, kind: DType) -> Any:
    return cell if kind.kind == "s" else number_of(cell, kind)


def _default(default: Any, place: int) -> Any:
    if np.size(default) != 1:
        raise InvalidArgument(f"cell {place} is missing, which has no default")
    return np.ravel(default).tolist()[0]


define(
    "DecodeCSV(records: string, record_defaults: OUT_TYPE; OUT_TYPE: list(float32|float64|int32|int64|string),"
    " field_delim: string = ',', use_quote_delim: bool = true, na_value: string = '', select_cols: list(int) = [])"
    " -> (output: OUT_TYPE)",
    shape=lambda records, defaults: [records.shape] * len(defaults),
    gradient=MISSING,
    kernel=_csv,
    dynamic=True,
    examples=lambda draw: [
        call(texts(*[b'1,"a ""b"", c",2.5', b",,"][: draw.size(0, 2)]),
             [np.array([7], np.int32), texts(b"none"), np.array([0.5], np.float32)])
    ],
)  # fmt: skip

# Training examples as JSON


def _from_json(xp: Any, rows: Any, *, node: Node) -> Array:
    """Serialised Examples."""
    found = np.empty(rows.shape, object)
    for place, text in enumerate(rows.ravel().tolist()):
        try:
            message = json_format.Parse(text, example_pb2.Example())
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{node.name}: text {place} is no Example in JSON: {error}", node=node.name) from None
        found.flat[place] = message.SerializeToString(deterministic=True)
    return found


define(
    "DecodeJSONExample(json_examples: string) -> (binary_examples: string)",
    shape=same_shape,
    gradient=MISSING,
    kernel=_from_json,
    dynamic=True,
    examples=lambda draw: [
        call(texts(*[b'{"features": {"feature": {"a": {"int64List": {"value": [1, "2"]}}}}}'] * draw.size(0, 2)))
    ],
)

# Compressed bytes

MOST_BYTES = 1 << 28
"""That one compressed string may become: a few bytes can stand for many."""

_WINDOWS = {"ZLIB": zlib.MAX_WBITS, "GZIP": zlib.MAX_WBITS | 16}


def _inflated(data: bytes, window: int) -> bytes:
    """One stream, or several one after another; what is no stream behind them is left. Raises zlib.error."""
    pieces: list[bytes] = []
    room = MOST_BYTES + 1
    while data and (not pieces or data[:2] == b"\x1f\x8b"):
        stream = zlib.decompressobj(window)
        pieces.append(stream.decompress(data, room))
        room -= len(pieces[-1])
        if not room:
            raise LimitExceeded(f"A string is larger than {MOST_BYTES:,} bytes when it is decompressed.")
        data = stream.unused_data
    return b"".join(pieces)


def _decompressed(xp: Any, rows: Any, *, compression_type: str, node: Node) -> Array:
    if not compression_type:
        return rows
    if compression_type not in _WINDOWS:
        raise InvalidArgument(f"{node.name}: compression_type must be ZLIB, GZIP or empty, not {compression_type!r}.")
    found = np.empty(rows.shape, object)
    for place, text in enumerate(rows.ravel().tolist()):
        try:
            found.flat[place] = _inflated(text, _WINDOWS[compression_type])
        except zlib.error as error:
            raise InvalidArgument(f"{node.name}: text {place} is not {compression_type}: {error}.") from None
    return found


define(
    "DecodeCompressed(bytes: string; compression_type: string = '') -> (output: string)",
    shape=same_shape,
    gradient=MISSING,
    kernel=_decompressed,
    dynamic=True,
    examples=lambda draw: [
        call(texts(*[zlib.compress(b"text")] * draw.size(0, 2)), compression_type="ZLIB"),
        call(texts(b"text")),
    ],
)
