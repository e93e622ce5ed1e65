"""cuDNN's recurrent networks, computed by formula: several layers, one or both directions, on any engine.

Values have time first: x is `[steps, batch, inputs]`, the states `[layers * directions, batch, units]`. The vector of
parameters holds all matrices, then all biases; within each of the two, layer by layer, direction by direction, first
those applied to x and then those applied to h, gate by gate. A matrix is `[units, inputs]`, row by row.
Sources: cuDNN's developer guide on recurrent networks; TensorFlow's cudnn_rnn_ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument, UndefinedGradient, Unsupported
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, scalar_shape
from gradserve.graph.shapes import Shape
from gradserve.ops.recurrence import Arrays, Mathematics, Nodes, through


class _Parameters(NamedTuple):
    """Of one direction of one layer, a tuple entry a gate: matrices for x and h, biases for x and h."""

    wx: Sequence[Any]
    wh: Sequence[Any]
    bx: Sequence[Any]
    bh: Sequence[Any]


class _State(NamedTuple):
    h: Any
    c: Any


_Cell = Callable[[Mathematics, Sequence[Any], Sequence[Any], _State], _State]
"""Takes, gate by gate, what x and what h contribute, and the state before."""


def _lstm(m: Mathematics, by_x: Sequence[Any], by_h: Sequence[Any], state: _State) -> _State:
    """Gates: input, forget, new, output."""
    i, f, g, o = (a + b for a, b in zip(by_x, by_h, strict=True))
    c = m.sigmoid(f) * state.c + m.sigmoid(i) * m.tanh(g)
    return _State(m.sigmoid(o) * m.tanh(c), c)


def _gru(m: Mathematics, by_x: Sequence[Any], by_h: Sequence[Any], state: _State) -> _State:
    """Gates: reset, keep, new. The reset gate acts on the product with h."""
    r, z = (m.sigmoid(a + b) for a, b in zip(by_x[:2], by_h[:2], strict=True))
    new = m.tanh(by_x[2] + r * by_h[2])
    return _State((1.0 - z) * new + z * state.h, state.c)


def _relu(m: Mathematics, by_x: Sequence[Any], by_h: Sequence[Any], state: _State) -> _State:
    return _State(m.relu(by_x[0] + by_h[0]), state.c)


def _tanh(m: Mathematics, by_x: Sequence[Any], by_h: Sequence[Any], state: _State) -> _State:
    return _State(m.tanh(by_x[0] + by_h[0]), state.c)


_CELLS: dict[str, tuple[_Cell, int]] = {
    "lstm": (_lstm, 4),
    "gru": (_gru, 3),
    "rnn_relu": (_relu, 1),
    "rnn_tanh": (_tanh, 1),
}
"""Cell and number of gates by rnn_mode."""


def _checked(node: Node) -> tuple[_Cell, int, int]:
    """Cell, gates and directions of a node. Raises Unsupported for what cuDNN alone can do."""
    attrs = node.attrs
    if attrs["rnn_mode"] not in _CELLS:
        raise InvalidArgument(
            f"{node.name}: rnn_mode is {attrs['rnn_mode']!r}, but must be one of {', '.join(_CELLS)}."
        )
    if attrs["direction"] not in ("unidirectional", "bidirectional"):
        raise InvalidArgument(f"{node.name}: direction is {attrs['direction']!r}, but must be uni- or bidirectional.")
    if attrs.get("num_proj"):
        raise Unsupported(f"{node.name}: projected LSTMs (num_proj) are not supported.", node=node.name)
    if attrs["dropout"] and attrs["is_training"]:
        raise Unsupported(
            f"{node.name}: cuDNN's dropout draws numbers of its own: set dropout=0 and use a Dropout between layers.",
            node=node.name,
        )
    return *_CELLS[attrs["rnn_mode"]], 2 if attrs["direction"] == "bidirectional" else 1


def _check_input_mode(node: Node, inputs: int, units: int) -> None:
    mode = node.attrs["input_mode"]
    if mode == "skip_input" or (mode == "auto_select" and inputs == units):
        raise Unsupported(f"{node.name}: layers that skip their input matrix are not supported.", node=node.name)


# Parameters


def _unpacked(
    m: Mathematics, params: Any, inputs: int, units: int, layers: int, directions: int, gates: int
) -> list[_Parameters]:
    """One entry a layer and direction."""
    start = 0

    def take(*shape: int) -> Any:
        nonlocal start
        count = int(np.prod(shape))
        start += count
        return m.reshape(params[start - count : start], shape)

    widths = [inputs if layer == 0 else units * directions for layer in range(layers) for _ in range(directions)]
    matrices = [
        [[take(units, width) for _ in range(gates)], [take(units, units) for _ in range(gates)]] for width in widths
    ]
    biases = [[[take(units) for _ in range(gates)] for _ in range(2)] for _ in widths]
    return [_Parameters(*matrix, *bias) for matrix, bias in zip(matrices, biases, strict=True)]


def _count(inputs: int, units: int, layers: int, directions: int, gates: int) -> int:
    """The number of parameters."""
    first = units * (inputs + units + 2)
    others = units * (units * directions + units + 2)
    return gates * directions * (first + (layers - 1) * others)


# The network


def _products(m: Mathematics, x: Any, matrices: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
    return [m.dot(x, w, transpose_b=True) + b for w, b in zip(matrices, biases, strict=True)]


def _one_way(
    m: Mathematics,
    steps: Sequence[Any],
    alive: Sequence[Any] | None,
    state: _State,
    parameters: _Parameters,
    cell: _Cell,
) -> tuple[list[Any], _State]:
    """Outputs in the order of the steps, and the last state. A sequence that has ended keeps its state."""
    outputs: list[Any] = []
    for place, x in enumerate(steps):
        by_x = _products(m, x, parameters.wx, parameters.bx)
        by_h = _products(m, state.h, parameters.wh, parameters.bh)
        after = cell(m, by_x, by_h, state)
        if alive is not None:
            on = alive[place]
            outputs.append(after.h * on)
            after = _State(*(on * new + (1.0 - on) * old for new, old in zip(after, state, strict=True)))
        else:
            outputs.append(after.h)
        state = after
    return outputs, state


def _network(
    m: Mathematics, node: Node, x: Any, input_h: Any, input_c: Any, params: Any, lengths: Any = None
) -> tuple[Any, Any, Any]:
    """The outputs of all steps, and the last states. c means something to LSTMs alone; others keep h in its place."""
    cell, gates, directions = _checked(node)
    batch_first = not node.attrs.get("time_major", True)
    if batch_first:
        x, input_h = m.swapped(x), m.swapped(input_h)
        input_c = m.swapped(input_c) if cell is _lstm else input_c
    count, _, units = input_h.shape
    _check_input_mode(node, x.shape[2], units)
    layers = _unpacked(m, params, x.shape[2], units, count // directions, directions, gates)
    steps = list(m.rows(x))
    alive = None if lengths is None else list(m.rows(m.alive(lengths, len(steps), x)))
    hs = m.rows(input_h)
    cs = m.rows(input_c) if cell is _lstm else hs
    last: list[_State] = []
    for place in range(0, count, directions):
        ways: list[list[Any]] = []
        for way in range(directions):
            turn = slice(None, None, -1 if way else 1)
            state = _State(hs[place + way], cs[place + way])
            on = None if alive is None else alive[turn]
            outputs, state = _one_way(m, steps[turn], on, state, layers[place + way], cell)
            ways.append(outputs[turn])
            last.append(state)
        steps = [m.join(both, 1) for both in zip(*ways, strict=True)] if directions > 1 else ways[0]
    results = [m.stack(steps), m.stack([state.h for state in last]), m.stack([state.c for state in last])]
    return tuple(map(m.swapped, results)) if batch_first else tuple(results)  # type: ignore[return-value]


def _check_sizes(node: Node, x: Any, input_h: Any, input_c: Any, params: Any) -> None:
    _, gates, directions = _checked(node)
    is_lstm = node.attrs["rnn_mode"] == "lstm"
    if x.ndim != 3 or input_h.ndim != 3 or (is_lstm and input_c.shape != input_h.shape):
        raise InvalidArgument(
            f"{node.name}: input {x.shape}, input_h {input_h.shape} and input_c {input_c.shape} must have rank 3, and "
            "the states one shape.",
            node=node.name,
        )
    if not x.shape[0] or not x.shape[1]:
        raise InvalidArgument(f"{node.name}: there must be at least one step and one sequence, but input is {x.shape}.")
    count = input_h.shape[0 if node.attrs.get("time_major", True) else 1]
    if not count or count % directions:
        raise InvalidArgument(f"{node.name}: {count} states can't be shared by layers of {directions} direction(s).")
    wanted = _count(x.shape[2], input_h.shape[2], count // directions, directions, gates)
    if params.shape != (wanted,):
        raise InvalidArgument(f"{node.name}: params has the shape {params.shape}, but must have {wanted} entries.")


def _kernel(xp: Any, x: Any, input_h: Any, input_c: Any, params: Any, *lengths: Any, node: Node) -> list[Any]:
    _check_sizes(node, x, input_h, input_c, params)
    output, h, c = _network(Arrays(xp), node, x, input_h, input_c, params, *lengths)
    if node.attrs["rnn_mode"] != "lstm":
        c = xp.zeros((), x.dtype)
    reserved = [xp.zeros(0, x.dtype), xp.zeros(0, xp.int8)]
    return [output, h, c, *reserved[: len(node.outputs) - 3]]


def _is_known(shape: Shape, batch_axis: int) -> bool:
    return shape is not None and all(size is not None for axis, size in enumerate(shape) if axis != batch_axis)


def _gradient(*values: Any, node: Node, sweep: Any) -> list[Any]:
    count = len(node.outputs)
    cotangents, inputs = values[:3], values[2 * count :]
    batch_axis = 1 if node.attrs.get("time_major", True) else 0
    if not all(_is_known(value.shape, batch_axis) for value in inputs[:2]):
        raise UndefinedGradient(
            f"The gradient of {node.name} ({node.type}) unrolls time: give all axes of input and input_h but the batch "
            "static sizes.",
            node=node.name,
        )
    is_lstm = node.attrs["rnn_mode"] == "lstm"

    def formula(*leaves: Tensor) -> Sequence[Tensor | None]:
        output, h, c = _network(Nodes(), node, *leaves)
        return output, h, c if is_lstm else None

    return through(formula, cotangents, inputs, sweep)


def _shape(x: Tensor, input_h: Tensor, *others: Tensor, node: Node) -> list[Shape]:
    _, _, directions = _checked(node)
    output = None
    if x.shape is not None and input_h.shape is not None:
        units = input_h.shape[2]
        output = (*x.shape[:2], None if units is None else units * directions)
    c = input_h.shape if node.attrs["rnn_mode"] == "lstm" else ()
    return [output, input_h.shape, c, None, None][: 4 if node.type == "CudnnRNN" else 5]


# Examples


def _examples(draw: Any, with_lengths: bool) -> list[Example]:
    mode, both = draw.pick(list(_CELLS)), draw.size(1, 2)
    steps, batch, inputs, units, layers = (
        draw.size(1, 3),
        draw.size(1, 2),
        draw.size(1, 2),
        draw.size(1, 2),
        draw.size(1, 2),
    )
    batch_first = with_lengths and bool(draw.size(0, 1))
    x, h, c = (draw.unit(*shape) for shape in ((steps, batch, inputs), *[(layers * both, batch, units)] * 2))
    if batch_first:
        x, h, c = (np.swapaxes(value, 0, 1) for value in (x, h, c))
    params = draw.unit(_count(inputs, units, layers, both, _CELLS[mode][1]))
    attrs: dict[str, Any] = {"rnn_mode": mode, "direction": "bidirectional" if both == 2 else "unidirectional"}
    if not with_lengths:
        return [call(x, h, c, params, differences=False, **attrs)]
    lengths = draw.integers(1, steps + 1, batch)
    return [call(x, h, c, params, lengths, time_major=not batch_first, differences=False, **attrs)]


_ATTRS = (
    "T: floating, rnn_mode: string = 'lstm', input_mode: string = 'linear_input',"
    " direction: string = 'unidirectional', dropout: float = 0.0, seed: int = 0, seed2: int = 0"
)
_INPUTS = "input: T, input_h: T, input_c: T, params: T"
_OUTPUTS = "output: T, output_h: T, output_c: T, reserve_space: T"

for _text in (
    f"CudnnRNN({_INPUTS}; {_ATTRS}, is_training: bool = true) -> ({_OUTPUTS})",
    f"CudnnRNNV2({_INPUTS}; {_ATTRS}, is_training: bool = true) -> ({_OUTPUTS}, host_reserved: int8)",
    f"CudnnRNNV3({_INPUTS}, sequence_lengths: int32; {_ATTRS}, num_proj: int = 0, is_training: bool = true,"
    f" time_major: bool = true) -> ({_OUTPUTS}, host_reserved: int8)",
):
    define(
        _text,
        shape=_shape,
        gradient=_gradient,
        kernel=_kernel,
        stateful=True,
        examples=lambda draw, with_lengths="sequence_lengths" in _text: _examples(draw, with_lengths),
    )


def _number_of_parameters(xp: Any, layers: Any, units: Any, inputs: Any, *, S: DType, node: Node) -> Any:
    attrs = node.attrs
    if attrs["num_proj"] or attrs["rnn_mode"] not in _CELLS:
        raise Unsupported(f"{node.name}: projected LSTMs and unknown cells are not supported.", node=node.name)
    _check_input_mode(node, int(inputs), int(units))
    directions = 2 if attrs["direction"] == "bidirectional" else 1
    count = _count(int(inputs), int(units), int(layers), directions, _CELLS[attrs["rnn_mode"]][1])
    return np.array(count, S.numpy)


define(
    "CudnnRNNParamsSize(num_layers: int32, num_units: int32, input_size: int32; T: floating, S: index,"
    " rnn_mode: string = 'lstm', input_mode: string = 'linear_input', direction: string = 'unidirectional',"
    " dropout: float = 0.0, seed: int = 0, seed2: int = 0, num_proj: int = 0) -> (params_size: S)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_number_of_parameters,
    host=("num_layers", "num_units", "input_size"),
    examples=lambda draw: [
        call(np.int32(draw.size(1)), np.int32(2), np.int32(3), T="float32", S="int32", rnn_mode=draw.pick(list(_CELLS)))
    ],
)
