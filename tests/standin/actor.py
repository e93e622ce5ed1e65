"""An actor on the stand-in: what a worker with a GPU is in the tests of a Ray fleet."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

from gradserve.workers.actor import Actor
from tests.standin import install
from tests.standin.arrays import copies
from tests.standin.memory import pool


class StandInActor(Actor):
    """An actor whose engine and transport find the stand-in in CuPy's place."""

    def __init__(self, engine: str, environment: dict[str, str], *settings: Any) -> None:
        os.environ.update(environment)
        install()
        super().__init__(engine, environment, *settings)

    def inspect(self) -> dict[str, int]:
        """What the worker holds."""
        gc.collect()
        worker = self._worker
        assert worker is not None
        offered, busy = worker.transport.held() if worker.transport is not None else (0, 0)
        return {
            "offered": offered,
            "busy": busy,
            "steps": len(worker.steps),
            "device_bytes": pool.used_bytes(),
            "links": sum(thread.name == "link" for thread in threading.enumerate()),
            "copied_down": copies.down,
            "copied_up": copies.up,
            "waits": copies.waits,
        }
