"""A fleet of Ray actors, on one machine or many.

A worker is an actor in a bundle of a placement group: a slot of processors, or a GPU. Ray starts it where there is
room, starts it again when it or its machine dies, and moves tensors through its object store. Every call of a step goes
out at once, with references to what earlier calls will return.

    worker k    placement group → actor → incarnation, incarnation, …    one call, `live`, ends when its process does

What the caller fetches and the new values of variables are brought to this machine before a segment counts as finished:
no machine that dies later takes them with it. A worker for which there is no room (any more) has left the fleet, and
joins it when the cluster grows.

What only other workers with GPUs read stays on its maker's device, and an offer takes its place in the object store:
workers move such tensors among themselves (workers/transport.py), where there is a way between them (ways.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import GradserveError, LimitExceeded, Unavailable
from gradserve.server.cost import Link, Speed
from gradserve.server.fleet.base import (
    Array,
    Fleet,
    Kept,
    Listener,
    Loaded,
    Program,
    Submission,
    Ticket,
    Value,
    WorkerInfo,
)  # fmt: skip
from gradserve.server.fleet.ray_cluster import LIFE, PEERS, Bundle, RayCluster, RayOptions, first_line
from gradserve.server.fleet.ways import Ways
from gradserve.workers import worker as wire
from gradserve.workers.actor import GONE, STALE, Argument, Hello, Leaving, Way
from gradserve.workers.memory import INLINE_BYTES, pack, unpack
from gradserve.workers.transport import Answer, Key, Offer, Peer
from gradserve.workers.worker import Staying

log = logging.getLogger(__name__)

_BEATS = 5  # a worker is asked this often within the stall timeout whether it lives
# A lost tensor may be the first that is heard of a lost worker: the news of that is given time to come.
_NEWS_SECONDS = 2.0
_RETRY_SECONDS = 0.05
_MOST_FAILED_STARTS = 3
_HERE = -1
# A call of an actor takes about so long to reach it, on one machine; between machines the bandwidth is the network's.
_LINK = Link(bytes_per_second=1e9, seconds=1.2e-3)


class Stored:
    """A tensor in the object store, or on a device with an offer of it there, with a count of its users.

    Attributes:
        reference: Ray's; None when nobody uses the tensor any more.
        copy: Ray's reference of the tensor itself where `reference` may be of an offer; None elsewhere, and once it has
            been brought here.
        offered: where and in which attempt it may be offered, None where it can't be.
        awaited: how many workers have yet to pull it.
        array: the tensor where it has been brought here. It keeps the object here for as long as it lives.
        maker: the worker that made it, -1 for this process.
        nbytes: its size; 0 until a call has told it.
    """

    __slots__ = ("__weakref__", "array", "awaited", "copy", "maker", "nbytes", "offered", "reference", "users")

    def __init__(self, reference: Any, maker: int, array: Array | None = None) -> None:
        self.reference = reference
        self.maker = maker
        self.array = array
        self.nbytes = 0 if array is None else array.nbytes
        self.users = 1
        self.copy: Any = None
        self.offered: tuple[_Incarnation, int] | None = None
        self.awaited = 0

    def objects(self) -> list[Any]:
        """What is to be fetched to have the tensor here."""
        return [self.reference] if self.copy is None else [self.reference, self.copy]

    def take(self, objects: Iterator[Any]) -> None:
        """Takes those over, fetched: the tensor is here, and whoever comes later gets it from the object store."""
        found = next(objects)
        if self.copy is not None:
            copied = next(objects)
            if isinstance(found, Offer):
                found, self.reference = copied, self.copy
            self.copy = None
        self.array = _read_only(unpack(found))


class _Incarnation:
    """One life of a worker: what it has loaded, and the calls that it has not answered."""

    def __init__(self, epoch: str, hello: Hello, segment_bytes: int, now: float) -> None:
        self.epoch = epoch
        self.pid = hello.pid
        self.node = hello.node
        self.host = hello.host
        self.speed = Speed(*hello.speed)
        self.loaded = Loaded(segment_bytes)
        self.alive = True
        self.ended = asyncio.Event()
        self.runs: dict[tuple[int, int], _Run] = {}
        self.memory_bytes = hello.memory_bytes
        self.heard = now
        self.gpu = hello.gpu
        self.met: set[str] = set()
        self.forgotten = -1


@dataclass(slots=True)
class _Run:
    """A call that is under way.

    Attributes:
        given: the stored tensors that it reads.
        pulled: those of them that it is the first of its worker to read.
        news: set when the loss of a worker has been told since the call went out.
    """

    attempt: int
    segment: int
    fetched: tuple[int, ...]
    written: tuple[str, ...]
    status: Any
    given: list[Stored]
    pulled: list[Stored]
    outputs: list[Stored]
    updates: list[Any]
    news: asyncio.Event


class _Slot:
    """A worker's place in the fleet, through its replacements."""

    def __init__(self) -> None:
        self.actor: Any = None
        self.current: _Incarnation | None = None
        self.state = "starting"
        self.restarts = 0
        self.node = ""
        self.bundle: Bundle | None = None
        self.error: GradserveError | None = None
        self.speed = Speed()


