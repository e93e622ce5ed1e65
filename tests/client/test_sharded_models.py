"""Random models: what shards give is what the whole batch gives, in float64 up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gradserve.client as gs
from gradserve.graph.op import raw

DRAW = np.random.default_rng(17)
EXAMPLES = 11
FIRST, LAST, BOTH = np.array([0], np.int32), np.array([1], np.int32), np.array([0, 1], np.int32)
ONE = np.int32(1)
FEEDS = {
    "x": DRAW.uniform(0.2, 1, (EXAMPLES, 3)),
    "t": DRAW.uniform(0.2, 1, EXAMPLES),
    "ids": DRAW.integers(0, 4, (EXAMPLES, 2)).astype(np.int32),
    "w": DRAW.normal(size=(3, 3)),
    "table": DRAW.normal(size=(4, 3)),
}
SPLIT = ["x", "t", "ids"]

# From rows of three to rows of three; h are earlier ones.
LAYERS = {
    "dense": lambda m, h, g: raw.Tanh(raw.MatMul(h, m["w"])),
    "embedding": lambda m, h, g: h + raw.Mean(raw.GatherV2(m["table"], m["ids"], np.int32(0)), LAST),
    "sum": lambda m, h, g: h + g,
    "product": lambda m, h, g: h * g,
    "gate": lambda m, h, g: raw.Sigmoid(h) * g,
    "softmax": lambda m, h, g: raw.Softmax(h),
    "targets": lambda m, h, g: h * raw.ExpandDims(m["t"], 1),
    "norm": lambda m, h, g: h / raw.Sqrt(raw.Sum(h * h, LAST, keep_dims=True) + 0.1),
    "joined": lambda m, h, g: raw.MatMul(raw.ConcatV2([h, g], ONE), raw.ConcatV2([m["w"], m["w"]], np.int32(0))),
    "clipped": lambda m, h, g: raw.Minimum(raw.Relu(h), 0.7),
    "looped": lambda m, h, g: gs.while_loop(
        lambda i, h, w: i < 2, lambda i, h, w: (i + 1, raw.Tanh(raw.MatMul(h, w)), w), 0, h, m["w"],
        shapes=[(), (None, 3), (3, 3)],
    )[1],
    "branch": lambda m, h, g: gs.cond(m["w"][0, 0] > 0.0, lambda h, g: h * g, lambda h, g: h - g, h, g),
}  # fmt: skip
# From rows to a loss.
LOSSES = {
    "mean": lambda m, h: raw.Mean(h, BOTH),
    "sum": lambda m, h: raw.Sum(h, BOTH),
    "mean of sums": lambda m, h: raw.Mean(raw.Sum(raw.Square(h), LAST), FIRST),
    "sum over count": lambda m, h: raw.Sum(h * h, BOTH) / raw.Cast(raw.Shape(h)[0], DstT="float64"),
    "penalised": lambda m, h: raw.Mean(raw.Square(h), BOTH) + 0.1 * raw.L2Loss(m["w"]),
    "penalised sum": lambda m, h: raw.Sum(raw.Square(h), BOTH) + 0.1 * raw.L2Loss(m["w"]),
    "halved": lambda m, h: raw.L2Loss(h),
}  # fmt: skip
# What an optimiser may make of a gradient.
USES = {
    "as it is": lambda dw: dw,
    "moments": lambda dw: dw / (raw.Sqrt(raw.Square(dw)) + 0.1),
    "clipped": lambda dw: dw / raw.Maximum(raw.Sqrt(raw.Sum(dw * dw, BOTH)), 0.1),
    "signs": lambda dw: raw.Sign(raw.Tanh(dw)) * raw.Abs(dw),
}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(0, 3)), min_size=1, max_size=5),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(sorted(USES)),
    st.integers(1, 7),
    st.sampled_from(["mean", "sum"]),
)
def test_a_model_in_shards_is_the_model(
    client: gs.Client, layers: list[tuple[str, int]], loss: str, use: str, shards: int, reduction: str
) -> None:
    with gs.Graph().as_default() as graph:
        m: dict[str, Any] = {}
        for name, value in FEEDS.items():
            shape = (None, *value.shape[1:]) if name in SPLIT else value.shape
            m[name] = gs.placeholder(value.dtype, shape, name)
        rows = [m["x"]]
        for layer, place in layers:
            rows.append(LAYERS[layer](m, rows[-1], rows[max(0, len(rows) - 1 - place)]))
        total = LOSSES[loss](m, rows[-1])
        used = USES[use](gs.gradients(total, [m["w"]])[0]) if _reads(graph, total, m["w"]) else total
    asked = {"return_ys": True, "fetches": [rows[-1], used], "unconnected_gradients": "zero"}
    xs = [m["w"], m["x"], m["table"]]
    whole = client.compute_gradients(graph, total, xs, FEEDS, **asked)
    parts = client.compute_gradients(graph, total, xs, FEEDS, **asked, shards=shards, split=SPLIT, reduction=reduction)
    for mine, theirs in zip([*parts, *parts.ys, *parts.fetches], [*whole, *whole.ys, *whole.fetches], strict=True):
        assert mine is not None
        assert theirs is not None
        np.testing.assert_allclose(gs.dense(mine), gs.dense(theirs), rtol=1e-8, atol=1e-11)


def _reads(graph: gs.Graph, y: Any, x: Any) -> bool:
    """Whether y depends on x."""
    return graph.gradients(y, [x], unconnected_gradients="none")[0] is not None
