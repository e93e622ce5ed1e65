"""Recurrent cells as one op each: LSTM over a block of steps, one LSTM cell, one GRU cell, and their gradients.

x is an input `[batch, inputs]`, cs and h are the cell state and the output `[batch, units]`; i, f and o are the
gates, ci the new input, co = tanh(cs). d stands before the name of a cotangent.
Source: TensorFlow's rnn_ops; Gers and Schmidhuber 2000 (peepholes), Cho et al. 2014 (GRU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import Size, is_zero
from gradserve.ops.recurrence import Arrays, Mathematics, Nodes, recurrent_shape, through


class _Weights(NamedTuple):
    """`[inputs + units, 4 units]`, the peepholes `[units]`, the bias `[4 units]`."""

    w: Any
    wci: Any
    wcf: Any
    wco: Any
    b: Any


class _Gates(NamedTuple):
    """All that a cell computes, in the order of the ops' outputs."""

    i: Any
    cs: Any
    f: Any
    o: Any
    ci: Any
    co: Any
    h: Any


class _Kind(NamedTuple):
    """Attrs of an LSTM. `order` is where i, ci, f and o stand among the columns of the weights."""

    order: tuple[int, int, int, int]
    use_peephole: bool
    forget_bias: float = 0.0
    cell_clip: float = 0.0


_FIRST_ORDER, _SECOND_ORDER = (0, 1, 2, 3), (0, 2, 1, 3)
"""The columns are i, ci, f, o; in BlockLSTMV2 i, f, ci, o."""


def _order(node: Node) -> tuple[int, int, int, int]:
    return _SECOND_ORDER if node.type.endswith("V2") else _FIRST_ORDER


# One cell


def _cell(m: Mathematics, x: Any, cs: Any, h: Any, weights: _Weights, kind: _Kind) -> _Gates:
    columns = m.columns(m.dot(m.join([x, h], 1), weights.w) + weights.b, 4)
    i, ci, f, o = (columns[place] for place in kind.order)
    f = f + kind.forget_bias
    if kind.use_peephole:
        i, f = i + cs * weights.wci, f + cs * weights.wcf
    i, f, ci = m.sigmoid(i), m.sigmoid(f), m.tanh(ci)
    cs = ci * i + cs * f
    if kind.cell_clip > 0:
        cs = m.clip(cs, kind.cell_clip)
    o = m.sigmoid(o + cs * weights.wco if kind.use_peephole else o)
    co = m.tanh(cs)
    return _Gates(i, cs, f, o, ci, co, co * o)


class _CellBackward(NamedTuple):
    """Cotangents of the state before the cell, of the columns, and of each row's peepholes."""

    dcs: Any
    dcolumns: Any
    dwci: Any
    dwcf: Any
    dwco: Any


def _cell_backward(
    m: Mathematics, gates: _Gates, cs_before: Any, weights: _Weights, dcs: Any, dh: Any, kind: _Kind
) -> _CellBackward:
    """The clipping passes everything on, as TensorFlow's op does."""
    i, cs, f, o, ci, co, _ = gates
    do = o * (1.0 - o) * dh * co
    dcs = (1.0 - co * co) * dh * o + dcs
    if kind.use_peephole:
        dcs = dcs + do * weights.wco
    dci = (1.0 - ci * ci) * dcs * i
    df = f * (1.0 - f) * dcs * cs_before
    di = i * (1.0 - i) * dcs * ci
    before = dcs * f
    if kind.use_peephole:
        before = before + di * weights.wci + df * weights.wcf
    columns = [di, dci, df, do]
    dcolumns = m.join([columns[kind.order.index(place)] for place in range(4)], 1)
    return _CellBackward(before, dcolumns, di * cs_before, df * cs_before, do * cs)


def _peepholes(m: Mathematics, cell: _CellBackward, weights: _Weights, kind: _Kind) -> list[Any]:
    if kind.use_peephole:
        return [m.total(cell.dwci), m.total(cell.dwcf), m.total(cell.dwco)]
    return [m.zeros_like(weights.wci), m.zeros_like(weights.wcf), m.zeros_like(weights.wco)]


