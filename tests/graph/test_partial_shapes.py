"""Shapes of which a part is known before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph import static
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({}, (None, None, 3)),  # two axes are cut somewhere
        ({"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 2}, (None, 3)),  # x[:, i]
        ({"begin_mask": 2, "end_mask": 2, "shrink_axis_mask": 1}, (5, 3)),  # x[i, :]
        ({"begin_mask": 2}, (None, None, 3)),  # x[i:j, :k]
        ({"new_axis_mask": 1, "shrink_axis_mask": 2}, (1, 5, 3)),  # x[None, i]
        ({"ellipsis_mask": 1, "shrink_axis_mask": 2}, (None, 5)),  # x[..., i]
    ],
)
def test_a_slice_keeps_the_axes_that_its_masks_keep_whatever_its_bounds_are(masks: Any, expected: Any) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float32", shape=(None, 5, 3))
        begin, end = (raw.Placeholder(dtype="int32", shape=(2,)) for _ in range(2))
        assert raw.StridedSlice(x, begin, end, np.array([1, 1], np.int32), **masks).shape == expected
        strides = raw.Placeholder(dtype="int32", shape=(2,))
        assert raw.StridedSlice(x, begin, end, strides, begin_mask=3, end_mask=3).shape == (None, None, 3)


def test_the_shapes_of_several_tensors_are_known_as_that_of_one() -> None:
    with Graph().as_default():
        x, y = (raw.Placeholder(dtype="float32", shape=shape) for shape in ((None, 5), (2, 3)))
        shapes = raw.ShapeN.outputs([x, y])
        assert [static.shape_value(shape) for shape in shapes] == [(None, 5), (2, 3)]