class RayFleet(Fleet):
    """Workers that are Ray actors."""

    at_once = True

    def __init__(self, options: RayOptions) -> None:
        """Raises Unsupported where Ray is not installed."""
        self._options = options
        self._slots = [_Slot() for _ in range(options.workers)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._values: weakref.WeakSet[Stored] = weakref.WeakSet()
        self._closing = False
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._ways = Ways()
        self._cluster = RayCluster(options)
        self._ray = self._cluster.ray
        self._fetcher = ThreadPoolExecutor(4, thread_name_prefix="fetch")
        self._severed = asyncio.Event()
        self._why_severed: GradserveError | None = None
        self.present = tuple(range(options.workers))

    async def start(self, listener: Listener) -> None:
        """Connects and starts the workers.

        Returns when all are ready; at the start timeout also when only some are, and the others join later.

        Raises:
            Unsupported: the engine can't run.
            Unavailable: no cluster answers at the address, or it has no room for any worker.
        """
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._cluster.join)
        try:
            await asyncio.to_thread(self._place)
            for index in range(len(self._slots)):
                self._keep(self._loop.create_task(self._live(index)))
            await self._wait_started()
        except BaseException:
            await self.stop(0)
            raise
        self._keep(self._loop.create_task(self._guard()))
        if self._options.stall_timeout_seconds:
            self._keep(self._loop.create_task(self._watch()))

    async def severed(self) -> GradserveError:
        await self._severed.wait()
        assert self._why_severed is not None
        return self._why_severed

    async def stop(self, grace_seconds: float) -> None:
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for value in list(self._values):
            value.reference = value.array = None
        self._values.clear()
        if not self._severed.is_set():  # calls to a cluster that is gone end the process
            actors = [slot.actor for slot in self._slots if slot.actor is not None]
            for slot in self._slots:
                slot.actor = None
            await asyncio.to_thread(self._cluster.leave, actors)
        self._fetcher.shutdown(wait=False)

    def workers(self) -> list[WorkerInfo]:
        return [self._info(index, slot) for index, slot in enumerate(self._slots)]

    def _info(self, index: int, slot: _Slot) -> WorkerInfo:
        name = f"/job:worker/replica:0/task:{index}"
        kind = "GPU" if self._options.engine == "cupy" else "CPU"
        life = slot.current
        pid, memory = (life.pid, life.memory_bytes) if life is not None and life.alive else (0, 0)
        return WorkerInfo(
            name, f"{name}/device:{kind}:0", self._options.engine, slot.state, pid, memory, slot.restarts,
            self._options.threads, slot.node,
        )  # fmt: skip

    def speeds(self) -> tuple[Speed, ...]:
        return tuple([slot.speed for slot in self._slots])

    def link(self) -> Link:
        return _LINK

    # Programs and steps

    def is_loaded(self, worker: int, number: int) -> bool:
        life = self._slots[worker].current
        return life is not None and life.loaded.use(number)

    def load(self, worker: int, program: Program) -> None:
        slot = self._slots[worker]
        life = slot.current
        if life is not None and life.alive:
            unload = life.loaded.add(program.number, len(program.graph))
            slot.actor.load.remote(life.epoch, tuple(program), unload)

    def unload(self, number: int) -> None:
        for slot in self._slots:
            if slot.current is not None:
                slot.current.loaded.discard(number)

    def submit(self, worker: int, submission: Submission) -> Ticket:
        slot = self._slots[worker]
        life = slot.current
        count = submission.sent
        if life is None or not life.alive:
            # Its loss has been told: the step starts again.
            return Ticket(None, [Stored(None, worker) for _ in range(count)])
        pulled = [submission.inputs[position] for position in submission.arriving]
        self._introduce(slot, life, pulled)
        statuses = [ticket for ticket in submission.after if ticket is not None]
        arguments = _Arguments()
        leaving = Leaving(count, self._staying(life, submission))
        message = (
            submission.attempt, submission.segment, submission.program,
            [arguments.encode(value) for value in submission.inputs],
            None if submission.variables is None
            else {name: arguments.encode(value) for name, value in submission.variables.items()},
            submission.draws, submission.last, dict(submission.arriving),
        )  # fmt: skip
        written = submission.written
        returned = slot.actor.run.options(num_returns=1 + leaving.returns + len(written)).remote(
            life.epoch,
            message,
            leaving,
            written,
            len(statuses),
            *statuses,
            *[value.reference for value in arguments.given],
        )
        if leaving.returns or written:
            status, *rest = returned
        else:
            status, rest = returned, []
        outputs = [Stored(reference, worker) for reference in rest[:count]]
        self._values.update(outputs)
        copies = iter(rest[count : leaving.returns])
        for place, how in leaving.staying.items():
            outputs[place].offered, outputs[place].awaited = (life, submission.attempt), how.readers
            outputs[place].copy = next(copies) if how.copied else None
        run = _Run(
            submission.attempt, submission.segment, submission.fetched, written, status, arguments.given, pulled,
            outputs, rest[leaving.returns :], self._news,
        )  # fmt: skip
        life.runs[submission.attempt, submission.segment] = run
        self._when_done(status, lambda done: self._answered(worker, life, run, done))
        return Ticket(status, list(outputs))

    def _staying(self, life: _Incarnation, submission: Submission) -> dict[int, Staying]:
        """The outputs that all of their readers can pull from the worker's device."""
        staying: dict[int, Staying] = {}
        for place, destinations in enumerate(submission.destinations):
            readers = [self._slots[reader].current for reader in destinations]
            if readers and all(reader is not None and self._ways.lead(life.epoch, reader.epoch) for reader in readers):
                staying[place] = Staying(len(readers), place in submission.fetched)
        return staying

    def _introduce(self, slot: _Slot, life: _Incarnation, pulled: Sequence[Value]) -> None:
        """Tells a worker, once, how those are reached whose tensors it will pull."""
        for value in pulled:
            if isinstance(value, Stored) and value.offered is not None:
                maker = value.offered[0]
                if maker.epoch not in life.met:
                    life.met.add(maker.epoch)
                    peer = _Peer(self._slots[value.maker].actor, maker.epoch)
                    slot.actor.meet.remote(life.epoch, maker.epoch, Peer(peer.ask, peer.cut))

    def forget(self, worker: int, attempt: int) -> None:
        slot = self._slots[worker]
        life = slot.current
        if life is None or not life.alive or life.forgotten == attempt:
            return
        life.forgotten = attempt
        # Beside the segments: those of the attempt that wait at the worker won't run. (Ray's own way to cancel calls
        # may leave later calls of an actor that runs them in order waiting for ever.)
        slot.actor.forget.options(concurrency_group=LIFE).remote(life.epoch, attempt)

    def replace(self, worker: int, why: str) -> None:
        slot = self._slots[worker]
        life = slot.current
        if life is None or not life.alive:
            return
        log.warning("Worker %d is replaced: %s.", worker, why)
        if life.node == self._cluster.here:
            os.kill(life.pid, signal.SIGKILL)
        self._ray.kill(slot.actor, no_restart=False)
        self._lost(worker, life)

    def _answered(self, worker: int, life: _Incarnation, run: _Run, done: Future[Any]) -> None:
        """A call came to an end, one way or another."""
        if self._closing or not life.alive:
            return
        error = done.exception()
        if error is not None:
            self._broke(worker, life, run, error)
            return
        kind, *rest = done.result()
        if kind == wire.FAILED:
            self._end(life, run)
            self._listener.failed(worker, run.attempt, run.segment, rest[0])
        elif kind == STALE:
            self._missing(worker, life, run, rest[0])
        elif kind == GONE:
            self._end(life, run)
            self._listener.missing(worker, run.attempt, run.segment)
        else:
            draws, sizes = rest
            for value, size in zip(run.given, sizes, strict=True):
                value.nbytes = size
            for value in run.pulled:
                if isinstance(value, Stored) and value.awaited:
                    value.awaited -= 1
            self._bring(worker, life, run, draws)

    def _end(self, life: _Incarnation, run: _Run) -> None:
        life.runs.pop((run.attempt, run.segment), None)

    def _bring(self, worker: int, life: _Incarnation, run: _Run, draws: dict[str, int] | None) -> None:
        """Fetches what must be here before the segment counts as finished."""
        wanted = [found for position in run.fetched for found in run.outputs[position].objects()] + run.updates
        if None in wanted:  # freed meanwhile: nobody waits for the step any more
            wanted = []
        if not wanted:
            self._finish(worker, life, run, draws, [])
            return
        ready, _ = self._ray.wait(wanted, num_returns=len(wanted), timeout=0)
        if len(ready) == len(wanted):
            self._fetched(worker, life, run, draws, self._fetch(wanted))
            return
        future = self._loop.run_in_executor(self._fetcher, self._fetch, wanted)
        future.add_done_callback(lambda done: self._fetched(worker, life, run, draws, done.result()))

    def _fetch(self, references: Sequence[Any]) -> list[Any] | Exception:
        try:
            return self._ray.get(list(references))
        except self._ray.exceptions.RayError as error:
            return error

    def _fetched(
        self, worker: int, life: _Incarnation, run: _Run, draws: dict[str, int] | None, found: list[Any] | Exception
    ) -> None:
        if self._closing or not life.alive:
            return
        if isinstance(found, Exception):
            self._broke(worker, life, run, found)
        else:
            self._finish(worker, life, run, draws, found)

    def _finish(
        self, worker: int, life: _Incarnation, run: _Run, draws: dict[str, int] | None, found: list[Any]
    ) -> None:
        self._end(life, run)
        updates: dict[str, Value] = {}
        if found:
            values = iter(found)
            for position in run.fetched:
                run.outputs[position].take(values)
            for name, reference, value in zip(run.written, run.updates, values, strict=True):
                if type(value) is tuple:
                    updates[name] = unpack(value)
                elif value is not None:
                    updates[name] = Stored(reference, worker, _read_only(value))
                    self._values.add(updates[name])
        self._listener.finished(worker, run.attempt, run.segment, None, updates or None, draws)

    def _broke(self, worker: int, life: _Incarnation, run: _Run, error: BaseException) -> None:
        """A call, or bringing its results here, raised what is Ray's and no kernel's."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayActorError) and not isinstance(error, exceptions.RayTaskError):
            self._lost(worker, life)
        elif isinstance(error, _losses(exceptions)):
            self._missing(worker, life, run)
        else:
            self._end(life, run)
            full = isinstance(error, (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError))
            kind = LimitExceeded if full else GradserveError
            failure = kind(f"Worker {worker} could not run a segment: {first_line(error)}", worker=worker)
            self._listener.failed(worker, run.attempt, run.segment, failure)

    def _missing(self, worker: int, life: _Incarnation, run: _Run, way: Way | None = None) -> None:
        """Something that a call needed is gone: told when the loss of a worker has been, or is not heard of in time."""
        self._end(life, run)
        self._keep(self._loop.create_task(self._tell_missing(worker, life, run, way)))

    async def _tell_missing(self, worker: int, life: _Incarnation, run: _Run, way: Way | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.news.wait(), _NEWS_SECONDS)
        if self._closing:
            return
        if way is not None and self._ways.cut(way.maker, way.reader, way.why):
            for slot in self._slots:
                if slot.current is not None and slot.current.epoch == way.maker:
                    slot.actor.cut.options(concurrency_group=LIFE).remote(way.maker, way.reader)
        if life.alive:
            self._listener.missing(worker, run.attempt, run.segment)

    # Tensors

    def put(self, array: Array) -> Value:
        if array.nbytes <= INLINE_BYTES or array.dtype == np.dtype(object):
            return array
        try:
            value = Stored(self._ray.put(np.ascontiguousarray(array)), _HERE)
        except self._ray.exceptions.ObjectStoreFullError as error:
            raise LimitExceeded(
                f"There is no room for {array.nbytes} bytes in the object store: {first_line(error)}",
                bytes=array.nbytes,
            ) from None
        self._values.add(value)
        return value

    def get(self, value: Value) -> Array:
        if not isinstance(value, Stored):
            return value
        if value.array is not None:
            return value.array
        found = self._fetch([value.reference])
        if isinstance(found, Exception):
            raise Unavailable(f"A tensor was lost with the machine that held it: {first_line(found)}")
        return _read_only(unpack(found[0]))

    def size_bytes(self, value: Value) -> int:
        return value.nbytes

    def retain(self, value: Value) -> None:
        if isinstance(value, Stored):
            value.users += 1

    def free(self, value: Value) -> None:
        if not isinstance(value, Stored):
            return
        value.users -= 1
        if not value.users:
            # Ray frees the object when its last call that reads it has ended.
            value.reference = value.copy = value.array = None
            self._values.discard(value)
            if value.awaited and value.offered is not None:  # its attempt has failed: nobody will pull it
                life, attempt = value.offered
                if life is self._slots[value.maker].current:
                    self.forget(value.maker, attempt)

    # Workers

    def _place(self) -> None:
        for slot, bundle in zip(self._slots, self._cluster.reserve(len(self._slots)), strict=True):
            slot.bundle = bundle
            slot.actor = self._cluster.start(bundle)

    async def _wait_started(self) -> None:
        """Returns when all workers are ready, or at the timeout when some are. Raises Unavailable, Unsupported."""
        deadline = self._loop.time() + self._options.start_timeout_seconds
        while any(slot.state == "starting" for slot in self._slots) and self._loop.time() < deadline:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), deadline - self._loop.time())
            for slot in self._slots:
                if slot.error is not None:
                    raise slot.error
        for index, slot in enumerate(self._slots):
            if slot.state == "starting":
                self._leave(index, self._cluster.no_room())
        if not self.present:
            raise self._cluster.no_room()

    def _leave(self, index: int, error: GradserveError) -> None:
        """A worker is not part of the fleet, until it is ready again."""
        slot = self._slots[index]
        slot.state = "failed"
        self._count()
        log.warning("Worker %d has left the fleet: %s", index, error.message)
        self._listener.unavailable(index, error)

    def _count(self) -> None:
        self.present = tuple([index for index, slot in enumerate(self._slots) if slot.state != "failed"])

    async def _live(self, index: int) -> None:
        """A worker's lives, one after another."""
        slot = self._slots[index]
        while True:
            life = await self._begin(index)
            if life is None:
                return
            slot.current, slot.node = life, f"{life.host} ({life.node[:8]})"
            slot.state = "ready"
            slot.speed = life.speed
            self._count()
            self._changed.set()
            self._ways.enter(index, life.epoch, life.gpu)
            self._listener.ready(index)
            self._when_done(
                slot.actor.live.options(concurrency_group=LIFE).remote(),
                lambda done, life=life: self._lost(index, life),
            )
            await life.ended.wait()
            slot.restarts += 1

    async def _begin(self, index: int) -> _Incarnation | None:
        """Waits until the worker answers. None where it never will."""
        slot = self._slots[index]
        failures = 0
        deadline = self._loop.time() + self._options.start_timeout_seconds
        while True:
            epoch = uuid.uuid4().hex
            future = asyncio.wrap_future(slot.actor.hello.remote(epoch).future())
            try:
                await asyncio.wait([future], timeout=max(deadline - self._loop.time(), 0))
                if not future.done() and slot.state == "lost":
                    self._leave(index, self._cluster.no_room())
                hello = await future
            except self._ray.exceptions.ActorUnavailableError:  # it is down: so Ray says at once
                if self._loop.time() > deadline and slot.state == "lost":
                    self._leave(index, self._cluster.no_room())
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except self._ray.exceptions.RayActorError as error:
                failures += 1
                if failures == _MOST_FAILED_STARTS:
                    self._give_up(index, Unavailable(f"A worker does not start: {first_line(error)}", worker=index))
                    return None
                await asyncio.sleep(_RETRY_SECONDS * 2**failures)
                assert slot.bundle is not None
                slot.actor = self._cluster.start(slot.bundle)
                continue
            if hello.error is not None:
                self._give_up(index, hello.error)
                return None
            return _Incarnation(epoch, hello, self._options.segment_bytes, self._loop.time())

    def _give_up(self, index: int, error: GradserveError) -> None:
        slot = self._slots[index]
        slot.error = error
        starting = slot.state == "starting"
        self._changed.set()
        if not starting:
            self._leave(index, error)

    def _lost(self, index: int, life: _Incarnation) -> None:
        """A worker is gone with all that it was running; Ray starts it again."""
        if self._closing or not life.alive:
            return
        life.alive = False
        life.runs.clear()
        self._slots[index].state = "lost"
        for worker in self._ways.leave(life.epoch):
            slot = self._slots[worker]
            if slot.current is not None:
                slot.current.met.discard(life.epoch)
                slot.actor.part.options(concurrency_group=LIFE).remote(slot.current.epoch, life.epoch)
        if life.node != self._cluster.here:
            self._save(index)
        log.warning("Worker %d on %s was lost; it starts again.", index, life.host)
        self._listener.lost(index)
        life.ended.set()
        self._news.set()
        self._news = asyncio.Event()

    def _save(self, worker: int) -> None:
        """Puts what a lost machine made and this one has into the object store here."""
        for value in list(self._values):
            if value.maker == worker and value.array is not None:
                value.reference, value.maker = self._ray.put(value.array), _HERE

    async def _guard(self) -> None:
        """Tells when this machine's node has ended."""
        self._sever(await self._cluster.node_ended())

    def _sever(self, why: str) -> None:
        """The fleet has left its cluster for ever."""
        error = Unavailable(
            f"This machine's Ray node has ended ({why}), as nodes do when the head of their cluster is lost: the "
            "coordinator must be started again.",
            address=self._options.address,
        )
        self._closing = True
        for index, slot in enumerate(self._slots):
            if slot.current is not None:
                slot.current.alive = False
            self._leave(index, error)
        self._why_severed = error
        self._severed.set()

    async def _watch(self) -> None:
        """Ends workers that are silent for too long: stopped, frozen or swapped out."""
        timeout = self._options.stall_timeout_seconds
        pause = timeout / _BEATS
        while True:
            before = self._loop.time()
            for slot in self._slots:
                life = slot.current
                if life is not None and life.alive:
                    beat = slot.actor.beat.options(concurrency_group=LIFE).remote()
                    self._when_done(beat, lambda done, life=life: self._heard(life, done))
            await asyncio.sleep(pause)
            now = self._loop.time()
            if now - before > 2 * pause:
                continue  # this process stood still itself: what the workers said meanwhile is yet to be read
            for index, slot in enumerate(self._slots):
                life = slot.current
                if life is None or not life.alive or now - life.heard < timeout:
                    continue
                self.replace(index, f"it has been silent for {now - life.heard:.1f} s")

    def _heard(self, life: _Incarnation, done: Future[int]) -> None:
        if done.exception() is None:
            life.heard = self._loop.time()
            life.memory_bytes = done.result()

    # Small things

    def _when_done(self, reference: Any, then: Callable[[Future[Any]], None]) -> None:
        """Calls back on the loop when a call has ended."""

        def tell(done: Future[Any]) -> None:
            if not self._closing:
                with contextlib.suppress(RuntimeError):  # the loop was closed without stop()
                    self._loop.call_soon_threadsafe(then, done)

        reference.future().add_done_callback(tell)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("A worker is no longer watched over.", exc_info=task.exception())


