"""Temporary variables and locks, on a server and within a session."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

import gradserve.client as gs
from gradserve.graph.op import raw
from tests.client.test_calls import either

__all__ = ["either"]


def test_a_temporary_variable_adds_up_and_ends_with_the_step(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (2,))
        total = raw.TemporaryVariable(shape=(2,), dtype="float32", var_name="total")
        with graph.control_dependencies([raw.Assign(total, np.zeros(2, np.float32))]):
            added = [raw.AssignAdd(total, x), raw.AssignAdd(total, x * 2)]
        with graph.control_dependencies(added):
            y = raw.DestroyTemporaryVariable(total, var_name="total")
    feed = {x: np.array([1, 2], np.float32)}
    assert either.run(graph, feed, y)[0].tolist() == [3, 6]
    session = either.session(graph, session_id=f"s{uuid.uuid4().hex}")
    assert [session.run(feed, fetches=y)[0].tolist() for _ in range(2)] == [[3, 6], [3, 6]]
    session.close()


def test_a_lock_is_free(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", ())
        lock = raw.MutexLock(raw.MutexV2(shared_name="door"))
        with graph.control_dependencies([lock]):
            y = x + 1
        with graph.control_dependencies([y]):
            left = raw.ConsumeMutexLock.run(lock)
        with graph.control_dependencies([left]):
            z = y * 2
    assert either.run(graph, {x: np.float32(1)}, z)[0] == 4
