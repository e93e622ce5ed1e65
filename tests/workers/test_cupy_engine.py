"""The cupy engine: answers, what is copied between host and device, and memory.

Everywhere on a stand-in for CuPy, which counts the copies; what a GPU would show is run there, too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.errors import InvalidArgument, LimitExceeded
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops import special
from gradserve.workers import worker as wire
from gradserve.workers.memory import Folder, Mapper, Pool, unpack
from gradserve.workers.segment import Segment, State
from gradserve.workers.worker import Worker
from tests import standin
from tests.conformance.case import Case, load
from tests.devices import needs_gpus
from tests.paths import CASES, needs_cases
from tests.standin.arrays import Namespace, copies
from tests.workers.agreement import all_ops, check_op, judge

ENGINE = "gradserve.workers.engines.cupy"
X = np.linspace(-1, 1, 1 << 14, dtype=np.float32)
GPU = needs_gpus(1)


def _words(text: str) -> list[str]:
    return text.split()


# What a GPU is asked for: each new kernel takes CUDA's compiler a moment.
OPS = _words(
    "Add AddN ArgMax AvgPool AvgPoolGrad BatchMatMulV2 BiasAdd BroadcastTo Cast Cholesky ConcatV2 Conv2D Cos Cumsum "
    "DepthwiseConv2dNative Div Einsum Elu Erf Exp FFT Floor FusedBatchNormV3 GatherNd GatherV2 LRN Lgamma Log "
    "LogSoftmax MatMul MatrixBandPart MatrixDiagV3 MatrixInverse MatrixSolve Max MaxPool MaxPoolGrad Maximum Mean Min "
    "MirrorPad Mul OneHot Pack Pad Pow Prod Relu Reshape ResizeBilinear Rsqrt ScatterNd SegmentSum SelectV2 Sigmoid "
    "Softmax SparseSoftmaxCrossEntropyWithLogits Split Sqrt Square SquaredDifference StridedSlice Sub Sum Tanh "
    "TensorScatterUpdate Tile TopKV2 Transpose Unique UnsortedSegmentMax UnsortedSegmentSum Where"
)
MODELS = _words(
    "b_aggregation_EXPERIMENTAL_TREE_v0 b_complex_grad_ys_v0 b_indexed_slices_v0 b_variables_v0 c_cond_v1_v0 "
    "c_partitioned_call_v0 c_scan_v2_v0 c_tensor_array_loop_v2_v0 c_while_nested_v2_v0 d_attention_masks_v0 "
    "d_black_scholes_greeks_v0 d_cnn_batchnorm_v0 d_conv_autoencoder_v0 d_embedding_recommender_v0 "
    "d_gaussian_process_v0 d_gru_while_v2_v0 d_keras_cnn_v0 d_keras_transformer_block_v0 d_lstm_while_v1_v0 "
    "d_mixed_precision_casts_v0 d_mlp_softmax_xent_v0 d_resnet_block_v0 d_transformer_block_v0 d_vae_elbo_v0"
)


def _forget() -> dict[str, ModuleType]:
    found = {name: module for name, module in sys.modules.items() if name.startswith("cupy") or name == ENGINE}
    for name in found:
        del sys.modules[name]
    special._module.cache_clear()
    return found


@pytest.fixture(scope="module", params=["standin", pytest.param("gpu", marks=GPU)])
def engine(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    before = _forget()
    if request.param == "standin":
        standin.install()
    else:
        sys.modules.update(before)
    yield importlib.import_module(ENGINE)
    _forget()
    sys.modules.update(before)


@pytest.fixture(autouse=True)
def counts() -> None:
    copies.up = copies.down = copies.waits = 0


def copied(engine: ModuleType, *, up: int | None = None, down: int | None = None, waits: int | None = None) -> bool:
    """Whether so many bytes were copied, and the host waited so often, as far as that is counted."""
    if not isinstance(engine.cupy, Namespace):
        return True
    asked, found = (up, down, waits), (copies.up, copies.down, copies.waits)
    return all(mine is None or mine == theirs for mine, theirs in zip(asked, found, strict=True))


def run(engine: ModuleType, fetches: Sequence[Tensor], feeds: dict[Tensor, Any], state: State | None = None) -> Any:
    segment = Segment(fetches[0].graph, tuple(feeds), tuple(fetches))
    return engine.compile(segment)(list(feeds.values()), state or State())


@pytest.mark.parametrize(
    ("engine", "name"),
    [*(("standin", name) for name in all_ops()), *(pytest.param("gpu", name, marks=GPU) for name in OPS)],
    indirect=["engine"],
)
def test_what_ops_give_is_what_the_reference_gives(name: str, engine: ModuleType) -> None:
    exact = isinstance(engine.cupy, Namespace)
    check_op(name, engine.compile, engine.on_host, wide=1e-8, narrow=1e-6 if exact else 1e-3)


def _cases() -> list[Any]:
    """Loops, branches and models: those whose gradients TensorFlow gives, to first order, without random numbers."""
    found = [case for case in load(CASES) if case.stem[0] in "cd" or case.stem in MODELS] if CASES.is_dir() else []
    usable = [case for case in found if not (case.meta["second_order"] or "error" in case.expected)]
    usable = [case for case in usable if "rng" not in case.meta["tags"]]
    on_gpu = [pytest.param("gpu", case, marks=GPU, id=f"gpu-{case.stem}") for case in usable if case.stem in MODELS]
    return [pytest.param("standin", case, id=f"standin-{case.stem}") for case in usable] + on_gpu


@needs_cases
@pytest.mark.parametrize(("engine", "case"), _cases(), indirect=["engine"])
def test_gradients_of_a_conformance_case_agree_with_tensorflow(case: Case, engine: ModuleType) -> None:
    assert judge(case, engine) is None


def test_what_is_read_often_is_uploaded_once_and_constants_once_for_ever(engine: ModuleType) -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype=dtypes.float32, shape=X.shape)
        constant = graph.constant(X)
        y = raw.Tanh(x) * x + constant * x + raw.Exp(constant)
        compiled = engine.compile(Segment(graph, (x,), (y,)))
    for turn in range(3):
        copies.up = 0
        [got] = compiled([X], State())
        assert isinstance(got, engine.cupy.ndarray)
        assert copied(engine, up=X.nbytes * (2 if turn == 0 else 1), down=0)


def test_shapes_need_no_data(engine: ModuleType) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype=dtypes.float32, shape=(None,))
        y = raw.Tanh(x)
        z = raw.Reshape(y, raw.ConcatV2([raw.Shape(y), np.array([1], np.int32)], 0))
    [got] = run(engine, [z], {x: X})
    assert got.shape == (len(X), 1)
    assert copied(engine, down=0)


def test_arithmetic_of_integers_on_the_host_stays_there(engine: ModuleType) -> None:
    with Graph().as_default():
        count = raw.Placeholder(dtype=dtypes.int64, shape=())
        more = raw.Maximum(count + 1, count * 2)
        x = raw.Fill(raw.Reshape(more, np.array([1], np.int32)), np.float32(0.5))
    [got] = run(engine, [x], {count: np.array(7)})
    assert got.get().tolist() == [0.5] * 14
    assert copied(engine, up=4)  # the 0.5


def test_tensors_are_freed_after_their_last_use(engine: ModuleType) -> None:
    with Graph().as_default() as graph:
        x = y = raw.Placeholder(dtype=dtypes.float32, shape=X.shape)
        for _ in range(40):
            y = raw.Tanh(y)
        compiled = engine.compile(Segment(graph, (x,), (y,)))
    pool = engine.cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 6 * X.nbytes)
    try:
        compiled([X], State())
    finally:
        pool.set_limit(size=0)


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
        engine.cupy.get_default_memory_pool().set_limit(size=0)
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
    assert copied(engine, waits=1)


@pytest.mark.parametrize(("rounds", "fails"), [(300, False), (302, True)])
def test_a_loop_runs_on_the_device_and_its_checks_are_looked_at(rounds: int, fails: bool, engine: ModuleType) -> None:
    """Rounds that read a table at an index which each computes there."""
    gs = pytest.importorskip("gradserve.client", reason="it takes the SDK to build a loop")
    with Graph().as_default():
        table = raw.Placeholder(dtype=dtypes.float32, shape=(301,))
        start = raw.Placeholder(dtype=dtypes.float32, shape=())

        def body(place: Any, total: Any, rows: Any) -> Any:
            return place + 1.0, total + raw.GatherV2(rows, raw.Cast(place, DstT="int32"), 0), rows

        _, total, _ = gs.while_loop(lambda place, *_: place < float(rounds), body, start, start, table)
        slope = gradients(total, table)[0]
        assert isinstance(slope, Tensor)
        feeds = {table: np.ones(301, np.float32), start: np.float32(0)}
        if fails:
            with pytest.raises(InvalidArgument, match=r"not in \[0, 301\)"):
                run(engine, [total], feeds)
        else:
            [got, there] = engine.on_host(run(engine, [total, slope], feeds))
            assert got == rounds
            assert there.sum() == rounds


# Across segments: a worker with the engine


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


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
    assert copied(engine, up=X.nbytes, down=0)
    kept = [entry.value for entry in loaded.worker.steps[1].kept.values()]
    assert [type(value) for value in kept] == [engine.cupy.ndarray] * 2
    answer = loaded.run(1, 2, [(1, 0), (1, 1)], last=True)
    assert copied(engine, up=X.nbytes, down=X.nbytes, waits=1)
    close(Mapper(folder.path).load(answer[3][0]), np.tanh(X) + np.exp(X))
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
    assert copied(engine, up=2 * X.nbytes, down=X.nbytes, waits=1)
    assert isinstance(loaded.worker.steps[1].state.updates["w"], engine.cupy.ndarray)
    second = loaded.run(1, 1, [X], variables, last=True)
    assert copied(engine, up=3 * X.nbytes, down=2 * X.nbytes, waits=2)
    mapper = Mapper(folder.path)
    close(mapper.load(first[4]["w"]), X + np.tanh(X))
    close(mapper.load(second[4]["w"]), X + np.tanh(X) + np.tanh(X))
    assert (unpack(first[4]["steps"]), unpack(second[4]["steps"])) == (5, 6)
