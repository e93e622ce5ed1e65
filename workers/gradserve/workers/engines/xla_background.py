"""Compiles in a child process that fills the disk cache, so that serving never waits for XLA.

A compile thread in the worker would hold the interpreter and stall requests. The child runs the segment once with
the values of a real call; the worker then finds the program in the cache.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gradserve.graph import codec
from gradserve.graph.variants import Variant
from gradserve.workers.segment import Handle, Segment, State

_LOG = logging.getLogger(__name__)
_LONGEST_SECONDS = 600
_MOST_WAITING = 64
_CACHE_BYTES = 2**30


def use_disk_cache() -> None:
    """Points JAX at the cache that worker and child share: GRADSERVE_CACHE_DIR, or the user's cache folder."""
    folder = os.environ.get("GRADSERVE_CACHE_DIR", str(Path.home() / ".cache" / "gradserve"))
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


class Ticket:
    """A compilation that was asked for; `done` and `succeeded` are set when it ended."""

    def __init__(self, work: bytes) -> None:
        self.work = work
        self.done = False
        self.succeeded = False


class Compiler:
    """Runs one child at a time; the rest waits in a bounded queue."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, segment: Segment, values: Sequence[Any], state: State) -> Ticket | None:
        """Asks for a compilation; None while the queue is full (ask again at a later call)."""
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                return None
            ticket = Ticket(_pack(segment, values, state))
            self._waiting.append(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="xla-compiler", daemon=True)
                self._thread.start()
            self._changed.notify()
            return ticket

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                ticket = self._waiting.popleft()
            ticket.succeeded = _compile_in_child(ticket.work)
            ticket.work = b""
            ticket.done = True


def _compile_in_child(work: bytes) -> bool:
    with tempfile.NamedTemporaryFile() as file:
        file.write(work)
        file.flush()
        command = ["nice", "-n", "10", sys.executable, "-m", "gradserve.workers.engines.xla_background", file.name]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_LONGEST_SECONDS)
        except subprocess.CalledProcessError as error:
            _LOG.warning("XLA could not compile a segment, which stays on NumPy: %s", error.stderr[-2000:])
            return False
        except subprocess.TimeoutExpired:
            _LOG.warning("XLA took over %d s for a segment, which stays on NumPy.", _LONGEST_SECONDS)
            return False
    return True


def _pack(segment: Segment, values: Sequence[Any], state: State) -> bytes:
    graph = codec.graph_to_message(segment.graph).SerializeToString()
    names = (
        codec.names(segment.feeds),
        codec.names(segment.fetches),
        [node.name for node in segment.targets],
    )
    variables = {name: np.asarray(value) for name, value in state.values.items()}
    inputs = [value if isinstance(value, Handle | Variant) else np.asarray(value) for value in values]
    return pickle.dumps((graph, names, inputs, variables, dict(state.draws)))


def _main(path: str) -> None:
    """The child: runs the packed segment once, which compiles it into the disk cache."""
    import gradserve.autodiff
    import gradserve.ops  # noqa: F401
    from gradserve.workers.engines import xla

    data, (feeds, fetches, targets), values, variables, draws = pickle.loads(Path(path).read_bytes())
    graph = codec.graph_from_message(codec.read_graph(data))
    segment = Segment(
        graph,
        tuple(graph.tensor(name) for name in feeds),
        tuple(graph.tensor(name) for name in fetches),
        tuple(graph.node(name) for name in targets),
    )
    xla.compile_program(segment)(values, State(values=variables, draws=draws))


if __name__ == "__main__":
    _main(sys.argv[1])
