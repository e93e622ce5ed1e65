"""Holds the cyclic garbage collector back while a large graph is built."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def paused() -> Generator[None]:
    """No cyclic collection inside the block.

    A graph is many long-lived objects and no garbage: each full collection walks all of them, so that building would
    take quadratic time (measured: 100k nodes at twice the time a node of 10k).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
