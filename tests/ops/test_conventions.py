"""Gradients that are a convention and no derivative: straight through roundings, and from one side of a Switch.

Each is linear in the cotangent: dx is checked by its value, and so is the derivative of dx, along another vector, by
the cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run

Array = np.ndarray[Any, Any]
_X = np.array([[-3.5, -0.5, 0.5], [1.5, 2.5, -1.5]])
_LOW, _HIGH = np.array(-2.0), np.array(2.0)
_ALL, _WITHIN, _NONE = np.ones((2, 3)), np.abs(_X) < 2, np.zeros((2, 3))
_LOWS, _HIGHS = np.array([-1.0, -1.0, -4.0]), np.array([2.0, 3.0, 4.0])
_EACH_WITHIN = (_LOWS <= _X) & (_X <= _HIGHS)
_BITS = np.int32(8)


def _singles(*values: Array) -> list[Any]:
    return [value.astype(np.float32) for value in values]


def _switched(taken: bool, side: int) -> Callable[[Tensor], Tensor]:
    return lambda x: raw.Switch.outputs(x, np.array(taken))[side]


# What is made of x, its dtype, and which entries of the cotangent get through.
_STRAIGHT: dict[str, tuple[Callable[[Tensor], Tensor], Any, Array]] = {
    "FakeQuantWithMinMaxArgs": (lambda x: raw.FakeQuantWithMinMaxArgs(x, min=-2.0, max=2.0), np.float32, _WITHIN),
    "FakeQuantWithMinMaxVars": (
        lambda x: raw.FakeQuantWithMinMaxVars(x, *_singles(_LOW, _HIGH)), np.float32, _WITHIN,
    ),
    "FakeQuantWithMinMaxVarsPerChannel": (
        lambda x: raw.FakeQuantWithMinMaxVarsPerChannel(x, *_singles(_LOWS, _HIGHS)), np.float32, _EACH_WITHIN,
    ),
    "QuantizeAndDequantize": (lambda x: raw.QuantizeAndDequantize(x, num_bits=3), np.float64, _ALL),
    "QuantizeAndDequantizeV2": (lambda x: raw.QuantizeAndDequantizeV2(x, _LOW, _HIGH), np.float64, _ALL),
    "QuantizeAndDequantizeV3": (lambda x: raw.QuantizeAndDequantizeV3(x, _LOW, _HIGH, _BITS), np.float64, _ALL),
    "QuantizeAndDequantizeV4": (lambda x: raw.QuantizeAndDequantizeV4(x, _LOW, _HIGH), np.float64, _WITHIN),
    "QuantizeAndDequantizeV4 of columns": (
        lambda x: raw.QuantizeAndDequantizeV4(x, _LOWS, _HIGHS, range_given=True, axis=1), np.float64, _EACH_WITHIN,
    ),
    "Sign": (raw.Sign, np.float64, _NONE),
    "Switch, the side taken": (_switched(True, 1), np.float64, _ALL),
    "Switch, the other side": (_switched(True, 0), np.float64, _NONE),
    "Switch, not taken": (_switched(False, 0), np.float64, _ALL),
    "_SwitchN, the side taken": (lambda x: raw._SwitchN.outputs(x, np.int32(1), num_outs=3)[1], np.float64, _ALL),
    "_SwitchN, another side": (lambda x: raw._SwitchN.outputs(x, np.int32(0), num_outs=3)[2], np.float64, _NONE),
    "_SwitchN, past the last side": (lambda x: raw._SwitchN.outputs(x, np.int32(7), num_outs=3)[2], np.float64, _ALL),
}  # fmt: skip


def _derivatives(y: Tensor, x: Tensor, seed: Tensor, vector: Tensor) -> Sequence[Any]:
    """dx for a seed, and the gradient of dx along a vector by x and by the seed."""
    (dx,) = gradients([y], [x], [seed])
    assert isinstance(dx, Tensor)
    return dx, *gradients([dx], [x, seed], [vector])


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", _STRAIGHT)
def test_cotangents_go_straight_through(name: str, known_shapes: bool) -> None:
    function, dtype, through = _STRAIGHT[name]
    values = [value.astype(dtype) for value in (_X, np.cos(_X), np.sin(_X) + 2)]
    with Graph().as_default():
        x, seed, vector = (raw.Placeholder(dtype=dtype, shape=(2, 3) if known_shapes else None) for _ in range(3))
        dx, ddx, dseed = _derivatives(function(x), x, seed, vector)
        first, second = run([dx, raw.ZerosLike(seed) if dseed is None else dseed], [x, seed, vector], values)
        curved = [] if ddx is None else run([ddx], [x, seed, vector], values)
    np.testing.assert_array_equal(first, values[1] * through)
    np.testing.assert_array_equal(second, values[2] * through)
    assert not any(np.any(value) for value in curved)
