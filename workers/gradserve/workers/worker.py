"""A worker process: reads messages from its pipe, runs segments, answers. One thread, one message at a time, and a
second one that says at regular intervals that the process is not stopped.

To the worker:   (LOAD, number, graph, feeds, fetches, targets, kept, sent, unload)
                 (RUN, frees, attempt, segment, program, inputs, variables, draws, last[, arriving, staying])
                 (FORGET, attempt)   (FREE, frees)   (STOP,)
                 (PING,)
From the worker: (READY, speed or None) or (CANNOT, error), once
                 (DONE, attempt, segment, outputs, updates, draws)   (FAILED, attempt, segment, error)
                 (LOST, attempt, segment, maker, broken)   see transport.Lost
                 (BEAT,) now and then, and in answer to PING
A tensor in a message is a packed array, a Reference into shared memory, an Offer of another worker's with a GPU, or,
as an input, a (program, position) pair of something that this worker computed earlier in the step. `arriving` says
which inputs may be offers that are seen here for the first time, and how many segments read each; `staying`, which
sent outputs may stay on the device, for how many other workers, and whether the host wants them too: those come once
more, after the outputs. The worker ends when the pipe does.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

import gradserve.autodiff  # some ops of the catalogue are made of gradients
import gradserve.ops  # the catalogue  # noqa: F401
from gradserve.errors import GradserveError, LimitExceeded, Unsupported
from gradserve.graph import codec
from gradserve.graph.variants import Variant
from gradserve.workers.memory import INLINE_BYTES, Mapper, Pool, Reference, pack, unpack
from gradserve.workers.segment import Handle, Segment, State
from gradserve.workers.speed import measure
from gradserve.workers.transport import Key, Lost, Offer, Transport

LOAD, RUN, FORGET, FREE, STOP, READY, CANNOT, DONE, FAILED, LOST, BEAT, PING = range(12)
HEADER = struct.Struct("<Q")


class Loaded(NamedTuple):
    """A program, compiled; or why it could not be."""

    run: Callable[[list[Any], State], list[Any]] | None
    error: GradserveError | None
    kept: tuple[tuple[int, int], ...]
    sent: tuple[int, ...]


class Kept:
    """A value that later segments of a step read, and how many are still to come."""

    __slots__ = ("readers", "value")

    def __init__(self, value: Any, readers: int) -> None:
        self.value = value
        self.readers = readers


class Step:
    """What the worker knows of one attempt at a step: tensors that it keeps, and the variables so far."""

    __slots__ = ("kept", "state")

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Kept] = {}
        self.state = State()

    def take(self, key: tuple[int, int]) -> Any:
        """What was kept for one more reader; after the last one it is forgotten."""
        entry = self.kept[key]
        entry.readers -= 1
        if not entry.readers:
            del self.kept[key]
        return entry.value


class Staying(NamedTuple):
    """What becomes of an output that may stay on the device: how many workers pull it, and whether it is copied too."""

    readers: int
    copied: bool


_NOTHING: Mapping[int, Any] = MappingProxyType({})


class Worker:
    """Does what messages say."""

    def __init__(self, engine: ModuleType, pool: Pool, mapper: Mapper, transport: Transport | None = None) -> None:
        self.engine = engine
        self.pool = pool
        self.mapper = mapper
        self.transport = transport
        self.programs: dict[int, Loaded] = {}
        self.steps: dict[int, Step] = {}

    def handle(self, message: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Does what a message says and returns the answer, if it has one."""
        kind = message[0]
        if kind == RUN:
            self._free(message[1])
            return self._run(*message[2:])
        if kind == LOAD:
            self._load(*message[1:])
        elif kind == FORGET:
            self.steps.pop(message[1], None)
            if self.transport is not None:
                self.transport.release(message[1])
        elif kind == FREE:
            self._free(message[1])
        elif kind == PING:
            return (BEAT,)
        return None

    def _load(
        self, number: int, graph: bytes, feeds: tuple[str, ...], fetches: tuple[str, ...], targets: tuple[str, ...],
        kept: tuple[tuple[int, int], ...], sent: tuple[int, ...], unload: list[int],
    ) -> None:  # fmt: skip
        for old in unload:
            self.programs.pop(old, None)
        run, error = None, None
        try:
            held = codec.graph_from_message(codec.read_graph(graph))
            segment = Segment(
                held,
                tuple(held.tensor(name) for name in feeds),
                tuple(held.tensor(name) for name in fetches),
                tuple(held.node(name) for name in targets),
            )
            run = self.engine.compile(segment)
        except Exception as raised:  # noqa: BLE001 (the process's edge: the coordinator must learn of anything)
            error = as_error(raised)
        self.programs[number] = Loaded(run, error, kept, sent)

    def _run(
        self, attempt: int, segment: int, number: int, inputs: list[Any],
        variables: dict[str, Any] | None, draws: dict[str, int] | None, last: bool,
        arriving: Mapping[int, int] = _NOTHING, staying: Mapping[int, Staying] = _NOTHING,
    ) -> tuple[Any, ...]:  # fmt: skip
        try:
            program = self.programs[number]
            if program.run is None:
                raise program.error or Unsupported("The segment could not be compiled.")
            step = self.steps.get(attempt) or Step()
            before = self._enter(step, variables, draws)
            self._arrive(step, inputs, arriving)
            borrowed: list[tuple[int, int]] = []
            # The list is the engine's alone: what it has read for the last time can go at once.
            fetched = program.run(self._inputs(inputs, step, borrowed), step.state)
            sent = self._offer(attempt, number, program.sent, fetched, staying)
            names, values = step.state.updates.keys(), step.state.updates.values()
            leaving = [self._encode(value) for value in self.engine.on_host([*sent, *values])]
            outputs, updates = leaving[: len(sent)], dict(zip(names, leaving[len(sent) :], strict=True))
            drawn = {name: count for name, count in step.state.draws.items() if before.get(name) != count}
            if last:
                self.steps.pop(attempt, None)
            else:
                self.steps[attempt] = step
                for position, readers in program.kept:
                    step.kept[number, position] = Kept(_own(fetched[position], borrowed), readers)
                if borrowed:
                    step.state.updates = {n: _own(value, borrowed) for n, value in step.state.updates.items()}
            return DONE, attempt, segment, outputs, updates or None, drawn or None
        except Lost as lost:
            self.steps.pop(attempt, None)
            return LOST, attempt, segment, lost.maker, lost.broken
        except Exception as raised:  # noqa: BLE001 (the process's edge: a kernel's bug must not end the worker)
            self.steps.pop(attempt, None)
            return FAILED, attempt, segment, as_error(raised)

    def _enter(self, step: Step, variables: dict[str, Any] | None, draws: dict[str, int] | None) -> dict[str, int]:
        """Brings an attempt's state up to a segment's start; what earlier segments did here stands."""
        state = step.state
        state.values.update(state.updates)
        state.updates = {}
        for name, value in (variables or {}).items():
            if name not in state.values:
                state.values[name] = self._decode(value)
        for name, count in (draws or {}).items():
            state.draws.setdefault(name, count)
        return dict(state.draws)

    def _arrive(self, step: Step, inputs: Sequence[Any], arriving: Mapping[int, int]) -> None:
        """Pulls what other workers offer; later segments of the step find it among what is kept."""
        found = [(inputs[position], readers) for position, readers in arriving.items()]
        offers = [(offer, readers) for offer, readers in found if isinstance(offer, Offer)]
        if offers:
            assert self.transport is not None
            pulled = self.transport.pull([offer for offer, _ in offers])
            for (offer, readers), array in zip(offers, pulled, strict=True):
                step.kept[offer.key.program, offer.key.position] = Kept(array, readers)

    def _offer(
        self, attempt: int, number: int, sent: Sequence[int], fetched: list[Any], staying: Mapping[int, Staying]
    ) -> list[Any]:
        """The outputs that leave, with offers of those that stay; then those that are wanted on the host besides."""
        outputs = [fetched[position] for position in sent]
        copies = [outputs[place] for place, how in staying.items() if how.copied]
        for place, how in staying.items():
            assert self.transport is not None
            if self.transport.takes(outputs[place]):
                key = Key(attempt, number, sent[place])
                outputs[place] = self.transport.offer(key, outputs[place], how.readers)
        return outputs + copies

    def _inputs(self, inputs: list[Any], step: Step, borrowed: list[tuple[int, int]]) -> list[Any]:
        """The values of a segment's inputs; `borrowed` gets the addresses of those in other processes' memory."""
        values: list[Any] = []
        for value in inputs:
            if type(value) is tuple and len(value) == 2:
                values.append(step.take(value))
                continue
            if isinstance(value, Offer):
                values.append(step.take((value.key.program, value.key.position)))
                continue
            values.append(self._decode(value))
            if isinstance(value, Reference):
                start = values[-1].__array_interface__["data"][0]
                borrowed.append((start, start + values[-1].nbytes))
        return values

    def _decode(self, value: Any) -> Any:
        return self.mapper.load(value) if isinstance(value, Reference) else unpack(value)

    def _encode(self, value: Any) -> Any:
        if isinstance(value, (Handle, Variant, Offer)):
            return value
        array = np.asarray(value)
        if array.nbytes > INLINE_BYTES and array.dtype != np.dtype(object):
            return self.pool.store(array)
        return pack(array)

    def _free(self, names: list[str]) -> None:
        for name in names:
            self.pool.take_back(name)


