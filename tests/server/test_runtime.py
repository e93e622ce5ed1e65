"""Graphs over real worker processes: right answers, also when workers die."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.errors import Cancelled, GradserveError, InvalidShape, LimitExceeded
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.runtime import Program, Runtime
from tests.server.build import placeholder, zigzag
from tests.server.fleet_fixture import running

VECTOR = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


def reference(turns: int, x: np.ndarray) -> np.ndarray:
    for _ in range(turns + 1):
        x = np.tanh(x)
    return x


@pytest.mark.parametrize("size", [4, 1 << 16])
def test_a_chain_over_two_workers_gives_the_chain_of_kernels(size: int, fleet: str) -> None:
    graph = Graph()
    with graph.as_default():
        y = placeholder(shape=(None,))
        for turn in range(4):
            with graph.device(f"/task:{turn % 2}"):
                y = raw.Tanh(y)
    x = np.linspace(-1, 1, size, dtype=np.float32)

    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            for _ in range(3):
                [result] = await runtime.run("g", graph, {"x:0": x}, [y.name])
                assert np.array_equal(result, reference(3, x))

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [4, 1 << 16])
def test_lists_and_maps_cross_workers(size: int) -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder(shape=(None, None))
        handle = raw.TensorListFromTensor(x, np.int32(-1), element_dtype="float32")
        with graph.device("/task:1"):
            rows = raw.TensorListStack(handle, np.int32(-1), element_dtype="float32")
            entries = raw.TensorMapInsert(raw.EmptyTensorMap(), np.int32(3), rows)
        with graph.device("/task:0"):
            y = raw.Square(raw.TensorMapLookup(entries, np.int32(3), value_dtype="float32"))
        [dx] = gradients([y], [x])
    assert isinstance(dx, Tensor)
    value = np.arange(3 * size, dtype=np.float32).reshape(3, size)

    async def scenario() -> None:
        async with running() as runtime:
            result, gradient = await runtime.run("g", graph, {"x:0": value}, [y.name, dx.name])
            assert np.array_equal(result, value**2)
            assert np.array_equal(gradient, 2 * value)

    asyncio.run(scenario())


def network(layers: int, devices: int) -> tuple[Graph, list[str]]:
    """An MLP, its layers dealt out over the workers, and its gradients beside them."""
    graph = Graph()
    draw = np.random.default_rng(7)
    with graph.as_default():
        y: Tensor = placeholder(shape=(32, 64))
        weights: list[Tensor] = []
        for layer in range(layers):
            with graph.device(f"/task:{layer % devices}"):
                start = graph.constant(draw.normal(size=(64, 64)).astype(np.float32) / 8, name=f"w{layer}")
                weights.append(raw.Identity(start))
                y = raw.Tanh(y @ weights[-1]) + y
    result = gradients([y], weights, colocate_gradients_with_ops=True)
    return graph, [y.name, *(entry.name for entry in result if isinstance(entry, Tensor))]


def test_any_number_of_workers_gives_the_same_bits(fleet: str) -> None:
    x = {"x:0": np.sin(np.arange(32 * 64, dtype=np.float32)).reshape(32, 64)}
    answers: list[list[np.ndarray]] = []

    async def scenario(workers: int) -> None:
        graph, fetches = network(6, workers)
        async with running(workers, fleet=fleet) as runtime:
            assert len(fetches) == 7
            used = {node.worker for node in runtime.explain(graph, {"x:0": (32, 64)}, fetches).nodes}
            assert len(used) == workers
            answers.append([array.copy() for array in await runtime.run("g", graph, x, fetches)])

    for workers in (1, 2, 4):
        asyncio.run(scenario(workers))
    for other in answers[1:]:
        for mine, theirs in zip(answers[0], other, strict=True):
            assert mine.tobytes() == theirs.tobytes()


def test_a_sum_has_the_same_bits_where_its_term_is_made_and_elsewhere(fleet: str) -> None:
    """Transposed in place, a matrix would be added up in another order than the copy that crosses."""
    x = {"x:0": np.random.default_rng(3).normal(size=(300, 257)).astype(np.float32)}
    answers: list[list[np.ndarray]] = []

    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            for reader in range(2):
                graph = Graph()
                with graph.as_default():
                    with graph.device("/task:0"):
                        turned = raw.Transpose(placeholder(shape=(300, 257)), np.array([1, 0]))
                    with graph.device(f"/task:{reader}"):
                        sums = [raw.Sum(turned, np.array(axes)) for axes in ([0], [1], [0, 1])]
                answers.append(await runtime.run(reader, graph, x, [sum_.name for sum_ in sums]))

    asyncio.run(scenario())
    for near, far in zip(*answers, strict=True):
        assert near.tobytes() == far.tobytes()


def test_workers_killed_at_any_moment_do_not_change_the_answer(fleet: str) -> None:
    graph, y = zigzag(5)

    async def scenario() -> None:
        async with running(fleet=fleet, attempts=20) as runtime:
            for round_number in range(6):
                step = asyncio.create_task(runtime.run("g", graph, {"x:0": VECTOR}, [y.name]))
                await asyncio.sleep(0.0005 * round_number)
                pid = runtime.cluster()[round_number % 2].pid
                if pid:
                    os.kill(pid, signal.SIGKILL)
                [result] = await asyncio.wait_for(step, 30)
                assert np.array_equal(result, reference(5, VECTOR))

    asyncio.run(scenario())


def test_a_kernels_error_comes_back_and_the_worker_lives_on(fleet: str) -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder("x")
        z = x + placeholder("y")

    async def scenario(runtime: Runtime) -> None:
        pids = [worker.pid for worker in runtime.cluster()]
        with pytest.raises(GradserveError, match="AddV2") as raised:
            await runtime.run("g", graph, {"x:0": VECTOR, "y:0": VECTOR[:3]}, [z.name])
        assert raised.value.metadata["node"] == "AddV2"
        [result] = await runtime.run("g", graph, {"x:0": VECTOR, "y:0": VECTOR}, [z.name])
        assert np.array_equal(result, VECTOR + VECTOR)
        assert pids == [worker.pid for worker in runtime.cluster()]

    async def main() -> None:
        async with running(fleet=fleet) as runtime:
            await scenario(runtime)

    asyncio.run(main())


def test_a_builder_is_called_once_for_all_who_wait(fleet: str) -> None:
    graph, y = zigzag(1)
    calls: list[int] = []

    def build() -> Program:
        calls.append(1)
        return Program(graph, (y.name,))

    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            for _ in range(2):
                steps = [runtime.run("g", build, {"x:0": VECTOR}) for _ in range(8)]
                for [result] in await asyncio.gather(*steps):
                    assert np.array_equal(result, reference(1, VECTOR))

    asyncio.run(scenario())
    assert len(calls) == 1


def test_a_cancelled_step_is_abandoned_and_the_next_one_runs(fleet: str) -> None:
    graph, y = zigzag(3)

    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])
            for _ in range(20):
                step = asyncio.create_task(runtime.run("g", graph, {"x:0": VECTOR}, [y.name]))
                await asyncio.sleep(0)
                step.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await step
            [result] = await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])
            assert np.array_equal(result, reference(3, VECTOR))

    asyncio.run(scenario())


def test_one_step_too_many_is_refused(fleet: str) -> None:
    graph, y = zigzag(0)

    async def scenario() -> None:
        async with running(fleet=fleet, queued_steps=2) as runtime:
            await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])
            steps = [runtime.run("g", graph, {"x:0": VECTOR}, [y.name]) for _ in range(3)]
            results = await asyncio.gather(*steps, return_exceptions=True)
            assert [isinstance(result, LimitExceeded) for result in results] == [False, False, True]

    asyncio.run(scenario())


def test_variables_outlive_the_death_of_every_worker(fleet: str) -> None:
    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            variables = runtime.variables()
            large = np.arange(1 << 16, dtype=np.float64)
            variables.set("w", large)
            for worker in runtime.cluster():
                os.kill(worker.pid, signal.SIGKILL)
            assert np.array_equal(variables.get("w"), large)
            assert variables.names() == ["w"]
            variables.close()

    asyncio.run(scenario())


def test_errors_travel_between_processes_whole() -> None:
    for error in (InvalidShape("a and b differ.", a=1), Cancelled("gone", step=3)):
        error.message = f"node: {error.message}"
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.message, copy.metadata) == (type(error), error.message, error.metadata)
