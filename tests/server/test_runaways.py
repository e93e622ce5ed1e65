"""A segment that goes on when nobody waits for it any more does not keep its worker from others."""

from __future__ import annotations

import asyncio

import numpy as np

from gradserve.graph.functions import Spec, add_function, argument, new_body
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.runtime import Runtime
from tests.server.build import placeholder
from tests.server.fleet_fixture import running

X = np.array([1, 2, 3, 4], np.float32)


def endless() -> tuple[Graph, str]:
    """x, added to 0 for ever."""
    graph = Graph()
    with graph.as_default():
        x = placeholder(shape=(4,))
        spec = Spec(x.dtype, x.shape)
        functions: list[object] = []
        for make in (lambda y: raw.Less(raw.Sum(y * 0.0, [0]), 1.0), lambda y: y * 1.0):
            with new_body(graph).as_default():
                y = argument(spec, "y")
                functions.append(add_function(graph, "body", [y], [make(y)]))
        result: Tensor = raw.StatelessWhile.outputs([x], cond=functions[0], body=functions[1])[0]
    return graph, result.name


def short() -> tuple[Graph, str]:
    graph = Graph()
    with graph.as_default():
        y = raw.Exp(placeholder(shape=(4,)))
    return graph, y.name


async def runs(runtime: Runtime) -> None:
    graph, y = short()
    [result] = await asyncio.wait_for(runtime.run("short", graph, {"x:0": X}, [y]), 60)
    np.testing.assert_allclose(result, np.exp(X), rtol=1e-6)


def test_a_worker_that_runs_an_abandoned_step_is_replaced(fleet: str) -> None:
    async def scenario() -> None:
        graph, y = endless()
        async with running(1, fleet=fleet, patience_seconds=0.5, attempts=20) as runtime:
            await runs(runtime)
            pid = runtime.cluster()[0].pid
            loop = asyncio.ensure_future(runtime.run("endless", graph, {"x:0": X}, [y]))
            await asyncio.sleep(0.3)
            waiting = asyncio.ensure_future(runs(runtime))
            loop.cancel()
            await waiting
            assert runtime.cluster()[0].pid != pid
            assert runtime.cluster()[0].restarts == 1
            await runs(runtime)
            assert not runtime._dispatcher._attempts

    asyncio.run(scenario())


def test_a_segment_that_ends_within_the_patience_costs_no_worker() -> None:
    async def scenario() -> None:
        graph, y = short()
        async with running(1, patience_seconds=0.2) as runtime:
            await runs(runtime)
            for _ in range(20):
                step = asyncio.ensure_future(runtime.run("short", graph, {"x:0": X}, [y]))
                await asyncio.sleep(0.001)
                step.cancel()
            await asyncio.sleep(0.5)
            await runs(runtime)
            assert runtime.cluster()[0].restarts == 0

    asyncio.run(scenario())
