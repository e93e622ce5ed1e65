"""A training step on the xla engine: variables inside a compiled piece, checks, and the change of engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as reference
from gradserve.workers.segment import Handle, Segment, State

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")


def _step(apply: Callable[[Tensor, Tensor, Any], Any]) -> tuple[Segment, list[np.ndarray], State]:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float64", shape=(4, 3), name="x")
        weight = raw.VarHandleOp(dtype="float64", shape=(3, 2), name="w")
        slot = raw.VarHandleOp(dtype="float64", shape=(3, 2), name="slot")
        loss = raw.Sum(raw.Square(raw.MatMul(x, raw.ReadVariableOp(weight, dtype="float64"))), [0, 1])
        (dw,) = gradients(loss, weight)
        target = apply(weight, slot, dw)
    generator = np.random.default_rng(0)
    state = State(values={"w": generator.standard_normal((3, 2)), "slot": np.zeros((3, 2))})
    return Segment(graph, (x,), (loss,), (target,)), [generator.standard_normal((4, 3))], state


def _momentum(weight: Tensor, slot: Tensor, dw: Any) -> Any:
    return raw.ResourceApplyMomentum.run(weight, slot, np.float64(0.1), dw, np.float64(0.9))


def test_a_compiled_step_updates_variables_like_the_reference() -> None:
    segment, values, state = _step(_momentum)
    other = State(values=dict(state.values))
    losses: list[list[float]] = []
    for compiled, held in ((reference.compile(segment), state), (xla.compile_program(segment), other)):
        seen: list[float] = []
        for _ in range(3):
            seen.append(float(compiled(values, held)[0]))
            held.values, held.updates = {**held.values, **held.updates}, {}
        losses.append(seen)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
    for name in ("w", "slot"):
        np.testing.assert_allclose(np.asarray(other.values[name]), state.values[name], rtol=1e-12)


def test_an_index_out_of_range_is_an_error_and_no_clamp() -> None:
    graph = Graph()
    with graph.as_default():
        table = raw.Placeholder(dtype="float64", shape=(3, 2), name="table")
        indices = raw.Placeholder(dtype="int32", shape=(2,), name="indices")
        rows = raw.GatherV2(table, indices, 0)
    compiled = xla.compile_program(Segment(graph, (table, indices), (rows,)))
    compiled([np.ones((3, 2)), np.array([0, 2], np.int32)], State())
    with pytest.raises(ValueError, match=r"not in \[0, 3\)"):
        compiled([np.ones((3, 2)), np.array([0, 3], np.int32)], State())


def compiled_later(segment: Segment, values: list[Any], state: State) -> Any:
    """Calls a segment until its compiled program has taken over; returns it."""
    running = xla.compile(segment)
    deadline = time.monotonic() + 120
    while not running.is_compiled and time.monotonic() < deadline:
        running(list(values), State(values=dict(state.values)))
        time.sleep(0.05)
    assert running.is_compiled
    return running


def test_the_compiled_program_takes_over_once_a_child_has_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADSERVE_XLA_COMPILE_NOW", raising=False)
    segment, values, state = _step(_momentum)
    first = float(reference.compile(segment)(values, State(values=dict(state.values)))[0])
    running = compiled_later(segment, values, state)
    assert float(running(values, State(values=dict(state.values)))[0]) == pytest.approx(first)


def test_a_segment_that_is_fed_a_handle_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADSERVE_XLA_COMPILE_NOW", raising=False)
    with Graph().as_default() as graph:
        w = raw.VarHandleOp(dtype="float64", shape=(3,), shared_name="w")
        y = raw.ReadVariableOp(w, dtype="float64") * 2.0
    state = State(values={"w": np.arange(3.0)})
    running = compiled_later(Segment(graph, (w,), (y,)), [Handle("w")], state)
    np.testing.assert_array_equal(running([Handle("w")], state)[0], [0.0, 2.0, 4.0])
