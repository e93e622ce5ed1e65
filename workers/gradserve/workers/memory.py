"""Shared memory between the processes of one machine: files in a folder of the coordinator's.

A `Pool` makes blocks (mapped files) and takes them back for the next tensor; a `Mapper` reads blocks that another
process made. Who frees a block is the coordinator's business: it counts the readers. The folder is locked for as
long as its coordinator lives, so that the next one can tell what was left behind.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import resource
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import LimitExceeded
from gradserve.graph.variants import Variant

Array = np.ndarray[Any, Any]

# Under this a copy through the pipe costs less than a mapping.
INLINE_BYTES = 32 * 1024
_SMALLEST_BLOCK = 64 * 1024
_MOST_IDLE_BYTES = 512 << 20
_MOST_MAPPINGS = 512
_SCRATCH_BYTES = 64 << 20
_PREFIX = "gradserve-"
_LOCK = "lock"


class Reference(NamedTuple):
    """Where a tensor lies: a block, and how to read it."""

    block: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def pack(array: Array | Variant) -> Any:
    """A small array as it travels in a message: dtype, shape and bytes pickle twenty times faster than the array."""
    if isinstance(array, Variant):
        return array
    dtype = array.dtype
    if dtype.isbuiltin != 1 or dtype.hasobject:
        return array
    return dtype.char, array.shape, array.tobytes()


def unpack(packed: Any) -> Any:
    """The array of `pack`, read-only."""
    if type(packed) is tuple:
        dtype, shape, data = packed
        return np.ndarray(shape, dtype, data)
    return packed


def size_bytes(packed: Any) -> int:
    """The bytes of a tensor, packed or not; 0 for what is none."""
    if type(packed) is tuple:
        return len(packed[2])
    return packed.nbytes if isinstance(packed, (np.ndarray, Variant)) else 0


class Pool:
    """Blocks that this process makes. A block that comes back is used again, its pages already there."""

    def __init__(self, folder: str, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._count = 0
        self._lent: dict[str, mmap.mmap] = {}
        self._idle: dict[int, list[tuple[str, mmap.mmap]]] = {}
        self._idle_bytes = 0

    def store(self, array: Array) -> Reference:
        """Copies an array into a block. Raises LimitExceeded where no shared memory is left."""
        name, memory = self._take(array.nbytes)
        target = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        np.copyto(target, array, casting="no")
        return Reference(name, array.dtype, array.shape)

    def memory(self, name: str) -> mmap.mmap | None:
        """The mapping of a lent block of this pool, None if it is another's."""
        return self._lent.get(name)

    def take_back(self, name: str) -> None:
        """A lent block that nobody reads any more: kept for the next tensor, or given back to the system."""
        memory = self._lent.pop(name)
        size = len(memory)
        if self._idle_bytes + size > _MOST_IDLE_BYTES:
            unlink(self._folder, name)
            return
        self._idle.setdefault(size, []).append((name, memory))
        self._idle_bytes += size

    def _take(self, count: int) -> tuple[str, mmap.mmap]:
        size = _block_size(count)
        idle = self._idle.get(size)
        if idle:
            name, memory = idle.pop()
            self._idle_bytes -= size
        else:
            name = f"{self._prefix}-{self._count}"
            self._count += 1
            memory = self._make(name, size)
        self._lent[name] = memory
        return name, memory

    def _make(self, name: str, size: int) -> mmap.mmap:
        path = os.path.join(self._folder, name)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Without the reservation a full /dev/shm would be a SIGBUS at the first write.
            os.posix_fallocate(descriptor, 0, size)
            return mmap.mmap(descriptor, size)
        except OSError as error:
            os.unlink(path)
            raise LimitExceeded(
                f"There is no shared memory left for {size} bytes in {self._folder}: {error.strerror}.", bytes=size
            ) from None
        finally:
            os.close(descriptor)


def _block_size(count: int) -> int:
    """Sizes in steps, so that blocks are used again; large ones waste at most an eighth."""
    if count <= _SMALLEST_BLOCK:
        return _SMALLEST_BLOCK
    step = 1 << (count.bit_length() - 4)
    return -(-count // step) * step


class Mapper:
    """Blocks that other processes made, read-only. The most recently used mappings are kept."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()

    def load(self, reference: Reference) -> Array:
        """The array, read-only, without a copy; good for as long as the coordinator keeps the block."""
        return view(self.memory(reference.block), reference)

    def memory(self, name: str) -> mmap.mmap:
        """The mapping of a block."""
        memory = self._maps.get(name)
        if memory is not None:
            self._maps.move_to_end(name)
            return memory
        descriptor = os.open(os.path.join(self._folder, name), os.O_RDONLY)
        try:
            memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self._maps[name] = memory
        if len(self._maps) > _MOST_MAPPINGS:
            self._maps.popitem(last=False)
        return memory

    def drop(self, name: str) -> None:
        """Forgets a block that is gone."""
        self._maps.pop(name, None)


def view(memory: mmap.mmap, reference: Reference) -> Array:
    """The array that lies at the start of a mapping, read-only."""
    shape = reference.shape
    array = np.frombuffer(memory, reference.dtype, math.prod(shape)).reshape(shape)
    array.flags.writeable = False
    return array


def unlink(folder: str, name: str) -> None:
    """Removes a block. Its pages go at once, also where another process still has it mapped."""
    path = os.path.join(folder, name)
    try:
        os.truncate(path, 0)
        os.unlink(path)
    except FileNotFoundError:
        return


def with_slack(count: int) -> int:
    """A limit of bytes for tensors, and what kernels need for a moment beside them."""
    return count + count // 4 + _SCRATCH_BYTES


def limit_memory(count: int, beside: int = 0) -> None:
    """Bounds this process's private memory: so many bytes more than now for tensors, kernels' scratch space, and
    `beside` for what else runs in the process.

    An allocation beyond it raises MemoryError. Nothing happens where the system does not tell what is in use.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return
    fields = dict(line.split(":", 1) for line in status.splitlines())
    used = int(fields["VmData"].split()[0]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = used + with_slack(count) + beside
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


class Folder:
    """A coordinator's folder of blocks; folders of coordinators that died are removed when one is made."""

    def __init__(self) -> None:
        root = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
        remove_stale(root)
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=root)
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def blocks(self, prefix: str) -> list[str]:
        """The blocks whose names start so."""
        return [name for name in os.listdir(self.path) if name.startswith(prefix)]

    def close(self) -> None:
        """Removes the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_stale(root: Path) -> None:
    """Removes the folders whose coordinator is gone: nobody holds their lock."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # another user's, or not yet or no longer there
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
