"""NCCL between real processes, over sockets, with what makes it hard to live with.

- A communicator's creation, and the first transfer on it, hold the calling thread until the other end is there, however
  long that takes. A transfer ends when both ends have taken part. The death of the other end is not noticed.
- Only `abort` ends what is under way, and leaves half-written buffers. It waits until the other end has left, too.
- An abort while another thread is within a call uses what was freed: this process then ends, as it might.
- A communicator that failed or was aborted is of no use; one that is forgotten without an abort would wait for ever.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import socket
import sys
import threading
import time
from typing import Any

from tests.standin import cuda

__all__ = ("NCCL_UINT8", "NcclCommunicator", "NcclError", "get_unique_id", "get_version")

NCCL_UINT8 = 1
_NAME_BYTES = 128
_LOOK_SECONDS = 0.01
_CHUNK = 1 << 16
_roots: dict[bytes, socket.socket] = {}


class Stalls:
    """What this process sends of a tensor before the network stops: nothing is ever lost, but nothing moves."""

    after = sys.maxsize
    reached = False


stalls = Stalls()


class NcclError(RuntimeError):
    """As CuPy's."""


def get_version() -> int:
    return 23203


def get_unique_id() -> bytes:
    """The name of a communicator to be; its rank 0 must be made in this process."""
    name = b"standin-" + secrets.token_hex(16).encode()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(b"\0" + name)
    listener.listen(1)
    unique = name.ljust(_NAME_BYTES, b"\0")
    _roots[unique] = listener
    return unique


class NcclCommunicator:
    """One of two ends."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        assert ndev == 2
        assert len(commId) == _NAME_BYTES
        if os.environ.get("STANDIN_NCCL") == "broken":
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: no network")
        self._aborted = threading.Event()
        self._calling = False
        self._connected = False
        self._busy = threading.Lock()
        self._socket = _join(commId, rank)
        self._meet(b"I")

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._move(sendbuf, count, stream, self._sent)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._move(recvbuf, count, stream, self._received)

    def abort(self) -> None:
        if self._calling:
            _end("an abort freed what another thread's call uses")
        self._aborted.set()
        with self._busy:
            self._socket.shutdown(socket.SHUT_WR)
            while self._take(_CHUNK):
                pass
            self._socket.close()

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        if hasattr(self, "_socket") and not self._aborted.is_set() and not is_finalizing():
            _end("a communicator was forgotten that was not aborted")

    def _move(self, address: int, count: int, stream: int, work: Any) -> None:
        if self._aborted.is_set():
            raise NcclError("NCCL_ERROR_INVALID_USAGE: the communicator was aborted")
        if not self._connected:
            self._meet(b"C")
            self._connected = True

        def run() -> None:
            with self._busy:
                if self._aborted.is_set():
                    return
                work((ctypes.c_char * count).from_address(address), count)

        cuda.stream(stream).put(run)

    def _meet(self, token: bytes) -> None:
        """Returns when the other end has come as far: never, where it is gone."""
        self._calling = True
        self._put(token)
        found = self._take(1)
        while not found:
            time.sleep(3600)
        assert found == token
        self._calling = False

    # On the device

    def _sent(self, memory: Any, count: int) -> None:
        self._put(count.to_bytes(8, "little"))
        for start in range(0, count, _CHUNK):
            if start >= stalls.after:
                stalls.reached = True
                self._aborted.wait()  # a network that has stopped
            self._put(memory[start : start + _CHUNK])
        self._get(1)

    def _received(self, memory: Any, count: int) -> None:
        size = self._get(8)
        if size is None:
            return
        if int.from_bytes(size, "little") != count:
            _end(f"{count} bytes are awaited, but others come")
        for start in range(0, count, _CHUNK):
            part = self._get(min(_CHUNK, count - start))
            if part is None:
                return
            memory[start : start + len(part)] = part
        self._put(b"!")

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._aborted.is_set():
            if select.select([], [self._socket], [], _LOOK_SECONDS)[1]:
                try:
                    view = view[self._socket.send(view) :]
                except OSError:
                    self._aborted.wait()  # the other end is gone: nothing happens any more

    def _get(self, count: int) -> bytes | None:
        """So many bytes; None after an abort."""
        found = b""
        while len(found) < count:
            if self._aborted.is_set():
                return None
            if select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                part = self._take(count - len(found))
                if not part:
                    self._aborted.wait()
                found += part
        return found

    def _take(self, count: int) -> bytes:
        try:
            return self._socket.recv(count)
        except OSError:
            return b""


def _join(unique: bytes, rank: int) -> socket.socket:
    if rank == 0:
        with _roots.pop(unique) as listener:
            return listener.accept()[0]
    joined = socket.socket(socket.AF_UNIX)
    try:
        joined.connect(b"\0" + unique.rstrip(b"\0"))
    except OSError as error:
        joined.close()
        raise NcclError(f"NCCL_ERROR_REMOTE_ERROR: {error}") from None
    return joined


def _end(why: str) -> None:
    sys.stderr.write(f"NCCL: {why}\n")
    sys.stderr.flush()
    os._exit(99)
