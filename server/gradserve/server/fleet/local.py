"""A fleet of processes on this machine: a socket pair each for messages, shared memory for large tensors.

The coordinator owns every block of shared memory, also those that a worker made: it counts who reads them, tells
the maker when nobody does, and removes what a dead worker left. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from typing import Any

import numpy as np

from gradserve.errors import GradserveError, Unavailable
from gradserve.server.cost import Link, Speed
from gradserve.server.fleet.base import (
    Array,
    Fleet,
    FleetOptions,
    Kept,
    Listener,
    Loaded,
    Program,
    Submission,
    Value,
    WorkerInfo,
    environment,
)  # fmt: skip
from gradserve.workers import worker as wire
from gradserve.workers.memory import INLINE_BYTES, Folder, Mapper, Pool, Reference, pack, unlink, unpack, view
from gradserve.workers.speed import rounded

_READ_BYTES = 1 << 18
_FREE_AT_ONCE_BYTES = 1 << 20
_MOST_PENDING_FREES = 64
_MOST_FAILED_STARTS = 3
_PINGS = 8
_PROBE_BYTES = 16 << 20
_DISPATCH_SECONDS = 6e-5  # what the coordinator does between a segment's end and the next one's start
_BEATS = 5  # a worker says this often within the stall timeout that it lives

log = logging.getLogger(__name__)


class Shared:
    """A tensor in shared memory, with a count of its users."""

    __slots__ = ("maker", "nbytes", "reference", "users")

    def __init__(self, reference: Reference, nbytes: int, maker: _Process | None) -> None:
        self.reference = reference
        self.nbytes = nbytes
        self.maker = maker
        self.users = 1


class _Lease:
    """What a result array stands on: it gives the memory back when the last view of it is gone."""

    def __init__(self, fleet: LocalFleet, value: Shared, memory: Any) -> None:
        self._fleet = fleet
        self._value = value
        self._array = view(memory, value.reference).reshape(-1).view(np.uint8)
        self.__array_interface__ = self._array.__array_interface__

    def __del__(self) -> None:
        # Any thread may run this: the fleet counts on its own loop.
        self._fleet.free_later(self._value)


class _Process:
    """One incarnation of a worker: a process, its socket, what it has loaded."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: socket.socket, prefix: str, loaded: Loaded) -> None:
        self.popen = popen
        self.channel = channel
        self.prefix = prefix
        self.alive = True
        self.received = bytearray()
        self.outbox: deque[memoryview] = deque()
        self.loaded = loaded
        self.frees: list[str] = []
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = 0.0
        self.pong: asyncio.Future[None] | None = None


class _Slot:
    """A worker's place in the fleet, through its replacements."""

    def __init__(self) -> None:
        self.current: _Process | None = None
        self.state = "starting"
        self.restarts = 0
        self.speed: Speed | None = None


