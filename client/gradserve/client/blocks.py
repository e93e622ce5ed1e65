"""Blocks of shared memory through which a client on the server's host hands over large feeds and gets large results.

The client makes them all, those for results too: it offers one with a call, and the server writes there. A block that
a call has ended with is used again, its pages already there; one that holds results, when the last of them is gone. A
client's blocks go when it is closed or ends; those of a client that was killed when the next one starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import uuid
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.errors import Unavailable

FOLDER = Path("/dev/shm")
_PREFIX = "gradserve-client-"
_MOST_IDLE_BYTES = 512 << 20
_MOST_LENT_BYTES = 2 << 30
_MOST_LENT = 64  # each has a file open
_STEP = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "[::1]", "ipv4:127.0.0.1", "ipv6:[::1]")


class Block:
    """A block: its name below /dev/shm, its memory, and the lock that tells that its owner lives."""

    __slots__ = ("descriptor", "memory", "name")

    def __init__(self, size: int) -> None:
        self.name = f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        self.descriptor = os.open(FOLDER / self.name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(self.descriptor, 0, size)
            self.memory = mmap.mmap(self.descriptor, size)
        except OSError:
            self.remove()
            raise

    def reach(self, size: int) -> None:
        """Maps all that a server has appended. Raises Unavailable where there are fewer bytes than that."""
        length = os.fstat(self.descriptor).st_size
        if length < size:
            raise Unavailable(f"A result broke off after {length:,} of {size:,} bytes in {self.name}.", bytes=length)
        if length > len(self.memory):
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # a fault a page would cost more
            self.memory = mmap.mmap(self.descriptor, length, flags)

    def remove(self) -> None:
        """Takes the name away; the memory lives on where it is mapped. Removing twice does nothing."""
        if self.descriptor < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FOLDER / self.name)
        os.close(self.descriptor)
        self.descriptor = -1


class _Lease:
    """What results stand on: it gives their block back when the last of them is gone."""

    def __init__(self, blocks: Blocks, block: Block) -> None:
        self._blocks = blocks
        self._block = block
        self._array = np.frombuffer(block.memory, np.uint8)
        self.__array_interface__ = self._array.__array_interface__

    def __del__(self) -> None:
        self._blocks.give_back(self._block, unread=False)


class Blocks:
    """The blocks of one client; any thread may use them."""

    def __init__(self) -> None:
        self._idle: list[Block] = []
        self._lent: list[Block] = []
        self._result_bytes = _STEP
        self._lock = threading.RLock()  # the end of a result may give its block back at any moment, here too
        self._finalizer = weakref.finalize(self, _remove_all, self._idle, self._lent, self._lock)
        _remove_stale()

    def take(self, size: int) -> Block | None:
        """A block of at least so many bytes; None where no shared memory is left."""
        size = -(-size // _STEP) * _STEP
        with self._lock:
            for block in self._idle:
                if size <= len(block.memory) <= 2 * size:
                    self._idle.remove(block)
                    return block
        try:
            return Block(size)
        except OSError:
            return None

    def offer(self) -> Block | None:
        """A block for results, as large as `expect` said; None where none is left or too many are in use."""
        with self._lock:
            lent = sum(len(block.memory) for block in self._lent)
            if lent + self._result_bytes > _MOST_LENT_BYTES or len(self._lent) >= _MOST_LENT:
                return None
            block = self.take(self._result_bytes)
            if block is not None:
                self._lent.append(block)
            return block

    def expect(self, size: int) -> None:
        """Results of so many bytes are what to offer a block for."""
        self._result_bytes = size

    def lend(self, block: Block) -> np.ndarray[Any, Any]:
        """The bytes of a block that was offered; when the last view of them is gone, it is given back."""
        return np.asarray(_Lease(self, block))

    def give_back(self, block: Block, *, unread: bool) -> None:
        """Keeps a block for the next call; one that a server may still use is removed, its content left alone."""
        with self._lock:
            if block in self._lent:
                self._lent.remove(block)
            idle = sum(len(other.memory) for other in self._idle)
            if not unread and self._finalizer.alive and idle + len(block.memory) <= _MOST_IDLE_BYTES:
                self._idle.append(block)
                return
        block.remove()

    def close(self) -> None:
        """Removes every block; results that stand in one stay good. Closing twice does nothing."""
        self._finalizer()


def for_address(address: str) -> Blocks | None:
    """The blocks for a server at an address, None where it is on another host or this one has no shared memory."""
    host = address.rpartition(":")[0]
    local = host in _LOCAL or address.startswith("unix:")
    return Blocks() if local and FOLDER.is_dir() and os.access(FOLDER, os.W_OK) else None


def _remove_all(idle: list[Block], lent: list[Block], lock: contextlib.AbstractContextManager[Any]) -> None:
    with lock:
        for blocks in (idle, lent):
            while blocks:
                blocks.pop().remove()


def _remove_stale() -> None:
    """Removes the blocks of clients that died: nobody holds their locks."""
    for path in FOLDER.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue  # another user's, or gone
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
