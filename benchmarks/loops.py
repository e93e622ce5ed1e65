"""A step (loss and gradients) of loops on the engines xla and numpy, against the same in JAX (jit of value_and_grad).

The loops: an LSTM over 50 steps as a While with TensorLists, as TensorFlow 2 writes it, and as a frame with
TensorArrays, as TensorFlow 1 did; an ordinary differential equation by Runge and Kutta's method; a function mapped over
rows. JAX has them as lax.scan. Where TensorFlow is installed it is a second peer. All run in one process, in turns; a
step is one call of the compiled segment, without a server.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradserve.client as gs
from benchmarks import plan
from benchmarks.report import Row, alternating
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.draft import Feed, StepOptions, draft
from gradserve.server.plan import make_plan
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines import xla
from gradserve.workers.segment import Segment, State
from tests.graph.frames import Value, Writer

STEPS, BATCH, UNITS = 50, 32, 128
ODE_STEPS, ODE_BATCH, ODE_SIZE = 100, 64, 64
ROWS, ROW_SIZE = 256, 128
_ROUNDS = 25
_GOAL = "at most 1.11"
_FALLBACK = "none: the first calls run on it"
Arrays = Mapping[str, np.ndarray[Any, Any]]
Step = Callable[[], Any]


class Ops(NamedTuple):
    """What the models are made of, in one of the frameworks."""

    concatenate: Callable[..., Any]
    split: Callable[..., Any]
    matmul: Callable[..., Any]
    sigmoid: Callable[..., Any]
    tanh: Callable[..., Any]


OURS = Ops(gs.concatenate, gs.split, gs.matmul, gs.sigmoid, gs.tanh)
JAX = Ops(jnp.concatenate, jnp.split, jnp.matmul, jax.nn.sigmoid, jnp.tanh)


class Model(NamedTuple):
    """A loop.

    Attributes:
        name: what it is.
        arrays: values of its placeholders; all but "x" are what it is differentiated by.
        graphs: here, by how it is written: a graph with these placeholders, and the name of the loss.
        loss: the same in JAX, a function of the arrays by name.
        tensorflow: the same in TensorFlow, a function of its module and of tensors by name.
    """

    name: str
    arrays: Arrays
    graphs: Mapping[str, Callable[[Arrays], tuple[Graph, str]]]
    loss: Callable[..., Any]
    tensorflow: Callable[..., Any]


def run() -> list[Row]:
    """Three rows a model: both engines against JAX, xla against TensorFlow where it is installed."""
    found = importlib.util.find_spec("tensorflow")
    tensorflow = None if found is None else importlib.import_module("tensorflow")
    return [row for model in (lstm(), ode(), mapped()) for row in _compare(model, tensorflow)]


def _compare(model: Model, tensorflow: Any) -> Iterator[Row]:
    names = [name for name in model.arrays if name != "x"]
    compiled = jax.jit(jax.value_and_grad(lambda varied, x: model.loss(x=x, **varied)))
    varied = {name: model.arrays[name] for name in names}
    peer = lambda: jax.block_until_ready(compiled(varied, model.arrays["x"]))
    expected = peer()
    for written, build in model.graphs.items():
        segment, values = _segment(*build(model.arrays), model.arrays, names)
        compiled_step = _step(xla.compile_program(segment), values)
        interpreted = _step(reference.compile(segment), values)
        for ours in (compiled_step, interpreted):
            for name, dx in zip(names, ours()[1:], strict=True):
                np.testing.assert_allclose(dx, expected[1][name], rtol=1e-2, atol=1e-5, err_msg=name)
        title = f"{model.name}{written}"
        yield Row(f"{title}, xla", *alternating(compiled_step, peer, _ROUNDS, 1), "JAX", _GOAL)
        if tensorflow is not None:
            other = _tensorflow_step(model, tensorflow, names)
            yield Row(f"{title}, xla", *alternating(compiled_step, other, _ROUNDS, 1), "TensorFlow", _GOAL)
        yield Row(f"{title}, numpy", *alternating(interpreted, peer, 5, 1), "JAX", _FALLBACK)


def _segment(graph: Graph, loss: str, arrays: Arrays, names: Sequence[str]) -> tuple[Segment, list[Any]]:
    """Loss and gradients as a worker gets them, with the values of its feeds in order."""
    found = gs.gradients(graph.tensor(loss), [graph.tensor(name) for name in names])
    fetches = [loss, *(dx.name for dx in found if isinstance(dx, Tensor))]
    feeds = [Feed(f"{name}:0", array.dtype, array.shape) for name, array in arrays.items()]
    made = make_plan(draft(graph, feeds, fetches, (), StepOptions(), plan.fleet(1)), itertools.count())
    (planned,) = made.segments
    held = codec.graph_from_message(codec.read_graph(planned.program.graph))
    places = [source.position for source in made.fetches]
    outputs = [held.tensor(name) for name in planned.program.fetches]
    values = list(arrays.values())
    segment = Segment(
        held, tuple(held.tensor(name) for name in planned.program.feeds), tuple(outputs[k] for k in places)
    )
    return segment, [values[source.position] for source in planned.inputs]


def _step(compiled: Callable[[Sequence[Any], State], list[Any]], values: Sequence[Any]) -> Step:
    return lambda: compiled(list(values), State())


def _tensorflow_step(model: Model, tensorflow: Any, names: Sequence[str]) -> Step:
    constants = {name: tensorflow.constant(array) for name, array in model.arrays.items()}

    @tensorflow.function
    def step() -> Any:
        with tensorflow.GradientTape() as tape:
            for name in names:
                tape.watch(constants[name])
            loss = model.tensorflow(tensorflow, **constants)
        return loss, tape.gradient(loss, [constants[name] for name in names])

    return lambda: [dx.numpy() for dx in step()[1]]


# LSTM


def _cell(ops: Ops, x: Any, h: Any, c: Any, w: Any, b: Any) -> tuple[Any, Any]:
    i, j, f, o = ops.split(ops.matmul(ops.concatenate([x, h], 1), w) + b, 4, 1)
    c = c * ops.sigmoid(f) + ops.sigmoid(i) * ops.tanh(j)
    return ops.tanh(c) * ops.sigmoid(o), c


def lstm() -> Model:
    """The mean square of an LSTM's outputs."""
    draw = np.random.default_rng(0)
    arrays = {
        "x": draw.standard_normal((STEPS, BATCH, UNITS)).astype(np.float32),
        "w": (draw.standard_normal((2 * UNITS, 4 * UNITS)) / 16).astype(np.float32),
        "b": np.zeros(4 * UNITS, np.float32),
    }
    graphs = {" as a While": _functional_lstm, " as a frame": _frame_lstm}
    return Model("LSTM", arrays, graphs, _jax_lstm, _tensorflow_lstm)


