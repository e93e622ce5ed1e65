"""Real servers for tests, and small graphs to send them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gradserve.ops
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server import embedded
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire

__all__ = ["chain", "compute", "inline", "product", "remote", "sizes", "slow"]

assert gradserve.ops.__name__


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    """A server with two workers."""
    with embedded.start(workers=2, engine="numpy") as server, Remote(server.address) as connected:
        connected.connect()
        yield connected


def product() -> bytes:
    """z = exp(x)·x² by elements for x of any length, and i, the integer of x."""
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype=dtypes.as_dtype("float32"), shape=(None,), name="x")
        raw.Mul(raw.Exp(x, name="e"), raw.Square(x, name="s"), name="z")
        raw.Placeholder(dtype=dtypes.as_dtype("float32"), shape=(None,), name="apart")
        raw.Cast(x, DstT=dtypes.as_dtype("int32"), name="i")
    return codec.graph_to_message(graph).SerializeToString(deterministic=True)


def chain(length: int) -> bytes:
    """y = x + x + … by elements."""
    graph = Graph()
    with graph.as_default():
        x = y = raw.Placeholder(dtype=dtypes.as_dtype("float32"), shape=(None,), name="x")
        for _ in range(length):
            y = raw.AddV2(y, x)
    return codec.graph_to_message(graph).SerializeToString(deterministic=True)


def slow(products: int) -> bytes:
    """A chain of matrix products, y."""
    graph = Graph()
    with graph.as_default():
        x = y = raw.Placeholder(dtype=dtypes.as_dtype("float32"), shape=(1000, 1000), name="x")
        for k in range(products):
            y = raw.MatMul(y, x, name="y" if k == products - 1 else None)
    return codec.graph_to_message(graph).SerializeToString(deterministic=True)


def inline(data: bytes) -> wire.GraphSource:
    """A graph within the request."""
    return wire.GraphSource(inline=wire.GraphValue(serialized=data))


def compute(remote: Remote, source: wire.GraphSource, x: np.ndarray, **options: object) -> wire.ComputeGradientsRequest:
    """A request for dz/dx."""
    gradients = wire.GradientOptions(**({"ys": ["z"], "xs": ["x"]} | options))  # pyright: ignore[reportArgumentType]
    feeds = [wire.NamedTensor(name="x", value=remote.value(x, "x"))]
    return wire.ComputeGradientsRequest(source=source, gradients=gradients, feeds=feeds)


def sizes(pid: int) -> int:
    """Resident anonymous memory of a process, bytes."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024