class _Arguments:
    """Gathers the stored tensors of a call."""

    def __init__(self) -> None:
        self.given: list[Stored] = []
        self._places: dict[int, Argument] = {}

    def encode(self, value: Value) -> Any:
        """What stands for a value in the message."""
        if isinstance(value, Stored):
            place = self._places.get(id(value))
            if place is None:
                place = self._places[id(value)] = Argument(len(self.given))
                self.given.append(value)
            return place
        return tuple(value) if isinstance(value, Kept) else pack(value)


class _Peer:
    """Runs in a worker: how another one is reached."""

    def __init__(self, actor: Any, epoch: str) -> None:
        self._actor = actor
        self._epoch = epoch

    def ask(self, reader: str, link: Any, keys: tuple[Key, ...]) -> Callable[[float], Answer]:
        """See transport.Peer."""
        import ray
        import ray.exceptions

        call = self._actor.give.options(concurrency_group=PEERS).remote(self._epoch, reader, link, keys)

        def answer(seconds: float) -> Answer:
            try:
                return ray.get(call, timeout=seconds)
            except ray.exceptions.GetTimeoutError as error:
                raise TimeoutError from error
            except ray.exceptions.RayError as error:
                raise ConnectionError(first_line(error)) from error

        return answer

    def cut(self, reader: str) -> None:
        """See transport.Peer."""
        self._actor.cut.options(concurrency_group=PEERS).remote(self._epoch, reader)


def _losses(exceptions: Any) -> tuple[type[Exception], ...]:
    """What a call raises when an input of it is gone, or was never made."""
    return (
        exceptions.RayActorError, exceptions.ObjectLostError, exceptions.TaskCancelledError,
        exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.ObjectFetchTimedOutError,
    )  # fmt: skip


def _read_only(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    return value
