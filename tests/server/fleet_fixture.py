"""Starts fleets and runtimes of real processes for a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gradserve.errors import GradserveError
from gradserve.server.fleet.base import Fleet, FleetOptions
from gradserve.server.fleet.local import LocalFleet
from gradserve.server.fleet.ray import RayFleet
from gradserve.server.fleet.ray_cluster import RayOptions
from gradserve.server.runtime import Runtime, RuntimeOptions


@contextlib.asynccontextmanager
async def running(workers: int = 2, **options: object) -> AsyncIterator[Runtime]:
    """A runtime on the reference engine, one thread a worker."""
    settings: dict[str, object] = {"engine": "numpy", "threads": 1, **options}
    runtime = Runtime(RuntimeOptions(workers=workers, **settings))  # pyright: ignore[reportArgumentType]
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop(1)


def make(fleet: str, workers: int, **options: Any) -> Fleet:
    """A fleet of a kind, not yet started."""
    if fleet == "ray":
        return RayFleet(RayOptions(workers=workers, **options))
    return LocalFleet(FleetOptions(workers=workers, **options))


def held(runtime: Runtime) -> int:
    """How many tensors the fleet keeps outside of messages."""
    fleet = runtime._fleet
    if isinstance(fleet, RayFleet):
        return len(fleet._values)
    assert isinstance(fleet, LocalFleet)
    return len(fleet._blocks)


class Recorder:
    """A listener that writes events down."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def clear(self) -> None:
        """Forgets what was written down."""
        self.events = asyncio.Queue()

    def finished(
        self, worker: int, attempt: int, segment: int, outputs: list[Any] | None,
        updates: dict[str, Any] | None, draws: dict[str, int] | None,
    ) -> None:  # fmt: skip
        self.events.put_nowait(("finished", worker, attempt, segment, outputs))

    def failed(self, worker: int, attempt: int, segment: int, error: GradserveError) -> None:
        self.events.put_nowait(("failed", worker, error))

    def missing(self, worker: int, attempt: int, segment: int) -> None:
        self.events.put_nowait(("missing", worker, attempt, segment))

    def lost(self, worker: int) -> None:
        self.events.put_nowait(("lost", worker))

    def ready(self, worker: int) -> None:
        self.events.put_nowait(("ready", worker))

    def unavailable(self, worker: int, error: GradserveError) -> None:
        self.events.put_nowait(("unavailable", worker, error))
