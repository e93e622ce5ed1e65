"""A step frees a tensor after its last use, on every worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradserve.errors import LimitExceeded
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.fleet.base import Submission
from gradserve.server.fleet.ray import RayFleet
from gradserve.server.runtime import Runtime
from tests.server.build import placeholder
from tests.server.fleet_fixture import running

SIZE = 1 << 18  # floats: a tensor of 1 MiB
TURNS = 24


def zigzag(turns: int = TURNS, workers: int = 2) -> tuple[Graph, str]:
    """Sums that change workers at every node: most tensors are read on two."""
    graph = Graph()
    with graph.as_default():
        before = y = placeholder(shape=(None,))
        for turn in range(turns):
            with graph.device(f"/task:{turn % workers}"):
                before, y = y, raw.Tanh(y) + raw.Reshape(before, np.array([-1], np.int32))
    return graph, y.name


def expected(x: np.ndarray, turns: int = TURNS) -> np.ndarray:
    before = y = x
    for _ in range(turns):
        before, y = y, np.tanh(y) + before
    return y


def _peak_bytes(runtime: Runtime, worker: int) -> int:
    with open(f"/proc/{runtime.cluster()[worker].pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024


@pytest.mark.xdist_group("ray")
def test_a_long_chain_leaves_little_in_the_object_store(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There every handle is made when the step is submitted: only what a segment has written takes memory."""
    graph, y = zigzag()
    written: list[Any] = []
    held: list[int] = []
    finish = RayFleet._finish

    def watching(self: RayFleet, worker: int, life: Any, run: Any, *rest: Any) -> None:
        written.extend(run.outputs)
        finish(self, worker, life, run, *rest)
        held.append(sum(value.reference is not None for value in written))

    async def scenario() -> None:
        async with running(fleet="ray") as runtime:
            monkeypatch.setattr(RayFleet, "_finish", watching)
            large = np.linspace(-1, 1, SIZE, dtype=np.float32)
            [result] = await runtime.run("g", graph, {"x:0": large}, [y])
            np.testing.assert_allclose(result, expected(large), rtol=1e-5)

    asyncio.run(scenario())
    assert len(written) == TURNS
    assert max(held) <= 4, held


@pytest.mark.parametrize("engine", ["numpy", "xla"])
def test_a_long_chain_over_two_workers_takes_little_memory(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, y = zigzag()
    small, large = (np.linspace(-1, 1, size, dtype=np.float32) for size in (9, SIZE))
    blocks: list[int] = []

    async def scenario() -> None:
        async with running(engine=engine, compile_now=True) as runtime:
            fleet: Any = runtime._fleet
            submit = fleet.submit

            def watching(worker: int, submission: Submission) -> None:
                blocks.append(len(fleet._blocks))
                submit(worker, submission)

            monkeypatch.setattr(fleet, "submit", watching)
            await runtime.run("g", graph, {"x:0": small}, [y])
            before = [_peak_bytes(runtime, worker) for worker in range(2)]
            [result] = await runtime.run("g", graph, {"x:0": large}, [y])
            np.testing.assert_allclose(result, expected(large), rtol=1e-5)
            after = [_peak_bytes(runtime, worker) for worker in range(2)]
            if engine == "numpy":  # a compiled worker grows by its programs, whatever its tensors take
                # Each makes 24 tensors of a MiB and maps 12 of the other's.
                assert max(b - a for a, b in zip(before, after, strict=True)) < 12 * large.nbytes

    asyncio.run(scenario())
    assert max(blocks) <= 4, blocks  # the feed, and what is on its way


@pytest.mark.parametrize("engine", ["numpy", "xla"])
def test_what_a_worker_keeps_does_not_change_when_what_it_came_from_is_freed(engine: str) -> None:
    """Views of another worker's tensors outlive them: kept outputs, and new values of variables."""
    graph = Graph()
    with graph.as_default():
        x = placeholder(shape=(None,))
        with graph.device("/task:1"):
            handle = raw.VarHandleOp(dtype="float32", shape=None, shared_name="w")
        with graph.device("/task:0"):
            y = raw.Sin(x)
        with graph.device("/task:1"):
            kept = raw.Reshape(y, np.array([-1, 2], np.int32))
            assigned = raw.AssignVariableOp.run(handle, y)
            z = raw.Exp(raw.Sum(kept, np.array([0, 1], np.int32)))
        for k in range(4):  # more and more blocks: the first worker must use the freed one again
            with graph.device("/task:0"):
                sent = [raw.Cos(x + z * float(j)) for j in range(k + 2)]
            with graph.device("/task:1"):
                z = raw.Tanh(raw.Sum(raw.AddN(sent), np.array([0], np.int32)))
        with graph.device("/task:1"), graph.control_dependencies([assigned, z.node]):
            last = kept + raw.Reshape(z, np.array([1, 1], np.int32))
            read = raw.ReadVariableOp(handle, dtype="float32")
    x_value = np.linspace(-1, 1, SIZE, dtype=np.float32)

    async def scenario() -> Sequence[np.ndarray]:
        async with running(engine=engine, compile_now=True) as runtime:
            variables = runtime.variables()
            results = await runtime.run(
                "g", graph, {"x:0": x_value}, [last.name, read.name, z.name], variables=variables
            )
            held = variables.get("w").copy()
            return [*(result.copy() for result in results), held]

    last_value, read_value, z_value, held = asyncio.run(scenario())
    np.testing.assert_allclose(last_value, np.sin(x_value).reshape(-1, 2) + z_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read_value, np.sin(x_value), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(held, read_value)


def test_a_worker_over_its_memory_limit_names_the_tensor_and_lives_on(fleet: str) -> None:
    graph = Graph()
    with graph.as_default():
        size = raw.Placeholder(dtype="int32", shape=(1,), name="size")
        # No plan can know how large it is, so only the worker can refuse it.
        y = raw.Sum(raw.Fill(size, np.float32(1)), np.array([0], np.int32))

    async def scenario() -> None:
        async with running(1, fleet=fleet, memory_limit_bytes=64 << 20) as runtime:
            [pid] = [worker.pid for worker in runtime.cluster()]
            with pytest.raises(LimitExceeded, match="found no memory on its worker for Fill:0") as raised:
                await runtime.run("g", graph, {"size:0": np.array([1 << 27], np.int32)}, [y.name])
            assert raised.value.metadata["node"] == "Fill"
            [total] = await runtime.run("g", graph, {"size:0": np.array([1 << 23], np.int32)}, [y.name])
            assert total == 1 << 23
            assert [worker.pid for worker in runtime.cluster()] == [pid]

    asyncio.run(scenario())
