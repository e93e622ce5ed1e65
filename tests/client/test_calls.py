"""Both clients make every call, with the same answers."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, InvalidSeed, NoGradient, Unavailable

X = np.array([1.0, 2.0, 3.0], np.float32)


def _settled(value: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """What a call of either client gave, an asynchronous object as one that blocks."""
    if inspect.iscoroutine(value):
        value = loop.run_until_complete(value)
    return Twin(value, loop) if isinstance(value, (gs.AsyncClient, gs.AsyncSession)) else value


class Twin:
    """An asynchronous client or session that looks like a blocking one."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *a, **k: _settled(found(*a, **k), self._loop)) if inspect.iscoroutinefunction(found) else found


@pytest.fixture(params=["blocking", "awaiting"])
def either(request: pytest.FixtureRequest, client: gs.Client) -> Iterator[Any]:
    """A client of each kind, on the same server."""
    if request.param == "blocking":
        yield client
        return
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        twin = Twin(gs.AsyncClient(client.address, timeout_seconds=60), loop)
        yield twin
        twin.close()


def build() -> tuple[gs.Graph, gs.Tensor, gs.Tensor, gs.Tensor]:
    """y = x³ and i, the integer of x."""
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), name="x")
        y = gs.power(x, 3.0)
        i = gs.cast(x, "int32")
    return graph, x, y, i


def test_the_clients_have_the_same_calls() -> None:
    def names(kind: type) -> dict[str, str]:
        public = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
        return {name: str(inspect.signature(value)) for name, value in public.items() if hasattr(value, "__wrapped__")}

    assert names(gs.Client) == names(gs.AsyncClient)
    assert names(gs.Session) == names(gs.AsyncSession)
    assert len(names(gs.Client)) == 15


def test_gradients_values_and_reasons_come_back(either: Any) -> None:
    graph, x, y, i = build()
    result = either.compute_gradients(graph, y, x, {x: [1, 2, 3]}, return_ys=True, fetches=i)
    np.testing.assert_allclose(result[0], 3 * X**2)
    np.testing.assert_allclose(result.ys[0], X**3)
    np.testing.assert_array_equal(result.fetches[0], [1, 2, 3])
    assert result.reasons == [None]
    none = either.compute_gradients(graph, i, x, {x: X})
    assert none == [None]
    assert none.reasons[0].cause is gs.Cause.INTEGER_PATH
    assert none.reasons[0].op == "Cast"


def test_seeds_and_options_reach_the_server(either: Any) -> None:
    graph, x, y, _ = build()
    (seeded,) = either.compute_gradients(graph, y, x, {x: X}, grad_ys=[[1.0, 0.0, 2.0]])
    np.testing.assert_allclose(seeded, 3 * X**2 * [1, 0, 2])
    (stopped,) = either.compute_gradients(
        graph, y, x, {x: X}, stop_gradients=y, unconnected_gradients="zero",
        aggregation_method=gs.AggregationMethod.EXPERIMENTAL_TREE,
    )  # fmt: skip
    np.testing.assert_array_equal(stopped, np.zeros(3))
    with pytest.raises(InvalidSeed):
        either.compute_gradients(graph, y, x, {x: X}, grad_ys=np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="Length mismatch"):
        either.compute_gradients(graph, y, x, {x: X}, grad_ys=[None, None])
    with pytest.raises(ValueError, match="nonsense"):
        either.compute_gradients(graph, y, x, {x: X}, unconnected_gradients="nonsense")


def test_gathers_give_indexed_slices(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (4,), name="x")
        y = gs.take(x, [1, 3, 1])
    (dx,) = either.compute_gradients(graph, y, x, {x: np.zeros(4)})
    assert isinstance(dx, gs.IndexedSlices)
    np.testing.assert_array_equal(gs.dense(dx), [0, 2, 0, 1])
    (once,) = either.compute_gradients(graph, y, x, {x: np.zeros(4)}, deduplicate_slices=True)
    np.testing.assert_array_equal(once.indices, [1, 3])


def test_graphs_are_stored_extended_and_deleted(either: Any) -> None:
    graph, x, y, _ = build()
    stored = either.create_graph(graph, f"g{uuid.uuid4().hex}")
    assert stored.name in [found.name for found in either.list_graphs()]
    np.testing.assert_allclose(either.compute_gradients(stored, y.name, "x", {"x": X})[0], 3 * X**2)
    np.testing.assert_allclose(either.run(stored.name, {"x": X}, "Pow")[0], X**3)
    added = either.add_gradients(stored, y, x)
    gradient = added.gradients[0].dense
    np.testing.assert_allclose(either.run(stored, {"x": X}, gradient)[0], 3 * X**2)
    assert either.get_graph(stored.name).version == 2
    assert len(either.get_graph_def(stored.name).node) == len(graph) + len(added.added.graph_def.node)
    with pytest.raises(AlreadyExists):
        either.create_graph(graph, stored.name.partition("/")[2])
    extended = graph.as_graph_def()
    del extended.node[:]
    extended.node.add(name="n", op="Neg", input=["x"]).attr["T"].type = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert either.extend_graph(stored.name, extended).version == 3
    np.testing.assert_allclose(either.run(stored, {"x": X}, "n")[0], -X)
    either.delete_graph(stored.name)
    with pytest.raises(LookupError, match="create it first"):
        either.get_graph(stored.name)


def test_plans_and_the_cluster_are_shown(either: Any) -> None:
    graph, x, y, _ = build()
    plan = either.explain(graph, {x: (3,)}, ys=y, xs=x)
    assert "gradients/Pow_grad/Mul_1" in {placement.node for placement in plan.placements}
    assert len(either.cluster().workers) == 2


def test_errors_are_exceptions_of_python(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (2,), name="x")
        y = gs.raw.PreventGradient(x, message="no way")
    with pytest.raises(NoGradient, match="explicitly disabled") as caught:
        either.compute_gradients(graph, y, x, {x: X[:2]})
    assert isinstance(caught.value, LookupError)
    assert caught.value.metadata["op"] == "PreventGradient"
    with pytest.raises(TypeError, match="complex"):
        _without_seed(either)
    with pytest.raises(InvalidArgument, match="neither"):
        either.run("models/x", fetches="y")
    with pytest.raises(TypeError, match="not float"):
        either.run(graph, {x: X[:2]}, 3.0)


def _without_seed(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        z = gs.placeholder("complex64", (), name="z")
    either.compute_gradients(graph, gs.square(z), z, {z: 1j})


def test_a_deadline_ends_the_call(either: Any) -> None:
    with gs.Graph().as_default() as graph:
        x = y = gs.placeholder("float32", (1000, 1000), name="x")
        for _ in range(300):
            y = y @ x
    with pytest.raises(DeadlineExceeded) as caught:
        either.run(graph, {x: np.eye(1000)}, y, timeout_seconds=0.4)
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("make", [gs.Client, gs.AsyncClient])
def test_a_server_that_is_not_there_is_named(make: Callable[[str], Any]) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        nobody = make("127.0.0.1:9")
        twin = Twin(nobody, loop) if isinstance(nobody, gs.AsyncClient) else nobody
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9") as caught:
            twin.cluster(timeout_seconds=5)
        assert isinstance(caught.value, ConnectionError)
        twin.close()
