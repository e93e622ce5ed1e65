"""Data parallel requests: what the shards give is what the whole batch gives, on any number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.errors import InvalidArgument, LimitExceeded
from tests.client.test_calls import either

__all__ = ["either"]

DRAW = np.random.default_rng(3)
X = DRAW.normal(size=(10, 3)).astype(np.float64)
T = DRAW.normal(size=(10,)).astype(np.float64)
W = DRAW.normal(size=(3,)).astype(np.float64)


class Model:
    """Errors of a linear model: an error an example, their mean and their sum."""

    def __init__(self) -> None:
        with gs.Graph().as_default() as self.graph:
            self.x = gs.placeholder("float64", (None, 3), "x")
            self.t = gs.placeholder("float64", (None,), "t")
            self.w = gs.placeholder("float64", (3,), "w")
            self.errors = gs.square(gs.sum(self.x * self.w, 1) - self.t)
            self.mean, self.total = gs.mean(self.errors), gs.sum(self.errors)
            self.scale = gs.constant(2.0) * 3.0
        self.feeds = {self.x: X, self.t: T, self.w: W}
        self.split = [self.x, self.t]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 10])
def test_the_mean_of_unequal_shards_is_that_of_the_batch(either: Any, shards: int) -> None:
    m = Model()
    whole = either.compute_gradients(m.graph, m.mean, [m.w, m.x], m.feeds, return_ys=True, fetches=[m.errors, m.scale])
    parts = either.compute_gradients(
        m.graph, m.mean, [m.w, m.x], m.feeds, return_ys=True, fetches=[m.errors, m.scale], shards=shards, split=m.split
    )
    for mine, theirs in zip([*parts, *parts.ys, *parts.fetches], [*whole, *whole.ys, *whole.fetches], strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_sums_add_up(client: Any) -> None:
    m = Model()
    whole = client.compute_gradients(m.graph, m.total, [m.w, m.x], m.feeds, return_ys=True)
    parts = client.compute_gradients(
        m.graph, m.total, [m.w, m.x], m.feeds, return_ys=True, shards=4, split=m.split, reduction="sum"
    )
    for mine, theirs in zip([*parts, *parts.ys], [*whole, *whole.ys], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_a_seed_with_a_row_an_example_is_split_too(client: Any) -> None:
    m = Model()
    seed = DRAW.normal(size=10)
    [whole] = client.compute_gradients(m.graph, m.errors, m.w, m.feeds, grad_ys=seed)
    [parts] = client.compute_gradients(
        m.graph, m.errors, m.w, m.feeds, grad_ys=seed, shards=3, split=m.split, reduction="sum"
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_lookups_and_unconnected_xs_come_as_without_shards(client: Any) -> None:
    with gs.Graph().as_default() as graph:
        rows = gs.placeholder("int32", (None,), "rows")
        table, apart = gs.placeholder("float64", (5, 2), "table"), gs.placeholder("float64", (), "apart")
        loss = gs.mean(gs.raw.GatherV2(table, rows, 0))
    feeds = {rows: np.array([3, 1, 3, 0, 3], np.int32), table: np.zeros((5, 2))}
    for unique in (False, True):
        options: dict[str, Any] = {"deduplicate_slices": unique}
        whole = client.compute_gradients(graph, loss, [table, apart], feeds, **options)
        parts = client.compute_gradients(graph, loss, [table, apart], feeds, shards=3, split=rows, **options)
        assert isinstance(whole[0], gs.IndexedSlices)
        assert isinstance(parts[0], gs.IndexedSlices)
        np.testing.assert_array_equal(parts[0].indices, whole[0].indices)
        np.testing.assert_allclose(parts[0].values, whole[0].values)
        np.testing.assert_array_equal(parts[0].dense_shape, [5, 2])
        assert parts[1] is None
        assert parts.reasons[1] == whole.reasons[1]


def trained(client: Any, optimizer: Any, sparse: bool, **options: Any) -> tuple[list[float], np.ndarray]:
    """Losses and weights of five steps in a session."""
    with gs.Graph().as_default() as graph:
        x, t = gs.placeholder("float64", (None, 3), "x"), gs.placeholder("float64", (None,), "t")
        row = gs.placeholder("int32", (None,), "row")
        w = gs.Variable(np.zeros((4, 3)), name="w")
        weights = gs.raw.ResourceGather(w.handle, row, dtype="float64") if sparse else w[1]
        loss = gs.mean(gs.square(gs.sum(x * weights, 1) - t))
        step = optimizer.minimize(loss)
    if options:
        options["split"] = [x, t, row] if sparse else [x, t]
    feeds: dict[Any, Any] = {x: X, t: T} | ({row: np.arange(10, dtype=np.int32) % 4} if sparse else {})
    with client.session(graph) as session:
        losses = [float(session.run(feeds, loss, step, **options)[0]) for _ in range(5)]
        return losses, session.run(fetches=w)[0]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("optimizer", [gs.GradientDescent(0.1), gs.Momentum(0.1), gs.Adam(0.1)])
def test_training_in_shards_is_training_on_the_batch(client: Any, optimizer: Any, sparse: bool) -> None:
    losses, w = trained(client, optimizer, sparse)
    for shards in (1, 3, 4):
        split_losses, split_w = trained(client, optimizer, sparse, shards=shards)
        np.testing.assert_allclose(split_losses, losses, rtol=1e-9)
        np.testing.assert_allclose(split_w, w, rtol=1e-9)


def test_any_number_of_workers_gives_the_same_bits() -> None:
    answers: list[bytes] = []
    m = Model()
    for workers in (1, 2, 4, 8):
        with gs.Client.embedded(workers=workers, engine="numpy", timeout_seconds=120) as client:
            parts = client.compute_gradients(
                m.graph, m.mean, [m.w, m.x], m.feeds, return_ys=True, shards=8, split=m.split
            )
            losses, w = trained(client, gs.Adam(0.1), True, shards=8)
            answers.append(b"".join(np.asarray(each).tobytes() for each in (*parts, *parts.ys, losses, w)))
    assert answers[1:] == answers[:1] * 3


def test_shards_draw_numbers_of_their_own_and_sessions_go_on_drawing(client: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), "x")
        noise = gs.raw.RandomUniform(gs.raw.Shape(x), dtype="float32", seed=5, seed2=7)
        y = x + noise
    with client.session(graph) as session:
        first, second = (session.run({x: np.zeros(6, np.float32)}, y, shards=3)[0] for _ in range(2))
    assert len(set(np.concatenate([first, second]).tolist())) == 12


def test_bad_splits_are_refused_with_what_to_do(client: Any) -> None:
    m = Model()

    def ask(ys: Any = m.mean, feeds: Any = m.feeds, **options: Any) -> None:
        client.compute_gradients(m.graph, ys, m.w, feeds, **options)

    with pytest.raises(InvalidArgument, match="10 examples can't be split into 11 shards: ask for at most 10"):
        ask(shards=11, split=m.split)
    with pytest.raises(InvalidArgument, match="0 examples can't be split"):
        ask(feeds=m.feeds | {m.x: X[:0], m.t: T[:0]}, shards=1, split=m.split)
    with pytest.raises(InvalidArgument, match=r"different numbers of examples .x:0: 10, t:0: 9"):
        ask(feeds=m.feeds | {m.t: T[:9]}, shards=2, split=m.split)
    with pytest.raises(InvalidArgument, match="w:0 has the fixed shape"):
        ask(shards=2)
    with pytest.raises(InvalidArgument, match="z:0 is fed, but was to be split"):
        ask(shards=2, split="z")
    with pytest.raises(InvalidArgument, match="at least 1 shard, not 0"):
        ask(shards=0, split=m.split)
    with pytest.raises(LimitExceeded, match="number of shards is over the limit"):
        ask(shards=1 << 20, split=m.split)
    with pytest.raises(InvalidArgument, match="no shards: say how many"):
        ask(split=m.split)
    with pytest.raises(InvalidArgument, match="'mean' or 'sum'"):
        ask(shards=2, split=m.split, reduction="max")
    with pytest.raises(InvalidArgument, match="depends on the feeds to split"):
        client.run(m.graph, {m.x: X}, m.scale, shards=2)
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), "x")
        count = gs.raw.Size(x)
        nearest = gs.raw.ArgMax(gs.raw.Square(x), np.int32(0))
        apart = gs.raw.Cast(gs.sum(x), DstT="int32")
        loss = gs.mean(x * gs.raw.Cast(apart, DstT="float32"))
        first = gs.raw.ArgMax(x, np.int32(0), name="first")
        outer = gs.raw.MatMul(gs.raw.ExpandDims(x, -1), gs.raw.ExpandDims(x, -1), transpose_b=True)
    values = T.astype(np.float32)
    [total, place] = client.run(graph, {x: values}, [count, nearest], shards=4)
    assert (total, place) == (10, np.argmax(values**2))  # both of all examples
    wanted = [apart, loss, outer]
    for mine, theirs in zip(*(client.run(graph, {x: values * 9}, wanted, shards=n) for n in (3, None)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    with pytest.raises(InvalidArgument, match="Cast:0 is int32, and can't be totalled over shards: cast it"):
        client.run(graph, {x: values * 9}, [apart, loss], shards=2, local_statistics=True)
    with pytest.raises(InvalidArgument, match=r"MatMul:0 .* can't be put together: give it a row an example"):
        client.run(graph, {x: values}, outer, shards=2, local_statistics=True)
    with pytest.raises(InvalidArgument, match=r"Nothing of it can run in shards: first .* must see all examples"):
        client.run(graph, {x: values}, first, shards=2)


def test_the_plan_of_a_shard_can_be_seen(client: Any) -> None:
    m = Model()
    feeds = {m.x: (10, 3), m.t: (10,), m.w: (3,)}
    whole = client.explain(m.graph, feeds, ys=m.mean, xs=m.w)
    part = client.explain(m.graph, feeds, ys=m.mean, xs=m.w, shards=5, split=m.split)
    assert 0 < part.flops < whole.flops
    assert "one of 5 shards; 4 sums" in part.notes[-1]


def test_extremes_and_places_are_those_of_the_whole_batch(client: Any) -> None:
    m = Model()
    with m.graph.as_default():
        raw = gs.raw
        first, places = np.array([0], np.int32), raw.Unique.outputs(raw.Cast(m.x[:, 0] * 2.0, DstT="int32"))[0]
        wanted = [
            raw.Max(m.errors, first), raw.Min(m.errors * 2.0, first), raw.All(raw.Less(m.errors, 1.0), first),
            raw.ArgMin(m.errors, np.int32(0)), places, m.errors[0], m.x[2:4], gs.sqrt(m.mean), raw.Shape(m.errors),
            raw.HistogramSummary("errors", m.errors), raw.TopKV2.outputs(raw.Tanh(m.x), 2)[0],
        ]  # fmt: skip
    whole = client.run(m.graph, m.feeds, wanted)
    for reduction in ("mean", "sum"):
        parts = client.run(m.graph, m.feeds, wanted, shards=4, split=m.split, reduction=reduction)
        for mine, theirs in zip(parts, whole, strict=True):
            if mine.dtype == object:
                assert mine == theirs
            else:
                np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_sums_and_means_are_told_apart_whatever_the_loss_is(client: Any) -> None:
    m = Model()
    with m.graph.as_default():
        penalised = m.total + 0.5 * gs.sum(m.w * m.w)
        masked = gs.sum(m.errors * m.t) / gs.sum(m.t)
    wanted = [m.mean, m.total, penalised, masked]
    whole = client.compute_gradients(m.graph, [m.mean, penalised], [m.w, m.x], m.feeds, fetches=wanted)
    for reduction in ("mean", "sum"):
        parts = client.compute_gradients(
            m.graph, [m.mean, penalised], [m.w, m.x], m.feeds, fetches=wanted, shards=3, split=m.split,
            reduction=reduction,
        )  # fmt: skip
        for mine, theirs in zip([*parts, *parts.fetches], [*whole, *whole.fetches], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_rows_of_another_dimension_come_back_along_it(client: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", (None, None, 3), "x")  # examples, times, features
        last = gs.transpose(x, (1, 2, 0)) * 2.0
        ages = gs.mean(x, 0)  # of an open length, and no row an example
        loss = gs.mean(gs.square(ages))
    values = DRAW.normal(size=(10, 4, 3))
    for fetches in ([last], [ages, loss]):
        whole, parts = (client.run(graph, {x: values}, fetches, **how) for how in ({}, {"shards": 3}))
        for mine, theirs in zip(parts, whole, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_a_placeholder_of_unknown_rank_has_that_of_its_feed(client: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", None, "x")
        w = gs.placeholder("float64", None, "w")
        h = gs.raw.MatMul(gs.raw.Reshape(x, gs.raw.Pack([gs.raw.Shape(x)[0], -1])), w)
        loss = gs.raw.Mean(gs.square(h), gs.raw.Range(0, gs.raw.Rank(h), 1))
    feeds = {x: X, w: DRAW.normal(size=(3, 2))}
    whole = client.compute_gradients(graph, loss, [w, x], feeds, return_ys=True, fetches=h)
    parts = client.compute_gradients(graph, loss, [w, x], feeds, return_ys=True, fetches=h, shards=4, split=x)
    for mine, theirs in zip([*parts, *parts.ys, *parts.fetches], [*whole, *whole.ys, *whole.fetches], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


@pytest.mark.parametrize("unique", [False, True])
def test_a_sparse_gradient_of_rows_has_places_in_the_whole(client: Any, unique: bool) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", (None, 3), "x")
        rows = gs.tanh(x)
        picked = gs.take(rows, np.array([1, 0, 1], np.int32)), gs.take(rows, np.array([0], np.int32))
        loss = gs.sum(picked[0] * 2.0) + gs.sum(gs.square(picked[1]))
    for shards in (2, 4):
        [dx] = client.compute_gradients(
            graph, loss, rows, {x: X}, shards=shards, reduction="sum", deduplicate_slices=unique, local_statistics=True
        )
        assert isinstance(dx, gs.IndexedSlices)
        starts = np.concatenate([[0], np.cumsum([len(part) for part in np.array_split(X, shards)])[:-1]])
        expected = np.zeros((10, 3))
        for start in starts:  # the rows that each shard picks
            expected[start] += 2 + 2 * np.tanh(X[start])
            expected[start + 1] += 4
        np.testing.assert_allclose(gs.dense(dx), expected, rtol=1e-12)
        np.testing.assert_array_equal(dx.dense_shape, [10, 3])
        assert len(dx.indices) == shards * (2 if unique else 4)


def test_a_sparse_seed_of_rows_goes_to_the_shards_that_have_them(client: Any) -> None:
    m = Model()
    values, indices = DRAW.normal(size=4), np.array([9, 0, 3, 9], np.int64)
    seed = gs.IndexedSlices(values, indices, np.array([10], np.int64))
    dense = np.zeros(10)
    np.add.at(dense, indices, values)
    [whole] = client.compute_gradients(m.graph, m.errors, m.w, m.feeds, grad_ys=seed)
    for shards in (1, 3, 10):  # of ten shards most have no row of it
        [parts] = client.compute_gradients(
            m.graph, m.errors, m.w, m.feeds, grad_ys=seed, shards=shards, split=m.split, reduction="sum"
        )
        np.testing.assert_allclose(parts, whole, rtol=1e-12)
    [expected] = client.compute_gradients(m.graph, m.errors, m.w, m.feeds, grad_ys=dense)
    np.testing.assert_allclose(whole, expected, rtol=1e-12)
    for bad, message in (
        (np.array([9, 0, 3, 10]), "indices from 0 to 10, and there are 10 rows"),
        (indices[:3], "can't be split"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            client.compute_gradients(
                m.graph, m.errors, m.w, m.feeds, grad_ys=gs.IndexedSlices(values, bad, np.array([10])), shards=3,
                split=m.split,
            )  # fmt: skip


def test_the_first_op_that_goes_wrong_is_named_with_its_shard(client: Any) -> None:
    m = Model()
    with m.graph.as_default():
        loss = gs.mean(gs.log(m.t)) + gs.sum(m.w)
        overflow = gs.exp(gs.sum(gs.square(m.w)) * gs.mean(gs.square(m.t)) * 0.0 + 800.0)
    t = np.abs(T) + 0.1
    t[5:] = [1, -2, 3, np.nan, 4]  # in shards of 3, 3, 2, 2
    options: dict[str, Any] = {"find_nonfinite": True, "shards": 4, "split": [m.x, m.t]}
    found = client.compute_gradients(m.graph, loss, m.w, m.feeds | {m.t: t}, **options).nonfinite
    assert (found.op, found.shard) == ("Log", 2)
    assert (found.inputs[0].least, found.inputs[0].greatest) == (-2, 3)
    assert "in shard 2" in str(found)
    fed = client.compute_gradients(m.graph, loss, m.w, m.feeds | {m.t: np.where(np.isnan(t), np.nan, 1)}, **options)
    assert (fed.nonfinite.node, fed.nonfinite.shard) == ("t", 3)
    late = client.compute_gradients(m.graph, overflow, m.w, m.feeds, **options).nonfinite
    assert (late.op, late.shard) == ("Exp", None)
    huge = m.feeds | {m.t: np.full(10, 1e200)}
    with m.graph.as_default():
        total = gs.sum(m.t * 2e107)
    summed = client.compute_gradients(m.graph, total, m.t, huge, fetches=gs.sqrt(total), **options).nonfinite
    assert (summed.node, summed.shard) == (total.node.name, None)  # every part of it is finite
    assert client.compute_gradients(m.graph, m.mean, m.w, m.feeds, **options).nonfinite is None


def test_an_error_in_a_shard_says_which_and_how_large_it_is(client: Any) -> None:
    with gs.Graph().as_default() as graph:
        near = gs.placeholder("float64", (None, None), "near")  # who is near whom: the batch in both dimensions
        x = gs.placeholder("float64", (None, 3), "x")
        y = gs.raw.MatMul(near, x, name="product")
        checked = gs.raw.CheckNumerics(x, message="bad", name="checked")
    with pytest.raises(
        InvalidArgument, match=r"product.*\(In shard \d of 4, which has [23] of 10 examples.\)"
    ) as error:
        client.run(graph, {near: np.eye(10), x: X}, y, shards=4, local_statistics=True)
    assert error.value.metadata["node"] == "product"
    with pytest.raises(InvalidArgument, match=r"had NaN values \(In shard 3 of 4, which has 2 of 10 examples.\)"):
        client.run(graph, {x: np.where(np.arange(10)[:, None] == 9, np.nan, X)}, checked, shards=4)
