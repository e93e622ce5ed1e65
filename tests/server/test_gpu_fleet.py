"""Fleets whose workers run on GPUs: their answers, memory and losses; with two GPUs, tensors that go by NCCL."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal

import numpy as np
import pytest

from gradserve.errors import LimitExceeded
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.runtime import Runtime
from tests.devices import devices, needs_gpus
from tests.server.build import placeholder
from tests.server.fleet_fixture import running
from tests.server.test_chaos import Disturb, a_living_worker, train, undisturbed

pytestmark = needs_gpus(1)
two_gpus = pytest.mark.skipif(devices() < 2, reason=f"needs 2 GPUs, and there are {devices()}")

STEPS = 4
VALUES = np.linspace(-1, 1, 1 << 20, dtype=np.float32)


def training(fleet: str, disturb: Disturb | None = None, **options: object) -> list[bytes]:
    """The answers of a training over two workers with GPUs."""

    async def scenario() -> list[bytes]:
        async with running(2, fleet=fleet, engine="cupy", attempts=20, **options) as runtime:
            return (await train(runtime, STEPS, disturb))[0]

    return asyncio.run(scenario())


def killer(seed: int) -> Disturb:
    """Kills one worker in each step."""
    chance = random.Random(seed)
    killed: set[int] = set()

    async def kill(runtime: Runtime, start: float) -> None:
        await asyncio.sleep(chance.uniform(0, 0.02))
        pid = await a_living_worker(runtime, chance, killed)
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    return kill


def close(got: list[bytes], expected: list[bytes]) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.frombuffer(mine, np.float32), np.frombuffer(theirs, np.float32), atol=1e-2)


def test_training_on_a_gpu_follows_the_reference_and_survives_kills_bit_for_bit() -> None:
    answers = training("local")
    close(answers, undisturbed(STEPS)[0])
    assert training("local", killer(3)) == answers


def test_a_worker_over_its_device_memory_names_the_tensor_and_lives_on() -> None:
    graph = Graph()
    with graph.as_default():
        size = raw.Placeholder(dtype="int32", shape=(1,), name="size")
        y = raw.Sum(raw.Fill(size, np.float32(1)), np.array([0], np.int32))

    async def scenario() -> None:
        async with running(1, engine="cupy", memory_limit_bytes=64 << 20) as runtime:
            [pid] = [worker.pid for worker in runtime.cluster()]
            with pytest.raises(LimitExceeded, match="found no memory on its worker for Fill:0"):
                await runtime.run("g", graph, {"size:0": np.array([1 << 27], np.int32)}, [y.name])
            [total] = await runtime.run("g", graph, {"size:0": np.array([1 << 23], np.int32)}, [y.name])
            assert total == 1 << 23
            assert [worker.pid for worker in runtime.cluster()] == [pid]

    asyncio.run(scenario())


@pytest.fixture
def alone() -> None:
    """A Ray of the fleet's own, which counts the GPUs that there are."""
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("the Ray of other tests runs in this process: select these alone, with -m gpu")


@pytest.mark.usefixtures("alone")
@two_gpus
def test_training_over_two_gpus_has_the_same_bits_by_nccl_by_the_host_and_with_kills(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    by_host = training("ray", gpu_transport="host")
    assert "by NCCL" not in caplog.text
    by_nccl = training("ray")
    assert "Tensors go by NCCL between the GPU of worker" in caplog.text
    assert "through host memory" not in caplog.text
    close(by_nccl, undisturbed(STEPS)[0])
    assert by_nccl == by_host
    assert training("ray", killer(5)) == by_host


@pytest.mark.usefixtures("alone")
@two_gpus
def test_bytes_between_two_gpus_are_those_that_the_plan_says() -> None:
    graph = Graph()
    with graph.as_default():
        y = placeholder(shape=(len(VALUES),))
        for turn in range(8):
            with graph.device(f"/task:{turn % 2}"):
                y = raw.Tanh(y)
    expected = VALUES
    for _ in range(8):
        expected = np.tanh(expected)

    async def scenario() -> None:
        async with running(2, fleet="ray", engine="cupy") as runtime:
            report = runtime.explain(graph, {"x:0": VALUES.shape}, [y.name])
            for _ in range(3):
                before = runtime.crossed_bytes
                [answer] = await runtime.run("g", graph, {"x:0": VALUES}, [y.name])
                assert runtime.crossed_bytes - before == report.crossing_bytes == 7 * VALUES.nbytes
                np.testing.assert_allclose(answer, expected, rtol=1e-5)

    asyncio.run(scenario())
