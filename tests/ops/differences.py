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
    """An example as a graph: `outputs` over `sources` (placeholders), whose `values` are the example's.

    What is an integer, or must be known on the host, is a constant where `known_integers`, else a source as well.

    Attributes:
        held: sources that have no gradient by convention.
    """

    def __init__(self, op: Op, example: Example, *, known_shapes: bool = True, known_integers: bool = True) -> None:
        self.graph = Graph()
        self.sources: list[Tensor] = []
        self.values: list[Array] = []
        self.held: list[Tensor] = []
        self._known_shapes, self._known_integers = known_shapes, known_integers
        with self.graph.as_default():
            if example.build is not None:
                self.outputs = tuple(example.build(*(self._enter(value, False) for value in example.inputs)))
                return
            inputs: list[Any] = []
            for argument, value in zip(op.signature.inputs, example.inputs, strict=True):
                count = len(self.sources)
                inputs.append(self._enter(value, argument.name in op.host, example.attrs.get(argument.type_attr)))
                if argument.name in example.held:
                    self.held += self.sources[count:]
            self.outputs = op.outputs(*inputs, **example.attrs)

    def _enter(self, value: Any, is_host: bool, kind: Any = None) -> Any:
        """`kind` is the dtype that the attrs name: only by it are integers quantised ones."""
        if isinstance(value, list):
            return [self._enter(entry, is_host, kind) for entry in value]
        array = np.asarray(value)
        quantised = as_dtype(kind) if isinstance(kind, str) and kind[0] == "q" else None
        if self._known_integers and (is_host or array.dtype.kind in "iubO"):
            return self.graph.constant(array, quantised)
        dtype = quantised or as_dtype("string" if array.dtype == object else array.dtype)
        self.sources.append(raw.Placeholder(dtype=dtype, shape=array.shape if self._known_shapes else None))
        self.values.append(array)
        return self.sources[-1]

    def check(self, *, order: int, step: float = 1e-5) -> int:
        """See the function `check`."""
        return check(self.outputs, self.sources, self.values, order=order, step=step, held=self.held)


def run(fetches: Sequence[Tensor], feeds: Sequence[Tensor], values: Sequence[Any]) -> list[Array]:
    """The fetched values, by the reference engine."""
    if not fetches:
        return []
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
    held: Sequence[Tensor] = (),
) -> int:
    """Asserts that gradients of the trainable outputs are right, then those of the gradients, up to `order`.

    All trainable xs are moved but those that are `held`: where one has no gradient, the outputs must not depend on it.
    `step` is that of the differences, which must suit the dtypes and the function.

    Returns how many orders of derivatives were found to be other than zero.
    """
    generator = np.random.default_rng(seed)
    ys = [y for y in outputs if y.dtype.kind in "fc"]
    if not ys or not any(map(_is_moved, values)):
        return 0
    shapes = [value.shape for value in run(ys, xs, values)]
    with ys[0].graph.as_default():
        seeds = [raw.Placeholder(dtype=y.dtype, shape=y.shape) for y in ys]
    seed_values = [_numbers(generator, shape, y.dtype.numpy) for y, shape in zip(ys, shapes, strict=True)]
    found = gradients(ys, list(xs), grad_ys=seeds)
    dxs = {x: _dense(dx) for x, dx in zip(xs, found, strict=True) if dx is not None}
    feeds, feed_values = [*xs, *seeds], [*values, *seed_values]
    computed = dict(zip(dxs, run(list(dxs.values()), feeds, feed_values), strict=True))
    along = [
        _numbers(generator, value.shape, value.dtype) if _is_moved(value) and x not in held else np.zeros_like(value)
        for x, value in zip(xs, values, strict=True)
    ]
    got = 0.0
    for x, value, direction in zip(xs, values, along, strict=True):
        if x in computed:
            assert computed[x].shape == value.shape, f"a gradient of shape {computed[x].shape} for {value.shape}"
            got += float(np.real(np.vdot(computed[x], direction)))
    expected = _difference(ys, xs, values, along, seed_values, step)
    scale = max(abs(expected), abs(got), *(float(np.max(np.abs(dx), initial=0)) for dx in computed.values()), 1e-3)
    assert abs(got - expected) <= rtol * scale * (50 if order > 1 else 500), (
        f"directional derivative is {got}, central differences say {expected}; "
        f"inputs without gradient: {[x for x in xs if x not in computed]}"
    )
    if order == 1 or not dxs:
        return int(got != 0)
    higher = check(
        list(dxs.values()), feeds, feed_values, order=order - 1, seed=seed + 1, rtol=rtol, step=step, held=held
    )
    return 1 + higher if got else 0


def _is_moved(value: Array) -> bool:
    """Whether an array holds floating or complex numbers; NumPy knows bfloat16 as a V."""
    return value.dtype.kind in "fcV"


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
        shifted = [
            value + value.dtype.type(side) * direction if _is_moved(value) else value
            for value, direction in zip(values, along, strict=True)
        ]
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
