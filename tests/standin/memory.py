"""Device memory, as CuPy's pool keeps it: what arrays take is counted, and bounded where a limit is set."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Memory:
    """What one allocation takes, for as long as an array or a view of it lives."""

    def __init__(self, pool: Pool, owner: np.ndarray) -> None:
        self.owner = owner
        self.nbytes = owner.nbytes
        self._pool = pool
        pool.take(self.nbytes)

    def __del__(self) -> None:
        self._pool.give_back(self.nbytes)


class Pool:
    """All of this process's device memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        self._limit = 0
        self._known: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()

    def memory_of(self, array: np.ndarray) -> Memory:
        """The allocation that an array lies in. Raises OutOfMemoryError where it is a new one beyond the limit."""
        owner: Any = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        memory = self._known.get(id(owner))
        if memory is None or memory.owner is not owner:
            memory = self._known[id(owner)] = Memory(self, owner)
        return memory

    def take(self, count: int) -> None:
        with self._lock:
            self._used += count
            used, limit = self._used, self._limit
        if limit and used > limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {count:,} bytes (allocated so far: {used - count:,} bytes, limit set to: "
                f"{limit:,} bytes)."
            )

    def give_back(self, count: int) -> None:
        with self._lock:
            self._used -= count

    # CuPy's MemoryPool

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or 0

    def get_limit(self) -> int:
        return self._limit

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._used

    def free_all_blocks(self, stream: Any = None) -> None:
        return None


pool = Pool()
