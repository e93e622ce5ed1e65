"""A bounded cache whose entries are made once, however many requests ask for one at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The `limit` entries used last. For one event loop; a failed making is not remembered."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: K) -> V | None:
        """The entry, or None; marks it as used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: K, entry: V) -> None:
        """Adds an entry; the one unused for longest goes where the cache is full."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    async def get(self, key: K, make: Callable[[], Awaitable[V]]) -> V:
        """The entry, made where it is missing. A caller that goes away does not disturb the others."""
        entry = self.find(key)
        if entry is not None:
            return entry
        task = self._making.get(key)
        if task is None:
            task = asyncio.ensure_future(self._make(key, make))
            self._making[key] = task
            task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return await asyncio.shield(task)

    async def _make(self, key: K, make: Callable[[], Awaitable[V]]) -> V:
        try:
            entry = await make()
            self.put(key, entry)
            return entry
        finally:
            del self._making[key]
