"""What the xla engine keeps in its pieces: dtypes, constants beside traced values, and programs on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as reference
from gradserve.workers.segment import Segment, State

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")


@pytest.mark.parametrize(
    "name", ["bfloat16", "float16", "float32", "float64", "complex64", "complex128", "int8", "int64"]
)
def test_dtypes_are_kept(name: str) -> None:
    kind = dtypes.as_dtype(name).numpy
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype=name, shape=(3,), name="x")
        y = raw.Mul(raw.AddV2(x, np.ones((3,), kind)), x)
    segment = Segment(graph, (x,), (y,))
    value = np.array([1, 2, 3], kind)
    (expected,) = reference.compile(segment)([value], State())
    (got,) = xla.compile_program(segment)([value], State())
    assert got.dtype == expected.dtype == kind
    assert got.tolist() == expected.tolist()


def test_traced_indices_select_from_a_constant() -> None:
    graph = Graph()
    with graph.as_default():
        indices = raw.Placeholder(dtype="int32", shape=(2, 1), name="indices")
        rows = raw.GatherNd(np.arange(6.0).reshape(3, 2), indices)
    (got,) = xla.compile_program(Segment(graph, (indices,), (rows,)))([np.array([[2], [0]], np.int32)], State())
    assert got.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_a_cast_to_a_narrower_type_and_back_rounds() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(), name="x")
        y = raw.Cast(raw.Cast(x, DstT="bfloat16"), DstT="float32")
    (got,) = xla.compile_program(Segment(graph, (x,), (y,)))([np.float32(1.001)], State())
    assert got == 1.0


def test_a_size_comes_from_constants_by_way_of_floats() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(1, 4, 4, 1), name="x")
        size = raw.Cast(raw.Round(raw.Mul(np.array([4, 6], np.float32), np.float32(0.5))), DstT="int32")
        y = raw.ResizeBilinear(x, size)
    (got,) = xla.compile_program(Segment(graph, (x,), (y,)))([np.ones((1, 4, 4, 1), np.float32)], State())
    assert got.shape == (1, 2, 3, 1)


_COUNT_HITS = """
import jax, numpy as np
import gradserve.ops
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import xla
from gradserve.workers.segment import Segment, State
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
graph = Graph()
with graph.as_default():
    x = raw.Placeholder(dtype="float64", shape=(3, 3), name="x")
    y = raw.MatMul(raw.Tanh(x), x)
xla.compile_program(Segment(graph, (x,), (y,)))([np.ones((3, 3))], State())
print(len(hits))
"""


def test_another_process_finds_the_program_on_disk(tmp_path: Path) -> None:
    environment = {**os.environ, "GRADSERVE_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _COUNT_HITS]
    counts = [int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout) for _ in range(2)]
    assert counts[0] == 0
    assert counts[1] > 0