def _placeholders(arrays: Arrays) -> dict[str, gs.Tensor]:
    return {name: gs.placeholder(str(array.dtype), array.shape, name=name) for name, array in arrays.items()}


def _functional_lstm(arrays: Arrays) -> tuple[Graph, str]:
    element = np.array([BATCH, UNITS], np.int32)
    kind = {"element_dtype": "float32"}

    def body(t: Any, rows: Any, made: Any, h: Any, c: Any, w: Any, b: Any) -> list[Any]:
        h, c = _cell(OURS, raw.TensorListGetItem(rows, t, element, **kind), h, c, w, b)
        return [t + 1, rows, raw.TensorListSetItem(made, t, h, **kind), h, c, w, b]

    with gs.Graph().as_default() as graph:
        given = _placeholders(arrays)
        rows = raw.TensorListFromTensor(given["x"], element, **kind)
        made = raw.TensorListReserve(element, np.int32(STEPS), **kind)
        zeros = np.zeros((BATCH, UNITS), np.float32)
        after = gs.while_loop(lambda t, *_: t < STEPS, body, 0, rows, made, zeros, zeros, given["w"], given["b"])
        outputs = raw.TensorListStack(after[2], element, num_elements=STEPS, **kind)
        loss = gs.mean(gs.square(outputs))
    return graph, loss.name


