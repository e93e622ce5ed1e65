"""Training steps in shards, of the kinds that TensorFlow and Keras export: what changes variables runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.autodiff import gradients
from gradserve.errors import Unsupported
from gradserve.graph.graph import IndexedSlices
from gradserve.graph.op import raw
from gradserve.ops.slices import densify

DRAW = np.random.default_rng(11)
X = DRAW.normal(size=(10, 3))
T = DRAW.integers(0, 2, size=10).astype(np.int64)
IDS = DRAW.integers(0, 5, size=(10, 4)).astype(np.int32)
W = DRAW.normal(size=(3, 2)) / 2
E = DRAW.normal(size=(5, 3)) / 2
AXES = np.array([0, 1], np.int32)
FIRST = np.array([0], np.int32)


def _losses(x: Any, t: Any, w: Any) -> tuple[Any, Any]:
    """The loss of each example and the logits."""
    logits = raw.MatMul(x, w)
    losses, _ = raw.SparseSoftmaxCrossEntropyWithLogits.outputs(logits, t)
    return losses, logits


class Model:
    """A linear classifier with an optimiser and metrics, as `body` makes a step of its parts.

    `step` is what to run, `loss` what to fetch; `variables` are all of them.
    """

    def __init__(self, make: Callable[[Model], Any]) -> None:
        with gs.Graph().as_default() as self.graph:
            self.x = gs.placeholder("float64", (None, 3), "x")
            self.t = gs.placeholder("int64", (None,), "t")
            self.ids = gs.placeholder("int32", (None, 4), "ids")
            self.w = gs.Variable(W, name="w")
            self.moment = gs.Variable(np.zeros_like(W), name="moment")
            self.total, self.count = (gs.Variable(np.float64(0), name=name) for name in ("total", "count"))
            self.loss, self.step = make(self)

    def trained(self, client: gs.Client, feeds: list[Any], **options: Any) -> list[np.ndarray[Any, Any]]:
        """The losses of three steps, and the variables after them."""
        values = {self.x: X, self.t: T, self.ids: IDS}
        with client.session(self.graph) as session:
            losses = [session.run({x: values[x] for x in feeds}, self.loss, self.step, **options)[0] for _ in range(3)]
            return [np.array(losses), *session.run(fetches=list(self.graph.variables))]

    def check(self, client: gs.Client, feeds: list[Any] | None = None, **options: Any) -> None:
        """Training in shards is training on the whole batch."""
        feeds = feeds or [self.x, self.t]
        whole = self.trained(client, feeds)
        assert not np.allclose(whole[0][0], whole[0][-1])
        for shards in (1, 2, 4):
            parts = self.trained(client, feeds, shards=shards, **options)
            for mine, theirs in zip(parts, whole, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-14)


def _adam_by_hand(graph: Any, moment: Any, w: Any, slope: Any) -> Any:
    """Keras' optimisers: the moment is assigned, read again, and the weights follow."""
    with graph.control_dependencies([]):
        read = raw.ReadVariableOp(moment, dtype="float64")
        first = raw.AssignAddVariableOp.run(moment, (raw.Square(slope) - read) * 0.1, dtype="float64")
        with graph.control_dependencies([first]):
            second = raw.ReadVariableOp(moment, dtype="float64")
        update = 0.1 * slope / (raw.Sqrt(second) + 1e-3)
        return raw.AssignSubVariableOp.run(w, update, dtype="float64")


def _called(m: Model) -> Any:
    """A whole step in a function: forward, backward, optimiser and metrics, the loss after all of them."""

    def body(x: Any, t: Any, w: Any, moment: Any, total: Any, count: Any) -> Any:
        graph = x.graph
        weights = raw.ReadVariableOp(w, dtype="float64")
        losses, logits = _losses(x, t, weights)
        loss = raw.Mean(losses, FIRST)
        [slope] = gradients(loss, weights)
        correct = raw.Cast(raw.Equal(raw.ArgMax(logits, np.int32(1)), t), DstT="float64")
        updates = [
            _adam_by_hand(graph, moment, w, slope),
            raw.AssignAddVariableOp.run(total, raw.Sum(correct, FIRST), dtype="float64"),
            raw.AssignAddVariableOp.run(count, raw.Cast(raw.Size(losses), DstT="float64"), dtype="float64"),
        ]
        with graph.control_dependencies(updates):
            return raw.Identity(loss)

    step = gs.function(body, "train_step")
    return step(m.x, m.t, m.w.handle, m.moment.handle, m.total.handle, m.count.handle), []


def test_a_step_in_a_function_updates_once_with_its_metrics(client: gs.Client) -> None:
    model = Model(_called)
    model.check(client)
    values = model.trained(client, [model.x, model.t], shards=4)
    assert values[model.graph.variables.index(model.count) + 1] == 30  # ten examples in each of three steps


