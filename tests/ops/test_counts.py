"""Counts of numbers in sparse and ragged rows, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

AT = np.array([[0, 0], [1, 0], [2, 1], [2, 3]])
VALUES = np.array([1, 3, 3, 0], np.int32)
WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0])


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return [value.tolist() for value in run(getattr(raw, op).outputs(*inputs, **attrs), [], [])]


def test_numbers_not_below_the_size_are_left_out() -> None:
    assert _run("SparseBincount", AT, VALUES, np.array([3, 4]), np.int32(2), WEIGHTS) == [[[0, 0.5], [0, 0], [4, 0]]]
    assert _run("RaggedBincount", np.array([0, 1, 1, 4]), VALUES, np.int32(4), WEIGHTS) == [
        [[0, 0.5, 0, 0], [0, 0, 0, 0], [4, 0, 0, 3]]
    ]


def test_a_sparse_vector_is_one_row() -> None:
    assert _run("SparseBincount", AT[:, 1:], VALUES, np.array([4]), np.int32(4), np.zeros(0, np.int32)) == [
        [1, 1, 0, 2]
    ]


@pytest.mark.parametrize(("lengths", "width"), [({}, 4), ({"minlength": 7}, 7), ({"maxlength": 2}, 2)])
def test_sparse_counts_are_as_wide_as_asked(lengths: dict[str, int], width: int) -> None:
    table, totals, shape = _run(
        "DenseCountSparseOutput", VALUES.reshape(2, 2), WEIGHTS.reshape(2, 2), binary_output=False, **lengths
    )
    expected = [([0, 1], 0.5), ([0, 3], 1.0), ([1, 0], 4.0), ([1, 3], 2.0)]
    kept = [(place, total) for place, total in expected if place[1] < width]
    assert (table, totals, shape) == ([place for place, _ in kept], [total for _, total in kept], [2, width])


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="negative"):
        _run("DenseCountSparseOutput", np.array([-1]), np.zeros(0), binary_output=False)
