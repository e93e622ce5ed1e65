"""What the graph says of how the parts of a batch add up, against what happens when a batch is repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.batch_axes import views
from gradserve.server.extract import extract
from gradserve.server.growth import ANY, Growths, growths
from gradserve.server.halves import dependents
from gradserve.server.weights import Weights
from gradserve.workers.segment import needed
from tests.ops.differences import run

EXAMPLES = 3
FIRST = np.array([0], np.int32)


class Request:
    """A graph with a batch of rows of three and a matrix, grown by random ops."""

    def __init__(self) -> None:
        self.graph = Graph()
        with self.graph.as_default():
            self.x = raw.Placeholder(dtype="float64", shape=(None, 3), name="x")
            self.w = raw.Placeholder(dtype="float64", shape=(3, 3), name="w")
            self.count = raw.Cast(
                raw.StridedSlice(raw.Shape(self.x), [0], [1], [1], shrink_axis_mask=1), DstT="float64"
            )
        self.rows = [self.x]  # [n, 3]
        self.totals = [self.count]  # scalars and [3]

    def growths(self, wanted: list[Tensor]) -> Growths:
        fed = {self.x, self.w}
        nodes = needed(wanted, (), frozenset(fed))
        sizes = views(nodes, [self.x], (EXAMPLES, 2 * EXAMPLES))
        return growths(nodes, dependents([self.x], fed), {self.x: 0}, sizes)

    def values(self, wanted: list[Tensor], found: Growths, x: Any, weight: float) -> list[Any]:
        """What a shard computes that has so much of the examples."""
        nodes = needed(wanted, (), frozenset((self.x, self.w)))
        weights = Weights(found.weighed)
        graph, stands = extract(self.graph, nodes, [self.x, self.w], weights.instead)
        feeds = [(stands[self.x], x), (stands[self.w], np.linspace(-1, 1, 9).reshape(3, 3))]
        if weights.name:
            feeds.append((graph.tensor(weights.name), np.array(weight)))
        return run([stands[tensor] for tensor in wanted], *map(list, zip(*feeds, strict=True)))


# Each takes the request, and rows and totals to read.
ROWS = {
    "tanh": lambda r, a, b, t, u: raw.Tanh(a),
    "add": lambda r, a, b, t, u: a + b,
    "product": lambda r, a, b, t, u: a * b,
    "matrix": lambda r, a, b, t, u: raw.MatMul(a, r.w),
    "scaled": lambda r, a, b, t, u: a * t,
    "divided": lambda r, a, b, t, u: a / (t + 3.0),
    "per example": lambda r, a, b, t, u: a / r.count,
    "shifted": lambda r, a, b, t, u: raw.BiasAdd(a, raw.BroadcastTo(t, [3])),
    "square": lambda r, a, b, t, u: raw.Square(a),
    "two": lambda r, a, b, t, u: raw.Pad(a, [[0, 0], [0, 1]])[:, 1:],
    "slope": lambda r, a, b, t, u: raw.TanhGrad(a, b),
    "chosen": lambda r, a, b, t, u: raw.SelectV2(raw.Greater(a, 0.0), b, 0.0),
}
TOTALS = {
    "sum": lambda r, a, b, t, u: raw.Sum(a, FIRST),
    "all": lambda r, a, b, t, u: raw.Sum(a, np.array([0, 1], np.int32)),
    "mean": lambda r, a, b, t, u: raw.Mean(a, FIRST),
    "greatest": lambda r, a, b, t, u: raw.Max(a, FIRST),
    "gram": lambda r, a, b, t, u: raw.Sum(raw.MatMul(a, b, transpose_a=True), FIRST),
    "loss": lambda r, a, b, t, u: raw.L2Loss(a),
    "size": lambda r, a, b, t, u: raw.Cast(raw.Size(a), DstT="float64"),
    "entries": lambda r, a, b, t, u: raw.Cast(raw.Prod(raw.Shape(a), FIRST), DstT="float64"),
    "add": lambda r, a, b, t, u: t + u,
    "product": lambda r, a, b, t, u: t * u,
    "ratio": lambda r, a, b, t, u: raw.DivNoNan(t, u),
    "root": lambda r, a, b, t, u: raw.Sqrt(raw.Abs(t)),
    "minus": lambda r, a, b, t, u: -t,
    "segments": lambda r, a, b, t, u: raw.UnsortedSegmentSum(a, raw.ZerosLike(raw.Cast(a[:, 0], DstT="int32")), 1)[0],
}


@st.composite
def requests(draw: Any) -> Request:
    request = Request()
    with request.graph.as_default():
        for _ in range(draw(st.integers(1, 8))):
            kind, into = draw(st.sampled_from([(ROWS, request.rows), (TOTALS, request.totals)]))
            a, b = (draw(st.sampled_from(request.rows)) for _ in range(2))
            t, u = (draw(st.sampled_from(request.totals)) for _ in range(2))
            into.append(kind[draw(st.sampled_from(sorted(kind)))](request, a, b, t, u))
    return request


@settings(deadline=None, max_examples=150)
@given(requests(), st.integers(0, 1000))
def test_what_is_known_of_a_tensor_holds_when_the_batch_is_repeated(request: Request, seed: int) -> None:
    loss = [raw.Sum(tensor, np.arange(tensor.rank or 0, dtype=np.int32)) for tensor in request.totals[-1:]]
    slopes = [dx for dx in gradients(loss, [request.w, request.x]) if isinstance(dx, Tensor)]
    wanted = [*request.rows[1:], *request.totals, *slopes]
    found = request.growths(wanted)
    x = np.random.default_rng(seed).uniform(0.2, 1, (EXAMPLES, 3))
    once = request.values(wanted, found, x, 0.5)
    twice = request.values(wanted, found, np.tile(x, (2, 1)), 1.0)
    for tensor, part, whole in zip(wanted, once, twice, strict=True):
        growth = found.of.get(tensor, 0)
        if isinstance(growth, int) or growth is ANY:
            factor = 2.0**growth if isinstance(growth, int) else 1.0
            repeats = np.tile(part, (2, 1)) if whole.shape[:1] == (2 * EXAMPLES,) else part
            np.testing.assert_allclose(whole, repeats * factor, rtol=1e-9, err_msg=f"{tensor.name}: {growth}")


def test_means_and_sums_and_their_gradients_are_told_apart() -> None:
    request = Request()
    with request.graph.as_default():
        hidden = raw.Tanh(raw.MatMul(request.x, request.w))
        mean = raw.Mean(hidden, np.array([0, 1], np.int32))
        total = raw.Sum(hidden, np.array([0, 1], np.int32))
        by_hand = total / request.count
        slopes = [gradients(loss, [request.w, hidden]) for loss in (mean, total, by_hand)]
    wanted = [mean, total, by_hand, *(dx for pair in slopes for dx in pair if isinstance(dx, Tensor))]
    found = request.growths(wanted)
    assert [found.of[tensor] for tensor in wanted] == [0, 1, 0, 0, -1, 1, 0, 0, -1]
    assert not found.weighed


def test_a_square_of_a_cotangent_reads_it_weighed() -> None:
    request = Request()
    with request.graph.as_default():
        [dx] = gradients(raw.Mean(request.x * request.x, np.array([0, 1], np.int32)), request.x)
        assert isinstance(dx, Tensor)
        squares = raw.Sum(raw.Square(dx), FIRST)
    found = request.growths([squares])
    assert found.of[squares] == 1
    assert [node.type for node in found.weighed] == ["Square"]


def test_integers_of_shapes_are_known_entry_by_entry() -> None:
    request = Request()
    with request.graph.as_default():
        hidden = raw.Reshape(request.x, raw.Pack([raw.Shape(request.x)[0], 3, 1]))
        shape = raw.ConcatV2([raw.Shape(hidden), np.array([7], np.int32)], np.int32(0))
        wanted = [shape, shape[1:3], shape[0], raw.GatherV2(shape, np.int32(3), np.int32(0)), raw.Size(hidden)]
    found = request.growths(wanted)
    assert [found.of[tensor] for tensor in wanted] == [(1, 0, 0, 0), (0, 0), 1, 0, 1]
