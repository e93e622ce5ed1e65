"""Separated values, examples in JSON and compressed bytes, as TensorFlow decodes them."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument, LimitExceeded
from gradserve.files.v1 import example_pb2
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops import decode
from gradserve.ops.strings import texts
from tests.ops.differences import run

NUMBER, TEXT, NO_TEXT = np.array([7], np.int32), texts(b"none"), texts()


def _csv(*rows: bytes, defaults: Any = (NUMBER, TEXT), **attrs: Any) -> list[Any]:
    with Graph().as_default():
        columns = run(raw.DecodeCSV.outputs(texts(*rows), list(defaults), **attrs), [], [])
    return [column.tolist() for column in columns]


def test_cells_are_numbers_or_texts_or_have_a_default() -> None:
    assert _csv(b"1,a", b",", b"-3,b c") == [[1, 7, -3], [b"a", b"none", b"b c"]]
    assert _csv(b"NA,NA", na_value="NA") == [[7], [b"none"]]


def test_a_quoted_cell_holds_separators_line_ends_and_doubled_quotes() -> None:
    assert _csv(b'1,"a, ""b""\n"') == [[1], [b'a, "b"\n']]
    assert _csv(b'1;"a', field_delim=";", use_quote_delim=False) == [[1], [b'"a']]


def test_columns_are_selected() -> None:
    assert _csv(b'x,2,y,z,"open', select_cols=[1, 3]) == [[2], [b"z"]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"1", "there are 1 cells where 2 are expected"),
        (b"x,a", "can't be read as a number of type int32"),
        (b'1,a"b', "must be quoted"),
        (b'1,"a"b', "must be written twice"),
        (b'1,"a', "does not end"),
        (b"1,", "cell 1 is missing"),
    ],
)
def test_a_row_that_is_none_is_named(row: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"record 1: .*{why}"):
        _csv(b"1,a", row, defaults=(NUMBER, NO_TEXT))


def test_an_example_in_json_becomes_a_message() -> None:
    text = b'{"features": {"feature": {"a": {"int64List": {"value": [1, "-2"]}}, "b": {"bytesList": {"value": ["aGk="]}}}}}'
    with Graph().as_default():
        found = run([raw.DecodeJSONExample(texts(text, b"{}"))], [], [])[0]
    features = example_pb2.Example.FromString(found[0]).features.feature
    assert list(features["a"].int64_list.value) == [1, -2]
    assert list(features["b"].bytes_list.value) == [b"hi"]
    assert found[1] == b""
    with Graph().as_default(), pytest.raises(InvalidArgument, match="text 0 is no Example in JSON"):
        run([raw.DecodeJSONExample(texts(b"[1"))], [], [])


def _decompressed(data: bytes, kind: str) -> bytes:
    with Graph().as_default():
        return run([raw.DecodeCompressed(texts(data), compression_type=kind)], [], [])[0][0]


def test_bytes_are_decompressed() -> None:
    assert _decompressed(zlib.compress(b"hello"), "ZLIB") == b"hello"
    assert _decompressed(gzip.compress(b"one") + gzip.compress(b"two"), "GZIP") == b"onetwo"
    assert _decompressed(b"as it is", "") == b"as it is"
    with pytest.raises(InvalidArgument, match="text 0 is not ZLIB"):
        _decompressed(gzip.compress(b"one"), "ZLIB")
    with pytest.raises(InvalidArgument, match="must be ZLIB, GZIP or empty"):
        _decompressed(b"", "ZSTD")


def test_a_few_bytes_do_not_become_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_BYTES", 1000)
    assert len(_decompressed(zlib.compress(bytes(1000)), "ZLIB")) == 1000
    with pytest.raises(LimitExceeded, match="larger than 1,000 bytes"):
        _decompressed(zlib.compress(bytes(1001)), "ZLIB")
