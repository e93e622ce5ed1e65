"""A step repeated along the first axis of some arrays, whether its length is known or not.

Few rounds that are known stand side by side in the graph. All others are a loop, which takes the rows that it reads
off a list and puts what it makes onto one, so that no round costs more than another, in the backward loops as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradserve.graph.functions import spec_of, trace
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import IntVector, concat, part, shape_of, size_of
from gradserve.ops.bodies import shape_vector

Step = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]
"""(state, row of each array, what is fixed) -> (next state, what the round makes)."""

MOST_SIDE_BY_SIDE = 16
"""Rounds. Measured for an LSTM of 32 units: a loop costs 0.3 to 0.8 ms a round more than nodes side by side, and these
cost XLA's compiler 0.6 s a round in a first derivative and 3 s in a second one."""

_FIRST = np.array([0], np.int32)


def scan(
    step: Step, state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor], made: Sequence[IntVector],
    *, backwards: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """The state after the last round, and what the rounds have made, stacked in the order of the rows.

    Args:
        step: reads nothing but its arguments.
        state: before the first round; its dtypes and shapes stay.
        rows: one at least, each with as many rows as the first.
        fixed: what all rounds read.
        made: the shapes of what a round makes. Its dtype is that of the first of the rows.
        backwards: the last row comes first.
    """
    count = size_of(rows[0], 0)
    if isinstance(count, int) and count <= MOST_SIDE_BY_SIDE:
        return _side_by_side(step, state, rows, fixed, made, count, backwards)
    return _loop(step, state, rows, fixed, made, count, backwards)


def _side_by_side(
    step: Step, state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor], made: Sequence[IntVector],
    count: int, backwards: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    taken = [raw.Unpack.outputs(x, num=count) for x in rows]
    items: list[Sequence[Tensor]] = []
    for place in range(count)[:: -1 if backwards else 1]:
        state, item = step(state, [x[place] for x in taken], fixed)
        items.append(item)
    if not items:
        zero = rows[0].graph.constant(np.zeros((), rows[0].dtype.numpy))
        return list(state), [raw.Fill(concat(np.zeros(1, np.int32), shape), zero) for shape in made]
    return list(state), [raw.Pack(list(each)) for each in zip(*items[:: -1 if backwards else 1], strict=True)]


def _loop(
    step: Step, state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor], made: Sequence[IntVector],
    count: Any, backwards: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    graph, kind = rows[0].graph, rows[0].dtype.base
    # Of a list the last element is taken.
    ordered = [x if backwards else raw.ReverseV2(x, _FIRST) for x in rows]
    read = [raw.TensorListFromTensor(x, part(shape_of(x), 1), element_dtype=x.dtype.base) for x in ordered]
    written = [raw.EmptyTensorList(shape, np.int32(-1), element_dtype=kind) for shape in made]
    ends = np.cumsum([2, len(read), len(written), len(state)])
    most = graph.constant(np.int32(count)) if isinstance(count, int) else count
    start = [graph.constant(np.int32(0)), most, *read, *written, *state, *fixed]

    def turn(*arguments: Tensor) -> list[Tensor]:
        (done, most), lists, results, before, constant = _cut(arguments, ends)
        popped = [
            raw.TensorListPopBack.outputs(held, _row_shape(x), element_dtype=x.dtype.base)
            for held, x in zip(lists, rows, strict=True)
        ]
        after, items = step(before, [row for _, row in popped], constant)
        pushed = [raw.TensorListPushBack(held, y, element_dtype=kind) for held, y in zip(results, items, strict=True)]
        return [done + 1, most, *(rest for rest, _ in popped), *pushed, *after, *constant]

    specs = [spec_of(x) for x in start]
    body = trace(graph, "scan", specs, turn)
    condition = trace(graph, "scan_cond", specs, lambda done, most, *others: [raw.Less(done, most)])
    found = raw.StatelessWhile.outputs(start, cond=condition, body=body)
    _, _, results, last, _ = _cut(found, ends)
    stacked = [raw.TensorListStack(held, shape, element_dtype=kind) for held, shape in zip(results, made, strict=True)]
    return list(last), [raw.ReverseV2(y, _FIRST) if backwards else y for y in stacked]


def _cut(values: Sequence[Tensor], ends: Any) -> list[Sequence[Tensor]]:
    return [values[a:b] for a, b in zip([0, *ends], [*ends, len(values)], strict=True)]


def _row_shape(x: Tensor) -> Any:
    return shape_vector(None if x.shape is None else x.shape[1:])
