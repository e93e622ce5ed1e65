"""Conventions of pooling: who takes the gradient at ties, three dimensions against two, TensorFlow's random windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run


def _derivatives(name: str, x: Any, **attrs: Any) -> list[Any]:
    """y, dx of Σ y³, and the gradient of Σ dx³."""
    with Graph().as_default():
        source = raw.Placeholder(dtype=x.dtype, shape=x.shape)
        y = getattr(raw, name)(source, **attrs)
        dx = gradients([y * y * y], [source])[0]
        assert isinstance(dx, Tensor)
        ddx = gradients([dx * dx * dx], [source])[0]
        assert isinstance(ddx, Tensor)
        return run([y, dx, ddx], [source], [x])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_volume_of_depth_one_is_pooled_as_an_image(padding: str) -> None:
    x = np.random.default_rng(1).permutation(60).reshape(2, 5, 6, 1).astype(np.float32)
    flat = _derivatives("MaxPool", x, ksize=[1, 2, 3, 1], strides=[1, 2, 1, 1], padding=padding)
    deep = _derivatives("MaxPool3D", x[:, None], ksize=[1, 1, 2, 3, 1], strides=[1, 1, 2, 1, 1], padding=padding)
    for a, b in zip(flat, deep, strict=True):
        np.testing.assert_array_equal(a, b[:, 0])


def test_the_first_of_equal_entries_takes_the_gradient() -> None:
    x = np.array([[1, 3, 3], [3, 3, 3]], np.float32).reshape(1, 2, 3, 1)
    dx = _derivatives("MaxPool", x, ksize=[1, 2, 3, 1], strides=[1, 1, 1, 1], padding="VALID")[1]
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 27, 0], [0, 0, 0]])


def test_all_equal_entries_of_a_volume_take_the_gradient() -> None:
    # Windows of three rows, each of which holds 2 as its largest; dy = 3 · 2² = 12, once for each window of a 2.
    x = np.array([1, 2, 2, 0, 2], np.float32).reshape(1, 5, 1, 1, 1)
    dx = _derivatives("MaxPool3D", x, ksize=[1, 3, 1, 1, 1], strides=[1, 1, 1, 1, 1], padding="VALID")[1]
    np.testing.assert_array_equal(dx.ravel(), [0, 24, 36, 0, 12])


@pytest.mark.parametrize("name", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_is_kept(name: str, dtype: str) -> None:
    with Graph().as_default():
        x = raw.Cast(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), DstT=dtype)
        y = getattr(raw, name)(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")
        dx = gradients([y], [x])[0]
        assert isinstance(dx, Tensor)
        for value in run([y, dx], [], []):
            assert value.dtype == x.dtype.numpy


# What TensorFlow 2.21 draws for these seeds.
@pytest.mark.parametrize(("pseudo_random", "rows"), [(False, [0, 2, 4, 5, 7]), (True, [0, 2, 4, 6, 7])])
def test_fractional_windows_are_those_of_tensorflow(pseudo_random: bool, rows: list[int]) -> None:
    with Graph().as_default():
        outputs = raw.FractionalMaxPool.outputs(
            raw.Identity(np.zeros((1, 7, 10, 1), np.float32)),
            pooling_ratio=[1.0, 1.44, 1.73, 1.0],
            pseudo_random=pseudo_random,
            deterministic=True,
            seed=5,
            seed2=9,
        )
        values = run(outputs, [], [])
    assert values[1].tolist() == rows
    assert values[2].tolist() == [0, 2, 4, 6, 8, 10]


def test_fractional_windows_are_shuffled_also_where_all_have_one_size() -> None:
    # 6 windows of one row each take numbers of the generator before the columns do; 8 / 1.6 is 5 in float32.
    with Graph().as_default():
        outputs = raw.FractionalAvgPool.outputs(
            raw.Identity(np.zeros((1, 6, 8, 1), np.float32)),
            pooling_ratio=[1.0, 1.0, float(np.float32(1.6)), 1.0],
            deterministic=True,
            seed=4,
            seed2=32,
        )
        values = run(outputs, [], [])
    assert values[1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert values[2].tolist() == [0, 2, 4, 5, 7, 8]