_CELL_INPUTS = "x: T, cs_prev: T, h_prev: T, w: T, wci: T, wcf: T, wco: T, b: T"
_CELL_OUTPUTS = "(i: T, cs: T, f: T, o: T, ci: T, co: T, h: T)"
_CELL_ATTRS = "forget_bias: float = 1.0, cell_clip: float = 3.0, use_peephole: bool = false, T: float16|float32"


def _lstm(m: Mathematics, x: Any, cs: Any, h: Any, *weights: Any, kind: _Kind) -> _Gates:
    return _cell(m, x, cs, h, _Weights(*weights), kind)


def _lstm_kernel(xp: Any, *inputs: Any, forget_bias: float, cell_clip: float, use_peephole: bool) -> Any:
    return _lstm(Arrays(xp), *inputs, kind=_Kind(_FIRST_ORDER, use_peephole, forget_bias, cell_clip))


def _lstm_gradient(*values: Tensor, forget_bias: float, cell_clip: float, use_peephole: bool, sweep: Any) -> list[Any]:
    kind = _Kind(_FIRST_ORDER, use_peephole, forget_bias, cell_clip)
    return through(lambda *inputs: _lstm(Nodes(), *inputs, kind=kind), values[:7], values[14:], sweep)


def _cell_weights(draw: Any, inputs: int, units: int) -> list[Any]:
    return [_single(draw.unit(*shape)) for shape in ((inputs + units, 4 * units), *[(units,)] * 3, (4 * units,))]


def _single(array: Any) -> Any:
    return array.astype(np.float32)


def _cell_examples(draw: Any) -> list[Example]:
    batch, inputs, units = draw.size(), draw.size(), draw.size(1)
    state = [_single(draw.unit(batch, size)) for size in (inputs, units, units)]
    return [call(*state, *_cell_weights(draw, inputs, units), use_peephole=peephole) for peephole in (False, True)]


define(
    f"LSTMBlockCell({_CELL_INPUTS}; {_CELL_ATTRS}) -> {_CELL_OUTPUTS}",
    shape=lambda x, cs, *others: [cs.shape] * 7,
    gradient=_lstm_gradient,
    kernel=_lstm_kernel,
    examples=_cell_examples,
)


def _lstm_backward(
    m: Mathematics, x: Any, cs_prev: Any, h_prev: Any, w: Any, wci: Any, wcf: Any, wco: Any, b: Any, i: Any, cs: Any,
    f: Any, o: Any, ci: Any, co: Any, dcs: Any, dh: Any, *, kind: _Kind,
) -> Any:  # fmt: skip
    weights = _Weights(w, wci, wcf, wco, b)
    cell = _cell_backward(m, _Gates(i, cs, f, o, ci, co, None), cs_prev, weights, dcs, dh, kind)
    return cell.dcs, cell.dcolumns, *_peepholes(m, cell, weights, kind)


def _lstm_backward_gradient(*values: Tensor, use_peephole: bool, sweep: Any) -> list[Any]:
    kind = _Kind(_FIRST_ORDER, use_peephole)
    return through(lambda *inputs: _lstm_backward(Nodes(), *inputs, kind=kind), values[:5], values[10:], sweep)


def _lstm_backward_shape(*inputs: Tensor) -> list[Shape]:
    cs, w, wci, wcf, wco = inputs[1], *inputs[3:7]
    known = cs.shape is not None and w.shape is not None
    return [cs.shape, (cs.shape[0], w.shape[1]) if known else None, wci.shape, wcf.shape, wco.shape]  # pyright: ignore[reportOptionalSubscript]


def _lstm_backward_examples(draw: Any) -> list[Example]:
    batch, inputs, units = draw.size(), draw.size(), draw.size(1)
    state = [_single(draw.unit(batch, size)) for size in (inputs, units, units)]
    saved = [_single(draw.fraction(batch, units)) for _ in range(8)]
    return [
        call(*state, *_cell_weights(draw, inputs, units), *saved, use_peephole=peephole) for peephole in (False, True)
    ]


