"""What a fleet is: workers that load segments, run them, and hold tensors.

    workers()                     who there is
    load(worker, program)         a segment's program, before it is submitted
    submit(worker, submission)    runs a loaded segment; the answer comes as an event
    put(array) -> value           a tensor that any worker can read
    get(value) -> array           the tensor back
    retain(value), free(value)    values are counted; the last free gives the memory back

Events go to a `Listener`, on the fleet's event loop: a segment finished or failed, a worker was lost, is ready
again, or can't be had any more. A fleet never waits: what it can't do yet, it answers by an event.

Fleets differ in one thing. One that runs `at_once` gives the handles of a segment's outputs when it is submitted, and
takes them as inputs before the segment has run: a whole step is submitted in one go. The other takes a segment when
those before it have run.
"""

from __future__ import annotations

import abc
import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from gradserve.errors import GradserveError
from gradserve.server.cost import Link, Speed

Array = np.ndarray[Any, Any]
# An array that is small enough to travel in a message, or a fleet's own handle of one that is not.
Value = Any


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How many workers, and what runs in them. See RuntimeOptions.

    Attributes:
        memory_limit_bytes: for plans, and on the numpy engine for each worker's own memory; 0: none.
    """

    workers: int = 2
    engine: str = "numpy"
    threads: int = 1
    compile_now: bool = False
    segment_bytes: int = 256 << 20
    start_timeout_seconds: float = 60.0
    stall_timeout_seconds: float = 30.0
    memory_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker as `GetCluster` shows it.

    Attributes:
        name: ``/job:worker/replica:0/task:0``.
        device: the full device string of its device.
        engine: what runs its segments.
        state: ``starting``, ``ready``, ``lost`` (a new one is on its way) or ``failed`` (given up).
        pid: process id, 0 while there is none.
        memory_bytes: resident memory of the process, 0 where it can't be read.
        restarts: how often it has been replaced.
        threads: threads that its kernels may use.
        node: the machine that it runs on, empty where the fleet has only one.
    """

    name: str
    device: str
    engine: str
    state: str
    pid: int
    memory_bytes: int
    restarts: int
    threads: int
    node: str = ""


class Program(NamedTuple):
    """A segment as it travels to a worker.

    Attributes:
        number: the same program has the same number in every message.
        graph: bytes of a GraphDef; what comes from outside is a Placeholder in it.
        feeds: names of the tensors that are given, in order.
        fetches: names of the tensors that are computed, in order.
        targets: names of nodes that are run for their effect.
        kept: positions among the fetches that later segments on the same worker read, and how many segments do: the
            worker forgets one when the last of them has begun.
        sent: positions among the fetches that other workers or the caller read.
    """

    number: int
    graph: bytes
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    targets: tuple[str, ...]
    kept: tuple[tuple[int, int], ...]
    sent: tuple[int, ...]


class Kept(NamedTuple):
    """An input that the worker itself made earlier in the same step: output `position` of a program."""

    program: int
    position: int


class Ticket(NamedTuple):
    """What a fleet that runs at once gives for a submission: handles that are good before the segment has run.

    Attributes:
        done: for `Submission.after` of segments that must run later.
        outputs: the sent outputs, which are the caller's to free.
    """

    done: Any
    outputs: list[Value]


class Submission(NamedTuple):
    """One run of a segment.

    Attributes:
        attempt: the attempt at a step that this belongs to; an answer to an abandoned attempt is thrown away.
        segment: the segment's index in its plan, given back with the answer.
        program: number of the program, which must be loaded.
        inputs: values or Kept, one a feed.
        variables: values by name, as they were before the step; only those that the segment may read.
        draws: positions of the random streams before the step, None where the segment has none.
        last: no later segment of the attempt runs on this worker: it may forget what it kept.
        fetched: positions among the sent outputs that the caller will `get`.
        sent: how many outputs leave the worker.
        written: names of the variables that may have new values afterwards.
        after: tickets of segments on other workers that must have run before, in a fleet that runs at once.
        arriving: positions of the inputs that come from another worker for the first time in the attempt, with how many
            of this worker's segments read each.
        destinations: the workers that read each output that leaves.
    """

    attempt: int
    segment: int
    program: int
    inputs: Sequence[Value]
    variables: dict[str, Value] | None
    draws: dict[str, int] | None
    last: bool
    sent: int = 0
    fetched: tuple[int, ...] = ()
    written: tuple[str, ...] = ()
    after: Sequence[Any] = ()
    arriving: Mapping[int, int] = MappingProxyType({})
    destinations: tuple[tuple[int, ...], ...] = ()


