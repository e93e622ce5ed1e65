"""A worker as an actor of a cluster's: its calls come with tensors in place of references, and so do its answers.

What runs, and what a step keeps, is the `Worker` of `worker.py`. The cluster's scheduler brings arguments here, so this
file knows nothing of it: a call's tensors are `arrays`, and an `Argument` in the message says which one stands where.

The first value that `run` returns is its status, which later segments on other workers take as an argument:
    (DONE, draws, sizes)   the sent outputs and new values follow; the bytes of each array that came with the call
    (FAILED, error)        what waits for it fails with the same error, without running
    (STALE, way)           the caller spoke to an earlier incarnation of this worker (way is None), or there is no way
                           to an input that another worker offered (way is a Way)
    (GONE,)                another worker has dropped an input that it offered, as it does when a step is abandoned

Beside `run`, an actor with a GPU answers the others of its kind: `give` moves a tensor that it offered to one of them.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from gradserve.errors import Cancelled, GradserveError
from gradserve.workers import worker as wire
from gradserve.workers.memory import Array, Mapper, Pool, size_bytes
from gradserve.workers.speed import measure
from gradserve.workers.transport import Answer, Gpu, Key, Offer, Peer, Transport, probe
from gradserve.workers.worker import Staying, Worker

STALE, GONE = 100, 101
_MOST_FAILED_ATTEMPTS = 1024
# Beside tensors and kernels: Ray's threads, which end the process when they find no memory. Stacks of another 56 MiB
# come with the first large tensors.
_CLUSTER_BYTES = 128 << 20


class Argument(NamedTuple):
    """Stands for array `position` of a call."""

    position: int


class Leaving(NamedTuple):
    """What leaves with a run.

    Attributes:
        sent: how many outputs.
        staying: by place among them, those that may stay on the device.
    """

    sent: int
    staying: dict[int, Staying]

    @property
    def returns(self) -> int:
        """How many values come back: the outputs, then once more those of them that stay and are copied."""
        return self.sent + sum(how.copied for how in self.staying.values())


class Way(NamedTuple):
    """The way from one worker's device to another's, by their epochs, and what is wrong with it."""

    maker: str
    reader: str
    why: str


class Hello(NamedTuple):
    """What an incarnation says of itself when it starts.

    Attributes:
        pid: its process.
        node: the cluster's name of its machine.
        host: its machine's own name.
        memory_bytes: resident memory.
        speed: what `speed.measure` found.
        error: why it can't run, None where it can.
        gpu: its device, where tensors can go from it to others' and back; or why not; None where nobody asked.
    """

    pid: int
    node: str
    host: str
    memory_bytes: int
    speed: tuple[float, ...]
    error: GradserveError | None
    gpu: Gpu | str | None = None


class _Objects(Pool):
    """Tensors leave as they are: the cluster's object store takes them."""

    def __init__(self) -> None:
        super().__init__("", "")

    def store(self, array: Array) -> Any:
        return np.ascontiguousarray(array)