define(
    f"LSTMBlockCellGrad({_CELL_INPUTS}, i: T, cs: T, f: T, o: T, ci: T, co: T, cs_grad: T, h_grad: T;"
    " use_peephole: bool, T: float16|float32)"
    " -> (cs_prev_grad: T, dicfo: T, wci_grad: T, wcf_grad: T, wco_grad: T)",
    shape=_lstm_backward_shape,
    gradient=_lstm_backward_gradient,
    kernel=lambda xp, *inputs, use_peephole: _lstm_backward(
        Arrays(xp), *inputs, kind=_Kind(_FIRST_ORDER, use_peephole)
    ),
    examples=_lstm_backward_examples,
)

# A block of steps: each value has time as its first axis. Past seq_len_max everything is zero.


def _block(m: Mathematics, limit: Size, x: Any, cs: Any, h: Any, *weights: Any, kind: _Kind) -> list[Any]:
    def step(state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        cs, h = state
        gates = _cell(m, rows[0], cs, h, _Weights(*fixed), kind)
        return (gates.cs, gates.h), gates

    _, done = m.scan(step, [cs, h], [m.first(x, limit)], weights, [m.shape(cs)] * 7)
    return [m.filled_up(y, m.size(x, 0)) for y in done]


def _block_backward(
    m: Mathematics, limit: Size, x: Any, cs_prev: Any, h_prev: Any, w: Any, wci: Any, wcf: Any, wco: Any, b: Any,
    i: Any, cs: Any, f: Any, o: Any, ci: Any, co: Any, h: Any, dcs: Any, dh: Any, *, kind: _Kind,
) -> list[Any]:  # fmt: skip
    cs_before, h_before = (m.join([before[None], y], 0) for before, y in ((cs_prev, cs), (h_prev, h)))
    rows = [m.first(y, limit) for y in (x, i, cs, f, o, ci, co, cs_before, h_before, dcs, dh)]

    def step(state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        x, *saved, cs_before, h_before, dcs, dh = rows
        weights = _Weights(*fixed)
        cell = _cell_backward(m, _Gates(*saved, h=None), cs_before, weights, state[0] + dcs, state[1] + dh, kind)
        dx, dh_before = m.halves(m.dot(cell.dcolumns, weights.w, transpose_b=True), x, h_before)
        by_row = cell[2:] if kind.use_peephole else ()
        return (cell.dcs, dh_before), (dx, cell.dcolumns, *by_row)

    state = [m.zeros_like(cs_prev), m.zeros_like(h_prev)]
    peepholes = [wci, wcf, wco]
    columns = m.vector(m.size(x, 1), m.size(b, 0))
    made = [m.shape(x)[1:], columns, *[m.shape(cs_prev)] * (3 if kind.use_peephole else 0)]
    (dcs_before, dh_before), (dx, dcolumns, *by_row) = m.scan(
        step, state, rows, [w, wci, wcf, wco, b], made, backwards=True
    )
    dw = m.correlated(m.join([rows[0], rows[8]], 2), dcolumns)
    dpeepholes = [m.total(term, (0, 1)) for term in by_row] or [m.zeros_like(weight) for weight in peepholes]
    return [m.filled_up(dx, m.size(x, 0)), dcs_before, dh_before, dw, *dpeepholes, m.total(dcolumns, (0, 1))]


_BLOCK_INPUTS = f"seq_len_max: int64, {_CELL_INPUTS}"


def _steps(limit: Any, x: Any) -> int:
    steps = int(limit)
    if not 0 <= steps <= x.shape[0]:
        raise InvalidArgument(f"seq_len_max is {steps}, but x has {x.shape[0]} steps.", seq_len_max=steps)
    return steps


def _limit(limit: Tensor) -> Size:
    """seq_len_max as a number of rows."""
    known = static.scalar(limit)
    return raw.Cast(limit, DstT="int32") if known is None else known


def _kind_of(node: Node) -> _Kind:
    attrs = node.attrs
    bias, clip = attrs.get("forget_bias", 0.0), attrs.get("cell_clip", 0.0)
    return _Kind(_order(node), attrs["use_peephole"], bias, clip)


def _block_kernel(xp: Any, limit: Any, x: Any, *inputs: Any, node: Node) -> list[Any]:
    return _block(Arrays(xp), _steps(limit, x), x, *inputs, kind=_kind_of(node))


def _block_backward_kernel(xp: Any, limit: Any, x: Any, *inputs: Any, node: Node) -> list[Any]:
    return _block_backward(Arrays(xp), _steps(limit, x), x, *inputs, kind=_kind_of(node))


def _block_gradient(*values: Tensor, node: Node, sweep: Any) -> list[Any]:
    """What reads cs and h alone, which is nearly everything, has an op of its own."""
    cotangents, outputs, (limit, *inputs) = values[:7], values[7:14], values[14:]
    if all(is_zero(dy) for k, dy in enumerate(cotangents) if k not in (1, 6)):
        backward = raw.BlockLSTMGradV2 if node.type.endswith("V2") else raw.BlockLSTMGrad
        use_peephole = node.attrs["use_peephole"]
        saved = (*outputs, cotangents[1], cotangents[6])
        return [None, *backward.outputs(limit, *inputs, *saved, use_peephole=use_peephole)]
    found = through(
        lambda *given: _block(Nodes(), _limit(limit), *given, kind=_kind_of(node)), cotangents, inputs, sweep
    )
    return [None, *(raw.ZerosLike(value) if dx is None else dx for dx, value in zip(found, inputs, strict=True))]


def _block_backward_gradient(*values: Tensor, node: Node, sweep: Any) -> list[Any]:
    cotangents, (limit, *inputs) = values[:8], values[16:]
    found = through(
        lambda *given: _block_backward(Nodes(), _limit(limit), *given, kind=_kind_of(node)), cotangents, inputs, sweep
    )
    return [None, *found]


def _block_inputs(draw: Any) -> tuple[tuple[Any, Any, Any, Any], int, int]:
    """The limit, which may be less than the number of steps, x and the states; the sizes of inputs and units."""
    steps, batch, inputs, units = draw.size(0, 3), draw.size(0, 2), draw.size(0, 2), draw.size(1, 2)
    x, cs, h = (_single(draw.unit(*shape)) for shape in ((steps, batch, inputs), (batch, units), (batch, units)))
    return (np.int64(max(steps - draw.size(0, 1), 0)), x, cs, h), inputs, units


def _block_examples(draw: Any) -> list[Example]:
    (limit, x, cs, h), inputs, units = _block_inputs(draw)
    return [call(limit, x, cs, h, *_cell_weights(draw, inputs, units), use_peephole=draw.pick([True, False]))]


def _block_backward_examples(draw: Any) -> list[Example]:
    (limit, x, cs, h), inputs, units = _block_inputs(draw)
    saved = [_single(draw.fraction(*x.shape[:2], units)) for _ in range(9)]
    weights = _cell_weights(draw, inputs, units)
    return [call(limit, x, cs, h, *weights, *saved, use_peephole=draw.pick([True, False]))]


for _version, _defaults in (
    ("", "forget_bias: float = 1.0, cell_clip: float = 3.0"),
    ("V2", "cell_clip: float = 0.0"),
):
    define(
        f"BlockLSTM{_version}({_BLOCK_INPUTS}; {_defaults}, use_peephole: bool = false, T: float16|float32)"
        f" -> {_CELL_OUTPUTS}",
        shape=lambda limit, x, cs, *others: [recurrent_shape(x, cs)] * 7,
        gradient=_block_gradient,
        kernel=_block_kernel,
        host=("seq_len_max",),
        examples=_block_examples,
    )
    define(
        f"BlockLSTMGrad{_version}({_BLOCK_INPUTS}, i: T, cs: T, f: T, o: T, ci: T, co: T, h: T, cs_grad: T, h_grad: T;"
        " use_peephole: bool, T: float16|float32) -> (x_grad: T, cs_prev_grad: T, h_prev_grad: T, w_grad: T,"
        " wci_grad: T, wcf_grad: T, wco_grad: T, b_grad: T)",
        shape=lambda limit, *inputs: [value.shape for value in inputs[:8]],
        gradient=_block_backward_gradient,
        kernel=_block_backward_kernel,
        host=("seq_len_max",),
        examples=_block_backward_examples,
    )

# One GRU cell: r resets, u keeps, c is the new candidate


def _gru(m: Mathematics, x: Any, h: Any, w_ru: Any, w_c: Any, b_ru: Any, b_c: Any) -> tuple[Any, Any, Any, Any]:
    r, u = m.columns(m.sigmoid(m.dot(m.join([x, h], 1), w_ru) + b_ru), 2)
    c = m.tanh(m.dot(m.join([x, h * r], 1), w_c) + b_c)
    return r, u, c, (1.0 - u) * c + u * h


def _gru_backward(
    m: Mathematics, x: Any, h: Any, w_ru: Any, w_c: Any, b_ru: Any, b_c: Any, r: Any, u: Any, c: Any, dh: Any
) -> tuple[Any, Any, Any, Any]:
    """Cotangents of x and h, and of what the nonlinearities of c, and of r and u, are applied to."""
    dc = dh * (1.0 - u) * (1.0 - c * c)
    du = dh * (h - c) * u * (1.0 - u)
    dx_by_c, dhr = m.halves(m.dot(dc, w_c, transpose_b=True), x, h)
    dr = dhr * h * r * (1.0 - r)
    dru = m.join([dr, du], 1)
    dx_by_ru, dh_by_ru = m.halves(m.dot(dru, w_ru, transpose_b=True), x, h)
    return dx_by_c + dx_by_ru, dh_by_ru + dhr * r + dh * u, dc, dru


def _gru_weights(draw: Any, inputs: int, units: int) -> list[Any]:
    rows = inputs + units
    return [_single(draw.unit(*shape)) for shape in ((rows, 2 * units), (rows, units), (2 * units,), (units,))]


def _gru_examples(draw: Any, saved: int) -> list[Example]:
    batch, inputs, units = draw.size(), draw.size(), draw.size(1)
    state = [_single(draw.unit(batch, size)) for size in (inputs, units)]
    more = [_single(draw.fraction(batch, units)) for _ in range(saved)]
    return [call(*state, *_gru_weights(draw, inputs, units), *more)]


_GRU_INPUTS = "x: T, h_prev: T, w_ru: T, w_c: T, b_ru: T, b_c: T"

define(
    f"GRUBlockCell({_GRU_INPUTS}; T: float32) -> (r: T, u: T, c: T, h: T)",
    shape=lambda x, h, *weights: [h.shape] * 4,
    gradient=lambda *values, sweep: through(lambda *inputs: _gru(Nodes(), *inputs), values[:4], values[8:], sweep),
    kernel=lambda xp, *inputs: _gru(Arrays(xp), *inputs),
    examples=lambda draw: _gru_examples(draw, 0),
)
define(
    f"GRUBlockCellGrad({_GRU_INPUTS}, r: T, u: T, c: T, d_h: T; T: float32)"
    " -> (d_x: T, d_h_prev: T, d_c_bar: T, d_r_bar_u_bar: T)",
    shape=lambda x, h, *others: [
        x.shape,
        h.shape,
        h.shape,
        None if h.shape is None else (h.shape[0], None if h.shape[1] is None else 2 * h.shape[1]),
    ],
    gradient=lambda *values, sweep: through(
        lambda *inputs: _gru_backward(Nodes(), *inputs), values[:4], values[8:], sweep
    ),
    kernel=lambda xp, *inputs: _gru_backward(Arrays(xp), *inputs),
    examples=lambda draw: _gru_examples(draw, 4),
)
