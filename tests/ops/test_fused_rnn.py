"""Fused recurrent cells against central differences, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.ops import scan
from tests.ops.differences import Built, check, run
from tests.ops.draw import Draw
from tests.ops.precision import doubled, in_double_precision


@pytest.fixture(scope="module", autouse=True)
def widened():
    with in_double_precision():
        yield


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", ["BlockLSTM", "BlockLSTMV2", "LSTMBlockCell", "GRUBlockCell"])
def test_a_third_order_agrees_with_central_differences(name: str, known_shapes: bool) -> None:
    op = catalogue.lookup(name)
    assert op.examples is not None
    example = doubled(op.examples(Draw(lambda low, high: min(high, 2)))[0])
    built = Built(op, example, known_shapes=known_shapes)
    check(built.outputs[-1:], built.sources, built.values, order=3)


def _block(limit: Any, steps: int | None) -> tuple[Graph, Any, Any]:
    """h of a block, the x it depends on, and numbers for it."""
    draw = Draw(lambda low, high: high)
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(steps, 2, 2))
        state, peephole, bias = draw.unit(2, 3), draw.unit(3), draw.unit(12)
        weights = [draw.unit(5, 12), peephole, peephole, peephole, bias]
        h = raw.BlockLSTM.outputs(limit(graph), x, state, state, *weights)[-1]
    return graph, h, x


def test_steps_past_the_limit_have_no_share() -> None:
    _, h, x = _block(lambda graph: graph.constant(np.int64(2)), 4)
    (dx,) = gradients([h], [x])
    value = Draw(lambda low, high: high).unit(4, 2, 2)
    got, after = run([dx, h], [x], [value])  # type: ignore[list-item]
    assert np.all(got[:2] != 0)
    assert not got[2:].any()
    assert not after[2:].any()


def _second(limit: Any, steps: int | None) -> Any:
    """A second derivative by x of a block of 20 steps of which 18 count, more than stand side by side in a graph."""
    fed = isinstance(limit, str)
    graph, h, x = _block(
        lambda graph: raw.Placeholder(dtype=np.int64, shape=(), name=limit) if fed else graph.constant(limit), steps
    )
    with graph.as_default():
        (dx,) = gradients([h], [x])
        (second,) = gradients([raw.Sum(raw.Square(dx), np.arange(3))], [x])  # type: ignore[arg-type]
    feeds, values = [x], [np.sin(np.arange(80.0)).reshape(20, 2, 2)]
    if fed:
        feeds, values = [x, graph.tensor(f"{limit}:0")], [*values, np.int64(18)]
    return run([second], feeds, values)[0]  # type: ignore[list-item]


def test_what_is_not_known_gives_the_derivatives_of_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scan, "MOST_SIDE_BY_SIDE", 20)
        expected = _second(np.int64(18), 20)
    assert expected[:18].all()
    assert not expected[18:].any()
    for limit, steps in ((np.int64(18), 20), ("limit", 20), (np.int64(18), None), ("limit", None)):
        np.testing.assert_allclose(_second(limit, steps), expected, rtol=1e-9)
