"""Feature crosses against TensorFlow 2.21's answers, which its C++ gave for the same columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

WORDS = np.array([b"a", b"b", b"c"], object)
COLUMNS: Any = (
    [np.array([[0, 0], [0, 1], [2, 0]])],
    [WORDS],
    [np.array([3, 2])],
    [np.array([[1, 2], [3, -4], [2**35, 6]])],
)
ATTRS: dict[str, Any] = {"hash_key": 956888297470, "internal_type": "int64"}
HASHED = {
    0: [
        2928842892298887678,
        7560904255693475987,
        5354134812324246176,
        85918459618309357,
        8021737988675448975,
        6885183645886368187,
    ],
    1000: [485, 987, 983, 357, 975, 994],
}
UNKEYED = [
    6222962060873510234,
    3219302265842617099,
    990312396925660322,
    6807782712720082185,
    3767461354475027766,
    4053160129544218319,
]


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return [value.tolist() for value in run(getattr(raw, op).outputs(*inputs, **attrs), [], [])]


def test_combinations_are_joined_with_the_last_column_running_fastest() -> None:
    table, values, shape = _run("SparseCross", *COLUMNS, hashed_output=False, num_buckets=0, out_type="string", **ATTRS)
    assert table == [[0, 0], [0, 1], [0, 2], [0, 3], [2, 0], [2, 1]]
    assert values == [b"a_X_1", b"a_X_2", b"b_X_1", b"b_X_2", b"c_X_34359738368", b"c_X_6"]
    assert shape == [3, 4]


@pytest.mark.parametrize("buckets", [0, 1000])
def test_combinations_are_hashed_with_the_key(buckets: int) -> None:
    values = _run("SparseCross", *COLUMNS, hashed_output=True, num_buckets=buckets, out_type="int64", **ATTRS)[1]
    assert values == HASHED[buckets]


def test_combinations_are_hashed_without_a_key() -> None:
    values = _run("SparseCrossHashed", *COLUMNS, np.int64(0), np.array(False), np.array([123, -9]))[1]
    assert values == UNKEYED


def test_ragged_columns_come_in_the_order_that_is_given() -> None:
    ragged = [np.array([4, 5, 6, 7])], [np.array([0, 1, 1, 4])]
    values, splits = _run(
        "RaggedCross", *ragged, *COLUMNS, input_order="RSD", hashed_output=False, num_buckets=0, hash_key=17,
        out_values_type="string", out_row_splits_type="int64",
    )  # fmt: skip
    assert values[:4] == [b"4_X_a_X_1", b"4_X_a_X_2", b"4_X_b_X_1", b"4_X_b_X_2"]
    assert splits == [0, 4, 4, 10]


def test_columns_of_different_heights_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="equally many rows"):
        _run("SparseCrossV2", *COLUMNS[:3], [np.ones((2, 1), np.int64)], np.array(b"-", object))
