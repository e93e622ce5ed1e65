"""Worker processes of this machine: shared memory is given back, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gradserve.server.fleet.base import FleetOptions
from gradserve.server.fleet.local import LocalFleet
from gradserve.workers.memory import Folder, remove_stale
from tests.server.fleet_fixture import Recorder, running


def test_a_large_tensor_is_shared_and_given_back() -> None:
    async def scenario() -> None:
        fleet = LocalFleet(FleetOptions(workers=1))
        await fleet.start(Recorder())
        array = np.arange(1 << 16, dtype=np.float32)
        value = fleet.put(array)
        read = fleet.get(value)
        fleet.free(value)
        view = read[5:]
        del read  # the view alone keeps the memory
        other = fleet.put(array + 1)
        assert np.array_equal(view, array[5:])
        assert not view.flags.writeable
        del view
        await asyncio.sleep(0)
        assert fleet.put(array).reference.block != other.reference.block
        await fleet.stop(1)

    asyncio.run(scenario())


_ORPHAN = """
import asyncio, os, numpy as np
from gradserve.server.fleet.base import FleetOptions
from gradserve.server.fleet.local import LocalFleet
async def main():
    fleet = LocalFleet(FleetOptions(workers=1))
    await fleet.start(None)
    fleet.put(np.ones(1 << 20))
    print(fleet._folder.path, fleet.workers()[0].pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_killed_coordinator_leaves_neither_workers_nor_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        folder, pid = coordinator.stdout.readline().split()
        coordinator.kill()
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        raise AssertionError("The worker outlived its coordinator.")
    assert os.path.exists(folder)
    remove_stale(Path(folder).parent)
    assert not os.path.exists(folder)


def test_a_living_coordinators_memory_is_left_alone() -> None:
    folder = Folder()
    remove_stale(Path(folder.path).parent)
    assert os.path.exists(folder.path)
    folder.close()
    assert not os.path.exists(folder.path)


def test_speeds_and_the_link_are_measured_at_the_start() -> None:
    async def scenario() -> None:
        async with running() as runtime:
            hardware = runtime.hardware
            assert len(hardware.speeds) == len(hardware) == 2
            assert all(1e7 < speed.flops_per_second < 1e15 for speed in hardware.speeds)
            assert 1e-5 < hardware.link.seconds < 1
            assert 1e7 < hardware.link.bytes_per_second < 1e13

    asyncio.run(scenario())
