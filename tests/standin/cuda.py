"""Streams and events. Work on a stream that was made runs on a thread of its own, in order; all else at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from tests.standin.arrays import copies


class Event:
    """Done when all that was on its stream before is."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._passed = threading.Event()
        self._passed.set()

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        self._passed = passed = threading.Event()
        stream.put(passed.set)

    @property
    def done(self) -> bool:
        return self._passed.is_set()

    def synchronize(self) -> None:
        self._passed.wait()


class Stream:
    """A queue of work."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self._queue: SimpleQueue[Callable[[], Any] | None] | None = None
        if not null:
            self._queue = SimpleQueue()
            threading.Thread(target=_work, args=(self._queue,), daemon=True).start()
        self.ptr = 0 if null else id(self)
        if not null:
            _streams[self.ptr] = self

    def put(self, work: Callable[[], Any]) -> None:
        """Has something run when what came before has."""
        if self._queue is None:
            work()
        else:
            self._queue.put(work)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.put(event.synchronize)

    @property
    def done(self) -> bool:
        return self.record().done

    def synchronize(self) -> None:
        copies.waits += 1
        self.record().synchronize()

    def __del__(self) -> None:
        if self._queue is not None:
            self._queue.put(None)


def _work(queue: SimpleQueue[Callable[[], Any] | None]) -> None:
    while (work := queue.get()) is not None:
        work()


_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
_null = Stream(null=True)


def stream(handle: int) -> Stream:
    """The stream of a handle."""
    return _null if handle == 0 else _streams[handle]


def get_current_stream() -> Stream:
    """The stream of the kernels."""
    return _null


class _Runtime:
    """What is asked of CUDA's runtime."""

    def getDeviceCount(self) -> int:
        return 1

    def getDevice(self) -> int:
        return 0

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        return {"uuid": os.environ.get("STANDIN_GPU", f"{os.getpid():016d}").encode(), "name": b"stand-in"}


runtime = _Runtime()
