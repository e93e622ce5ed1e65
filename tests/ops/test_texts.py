"""Substrings, n-grams, code points and formats against TensorFlow 2.21's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops.strings import texts
from tests.ops.differences import run

WORDS = texts(b"a", b"b", b"c", b"d", b"e", b"f")
BAD = texts("aä€😀".encode(), b"", b"\xff\xfeb\xe2\x82", b"\xe2\x28\xa1\xf0\x9f\x98")


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return [value.tolist() for value in run(getattr(raw, op).outputs(*inputs, **attrs), [], [])]


def test_a_substring_counts_bytes_or_letters_from_either_end() -> None:
    text = texts("äöü€😀".encode())
    assert _run("Substr", text, np.int32(2), np.int32(2)) == [["ö".encode()]]
    assert _run("Substr", text, np.int32(-2), np.int32(9), unit="UTF8_CHAR") == [["€😀".encode()]]
    with pytest.raises(InvalidArgument, match="no place 6"):
        _run("Substr", text, np.int32(6), np.int32(1), unit="UTF8_CHAR")


@pytest.mark.parametrize(
    ("widths", "pad", "expected", "splits"),
    [
        ([2], -1, [b"L|a", b"a|R", b"L|R", b"L|b", b"b|c", b"c|R", b"L|d", b"d|e", b"e|f", b"f|R"], [0, 2, 3, 6, 10]),
        ([3, 1], 0, [b"a", b"b", b"c", b"d|e|f", b"d", b"e", b"f"], [0, 1, 1, 3, 7]),
        ([5], 1, [b"L|a|R", b"L|b|c|R", b"L|d|e|f|R"], [0, 1, 1, 2, 3]),
    ],
)
def test_ngrams_are_padded_within_their_row(widths: list[int], pad: int, expected: list[bytes], splits: Any) -> None:
    found = _run(
        "StringNGrams", WORDS, np.array([0, 1, 1, 3, 6]), separator="|", ngram_widths=widths, left_pad="L",
        right_pad="R", pad_width=pad, preserve_short_sequences=True,
    )  # fmt: skip
    assert found == [expected, splits]


def test_segments_are_joined_row_by_row() -> None:
    joined = _run("UnsortedSegmentJoin", WORDS.reshape(2, 3), np.array([1, 1]), np.int32(2), separator=":")
    assert joined == [[[b"", b"", b""], [b"a:d", b"b:e", b"c:f"]]]


@pytest.mark.parametrize(
    ("errors", "points", "starts"),
    [
        ("replace", [97, 228, 8364, 128512, 63, 63, 98, 63, 63, 40, 63, 63], [0, 1, 3, 6, 0, 1, 2, 3, 0, 1, 2, 3]),
        ("ignore", [97, 228, 8364, 128512, 98, 40], [0, 1, 3, 6, 2, 1]),
    ],
)
def test_bytes_that_are_no_letters_are_replaced_or_left_out(errors: str, points: Any, starts: Any) -> None:
    found = _run("UnicodeDecodeWithOffsets", BAD, input_encoding="UTF-8", errors=errors, replacement_char=63)
    assert found[1:] == [points, starts]


def test_bad_bytes_are_refused_where_errors_are_strict() -> None:
    with pytest.raises(InvalidArgument, match="no text of its encoding"):
        _run("UnicodeDecode", BAD, input_encoding="UTF-8", errors="strict")


def test_code_points_are_encoded_row_by_row() -> None:
    inputs = np.array([97, 8364, 0x1F600, -1], np.int32), np.array([0, 2, 2, 4])
    assert _run("UnicodeEncode", *inputs, output_encoding="UTF-16-BE") == [
        [b"\x00a \xac", b"", b"\xd8=\xde\x00\xff\xfd"]
    ]
    assert _run("UnicodeTranscode", BAD[:1], input_encoding="UTF-8", output_encoding="UTF-16-BE") == [
        ["aä€😀".encode("utf-16-be")]
    ]


@pytest.mark.parametrize(
    ("array", "count", "expected"),
    [
        (np.array([0.1, 1e10, 1e-7, 1 / 3]), -1, b"[0.1 10000000000 1e-07 0.33333333333333331]"),
        (np.array([0.1, 1 / 3], np.float32), 3, b"[0.1 0.333333343]"),
        (np.arange(30).reshape(5, 6), 1, b"[[0 ... 5]\n ...\n [24 ... 29]]"),
        (np.arange(8).reshape(2, 2, 2), 3, b"[[[0 1]\n  [2 3]]\n\n [[4 5]\n  [6 7]]]"),
        (texts(b'a"b\n\x01', "ä".encode()), 3, '["a\\"b\\n\\001" "ä"]'.encode()),
        (np.array([True, False]), 3, b"[1 0]"),
    ],
)
def test_tensors_are_shown_as_print_shows_them(array: Any, count: int, expected: bytes) -> None:
    assert _run("StringFormat", [array], template="x={}!", placeholder="{}", summarize=count) == [
        b"x=" + expected + b"!"
    ]
