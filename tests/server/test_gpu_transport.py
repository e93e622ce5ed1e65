"""Tensors that go from one worker's device to another's, on a fleet whose workers have the stand-in for GPUs.

Each answer is compared bit for bit with that of workers without one, and in the end no worker holds anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.fleet.ray import RayFleet
from gradserve.server.runtime import Runtime
from tests.server.build import placeholder
from tests.server.fleet_fixture import running
from tests.server.test_chaos import a_living_worker, train, undisturbed
from tests.server.test_crossing_bytes import layers
from tests.server.test_frees import expected, zigzag
from tests.standin.actor import StandInActor

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("standin")]

SIZE = 1 << 16  # floats: 256 KiB, which no message takes along
VALUES = np.linspace(-1, 1, SIZE, dtype=np.float32)
HANG_SECONDS = 60


@pytest.fixture
def standin(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradserve.server.fleet.ray_cluster.Actor", StandInActor)


@asynccontextmanager
async def gpus(workers: int = 2, **options: Any) -> AsyncIterator[Runtime]:
    """A runtime whose workers have a device each; in the end they must hold nothing."""
    async with running(workers, fleet="ray", engine="cupy", attempts=20, **options) as runtime:
        yield runtime
        await at_rest(runtime)


async def inspect(runtime: Runtime) -> list[dict[str, int]]:
    """What each worker holds."""
    import ray

    fleet = runtime._fleet
    assert isinstance(fleet, RayFleet)
    calls = [slot.actor.inspect.options(concurrency_group="life").remote() for slot in fleet._slots]
    return await asyncio.to_thread(ray.get, calls)


async def at_rest(runtime: Runtime) -> None:
    """Returns when no worker offers, moves or keeps a tensor any more, and none is awaited."""
    fleet = runtime._fleet
    assert isinstance(fleet, RayFleet)
    import ray.exceptions

    async with asyncio.timeout(HANG_SECONDS):
        while True:
            if all(worker.state == "ready" for worker in runtime.cluster()):
                with contextlib.suppress(ray.exceptions.RayActorError):  # one was killed a moment ago
                    held = await inspect(runtime)
                    busy = any(worker[what] for worker in held for what in ("offered", "busy", "steps"))
                    if not busy and not any(value.awaited for value in fleet._values):
                        break
            await asyncio.sleep(0.05)


def test_answers_are_the_same_bits_and_pass_no_host() -> None:
    turns, workers = 8, 3
    graph, y = zigzag(turns, workers)

    async def scenario() -> None:
        async with gpus(workers) as runtime:
            copied = 0
            for _ in range(3):
                [answer] = await runtime.run("g", graph, {"x:0": VALUES}, [y])
                assert answer.tobytes() == expected(VALUES, turns).tobytes()
                down = sum(worker["copied_down"] for worker in await inspect(runtime))
                assert down - copied == VALUES.nbytes  # what was fetched
                copied = down

    asyncio.run(scenario())


def test_bytes_that_cross_are_those_that_the_plan_says() -> None:
    graph, fetches, shape = layers(640)
    x = {"x:0": (np.random.default_rng(1).normal(size=shape) / shape[-1]).astype(np.float32)}

    async def scenario() -> list[list[bytes]]:
        answers: list[list[bytes]] = []
        for transport in ("nccl", "host"):
            async with gpus(gpu_transport=transport) as runtime:
                report = runtime.explain(graph, {"x:0": shape}, fetches)
                assert report.crossing_bytes > 0
                for _ in range(2):
                    before = runtime.crossed_bytes
                    found = await runtime.run("g", graph, x, fetches)
                    answers.append([array.tobytes() for array in found])
                    assert runtime.crossed_bytes - before == report.crossing_bytes
                assert any(worker["links"] for worker in await inspect(runtime)) == (transport == "nccl")
        return answers

    first, *others = asyncio.run(scenario())
    assert others == [first] * 3


def test_what_is_fetched_and_read_elsewhere_arrives_at_both() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device("/task:0"):
            y = raw.Tanh(placeholder(shape=(None,)))
        with graph.device("/task:1"):
            z = raw.Exp(y)
            count = raw.Size(y)

    async def scenario() -> None:
        async with gpus() as runtime:
            for size in (SIZE, 4):
                x = np.linspace(-1, 1, size, dtype=np.float32)
                got = await runtime.run("g", graph, {"x:0": x}, [y.name, z.name, count.name])
                assert got[0].tobytes() == np.tanh(x).tobytes()
                assert got[1].tobytes() == np.exp(np.tanh(x)).tobytes()
                assert got[2] == size

    asyncio.run(scenario())


def test_a_long_chain_leaves_little_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, y = zigzag(24)
    offered: list[int] = []

    async def scenario() -> None:
        async with gpus() as runtime:
            await runtime.run("g", graph, {"x:0": VALUES}, [y])
            await at_rest(runtime)
            before = sum(worker["device_bytes"] for worker in await inspect(runtime))
            step = asyncio.ensure_future(runtime.run("g", graph, {"x:0": VALUES}, [y]))
            while not step.done():
                offered.append(sum(worker["offered"] for worker in await inspect(runtime)))
            await at_rest(runtime)
            assert sum(worker["device_bytes"] for worker in await inspect(runtime)) == before

    asyncio.run(scenario())
    assert max(offered) <= 4, offered


@pytest.mark.slow
def test_workers_killed_at_any_moment_change_nothing(summarise: Callable[[str], None]) -> None:
    steps = 6
    right, _ = undisturbed(steps)
    chance = random.Random(1)
    killed: set[int] = set()
    slowest: list[float] = []

    async def kill(runtime: Runtime, start: float) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        pid = await a_living_worker(runtime, chance, killed)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)

    async def scenario() -> None:
        async with gpus(3) as runtime:
            await train(runtime, 1)
            answers, times = await train(runtime, steps, kill)
            slowest.append(max(times))
            assert answers == right
            await at_rest(runtime)
            assert sum(worker.restarts for worker in runtime.cluster()) <= len(killed)  # nobody died by itself

    asyncio.run(scenario())
    summarise(f"{len(killed)} kills in {steps} steps between GPUs: the slowest step took {slowest[0]:.1f} s")


def test_a_worker_that_is_stopped_is_replaced_and_the_step_ends() -> None:
    right, _ = undisturbed(3)
    stopped: list[int] = []

    async def stop(runtime: Runtime, start: float) -> None:
        if not stopped:
            await asyncio.sleep(0.02)
            stopped.append(runtime.cluster()[1].pid)
            os.kill(stopped[0], signal.SIGSTOP)

    async def scenario() -> None:
        async with gpus(stall_timeout_seconds=2.0) as runtime:
            await train(runtime, 1)
            answers, _ = await train(runtime, 3, stop)
            assert answers == right
            assert runtime.cluster()[1].pid not in (0, stopped[0])

    asyncio.run(scenario())


def test_cancelled_steps_leave_nothing_behind() -> None:
    turns = 8
    graph, y = zigzag(turns)
    chance = random.Random(5)

    async def scenario() -> None:
        async with gpus() as runtime:
            await runtime.run("g", graph, {"x:0": VALUES}, [y])
            cancelled = 0
            for _ in range(20):
                step = asyncio.ensure_future(runtime.run("g", graph, {"x:0": VALUES}, [y]))
                await asyncio.sleep(chance.uniform(0, 0.05))
                step.cancel()
                [outcome] = await asyncio.gather(step, return_exceptions=True)
                cancelled += isinstance(outcome, asyncio.CancelledError)
            assert cancelled
            await at_rest(runtime)
            [answer] = await runtime.run("g", graph, {"x:0": VALUES}, [y])
            assert answer.tobytes() == expected(VALUES, turns).tobytes()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"STANDIN_GPU": "the only one"}, "workers 0 and 1 through host memory: they share one GPU"),
        ({"STANDIN_NCCL": "none"}, "Worker 1 hands tensors to other GPUs through host memory: CuPy finds no NCCL"),
        ({"STANDIN_NCCL": "broken"}, "through host memory from now on: NCCL_ERROR_SYSTEM_ERROR"),
    ],
)
def test_where_nccl_does_not_serve_tensors_pass_the_host_and_that_is_said(
    setting: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = 6
    graph, y = zigzag(turns)
    environment = {"engine": "cupy", **setting}

    def settings(engine: str, threads: int, compile_now: bool) -> dict[str, str]:
        return environment

    monkeypatch.setattr("gradserve.server.fleet.ray_cluster.environment", settings)

    async def scenario() -> None:
        async with gpus() as runtime:
            for _ in range(2):
                [answer] = await runtime.run("g", graph, {"x:0": VALUES}, [y])
                assert answer.tobytes() == expected(VALUES, turns).tobytes()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    found = [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert 1 <= len(found) <= 2, caplog.text  # once a way, or a worker
