"""A worker's messages, answered in this process: what it keeps, what it sends, what it says of errors."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers import worker as wire
from gradserve.workers.memory import Folder, Mapper, Pool, Reference, unpack
from gradserve.workers.segment import Handle, State
from gradserve.workers.worker import Worker

Run = Callable[[Sequence[Any], State], list[Any]]


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    yield made
    made.close()


def worker(folder: Folder, engine: Any) -> Worker:
    return Worker(engine, Pool(folder.path, "w"), Mapper(folder.path))


def scripted(folder: Folder, run: Run, sent: tuple[int, ...] = (0,), kept: tuple[tuple[int, int], ...] = ()) -> Worker:
    """A worker whose engine runs this function whatever the segment."""
    made = worker(folder, types.SimpleNamespace(compile=lambda segment: run, on_host=list))
    made.handle((wire.LOAD, 1, b"", (), (), (), kept, sent, []))
    return made


def test_a_loaded_program_runs(folder: Folder) -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype=dtypes.float32, name="x")
        raw.Tanh(x, name="y")
    data = codec.graph_to_message(graph).SerializeToString()
    made = worker(folder, wire.load_engine("numpy"))
    assert made.handle((wire.LOAD, 7, data, ("x:0",), ("y:0",), (), (), (0,), [])) is None
    answer = made.handle((wire.RUN, [], 3, 0, 7, [np.array([0.5], np.float32)], None, None, True))
    assert answer is not None
    assert answer[:3] == (wire.DONE, 3, 0)
    assert unpack(answer[3][0]) == np.tanh(np.float32(0.5))


def test_large_outputs_go_to_shared_memory(folder: Folder) -> None:
    array = np.arange(1e5)
    made = scripted(folder, lambda values, state: [array])
    answer = made.handle((wire.RUN, [], 1, 0, 1, [], None, None, True))
    assert answer is not None
    assert isinstance(answer[3][0], Reference)
    assert np.array_equal(Mapper(folder.path).load(answer[3][0]), array)


def test_kept_outputs_feed_later_segments_until_the_last(folder: Folder) -> None:
    made = scripted(folder, lambda values, state: [sum(values, np.float64(1))], kept=((0, 1),))
    made.handle((wire.RUN, [], 5, 0, 1, [], None, None, False))
    answer = made.handle((wire.RUN, [], 5, 1, 1, [(1, 0)], None, None, True))
    assert answer is not None
    assert unpack(answer[3][0]) == 2.0
    assert made.steps == {}


def test_new_values_are_seen_by_the_next_segment_and_sent_once(folder: Folder) -> None:
    def increment(values: Sequence[Any], state: State) -> list[Any]:
        state.assign(Handle("v"), state.read(Handle("v")) + 1)
        state.take("noise", 4)
        return []

    made = scripted(folder, increment, sent=())
    first = made.handle((wire.RUN, [], 5, 0, 1, [], {"v": np.float64(1)}, {"noise": 8}, False))
    second = made.handle((wire.RUN, [], 5, 1, 1, [], {"v": np.float64(1)}, {"noise": 8}, True))
    assert first is not None
    assert second is not None
    assert (unpack(first[4]["v"]), first[5]) == (2.0, {"noise": 12})
    assert (unpack(second[4]["v"]), second[5]) == (3.0, {"noise": 16})


def test_any_exception_comes_back_and_the_worker_lives_on(folder: Folder) -> None:
    def run(values: Sequence[Any], state: State) -> list[Any]:
        raise RuntimeError("out of luck")

    made = scripted(folder, run)
    for _ in range(2):
        answer = made.handle((wire.RUN, [], 1, 0, 1, [], None, None, True))
        assert answer is not None
        assert answer[0] == wire.FAILED
        assert answer[3].code == "INTERNAL"
        assert "out of luck" in str(answer[3])


def test_a_program_that_cannot_be_compiled_says_so_when_it_runs(folder: Folder) -> None:
    made = worker(folder, wire.load_engine("numpy"))
    made.handle((wire.LOAD, 1, b"\xff", (), (), (), (), (), []))
    answer = made.handle((wire.RUN, [], 1, 0, 1, [], None, None, True))
    assert answer is not None
    assert "no GraphDef" in str(answer[3])
