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

from gradserve.errors import InvalidArgument, Unsupported
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, raw, scalar_shape
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import Size, size_of
from gradserve.ops.recurrence import Arrays, Mathematics, Nodes, through


class _Weights(NamedTuple):
    """Of one direction of one layer, gate by gate: matrices `[gates * units, ...]` and biases `[gates * units]`."""

    wx: Any
    wh: Any
    bx: Any
    bh: Any


_State = Sequence[Any]
"""h, and c of an LSTM."""

_Cell = Callable[[Mathematics, Any, Any, _State], _State]
"""Takes what x and what h contribute, all gates side by side, and the state before."""


def _lstm(m: Mathematics, by_x: Any, by_h: Any, state: _State) -> _State:
    """Gates: input, forget, new, output."""
    i, f, g, o = m.columns(by_x + by_h, 4)
    c = m.sigmoid(f) * state[1] + m.sigmoid(i) * m.tanh(g)
    return m.sigmoid(o) * m.tanh(c), c


def _gru(m: Mathematics, by_x: Any, by_h: Any, state: _State) -> _State:
    """Gates: reset, keep, new. The reset gate acts on the product with h."""
    (rx, zx, nx), (rh, zh, nh) = m.columns(by_x, 3), m.columns(by_h, 3)
    r, z = m.sigmoid(rx + rh), m.sigmoid(zx + zh)
    return ((1.0 - z) * m.tanh(nx + r * nh) + z * state[0],)


def _relu(m: Mathematics, by_x: Any, by_h: Any, state: _State) -> _State:
    return (m.relu(by_x + by_h),)


def _tanh(m: Mathematics, by_x: Any, by_h: Any, state: _State) -> _State:
    return (m.tanh(by_x + by_h),)


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


# The network


class _Network:
    """The formula of a node. Layers are rows of a scan: all but the first have inputs of one size."""

    def __init__(self, m: Mathematics, node: Node, lengths: Any) -> None:
        self.m = m
        self.lengths = lengths
        self.cell, self.gates, self.directions = _checked(node)
        self.batch_first = not node.attrs.get("time_major", True)

    def __call__(self, x: Any, states: _State, params: Any) -> tuple[Any, _State]:
        """The outputs of all steps, and the last states, of which there are as many as were given."""
        m, directions = self.m, self.directions
        if self.batch_first:
            x, states = m.swapped(x), [m.swapped(state) for state in states]
        count, batch, units = (m.size(states[0], axis) for axis in range(3))
        layers = count // directions
        first, others, biases = self._parameters(params, m.size(x, 2), units, layers)
        shape = layers, directions, batch, units
        by_layer = [m.split(m.reshape(state, *shape), [1, layers - 1]) for state in states]
        alive = [] if self.lengths is None else [m.alive(self.lengths, x)]
        x, last = self._layer(x, [one[0] for one, _ in by_layer], first, biases[0], alive)

        def step(state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any]) -> tuple[Sequence[Any], _State]:
            matrices, bias, *states = rows
            x, last = self._layer(state[0], states, matrices, bias, fixed)
            return (x,), last

        rows = [others, biases[1:], *(rest for _, rest in by_layer)]
        (x,), more = m.scan(step, [x], rows, alive, [m.vector(*shape[1:])] * len(states))
        ends = [
            m.reshape(m.join([one[None], rest], 0), count, batch, units) for one, rest in zip(last, more, strict=True)
        ]
        return (m.swapped(x), [m.swapped(end) for end in ends]) if self.batch_first else (x, ends)

    def _parameters(self, params: Any, inputs: Size, units: Size, layers: Size) -> tuple[Any, Any, Any]:
        """Matrices of the first layer, those of the others, and all biases: the last two with a row for each layer."""
        m, rows = self.m, self.directions * self.gates * units
        own, more, bias = rows * (inputs + units), rows * (units * self.directions + units), rows * 2
        first, others, biases = m.split(params, [own, (layers - 1) * more, layers * bias])
        return first, m.reshape(others, layers - 1, more), m.reshape(biases, layers, bias)

    def _layer(self, x: Any, states: _State, matrices: Any, biases: Any, alive: Sequence[Any]) -> tuple[Any, _State]:
        """The outputs of one layer, `[steps, batch, directions * units]`, and its last states.

        A state is `[directions, batch, units]`; `alive` is empty or says which steps count.
        """
        m = self.m
        ways: list[Any] = []
        ends: list[_State] = []
        for way, weights in enumerate(self._weights(matrices, biases, m.size(x, 2), m.size(states[0], 2))):
            outputs, end = self._one_way(x, [state[way] for state in states], weights, alive, way == 1)
            ways.append(outputs)
            ends.append(end)
        last = [m.stack(each) for each in zip(*ends, strict=True)]
        return m.join(ways, 2) if len(ways) > 1 else ways[0], last

    def _weights(self, matrices: Any, biases: Any, inputs: Size, units: Size) -> list[_Weights]:
        """Of each direction of a layer."""
        m, rows = self.m, self.gates * units
        flat = m.split(matrices, [rows * inputs, rows * units] * self.directions)
        bias = m.split(biases, [rows] * (2 * self.directions))
        return [
            _Weights(m.reshape(wx, rows, inputs), m.reshape(wh, rows, units), bx, bh)
            for wx, wh, bx, bh in zip(flat[::2], flat[1::2], bias[::2], bias[1::2], strict=True)
        ]

    def _one_way(
        self, x: Any, state: _State, weights: _Weights, alive: Sequence[Any], backwards: bool
    ) -> tuple[Any, _State]:
        """Outputs in the order of the steps, and the last state. A sequence that has ended keeps its state."""
        m = self.m

        def step(state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any]) -> tuple[_State, Sequence[Any]]:
            by_x, *on = rows
            wh, bh = fixed
            after = self.cell(m, by_x, m.dot(state[0], wh, transpose_b=True) + bh, state)
            if not on:
                return after, after[:1]
            kept = [on[0] * new + (1.0 - on[0]) * old for new, old in zip(after, state, strict=True)]
            return kept, [after[0] * on[0]]

        by_x = m.projected(x, weights.wx) + weights.bx
        last, (outputs,) = m.scan(
            step, state, [by_x, *alive], [weights.wh, weights.bh], [m.shape(state[0])], backwards=backwards
        )
        return outputs, last