class Listener(Protocol):
    """Takes a fleet's events."""

    def finished(
        self,
        worker: int,
        attempt: int,
        segment: int,
        outputs: list[Value] | None,
        updates: dict[str, Value] | None,
        draws: dict[str, int] | None,
    ) -> None:
        """A segment ran: its sent outputs (None where its ticket has them), new values of variables, new positions of
        random streams."""

    def failed(self, worker: int, attempt: int, segment: int, error: GradserveError) -> None:
        """A segment raised; the worker lives on."""

    def missing(self, worker: int, attempt: int, segment: int) -> None:
        """A segment could not run: an input of it was lost with the machine that held it. The worker lives on."""

    def lost(self, worker: int) -> None:
        """A worker died with all that it was running, had loaded and kept."""

    def ready(self, worker: int) -> None:
        """A worker takes submissions (again)."""

    def unavailable(self, worker: int, error: GradserveError) -> None:
        """A worker could not be replaced: no more submissions."""


def environment(engine: str, threads: int, compile_now: bool) -> dict[str, str]:
    """A worker's settings: thread pools read them once, when their library is loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    settings = {name: str(threads) for name in names}
    if engine == "xla":
        if threads == 1:
            flags = os.environ.get("XLA_FLAGS", "")
            settings["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        settings["NPROC"] = str(threads)
        settings["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
        settings["GRADSERVE_XLA_COMPILE_NOW"] = "1" if compile_now else "0"
    return settings


class Loaded:
    """The programs that one worker holds, within a bound of bytes.

    Invariant: `_dropped` are those that the worker has yet to be told to drop, with the next one that it loads.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._bytes = 0
        self._dropped: list[int] = []

    def use(self, number: int) -> bool:
        """Whether a program is there; marks it as used."""
        if number not in self._sizes:
            return False
        self._sizes.move_to_end(number)
        return True

    def add(self, number: int, size: int) -> list[int]:
        """Takes a program in; returns those to drop: what was discarded, and the least recently used to make room."""
        while self._sizes and self._bytes + size > self._limit:
            self.discard(next(iter(self._sizes)))
        self._sizes[number] = size
        self._bytes += size
        dropped, self._dropped = self._dropped, []
        return dropped

    def discard(self, number: int) -> None:
        """Gives a program up, if it is there."""
        size = self._sizes.pop(number, None)
        if size is not None:
            self._bytes -= size
            self._dropped.append(number)


class Fleet(abc.ABC):
    """Workers, numbered from 0. The same number stays the same worker through its replacements.

    Attributes:
        at_once: whether `submit` gives tickets, and takes their handles before their segments have run.
        present: the workers that take part: ready, or on their way. Plans are made for these.
    """

    at_once = False
    present: tuple[int, ...] = ()

    @abc.abstractmethod
    async def start(self, listener: Listener) -> None:
        """Starts the workers and returns when they are ready. Raises Unavailable, Unsupported."""

    @abc.abstractmethod
    async def stop(self, grace_seconds: float) -> None:
        """Ends the workers, by force after the grace, and frees every tensor."""

    @abc.abstractmethod
    def workers(self) -> list[WorkerInfo]:
        """Who there is, and how they are."""

    async def severed(self) -> GradserveError:
        """Returns, with the reason, when no worker will ever answer again. Processes can always be replaced."""
        return await asyncio.get_running_loop().create_future()

    def speeds(self) -> tuple[Speed, ...]:
        """How fast each worker is, as it was measured when it started; of ordinary speed where nothing was."""
        return (Speed(),) * len(self.workers())

    def link(self) -> Link:
        """What it takes to bring a tensor from one worker to another, measured at the start where it can be."""
        return Link()

    @abc.abstractmethod
    def is_loaded(self, worker: int, number: int) -> bool:
        """Whether the worker holds a program; marks it as used."""

    @abc.abstractmethod
    def load(self, worker: int, program: Program) -> None:
        """Gives a program to a worker; the least recently used ones make room."""

    @abc.abstractmethod
    def unload(self, number: int) -> None:
        """Gives a program up on every worker: it is hardly submitted again."""

    @abc.abstractmethod
    def submit(self, worker: int, submission: Submission) -> Ticket | None:
        """Runs a loaded program; the answer comes to the listener. A ticket where the fleet runs at once."""

    @abc.abstractmethod
    def forget(self, worker: int, attempt: int) -> None:
        """Drops what a worker kept for an attempt."""

    @abc.abstractmethod
    def replace(self, worker: int, why: str) -> None:
        """Ends a worker's process and starts another one, as if it had died by itself."""

    @abc.abstractmethod
    def put(self, array: Array) -> Value:
        """A value that every worker can read. Raises LimitExceeded where there is no memory left."""

    @abc.abstractmethod
    def get(self, value: Value) -> Array:
        """The array of a value, read-only; it keeps the value's memory for as long as it lives."""

    @abc.abstractmethod
    def size_bytes(self, value: Value) -> int:
        """The bytes that a value takes, known at the latest when a segment that reads it has run."""

    @abc.abstractmethod
    def retain(self, value: Value) -> None:
        """Counts one more user of a value."""

    @abc.abstractmethod
    def free(self, value: Value) -> None:
        """Counts one user less."""
