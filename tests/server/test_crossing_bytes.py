"""What a plan says will cross is what the fleet counts, for device strings and for automatic placement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.cost import Hardware
from tests.server.build import placeholder
from tests.server.fleet_fixture import running

Case = tuple[Graph, list[str], tuple[int, ...]]


def layers(width: int, batch: int | None = 16) -> Case:
    """Layers dealt out over two workers by device strings, with gradients beside them; a batch of None is left open."""
    graph = Graph()
    draw = np.random.default_rng(7)
    with graph.as_default():
        y: Tensor = placeholder(shape=(batch, width))
        weights: list[Tensor] = []
        for layer in range(5):
            with graph.device(f"/task:{layer % 2}"):
                start = graph.constant(draw.normal(size=(width, width)).astype(np.float32) / width)
                weights.append(raw.Identity(start))
                y = raw.Tanh(y @ weights[-1]) + y
    found = gradients([y], weights, colocate_gradients_with_ops=True)
    return graph, [y.name, *(entry.name for entry in found if isinstance(entry, Tensor))], (16, width)


def towers() -> Case:
    """Two heavy towers on one input that meet twice, placed by cost."""
    graph = Graph()
    with graph.as_default():
        x = placeholder(shape=(512, 512))
        left, right = x * 0.5, x * 0.25
        for _ in range(2):
            for _ in range(3):
                left, right = raw.Tanh(left @ left), raw.Tanh(right @ right)
            left, right = left + right, right - left
        y = left @ right
    return graph, [y.name], (512, 512)


@pytest.mark.parametrize(
    "case",
    [lambda: layers(8), lambda: layers(160), lambda: layers(160, None), towers],
    ids=["small", "large", "open batch", "by cost"],
)
def test_bytes_that_cross_are_those_that_the_fleet_counts(case: Callable[[], Case], fleet: str) -> None:
    graph, fetches, shape = case()
    x = {"x:0": (np.random.default_rng(1).normal(size=shape) / shape[-1]).astype(np.float32)}

    async def scenario() -> None:
        async with running(fleet=fleet) as runtime:
            runtime.hardware = Hardware.of(runtime.hardware.devices)  # as measured on an idle machine
            report = runtime.explain(graph, {"x:0": shape}, fetches)
            assert {node.worker for node in report.nodes} == {0, 1}
            assert report.crossing_bytes > 0
            for _ in range(3):
                before = runtime.crossed_bytes
                await runtime.run("g", graph, x, fetches)
                assert runtime.crossed_bytes - before == report.crossing_bytes

    asyncio.run(scenario())
