"""Shards of examples that look at each other: the answer of the whole batch, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.errors import Unsupported
from gradserve.graph.op import raw

X = np.random.default_rng(3).uniform(0.2, 1, (11, 3))
W = np.linspace(-1, 1, 9).reshape(3, 3)
FIRST, BOTH = np.array([0], np.int32), np.array([0, 1], np.int32)
# From rows to what looks at several of them.
MIXTURES = {
    "centred": lambda h: h - raw.Mean(h, FIRST),
    "root of a mean": lambda h: h / raw.Sqrt(raw.Mean(h * h, BOTH)),
    "summed along": lambda h: raw.Cumsum(h, np.int32(0)),
    "reversed": lambda h: raw.ReverseV2(h, FIRST),
    "first": lambda h: h * h[0],
    "reshaped": lambda h: raw.Transpose(raw.Reshape(h, raw.Pack([3, raw.Shape(h)[0]])), [1, 0]),
    "pairs": lambda h: raw.MatMul(raw.MatMul(h, h, transpose_b=True), h),
    "places": lambda h: h * raw.Cast(raw.ExpandDims(raw.Range(0, raw.Shape(h)[0], 1), 1), DstT="float64"),
    "over the batch": lambda h: raw.Transpose(raw.Softmax(raw.Transpose(h, [1, 0])), [1, 0]),
    "largest": lambda h: h / raw.Max(h, BOTH),
    "root of a count": lambda h: h / raw.Sqrt(raw.Cast(raw.Shape(h)[0], DstT="float64")),
    "half of a count": lambda h: h * raw.Cast(raw.FloorDiv(raw.Shape(h)[0], 2), DstT="float64"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_what_looks_at_several_examples_is_that_of_the_batch_or_refused(client: gs.Client, name: str) -> None:
    with gs.Graph().as_default() as graph:
        x, w = gs.placeholder("float64", (None, 3), "x"), gs.placeholder("float64", (3, 3), "w")
        mixed = MIXTURES[name](gs.tanh(raw.MatMul(x, w)))
        loss = raw.Mean(mixed, BOTH)
    feeds = {x: X, w: W}
    whole = client.run(graph, feeds, [mixed, loss])
    for shards in (2, 3, 5):
        parts = client.run(graph, feeds, [mixed, loss], shards=shards, split=x)
        for mine, theirs in zip(parts, whole, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
        with pytest.raises(Unsupported, match="lets examples look at each other"):
            client.compute_gradients(graph, loss, w, feeds, shards=shards, split=x)


def test_any_power_of_the_number_of_examples_comes_together(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x, w = gs.placeholder("float64", (None, 3), "x"), gs.placeholder("float64", (3, 3), "w")
        count = raw.Cast(raw.Shape(x)[0], DstT="float64")
        h = gs.tanh(raw.MatMul(x, w))
        rows = [h / count, h / count / count, h * count]
        losses = [raw.Sum(h, BOTH) / count / count, raw.Mean(h, BOTH) * count, raw.Sum(h * count, BOTH)]
    feeds, options = {x: X, w: W}, {"shards": 3, "split": x}
    for loss in losses:
        answers = [
            client.compute_gradients(graph, loss, [w, x], feeds, fetches=[*rows, loss], **asked)
            for asked in ({}, options)
        ]
        for mine, theirs in zip(*([*answer, *answer.fetches] for answer in answers), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
