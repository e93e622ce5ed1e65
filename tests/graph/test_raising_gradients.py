"""Backward passes that tf.gradients wrote: stacks, and the gradient arrays of TensorArrays, run and differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import InvalidGraph
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph, Tensor
from gradserve.v1 import graph_pb2
from tests.graph.frames import Value, Writer
from tests.ops.differences import run

X = np.array([0.4, -0.7, 1.2])
ROUNDS = 3


class Saving:
    """A value that a forward loop saves for its backward loop, as tf.gradients has it done."""

    def __init__(self, w: Writer, name: str, version: str = "V2", kind: dtypes.DType = dtypes.float64) -> None:
        self.w, self.version, self.kind = w, version, kind
        inputs = [w.constant(np.int32(-1))] if version else []
        self.handle = w.node(f"Stack{version}", *inputs, name=name, elem_type=kind)

    def enter(self, scope: str, handle: Value = "") -> Value:
        reference, kind = ("", dtypes.resource) if self.version else ("Ref", dtypes.string)
        frame = f"{scope}/while_context"
        handle = handle or self.handle
        name = f"{self.handle}/{reference}Enter"
        return self.w.node(f"{reference}Enter", handle, name=name, T=kind, frame_name=frame, is_constant=True)

    def push(self, handle: Value, y: Value) -> Value:
        return self.w.node(f"StackPush{self.version}", handle, y, name=f"{self.handle}/push", T=self.kind)

    def pop(self, handle: Value) -> Value:
        return self.w.node(f"StackPop{self.version}", handle, name=f"{self.handle}/pop", elem_type=self.kind)

    def switch(self, handle: Value, predicate: Value) -> Value:
        return self.w.node("Switch", handle, predicate, name=f"{self.handle}/Switch", T=dtypes.resource)


def _below(w: Writer, limit: int) -> Callable[..., Value]:
    return lambda i, *_: w.node("Less", i, w.constant(np.int32(limit), f"^{i}"), T=dtypes.int32)


def _positive(w: Writer) -> Callable[..., Value]:
    return lambda i, *_: w.node("Greater", i, w.constant(np.int32(0), f"^{i}"), T=dtypes.int32)


def _next(w: Writer, i: Value, step: int = 1) -> Value:
    return w.node("AddV2", i, w.constant(np.int32(step), f"^{i}"), T=dtypes.int32)


def _start(w: Writer, value: int) -> tuple[Value, dtypes.DType]:
    return w.constant(np.int32(value)), dtypes.int32


def _zeros(w: Writer) -> tuple[Value, dtypes.DType]:
    return w.constant(np.zeros(3)), dtypes.float64


def _ones(w: Writer) -> tuple[Value, dtypes.DType]:
    return w.constant(np.ones(3)), dtypes.float64


def _plain(w: Writer, x: Value, version: str = "V2") -> Value:
    """y = sin(y) x three times, and its backward loop."""
    saved = Saving(w, "saved", version)
    inner = saved.enter("while")

    def step(i: Value, y: Value, x: Value) -> list[Value]:
        return [_next(w, i), w.op("Mul", w.op("Sin", saved.push(inner, y)), x)]

    y = w.loop(_below(w, ROUNDS), step, [_start(w, 0), (x, dtypes.float64)], "while", [x])[1]
    w.op("Identity", y, name="y")
    outer = saved.enter("back")

    def back(i: Value, dy: Value, dx: Value, x: Value) -> list[Value]:
        y = saved.pop(outer)
        more = w.op("Mul", dy, w.op("Sin", y))
        return [_next(w, i, -1), w.op("Mul", w.op("Mul", dy, x), w.op("Cos", y)), w.op("AddV2", dx, more)]

    _, dy, dx = w.loop(_positive(w), back, [_start(w, ROUNDS), _ones(w), _zeros(w)], "back", [x])
    return w.op("AddV2", dy, dx, name="dx")


def _old_stacks(w: Writer, x: Value) -> Value:
    return _plain(w, x, "")


def _branch_inside(w: Writer, x: Value) -> Value:
    """y = sin(y) x in even rounds and y y in odd ones: what a branch saves is pushed and popped in a branch."""
    saved, other = Saving(w, "saved"), Saving(w, "other")
    chosen = Saving(w, "chosen", kind=dtypes.bool_)
    handles = [stack.enter("while") for stack in (saved, chosen, other)]

    def step(i: Value, y: Value, x: Value) -> list[Value]:
        rest = w.node("FloorMod", i, w.constant(np.int32(2), f"^{i}"), T=dtypes.int32)
        even = w.node("Equal", rest, w.constant(np.int32(0), f"^{i}"), T=dtypes.int32)
        p = w.node("Identity", even, name="while/cond/pred_id", T=dtypes.bool_)
        chosen.push(handles[1], p)

        def then(y: Value, x: Value) -> list[Value]:
            kept = saved.push(f"{saved.switch(handles[0], p)}:1", y)
            return [w.op("Mul", w.op("Sin", kept), x)]

        def otherwise(y: Value, x: Value) -> list[Value]:
            kept = other.push(other.switch(handles[2], p), y)
            return [w.op("Mul", kept, kept)]

        return [_next(w, i), w.conditional(p, [y, x], then, otherwise, "while/cond")[0]]

    y = w.loop(_below(w, ROUNDS), step, [_start(w, 0), (x, dtypes.float64)], "while", [x])[1]
    w.op("Identity", y, name="y")
    back_handles = [stack.enter("back") for stack in (saved, chosen, other)]

    def back(i: Value, dy: Value, dx: Value, x: Value) -> list[Value]:
        p = chosen.pop(back_handles[1])

        def then(dy: Value, dx: Value, x: Value) -> list[Value]:
            y = saved.pop(f"{saved.switch(back_handles[0], p)}:1")
            return [
                w.op("Mul", w.op("Mul", dy, x), w.op("Cos", y)), w.op("AddV2", dx, w.op("Mul", dy, w.op("Sin", y))),
            ]  # fmt: skip

        def otherwise(dy: Value, dx: Value, x: Value) -> list[Value]:
            y = other.pop(other.switch(back_handles[2], p))
            return [w.op("Mul", dy, w.op("AddV2", y, y)), w.op("Identity", dx)]

        return [_next(w, i, -1), *w.conditional(p, [dy, dx, x], then, otherwise, "back/cond")]

    _, dy, dx = w.loop(_positive(w), back, [_start(w, ROUNDS), _ones(w), _zeros(w)], "back", [x])
    return w.op("AddV2", dy, dx, name="dx")


def _array(w: Writer, x: Value, version: str = "V3") -> Value:
    """The sum over all rounds of y = sin(y) x, kept in an array, and its backward loop with the gradient array."""
    saved = Saving(w, "saved")
    kind = dtypes.resource if version == "V3" else dtypes.string
    arr = w.node(
        f"TensorArray{version}", w.constant(np.int32(ROUNDS)), name="arr", dtype=dtypes.float64, element_shape=(3,)
    )
    flow = f"{arr}:1" if version == "V3" else w.constant(np.float32(0))
    frame = {"T": kind, "is_constant": True}
    inner = w.node("Enter", arr, name="while/arr", frame_name="while/while_context", **frame)
    stack = saved.enter("while")

    def step(i: Value, y: Value, flow: Value, x: Value) -> list[Value]:
        new = w.op("Mul", w.op("Sin", saved.push(stack, y)), x)
        return [_next(w, i), new, w.node(f"TensorArrayWrite{version}", inner, i, new, flow, T=dtypes.float64)]

    start = [_start(w, 0), (x, dtypes.float64), (flow, dtypes.float32)]
    _, _, flow = w.loop(_below(w, ROUNDS), step, start, "while", [x])
    places = w.node(
        "Range", w.constant(np.int32(0)), w.constant(np.int32(ROUNDS)), w.constant(np.int32(1)), Tidx=dtypes.int32
    )
    rows = w.node(f"TensorArrayGather{version}", arr, places, flow, dtype=dtypes.float64)
    axis = w.constant(np.array([0], np.int32))
    w.node("Sum", rows, axis, name="y", T=dtypes.float64, Tidx=dtypes.int32)

    grad = w.node(f"TensorArrayGrad{version}", arr, flow, name="arr_grad", source="gradients")
    seed = w.constant(np.ones((ROUNDS, 3)))
    first = w.node("Identity", flow, f"^{grad}", T=dtypes.float32)
    dflow = w.node(f"TensorArrayScatter{version}", grad, places, seed, first, T=dtypes.float64)
    outer = w.node("Enter", arr, name="back/arr", frame_name="back/while_context", **frame)
    popped = saved.enter("back")

    def back(i: Value, dy: Value, dx: Value, dflow: Value, x: Value) -> list[Value]:
        place = _next(w, i, -1)
        again = w.node(f"TensorArrayGrad{version}", outer, dflow, source="gradients")
        ready = w.node("Identity", dflow, f"^{again}", T=dtypes.float32)
        row = w.node(f"TensorArrayRead{version}", again, place, ready, dtype=dtypes.float64)
        y, total = saved.pop(popped), w.op("AddV2", dy, row)
        more = w.op("Mul", total, w.op("Sin", y))
        return [place, w.op("Mul", w.op("Mul", total, x), w.op("Cos", y)), w.op("AddV2", dx, more), dflow]

    start = [_start(w, ROUNDS), _zeros(w), _zeros(w), (dflow, dtypes.float32)]
    _, dy, dx, _ = w.loop(_positive(w), back, start, "back", [x])
    return w.op("AddV2", dy, dx, name="dx")


def _second_arrays(w: Writer, x: Value) -> Value:
    return _array(w, x, "V2")


def _first_arrays(w: Writer, x: Value) -> Value:
    return _array(w, x, "")


def _reads_in_a_loop(w: Writer, x: Value) -> Value:
    """The sum over all rounds of x[i] x[i], read from an array: the flows of the gradient array are added up."""
    arr = w.node("TensorArrayV3", w.constant(np.int32(3)), name="arr", dtype=dtypes.float64, element_shape=())
    places = w.node(
        "Range", w.constant(np.int32(0)), w.constant(np.int32(3)), w.constant(np.int32(1)), Tidx=dtypes.int32
    )
    filled = w.node("TensorArrayScatterV3", arr, places, x, f"{arr}:1", T=dtypes.float64)
    enter = {"frame_name": "while/while_context", "is_constant": True}
    handle = w.node("Enter", arr, name="while/arr", T=dtypes.resource, **enter)
    inner = w.node("Enter", filled, name="while/flow", T=dtypes.float32, **enter)

    def step(i: Value, total: Value) -> list[Value]:
        row = w.node("TensorArrayReadV3", handle, i, inner, dtype=dtypes.float64)
        return [_next(w, i), w.op("AddV2", total, w.op("Mul", row, row))]

    start = [_start(w, 0), (w.constant(np.float64(0)), dtypes.float64)]
    y = w.loop(_below(w, 3), step, start)[1]
    w.op("Identity", y, name="y")
    enter["frame_name"] = "back/while_context"
    outer = w.node("Enter", arr, name="back/arr", T=dtypes.resource, **enter)
    read = w.node("Enter", filled, name="back/flow", T=dtypes.float32, **enter)

    def back(i: Value, dflow: Value) -> list[Value]:
        place = _next(w, i, -1)
        row = w.node("TensorArrayReadV3", outer, place, read, dtype=dtypes.float64)
        grad = w.node("TensorArrayGradV3", outer, read, source="gradients")
        ready = w.node("Identity", read, f"^{grad}", T=dtypes.float32)
        twice = w.op("AddV2", row, row)
        written = w.node("TensorArrayWriteV3", grad, place, twice, ready, T=dtypes.float64)
        return [place, w.node("AddV2", dflow, written, T=dtypes.float32)]

    zero = (w.constant(np.float32(0)), dtypes.float32)
    dflow = w.loop(_positive(w), back, [_start(w, 3), zero], "back")[1]
    grad = w.node("TensorArrayGradV3", arr, dflow, source="gradients")
    ready = w.node("Identity", dflow, f"^{grad}", T=dtypes.float32)
    return w.node("TensorArrayGatherV3", grad, places, ready, name="dx", dtype=dtypes.float64)


WRITTEN = [_plain, _old_stacks, _branch_inside, _array, _second_arrays, _first_arrays, _reads_in_a_loop]


def _slope(y: Tensor, x: Tensor) -> Tensor:
    (dx,) = gradients([y], [x])
    assert isinstance(dx, Tensor)
    return dx


def _graph(write: Callable[[Writer, Value], Value]) -> tuple[Graph, graph_pb2.GraphDef]:
    w = Writer()
    write(w, w.placeholder("x"))
    return w.graph(), w.message


@pytest.mark.parametrize("write", WRITTEN)
def test_a_written_gradient_is_the_gradient(write: Any) -> None:
    graph, _ = _graph(write)
    x = graph.tensor("x")
    ours = _slope(graph.tensor("y"), x)
    written, expected = run([graph.tensor("dx"), ours], [x], [X])
    np.testing.assert_allclose(written, expected, rtol=1e-12)


@pytest.mark.parametrize("write", WRITTEN)
def test_a_written_gradient_differentiates_twice(write: Any) -> None:
    graph, _ = _graph(write)
    x, y, dx = (graph.tensor(name) for name in ("x", "y", "dx"))
    written, ours = _slope(dx, x), _slope(_slope(y, x), x)
    found, expected = run([written, ours], [x], [X])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if write is not _reads_in_a_loop:  # whose second derivative is constant
        found, expected = run([_slope(written, x), _slope(ours, x)], [x], [X])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("write", WRITTEN)
def test_the_message_stays_and_travels_with_what_was_added(write: Any) -> None:
    graph, message = _graph(write)
    sent = message.SerializeToString(deterministic=True)
    assert codec.graph_to_message(graph).SerializeToString(deterministic=True) == sent
    again = _slope(graph.tensor("dx"), graph.tensor("x"))
    copy = codec.graph_from_message(graph_pb2.GraphDef.FromString(codec.graph_to_message(graph).SerializeToString()))
    (expected,) = run([again], [graph.tensor("x")], [X])
    (found,) = run([copy.tensor(again.name)], [copy.tensor("x")], [X])
    np.testing.assert_array_equal(found, expected)


def test_a_branch_is_computed_once_for_its_result_and_for_what_it_saves() -> None:
    graph, _ = _graph(_branch_inside)
    (loop,) = [node for node in graph.nodes if node.type == "StatelessWhile" and node.name.startswith("while")]
    body = graph.library.find(loop.attrs["body"].name)
    assert body is not None
    assert [node.op for node in body.node_def if node.op.endswith("If")] == ["StatelessIf"]


def test_a_stack_pushed_twice_is_refused() -> None:
    w = Writer()
    saved = Saving(w, "saved")
    x = w.placeholder("x")
    saved.push(saved.handle, saved.push(saved.handle, x))
    saved.pop(saved.handle)
    with pytest.raises(InvalidGraph, match=r"saved \(StackV2\) is pushed or popped in two places"):
        w.graph()


def test_a_stack_read_by_something_else_is_refused() -> None:
    w = Writer()
    w.node("Neg", Saving(w, "saved").handle, name="reader", T=dtypes.float64)
    with pytest.raises(InvalidGraph, match=r"reader \(Neg\) reads the handle of a stack"):
        w.graph()


def test_elements_read_twice_add_up() -> None:
    w = Writer()
    x = w.placeholder("x")
    arr = w.node("TensorArrayV3", w.constant(np.int32(3)), name="arr", dtype=dtypes.float64, element_shape=())
    all_places, some = (w.constant(np.array(places, np.int32)) for places in ([0, 1, 2], [0, 0, 2]))
    filled = w.node("TensorArrayScatterV3", arr, all_places, x, f"{arr}:1", T=dtypes.float64)
    w.node("TensorArrayGatherV3", arr, some, filled, name="y", dtype=dtypes.float64)
    grad = w.node("TensorArrayGradV3", arr, filled, source="gradients")
    seed = w.constant(np.array([1.0, 2.0, 4.0]))
    dflow = w.node("TensorArrayScatterV3", grad, some, seed, filled, T=dtypes.float64)
    w.node("TensorArrayGatherV3", grad, all_places, dflow, name="dx", dtype=dtypes.float64)
    graph = w.graph()
    (dx,) = run([graph.tensor("dx")], [graph.tensor("x")], [X])
    np.testing.assert_array_equal(dx, [3.0, 0.0, 4.0])
