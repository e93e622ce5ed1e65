"""Workers hold the programs of the plans that there are, and no more."""

from __future__ import annotations

import asyncio

import numpy as np

from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.fleet.base import Loaded
from tests.server.build import placeholder
from tests.server.fleet_fixture import running

X = np.array([1, 2, 3, 4], np.float32)


def test_the_least_recently_used_programs_make_room() -> None:
    loaded = Loaded(100)
    assert loaded.add(1, 40) == []
    assert loaded.add(2, 40) == []
    assert loaded.use(1)
    assert loaded.add(3, 40) == [2]
    assert not loaded.use(2)


def test_a_discarded_program_is_dropped_with_the_next_one() -> None:
    loaded = Loaded(100)
    loaded.add(1, 40)
    loaded.discard(1)
    loaded.discard(7)  # never there
    assert not loaded.use(1)
    assert loaded.add(2, 90) == [1]
    assert loaded.add(3, 10) == []


def test_workers_drop_the_programs_of_plans_that_are_gone(fleet: str) -> None:
    async def scenario() -> None:
        async with running(1, fleet=fleet, plans=2) as runtime:
            for number in range(8):
                graph = Graph()
                with graph.as_default():
                    y = placeholder(shape=(4,)) + float(number)
                    z = raw.Exp(y)
                [result] = await runtime.run(number, graph, {"x:0": X}, [z.name])
                np.testing.assert_allclose(result, np.exp(X + number), rtol=1e-6)
            [slot] = runtime._fleet._slots  # pyright: ignore[reportAttributeAccessIssue]
            assert len(slot.current.loaded._sizes) == 2

    asyncio.run(scenario())
