"""Records for TensorBoard against the bytes that TensorFlow 2.21 writes."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops.strings import texts
from tests.ops.differences import run

LOSS = b"\n\x0b\n\x04loss\x15\x00\x00\xc0?"
OTHER = b"\n\x08\n\x01b\x15\x00\x00\x00@"
# Of 1, 2, 2, -3 and 0: the least, the greatest, how many, their sum, that of their squares, ends and counts of bins.
HISTOGRAM = (-3.0, 2.0, 5.0, 2.0, 18.0)
COUNTS = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0]


def _text(text: bytes) -> Any:
    return np.array(text, object)


def _run(op: str, *inputs: Any, **attrs: Any) -> bytes:
    with Graph().as_default():
        return run(getattr(raw, op).outputs(*inputs, **attrs), [], [])[0].item()


def test_numbers_have_a_tag_each() -> None:
    assert _run("ScalarSummary", _text(b"loss"), np.float64(1.5)) == LOSS
    found = _run("ScalarSummary", texts(b"a", b"b"), np.array([0.0, 2.0]))
    assert found == b"\n\x08\n\x01a\x15\x00\x00\x00\x00" + OTHER


def test_empty_bins_of_a_histogram_are_run_together() -> None:
    found = _run("HistogramSummary", _text(b"h"), np.array([1.0, 2.0, 2.0, -3.0, 0.0]))
    assert found[:8] == b"\n\xc7\x01\n\x01h*\xc1"
    assert found[9:54:9] == b"\x09\x11\x19!)"
    assert tuple(struct.unpack("<d", found[place : place + 8])[0] for place in range(10, 55, 9)) == HISTOGRAM
    assert list(struct.unpack("<9d", found[-72:])) == COUNTS
    assert _run("HistogramSummary", _text(b"h"), np.zeros(0)).endswith(
        b"\x11\xff\xff\xff\xff\xff\xff\xef\xff2\x08\xff\xff\xff\xff\xff\xff\xef\x7f:\x08" + bytes(8)
    )
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        _run("HistogramSummary", _text(b"h"), np.array([np.nan]))


def test_summaries_are_merged_unless_two_have_one_tag() -> None:
    assert _run("MergeSummary", [_text(LOSS), _text(OTHER)]) == LOSS + OTHER
    with pytest.raises(InvalidArgument, match="loss"):
        _run("MergeSummary", [_text(LOSS), _text(LOSS)])
    with pytest.raises(InvalidArgument, match="protocol buffer"):
        _run("MergeSummary", [_text(b"junk")])


def test_tensors_go_with_their_metadata() -> None:
    found = _run("TensorSummaryV2", _text(b"t"), np.array([[1, 2]], np.float32), _text(b"\x12\x01q"))
    assert (
        found
        == b'\n \n\x01tB\x16\x08\x01\x12\x08\x12\x02\x08\x01\x12\x02\x08\x02"\x08\x00\x00\x80?\x00\x00\x00@J\x03\x12\x01q'
    )


def test_sounds_are_wave_files() -> None:
    samples = np.array([[0, 0.5, -1.0, 1.0, 0.25]], np.float32)
    assert _run("AudioSummaryV2", _text(b"s"), samples, np.float32(8000), max_outputs=1) == (
        b'\nW\n\x07s/audio2L\r\x00\x00\xfaE\x10\x01\x18\x05"6RIFF.\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00'
        b"@\x1f\x00\x00\x80>\x00\x00\x02\x00\x10\x00data\n\x00\x00\x00\x00\x00\x00@\x00\x80\xff\x7f\x00 *\taudio/wav"
    )


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [([0.0, 0.5, 1.0, 0.25], [0, 127, 255, 63]), ([0.0, -0.5, 1.0, np.nan], [128, 64, 255, 255])],
)
def test_pictures_are_spread_over_all_levels(pixels: list[float], expected: list[int]) -> None:
    picture = np.array(pixels, np.float32).reshape(1, 1, 4, 1)
    found = _run("ImageSummary", _text(b"i"), picture, max_images=1)
    assert b"i/image" in found
    start = found.index(b"IDAT")
    length = int.from_bytes(found[start - 4 : start], "big")
    assert list(zlib.decompress(found[start + 4 : start + 4 + length])) == [0, *expected]
