"""Generators kept in variables give TensorFlow's numbers; the expected ones were printed by TensorFlow 2.21."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines import xla
from gradserve.workers.segment import Segment, State

_SIZE, _PHILOX = np.array([3]), np.int64(1)


def _run(compile_segment: Any, name: str, start: list[int], *inputs: Any, **attrs: Any) -> tuple[Any, list[int]]:
    """The op's value, and the words of the generator after it."""
    graph, state = Graph(), State()
    with graph.as_default():
        handle = raw.VarHandleOp(dtype="int64", shape=(3,), shared_name="generator")
        filled = raw.AssignVariableOp.run(handle, np.array(start))
        value = getattr(raw, name)(handle, *inputs, **attrs)
        words = raw.ReadVariableOp(handle, dtype="int64")
    found: list[Any] = []
    for fetches, targets in (((), (filled,)), ((value,), ()), ((words,), ())):
        found += compile_segment(Segment(graph, (), fetches, targets))([], state)
        state.values.update(state.updates)
        state.updates = {}
    return np.asarray(found[0]), np.asarray(found[1]).tolist()


@pytest.mark.parametrize("compile_segment", [reference.compile, xla.compile_program])
@pytest.mark.parametrize(
    ("name", "bounds", "dtype", "expected"),
    [
        ("StatefulUniform", (), "float32", [0.3664005994796753, 0.7981644868850708, 0.25775814056396484]),
        ("StatefulStandardNormalV2", (), "float64", [0.14353198003998585, 0.34921241535715664, -0.15105391949126]),
        ("StatefulUniformInt", (np.int64(0), np.int64(9)), "int64", [2, 4, 5]),
    ],
)
def test_numbers_move_the_counter_on(
    name: str, bounds: tuple[Any, ...], dtype: str, expected: list[float], compile_segment: Any
) -> None:
    value, words = _run(compile_segment, name, [5, 7, 11], _PHILOX, _SIZE, *bounds, dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    assert words == [5 + 3 * 256, 7, 11]


def test_binomial_numbers_take_as_many_as_tensorflow_sets_aside() -> None:
    counts, chances = np.array([5.0, 60.0, 100.0]), np.array([0.3, 0.4, 0.9])
    size = np.array([4, 3], np.int32)
    value, words = _run(reference.compile, "StatefulRandomBinomial", [5, 0, 7], _PHILOX, size, counts, chances)
    assert value.tolist() == [[3, 25, 89], [1, 19, 85], [1, 21, 88], [2, 27, 87]]
    assert words == [268805, 0, 7]


def test_what_is_skipped_carries_over() -> None:
    value, words = _run(reference.compile, "RngReadAndSkip", [-2, 7, 11], np.int32(1), np.uint64(3))
    assert value.tolist() == [-2, 7, 11]
    assert words == [3 * 256 - 2, 8, 11]


def test_another_algorithm_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the algorithm must be 1"):
        _run(reference.compile, "RngReadAndSkip", [0, 0, 0], np.int32(2), np.uint64(3))
