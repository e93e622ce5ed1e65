"""Random places and crops against what TensorFlow 2.21 drew from the same seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

PLACES = {9: [2, 0, 6, 4, 8], 300: [158, 197, 156, 266, 107], 70000: [13622, 45065, 36391, 50692, 5714]}
CROPS = {1: ([0, 29, 0], [199, 156, -1]), 2: ([13, 82, 0], [141, 164, -1])}


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return [value.tolist() for value in run(getattr(raw, op).outputs(*inputs, **attrs), [], [])]


@pytest.mark.parametrize("largest", [9, 300, 70000])
def test_an_index_goes_where_tensorflow_sends_it(largest: int) -> None:
    inputs = np.arange(5), np.array([1, 2, 3]), np.int64(largest)
    assert _run("RandomIndexShuffle", *inputs) == [PLACES[largest]]


def test_each_place_is_taken_once() -> None:
    places = _run("RandomIndexShuffle", np.arange(40), np.array([7, 8, 9]), np.int64(39), rounds=8)[0]
    assert sorted(places) == list(range(40))


@pytest.mark.parametrize("shape", [(2,), (4, 3)])
def test_a_seed_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="seed of 3"):
        _run("RandomIndexShuffle", np.arange(3), np.ones(shape, np.int64), np.int64(9))


BOXES = np.array([[[0.1, 0.2, 0.5, 0.9]]], np.float32)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crop_is_the_one_that_tensorflow_draws(seed: int) -> None:
    size = np.array([200, 300, 3], np.int32)
    begin, extent, _ = _run(
        "StatelessSampleDistortedBoundingBox", size, BOXES, np.float32(0.5), np.array([seed, 5]), area_range=[0.1, 0.9]
    )
    assert (begin, extent) == CROPS[seed]


def test_the_whole_image_is_left_where_no_try_succeeds() -> None:
    begin, extent, box = _run(
        "SampleDistortedBoundingBoxV2", np.array([50, 60, 3]), BOXES, np.float32(1), seed=1, area_range=[0.01, 0.02]
    )
    assert (begin, extent, box) == ([0, 0, 0], [50, 60, -1], [[[0, 0, 1, 1]]])


def test_no_boxes_are_refused_unless_the_image_stands_for_them() -> None:
    inputs = np.array([50, 60, 3]), np.zeros((1, 0, 4), np.float32), np.float32(0.1)
    with pytest.raises(InvalidArgument, match="no bounding boxes"):
        _run("SampleDistortedBoundingBoxV2", *inputs, seed=1)
    assert _run("SampleDistortedBoundingBoxV2", *inputs, seed=1, use_image_if_no_bounding_boxes=True)[1][2] == -1
