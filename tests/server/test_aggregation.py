"""Aggregation in plans and in workers: rounds between workers, memory of a running sum, the same bits."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import raw
from gradserve.server.plan import Plan
from gradserve.server.runtime import Runtime, StepOptions
from tests.server.build import explained, placeholder, plan
from tests.server.fleet_fixture import running

METHODS = ["ADD_N", "EXPERIMENTAL_TREE", "EXPERIMENTAL_ACCUMULATE_N"]
MANY = 1 << 20


def used_by(tasks: list[int], method: str) -> tuple[Graph, Tensor]:
    """x, used on each of the tasks, and its gradient. x itself is on task 0."""
    graph = Graph()
    with graph.as_default():
        with graph.device("/task:0"):
            x = raw.Identity(placeholder(shape=(None,)))
        uses: list[Tensor] = []
        for k, task in enumerate(tasks):
            with graph.device(f"/task:{task}"):
                uses.append(x * float(k + 1))
        seeds = [placeholder("dy", shape=(None,))] * len(uses)
    (dx,) = gradients(uses, x, seeds, colocate_gradients_with_ops=True, aggregation_method=method)
    assert isinstance(dx, Tensor)
    return graph, dx


def rounds(made: Plan) -> int:
    """The most edges between workers on a way through the plan."""
    longest = [0] * len(made.segments)
    for index, segment in enumerate(made.segments):
        for follower in segment.followers:
            crosses = made.segments[follower].worker != segment.worker
            longest[follower] = max(longest[follower], longest[index] + crosses)
    return max(longest)


@pytest.mark.parametrize(("method", "expected"), [*zip(METHODS, [1, 3, 7], strict=True)])
def test_a_tree_takes_log_rounds_between_workers(method: str, expected: int) -> None:
    graph, dx = used_by(list(range(8)) * 2, method)
    made = plan(graph, [dx], workers=8, feeds=("x:0", "dy:0"))
    assert rounds(made) == expected
    # Whatever the method, each worker but one sends its partial sum, once.
    assert len(explained(graph, [dx], workers=8, feeds=("x:0", "dy:0")).crossings) == 7


def _peak_bytes(runtime: Runtime, worker: int) -> int:
    with open(f"/proc/{runtime.cluster()[worker].pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024


@pytest.mark.parametrize("workers", [1, 2])
def test_a_running_sum_takes_the_memory_of_one_however_many_terms(workers: int) -> None:
    peaks: dict[int, int] = {}
    dy = np.ones(MANY, np.float32)

    async def scenario(terms: int) -> None:
        graph, dx = used_by([k % workers for k in range(terms)], METHODS[2])
        async with running(workers) as runtime:
            await runtime.run("g", graph, {"x:0": dy[:1], "dy:0": dy[:1]}, [dx.name])
            before = _peak_bytes(runtime, 0)
            [result] = await runtime.run("g", graph, {"x:0": dy, "dy:0": dy}, [dx.name])
            assert result[0] == terms * (terms + 1) / 2
            peaks[terms] = _peak_bytes(runtime, 0) - before

    for terms in (4, 16):
        asyncio.run(scenario(terms))
    assert peaks[16] - peaks[4] < 0.5 * dy.nbytes, peaks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
def test_workers_do_not_change_the_bits_of_a_sum(method: str, sparse: bool) -> None:
    async def scenario() -> list[bytes]:
        answers: list[bytes] = []
        for workers in (1, 2, 4):
            async with running(workers) as runtime:
                answers.append(await sum_of_uses(runtime, method, sparse))
        return answers

    answers = asyncio.run(scenario())
    assert answers[1:] == answers[:1] * 2


@pytest.mark.xdist_group("ray")
def test_a_cluster_does_not_change_the_bits_of_a_sum(ray_cluster: Any) -> None:
    async def scenario(fleet: str) -> list[bytes]:
        async with running(2, fleet=fleet) as runtime:
            return [await sum_of_uses(runtime, method, sparse) for method in METHODS for sparse in (False, True)]

    assert asyncio.run(scenario("ray")) == asyncio.run(scenario("local"))


async def sum_of_uses(runtime: Runtime, method: str, sparse: bool) -> bytes:
    """The gradient of a table with uses on as many as four workers."""
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    graph = Graph()
    with graph.as_default():
        table = placeholder(shape=(6, 4))
        uses: list[Tensor] = []
        for k in range(8):
            with graph.device(f"/task:{k % 4}"):
                rows = np.array([k % 6, 2, k % 3], np.int32)
                read = raw.GatherV2(table, rows, 0) if sparse else table
                uses.append(raw.Tanh(read * graph.constant(1 / (k + 3), dtypes.float32)))
    (dx,) = gradients(uses, table, colocate_gradients_with_ops=True, aggregation_method=method)
    assert dx is not None
    parts = [dx.values, dx.indices] if isinstance(dx, IndexedSlices) else [dx]
    results = await runtime.run(
        (method, sparse), graph, {"x:0": x}, [part.name for part in parts],
        options=StepOptions(allow_soft_placement=True),
    )  # fmt: skip
    return b"".join(result.tobytes() for result in results)