def test_predictions_that_wait_for_the_update_are_those_before_it(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        losses, logits = _losses(m.x, m.t, m.w)
        [slope] = m.graph.gradients(raw.Mean(losses, FIRST), [m.w.handle])
        with m.graph.control_dependencies([m.w.assign(m.w - slope)]):
            return raw.Identity(logits), []

    Model(make).check(client)


def test_an_update_in_a_branch_takes_totals(client: gs.Client) -> None:
    """As an optimiser that leaves out steps whose gradient is not finite."""

    def make(m: Model) -> Any:
        losses, _ = _losses(m.x, m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        [slope] = m.graph.gradients(loss, [m.w])

        def apply(w: Any, moment: Any, slope: Any) -> Any:
            last = _adam_by_hand(w.graph, moment, w, slope)
            with w.graph.control_dependencies([last]):
                return raw.Identity(np.float64(1))

        fine = raw.All(raw.IsFinite(slope), AXES)
        done = gs.cond(fine, apply, lambda w, moment, slope: np.float64(0), m.w.handle, m.moment.handle, slope)
        return loss, done.node

    Model(make).check(client)


def test_a_loop_that_writes_takes_the_rows_of_all_shards(client: gs.Client) -> None:
    """A loop over the examples with an update in each round: it runs once, on what the shards made of them."""

    def make(m: Model) -> Any:
        losses, logits = _losses(m.x, m.t, m.w)
        loss = raw.Mean(losses, FIRST)

        def body(i: Any, rows: Any, w: Any) -> Any:
            row = raw.GatherV2(rows, i, np.int32(0))
            last = raw.AssignSubVariableOp.run(w, 0.01 * raw.Tanh(row) * np.ones((3, 2)), dtype="float64")
            with w.graph.control_dependencies([last]):
                return i + 1, raw.Identity(rows), w

        done = gs.while_loop(lambda i, rows, w: i < raw.Shape(rows)[0], body, 0, logits, m.w.handle)
        return loss, done[0].node

    Model(make).check(client)


def test_loops_and_branches_in_shards_read_captured_variables(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        def body(i: Any, h: Any, w: Any) -> Any:
            square = raw.MatMul(raw.ReadVariableOp(w, dtype="float64"), np.ones((2, 3)))
            return i + 1, raw.Tanh(raw.MatMul(h, square)), w

        _, h, _ = gs.while_loop(lambda i, h, w: i < 3, body, 0, m.x, m.w.handle, shapes=[(), (None, 3), ()])
        large = raw.Greater(m.w[0, 0], 100.0)
        h = gs.cond(large, lambda h, w: h, lambda h, w: h * raw.ReadVariableOp(w, dtype="float64")[0, 0], h, m.w.handle)
        losses, _ = _losses(h, m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        return loss, gs.GradientDescent(0.5).minimize(loss, [m.w])

    Model(make).check(client)


def test_gradients_are_clipped_and_penalties_counted_once(client: gs.Client) -> None:
    def make(m: Model, reduce: Any) -> Any:
        losses, _ = _losses(m.x, m.t, m.w)
        loss = reduce(losses, FIRST) + 0.3 * raw.L2Loss(m.w)
        slope: Any = m.graph.gradients(loss, [m.w])[0]
        norm = raw.Sqrt(raw.Sum(raw.Square(slope), AXES))
        return loss, m.w.assign(m.w - slope * 0.1 / raw.Maximum(norm, 0.1))

    Model(lambda m: make(m, raw.Mean)).check(client)
    for reduction in ("mean", "sum"):  # that it is a sum, the graph tells
        Model(lambda m: make(m, raw.Sum)).check(client, reduction=reduction)


def test_statistics_of_a_batch_are_the_means_of_the_shards(client: gs.Client) -> None:
    """Batch normalisation, with the update of the moving mean before the backward pass, as TensorFlow 1 has it."""

    def make(m: Model) -> Any:
        mean = raw.Mean(m.x, FIRST, keep_dims=True)
        moving = gs.Variable(np.zeros(3), name="moving")
        update = raw.AssignSubVariableOp.run(moving.handle, (moving - raw.Squeeze(mean, squeeze_dims=[0])) * 0.1)
        losses, _ = _losses(m.x - mean, m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        with m.graph.control_dependencies([update]):
            return loss, gs.GradientDescent(0.5).minimize(loss, [m.w])

    model = Model(make)
    with pytest.raises(Unsupported, match=r"Sub.* lets examples look at each other.*local_statistics"):
        model.trained(client, [model.x, model.t], shards=4)
    *_, moving = model.trained(client, [model.x, model.t], shards=4, local_statistics=True)
    np.testing.assert_allclose(moving, X.mean(0) * (1 - 0.9**3), rtol=1e-9)


@pytest.mark.parametrize("kind", ["as they come", "distinct", "clipped", "looked up once"])
def test_sparse_updates_see_each_row_once_over_all_shards(client: gs.Client, kind: str) -> None:
    """TensorFlow 1's Adam for embeddings adds up rows of the same index in the graph, and squares them then."""

    def make(m: Model) -> Any:
        table, second = gs.Variable(E, name="table"), gs.Variable(np.zeros_like(E), name="second")
        rows = raw.ResourceGather(table.handle, m.ids, dtype="float64")
        if kind == "looked up once":
            ids, places = raw.Unique.outputs(raw.Reshape(m.ids, [-1]))
            few = raw.ResourceGather(table.handle, ids, dtype="float64")
            rows = raw.Reshape(raw.GatherV2(few, places, np.int32(0)), [-1, 4, 3])
        losses, _ = _losses(raw.Mean(rows, np.array([1], np.int32)), m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        [slope] = m.graph.gradients(loss, [table.handle])
        assert isinstance(slope, IndexedSlices)
        values, indices = slope.values, slope.indices
        if kind != "as they come":
            indices, places = raw.Unique.outputs(slope.indices)
            values = raw.UnsortedSegmentSum(slope.values, places, raw.Shape(indices)[0])
        if kind == "clipped":
            values = values / raw.Maximum(raw.Sqrt(2.0 * raw.L2Loss(values)), 0.01)
        squares = raw.ResourceScatterAdd.run(second.handle, indices, raw.Square(values), dtype="float64")
        with m.graph.control_dependencies([squares]):
            scaled = values / (raw.Sqrt(raw.ResourceGather(second.handle, indices, dtype="float64")) + 0.1)
        update = raw.ResourceScatterSub.run(table.handle, indices, scaled, dtype="float64")
        seen = gs.Variable(np.zeros(5), name="seen")
        ones = raw.OnesLike(raw.Cast(m.ids, DstT="float64"))
        counted = raw.ResourceScatterAdd.run(seen.handle, m.ids, ones, dtype="float64")
        return loss, gs.group(update, counted)

    model = Model(make)
    model.check(client, [model.ids, model.t])


def test_a_graph_that_squares_a_dense_gradient_of_an_embedding(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        table, second = gs.Variable(E, name="table"), gs.Variable(np.zeros_like(E), name="second")
        rows = raw.ResourceGather(table.handle, m.ids, dtype="float64")
        losses, _ = _losses(raw.Mean(rows, np.array([1], np.int32)), m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        [slope] = m.graph.gradients(loss, [table.handle])
        assert isinstance(slope, IndexedSlices)
        squares = IndexedSlices(raw.Square(slope.values), slope.indices, slope.dense_shape)  # as Keras 3 does
        return loss, gs.group(second.assign_add(densify(squares)), table.assign(table - densify(slope)))

    model = Model(make)
    model.check(client, [model.ids, model.t])


def test_each_shard_draws_its_own_dropout_and_all_share_what_is_drawn_for_all(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        noise = raw.RandomStandardNormal(np.array([3], np.int32), dtype="float64", seed=1, seed2=2)
        kept = raw.RandomUniform(raw.Shape(m.x), dtype="float64", seed=3, seed2=4)
        return raw.ConcatV2([m.x * 0.0 + noise, kept], np.int32(1)), []

    model = Model(make)
    with client.session(model.graph) as session:
        first, second = (session.run({model.x: X}, model.loss, shards=4)[0] for _ in range(2))
        [third] = session.run({model.x: X}, model.loss)
    for drawn in (first, second, third):
        np.testing.assert_array_equal(drawn[:, :3], np.tile(drawn[:1, :3], (10, 1)))
        assert len(np.unique(drawn[:, 3:])) == 30
    assert not np.any(np.isin(second, first))
    assert not np.any(np.isin(third, second))


def test_assertions_run_in_the_shards_before_anything_changes(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        fine = raw.Assert.run(raw.All(raw.Less(m.x, 100.0), AXES), [m.x])
        losses, _ = _losses(m.x, m.t, m.w)
        loss = raw.Mean(losses, FIRST)
        with m.graph.control_dependencies([fine]):
            return loss, m.w.assign(m.w * 0.5)

    model = Model(make)
    with client.session(model.graph) as session:
        session.run({model.x: X, model.t: T}, model.loss, model.step, shards=2)
        with pytest.raises(Exception, match="Assert"):
            session.run({model.x: X * 1e3, model.t: T}, model.loss, model.step, shards=2)
        np.testing.assert_allclose(session.run(fetches=model.w)[0], W * 0.5)


def test_what_reads_a_variable_after_its_change_runs_once(client: gs.Client) -> None:
    def make(m: Model) -> Any:
        with m.graph.control_dependencies([m.w.assign(m.w * 2.0)]):
            later = raw.ReadVariableOp(m.w.handle, dtype="float64")
        return raw.MatMul(raw.Tanh(m.x), later), []

    model = Model(make)
    feeds, answers = {model.x: X}, []
    asked: list[dict[str, Any]] = [{}, {"shards": 3}]
    for options in asked:
        with client.session(model.graph) as session:
            [y] = session.run(feeds, model.loss, **options)
            answers.append([y, *session.compute_gradients(model.loss, model.x, feeds, **options)])
    for mine, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_any_number_of_workers_trains_to_the_same_bits() -> None:
    answers: list[bytes] = []
    for workers in (1, 2, 4, 8):
        with gs.Client.embedded(workers=workers, engine="numpy", timeout_seconds=120) as client:
            model = Model(_called)
            trained = model.trained(client, [model.x, model.t], shards=8)
            answers.append(b"".join(array.tobytes() for array in trained))
    assert answers[1:] == answers[:1] * 3
