"""Words become rows of an embedding by a table that a session holds."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.graph.op import raw
from tests.client.test_calls import either

__all__ = ["either"]


def _words(*values: bytes) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_a_session_keeps_a_table_from_step_to_step(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        embedding = gs.Variable(np.arange(6.0).reshape(3, 2), name="embedding")
        table = raw.HashTableV2(key_dtype="string", value_dtype="int64", name="words")
        fill = raw.InitializeTableV2.run(table, _words(b"one", b"two"), np.array([1, 2]))
        rows = raw.LookupTableFindV2(table, _words(b"two", b"new", b"two"), np.int64(0))
        loss = gs.sum(gs.square(raw.ResourceGather(embedding.handle, rows, dtype="float64")))
    session = either.session(graph, session_id=f"s{uuid.uuid4().hex}")
    session.run(targets=fill)
    np.testing.assert_array_equal(session.run(fetches=rows)[0], [2, 0, 2])
    (slices,) = session.compute_gradients(loss, embedding)
    np.testing.assert_array_equal(slices.indices, [2, 0, 2])
    np.testing.assert_array_equal(slices.values, [[8, 10], [0, 2], [8, 10]])
    session.close()


@pytest.mark.parametrize("kind", ["MutableDenseHashTableV2", "AnonymousMutableDenseHashTable"])
def test_a_session_keeps_a_table_that_is_made_of_its_empty_key(either: Any, kind: str) -> None:
    with gs.Graph().as_default() as graph:
        keys = np.array([1, 2]), np.array([3.0, 4.0], np.float32)
        table = getattr(raw, kind)(np.int64(-1), np.int64(-2), key_dtype="int64", value_dtype="float32")
        fill = raw.LookupTableInsertV2.run(table, *keys)
        found = raw.LookupTableFindV2(table, np.array([2, 5]), np.float32(9))
    session = either.session(graph, session_id=f"s{uuid.uuid4().hex}")
    session.run(targets=fill)
    assert session.run(fetches=found)[0].tolist() == [4, 9]
    session.close()