def _network(m: Mathematics, node: Node, x: Any, h: Any, c: Any, params: Any, lengths: Any = None) -> Sequence[Any]:
    """The outputs of all steps, and the last states: h, and c for an LSTM."""
    states = [h, c] if node.attrs["rnn_mode"] == "lstm" else [h]
    output, ends = _Network(m, node, lengths)(x, states, params)
    return output, *ends


def _count(inputs: int, units: int, layers: int, directions: int, gates: int) -> int:
    """The number of parameters."""
    first = units * (inputs + units + 2)
    others = units * (units * directions + units + 2)
    return gates * directions * (first + (layers - 1) * others)


def _check_sizes(node: Node, x: Any, input_h: Any, input_c: Any, params: Any) -> None:
    _, gates, directions = _checked(node)
    _check_input_mode(node, x.shape[-1], input_h.shape[-1])
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
    output, h, *c = _network(Arrays(xp), node, x, input_h, input_c, params, *lengths)
    reserved = [xp.zeros(0, x.dtype), xp.zeros(0, xp.int8)]
    return [output, h, c[0] if c else xp.zeros((), x.dtype), *reserved[: len(node.outputs) - 3]]


def _gradient(*values: Any, node: Node, sweep: Any) -> list[Any]:
    count = len(node.outputs)
    given = 3 if node.attrs["rnn_mode"] == "lstm" else 2
    cotangents, inputs = values[:given], list(values[2 * count :])
    sizes = size_of(inputs[0], -1), size_of(inputs[1], -1)
    if not any(isinstance(size, Tensor) for size in sizes):
        _check_input_mode(node, *sizes)
    elif node.attrs["input_mode"] != "linear_input":
        # The node itself finds out whether its layers skip their input matrix, and then does not run.
        with node.graph.control_dependencies([node]):
            inputs[0] = raw.Identity(inputs[0])
    return through(lambda *leaves: _network(Nodes(), node, *leaves), cotangents, inputs, sweep)


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
        return [call(x, h, c, params, **attrs)]
    lengths = draw.integers(1, steps + 1, batch)
    return [call(x, h, c, params, lengths, time_major=not batch_first, **attrs)]


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