class Actor:
    """One worker of a cluster. `run` and `load` are called one at a time, the others beside them."""

    def __init__(
        self, engine: str, environment: dict[str, str], threads: int, memory_limit_bytes: int, link_seconds: float,
        node: Callable[[], str],
    ) -> None:  # fmt: skip
        """Sets the environment before the engine's libraries read it.

        A limit of 0 is none. `link_seconds` is how long a transfer between GPUs may stand still; 0: there are none.
        """
        os.environ.update(environment)
        self._epoch = ""
        self._node = node()
        self._error: GradserveError | None = None
        self._worker: Worker | None = None
        self._speed: tuple[float, ...] = ()
        self._memory_limit = memory_limit_bytes
        self._link_seconds = link_seconds
        self._gpu: Gpu | str | None = None
        self._failed: OrderedDict[int, tuple[Any, ...]] = OrderedDict()
        try:
            module = wire.load_engine(engine)
            threadpool_limits(threads)
            self._speed = tuple(measure())
            self._worker = Worker(module, _Objects(), Mapper(""))
            if link_seconds and engine == "cupy":
                self._gpu = _probed()
        except GradserveError as error:
            self._error = wire.as_error(error)

    def hello(self, epoch: str) -> Hello:
        """Begins an incarnation: nothing is loaded or kept, and calls that name an earlier epoch do nothing."""
        self._epoch = epoch
        self._failed.clear()
        old = self._worker
        if old is not None:
            if old.transport is not None:
                old.transport.close()
            transport = Transport(epoch, self._link_seconds) if isinstance(self._gpu, Gpu) else None
            self._worker = Worker(old.engine, old.pool, old.mapper, transport)
        return Hello(
            os.getpid(), self._node, os.uname().nodename, self.beat(), self._speed, self._error, self._gpu
        )  # fmt: skip

    def live(self) -> None:
        """Never returns: the caller learns of this process's end by the call's."""
        threading.Event().wait()

    def beat(self) -> int:
        """A sign of life: resident memory, bytes."""
        if (transport := self._transport(self._epoch)) is not None:
            transport.sweep()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def load(self, epoch: str, program: tuple[Any, ...], unload: list[int]) -> None:
        """Takes a program; drops others."""
        if epoch == self._epoch and self._worker is not None:
            self._worker.handle((wire.LOAD, *program, unload))

    def forget(self, epoch: str, attempt: int) -> None:
        """Drops what was kept for an attempt; what still comes of it is not run. Called beside `run`."""
        if epoch == self._epoch:
            self._abandon(attempt, (wire.FAILED, Cancelled("The step was abandoned.")))

    # Between GPUs

    def meet(self, epoch: str, maker: str, peer: Peer) -> None:
        """Learns how another worker is reached, before a run that reads what it offers."""
        if (transport := self._transport(epoch)) is not None:
            transport.meet(maker, peer)

    def part(self, epoch: str, peer: str) -> None:
        """Another worker is gone. Called beside `run`."""
        if (transport := self._transport(epoch)) is not None:
            transport.part(peer)

    def give(self, epoch: str, reader: str, link: Any, keys: tuple[Key, ...]) -> Answer:
        """Another worker asks for what this one offers. One call at a time, beside `run`."""
        transport = self._transport(epoch)
        return Answer(None) if transport is None else transport.give(reader, link, keys)

    def cut(self, epoch: str, reader: str) -> None:
        """A reader won't use its link any more. Called beside `run`."""
        if (transport := self._transport(epoch)) is not None:
            transport.cut(reader)

    def _transport(self, epoch: str) -> Transport | None:
        return self._worker.transport if epoch == self._epoch and self._worker is not None else None

    # Segments

    def run(
        self,
        epoch: str,
        message: tuple[Any, ...],
        leaving: Leaving,
        written: tuple[str, ...],
        statuses: int,
        *arguments: Any,
    ) -> Any:
        """Runs a loaded program.

        Args:
            epoch: the incarnation that the caller means.
            message: the fields of wire.RUN from the attempt to `arriving`, with an Argument where an array stands.
            leaving: what leaves.
            written: names of the variables that may get new values.
            statuses: how many of the arguments are statuses of segments that must have run before.
            arguments: statuses, then arrays.

        Returns:
            The status alone where nothing else can come, or else the status, what leaves and a value for each name in
            `written`: None for what has not changed, or did not run.
        """
        status, outputs, updates = self._run(epoch, message, leaving, arguments[:statuses], arguments[statuses:])
        if status[0] != wire.DONE:
            outputs = [None] * leaving.returns
            updates = {}
        unforeseen = [name for name in updates if name not in written]
        if unforeseen:
            error = GradserveError(
                f"The segment assigned {unforeseen[0]}, which its plan does not count among what it writes.",
                variable=unforeseen[0],
            )
            return self._answer((wire.FAILED, error), [None] * leaving.returns, {}, written)
        return self._answer(status, outputs, updates, written)

    def _answer(
        self, status: tuple[Any, ...], outputs: list[Any], updates: dict[str, Any], written: tuple[str, ...]
    ) -> Any:
        if not outputs and not written:
            return status
        return status, *outputs, *(updates.get(name) for name in written)

    def _run(
        self, epoch: str, message: tuple[Any, ...], leaving: Leaving, before: tuple[Any, ...], arrays: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], list[Any], dict[str, Any]]:
        attempt, segment, program, inputs, variables, draws, last, arriving = message
        self._limit()
        worker = self._worker
        if epoch != self._epoch or worker is None:
            return (STALE, None), [], {}
        failed = self._failed.get(attempt) or next((status for status in before if status[0] != wire.DONE), None)
        if failed is None:
            inputs = [_resolve(value, arrays) for value in inputs]
            if variables is not None:
                variables = {name: _resolve(value, arrays) for name, value in variables.items()}
            answer = worker.handle(
                (wire.RUN, (), attempt, segment, program, inputs, variables, draws, last, arriving, leaving.staying)
            )
            assert answer is not None
            if attempt in self._failed:  # forgotten while it ran
                worker.handle((wire.FORGET, attempt))
            if answer[0] == wire.DONE:
                _, _, _, outputs, updates, drawn = answer
                return (wire.DONE, drawn, tuple(map(_size_bytes, arrays))), outputs, updates or {}
            failed = (wire.FAILED, answer[3]) if answer[0] == wire.FAILED else self._lost(*answer[3:])
        self._abandon(attempt, failed)
        return failed, [], {}

    def _lost(self, maker: str, broken: str) -> tuple[Any, ...]:
        return (STALE, Way(maker, self._epoch, broken)) if broken else (GONE,)

    def _limit(self) -> None:
        """Bounds the memory before the first run: while an actor starts, the cluster's threads still grow."""
        if self._memory_limit and self._worker is not None:
            self._worker.engine.limit_memory(self._memory_limit, _CLUSTER_BYTES)
            self._memory_limit = 0

    def _abandon(self, attempt: int, status: tuple[Any, ...]) -> None:
        self._failed[attempt] = status
        if len(self._failed) > _MOST_FAILED_ATTEMPTS:
            self._failed.popitem(last=False)
        if self._worker is not None:
            self._worker.handle((wire.FORGET, attempt))


def _size_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, Offer) else size_bytes(value)


def _probed() -> Gpu | str:
    try:
        return probe()
    except (ImportError, RuntimeError) as error:
        return str(error)


def _resolve(value: Any, arrays: tuple[Any, ...]) -> Any:
    return arrays[value.position] if isinstance(value, Argument) else value
