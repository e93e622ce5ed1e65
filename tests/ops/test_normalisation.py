"""Normalising ops, which exist in float32 only, against the same written out in float64, first to third order.

The higher orders are derivatives of FusedBatchNormGrad, FusedBatchNormGradV2 and FusedBatchNormGradV3: these are
differentiated for reserve spaces that follow from x, so that alone they agree with no differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run

Function = Callable[..., Tensor]
_EPSILON = 0.01


def _derivatives(function: Function, values: list[Any], dtype: Any, *, known_shapes: bool) -> list[Any]:
    """dx of Σ y w, then dx of Σ |dx|² and of Σ (that)², for all inputs; w are fixed weights."""
    arrays = [np.asarray(value, dtype) for value in values]
    with Graph().as_default():
        xs = [raw.Placeholder(dtype=value.dtype, shape=value.shape if known_shapes else None) for value in arrays]
        level = [function(*xs) * xs[0]]
        fetches: list[Tensor] = []
        for _ in range(3):
            found = gradients(level, xs)
            level = [raw.Square(dx) for dx in found if isinstance(dx, Tensor)]
            fetches += [dx for dx in found if isinstance(dx, Tensor)]
        return run(fetches, xs, arrays)


def _agree(fused: Function, written: Function, values: list[Any], *, known_shapes: bool) -> None:
    got = _derivatives(fused, values, np.float32, known_shapes=known_shapes)
    expected = _derivatives(written, values, np.float64, known_shapes=True)
    assert len(got) == len(expected) == 3 * len(values)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3 * max(1.0, float(np.max(np.abs(b)))))


_LAYOUTS = {"NHWC": (0, 1, 2), "NCHW": (0, 2, 3), "NDHWC": (0, 1, 2, 3), "NCDHW": (0, 2, 3, 4)}
_OPS = [
    ("FusedBatchNorm", "NHWC"),
    ("FusedBatchNorm", "NCHW"),
    ("FusedBatchNormV2", "NCHW"),
    *(("FusedBatchNormV3", layout) for layout in _LAYOUTS),
]


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("name", "layout"), _OPS)
def test_batch_normalisation(name: str, layout: str, is_training: bool, known_shapes: bool) -> None:
    generator = np.random.default_rng(3)
    axes = _LAYOUTS[layout]
    x = generator.normal(size=(2, 3, 2, 3, 2)[: len(axes) + 1]) + 0.5
    channels = x.shape[1] if layout[1] == "C" else x.shape[-1]
    spread = [channels if axis not in axes else 1 for axis in range(x.ndim)]
    scale, offset = generator.normal(size=(2, channels))
    mean, variance = generator.normal(size=channels), generator.uniform(0.5, 2, channels)
    attrs = {"epsilon": _EPSILON, "data_format": layout, "is_training": is_training}

    def fused(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        given = (np.zeros(0),) * 2 if is_training else (mean, variance)
        return getattr(raw, name).outputs(x, scale, offset, *(value.astype("f") for value in given), **attrs)[0]

    def written(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        over = np.array(axes, np.int32)
        m: Any = raw.Mean(x, over, keep_dims=True) if is_training else mean.reshape(spread)
        v: Any = raw.Mean(raw.Square(x - m), over, keep_dims=True) if is_training else x * 0 + variance.reshape(spread)
        shape = np.array(spread, np.int32)
        return (x - m) * raw.Rsqrt(v + _EPSILON) * raw.Reshape(scale, shape) + raw.Reshape(offset, shape)

    _agree(fused, written, [x, scale, offset], known_shapes=known_shapes)


@pytest.mark.parametrize("known_shapes", [True, False])
def test_local_response_normalisation(known_shapes: bool) -> None:
    x = np.random.default_rng(5).normal(size=(1, 2, 2, 4))
    band = (np.abs(np.arange(4)[:, None] - np.arange(4)) <= 1).astype(np.float64)

    def written(x: Tensor) -> Tensor:
        squares = raw.MatMul(raw.Reshape(raw.Square(x), np.array([4, 4], np.int32)), band)
        return x * raw.Pow(raw.Reshape(squares, np.array([1, 2, 2, 4], np.int32)) * 0.4 + 1.2, np.float64(-0.7))

    attrs = {"depth_radius": 1, "bias": 1.2, "alpha": 0.4, "beta": 0.7}
    _agree(lambda x: raw.LRN(x, **attrs), written, [x], known_shapes=known_shapes)


def test_the_running_variance_is_unbiased_and_averaged() -> None:
    # Batch 1, 3: mean 2, biased variance 1, unbiased 2. With factor 0.25 and old values 10 and 6:
    # 0.75 * 10 + 0.25 * 2 = 8 and 0.75 * 6 + 0.25 * 2 = 5.
    with Graph().as_default():
        x = np.array([1, 3], np.float32).reshape(2, 1, 1, 1)
        one, old_mean, old_variance = (np.array([value], np.float32) for value in (1, 10, 6))
        x = raw.Identity(x)
        outputs = raw.FusedBatchNormV3.outputs(x, one, one, old_mean, old_variance, exponential_avg_factor=0.25)
        values = run(outputs[1:], [], [])
    for value, expected in zip(values, ([8], [5], [2], [1], []), strict=True):
        np.testing.assert_allclose(value, expected)
