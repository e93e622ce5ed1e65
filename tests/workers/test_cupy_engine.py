"""The cupy engine on the stand-in for CuPy: answers, what is copied between host and device, and memory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument, LimitExceeded
from gradserve.graph import codec, dtypes
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops import special
from gradserve.workers import worker as wire
from gradserve.workers.engines import numpy as reference
from gradserve.workers.memory import Folder, Mapper, Pool, unpack
from gradserve.workers.segment import Segment, State
from gradserve.workers.worker import Worker
from tests import standin
from tests.ops.differences import Built
from tests.ops.draw import Draw
from tests.standin.arrays import DeviceArray, copies
from tests.standin.memory import pool
from tests.workers.test_engines_agree import all_ops, gradients_of

ENGINE = "gradserve.workers.engines.cupy"
X = np.linspace(-1, 1, 1 << 14, dtype=np.float32)


@pytest.fixture(scope="module")
def engine() -> Iterator[ModuleType]:
    before = {name: module for name, module in sys.modules.items() if name.startswith("cupy") or name == ENGINE}
    for name in before:
        del sys.modules[name]
    standin.install()
    yield importlib.import_module(ENGINE)
    for name in [name for name in sys.modules if name.startswith("cupy") or name == ENGINE]:
        del sys.modules[name]
    sys.modules.update(before)
    special._module.cache_clear()


@pytest.fixture(autouse=True)
def counts() -> None:
    copies.up = copies.down = copies.waits = 0


def run(engine: ModuleType, fetches: Sequence[Tensor], feeds: dict[Tensor, Any], state: State | None = None) -> Any:
    segment = Segment(fetches[0].graph, tuple(feeds), tuple(fetches))
    return engine.compile(segment)(list(feeds.values()), state or State())


@pytest.mark.parametrize("name", all_ops())
def test_what_every_op_gives_is_what_the_reference_gives(name: str, engine: ModuleType) -> None:
    op = catalogue.lookup(name)
    assert op.examples is not None
    for example in op.examples(Draw(lambda low, high: min(high, max(low, 2)))):
        built = Built(op, example, known_shapes=True)
        if not built.outputs:
            continue
        fetches = (*built.outputs, *gradients_of(built))
        segment = Segment(built.graph, tuple(built.sources), fetches)
        expected = reference.compile(segment)(built.values, State())
        got = engine.on_host(engine.compile(segment)(built.values, State()))
        for tensor, a, b in zip(fetches, expected, got, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype, (tensor, a.dtype, b.dtype)
            if a.dtype == np.dtype(object):
                assert a.tolist() == b.tolist()
            else:
                np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6, err_msg=str(tensor))


def test_what_is_read_often_is_uploaded_once_and_constants_once_for_ever(engine: ModuleType) -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype=dtypes.float32, shape=X.shape)
        constant = graph.constant(X)
        y = raw.Tanh(x) * x + constant * x + raw.Exp(constant)
        compiled = engine.compile(Segment(graph, (x,), (y,)))
    for turn in range(3):
        copies.up = 0
        [got] = compiled([X], State())
        assert isinstance(got, DeviceArray)
        assert copies.up == X.nbytes * (2 if turn == 0 else 1)
    assert copies.down == 0


def test_shapes_need_no_data(engine: ModuleType) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype=dtypes.float32, shape=(None,))
        y = raw.Tanh(x)
        z = raw.Reshape(y, raw.ConcatV2([raw.Shape(y), np.array([1], np.int32)], 0))
    [got] = run(engine, [z], {x: X})
    assert got.shape == (len(X), 1)
    assert copies.down == 0


def test_arithmetic_of_integers_on_the_host_stays_there(engine: ModuleType) -> None:
    with Graph().as_default():
        count = raw.Placeholder(dtype=dtypes.int64, shape=())
        more = raw.Maximum(count + 1, count * 2)
        x = raw.Fill(raw.Reshape(more, np.array([1], np.int32)), np.float32(0.5))
    [got] = run(engine, [x], {count: np.array(7)})
    assert got.get().tolist() == [0.5] * 14
    assert copies.up <= 4  # the 0.5


def test_tensors_are_freed_after_their_last_use(engine: ModuleType) -> None:
    with Graph().as_default() as graph:
        x = y = raw.Placeholder(dtype=dtypes.float32, shape=X.shape)
        for _ in range(40):
            y = raw.Tanh(y)
        compiled = engine.compile(Segment(graph, (x,), (y,)))
    pool.set_limit(pool.used_bytes() + 6 * X.nbytes)
    try:
        compiled([X], State())
    finally:
        pool.set_limit(0)


def test_a_kernel_beyond_the_limit_names_its_node_and_tensor(engine: ModuleType) -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype=dtypes.float32, shape=X.shape)
        tiled = raw.Tile(x, np.array([4096], np.int32), name="tiled")
        compiled = engine.compile(Segment(graph, (x,), (tiled,)))
    engine.limit_memory(64 << 20)
    try:
        with pytest.raises(LimitExceeded, match=r"tiled .* found no memory on its worker for tiled:0") as raised:
            compiled([X], State())
        assert raised.value.metadata["node"] == "tiled"
    finally:
        pool.set_limit(0)
    assert compiled([X], State())[0].shape == (4096 * len(X),)


@pytest.mark.parametrize("indices", [[0, 3], [-1, 0]])
def test_an_index_out_of_range_is_an_error(indices: list[int], engine: ModuleType) -> None:
    with Graph().as_default():
        table = raw.Placeholder(dtype=dtypes.float32, shape=(3, 2))
        places = raw.Placeholder(dtype=dtypes.int32, shape=(2,))
        rows = raw.GatherV2(raw.Tanh(table), raw.Cast(raw.Cast(places, DstT="float32"), DstT="int32"), 0)
    feeds = {table: np.ones((3, 2), np.float32), places: np.array(indices, np.int32)}
    with pytest.raises(InvalidArgument, match=r"not in \[0, 3\)"):
        run(engine, [rows], feeds)
    assert copies.waits == 1


# Across segments: a worker with the engine


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    yield made
    made.close()


class Loaded:
    """A worker that has loaded programs."""

    def __init__(self, engine: ModuleType, folder: Folder) -> None:
        self.worker = Worker(engine, Pool(folder.path, "w"), Mapper(folder.path))

    def load(
        self, number: int, graph: Graph, feeds: Sequence[Tensor], fetches: Sequence[Tensor],
        kept: Sequence[tuple[int, int]] = (), sent: Sequence[int] = (), targets: Sequence[str] = (),
    ) -> None:  # fmt: skip
        data = codec.graph_to_message(graph).SerializeToString()
        names = tuple(t.name for t in feeds), tuple(t.name for t in fetches), tuple(targets)
        self.worker.handle((wire.LOAD, number, data, *names, tuple(kept), tuple(sent), []))

    def run(self, segment: int, number: int, inputs: list[Any], variables: Any = None, last: bool = False) -> Any:
        answer = self.worker.handle((wire.RUN, [], 1, segment, number, inputs, variables, None, last))
        assert answer is not None
        assert answer[0] == wire.DONE, answer
        return answer


def test_what_later_segments_read_stays_on_the_device(engine: ModuleType, folder: Folder) -> None:
    loaded = Loaded(engine, folder)
    with Graph().as_default() as first:
        x = raw.Placeholder(dtype=dtypes.float32, shape=X.shape, name="x")
        y, z = raw.Tanh(x, name="y"), raw.Exp(x, name="z")
    with Graph().as_default() as second:
        a, b = (raw.Placeholder(dtype=dtypes.float32, shape=X.shape, name=name) for name in "ab")
        total = raw.AddV2(a, b, name="total")
    loaded.load(1, first, [x], [y, z], kept=[(0, 1), (1, 1)])
    loaded.load(2, second, [a, b], [total], sent=[0])
    loaded.run(0, 1, [X])
    assert copies.down == 0
    before = copies.up
    answer = loaded.run(1, 2, [(1, 0), (1, 1)], last=True)
    assert (copies.up - before, copies.down, copies.waits) == (0, X.nbytes, 1)
    np.testing.assert_array_equal(Mapper(folder.path).load(answer[3][0]), np.tanh(X) + np.exp(X))
    assert loaded.worker.steps == {}


def test_new_values_are_brought_to_the_host_and_read_where_they_are(engine: ModuleType, folder: Folder) -> None:
    loaded = Loaded(engine, folder)
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype=dtypes.float32, shape=X.shape, name="x")
        handle = raw.VarHandleOp(dtype=dtypes.float32, shape=X.shape, shared_name="w", name="w")
        counter = raw.VarHandleOp(dtype=dtypes.int64, shape=(), shared_name="steps", name="steps")
        raw.AssignAddVariableOp.run(handle, raw.Tanh(x), name="assign")
        raw.AssignAddVariableOp.run(counter, np.int64(1), name="count")
    loaded.load(1, graph, [x], [], targets=["assign", "count"])
    variables = {"w": X, "steps": np.array(4)}
    first = loaded.run(0, 1, [X], variables)
    assert (copies.up, copies.down, copies.waits) == (2 * X.nbytes, X.nbytes, 1)
    second = loaded.run(1, 1, [X], variables, last=True)
    assert (copies.up, copies.down, copies.waits) == (3 * X.nbytes, 2 * X.nbytes, 2)
    mapper = Mapper(folder.path)
    np.testing.assert_array_equal(mapper.load(first[4]["w"]), X + np.tanh(X))
    np.testing.assert_array_equal(mapper.load(second[4]["w"]), X + np.tanh(X) + np.tanh(X))
    assert (unpack(first[4]["steps"]), unpack(second[4]["steps"])) == (5, 6)
