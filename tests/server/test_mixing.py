"""Which ops keep examples apart: what the tables say against what the kernels do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradserve.errors import GradserveError
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph
from gradserve.graph.op import Example, raw
from gradserve.server import row_ops
from gradserve.server.batch_axes import views
from gradserve.server.growth import growths
from gradserve.server.halves import dependents
from gradserve.server.mixing import ROWS, TOTAL, standings
from gradserve.workers.segment import needed
from tests.ops.differences import run
from tests.ops.draw import Draw

NAMED = (
    row_ops.ELEMENTWISE
    | row_ops._FIRST
    | row_ops._TOGETHER
    | row_ops._FORMS
    | row_ops._REDUCING
    | set(row_ops._CORES)
    | set(row_ops._RULES)
)
CHECKED = sorted(
    name
    for name, op in catalogue.catalogue().items()
    if name in NAMED and op.examples and op.kernel and not op.kernel.wants_state
)


def batches(op: Any, example: Example) -> Iterator[list[int]]:
    """Which of the flat inputs could have a row an example, in every way that fits."""
    flat, slots = flattened(example)
    free = [k for k, x in enumerate(flat) if slots[k] not in op.host_slots and x.ndim and x.dtype != object]
    for count in range(1, len(free) + 1):
        for chosen in itertools.combinations(free, count):
            if len(sizes := {len(flat[k]) for k in chosen}) == 1 and min(sizes) > 1:
                yield list(chosen)


def flattened(example: Example) -> tuple[list[Any], list[int]]:
    """The arrays of an example, and the argument that each belongs to."""
    pairs = [(np.asarray(v), k) for k, x in enumerate(example.inputs) for v in (x if isinstance(x, list) else [x])]
    return [array for array, _ in pairs], [slot for _, slot in pairs]


def claims(op: Any, example: Example, chosen: list[int]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Of each output its standing, its dimension of the batch, and its values for the whole and for two parts."""
    flat, _ = flattened(example)
    size = len(flat[chosen[0]])
    with Graph().as_default():
        holders: list[Any] = list(flat)
        for k in chosen:
            holders[k] = raw.Placeholder(dtype=flat[k].dtype.name, shape=(None, *flat[k].shape[1:]))
        left = iter(holders)
        inputs = [[next(left) for _ in x] if isinstance(x, list) else next(left) for x in example.inputs]
        outputs = op.outputs(*inputs, **example.attrs)
    split = [holders[k] for k in chosen]
    nodes = needed(outputs, (), frozenset(split))
    seen = views(nodes, split, (size - 1, size))
    known = growths(nodes, dependents(split, split), dict.fromkeys(split, 0), seen)
    found = standings(nodes, dict.fromkeys(split, ROWS), seen, known)
    told = [y for y in outputs if found.get(y) in (ROWS, TOTAL) and y.dtype.kind in "fciub"]
    ranges = ((0, size), (0, size - 1), (size - 1, size))
    values = [run(told, split, [flat[k][start:end] for k in chosen]) for start, end in ranges] if told else []
    for y, *each in zip(told, *values, strict=True):
        yield found[y], (seen.axes(y), known.of[y]), each


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_said_of_an_op_is_what_its_kernel_does(name: str) -> None:
    op = catalogue.lookup(name)
    assert op.examples is not None
    for example in op.examples(Draw(lambda low, high: min(high, max(low, 3)))):
        if example.build is not None:
            continue
        for chosen in batches(op, example):
            try:
                found = list(claims(op, example, chosen))
            except GradserveError:
                continue  # it can't be cut there: an axis of another meaning
            for standing, (axes, growth), (whole, first, last) in found:
                if standing is ROWS:
                    together = np.concatenate([first, last], axes[0].place)
                elif growth == 0:
                    size = len(flattened(example)[0][chosen[0]])
                    together = (first * (size - 1) + last) / size
                else:
                    together = first + last
                if together.shape != whole.shape:
                    continue  # another input has the size of the batch written into it
                np.testing.assert_allclose(together, whole, rtol=1e-6, atol=1e-12, err_msg=str(chosen))