def _own(value: Any, borrowed: list[tuple[int, int]]) -> Any:
    """A value that outlives its segment: a copy where it lies in what was borrowed, which may be given back before."""
    if isinstance(value, Handle) or not borrowed or hasattr(value, "__cuda_array_interface__"):
        return value
    if isinstance(value, Variant):
        return pickle.loads(pickle.dumps(value, protocol=5))  # as if it had been sent
    array = np.asarray(value)
    if array.dtype.hasobject:
        return value
    start = array.__array_interface__["data"][0]
    return array.copy() if any(first <= start < end for first, end in borrowed) else value


def as_error(raised: Exception) -> GradserveError:
    """The error as the coordinator is to see it."""
    if isinstance(raised, GradserveError):
        raised.__cause__ = raised.__context__ = None
        return raised
    if isinstance(raised, MemoryError):
        return LimitExceeded(f"A worker has no memory left for a segment: {raised}.")
    return GradserveError(f"A kernel raised {type(raised).__name__}: {raised}", error=type(raised).__name__)


def load_engine(name: str) -> ModuleType:
    """The module of an engine. Raises Unsupported where it can't run on this machine."""
    try:
        return importlib.import_module(f"gradserve.workers.engines.{name}")
    except ImportError as error:
        raise Unsupported(f"The engine {name} can't run here: {error}.", engine=name) from None


