"""The op that made the first NaN or infinity is named, with what it was given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gradserve.client as gs


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))])
def client(request: pytest.FixtureRequest) -> Iterator[gs.Client]:
    """Each kind of fleet behind a server."""
    options: dict[str, str] = {}
    if request.param == "ray":
        options = {"fleet": "ray", "ray_address": request.getfixturevalue("ray_cluster").address}
    with gs.Client.embedded(workers=2, engine="numpy", timeout_seconds=60, **options) as connected:
        yield connected


def test_a_gradient_that_turns_infinite_is_traced_to_its_op(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")
        with graph.device("/job:worker/task:1"):
            root = gs.raw.Pow(x, np.float32(0.5), name="model/root")
        loss = gs.sum(gs.tanh(root) * 2.0)
    result = client.compute_gradients(graph, loss, x, {x: [1, 0, 4]}, find_nonfinite=True)
    found = result.nonfinite
    assert found is not None
    assert (found.op, found.forward_node) == ("Pow", "model/root")
    given = {each.tensor: each for each in found.inputs}
    assert (given["x:0"].least, given["x:0"].greatest) == (0, 4)
    assert found.outputs[0].infinity_count == 1
    assert "in the gradient of model/root" in str(found)
    np.testing.assert_equal(np.isinf(np.asarray(result[0])), [False, True, False])


def test_a_forward_op_that_makes_nan_is_named_and_a_fed_one_is_its_placeholder(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", None, name="x")
        loss = gs.sum(gs.raw.Log(x, name="log"))
    (found, fed) = (
        client.compute_gradients(graph, loss, x, {x: np.array(values)}, find_nonfinite=True).nonfinite
        for values in ([2.0, -1.0], [2.0, np.nan])
    )
    assert found is not None
    assert (found.node, found.forward_node) == ("log", "")
    assert found.outputs[0].nan_count == 1
    assert fed is not None
    assert (fed.node, fed.inputs) == ("x", ())


def test_nothing_is_named_where_all_is_finite_or_empty_or_nobody_asked(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("complex64", (None,), name="x")
        loss = gs.raw.Real(gs.sum(x * x))
    for values in (np.ones(2, np.complex64), np.zeros(0, np.complex64)):
        assert client.compute_gradients(graph, loss, x, {x: values}, find_nonfinite=True).nonfinite is None
    bad = np.array([np.nan], np.complex64)
    assert client.compute_gradients(graph, loss, x, {x: bad}).nonfinite is None


def test_a_fed_intermediate_needs_nothing_before_it(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (2,), name="x")
        middle = gs.exp(x)
        loss = gs.sum(1.0 / middle)
    result = client.compute_gradients(graph, loss, middle, {middle: [0, 1]}, find_nonfinite=True)
    assert result.nonfinite is not None
    assert result.nonfinite.op == "RealDiv"


def test_of_shards_the_lowest_is_named(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", (None,), name="x")
        loss = gs.mean(gs.log(x))
    values = np.array([1.0, 2, 3, -1, 4, 0, 5])  # in shards of 3, 2, 2
    found = client.compute_gradients(graph, loss, x, {x: values}, find_nonfinite=True, shards=3).nonfinite
    assert found is not None
    assert (found.op, found.shard) == ("Log", 1)
    assert (found.inputs[0].least, found.inputs[0].greatest) == (-1, 4)
