"""What only a Ray fleet does: whole steps at once, machines that die, workers that join later, clear errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradserve.errors import Unavailable, Unsupported
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.fleet.base import Submission, Ticket
from gradserve.server.fleet.ray import RayFleet, Stored
from gradserve.server.fleet.ray_cluster import RayOptions
from gradserve.server.runtime import Runtime, StepOptions
from tests.server.build import placeholder, zigzag
from tests.server.fleet_fixture import Recorder, running
from tests.server.test_chaos import train, undisturbed

pytestmark = pytest.mark.xdist_group("ray")

VECTOR = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
LARGE = np.linspace(-1, 1, 1 << 16, dtype=np.float32)


def reference(turns: int, x: np.ndarray) -> np.ndarray:
    for _ in range(turns + 1):
        x = np.tanh(x)
    return x


def test_all_segments_of_a_step_are_submitted_before_the_first_has_run(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, y = zigzag(3)
    log: list[str] = []
    submit = RayFleet.submit

    def noted(self: RayFleet, worker: int, submission: Submission) -> Ticket:
        log.append("submitted")
        return submit(self, worker, submission)

    async def scenario() -> None:
        async with running(fleet="ray") as runtime:
            finished = runtime._dispatcher.finished

            def note(*event: Any) -> None:
                log.append("finished")
                finished(*event)

            monkeypatch.setattr(runtime._dispatcher, "finished", note)
            monkeypatch.setattr(RayFleet, "submit", noted)
            await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])

    asyncio.run(scenario())
    assert log == ["submitted"] * 4 + ["finished"] * 4


def test_two_hundred_steps_leave_nothing_in_the_object_store(ray_cluster: Any) -> None:
    graph = Graph()
    with graph.as_default():
        y = placeholder(shape=(None,))
        for turn in range(3):
            with graph.device(f"/task:{turn % 2}"):
                y = raw.Tanh(y)

    async def scenario() -> None:
        async with running(fleet="ray") as runtime:
            for _ in range(200):  # 200 steps of four tensors of 256 KiB: as much as the store holds
                [result] = await runtime.run("g", graph, {"x:0": LARGE}, [y.name])
                assert result[0] == reference(2, LARGE)[0]
            assert isinstance(runtime._fleet, RayFleet)
            assert list(runtime._fleet._values) == []
            assert runtime._dispatcher._attempts == {}

    asyncio.run(scenario())


def test_a_machine_that_dies_takes_neither_variables_nor_steps_with_it(ray_cluster: Any) -> None:
    import ray

    node = ray_cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    graph, y = zigzag(2)

    async def scenario() -> None:
        async with running(fleet="ray", attempts=20, stall_timeout_seconds=0) as runtime:
            fleet = runtime._fleet
            assert isinstance(fleet, RayFleet)
            [there] = [k for k, slot in enumerate(fleet._slots) if slot.current and slot.current.node == node.node_id]
            holder = Graph()
            with holder.as_default(), holder.device(f"/task:{there}"):
                handle = raw.VarHandleOp(dtype=dtypes.float32, shape=LARGE.shape, shared_name="w", name="w")
                raw.AssignVariableOp.outputs(handle, raw.Exp(placeholder(shape=(None,))), name="assign")
            variables = runtime.variables()
            await runtime.run("v", holder, {"x:0": LARGE}, [], ["assign"], variables=variables)
            ray_cluster.remove_node(node, allow_graceful=False)
            [result] = await asyncio.wait_for(runtime.run("g", graph, {"x:0": VECTOR}, [y.name]), 60)
            assert np.array_equal(result, reference(2, VECTOR))
            value = variables._values["w"]
            assert isinstance(value, Stored)
            assert variables.get("w").tobytes() == np.exp(LARGE).tobytes()
            assert np.array_equal(ray.get(value.reference), np.exp(LARGE))
            variables.close()

    asyncio.run(scenario())


def test_a_machine_that_dies_in_a_step_changes_no_answer(ray_cluster: Any, summarise: Callable[[str], None]) -> None:
    """Each worker has a variable of its own, which the step updates: once, whatever happens."""
    right, typical = undisturbed(3)
    node = ray_cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    died: list[float] = []

    async def die(runtime: Runtime, start: float) -> None:
        if not died:
            assert len({worker.node for worker in runtime.cluster()}) == 2
            await asyncio.sleep(typical / 3)
            died.append(time.perf_counter())
            await asyncio.to_thread(ray_cluster.remove_node, node, allow_graceful=False)

    async def scenario() -> None:
        async with running(fleet="ray", attempts=20) as runtime:
            answers, times = await train(runtime, 3, die)
            summarise(f"A machine died in a step: the slowest step took {max(times):.1f} s")
            assert answers == right
            assert len({worker.node for worker in runtime.cluster()}) == 1

    asyncio.run(scenario())


def test_a_machine_that_dies_with_no_room_elsewhere_makes_its_worker_unavailable(ray_cluster: Any) -> None:
    node = ray_cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
    graph, y = zigzag(2)

    async def scenario() -> None:
        async with running(fleet="ray", threads=4, start_timeout_seconds=10.0, attempts=20) as runtime:
            assert [worker.state for worker in runtime.cluster()] == ["ready", "ready"]
            fleet = runtime._fleet
            assert isinstance(fleet, RayFleet)
            await asyncio.to_thread(ray_cluster.remove_node, node, allow_graceful=False)
            async with asyncio.timeout(60):
                while runtime.cluster()[0].state == runtime.cluster()[1].state:
                    await asyncio.sleep(0.01)
            with pytest.raises(Unavailable, match="no room for this worker"):
                await asyncio.wait_for(runtime.run("g", graph, {"x:0": VECTOR}, [y.name]), 60)
            assert len(fleet.present) == 1
            soft = StepOptions(allow_soft_placement=True)
            [result] = await runtime.run("g", graph, {"x:0": VECTOR}, [y.name], options=soft)
            assert np.array_equal(result, reference(2, VECTOR))

    asyncio.run(scenario())


def test_workers_without_room_join_when_the_cluster_grows(ray_cluster: Any) -> None:
    graph = Graph()
    with graph.as_default():
        y = raw.Tanh(placeholder())

    async def scenario() -> None:
        async with running(2, fleet="ray", threads=4, start_timeout_seconds=15.0) as runtime:
            states = [worker.state for worker in runtime.cluster()]
            assert states == ["ready", "failed"]
            [result] = await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])
            assert np.array_equal(result, np.tanh(VECTOR))
            node = ray_cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
            async with asyncio.timeout(60):
                while len(runtime._fleet.present) < 2:
                    await asyncio.sleep(0.1)
            assert len({worker.node for worker in runtime.cluster()}) == 2
            [result] = await runtime.run("g", graph, {"x:0": VECTOR}, [y.name])
            assert np.array_equal(result, np.tanh(VECTOR))
        ray_cluster.remove_node(node)

    asyncio.run(scenario())


def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    async def scenario() -> None:
        fleet = RayFleet(RayOptions(address="127.0.0.1:1"))
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 .*ray start --head"):
            await fleet.start(Recorder())

    asyncio.run(scenario())


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unsupported, match=r"gradserve\[ray\]"):
        RayFleet(RayOptions())


def test_a_server_whose_ray_node_ends_says_so_and_ends() -> None:
    command = [sys.executable, "-m", "gradserve.server", "serve", "--fleet", "ray", "--workers", "1", "--port", "0"]
    with subprocess.Popen(
        [*command, "--engine", "numpy", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert "address" in server.stdout.readline()
            os.kill(child(server.pid, "raylet"), signal.SIGKILL)
            _, said = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 3, said
    assert "Ray node has ended" in said


def child(parent: int, name: str) -> int:
    """The process of a name that another one has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            pid, _, rest = stat.read_text().partition(" ")
            if rest.startswith(f"({name})") and int(rest.rpartition(")")[2].split()[1]) == parent:
                return int(pid)
    raise AssertionError(f"process {parent} has no child {name}")
