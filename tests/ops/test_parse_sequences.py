"""Sequence examples are parsed as TensorFlow parses them; the messages are made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops.messages import bytes_field, varint
from gradserve.ops.strings import texts
from tests.ops.differences import run


def _integers(*numbers: int) -> bytes:
    return bytes_field(3, bytes_field(1, b"".join(varint(number) for number in numbers)))


def _entry(name: str, value: bytes) -> bytes:
    return bytes_field(1, bytes_field(1, name.encode()) + bytes_field(2, value))


def _sequence(context: dict[str, bytes], lists: dict[str, list[bytes]]) -> bytes:
    steps = {name: b"".join(bytes_field(1, step) for step in held) for name, held in lists.items()}
    both = [b"".join(_entry(name, value) for name, value in part.items()) for part in (context, steps)]
    return bytes_field(1, both[0]) + bytes_field(2, both[1])


FIRST = _sequence(
    {"c": _integers(1, 2), "d": _integers(5)},
    {"s": [_integers(1, 2), b"", _integers(3)], "e": [_integers(1, 2), _integers(3, 4)]},
)
SECOND = _sequence({"d": _integers(6)}, {"s": [_integers(7)], "e": [_integers(9, 9)]})
THIRD = _sequence({"d": _integers(6)}, {})
ATTRS: dict[str, Any] = {
    "context_sparse_types": ["int64"], "context_dense_shapes": [(1,)], "feature_list_sparse_types": ["int64"],
    "feature_list_dense_types": ["int64"], "feature_list_dense_shapes": [(2,)],
}  # fmt: skip
NO_DEFAULT = [np.zeros(0, np.int64)]


def _parse(*messages: bytes, may_lack: bool = False) -> list[Any]:
    counts = dict.fromkeys(("Ncontext_sparse", "Ncontext_dense", "Nfeature_list_sparse", "Nfeature_list_dense"), 1)
    with Graph().as_default():
        outputs = raw.ParseSequenceExample.outputs(
            texts(*messages), texts(), NO_DEFAULT, context_sparse_keys=["c"], context_dense_keys=["d"],
            feature_list_sparse_keys=["s"], feature_list_dense_keys=["e"], **counts, **ATTRS,
            feature_list_dense_missing_assumed_empty=["e"] if may_lack else [],
        )  # fmt: skip
        return [value.tolist() for value in run(outputs, [], [])]


def test_lists_are_padded_to_the_longest_or_sparse() -> None:
    # TensorFlow 2.21's answers.
    assert _parse(FIRST, SECOND) == [
        [[0, 0], [0, 1]], [1, 2], [2, 2], [[5], [6]],
        [[0, 0, 0], [0, 0, 1], [0, 2, 0], [1, 0, 0]], [1, 2, 3, 7], [2, 3, 2],
        [[[1, 2], [3, 4]], [[9, 9], [0, 0]]], [2, 1],
    ]  # fmt: skip


def test_a_list_may_be_missing_where_that_is_said() -> None:
    assert _parse(FIRST, THIRD, may_lack=True)[-2:] == [[[[1, 2], [3, 4]], [[0, 0], [0, 0]]], [2, 0]]
    with pytest.raises(InvalidArgument, match="number 1 lacks the list b'e'"):
        _parse(FIRST, THIRD)


def test_a_step_has_as_many_values_as_its_shape() -> None:
    with pytest.raises(InvalidArgument, match="has 1 values in a step of b'e', which takes 2"):
        _parse(_sequence({"d": _integers(1)}, {"e": [_integers(1)]}))


def test_values_have_the_kind_that_is_asked_for() -> None:
    texts_in_a_step = bytes_field(1, bytes_field(1, b"text"))
    with pytest.raises(InvalidArgument, match="values of string in the list b's', which must be int64"):
        _parse(_sequence({"d": _integers(1)}, {"s": [texts_in_a_step], "e": []}))


def test_ragged_lists_end_where_examples_and_where_steps_end() -> None:
    with Graph().as_default():
        outputs = raw.ParseSequenceExampleV2.outputs(
            texts(FIRST, SECOND), texts(), texts(), texts(), texts(b"c"), texts(), texts(), texts(b"s"),
            np.zeros(0, bool), [], context_ragged_value_types=["int64"], context_ragged_split_types=["int32"],
            feature_list_ragged_value_types=["int64"], feature_list_ragged_split_types=["int64"],
        )  # fmt: skip
        found = run(outputs, [], [])
    # TensorFlow 2.21's answers: of the context, values and ends; of the list, values, ends of examples, ends of steps.
    assert [value.tolist() for value in found] == [[1, 2], [0, 2, 2], [1, 2, 3, 7], [0, 3, 4], [0, 2, 2, 3, 4]]


def test_a_single_example_has_no_batch() -> None:
    keys = [[np.array(key, object)] for key in (b"c", b"d", b"s", b"e")]
    with Graph().as_default():
        outputs = raw.ParseSingleSequenceExample.outputs(
            np.array(FIRST, object), texts(), *keys, NO_DEFAULT, np.array(b"", object), **ATTRS
        )
        found = [value.tolist() for value in run(outputs, [], [])]
    assert found == [
        [[0], [1]], [1, 2], [2], [5], [[0, 0], [0, 1], [2, 0]], [1, 2, 3], [3, 2], [[1, 2], [3, 4]],
    ]  # fmt: skip
