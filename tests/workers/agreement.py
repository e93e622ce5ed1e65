"""Whether an engine gives what the reference engine gives, and TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph import codec
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.workers.engines import numpy as reference
from gradserve.workers.segment import Segment, State
from tests.conformance import compare
from tests.conformance.case import Case
from tests.ops.differences import Built
from tests.ops.draw import Draw

Compile = Callable[[Segment], Callable[[Sequence[Any], State], Sequence[Any]]]


_UNREPEATABLE = frozenset(("NonDeterministicInts",))


def all_ops() -> list[str]:
    """The names of the ops that have examples, and that give the same whenever they run."""
    ops = catalogue.catalogue().items()
    return sorted(name for name, op in ops if op.examples is not None and name not in _UNREPEATABLE)


def check_op(name: str, compile: Compile, on_host: Callable[[Sequence[Any]], Sequence[Any]], *, wide: float,
             narrow: float, known_shapes: bool = True) -> None:  # fmt: skip
    """Compares what an op's examples and their gradients give, 64-bit floats within `wide`, others within `narrow`."""
    op = catalogue.lookup(name)
    assert op.examples is not None
    for example in op.examples(Draw(lambda low, high: min(high, max(low, 2)))):
        built = Built(op, example, known_shapes=known_shapes)
        if not built.outputs:
            continue
        fetches = (*built.outputs, *_gradients(op, built))
        segment = Segment(built.graph, tuple(built.sources), fetches)
        expected = reference.compile(segment)(built.values, State())
        got = on_host(compile(segment)(built.values, State()))
        for tensor, a, b in zip(fetches, expected, got, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype, (tensor, a.dtype, b.dtype)
            if a.dtype == np.dtype(object):
                assert a.tolist() == b.tolist()
            else:
                tolerance = wide if a.dtype in (np.float64, np.complex128) else narrow
                np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=str(tensor))


def _gradients(op: catalogue.Op, built: Built) -> list[Tensor]:
    if not isinstance(op.gradient, catalogue.BoundRule):
        return []
    ys = [y for y in built.outputs if y.dtype.is_floating]
    return [part for dx in gradients(ys, built.sources) for part in _parts(dx)]


def _parts(dx: Any) -> list[Tensor]:
    if isinstance(dx, IndexedSlices):
        return [dx.values, dx.indices, dx.dense_shape]
    return [] if dx is None else [dx]


def judge(case: Case, engine: ModuleType) -> str | None:
    """What is wrong with an engine's gradients of a conformance case, None where nothing is. One segment, no server."""
    graph = codec.graph_from_message(case.graph)
    request = case.request
    stops = [graph.tensor(name) for name in request["stop_gradients"]]
    ys = [graph.tensor(name) for name in request["ys"]]
    found = gradients(
        ys, [graph.tensor(name) for name in request["xs"]], case.grad_ys([y.dtype.name for y in ys]),
        stop_gradients=stops, aggregation_method=request["aggregation_method"],
        unconnected_gradients=request["unconnected_gradients"],
    )  # fmt: skip
    feeds = {graph.tensor(name): value for name, value in case.feeds.items()}
    state = State()
    if case.meta["init"]:
        targets = tuple(graph.node(name) for name in case.meta["init"])
        engine.compile(Segment(graph, tuple(feeds), (), targets))(list(feeds.values()), state)
    flat = iter(_fetched(graph, feeds, [part for dx in found for part in _parts(dx)], state, engine))
    got: list[Any] = []
    for dx in found:
        values = [next(flat) for _ in _parts(dx)]
        got.append(IndexedSlices(*values) if isinstance(dx, IndexedSlices) else values[0] if values else None)
    return compare.gradients_differ(case, got)


def _fetched(
    graph: Graph, feeds: dict[Tensor, Any], fetches: list[Tensor], state: State, engine: ModuleType
) -> Sequence[Any]:
    compiled = engine.compile(Segment(graph, tuple(feeds), tuple(fetches)))
    return engine.on_host(compiled(list(feeds.values()), state))
