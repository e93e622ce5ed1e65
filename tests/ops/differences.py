"""Checks gradients against central differences along random directions, to any order.

For a function f of arrays x with cotangent s, the loss is L(x) = sum Re(conj(s) f(x)); its derivative along v is
(L(x + h v) - L(x - h v)) / 2h and must equal sum Re(conj(dx) v).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.autodiff import gradients
from gradserve.graph.dtypes import as_dtype
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import Example, Op, raw
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State

Array = np.ndarray[Any, Any]


class Built:
    """An example as a graph: `outputs` of the op over `sources` (placeholders), whose `values` are the example's."""

    def __init__(self, op: Op, example: Example, *, known_shapes: bool = True) -> None:
        self.graph = Graph()
        self.sources: list[Tensor] = []
        self.values: list[Array] = []
        with self.graph.as_default():
            inputs = [
                self._enter(value, argument.name in op.host, known_shapes, example.attrs.get(argument.type_attr))
                for argument, value in zip(op.signature.inputs, example.inputs, strict=True)
            ]
            self.outputs = op.outputs(*inputs, **example.attrs)

    def _enter(self, value: Any, is_host: bool, known_shapes: bool, kind: Any) -> Any:
        """`kind` is the dtype that the attrs name: only by it are integers quantised ones."""
        if isinstance(value, list):
            return [self._enter(entry, is_host, known_shapes, kind) for entry in value]
        array = np.asarray(value)
        if is_host or array.dtype.kind in "iubO":
            return self.graph.constant(array, as_dtype(kind) if isinstance(kind, str) and kind[0] == "q" else None)
        shape = array.shape if known_shapes else None
        self.sources.append(raw.Placeholder(dtype=array.dtype, shape=shape))
        self.values.append(array)
        return self.sources[-1]


def run(fetches: Sequence[Tensor], feeds: Sequence[Tensor], values: Sequence[Any]) -> list[Array]:
    """The fetched values, by the reference engine."""
    compiled = engine.compile(Segment(fetches[0].graph, tuple(feeds), tuple(fetches)))
    return [np.asarray(value) for value in compiled(values, State())]


def check(
    outputs: Sequence[Tensor],
    xs: Sequence[Tensor],
    values: Sequence[Array],
    *,
    order: int,
    seed: int = 0,
    rtol: float = 2e-5,
    step: float = 1e-5,
) -> None:
    """Asserts that gradients of the trainable outputs are right, then those of the gradients, up to `order`.

    `step` is that of the differences, which must suit the dtypes and the function.
    """
    generator = np.random.default_rng(seed)
    ys = [y for y in outputs if y.dtype.kind in "fc"]
    if not ys or not xs:
        return
    graph = ys[0].graph
    shapes = [value.shape for value in run(ys, xs, values)]
    with graph.as_default():
        seeds = [raw.Placeholder(dtype=y.dtype, shape=shape) for y, shape in zip(ys, shapes, strict=True)]
    seed_values = [_numbers(generator, shape, y.dtype.numpy) for y, shape in zip(ys, shapes, strict=True)]
    found = gradients(ys, list(xs), grad_ys=seeds)
    pairs = [(x, _dense(dx)) for x, dx in zip(xs, found, strict=True) if dx is not None]
    if not pairs:
        return
    feeds, feed_values = [*xs, *seeds], [*values, *seed_values]
    computed = run([dx for _, dx in pairs], feeds, feed_values)
    reached = {x for x, _ in pairs}
    directions = [
        _numbers(generator, value.shape, value.dtype) * (x in reached) for x, value in zip(xs, values, strict=True)
    ]
    for (x, _), dx in zip(pairs, computed, strict=True):
        value = values[list(xs).index(x)]
        assert dx.shape == value.shape, f"gradient of shape {dx.shape} for an input of shape {value.shape}"
    expected = _difference(ys, xs, values, directions, seed_values, step)
    moved = dict(zip(xs, directions, strict=True))
    got = sum(float(np.real(np.vdot(dx, moved[x]))) for (x, _), dx in zip(pairs, computed, strict=True))
    unmoved = [x for x in xs if x not in [pair[0] for pair in pairs]]
    scale = max(abs(expected), abs(got), *(float(np.max(np.abs(dx), initial=0)) for dx in computed), 1e-3)
    assert abs(got - expected) <= rtol * scale * 50 if order > 1 else abs(got - expected) <= rtol * scale * 500, (
        f"directional derivative is {got}, central differences say {expected}; inputs without gradient: {unmoved}"
    )
    if order > 1:
        check([dx for _, dx in pairs], feeds, feed_values, order=order - 1, seed=seed + 1, rtol=rtol, step=step)


def _difference(
    ys: Sequence[Tensor],
    xs: Sequence[Tensor],
    values: Sequence[Array],
    along: Sequence[Array],
    seeds: Sequence[Array],
    step: float,
) -> float:
    sides: list[float] = []
    for side in (step, -step):
        shifted = [value + value.dtype.type(side) * direction for value, direction in zip(values, along, strict=True)]
        results = run(ys, xs, shifted)
        sides.append(sum(float(np.real(np.vdot(s, y))) for s, y in zip(seeds, results, strict=True)))
    return (sides[0] - sides[1]) / (2 * step)


def _numbers(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    values = generator.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * generator.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def _dense(term: Any) -> Tensor:
    if not isinstance(term, IndexedSlices):
        return term
    with term.values.graph.as_default():
        rows = raw.StridedSlice(term.dense_shape, [0], [1], [1], shrink_axis_mask=1)
        return raw.UnsortedSegmentSum(term.values, term.indices, rows)
