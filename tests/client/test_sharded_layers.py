"""Layers as Keras writes them, in shards: what loops over time do with rows, and the numbers of dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.graph.op import raw

DRAW = np.random.default_rng(5)
X = DRAW.normal(size=(10, 4, 3))
WEIGHTS = [DRAW.normal(size=shape) for shape in ((3, 10), (5, 10), (5, 1))]
KEEPS = DRAW.integers(0, 2, (10, 4)).astype(bool)
ALL = np.array([0, 1], np.int32)
TIME_FIRST = np.array([1, 0, 2], np.int32)
ANY_ROWS = {"element_dtype": "float64"}


def _recurrent(x: Any, keeps: Any, w: Any, u: Any) -> Any:
    """The last state of a gated cell over the steps of x; a step that a mask leaves out keeps the state.

    As in Keras the lists say of their elements how wide they are, and not how many rows they have.
    """
    steps = raw.TensorListFromTensor(raw.Transpose(x, TIME_FIRST), [-1, 3], **ANY_ROWS)
    masks = raw.TensorListFromTensor(raw.Transpose(raw.ExpandDims(keeps, 2), TIME_FIRST), [-1, 1], element_dtype="bool")
    outputs = raw.TensorListReserve([-1, 5], 4, **ANY_ROWS)
    start = raw.Fill(raw.Pack([raw.Shape(x)[0], 5]), np.float64(0))

    def step(t: Any, h: Any, held: Any, steps: Any, masks: Any, w: Any, u: Any) -> tuple[Any, ...]:
        now = raw.TensorListGetItem(steps, t, [-1, 3], **ANY_ROWS)
        kept = raw.Tile(raw.TensorListGetItem(masks, t, [-1, 1], element_dtype="bool"), [1, 5])
        gate, new = raw.Split.outputs(1, raw.MatMul(now, w) + raw.MatMul(h, u), num_split=2)
        h = raw.SelectV2(kept, raw.Sigmoid(gate) * raw.Tanh(new) + h * 0.5, h)
        return t + 1, h, raw.TensorListSetItem(held, t, h, **ANY_ROWS), steps, masks, w, u

    shapes = [(), (None, 5), (), (), (), (3, 10), (5, 10)]
    ends = gs.while_loop(lambda t, *others: t < 4, step, np.int32(0), start, outputs, steps, masks, w, u, shapes=shapes)
    return raw.TensorListStack(ends[2], [-1, 5], num_elements=4, **ANY_ROWS)[-1]


def _agree(parts: Any, whole: Any) -> None:
    for mine, theirs in zip([*parts, *parts.fetches], [*whole, *whole.fetches], strict=True):
        np.testing.assert_allclose(gs.dense(mine), gs.dense(theirs), rtol=1e-9, atol=1e-12)


def test_a_recurrent_layer_in_shards_is_the_layer(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x, keeps = gs.placeholder("float64", (None, 4, 3), "x"), gs.placeholder("bool", (None, 4), "keeps")
        weights = [gs.placeholder("float64", value.shape, f"w{k}") for k, value in enumerate(WEIGHTS)]
        y = raw.MatMul(_recurrent(x, keeps, *weights[:2]), weights[2])
        target = gs.placeholder("float64", (None, 1), "target")
        loss = raw.Mean(raw.Square(y - target), ALL)
    feeds = {x: X, keeps: KEEPS, target: X[:, 0, :1], **dict(zip(weights, WEIGHTS, strict=True))}
    whole = client.compute_gradients(graph, loss, [*weights, x], feeds, fetches=[y, loss])
    for shards in (2, 3, 10):
        parts = client.compute_gradients(
            graph, loss, [*weights, x], feeds, fetches=[y, loss], shards=shards, split=[x, keeps, target]
        )
        _agree(parts, whole)


@pytest.mark.parametrize("flat", [False, True])
def test_stateless_draws_of_rows_are_those_of_the_whole_batch(client: gs.Client, flat: bool) -> None:
    with gs.Graph().as_default() as graph:
        x, w = gs.placeholder("float64", (None, 4, 3), "x"), gs.placeholder("float64", (3, 3), "w")
        rows = raw.Reshape(x, [-1, 3]) if flat else x[:, 0]
        key, counter = np.array([7], np.uint64), np.array([1, 2], np.uint64)
        drawn = raw.StatelessRandomUniformV2(raw.Shape(rows), key, counter, np.int32(1), dtype="float64")
        y = gs.tanh(raw.MatMul(rows, w)) * raw.Cast(drawn > 0.3, DstT="float64") / 0.7
        loss = raw.Mean(raw.Square(y), ALL)
    feeds = {x: X, w: np.eye(3) / 2}
    whole = client.compute_gradients(graph, loss, [w, x], feeds, fetches=[drawn, y, loss])
    for shards in (2, 3, 4):
        parts = client.compute_gradients(graph, loss, [w, x], feeds, fetches=[drawn, y, loss], shards=shards, split=x)
        np.testing.assert_array_equal(parts.fetches[0], whole.fetches[0])
        _agree(parts, whole)
