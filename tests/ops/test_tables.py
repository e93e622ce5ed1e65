"""Lookup tables: filled once or changed, in one step and from step to step, also on a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import FailedPrecondition, InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State


def _words(*values: bytes) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _step(graph: Graph, state: State, fetches: Any = (), targets: Any = ()) -> list[Any]:
    """One step whose changes are kept."""
    found = engine.compile(Segment(graph, (), tuple(fetches), tuple(targets)))([], state)
    state.values.update(state.updates)
    state.updates = {}
    return found


def test_a_table_is_filled_once_and_read_in_later_steps() -> None:
    graph, state = Graph(), State()
    with graph.as_default():
        table = raw.HashTableV2(key_dtype="string", value_dtype="float32")
        fill = raw.InitializeTableV2.run(table, _words(b"b", b"a"), np.array([2.0, 1.0], np.float32))
        found = raw.LookupTableFindV2(table, _words(b"a", b"x", b"b"), np.float32(-1))
        size = raw.LookupTableSizeV2(table)
    with pytest.raises(FailedPrecondition, match="before it is filled"):
        _step(graph, state, [found])
    _step(graph, state, targets=[fill])
    values, count = _step(graph, state, [found, size])
    assert values.tolist() == [1.0, -1.0, 2.0]
    assert count == 2
    _step(graph, state, targets=[fill])  # the same again is no change


def test_one_key_does_not_get_two_values() -> None:
    graph = Graph()
    with graph.as_default():
        table = raw.HashTableV2(key_dtype="int64", value_dtype="int64")
        fill = raw.InitializeTableV2.run(table, np.array([1, 1]), np.array([2, 3]))
    with pytest.raises(InvalidArgument, match="two values"):
        _step(graph, State(), targets=[fill])


def test_a_mutable_table_begins_empty_and_changes() -> None:
    graph, state = Graph(), State()
    with graph.as_default():
        table = raw.MutableHashTableOfTensorsV2(key_dtype="int64", value_dtype="float64", value_shape=(2,))
        insert = raw.LookupTableInsertV2.run(table, np.array([5, 3, 5]), np.arange(6.0).reshape(3, 2))
        remove = raw.LookupTableRemoveV2.run(table, np.array([3, 9]))
        found = raw.LookupTableFindV2(table, np.array([[3], [5]]), np.zeros(2))
        exported = raw.LookupTableExportV2.outputs(table, Tkeys="int64", Tvalues="float64")
    assert _step(graph, state, [found])[0].tolist() == [[[0.0, 0.0]], [[0.0, 0.0]]]
    _step(graph, state, targets=[insert])
    assert _step(graph, state, [found])[0].tolist() == [[[2.0, 3.0]], [[4.0, 5.0]]]
    _step(graph, state, targets=[remove])
    keys, values = _step(graph, state, exported)
    assert keys.tolist() == [5]
    assert values.tolist() == [[4.0, 5.0]]


def test_a_table_of_the_first_version_is_a_reference() -> None:
    graph, state = Graph(), State()
    with graph.as_default():
        table = raw.HashTable(key_dtype="string", value_dtype="int64")
        fill = raw.InitializeTable.run(table, _words(b"a"), np.array([7]))
        found = raw.LookupTableFind(table, _words(b"a", b"b"), np.int64(0))
    _step(graph, state, targets=[fill])
    assert _step(graph, state, [found])[0].tolist() == [7, 0]


def test_a_single_key_has_a_single_value() -> None:
    graph = Graph()
    with graph.as_default():
        table = raw.HashTableV2(key_dtype="int64", value_dtype="float32")
        fill = raw.InitializeTableV2.run(table, np.array([3, 4]), np.array([2.0, 1.0], np.float32))
        with graph.control_dependencies([fill]):
            found = raw.LookupTableFindV2(table, np.int64(4), np.float32(-1))
    assert np.array_equal(_step(graph, State(), [found])[0], np.float32(1.0))
