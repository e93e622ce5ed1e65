"""Shapes that follow from what is fed."""

from __future__ import annotations

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.errors import InvalidShape
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.draft import Draft, Feed, StepOptions, draft
from gradserve.server.fed_shapes import with_fed_shapes
from tests.server.build import fleet, placeholder


def dense(batch: int | None) -> tuple[Graph, list[Tensor]]:
    """A layer with a bias and a mean over its units, and the gradients of its loss."""
    graph = Graph()
    with graph.as_default():
        x, w, b = placeholder("x", (batch, 3)), placeholder("w", (3, 4)), placeholder("b", (4,))
        y = raw.Tanh(x @ w + b)
        loss = raw.Mean(y * raw.Mean(y, [-1], keep_dims=True), [0, 1])
    return graph, [loss, *(dx for dx in gradients([loss], [w, b, x]) if isinstance(dx, Tensor))]


def drafted(graph: Graph, fetches: list[Tensor], **shapes: tuple[int, ...]) -> Draft:
    feeds = [Feed(f"{name}:0", np.dtype(np.float32), shape) for name, shape in shapes.items()]
    return draft(graph, feeds, [tensor.name for tensor in fetches], [], StepOptions(), fleet(1))


def test_gradients_of_an_open_batch_run_as_those_of_a_fixed_one() -> None:
    shapes = {"x": (5, 3), "w": (3, 4), "b": (4,)}
    opened, fixed = (sorted(n.type for n in drafted(*dense(batch), **shapes).work.nodes) for batch in (None, 5))
    assert opened == fixed
    assert not {"Shape", "Size", "BroadcastGradientArgs"} & set(opened)


def test_the_graph_keeps_its_open_shapes() -> None:
    graph, fetches = dense(None)
    drafted(graph, fetches, x=(5, 3), w=(3, 4), b=(4,))
    assert graph.tensor("x:0").shape == (None, 3)
    assert graph.tensor("Tanh:0").shape == (None, 4)
    assert all(node.graph is graph for node in graph.nodes)


def test_what_no_fed_shape_changes_is_not_made_anew() -> None:
    graph = Graph()
    with graph.as_default():
        x, w = placeholder("x", (None,)), placeholder("w", (4,))
        apart, both = raw.Exp(w), raw.Exp(x) + w
    fed, fetches, _ = with_fed_shapes([x, w], [(4,), (4,)], [apart, both], [])
    assert fetches[0] is apart
    assert fed[1] is w
    assert (fed[0].shape, fetches[1].shape) == ((4,), (4,))


def test_targets_and_what_runs_before_them_follow() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder("x", (None,))
        checked = raw.Assert.run(raw.All(raw.Less(x, 1.0), [0]), [x])
        with graph.control_dependencies([checked]):
            done = raw.NoOp.run()
    _, _, [target] = with_fed_shapes([x], [(2,)], [], [done])
    assert target.name == done.name
    [before] = target.control_inputs
    assert before is not checked
    assert before.inputs[1].shape == (2,)


def test_a_fed_inner_tensor_leaves_all_shapes_as_they_are() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder("x", (None,))
        y = raw.Exp(x)
        z = raw.Neg(y)
    given = with_fed_shapes([x, y], [(2,), (3,)], [z], [])
    assert given == ([x, y], [z], [])


def test_fed_shapes_that_do_not_go_together_name_the_node() -> None:
    graph = Graph()
    with graph.as_default():
        product = placeholder("x", (None, None)) @ placeholder("w", (None, None))
    with pytest.raises(InvalidShape, match="MatMul") as raised:
        drafted(graph, [product], x=(5, 3), w=(4, 2))
    assert raised.value.metadata["node"] == "MatMul"