def _frame_lstm(arrays: Arrays) -> tuple[Graph, str]:
    w = Writer()
    kind, whole = dtypes.float32, dtypes.int32
    for name, array in arrays.items():
        w.node("Placeholder", name=name, dtype=kind, shape=array.shape)

    def op(type_name: str, *inputs: Value, **attrs: Any) -> Value:
        return w.node(type_name, *inputs, T=kind, **attrs)

    count = w.constant(np.int32(STEPS))
    places = w.constant(np.arange(STEPS, dtype=np.int32))
    array = {"dtype": kind, "element_shape": (BATCH, UNITS)}
    rows, made = (w.node("TensorArrayV3", count, name=name, **array) for name in ("rows", "made"))
    filled = op("TensorArrayScatterV3", rows, places, "x", f"{rows}:1")
    entered = {
        name: w.node("Enter", tensor, T=entry, frame_name="while/while_context", is_constant=True)
        for name, tensor, entry in (
            ("rows", rows, dtypes.resource), ("made", made, dtypes.resource), ("filled", filled, kind),
            ("w", "w", kind), ("b", "b", kind),
        )
    }  # fmt: skip

    def body(t: Value, flow: Value, h: Value, c: Value) -> list[Value]:
        axis = w.constant(np.int32(1), f"^{t}")
        x = w.node("TensorArrayReadV3", entered["rows"], t, entered["filled"], dtype=kind)
        both = op("ConcatV2", x, h, axis, N=2, Tidx=whole)
        z = op("BiasAdd", op("MatMul", both, entered["w"]), entered["b"])
        gates = op("Split", axis, z, num_split=4)
        i, j, f, o = (f"{gates}:{k}" for k in range(4))
        kept = op("Mul", c, op("Sigmoid", f))
        c = op("AddV2", kept, op("Mul", op("Sigmoid", i), op("Tanh", j)))
        h = op("Mul", op("Tanh", c), op("Sigmoid", o))
        flow = op("TensorArrayWriteV3", entered["made"], t, h, flow)
        return [w.node("AddV2", t, axis, T=whole), flow, h, c]

    zeros = w.constant(np.zeros((BATCH, UNITS), np.float32))
    start = [(w.constant(np.int32(0)), whole), (f"{made}:1", kind), (zeros, kind), (zeros, kind)]
    ends = w.loop(lambda t, *_: w.node("Less", t, w.constant(np.int32(STEPS), f"^{t}"), T=whole), body, start)
    outputs = w.node("TensorArrayGatherV3", made, places, ends[1], **array)
    axes = w.constant(np.arange(3, dtype=np.int32))
    loss = op("Mean", op("Square", outputs), axes, Tidx=whole)
    return w.graph(), f"{loss}:0"


