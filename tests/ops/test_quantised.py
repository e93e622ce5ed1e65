"""Quantised tensors, there and back, against TensorFlow 2.21 (without oneDNN, whose rounding differs)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

X = np.array([-2.0, -1.5, -0.3, 0.0, 0.7, 2.5, 9.0], np.float32)
RANGE = np.float32(-1.5), np.float32(2.5)
MODES = ["MIN_COMBINED", "MIN_FIRST", "SCALED"]
NUMBERS = {
    ("qint8", "MIN_COMBINED"): [-128, -128, -52, -32, 12, 127, 127],
    ("qint8", "MIN_FIRST"): [-128, -128, -51, -32, 13, 127, 127],
    ("qint8", "SCALED"): [-102, -76, -15, 0, 36, 127, 127],
    ("quint8", "MIN_COMBINED"): [0, 0, 77, 96, 140, 255, 255],
    ("quint8", "MIN_FIRST"): [0, 0, 77, 96, 141, 255, 255],
    ("quint8", "SCALED"): [0, 0, 0, 0, 71, 255, 255],
    ("qint16", "MIN_COMBINED"): [-32768, -32768, -13108, -8192, 3276, 32767, 32767],
    ("qint16", "MIN_FIRST"): [-32768, -32768, -13107, -8192, 3277, 32767, 32767],
    ("qint16", "SCALED"): [-26214, -19660, -3932, 0, 9175, 32767, 32767],
}


def _there(x: Any, *ends: Any, back: bool = False, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        outputs = raw.QuantizeV2.outputs(x, *ends, **attrs)
        if back:
            kept = {name: value for name, value in attrs.items() if name in ("mode", "narrow_range", "axis")}
            outputs = (raw.Dequantize(*outputs, **kept),)
        return [value.tolist() for value in run(outputs, [], [])]


@pytest.mark.parametrize("kind", ["quint8", "qint8", "qint16"])
@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_those_of_tensorflow(kind: str, mode: str) -> None:
    assert _there(X, *RANGE, T=kind, mode=mode)[0] == NUMBERS[kind, mode]


@pytest.mark.parametrize("kind", ["qint8", "qint16", "qint32"])
@pytest.mark.parametrize("mode", MODES)
def test_what_comes_back_is_within_a_step(kind: str, mode: str) -> None:
    found = _there(X, *RANGE, T=kind, mode=mode, back=True)[0]
    low = -2.5 if mode == "SCALED" else -1.5
    assert np.abs(np.array(found) - np.clip(X, low, 2.5)).max() < 4 / 127


def test_each_entry_of_an_axis_can_have_a_range() -> None:
    x = np.array([[1.0, 10.0], [-0.5, 5.0]], np.float32)
    ends = np.array([-1.0, -10.0], np.float32), np.array([1.0, 10.0], np.float32)
    steps, low, high = _there(x, *ends, T="qint8", mode="SCALED", narrow_range=True, axis=1)
    assert (steps, low, high) == ([[127, 127], [-64, 64]], [-1.0, -10.0], [1.0, 10.0])
    with pytest.raises(InvalidArgument, match="one range for all"):
        _there(x, *ends, T="qint8", mode="MIN_FIRST", axis=1)
    with pytest.raises(InvalidArgument, match="don't fit"):
        _there(x, *ends, T="qint8", mode="SCALED")


def test_uniform_quantisation_has_a_scale_and_a_zero_point() -> None:
    with Graph().as_default():
        scale = np.float32(0.5), np.int32(3)
        limits: dict[str, Any] = {"quantization_min_val": -128, "quantization_max_val": 127}
        there = raw.UniformQuantize(X, *scale, Tout="qint8", **limits)
        back = raw.UniformDequantize(there, *scale, Tout="float32", **limits)
        steps, floats = run([there, back], [], [])
    assert steps.tolist() == [-1, 0, 2, 3, 4, 8, 21]
    assert floats.tolist() == [-2.0, -1.5, -0.5, 0.0, 0.5, 2.5, 9.0]
