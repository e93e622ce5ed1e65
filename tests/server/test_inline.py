"""What a plan makes of calls, branches and loops: bodies run once, where they stand, also with their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.graph.functions import Spec, add_function, argument, new_body
from gradserve.graph.graph import Tensor

X = np.array([0.5, -1.5, 2.0], np.float32)


@pytest.fixture(scope="module")
def client():
    with gs.Client.embedded(workers=2, engine="numpy", timeout_seconds=60) as connected:
        yield connected


def called(graph: gs.Graph, like: list[Tensor], body: Any, effects: Any = None) -> Any:
    with new_body(graph).as_default():
        arguments = [argument(Spec(x.dtype.base, x.shape), f"a{k}") for k, x in enumerate(like)]
        results = body(*arguments)
        nodes = [] if effects is None else [effects(*arguments)]
        return add_function(graph, "body", arguments, results, nodes)


def noise(x: Tensor) -> Tensor:
    """x times random numbers: its gradient is those very numbers only if they are drawn once."""
    return x * gs.raw.RandomUniform(np.array([3], np.int32), dtype="float32", seed=1, seed2=2)


def test_a_random_body_is_drawn_once_for_value_and_gradient(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")
        f = called(graph, [x], lambda x: [noise(x)])
        (y,) = gs.raw.StatefulPartitionedCall.outputs([x], Tout=["float32"], f=f)
        flag = gs.raw.Identity(np.array(True))
        g = called(graph, [x], lambda x: [gs.raw.Exp(noise(x))])
        (z,) = gs.raw.If.outputs(flag, [x], Tout=["float32"], then_branch=g, else_branch=g)
    first = client.compute_gradients(graph, y, x, {x: X}, return_ys=True)
    np.testing.assert_allclose(np.asarray(first[0]) * X, first.ys[0], rtol=1e-6)
    second = client.compute_gradients(graph, z, x, {x: X}, return_ys=True)
    np.testing.assert_allclose(np.asarray(second[0]) / second.ys[0] * X, np.log(second.ys[0]), rtol=1e-5)


def test_a_random_loop_is_drawn_once_for_value_and_gradient(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")
        start = gs.raw.Identity(np.int32(0))
        cond = called(graph, [start, x], lambda i, x: [gs.raw.Less(i, 3)])
        body = called(graph, [start, x], lambda i, x: [i + 1, noise(x)])
        y = gs.raw.While.outputs([start, x], cond=cond, body=body)[1]
    found = client.compute_gradients(graph, y, x, {x: X}, return_ys=True)
    np.testing.assert_allclose(np.asarray(found[0]) * X, found.ys[0], rtol=1e-5)


def drawing_loop(graph: gs.Graph, x: Tensor) -> Tensor:
    """x times random numbers, three times over."""
    start = gs.raw.Identity(np.int32(0))
    cond = called(graph, [start, x], lambda i, x: [gs.raw.Less(i, 3)])
    body = called(graph, [start, x], lambda i, x: [i + 1, noise(x)])
    return gs.raw.While.outputs([start, x], cond=cond, body=body)[1]


def drawing_branch(graph: gs.Graph, x: Tensor) -> Tensor:
    """x times random numbers, where a branch makes it so."""
    branch = called(graph, [x], lambda x: [noise(x)])
    flag = gs.raw.Identity(np.array(True))
    return gs.raw.If.outputs(flag, [x], Tout=["float32"], then_branch=branch, else_branch=branch)[0]


@pytest.mark.parametrize("make", [drawing_loop, drawing_branch])
def test_several_gradients_of_one_node_see_the_same_draws(client: gs.Client, make: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")
        y = make(graph, x)
        jacobian = gs.jacobian(y, x)
        assert jacobian is not None
    before = [node.type for node in graph.nodes].count("While")
    assert before in (0, 2 + 3)  # forward, forward with stacks, and a backward loop a row
    value, rows = client.run(graph, {x: X}, [y, jacobian])
    np.testing.assert_allclose(rows @ X, value, rtol=1e-5)
    [alone] = client.run(graph, {x: X}, [jacobian])
    assert np.count_nonzero(alone) == 3


def test_gradients_that_read_other_values_of_a_loop_share_it(client: gs.Client) -> None:
    """w ← w tanh(v), v ← v w: with respect to w alone, and then to both, and then the second derivatives."""
    with gs.Graph().as_default() as graph:
        w, v = (gs.placeholder("float32", (3,), name=name) for name in "wv")
        start = gs.raw.Identity(np.int32(0))
        cond = called(graph, [start, w, v], lambda i, w, v: [gs.raw.Less(i, 2)])

        def step(i: Tensor, w: Tensor, v: Tensor) -> list[Tensor]:
            factor = gs.raw.RandomUniform(np.array([3], np.int32), dtype="float32", seed=3, seed2=4)
            return [i + 1, w * gs.raw.Tanh(v), gs.raw.StopGradient(v) * factor]

        body = called(graph, [start, w, v], step)
        y = gs.raw.While.outputs([start, w, v], cond=cond, body=body)[1]
        [slope] = gs.gradients(y, w)
        both = gs.gradients(y, [w, v])
        [bend] = gs.gradients(both[1], v)
    feeds = {w: X, v: X + 2}
    value, dw, dw_again, dv, ddv = client.run(graph, feeds, [y, slope, both[0], both[1], bend])
    np.testing.assert_allclose(dw * X, value, rtol=1e-5)
    np.testing.assert_array_equal(dw, dw_again)
    # With y = w tanh(v) tanh(c v) and StopGradient before the second: dy/dv = y (1 - tanh²) / tanh at v.
    tangent = np.tanh(X + 2)
    np.testing.assert_allclose(dv, value * (1 - tangent**2) / tangent, rtol=1e-4)
    np.testing.assert_allclose(ddv, value * -2 * (1 - tangent**2), rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_a_random_loop_inside_of_a_call_is_drawn_once(client: gs.Client, order: int) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")
        start = gs.raw.Identity(np.int32(0))
        cond = called(graph, [start, x], lambda i, x: [gs.raw.Less(i, 3)])
        body = called(graph, [start, x], lambda i, x: [i + 1, noise(x) * x])

        def looped(x: Tensor) -> list[Tensor]:
            return [gs.raw.While.outputs([gs.raw.Identity(np.int32(0)), x], cond=cond, body=body)[1]]

        f = called(graph, [x], looped)
        (y,) = gs.raw.StatefulPartitionedCall.outputs([x], Tout=["float32"], f=f)
        z = y if order == 1 else gs.gradients(y, x)[0]
    found = client.compute_gradients(graph, z, x, {x: X}, return_ys=True, fetches=y)
    # Three rounds of c x² make y = k x⁸.
    np.testing.assert_allclose(np.asarray(found[0]) * X**order, found.fetches[0] * (8 if order == 1 else 56), rtol=1e-4)


def test_a_called_body_changes_a_variable_once(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        w = gs.Variable(np.ones(3, np.float32), name="w")
        x = gs.placeholder("float32", (3,), name="x")

        def body(x: Tensor, handle: Tensor) -> list[Tensor]:
            add = gs.raw.AssignAddVariableOp.run(handle, np.ones(3, np.float32))
            with x.graph.control_dependencies([add]):
                return [x * gs.raw.ReadVariableOp(handle, dtype="float32")]

        with new_body(graph).as_default():
            inputs = [argument(Spec(x.dtype, x.shape), "x"), argument(Spec(w.handle.dtype, (), (w.dtype, (3,))), "w")]
            f = add_function(graph, "step", inputs, body(*inputs))
        (y,) = gs.raw.StatefulPartitionedCall.outputs([x, w.handle], Tout=["float32"], f=f)
    with client.session(graph) as session:
        found = session.compute_gradients(y, x, {x: X}, return_ys=True)
        np.testing.assert_array_equal(found[0], [2, 2, 2])
        np.testing.assert_array_equal(found.ys[0], 2 * X)
        np.testing.assert_array_equal(session.run(fetches=w)[0], [2, 2, 2])


def test_bodies_of_calls_are_placed_node_by_node(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (3,), name="x")

        def body(x: Tensor) -> list[Tensor]:
            with x.graph.device("/job:worker/task:1"):
                return [gs.raw.Exp(x, name="far")]

        (y,) = gs.raw.PartitionedCall.outputs([x], Tout=["float32"], f=called(graph, [x], body), name="call")
        with graph.device("/job:worker/task:0"):
            z = gs.raw.Neg(y, name="near")
    plan = client.explain(graph, {x: (3,)}, fetches=z)
    places = {placement.node: placement.worker for placement in plan.placements}
    assert places["call/far"] != places["near"]
    np.testing.assert_allclose(client.run(graph, {x: X}, y)[0], np.exp(X), rtol=1e-6)
    np.testing.assert_array_equal(client.run(graph, {y: X}, z)[0], -X)


def test_numbers_drawn_in_a_loop_differ_from_step_to_step(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        w = gs.Variable(np.ones(3, np.float32), name="w")
        start = gs.raw.Identity(np.int32(0))
        inputs = [start, gs.raw.Identity(np.ones(3, np.float32)), w.handle]
        specs = [Spec(start.dtype, ()), Spec(w.dtype, (3,)), Spec(w.handle.dtype, (), (w.dtype, (3,)))]
        names = []
        for body in (
            lambda i, x, w: [gs.raw.Less(i, 2)],
            lambda i, x, w: [i + 1, noise(x) * gs.raw.ReadVariableOp(w, dtype="float32"), w],
        ):
            with new_body(graph).as_default():
                arguments = [argument(spec, f"a{k}") for k, spec in enumerate(specs)]
                names.append(add_function(graph, "part", arguments, body(*arguments)))
        y = gs.raw.While.outputs(inputs, cond=names[0], body=names[1])[1]
    with client.session(graph) as session:
        first, second = session.run(fetches=y)[0], session.run(fetches=y)[0]
    assert not np.array_equal(first, second)
