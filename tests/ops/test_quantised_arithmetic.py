"""Arithmetic in quantised numbers: by hand, and TensorFlow 2.21's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import qint32, quint8
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

UNIT = np.float32(0), np.float32(255)  # each integer stands for itself
SIGNED = np.float32(-128), np.float32(127)  # 128 stands for 0


def _run(name: str, *inputs: Any, **attrs: Any) -> list[Any]:
    """Bytes are quint8 and integers of 32 bits qint32."""
    with Graph().as_default() as graph:

        def enter(value: Any) -> Any:
            if isinstance(value, list):
                return [enter(entry) for entry in value]
            kind = {"uint8": quint8, "int32": qint32}.get(value.dtype.name)
            return graph.constant(value, kind) if kind and value.ndim else value

        outputs = getattr(raw, name).outputs(*map(enter, inputs), **attrs)
        return [value.tolist() for value in run(outputs, [], [])]


def _bytes(*values: Any) -> Any:
    return np.array(values, np.uint8)


def test_products_count_from_the_integer_that_stands_for_nothing() -> None:
    # (3 - 128, 130 - 128) · (10, 20) = -1250 + 40
    found, low, high = _run("QuantizedMatMul", _bytes([3, 130]), _bytes([10], [20]), *SIGNED, *UNIT)
    assert found == [[-1210]]
    assert [low, high] == [-(2.0**31), 2.0**31]  # one step times one step is 1
    assert _run("QuantizedMul", _bytes(3, 130), _bytes(10, 20), *SIGNED, *UNIT)[0] == [-1250, 40]


def test_the_padding_of_a_convolution_is_nothing() -> None:
    image, kernel = _bytes([[[130], [129]]]), _bytes([[[1]], [[2]]]).reshape(1, 2, 1, 1)
    attrs = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    found = _run("QuantizedConv2D", image.reshape(1, 1, 2, 1), kernel, *SIGNED, *UNIT, **attrs)[0]
    assert np.ravel(found).tolist() == [2 + 2 * 1, 1]


def test_sums_are_taken_in_a_range_with_room() -> None:
    # The range is ±2^14 times 255, of 2^32 steps: one step of the addends is 2^32 / (2 · 2^14 · 255), about 514.0.
    found, low, high = _run("QuantizedAdd", _bytes(1, 2), _bytes(3, 0), *UNIT, *UNIT)
    assert [low, high] == [-255.0 * 2**14, 255.0 * 2**14]
    assert found == [4 * 514, 2 * 514]
    # ±2^17 times 255: about 64.25
    assert _run("QuantizedBiasAdd", _bytes([8, 16]), _bytes(0, 8), *UNIT, *UNIT, out_type="qint32")[0] == [[514, 1542]]


def test_bounds_are_those_of_the_range() -> None:
    assert _run("QuantizedRelu", _bytes(3, 128, 200), *SIGNED)[0] == [128, 128, 200]
    assert _run("QuantizedRelu6", _bytes(3, 130, 200), *SIGNED)[0] == [128, 130, 134]


def test_pools_take_the_largest_or_the_mean_without_what_is_behind_the_point() -> None:
    image = _bytes(1, 4, 2, 8).reshape(1, 2, 2, 1)
    attrs = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
    assert np.ravel(_run("QuantizedMaxPool", image, *UNIT, **attrs)[0]) == [8]
    assert np.ravel(_run("QuantizedAvgPool", image, *UNIT, **attrs)[0]) == [3]  # 15 / 4


def test_parts_are_brought_into_one_range() -> None:
    parts = [_bytes([0, 255]), _bytes([255])]
    lows, highs = [np.float32(0), np.float32(0)], [np.float32(1), np.float32(2)]
    assert _run("QuantizedConcat", np.int32(1), parts, lows, highs) == [[[0, 128, 255]], 0, 2]


def test_thirty_two_bits_become_eight() -> None:
    values = np.array([-(2**30), 0, 2**30], np.int32)
    ends = np.float32(-8), np.float32(8)  # half of which is used: from -4 to 4
    low, high = _run("RequantizationRange", values, *ends)
    np.testing.assert_allclose([low, high], [-4, 4], rtol=1e-6)
    assert _run("Requantize", values, *ends, np.float32(-4), np.float32(4), out_type="quint8")[0] == [0, 128, 255]
    assert _run("QuantizeDownAndShrinkRange", values, *ends, out_type="quint8")[0] == [0, 128, 255]
    assert _run("QuantizedReshape", _bytes([1, 2]), np.array([2, 1]), *UNIT)[0] == [[1], [2]]


def test_a_range_that_falls_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="must be two rising numbers"):
        _run("QuantizedRelu", _bytes(1), np.float32(2), np.float32(1))
