"""Ops that are several in one: against those that they are made of, or TensorFlow's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import lookup, raw
from tests.ops.differences import run

GENERATOR = np.random.default_rng(11)


def _single(*shape: int) -> Any:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def _agree(function: Any, expected: Any, *values: Any) -> None:
    with Graph().as_default() as graph:
        inputs = [graph.constant(value) for value in values]
        found = run([function(*inputs), expected(*inputs)], [], [])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_a_convolution_pads_by_mirrors_and_resizes_before() -> None:
    pads, attrs = np.array([[0, 0], [1, 2], [2, 0], [0, 0]], np.int32), {"strides": [1, 2, 1, 1], "padding": "VALID"}
    x, f = _single(2, 3, 3, 2), _single(2, 2, 2, 3)
    _agree(
        lambda x, f: raw.FusedPadConv2D(x, pads, f, mode="REFLECT", **attrs),
        lambda x, f: raw.Conv2D(raw.MirrorPad(x, pads, mode="REFLECT"), f, **attrs),
        x, f,
    )  # fmt: skip
    size = np.array([5, 4], np.int32)
    _agree(
        lambda x, f: raw.FusedResizeAndPadConv2D(x, size, pads, f, mode="SYMMETRIC", **attrs),
        lambda x, f: raw.Conv2D(raw.MirrorPad(raw.ResizeBilinear(x, size), pads, mode="SYMMETRIC"), f, **attrs),
        x, f,
    )  # fmt: skip


@pytest.mark.parametrize("batches", [(2,), (), (2, 1, 2)])
def test_a_convolution_of_any_rank_has_any_number_of_batches(batches: tuple[int, ...]) -> None:
    x, f = _single(*batches, 4, 5, 2), _single(2, 2, 2, 3)
    flat = np.array([-1, 4, 5, 2], np.int32)
    _agree(
        lambda x, f: raw.Conv(x, f, strides=[1, 1, 1, 1], padding="VALID", batch_dims=len(batches)),
        lambda x, f: raw.Reshape(
            raw.Conv2D(raw.Reshape(x, flat), f, strides=[1, 1, 1, 1], padding="VALID"),
            np.array([*batches, 3, 4, 3], np.int32),
        ),
        x, f,
    )  # fmt: skip


def _fused_matmul(*inputs: Any, **attrs: Any) -> Any:
    return lookup("_FusedMatMul")(*inputs, **attrs)


def test_what_follows_a_product_follows_in_order() -> None:
    _agree(
        lambda a, b, bias, other: _fused_matmul(
            a, b, [bias, other], fused_ops=["BiasAdd", "Add", "LeakyRelu"], leakyrelu_alpha=0.5
        ),
        lambda a, b, bias, other: raw.LeakyRelu(raw.MatMul(a, b) + bias + other, alpha=0.5),
        _single(2, 3), _single(3, 4), _single(4), _single(2, 4),
    )  # fmt: skip


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_a_convolution_is_normalised_by_given_statistics(data_format: str) -> None:
    attrs: dict[str, Any] = {"strides": [1, 1, 1, 1], "padding": "SAME", "data_format": data_format}
    moments = [_single(3), _single(3), _single(3), np.abs(_single(3))]
    fused = lookup("_FusedConv2D")
    _agree(
        lambda x, f, *args: fused(x, f, list(args), [], num_args=4, fused_ops=["FusedBatchNorm", "Relu"], **attrs),
        lambda x, f, *args: raw.Relu(
            raw.FusedBatchNormV3.outputs(raw.Conv2D(x, f, **attrs), *args, is_training=False, data_format=data_format)[0]
        ),
        _single(2, 4, 4, 4), _single(2, 2, 4, 3), *moments,
    )  # fmt: skip


def test_a_fused_op_that_nobody_knows_or_that_lacks_an_argument_is_named() -> None:
    with Graph().as_default():
        a = np.ones((1, 1), np.float32)
        with pytest.raises(InvalidArgument, match="FusedMatMul: nothing is known of the fused op Whatever"):
            _fused_matmul(a, a, [], fused_ops=["Whatever"])
        with pytest.raises(InvalidArgument, match="args lack what BiasAdd takes"):
            _fused_matmul(a, a, [], fused_ops=["BiasAdd"])


def test_the_node_of_an_internal_op_has_a_name_that_tensorflow_takes() -> None:
    with Graph().as_default():
        a = np.ones((1, 1), np.float32)
        assert _fused_matmul(a, a, [], fused_ops=[]).node.name == "FusedMatMul"


def test_a_spectrogram_weighs_its_windows() -> None:
    # By the Hann window 0, 1/2, 1, 1/2; the first one gives 0, -1, 3, 1/4 with the sum 9/4. The sixth sample ends it.
    samples = np.array([[1], [-2], [3], [0.5], [-1], [2]], np.float32)
    with Graph().as_default():
        power = raw.AudioSpectrogram(samples, window_size=4, stride=2, magnitude_squared=True)
        magnitude = raw.AudioSpectrogram(samples[:5], window_size=4, stride=2)
        none = raw.AudioSpectrogram(samples[:3], window_size=4, stride=2)
    found, root, nothing = run([power, magnitude, none], [], [])
    # TensorFlow 2.21's answer.
    np.testing.assert_allclose(found, [[[5.0625, 10.5625, 14.0625], [0.0625, 1.5625, 5.0625]]])
    np.testing.assert_allclose(root, [[[2.25, 3.25, 3.75]]])
    assert nothing.shape == (1, 0, 3)


def test_cepstra_are_those_of_tensorflow() -> None:
    power = (np.arange(1, 10, dtype=np.float32) ** 2)[None, None]
    attrs = {"upper_frequency_limit": 3500.0, "filterbank_channel_count": 4, "dct_coefficient_count": 3}
    with Graph().as_default():
        found = run([raw.Mfcc(power, np.int32(8000), **attrs)], [], [])[0]
    # TensorFlow 2.21's answer.
    np.testing.assert_allclose(found, [[[3.727625846862793, -1.7567806243896484, -0.09110510349273682]]], rtol=1e-6)


def test_filters_beyond_the_spectrogram_are_refused() -> None:
    with Graph().as_default(), pytest.raises(InvalidArgument, match="end below upper_frequency_limit"):
        run([raw.Mfcc(np.ones((1, 1, 9), np.float32), np.int32(4000))], [], [])


def test_contrast_is_clipped() -> None:
    image = np.array([1, 3], np.uint8).reshape(1, 2, 1)
    with Graph().as_default():
        found = run([raw.AdjustContrast(image, np.float32(3), np.float32(0), np.float32(4))], [], [])[0]
    assert found.ravel().tolist() == [0, 4]  # 2 - 3 and 2 + 3, clipped


def test_an_axis_is_mirrored_no_further_than_it_reaches() -> None:
    pads = np.array([[0, 0], [2, 0]], np.int32)
    with Graph().as_default() as graph:
        x = graph.constant(np.ones((0, 2)))
        assert run([raw.MirrorPad(x, pads, mode="SYMMETRIC")], [], [])[0].shape == (0, 4)
        with pytest.raises(InvalidArgument, match="An axis of 2 can't be padded by 2 in mode REFLECT"):
            run([raw.MirrorPad(x, pads, mode="REFLECT")], [], [])