def send(channel: socket.socket, message: tuple[Any, ...]) -> None:
    """Writes one message."""
    body = pickle.dumps(message, protocol=5)
    channel.sendall(HEADER.pack(len(body)) + body)


def receive(channel: socket.socket, buffer: bytearray) -> tuple[Any, ...] | None:
    """Reads one message; None when the other end is closed. `buffer` keeps what came after it."""
    while True:
        if len(buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(buffer)[0]
            if len(buffer) >= end:
                message = pickle.loads(bytes(buffer[HEADER.size : end]))
                del buffer[:end]
                return message
        data = channel.recv(1 << 18)
        if not data:
            return None
        buffer += data


def serve(channel: socket.socket, worker: Worker, beat_seconds: float = 0) -> None:
    """Answers messages until the pipe ends or STOP comes, and sends a BEAT every `beat_seconds` where that is not 0."""
    buffer = bytearray()
    writing, ended = threading.Lock(), threading.Event()
    if beat_seconds:
        threading.Thread(target=_beat, args=(channel, writing, ended, beat_seconds), daemon=True).start()
    try:
        while (message := receive(channel, buffer)) is not None and message[0] != STOP:
            answer = worker.handle(message)
            if answer is not None:
                with writing:
                    send(channel, answer)
    finally:
        ended.set()
        with writing:  # no beat goes to a pipe that the caller closes
            pass


def _beat(channel: socket.socket, writing: threading.Lock, ended: threading.Event, seconds: float) -> None:
    while not ended.wait(seconds):
        with writing:
            if ended.is_set():
                return
            try:
                send(channel, (BEAT,))
            except OSError:
                return  # the coordinator is gone: the main thread sees that too


def main() -> None:
    """Entry point: worker.py DESCRIPTOR ENGINE FOLDER PREFIX BEAT_SECONDS MEMORY_LIMIT_BYTES MEASURE.

    MEASURE is 0 for a worker that takes the place of one whose speed is known.
    """
    # A Ctrl-C in the terminal is for the coordinator, which ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, engine, folder, prefix, beat_seconds, limit, measuring = sys.argv[1:]
    # A child of an engine's must not hold the pipe open: its end is how the coordinator learns of a death.
    os.set_inheritable(int(descriptor), False)
    with socket.socket(fileno=int(descriptor)) as channel:
        try:
            worker = Worker(load_engine(engine), Pool(folder, prefix), Mapper(folder))
        except GradserveError as error:
            send(channel, (CANNOT, as_error(error)))
            return
        try:
            speed = tuple(measure()) if int(measuring) else None
            if int(limit):
                worker.engine.limit_memory(int(limit))
            send(channel, (READY, speed))
            serve(channel, worker, float(beat_seconds))
        except (BrokenPipeError, ConnectionResetError):
            return  # the coordinator is gone


if __name__ == "__main__":
    main()