class LocalFleet(Fleet):
    """Worker processes of this machine."""

    def __init__(self, options: FleetOptions) -> None:
        self._options = options
        self.present = tuple(range(options.workers))
        self._slots = [_Slot() for _ in range(options.workers)]
        self._incarnations = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: deque[Shared] = deque()
        self._blocks: dict[str, Shared] = {}
        self._closing = False
        self._link = Link()

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._folder = Folder()
        self._pool = Pool(self._folder.path, "coordinator")
        self._mapper = Mapper(self._folder.path)
        processes = [self._spawn(index) for index in range(len(self._slots))]
        try:
            for index, process in enumerate(processes):
                await self._wait_started(process)
                self._slots[index].state = "ready"
            self._link = await self._measure_link(processes[0])
        except GradserveError:
            await self.stop(0)
            raise
        if self._options.stall_timeout_seconds:
            self._keep(self._loop.create_task(self._watch()))

    async def stop(self, grace_seconds: float) -> None:
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        running = [slot.current for slot in self._slots if slot.current is not None]
        for process in running:
            if process.alive:
                self._send(process, (wire.STOP,))
        deadline = self._loop.time() + grace_seconds
        for process in running:
            try:
                await asyncio.to_thread(process.popen.wait, max(deadline - self._loop.time(), 0.01))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                await asyncio.to_thread(process.popen.wait)
            self._close(process)
            if process.started.done() and not process.started.cancelled():
                process.started.exception()  # a start that failed beside another one was not waited for
        for slot in self._slots:
            slot.current = None
        self._folder.close()

    def workers(self) -> list[WorkerInfo]:
        return [self._info(index, slot) for index, slot in enumerate(self._slots)]

    def _info(self, index: int, slot: _Slot) -> WorkerInfo:
        name = f"/job:worker/replica:0/task:{index}"
        kind = "GPU" if self._options.engine == "cupy" else "CPU"
        pid = slot.current.popen.pid if slot.current is not None and slot.current.alive else 0
        return WorkerInfo(
            name, f"{name}/device:{kind}:0", self._options.engine, slot.state, pid, _resident_bytes(pid),
            slot.restarts, self._options.threads,
        )  # fmt: skip

    def speeds(self) -> tuple[Speed, ...]:
        return tuple([slot.speed or Speed() for slot in self._slots])

    def link(self) -> Link:
        return self._link

    async def _measure_link(self, process: _Process) -> Link:
        """A tensor goes from worker to coordinator to worker: one round trip, its share of dispatching, and a copy."""
        trips: list[float] = []
        for _ in range(_PINGS):
            start = self._loop.time()
            process.pong = self._loop.create_future()
            self._send(process, (wire.PING,))
            await asyncio.wait([process.pong], timeout=1)
            trips.append(self._loop.time() - start)
        array = np.ones(_PROBE_BYTES, np.uint8)
        copies: list[float] = []
        for _ in range(3):
            start = self._loop.time()
            self.free(self.put(array))
            copies.append(self._loop.time() - start)
        return Link(rounded(_PROBE_BYTES / max(min(copies), 1e-9)), rounded(min(trips) + _DISPATCH_SECONDS))

    def is_loaded(self, worker: int, number: int) -> bool:
        process = self._slots[worker].current
        return process is not None and process.loaded.use(number)

    def load(self, worker: int, program: Program) -> None:
        process = self._slots[worker].current
        if process is None or not process.alive:
            return
        self._send(process, (wire.LOAD, *program, process.loaded.add(program.number, len(program.graph))))

    def unload(self, number: int) -> None:
        for slot in self._slots:
            if slot.current is not None:
                slot.current.loaded.discard(number)

    def submit(self, worker: int, submission: Submission) -> None:
        process = self._slots[worker].current
        if process is None or not process.alive:
            return  # its loss has been or is about to be told: the step starts again
        attempt, segment, program, inputs, variables, draws, last, *_ = submission
        inputs = [_encode(value) for value in inputs]
        if variables is not None:
            variables = {name: _encode(value) for name, value in variables.items()}
        frees, process.frees = process.frees, []
        self._send(process, (wire.RUN, frees, attempt, segment, program, inputs, variables, draws, last))

    def forget(self, worker: int, attempt: int) -> None:
        process = self._slots[worker].current
        if process is not None and process.alive:
            self._send(process, (wire.FORGET, attempt))

    def replace(self, worker: int, why: str) -> None:
        process = self._slots[worker].current
        if process is not None and process.alive:
            log.warning("Worker %d is replaced: %s.", worker, why)
            process.popen.kill()

    # Tensors

    def put(self, array: Array) -> Value:
        if array.nbytes <= INLINE_BYTES or array.dtype == np.dtype(object):
            return array
        return self._share(self._pool.store(array), array.nbytes, None)

    def _share(self, reference: Reference, nbytes: int, maker: _Process | None) -> Shared:
        shared = self._blocks[reference.block] = Shared(reference, nbytes, maker)
        return shared

    def get(self, value: Value) -> Array:
        if not isinstance(value, Shared):
            return value
        reference = value.reference
        memory = self._pool.memory(reference.block) or self._mapper.memory(reference.block)
        value.users += 1
        array = np.asarray(_Lease(self, value, memory)).view(reference.dtype).reshape(reference.shape)
        array.flags.writeable = False
        return array

    def size_bytes(self, value: Value) -> int:
        return value.nbytes

    def retain(self, value: Value) -> None:
        if isinstance(value, Shared):
            value.users += 1

    def free(self, value: Value) -> None:
        if not isinstance(value, Shared):
            return
        value.users -= 1
        if value.users or self._closing:
            return
        name, maker = value.reference.block, value.maker
        del self._blocks[name]
        if maker is None:
            self._pool.take_back(name)
        elif maker.alive:
            maker.frees.append(name)
            # Usually the news travels with the next run; large or many blocks do not wait for one.
            if value.nbytes >= _FREE_AT_ONCE_BYTES or len(maker.frees) >= _MOST_PENDING_FREES:
                frees, maker.frees = maker.frees, []
                self._send(maker, (wire.FREE, frees))
        else:
            self._mapper.drop(name)
            unlink(self._folder.path, name)

    def free_later(self, value: Shared) -> None:
        """Frees a value from any thread, on the loop."""
        self._later.append(value)
        if not self._closing and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._free_waiting)

    def _free_waiting(self) -> None:
        while self._later:
            self.free(self._later.popleft())

    # Processes

    def _spawn(self, index: int) -> _Process:
        ours, theirs = socket.socketpair()
        prefix = f"worker-{index}-{next(self._incarnations)}"
        descriptor = theirs.fileno()
        settings = environment(self._options.engine, self._options.threads, self._options.compile_now)
        command = [sys.executable, "-P", "-m", "gradserve.workers.worker", str(descriptor), self._options.engine,
                   self._folder.path, prefix, str(self._options.stall_timeout_seconds / _BEATS),
                   str(self._options.memory_limit_bytes),
                   str(int(self._slots[index].speed is None))]  # fmt: skip
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=(descriptor,), env={**os.environ, **settings}
        )
        theirs.close()
        ours.setblocking(False)
        process = self._slots[index].current = _Process(popen, ours, prefix, Loaded(self._options.segment_bytes))
        self._loop.add_reader(ours.fileno(), self._readable, index, process)
        return process

    async def _wait_started(self, process: _Process) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(process.started), self._options.start_timeout_seconds)
        except TimeoutError:
            process.popen.kill()
            raise Unavailable(
                f"A worker did not start within {self._options.start_timeout_seconds} seconds.", pid=process.popen.pid
            ) from None

    def _readable(self, index: int, process: _Process) -> None:
        try:
            data = process.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        process.heard = self._loop.time()
        if not data:
            self._lost(index, process)
            return
        header = wire.HEADER.size
        buffer = process.received
        if not buffer and len(data) >= header and wire.HEADER.unpack_from(data)[0] == len(data) - header:
            self._handle(index, process, pickle.loads(memoryview(data)[header:]))
            return
        buffer += data
        while len(buffer) >= header:
            end = header + wire.HEADER.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            message = bytes(buffer[header:end])
            del buffer[:end]
            self._handle(index, process, pickle.loads(message))

    def _handle(self, index: int, process: _Process, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == wire.DONE:
            _, attempt, segment, outputs, updates, draws = message
            outputs = [self._decode(value, process) for value in outputs]
            if updates is not None:
                updates = {name: self._decode(value, process) for name, value in updates.items()}
            self._listener.finished(index, attempt, segment, outputs, updates, draws)
        elif kind == wire.FAILED:
            self._listener.failed(index, message[1], message[2], message[3])
        elif kind == wire.BEAT:
            if process.pong is not None and not process.pong.done():
                process.pong.set_result(None)
        elif process.started.done():
            return  # it was given up while it started
        elif kind == wire.READY:
            if message[1] is not None:
                self._slots[index].speed = Speed(*message[1])
            process.started.set_result(None)
        else:
            process.started.set_exception(message[1])

    def _decode(self, value: Any, process: _Process) -> Value:
        if not isinstance(value, Reference):
            return unpack(value)
        count = value.dtype.itemsize
        for size in value.shape:
            count *= size
        return self._share(value, count, process)

    def _send(self, process: _Process, message: tuple[Any, ...]) -> None:
        body = pickle.dumps(message, protocol=5)
        data = wire.HEADER.pack(len(body)) + body
        if process.outbox:
            process.outbox.append(memoryview(data))
            return
        try:
            sent = process.channel.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it died: the reader sees that too, and tells
        if sent < len(data):
            process.outbox.append(memoryview(data)[sent:])
            self._loop.add_writer(process.channel.fileno(), self._writable, process)

    def _writable(self, process: _Process) -> None:
        while process.outbox:
            data = process.outbox[0]
            try:
                sent = process.channel.send(data)
            except BlockingIOError:
                return
            except OSError:
                process.outbox.clear()
                break
            if sent < len(data):
                process.outbox[0] = data[sent:]
                return
            process.outbox.popleft()
        self._loop.remove_writer(process.channel.fileno())

    def _close(self, process: _Process) -> None:
        if process.channel.fileno() >= 0:
            self._loop.remove_reader(process.channel.fileno())
            self._loop.remove_writer(process.channel.fileno())
            process.channel.close()
        process.alive = False
        process.outbox.clear()

    def _lost(self, index: int, process: _Process) -> None:
        """A process is gone: the listener learns of it, and it is replaced."""
        self._close(process)
        if self._closing:
            return
        process.popen.kill()  # the pipe may have ended before the process did
        if not process.started.done():
            process.started.set_exception(
                Unavailable("A worker died while it started: its own words are on standard error.", worker=index)
            )
        slot = self._slots[index]
        if slot.state != "ready":
            return
        slot.state = "lost"
        self._listener.lost(index)
        self._keep(self._loop.create_task(self._replace(index, process)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Ends workers that are silent for too long: stopped, frozen or swapped out. They are replaced like dead ones.

        Ended, a worker can't come back and answer for a step that was finished elsewhere meanwhile.
        """
        timeout = self._options.stall_timeout_seconds
        pause = timeout / _BEATS
        while True:
            before = self._loop.time()
            await asyncio.sleep(pause)
            now = self._loop.time()
            if now - before > 2 * pause:
                continue  # this process stood still itself: what the workers said meanwhile is yet to be read
            for index, slot in enumerate(self._slots):
                process = slot.current
                if process is None or not process.alive or slot.state != "ready" or now - process.heard < timeout:
                    continue
                self.replace(index, f"it has been silent for {now - process.heard:.1f} s")

    async def _replace(self, index: int, dead: _Process) -> None:
        slot = self._slots[index]
        for failures in range(_MOST_FAILED_STARTS):
            await asyncio.to_thread(dead.popen.wait)
            self._sweep(dead)
            slot.restarts += 1
            dead = self._spawn(index)
            try:
                await self._wait_started(dead)
            except GradserveError as error:
                if failures + 1 == _MOST_FAILED_STARTS:
                    slot.state = "failed"
                    self.present = tuple([k for k, other in enumerate(self._slots) if other.state != "failed"])
                    self._listener.unavailable(index, error)
                    return
                await asyncio.sleep(0.1 * 2**failures)
                continue
            slot.state = "ready"
            self._listener.ready(index)
            return

    def _sweep(self, dead: _Process) -> None:
        """Removes a dead worker's blocks that nobody here reads."""
        for name in self._folder.blocks(f"{dead.prefix}-"):
            if name not in self._blocks:
                unlink(self._folder.path, name)


def _encode(value: Value) -> Any:
    if isinstance(value, Shared):
        return value.reference
    return tuple(value) if isinstance(value, Kept) else pack(value)


def _resident_bytes(pid: int) -> int:
    if not pid:
        return 0
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
