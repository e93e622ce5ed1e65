"""Which gradients of branches, calls and loops are slices, which are zeros and which are None, as in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify
from tests.graph.frames import Value, Writer
from tests.ops.differences import run
from tests.ops.test_bodies import branch, function

TABLE = np.arange(8.0).reshape(4, 2)
AXES = np.array([0, 1], np.int32)
Body = Callable[[Tensor], list[Any]]


def _rows(*places: int, kind: Any = np.int32) -> Body:
    return lambda table: [raw.Sum(raw.Square(raw.GatherV2(table, np.array(places, kind), 0)), AXES)]


def _expected(*places: int) -> Any:
    """d Σ row² is twice each row, as often as it is read."""
    total = np.zeros_like(TABLE)
    for place in places:
        total[place] += 2 * TABLE[place]
    return total


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize(
    ("then", "other", "expected"),
    [
        (_rows(1, 1), _rows(2), (_expected(1, 1), _expected(2))),
        (_rows(1), _rows(2, kind=np.int64), (_expected(1), _expected(2))),
        (_rows(3), lambda table: [np.array(1.0)], (_expected(3), np.zeros_like(TABLE))),
        (_rows(3), lambda table: [raw.Sum(table, AXES)], (_expected(3), np.ones_like(TABLE))),
    ],
)
def test_rows_that_a_branch_reads_stay_rows(
    then: Body, other: Body, expected: tuple[Any, Any], taken: bool, known_shapes: bool
) -> None:
    with Graph().as_default() as graph:
        table = raw.Placeholder(dtype=np.float64, shape=TABLE.shape if known_shapes else None)
        (y,) = branch(graph.constant(np.array(taken)), then, other, table)
        (dx,) = gradients([y], [table])
        assert isinstance(dx, IndexedSlices)
        (dense,) = run([densify(dx)], [table], [TABLE])
    np.testing.assert_array_equal(dense, expected[0 if taken else 1])


def _conditional(taken: bool, other: str) -> tuple[Graph, str, str]:
    """TF1's: the branch for true reads row 1, that for false row 2, or all rows."""
    w = Writer(taken=taken)
    table = w.placeholder("table")

    def row(place: int) -> Callable[[Value], list[Value]]:
        def read(x: Value) -> list[Value]:
            inputs = x, w.constant(np.array([place], np.int32), f"^{x}"), w.constant(np.int32(0), f"^{x}")
            found = w.node("GatherV2", *inputs, Tparams=dtypes.float64, Tindices=dtypes.int32, Taxis=dtypes.int32)
            return [w.node("Sum", found, w.constant(AXES, f"^{x}"), T=dtypes.float64, Tidx=dtypes.int32)]

        return read

    def whole(x: Value) -> list[Value]:
        return [w.node("Sum", x, w.constant(AXES, f"^{x}"), T=dtypes.float64, Tidx=dtypes.int32)]

    (y,) = w.conditional(w.flag("taken"), [table], row(1), row(2) if other == "row" else whole, "cond")
    return w.graph(), table, y


@pytest.mark.parametrize(("other", "kind"), [("row", IndexedSlices), ("all", Tensor)])
@pytest.mark.parametrize("taken", [True, False])
def test_a_dense_branch_of_a_conditional_of_old_makes_all_dense(taken: bool, other: str, kind: type) -> None:
    graph, table, y = _conditional(taken, other)
    x = graph.tensor(f"{table}:0")
    (dx,) = gradients([graph.tensor(f"{y}:0")], [x])
    assert isinstance(dx, Tensor | IndexedSlices)
    assert type(dx) is kind
    (dense,) = run([densify(dx)], [x], [TABLE])
    expected = np.zeros_like(TABLE)
    expected[slice(None) if other == "all" and not taken else 1 if taken else 2] = 1
    np.testing.assert_array_equal(dense, expected)


@pytest.mark.parametrize("rounds", [0, 3])
def test_rows_that_a_loop_of_old_reads_stay_rows(rounds: int) -> None:
    w = Writer()
    table = w.placeholder("table")

    def body(i: Value, s: Value, table: Value) -> list[Value]:
        axis = w.constant(np.int32(0), f"^{i}")
        row = w.node("GatherV2", table, i, axis, Tparams=dtypes.float64, Tindices=dtypes.int32, Taxis=dtypes.int32)
        following = w.node("AddV2", i, w.constant(np.int32(1), f"^{i}"), T=dtypes.int32)
        return [following, w.op("AddV2", s, w.op("Mul", row, row))]

    start = [(w.constant(np.int32(0)), dtypes.int32), (w.constant(np.zeros(2)), dtypes.float64)]
    _, y = w.loop(
        lambda i, *_: w.node("Less", i, w.constant(np.int32(rounds), f"^{i}"), T=dtypes.int32),
        body,
        start,
        invariants=[table],
    )
    graph = w.graph()
    x = graph.tensor(f"{table}:0")
    (dx,) = gradients([graph.tensor(f"{y}:0")], [x])
    assert isinstance(dx, IndexedSlices)
    dense, indices = run([densify(dx), dx.indices], [x], [TABLE])
    assert indices.tolist() == list(range(rounds))[::-1]  # the backward loop begins with the last round
    np.testing.assert_array_equal(dense, _expected(*range(rounds)))


def _called(body: Callable[..., list[Any]], *xs: Tensor) -> tuple[Tensor, ...]:
    name = function(xs[0].graph, "f", xs, body)
    return raw.PartitionedCall.outputs(list(xs), Tout=[xs[0].dtype.base] * 2, f=name)


def _branched(body: Callable[..., list[Any]], *xs: Tensor) -> tuple[Tensor, ...]:
    return branch(xs[0].graph.constant(np.array(True)), body, body, *xs)


@pytest.mark.parametrize("through", [_called, _branched])
def test_what_only_an_unread_output_depends_on_has_gradient_zero(through: Callable[..., tuple[Tensor, ...]]) -> None:
    def body(a: Tensor, b: Tensor, c: Tensor) -> list[Any]:
        return [raw.Sin(a), raw.Exp(b) + raw.Floor(c)]

    with Graph().as_default():
        xs = [raw.Placeholder(dtype=np.float64, shape=(2,), name=name) for name in "abc"]
        first, _ = through(body, *xs)
        da, db, dc = gradients([first], xs)
        assert isinstance(da, Tensor)
        assert isinstance(db, Tensor)
        assert dc is None  # Floor has no gradient
        found = run([da, db], xs, [np.zeros(2)] * 3)
    assert [value.tolist() for value in found] == [[1, 1], [0, 0]]
