"""Sessions hold variables from step to step, take their steps in turn, and come back from checkpoints."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradserve.errors import AlreadyExists, NotFound, Unsupported
from gradserve.server.graphs import GraphVersion
from gradserve.server.limits import Limits
from gradserve.server.sessions import Session, Sessions
from gradserve.server.variables import Variables
from tests.server.serving import product


class Memory:
    """The part of a fleet that variables use: values are arrays."""

    def put(self, array: Any) -> Any:
        return array

    def get(self, value: Any) -> Any:
        return value

    def retain(self, value: Any) -> None:
        pass

    def free(self, value: Any) -> None:
        pass


def sessions(folder: Path) -> Sessions:
    return Sessions(folder, Limits(), lambda: Variables(Memory()))  # pyright: ignore[reportArgumentType]


def opened(held: Sessions) -> Session:
    return held.open("s", GraphVersion(product(), Limits()), "graphs/g", 3)


VALUES = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.int64),
    "complex": np.array([1 + 2j]),
    "brief": np.array([1, 2], ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


@pytest.mark.asyncio
async def test_a_checkpoint_brings_values_steps_and_graph_back(tmp_path: Path) -> None:
    held = sessions(tmp_path)
    session = opened(held)
    for name, value in VALUES.items():
        session.variables.set(name, value)
    session.variables.draws["random"] = 7
    session.steps = 5
    checkpoint = await held.save("sessions/s", "")
    assert checkpoint.name == "sessions/s/checkpoints/5"
    session.variables.set("w", np.zeros(1))
    session.variables.set("later", np.zeros(1))
    assert await held.restore(checkpoint.name) is session
    assert session.variables.names() == sorted(VALUES)
    again = sessions(tmp_path)
    restored = await again.restore("sessions/s")
    assert (restored.steps, restored.graph_name, restored.graph_version) == (5, "graphs/g", 3)
    assert restored.version.data == product()
    assert restored.variables.draws == {"random": 7}
    for name, value in VALUES.items():
        found = restored.variables.get(name)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


@pytest.mark.asyncio
async def test_steps_take_their_turns_and_only_good_ones_count(tmp_path: Path) -> None:
    held = sessions(tmp_path)
    session = opened(held)
    running = 0

    async def step(fails: bool) -> None:
        nonlocal running
        async with held.turn(session):
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1
            if fails:
                raise RuntimeError("the step failed")

    results = await asyncio.gather(*(step(k % 2 == 1) for k in range(6)), return_exceptions=True)
    assert sum(isinstance(result, RuntimeError) for result in results) == 3
    assert session.steps == 3


@pytest.mark.asyncio
async def test_a_closed_session_is_gone_for_those_who_wait(tmp_path: Path) -> None:
    held = sessions(tmp_path)
    session = opened(held)
    async with held.turn(session):
        deleting = asyncio.ensure_future(held.delete("sessions/s", delete_checkpoints=False))
        await asyncio.sleep(0)
        assert len(held) == 1
    await deleting
    with pytest.raises(NotFound):
        async with held.turn(session):
            pass


@pytest.mark.asyncio
async def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    held = sessions(tmp_path)
    with pytest.raises(NotFound, match="save the session first"):
        await held.restore("sessions/s")
    with pytest.raises(NotFound, match="no open session"):
        await held.save("sessions/s", "")
    session = opened(held)
    with pytest.raises(AlreadyExists):
        opened(held)
    session.variables.set("text", np.array([b"a"], object))
    with pytest.raises(Unsupported, match="holds strings"):
        await held.save("sessions/s", "")
    session.variables.set("text", np.zeros(1))
    await held.save("sessions/s", "kept")
    with pytest.raises(AlreadyExists, match="take another id"):
        await held.save("sessions/s", "kept")


def test_sessions_are_listed_the_newest_first(tmp_path: Path) -> None:
    held = sessions(tmp_path)
    version = GraphVersion(product(), Limits())
    names = [held.open(f"s{k}", version, "", 0).name for k in range(3)]
    first, token = held.page(2, "")
    rest, end = held.page(2, token)
    assert [session.name for session in first + rest] == names[::-1]
    assert end == ""
