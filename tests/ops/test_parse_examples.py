"""Training examples that TensorFlow 2.21 serialised, read as it reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops.strings import texts
from tests.ops.differences import run

# x = [1.5, 2.5], w = [p, q], i = [7, -8]; x = [3, 4], i = [1]; x = [0, 1], w = [z].
ROWS = texts(
    b"\n8\n\x11\n\x01x\x12\x0c\x12\n\n\x08\x00\x00\xc0?\x00\x00 @\n\r\n\x01w\x12\x08\n\x06\n\x01p\n\x01q"
    b"\n\x14\n\x01i\x12\x0f\x1a\r\n\x0b\x07\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\n\x1f\n\x11\n\x01x\x12\x0c\x12\n\n\x08\x00\x00@@\x00\x00\x80@\n\n\n\x01i\x12\x05\x1a\x03\n\x01\x01",
    b"\n\x1f\n\x11\n\x01x\x12\x0c\x12\n\n\x08\x00\x00\x00\x00\x00\x00\x80?\n\n\n\x01w\x12\x05\n\x03\n\x01z",
)
NONE = texts()


def _parsed(
    rows: Any = ROWS, sparse: Any = NONE, dense: Any = NONE, ragged: Any = NONE, defaults: Any = (), **attrs: Any
) -> list[Any]:
    kinds: dict[str, Any] = {"sparse_types": [], "ragged_value_types": [], "ragged_split_types": [], "dense_shapes": []}
    with Graph().as_default():
        outputs = raw.ParseExampleV2.outputs(
            rows, NONE, sparse, dense, ragged, list(defaults), num_sparse=len(sparse), **(kinds | attrs)
        )
        return [value.tolist() for value in run(outputs, [], [])]


def test_a_sparse_feature_has_as_many_values_as_there_are() -> None:
    found = _parsed(sparse=texts(b"w", b"zz"), sparse_types=["string", "int64"])
    assert found == [[[0, 0], [0, 1], [2, 0]], [], [b"p", b"q", b"z"], [], [3, 2], [3, 0]]


def test_a_ragged_feature_has_row_splits() -> None:
    found = _parsed(ragged=texts(b"i"), ragged_value_types=["int64"], ragged_split_types=["int32"])
    assert found == [[7, -8, 1], [0, 2, 3, 3]]


def test_a_dense_feature_has_its_shape_or_its_default() -> None:
    found = _parsed(
        dense=texts(b"x", b"q"), defaults=[np.zeros(0, np.float32), np.array([[8, 9]])], dense_shapes=[(2,), (1, 2)]
    )
    assert found == [[[1.5, 2.5], [3.0, 4.0], [0.0, 1.0]], [[[8, 9]], [[8, 9]], [[8, 9]]]]


def test_an_open_axis_is_padded_to_the_longest() -> None:
    found = _parsed(dense=texts(b"i", b"w"), defaults=[np.array([-1]), texts(b"d")], dense_shapes=[(None,), (None,)])
    assert found == [[[7, -8], [1, -1], [-1, -1]], [[b"p", b"q"], [b"d", b"d"], [b"z", b"d"]]]


def test_one_example_has_no_axis_for_it() -> None:
    with Graph().as_default():
        outputs = raw.ParseSingleExample.outputs(
            np.array(ROWS[0], object), [np.zeros(0, np.float32), np.array([3])], num_sparse=1, sparse_keys=["w"],
            dense_keys=["x", "i"], sparse_types=["string"], dense_shapes=[(2,), (None,)],
        )  # fmt: skip
        assert [value.tolist() for value in run(outputs, [], [])] == [
            [[0], [1]],
            [b"p", b"q"],
            [2],
            [1.5, 2.5],
            [7, -8],
        ]


def test_a_feature_of_one_example_may_be_a_scalar() -> None:
    with Graph().as_default():
        (value,) = raw.ParseSingleExample.outputs(
            np.array(ROWS[0], object), [np.array([3])], num_sparse=0, sparse_keys=[], dense_keys=["missing"],
            sparse_types=[], dense_shapes=[()],
        )  # fmt: skip
        assert np.array_equal(run([value], [], [])[0], 3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"dense": texts(b"w"), "defaults": [NONE], "dense_shapes": [(1,)]}, "has 2 values"),
        ({"dense": texts(b"i"), "defaults": [np.zeros(0, np.int64)], "dense_shapes": [(2,)]}, "has 1 values"),
        ({"dense": texts(b"v"), "defaults": [NONE], "dense_shapes": [(1,)]}, "no default"),
        ({"sparse": texts(b"w"), "sparse_types": ["int64"]}, "must be int64"),
        ({"rows": texts(b"\x0a\x7f"), "sparse": texts(b"w"), "sparse_types": ["string"]}, "no serialised Example"),
    ],
)
def test_what_does_not_fit_names_the_example(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"example number .*{why}"):
        _parsed(**arguments)