def _jax_lstm(x: Any, w: Any, b: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        h, c = carry
        h, c = _cell(JAX, row, h, c, w, b)
        return (h, c), h

    zeros = jnp.zeros((BATCH, UNITS), jnp.float32)
    return jnp.mean(jax.lax.scan(step, (zeros, zeros), x)[1] ** 2)


def _tensorflow_lstm(tf: Any, x: Any, w: Any, b: Any) -> Any:
    ops = Ops(tf.concat, tf.split, tf.matmul, tf.sigmoid, tf.tanh)
    rows = tf.TensorArray(tf.float32, STEPS).unstack(x)
    zeros = tf.zeros((BATCH, UNITS))

    def body(t: Any, made: Any, h: Any, c: Any) -> tuple[Any, ...]:
        h, c = _cell(ops, rows.read(t), h, c, w, b)
        return t + 1, made.write(t, h), h, c

    start = 0, tf.TensorArray(tf.float32, STEPS, element_shape=(BATCH, UNITS)), zeros, zeros
    made = tf.while_loop(lambda t, *_: t < STEPS, body, start)[1]
    return tf.reduce_mean(tf.square(made.stack()))


# An ordinary differential equation, y' = tanh(y w)


def _rk4(ops: Ops, y: Any, w: Any) -> Any:
    def slope(y: Any) -> Any:
        return ops.tanh(ops.matmul(y, w))

    h = 0.02
    k1 = slope(y)
    k2 = slope(y + k1 * (h / 2))
    k3 = slope(y + k2 * (h / 2))
    k4 = slope(y + k3 * h)
    return y + (k1 + k2 * 2.0 + k3 * 2.0 + k4) * (h / 6)


def ode() -> Model:
    """The mean square of the solution, by w; from x."""
    draw = np.random.default_rng(1)
    arrays = {
        "x": draw.standard_normal((ODE_BATCH, ODE_SIZE)).astype(np.float32),
        "w": (draw.standard_normal((ODE_SIZE, ODE_SIZE)) / 8).astype(np.float32),
    }
    return Model("ODE by RK4", arrays, {"": _our_ode}, _jax_ode, _tensorflow_ode)


def _our_ode(arrays: Arrays) -> tuple[Graph, str]:
    with gs.Graph().as_default() as graph:
        given = _placeholders(arrays)
        after = gs.while_loop(
            lambda t, y, w: t < ODE_STEPS, lambda t, y, w: (t + 1, _rk4(OURS, y, w), w), 0, given["x"], given["w"]
        )
        loss = gs.mean(gs.square(after[1]))
    return graph, loss.name


def _jax_ode(x: Any, w: Any) -> Any:
    return jnp.mean(jax.lax.scan(lambda y, _: (_rk4(JAX, y, w), None), x, length=ODE_STEPS)[0] ** 2)


def _tensorflow_ode(tf: Any, x: Any, w: Any) -> Any:
    ops = Ops(tf.concat, tf.split, tf.matmul, tf.sigmoid, tf.tanh)
    y = tf.while_loop(lambda t, y: t < ODE_STEPS, lambda t, y: (t + 1, _rk4(ops, y, w)), (0, x))[1]
    return tf.reduce_mean(tf.square(y))


# A function mapped over rows


def mapped() -> Model:
    """The mean square of tanh(row w), row by row."""
    draw = np.random.default_rng(2)
    arrays = {
        "x": draw.standard_normal((ROWS, ROW_SIZE)).astype(np.float32),
        "w": (draw.standard_normal((ROW_SIZE, ROW_SIZE)) / 8).astype(np.float32),
    }
    return Model("function mapped over rows", arrays, {"": _our_map}, _jax_map, _tensorflow_map)


def _our_map(arrays: Arrays) -> tuple[Graph, str]:
    element, kind = np.array([ROW_SIZE], np.int32), {"element_dtype": "float32"}

    def body(t: Any, rows: Any, made: Any, w: Any) -> list[Any]:
        row = gs.reshape(raw.TensorListGetItem(rows, t, element, **kind), (1, ROW_SIZE))
        result = gs.reshape(gs.tanh(gs.matmul(row, w)), (ROW_SIZE,))
        return [t + 1, rows, raw.TensorListSetItem(made, t, result, **kind), w]

    with gs.Graph().as_default() as graph:
        given = _placeholders(arrays)
        rows = raw.TensorListFromTensor(given["x"], element, **kind)
        made = raw.TensorListReserve(element, np.int32(ROWS), **kind)
        after = gs.while_loop(lambda t, *_: t < ROWS, body, 0, rows, made, given["w"])
        loss = gs.mean(gs.square(raw.TensorListStack(after[2], element, num_elements=ROWS, **kind)))
    return graph, loss.name


def _jax_map(x: Any, w: Any) -> Any:
    return jnp.mean(jax.lax.map(lambda row: jnp.tanh(row[None] @ w)[0], x) ** 2)


def _tensorflow_map(tf: Any, x: Any, w: Any) -> Any:
    return tf.reduce_mean(tf.square(tf.map_fn(lambda row: tf.tanh(row[None] @ w)[0], x)))
