"""Strings against TensorFlow's answers: formats, splits, joins, base64, bytes, hashes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

NUMBERS = np.array([1.5, -2.25, 1e10, 1e-7, np.nan, np.inf, 0.1])
TEXTS = [b"", b"a", b"hello", b"abcdefgh", b"0123456789abcdef", b"0123456789abcdef0", b"x" * 32, b"y" * 33,
         b"z" * 64, b"w" * 65, b"q" * 200, b"abc" * 50]  # fmt: skip
# TensorFlow 2.21 gave these, for 2**62 buckets.
FAST = [
    1936946117179621455,
    3694432073954588131,
    3786372426573024488,
    4533385575889643785,
    1493332391325024359,
    3308798500642334985,
    3678204687145032709,
    3999049019338133246,
    294799756062990872,
    3272011567211491968,
    3537263014797593713,
    2999530846569638125,
]
STRONG = [
    139821925654099718,
    3586765532990731589,
    2336341553116584560,
    163446701585130535,
    689982576850388049,
    1569483311070246520,
    4597049434944531135,
    1835305392674740248,
    3700662788341522423,
    4297242252051561713,
    2753243709074735763,
    1437994421476882611,
]
OLD = [
    105434511174508091,
    2996632905371535868,
    1331861223480393034,
    3429851175771700306,
    1490712428580208486,
    3044348263127206544,
    1793624403848994371,
    3468653955998158666,
    160759053204327832,
    752361075503145470,
    1673794137578948632,
    3898981761073417377,
]


def _texts(*values: bytes) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return run(getattr(raw, op).outputs(*inputs, **attrs), [], [])


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, "1.500000 -2.250000 10000000000.000000 0.000000 nan inf 0.100000"),
        ({"precision": 2}, "1.50 -2.25 10000000000.00 0.00 nan inf 0.10"),
        ({"scientific": True}, "1.500000e+00 -2.250000e+00 1.000000e+10 1.000000e-07 nan inf 1.000000e-01"),
        ({"shortest": True}, "1.5 -2.25 1e+10 1e-07 nan inf 0.1"),
    ],
)
def test_numbers_are_written_as_printf_does(attrs: Any, expected: str) -> None:
    assert [text.decode() for text in _run("AsString", NUMBERS, **attrs)[0]] == expected.split()


def test_numbers_are_padded_to_a_width() -> None:
    assert _run("AsString", NUMBERS, width=12, fill="0", precision=3)[0][[1, 4]].tolist() == [
        b"-0000002.250", b"         nan",
    ]  # fmt: skip
    assert _run("AsString", np.array([1, -20]), width=5, fill="0")[0].tolist() == [b"00001", b"-0020"]
    assert _run("AsString", np.array([1 + 2j]))[0].tolist() == [b"(1.000000,2.000000)"]
    assert _run("AsString", np.array([True, False]))[0].tolist() == [b"true", b"false"]


def test_numbers_are_read() -> None:
    found = _run("StringToNumber", _texts(b"1.5", b" 2 ", b"1e3", b"-inf", b"0x10", b"1e400", b"+3"))[0]
    assert found.tolist() == [1.5, 2.0, 1000.0, -np.inf, 16.0, np.inf, 3.0]
    assert found.dtype == np.float32


@pytest.mark.parametrize("text", [b"abc", b"", b"1_0", b"1.5", b"3000000000"])
def test_what_is_no_integer_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="can't be read as a number"):
        _run("StringToNumber", _texts(text), out_type="int32")


def test_every_letter_of_a_delimiter_splits() -> None:
    at, values, shape = _run("StringSplit", _texts(b"a,b;c", b""), np.array(b",;", object))
    assert at.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert values.tolist() == [b"a", b"b", b"c"]
    assert shape.tolist() == [2, 3]


def test_a_separator_splits_as_a_whole_and_keeps_empty_pieces() -> None:
    _, values, shape = _run("StringSplitV2", _texts(b"a<>b<><>c", b"d", b""), np.array(b"<>", object))
    assert values.tolist() == [b"a", b"b", b"", b"c", b"d", b""]
    assert shape.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        (b" a b ", 0, [b" a b "]),
        (b"a b c", 1, [b"a", b"b c"]),
        (b"a", 1, [b"a", b""]),
        (b" ", 1, []),
        (b"a b ", -1, [b"a", b"b"]),
    ],
)
def test_an_empty_rest_counts_where_the_splits_are_used_up(text: bytes, most: int, expected: list[bytes]) -> None:
    with Graph().as_default():
        _, values, _ = raw.StringSplitV2.outputs(np.array([text], object), np.array(b"", object), maxsplit=most)
    assert run([values], [], [])[0].tolist() == expected


def test_the_axis_named_first_joins_first() -> None:
    table = _texts(b"a", b"b", b"c", b"d").reshape(2, 2)
    for axes, expected in (([0], [b"a.c", b"b.d"]), ([1, 0], b"a.b.c.d"), ([0, 1], b"a.c.b.d")):
        assert _run("ReduceJoin", table, np.array(axes), separator=".")[0].tolist() == expected


def test_a_scalar_is_joined_to_every_string() -> None:
    assert _run("StringJoin", [_texts(b"a", b"b"), np.array(b"x", object)], separator="-")[0].tolist() == [
        b"a-x",
        b"b-x",
    ]


def test_base64_is_that_of_the_web() -> None:
    assert _run("EncodeBase64", _texts(b"hello?>>", b""))[0].tolist() == [b"aGVsbG8_Pj4", b""]
    assert _run("EncodeBase64", _texts(b"hello?>"), pad=True)[0].tolist() == [b"aGVsbG8_Pg=="]
    assert _run("DecodeBase64", _texts(b"aGVsbG8_Pg==", b"aGVsbG8_Pg"))[0].tolist() == [b"hello?>"] * 2
    with pytest.raises(InvalidArgument, match="web-safe"):
        _run("DecodeBase64", _texts(b"a+/="))


def test_bytes_are_read_in_either_order() -> None:
    data = _texts(b"\1\0\2\0", b"\3\0\4\0")
    assert _run("DecodeRaw", data, out_type="int16")[0].tolist() == [[1, 2], [3, 4]]
    assert _run("DecodeRaw", data, out_type="int16", little_endian=False)[0].tolist() == [[256, 512], [768, 1024]]
    short = _texts(b"\1\0\2", b"\1", b"\1\0\2\0\5\0")
    assert _run("DecodePaddedRaw", short, np.int32(4), out_type="int16")[0].tolist() == [[1, 2], [1, 0], [1, 2]]
    with pytest.raises(InvalidArgument, match="one length"):
        _run("DecodeRaw", short, out_type="uint8")


def test_tensors_become_strings_and_come_back() -> None:
    (text,) = _run("SerializeTensor", np.array([[1.5, 2.0]], np.float32))
    assert text.item() == b'\x08\x01\x12\x08\x12\x02\x08\x01\x12\x02\x08\x02"\x08\x00\x00\xc0?\x00\x00\x00@'
    assert _run("ParseTensor", text, out_type="float32")[0].tolist() == [[1.5, 2.0]]
    with pytest.raises(InvalidArgument, match="float32"):
        _run("ParseTensor", text, out_type="int32")


@pytest.mark.parametrize(
    ("op", "expected", "attrs"),
    [
        ("StringToHashBucketFast", FAST, {}),
        ("StringToHashBucketStrong", STRONG, {"key": [123, -456]}),
        ("StringToHashBucket", OLD, {}),
    ],
)
def test_strings_fall_into_tensorflows_buckets(op: str, expected: list[int], attrs: Any) -> None:
    assert _run(op, _texts(*TEXTS), num_buckets=2**62, **attrs)[0].tolist() == expected
