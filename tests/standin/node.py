"""A process with a transport, and nothing else of a worker: others reach it by a socket.

Its device is the stand-in, or a GPU where its environment is given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.workers import transport as module
from gradserve.workers.transport import Answer, Gpu, Key, Lost, Offer, Peer, Transport

_AWAIT_SECONDS = 60


def until(true: Callable[[], bool]) -> None:
    """Returns when something has come true."""
    deadline = time.monotonic() + _AWAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nodes(start: Callable[[int, str, float], Node], seconds: float) -> Iterator[Callable[..., Node]]:
    """Gives a function that starts nodes which know each other: (name, seconds). They end with the iteration."""
    started: list[Node] = []

    def make(name: str, seconds: float = seconds) -> Node:
        made = start(len(started), name, seconds)
        for other in started:
            other.do("meet", name, made.address)
            made.do("meet", other.name, other.address)
        started.append(made)
        return made

    yield make
    for node in started:
        node.kill()


class Node:
    """The process, as its parent sees it. `begin` starts a command there, and what it returns waits for the result."""

    def __init__(self, name: str, seconds: float, environment: dict[str, str] | None = None) -> None:
        context = get_context("spawn")
        self.name = name
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, name, seconds, environment), daemon=True)
        self._process.start()
        theirs.close()
        self.address = self._receive()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def begin(self, command: str, *arguments: Any) -> Callable[[], Any]:
        self._control.send((command, arguments))
        return self._receive

    def do(self, command: str, *arguments: Any) -> Any:
        """The result of a command. Raises what it raised."""
        return self.begin(command, *arguments)()

    def beside(self, command: str, *arguments: Any) -> None:
        """Has something done while a command runs there."""
        with Client(self.address) as channel:
            channel.send((command, arguments))
            channel.recv()

    def offer(self, number: int, value: np.ndarray, readers: int = 1, attempt: int = 1) -> Offer:
        return self.do("offer", Key(attempt, number, 0), value, readers)

    def stop(self) -> None:
        """Stops the process where it is; returns when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def go_on(self) -> None:
        """Lets it run again."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        assert self._control.poll(_AWAIT_SECONDS), f"{self.name} hangs"
        result = self._control.recv()
        if isinstance(result, Exception):
            raise result
        return result


class _Commands:
    """What a node does."""

    def __init__(self, name: str, seconds: float) -> None:
        import cupy  # pyright: ignore[reportMissingImports]

        self._cupy: Any = cupy
        self.transport = Transport(name, seconds)

    def offer(self, key: Key, value: np.ndarray, readers: int) -> Offer:
        return self.transport.offer(key, self._cupy.asarray(value), readers)

    def meet(self, name: str, address: str) -> None:
        self.transport.meet(name, Peer(_asker(address), lambda reader: _cut(address, reader)))

    def pull(self, offers: list[Offer]) -> list[np.ndarray]:
        return [array.get() for array in self.transport.pull(offers)]

    def held(self) -> tuple[int, int]:
        return self.transport.held()

    def links(self) -> int:
        """Threads of links, those among them that NCCL has not let go yet."""
        return sum(thread.name == "link" for thread in threading.enumerate())

    def probe(self) -> Gpu:
        return module.probe()

    def device_bytes(self) -> int:
        return self._cupy.get_default_memory_pool().used_bytes()

    def limit(self, count: int) -> None:
        self._cupy.get_default_memory_pool().set_limit(count)

    def stall(self, after: int) -> None:
        from tests.standin.nccl import stalls

        stalls.after, stalls.reached = after, False

    def stalled(self) -> bool:
        from tests.standin.nccl import stalls

        return stalls.reached

    def bound(self, name: str, value: int) -> None:
        setattr(module, name, value)


def _run(control: Connection, name: str, seconds: float, environment: dict[str, str] | None) -> None:
    if environment is None:
        from tests import standin

        standin.install()
    else:
        os.environ.update(environment)
    commands = _Commands(name, seconds)
    address = f"\0node-{os.getpid()}"
    listener = Listener(address, "AF_UNIX")
    threading.Thread(target=_answer, args=(listener, commands.transport), daemon=True).start()
    control.send(address)
    while True:
        try:
            command, arguments = control.recv()
        except EOFError:
            return
        try:
            found = getattr(commands, command, None) or getattr(commands.transport, command)
            control.send(found(*arguments))
        except (Lost, MemoryError) as error:
            control.send(error)


def _answer(listener: Listener, transport: Transport) -> None:
    """Serves other nodes, one question after another."""
    while True:
        with listener.accept() as channel, contextlib.suppress(OSError, EOFError):  # who asks may end meanwhile
            command, arguments = channel.recv()
            channel.send(getattr(transport, command)(*arguments))


def _asker(address: str) -> Callable[..., Callable[[float], Answer]]:
    def ask(*question: Any) -> Callable[[float], Answer]:
        channel = Client(address)
        channel.send(("give", question))

        def answer(seconds: float) -> Answer:
            with channel:
                if not channel.poll(seconds):
                    raise TimeoutError
                try:
                    return channel.recv()
                except EOFError as error:
                    raise ConnectionError("it ended") from error

        return answer

    return ask


def _cut(address: str, reader: str) -> None:
    with Client(address) as channel:
        channel.send(("cut", (reader,)))
        channel.recv()
