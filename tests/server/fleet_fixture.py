"""Starts a runtime of real processes for a test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

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
