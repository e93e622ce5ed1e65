"""The Hessian of the CTC loss times a vector, in differentiable ops: second and higher orders of CTCLoss.

The gradient of the loss is softmax(x) - γ, where γ[t, u] is the probability that the path which the labels allow is
in state u at time t; the states are the extended labels: a blank, label 0, a blank, label 1, …, a blank. By the
forward and backward variables α and β of Graves, Fernández, Gomez and Schmidhuber (2006), log γ = log α + log β - e -
log Z with e the log probability of what the state emits. Here each of them goes together with its derivative along
the vector. The loss is a function of the logits, so its Hessian is symmetric and the product is the cotangent.

All states at one time are one vector, a row of a scan over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import shape_of, size_of
from gradserve.ops.scan import scan

_NEVER = -1e30
"""The logarithm of the probability 0; finite, so that differences of two of them are not NaN."""

_FIRST, _LAST = np.array([0], np.int32), np.array([-1], np.int32)
_SWAP = np.array([1, 0, 2], np.int32)


class _Dual(NamedTuple):
    """A value and its derivative along the vector, both [batch, states] or, for all times, [steps, batch, states]."""

    value: Tensor
    moved: Tensor

    def plus(self, constant: Tensor) -> _Dual:
        return _Dual(self.value + constant, self.moved)


class _Moves(NamedTuple):
    """Where a path may go, as 0 or _NEVER, [batch, states] each (or what broadcasts to it).

    Attributes:
        stays: it may remain in the state.
        skips: it may enter the state from two before it.
        starts, ends: it may begin or end there.
    """

    stays: Tensor
    skips: Tensor
    starts: Tensor
    ends: Tensor


def hessian_times(
    vector: Tensor, inputs: Tensor, indices: Tensor, values: Tensor, lengths: Tensor, *,
    blank: int | None, collapse: bool, merge: bool,
) -> Tensor:  # fmt: skip
    """The Hessian of the summed losses with respect to `inputs` times `vector`, both [steps, batch, classes].

    `indices`, `values` and `lengths` are CTCLoss's own; `blank` is None where it is the last class.
    """
    emits, moves = _states(indices, values, inputs, blank, collapse, merge)
    softmax = raw.Softmax(inputs)
    centred = vector - raw.Sum(softmax * vector, _LAST, keep_dims=True)
    emitted = _Dual(*(_per_sequence(x, emits, adj_y=True) for x in (raw.LogSoftmax(inputs), centred)))
    time = raw.Range(0, size_of(inputs, 0), 1)
    within = raw.Less(time[:, None], lengths)[:, :, None]
    goes_on = raw.Less(time[:, None] + 1, lengths)[:, :, None]
    ahead, last = _ahead(emitted, moves, raw.Equal(time, 0), within)
    behind = _behind(emitted, moves, goes_on)
    whole = _log_sum([last.plus(moves.ends)], over_states=True)
    counted = raw.LogicalAnd(raw.Greater(whole.value, _NEVER / 2), within)
    moved = _occupancy_moved(counted, ahead, behind, emitted, whole)
    share = _per_sequence(moved, emits)
    return softmax * centred * raw.Cast(counted, DstT=inputs.dtype) - share


def _per_sequence(x: Tensor, matrices: Tensor, *, adj_y: bool = False) -> Tensor:
    """The products of x [steps, batch, m] and a matrix for each sequence [batch, m, n], or [batch, n, m] with adj_y."""
    return raw.Transpose(raw.BatchMatMulV2(raw.Transpose(x, _SWAP), matrices, adj_y=adj_y), _SWAP)


def _states(
    indices: Tensor, values: Tensor, inputs: Tensor, blank: int | None, collapse: bool, merge: bool
) -> tuple[Tensor, _Moves]:
    """The class that each state emits, one-hot [batch, states, classes], and the moves between them."""
    _, batch, classes = raw.Unpack.outputs(raw.Shape(inputs), num=3)
    void = classes - 1 if blank is None else inputs.graph.constant(np.int32(blank))
    labels, counts = _dense_labels(indices, values, batch, collapse)
    pairs = raw.Pack([raw.BroadcastTo(void, raw.Shape(labels)), labels], axis=2)
    spaced = raw.Reshape(pairs, raw.Pack([batch, 2 * _width(labels)]))
    extended = raw.PadV2(spaced, np.array([[0, 0], [0, 1]], np.int32), void)
    is_blank, state = raw.Equal(extended, void), raw.Range(0, _width(extended), 1)
    no_move = raw.LogicalOr(is_blank, raw.Equal(extended, _shifted(extended, 2, -1))) if merge else is_blank
    last = 2 * raw.ExpandDims(counts, np.int32(1))
    ends = raw.LogicalOr(raw.Equal(state, last), raw.Equal(state, last - 1))
    never, always = (raw.Fill(raw.Shape(extended), raw.Cast(c, DstT=inputs.dtype)) for c in (_NEVER, 0.0))
    moves = _Moves(
        stays=always if merge else raw.SelectV2(is_blank, always, never),
        skips=raw.SelectV2(no_move, never, always),
        starts=raw.SelectV2(raw.Less(state, 2), always, never),
        ends=raw.SelectV2(ends, always, never),
    )
    one, zero = (raw.Cast(c, DstT=inputs.dtype) for c in (1.0, 0.0))
    return raw.OneHot(extended, classes, one, zero), moves


def _dense_labels(indices: Tensor, values: Tensor, batch: Tensor, collapse: bool) -> tuple[Tensor, Tensor]:
    """The labels as [batch, most that a sequence has], the rest 0, and how many each sequence has."""
    row = raw.Cast(raw.Unpack.outputs(indices, num=2, axis=1)[0], DstT="int32")
    kept = raw.OnesLike(values)
    if collapse:
        kept = raw.Cast(raw.LogicalOr(_differs_from_previous(row), _differs_from_previous(values)), DstT="int32")
    counts = raw.UnsortedSegmentSum(kept, row, batch)
    start = raw.Cumsum(counts, np.int32(0), exclusive=True)
    place = raw.Cumsum(kept, np.int32(0)) - 1 - raw.GatherV2(start, row, np.int32(0))
    most = raw.Maximum(raw.Max(counts, _FIRST), 0)
    return raw.ScatterNd(raw.Pack([row, place], axis=1), values * kept, raw.Pack([batch, most])), counts


def _differs_from_previous(x: Tensor) -> Tensor:
    """Whether each entry of a vector of numbers from 0 up differs from the one before it; the first one does."""
    before = raw.Slice(raw.ConcatV2([np.array([-1], np.int32), x], np.int32(0)), _FIRST, raw.Shape(x))
    return raw.NotEqual(x, before)


def _ahead(emitted: _Dual, moves: _Moves, is_first: Tensor, within: Tensor) -> tuple[_Dual, _Dual]:
    """log α at all times, and at the last one: of all beginnings of a path that reach a state then.

    It is kept as it is after the last step of a sequence.
    """

    def step(state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[_Dual, _Dual]:
        last, emitted, (first, goes_on), (stays, skips, starts) = _Dual(*state), _Dual(*rows[:2]), rows[2:], fixed
        reached = _log_sum([last.plus(stays), _moved_on(last, 1), _moved_on(last, 2).plus(skips)])
        begun = _Dual(starts, raw.ZerosLike(reached.moved))
        found = _choose(goes_on, _emit(emitted, _choose(first, begun, reached)), last)
        return found, found

    nothing = raw.ZerosLike(moves.starts)
    # A sequence without steps has no path.
    before = raw.Fill(raw.Shape(nothing), raw.Cast(_NEVER, DstT=nothing.dtype))
    rows = [*emitted, is_first, within]
    last, found = scan(step, [before, nothing], rows, [moves.stays, moves.skips, moves.starts], [shape_of(nothing)] * 2)
    return _Dual(*found), _Dual(*last)


def _behind(emitted: _Dual, moves: _Moves, goes_on: Tensor) -> _Dual:
    """log β at all times: of all ends of a path that leave from a state then, what it emits there included."""

    def step(state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[_Dual, _Dual]:
        after, emitted, (stays, skips, ends) = _Dual(*state), _Dual(*rows[:2]), fixed
        left = _log_sum([after.plus(stays), _moved_on(after, -1), _moved_on(after.plus(skips), -2)])
        found = _emit(emitted, _choose(rows[2], left, _Dual(ends, raw.ZerosLike(left.moved))))
        return found, found

    nothing = raw.ZerosLike(moves.ends)
    fixed, shape = [moves.stays, moves.skips, moves.ends], shape_of(nothing)
    _, found = scan(step, [moves.ends, nothing], [*emitted, goes_on], fixed, [shape] * 2, backwards=True)
    return _Dual(*found)


def _occupancy_moved(counted: Tensor, ahead: _Dual, behind: _Dual, emitted: _Dual, whole: _Dual) -> Tensor:
    """The derivative of γ, [steps, batch, states]; 0 for sequences that are over or have no path."""
    log = raw.SelectV2(counted, ahead.value + behind.value - emitted.value - whole.value, _NEVER)
    return raw.Exp(log) * (ahead.moved + behind.moved - emitted.moved - whole.moved)


def _emit(emitted: _Dual, reached: _Dual) -> _Dual:
    return _Dual(emitted.value + reached.value, emitted.moved + reached.moved)


def _choose(condition: Tensor, yes: _Dual, no: _Dual) -> _Dual:
    return _Dual(raw.SelectV2(condition, yes.value, no.value), raw.SelectV2(condition, yes.moved, no.moved))


def _log_sum(terms: Sequence[_Dual], *, over_states: bool = False) -> _Dual:
    """log Σ exp of the terms, or of the states of one term as [batch, 1]."""
    if over_states:
        (values, moved), keep = terms[0], True
    else:
        values, moved = (raw.Pack(list(each), axis=2) for each in zip(*terms, strict=True))
        keep = False
    highest = raw.StopGradient(raw.Max(values, _LAST, keep_dims=True))
    total = raw.Log(raw.Sum(raw.Exp(values - highest), _LAST, keep_dims=keep))
    base = highest if keep else raw.Squeeze(highest, squeeze_dims=[-1])
    return _Dual(base + total, raw.Sum(raw.Softmax(values) * moved, _LAST, keep_dims=keep))


def _moved_on(states: _Dual, places: int) -> _Dual:
    return _Dual(_shifted(states.value, places, _NEVER), _shifted(states.moved, places, 0.0))


def _shifted(x: Tensor, places: int, filler: float) -> Tensor:
    """Each row of [batch, states] moved on by so many places."""
    before, after = max(places, 0), max(-places, 0)
    padded = raw.PadV2(x, np.array([[0, 0], [before, after]], np.int32), filler)
    return raw.Slice(padded, np.array([0, after], np.int32), raw.Shape(x))


def _width(x: Tensor) -> Tensor:
    return raw.Unpack.outputs(raw.Shape(x), num=2)[1]
