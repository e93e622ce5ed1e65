"""Tensors from GPU to GPU by NCCL, between the workers of a cluster, without a copy on a host.

A worker that made a tensor offers it: the tensor stays on its device, and an `Offer` travels. A worker that is about to
read it asks the maker for it, and both move it over a link: a communicator of these two, for this direction.

    reader                                            maker
    pull(offers)   ── reader, link, keys ──────────▶  give: looks the tensors up, has its end of the link send them
                   ◀── the link that it uses ───────
    receives at its end of the link

A reader asks for one thing after another, and a maker serves a reader in that order: sends and receives match without a
common clock. Queues of segments have no part in it.

What NCCL does, a communicator's creation as much as a transfer, waits for the other end without an end of its own, and
an abort while another thread is within a call frees what that call uses. So each end of a link has a thread that makes
all of its calls, the abort too, and looks at events in between; everybody else hands it jobs, and waits for them with
a deadline. A link in trouble is dropped: its jobs fail at once, and its thread ends as soon as NCCL lets it. The
tensors of a transfer that is under way are held until then. CuPy is imported where it is known to be there.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from gradserve.workers.memory import INLINE_BYTES

# Of the links to makers: each takes device memory. The one that was idle longest makes room.
_MOST_LINKS = 16
# Threads that NCCL has not let go yet. More of them, and no new link is made: tensors go through the host.
_MOST_LEFT = 8
# Peers that are gone, and whose questions may still be on their way.
_MOST_GONE = 1024
_LATE, _LEFT, _PARTED = "a transfer has not ended in time", "the other end has left the link", "the other end is gone"
_SLOWEST_BYTES_PER_SECOND = 50e6
_POLL_SECONDS = (0.0, 5e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)


class Gpu(NamedTuple):
    """What a worker can say of its device.

    Attributes:
        identity: of the device; two workers with the same one share it, which NCCL does not allow.
        version: of NCCL; both ends must have the same.
    """

    identity: str
    version: int


class Key(NamedTuple):
    """A tensor of an attempt at a step: output `position` of a program."""

    attempt: int
    program: int
    position: int


class Offer(NamedTuple):
    """A tensor that has stayed with its maker, as it travels to those that will pull it.

    Attributes:
        maker: the epoch of the worker's incarnation.
        key: what it is asked for by.
    """

    maker: str
    key: Key
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class Lost(Exception):
    """An offered tensor could not be had.

    Attributes:
        maker: whose it was.
        broken: what is wrong with the way from there, empty where the maker has dropped the tensor.
    """

    def __init__(self, maker: str, broken: str = "") -> None:
        super().__init__(maker, broken)
        self.maker = maker
        self.broken = broken


class Answer(NamedTuple):
    """What a maker says when it is asked.

    Attributes:
        link: the name of the link that it sends on, None where it sends nothing.
        broken: why it has no link to the reader; empty where it is a tensor that it lacks.
    """

    link: Any
    broken: str = ""


class Peer(NamedTuple):
    """How a maker is reached. Both calls raise ConnectionError where it is gone.

    Attributes:
        ask: (reader's epoch, name of the link that it has or None, keys) -> a function that waits for the answer, at
            most so many seconds. The maker gets the questions of one reader in their order.
        cut: (reader's epoch): the link is no longer used. Waits for nothing.
    """

    ask: Callable[[str, Any, tuple[Key, ...]], Callable[[float], Answer]]
    cut: Callable[[str], None]


def probe() -> Gpu:
    """What this process can say of its device. Raises ImportError, with the reason, where it has no NCCL."""
    cupy: Any = importlib.import_module("cupy")
    nccl: Any = importlib.import_module("cupy.cuda.nccl")
    if not nccl.available:
        raise ImportError("CuPy finds no NCCL: pip install nvidia-nccl-cu12")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return Gpu(properties["uuid"].hex(), nccl.get_version())


class Transport:
    """One incarnation of a worker as a maker and as a reader of tensors.

    `offer` and `pull` are called by the thread that runs segments, `give` by another one, the rest by any.
    """

    def __init__(self, epoch: str, seconds: float) -> None:
        """`seconds`: how long a link may take to do what NCCL does in an instant, before it counts as broken."""
        self._epoch = epoch
        self._seconds = seconds
        self._cupy: Any = importlib.import_module("cupy")
        self._nccl: Any = importlib.import_module("cupy.cuda.nccl")
        self._lock = threading.Lock()
        self._offered: dict[Key, _Offered] = {}
        self._to: dict[str, _Link] = {}
        self._from: OrderedDict[str, _Link] = OrderedDict()
        self._peers: dict[str, Peer] = {}
        self._left: set[_Link] = set()
        self._gone: OrderedDict[str, None] = OrderedDict()

    # As a maker

    def takes(self, value: Any) -> bool:
        """Whether a value is worth staying: an array of the device that does not fit in a message."""
        return isinstance(value, self._cupy.ndarray) and value.nbytes > INLINE_BYTES

    def offer(self, key: Key, array: Any, readers: int) -> Offer:
        """Keeps a tensor for so many readers, each of which pulls it once."""
        held = self._cupy.ascontiguousarray(array)
        made = self._cupy.cuda.get_current_stream().record()
        with self._lock:
            self._offered[key] = _Offered(held, made, readers)
        return Offer(self._epoch, key, array.shape, array.dtype)

    def give(self, reader: str, link: Any, keys: Sequence[Key]) -> Answer:
        """Sends tensors to a reader on its link; on a new one where it does not have the one that there is."""
        with self._lock:
            found = [self._offered.get(key) for key in keys]
            used = self._to.get(reader)
        offered = [entry for entry in found if entry is not None]
        if len(offered) < len(keys):
            return Answer(None)
        if used is None or used.broken or used.name != link:
            if used is not None:
                self._drop(used, _LEFT)
            if self._has_left():
                return Answer(None, "too many broken links have not ended yet")
            try:
                name = self._nccl.get_unique_id()
            except RuntimeError as error:
                return Answer(None, str(error))
            used = _Link(self._cupy, self._nccl, name, 0)
            with self._lock:
                is_gone = reader in self._gone
                if not is_gone:
                    self._to[reader] = used
            if is_gone:
                self._drop(used, _PARTED)
        job = _Job(True, offered, lambda: self._taken(keys))
        job.deadline = self._deadline(offered)
        used.submit(job)
        return Answer(None, used.broken) if used.broken else Answer(used.name)

    def cut(self, reader: str) -> None:
        """Drops the link to a reader."""
        with self._lock:
            link = self._to.pop(reader, None)
        if link is not None:
            self._drop(link, _LEFT)

    def _taken(self, keys: Iterable[Key]) -> None:
        """A reader has got tensors, or will never."""
        with self._lock:
            for key in keys:
                entry = self._offered.get(key)
                if entry is not None:
                    entry.readers -= 1
                    if not entry.readers:
                        del self._offered[key]

    def release(self, attempt: int) -> None:
        """Drops what was offered for an attempt."""
        with self._lock:
            for key in [key for key in self._offered if key.attempt == attempt]:
                del self._offered[key]

    # As a reader

    def meet(self, epoch: str, peer: Peer) -> None:
        """Learns how a maker is reached."""
        with self._lock:
            self._peers[epoch] = peer

    def pull(self, offers: Sequence[Offer]) -> list[Any]:
        """The tensors, on this device. Raises Lost where one can't be had, MemoryError where they find no room."""
        by_maker: dict[str, list[Offer]] = {}
        for offer in offers:
            by_maker.setdefault(offer.maker, []).append(offer)
        empty = self._cupy.empty
        pulls = [_Pull(self, maker, own, [empty(o.shape, o.dtype) for o in own]) for maker, own in by_maker.items()]
        # All makers are asked before one is waited for. What one of them has begun to send is received in any case.
        for step in (_Pull.ask, _Pull.receive, _Pull.wait):
            for pull in pulls:
                pull.do(step)
        for pull in pulls:
            if pull.failed:
                raise Lost(pull.maker, pull.broken)
        arrays = {offer.key: array for pull in pulls for offer, array in zip(pull.offers, pull.arrays, strict=True)}
        return [arrays[offer.key] for offer in offers]

    def peer(self, maker: str) -> Peer:
        """How a maker is reached. Raises Lost."""
        peer = self._peers.get(maker)
        if peer is None:
            raise Lost(maker)
        return peer

    def link_from(self, maker: str) -> Any:
        """The name of the link from a maker, None where there is none that works."""
        link = self._from.get(maker)
        return None if link is None or link.broken else link.name

    def join(self, maker: str, name: Any) -> _Link:
        """This end of the link that a maker uses. Raises Lost where none can be made."""
        with self._lock:
            link = self._from.get(maker)
            if link is not None and link.name == name and not link.broken:
                self._from.move_to_end(maker)
                return link
        if link is not None:
            self.leave(maker, _LEFT)
            if link.name == name:  # a communicator's name serves once
                raise Lost(maker, link.broken)
        if self._has_left():
            raise Lost(maker, "too many broken links have not ended yet")
        link = _Link(self._cupy, self._nccl, name, 1)
        with self._lock:
            is_gone = maker in self._gone
            if not is_gone:
                self._from[maker] = link
            idle = [other for other, held in self._from.items() if held.is_idle and other != maker]
            spare = [(other, self._peers.get(other)) for other in idle[: max(len(self._from) - _MOST_LINKS, 0)]]
        if is_gone:
            self._drop(link, _PARTED)
        for other, peer in spare:
            self.leave(other, "another link took its place")
            if peer is not None:
                peer.cut(self._epoch)
        return link

    def leave(self, maker: str, why: str) -> None:
        """Drops the link from a maker: what it sends on it reaches nobody."""
        with self._lock:
            link = self._from.pop(maker, None)
        if link is not None:
            self._drop(link, why)

    # Both

    @property
    def epoch(self) -> str:
        """The incarnation's name."""
        return self._epoch

    @property
    def seconds(self) -> float:
        """How long the other end may take to answer."""
        return self._seconds

    def part(self, peer: str) -> None:
        """A reader or maker is gone: what waits for it fails at once."""
        with self._lock:
            self._gone[peer] = None
            if len(self._gone) > _MOST_GONE:
                self._gone.popitem(last=False)
            self._peers.pop(peer, None)
            links = [self._to.pop(peer, None), self._from.pop(peer, None)]
        for link in links:
            if link is not None:
                self._drop(link, _PARTED)

    def sweep(self) -> None:
        """Drops links that are late, also those whose threads NCCL holds: to be called now and then."""
        now = time.monotonic()
        with self._lock:
            late = [link for link in (*self._to.values(), *self._from.values()) if link.is_late(now)]
        for link in late:
            self._drop(link, _LATE)

    def close(self) -> None:
        """Drops everything."""
        with self._lock:
            links = [*self._to.values(), *self._from.values()]
            for held in (self._offered, self._to, self._from, self._peers):
                held.clear()
        for link in links:
            self._drop(link, "the worker began anew")

    def held(self) -> tuple[int, int]:
        """How many tensors are offered, and how many links have a job to do."""
        with self._lock:
            links = [*self._to.values(), *self._from.values()]
            return len(self._offered), sum(not link.is_idle for link in links)

    def _deadline(self, parts: Sequence[_Offered]) -> float:
        count = sum(part.array.nbytes for part in parts)
        return time.monotonic() + self._seconds + count / _SLOWEST_BYTES_PER_SECOND

    def _drop(self, link: _Link, why: str) -> None:
        link.drop(why)
        with self._lock:
            self._left = {other for other in (*self._left, link) if other.is_running}

    def _has_left(self) -> bool:
        """Whether too many threads of dropped links are still with NCCL."""
        with self._lock:
            return sum(link.is_running for link in self._left) > _MOST_LEFT


class _Offered:
    """A tensor and the event after which it is there; `readers` that have not pulled it yet."""

    __slots__ = ("array", "readers", "ready")

    def __init__(self, array: Any, ready: Any, readers: int = 1) -> None:
        self.array = array
        self.ready = ready
        self.readers = readers


class _Pull:
    """What is pulled from one maker, in three steps.

    Attributes:
        failed: whether one of them went wrong; `broken` as of Lost. No error is kept: it would keep the arrays.
    """

    def __init__(self, transport: Transport, maker: str, offers: Sequence[Offer], arrays: Sequence[Any]) -> None:
        self.maker = maker
        self.offers = offers
        self.arrays = arrays
        self.failed = False
        self.broken = ""
        self._transport = transport
        # The arrays' memory may have been another's until now: the kernels that are still to read that come first.
        ready = transport._cupy.cuda.get_current_stream().record()
        self._job = _Job(False, [_Offered(array, ready) for array in arrays])
        self._answer: Callable[[float], Answer] | None = None
        self._link: _Link | None = None

    def do(self, step: Callable[[_Pull], None]) -> None:
        """Does a step, unless an earlier one failed."""
        if self.failed:
            return
        try:
            step(self)
        except Lost as lost:
            self.failed, self.broken = True, lost.broken
        except ConnectionError as error:
            self._leave(f"the maker is gone: {error}")
        except TimeoutError:
            self._leave("the maker does not answer")

    def _leave(self, why: str) -> None:
        # It may send yet, and what comes next on the link would be taken for what was asked for later.
        self._transport.leave(self.maker, why)
        self.failed, self.broken = True, why

    def ask(self) -> None:
        transport = self._transport
        keys = tuple(offer.key for offer in self.offers)
        self._answer = transport.peer(self.maker).ask(transport.epoch, transport.link_from(self.maker), keys)

    def receive(self) -> None:
        assert self._answer is not None
        answer = self._answer(self._transport.seconds)
        if answer.link is None:
            raise Lost(self.maker, answer.broken)
        self._link = self._transport.join(self.maker, answer.link)
        self._job.deadline = self._transport._deadline(self._job.parts)
        self._link.submit(self._job)

    def wait(self) -> None:
        assert self._link is not None
        if not self._job.settled.wait(max(self._job.deadline - time.monotonic(), 0)):
            self._link.drop(_LATE)
            self._job.settled.wait()
        if self._job.error:
            self._leave(self._job.error)


class _Job:
    """Tensors to be sent or received on a link.

    Attributes:
        deadline: when it is late, on the monotonic clock.
        settled: set when they are through, or never will be; `error` says why then.
        then: called at that moment.
    """

    def __init__(self, sends: bool, parts: Sequence[_Offered], then: Callable[[], None] = lambda: None) -> None:
        self.sends = sends
        self.parts = parts
        self.deadline = 0.0
        self.then = then
        self.error = ""
        self.settled = threading.Event()

    def settle(self, error: str = "") -> None:
        self.error = error
        self.then()
        self.settled.set()


class _Link:
    """One end of a communicator of two, with the thread that makes its calls.

    Attributes:
        name: NCCL's unique id; both ends have the same.
        broken: why the link is not used any more, empty while it is.
    """

    def __init__(self, cupy: Any, nccl: Any, name: Any, rank: int) -> None:
        self.name = name
        self.broken = ""
        self._cupy = cupy
        self._nccl = nccl
        self._rank = rank
        self._lock = threading.Lock()
        self._waiting: list[_Job] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="link")
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self._waiting

    def is_late(self, now: float) -> bool:
        """Whether a job should have ended."""
        with self._lock:
            return any(now > job.deadline for job in self._waiting)

    @property
    def is_running(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def submit(self, job: _Job) -> None:
        """Has tensors sent or received after those before; the job is settled at once where the link is broken."""
        with self._lock:
            if not self.broken:
                self._waiting.append(job)
                self._jobs.put(job)
                return
        job.settle(self.broken)

    def drop(self, why: str) -> None:
        """Breaks the link: all of its jobs fail."""
        with self._lock:
            if self.broken:
                return
            self.broken = why
            waiting, self._waiting = self._waiting, []
        for job in waiting:
            job.settle(why)
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)

    def _work(self) -> None:
        communicator: Any = None
        stream: Any = None
        job: _Job | None = None
        try:
            communicator = self._nccl.NcclCommunicator(2, self.name, self._rank)
            stream = self._cupy.cuda.Stream(non_blocking=True)
            while not self.broken and (job := self._jobs.get()) is not None:
                self._transfer(communicator, stream, job)
        except (RuntimeError, KeyError) as error:  # NCCL's and CUDA's; CuPy has no name for NCCL's newest
            self.drop(str(error) or type(error).__name__)
        finally:
            if communicator is not None:
                communicator.abort()  # ends what is under way on the device
            if stream is not None:
                with contextlib.suppress(RuntimeError):
                    stream.synchronize()
            del job  # its tensors were in use until now

    def _transfer(self, communicator: Any, stream: Any, job: _Job) -> None:
        move = communicator.send if job.sends else communicator.recv
        for part in job.parts:
            stream.wait_event(part.ready)
            move(part.array.data.ptr, part.array.nbytes, self._nccl.NCCL_UINT8, 1 - self._rank, stream.ptr)
        through = stream.record()
        looks = 0
        while not through.done:
            if self.broken:
                return
            if time.monotonic() > job.deadline:
                self.drop(_LATE)
                return
            time.sleep(_POLL_SECONDS[min(looks, len(_POLL_SECONDS) - 1)])
            looks += 1
        with self._lock:
            if self.broken:
                return
            self._waiting.remove(job)
        job.parts = ()
        job.settle()
