"""Memory budgets: what is computed again, what never is, and that no bit of a result changes."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.errors import LimitExceeded
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.draft import Draft, Feed, StepOptions, draft
from gradserve.server.explain import explain
from gradserve.server.plan import make_plan
from gradserve.server.remat import is_double
from gradserve.workers.engines import numpy as engine
from gradserve.workers.engines.split import split
from gradserve.workers.segment import Segment, State
from tests.server.build import fleet, placeholder
from tests.server.fleet_fixture import running

SIZE = 8192


def chain(length: int) -> tuple[Graph, list[str]]:
    """x through `length` sines, and dy/dx."""
    graph = Graph()
    with graph.as_default():
        x = y = placeholder(shape=(SIZE,))
        for _ in range(length):
            y = raw.Sin(y)
    [dx] = gradients(y, x)
    assert isinstance(dx, Tensor)
    return graph, [dx.name]


def drafted(graph: Graph, fetches: Sequence[str], budget: int, shape: tuple[int, ...] = (SIZE,)) -> Draft:
    given = [Feed("x:0", np.dtype(np.float32), shape)]
    return draft(graph, given, fetches, [], StepOptions(memory_budget=budget), fleet(1))


def least(graph: Graph, fetches: Sequence[str], shape: tuple[int, ...] = (SIZE,)) -> int:
    """The least budget that can be met."""
    with pytest.raises(LimitExceeded, match="over the memory budget of 1:") as raised:
        drafted(graph, fetches, 1, shape)
    return int(raised.value.metadata["least"])


def measured(made: Draft) -> tuple[int, bytes]:
    """The most bytes that the reference engine has at once, and the results."""
    [segment] = make_plan(made, itertools.count()).segments
    graph = codec.graph_from_message(codec.read_graph(segment.program.graph))
    feeds, fetches = (
        tuple(graph.tensor(n) for n in names) for names in (segment.program.feeds, segment.program.fetches)
    )
    run = engine.compile(Segment(graph, feeds, fetches))
    x = np.linspace(-1, 1, SIZE, dtype=np.float32)
    tracemalloc.start()
    results = run([x], State())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, b"".join(result.tobytes() for result in results)


def test_a_long_chain_trains_in_the_root_of_its_memory() -> None:
    peaks: dict[int, int] = {}
    for length in (250, 1000):
        graph, fetches = chain(length)
        plain, expected = measured(drafted(graph, fetches, 0))
        assert plain > 0.95 * length * SIZE * 4
        made = drafted(graph, fetches, least(graph, fetches))
        peaks[length], results = measured(made)
        assert results == expected
        assert explain(made).recomputed_flops <= explain(made).flops / 3  # at most one more forward pass
    assert peaks[1000] < 80 * SIZE * 4  # 2 √1000 is 63
    assert 1.7 < peaks[1000] / peaks[250] < 2.4, peaks


def test_a_larger_budget_computes_less_again() -> None:
    graph, fetches = chain(100)
    bytes_of_all = explain(drafted(graph, fetches, 0)).peak_bytes[0]
    flops: list[int] = []
    for part in (0.3, 0.5, 0.9, 1.1):
        told = explain(drafted(graph, fetches, int(part * bytes_of_all)))
        assert told.peak_bytes[0] <= part * bytes_of_all
        flops.append(told.recomputed_flops)
    assert flops == sorted(flops, reverse=True)
    assert len(set(flops)) == 4
    assert flops[-1] == 0


def branching(draw: np.random.Generator, devices: int) -> tuple[Graph, list[str]]:
    """Residual blocks, a long way round, and gradients of everything."""
    graph = Graph()
    with graph.as_default():
        x = placeholder(shape=(64, 16))
        xs = [x]
        y = first = raw.Tanh(x)
        for block in range(24):
            with graph.device(f"/task:{block % devices}" if devices > 1 else None):
                w = raw.Identity(graph.constant(draw.normal(size=(16, 16)).astype(np.float32) / 4))
                xs.append(w)
                y = raw.Sin(raw.MatMul(y, w)) * raw.Exp(-raw.Square(y)) + y
        y = y + first
    found = gradients(raw.Sum(y, [0, 1]), xs, colocate_gradients_with_ops=True)
    return graph, [y.name, *(dx.name for dx in found if isinstance(dx, Tensor))]


@pytest.mark.parametrize(("workers", "compiled"), [(1, False), (2, False), (1, True)])
def test_no_bit_of_a_result_changes(workers: int, compiled: bool) -> None:
    recompute(workers, compiled, "local")


@pytest.mark.xdist_group("ray")
def test_no_bit_of_a_result_changes_on_a_cluster(ray_cluster: Any) -> None:
    recompute(2, False, "ray")


def recompute(workers: int, compiled: bool, fleet: str) -> None:
    """Compares results under two budgets with those of no budget."""
    graph, fetches = branching(np.random.default_rng(2), workers)
    x = {"x:0": np.random.default_rng(3).normal(size=(64, 16)).astype(np.float32)}
    smallest = least(graph, fetches, (64, 16))

    async def scenario() -> None:
        async with running(workers, fleet=fleet, engine="xla" if compiled else "numpy", compile_now=True) as runtime:
            expected = [array.copy() for array in await runtime.run("g", graph, x, fetches)]
            assert len(expected) == 26
            for budget in (smallest, smallest * 5 // 4):
                options = StepOptions(memory_budget=budget)
                results = await runtime.run("g", graph, x, fetches, options=options)
                for mine, theirs in zip(results, expected, strict=True):
                    if compiled:  # another program, other fusions
                        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
                    else:
                        assert mine.tobytes() == theirs.tobytes()

    asyncio.run(scenario())


def test_compiled_pieces_hand_on_little() -> None:
    """What the xla engine holds between its programs, each of which recomputes one segment."""
    graph = Graph()
    with graph.as_default():
        x = y = placeholder(shape=(SIZE,))
        for _ in range(100):
            y = raw.Sin(y)
    [dx] = gradients(y, x)
    assert isinstance(dx, Tensor)
    made = drafted(graph, [dx.name], least(graph, [dx.name]))
    [segment] = make_plan(made, itertools.count()).segments
    parsed = codec.graph_from_message(codec.read_graph(segment.program.graph))
    feeds, fetches = (tuple(map(parsed.tensor, names)) for names in (segment.program.feeds, segment.program.fetches))
    pieces = split(Segment(parsed, feeds, fetches))
    first, *others = [len(piece.outputs) for piece in pieces]
    assert len(others) > 5
    assert first < 25  # of 100 saved tensors
    assert max(others) == 1  # the cotangent


def test_a_double_stands_where_its_node_does() -> None:
    graph, fetches = branching(np.random.default_rng(2), 2)
    given = [Feed("x:0", np.dtype(np.float32), (64, 16))]
    options = StepOptions(memory_budget=least(graph, fetches, (64, 16)))
    made = draft(graph, given, fetches, [], options, fleet(2))
    workers = {node.name: worker for node, worker in made.placement.workers.items()}
    doubles = [node for node in made.work.nodes if is_double(node)]
    assert len(doubles) > 20
    for node in doubles:
        assert workers[node.name] == workers[node.name.removesuffix("/again")]


def test_random_numbers_and_variables_are_never_taken_twice() -> None:
    graph = Graph()
    with graph.as_default():
        x = y = placeholder(shape=(SIZE,))
        handle = raw.VarHandleOp(dtype=dtypes.float32, shape=(), shared_name="w")
        for k in range(60):
            kept = raw.Floor(raw.RandomUniform(np.array([SIZE], np.int32), dtype="float32", seed=k + 1) + 0.9)
            y = raw.Sin(y * kept) * raw.ReadVariableOp(handle, dtype="float32")
    [dx] = gradients(y, x)
    assert isinstance(dx, Tensor)
    made = drafted(graph, [dx.name], least(graph, [dx.name]))
    doubles = {node.type for node in made.work.nodes if is_double(node)}
    assert "Sin" in doubles
    assert not doubles & {"RandomUniform", "ReadVariableOp", "VarHandleOp"}
