"""Finds the op that turned a gradient NaN or infinite: each floating tensor of a step is summarised where it stands.

A summary is four numbers, computed by ops of the graph beside the tensor, so nothing but them crosses workers or
stays in memory. The culprit is the first node, in the order in which nodes run, that gives a NaN or an infinity and
was given none; of a request in shards, that of the first shard that has one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.op import raw
from gradserve.server.values import Array
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.workers.segment import needed


@dataclass(frozen=True, slots=True)
class Watched:
    """A node with floating outputs: which summaries tell of its inputs and of its outputs."""

    node: str
    op: str
    serves: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """The watched nodes in the order in which they run, and the tensor that holds the summaries, one row a tensor."""

    nodes: tuple[Watched, ...]
    tensors: tuple[str, ...]
    summary: str


def watch(graph: Graph, roots: Sequence[str], fed: Sequence[str]) -> Watch:
    """Adds to the graph a summary of every floating tensor that the roots need."""
    given = [graph.tensor(name) for name in fed]
    order = needed([graph.tensor(name) for name in roots], (), frozenset(given))
    known = {node.name for node in graph.nodes}
    summaries: dict[str, Tensor] = {}
    nodes: list[Watched] = []

    def add(node: Node, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        with graph.device(node.device):
            for tensor in _floating(outputs):
                summaries[tensor.name] = _summary(tensor)
        names = [tuple(tensor.name for tensor in side if tensor.name in summaries) for side in (inputs, outputs)]
        nodes.append(Watched(node.name, node.type, _serves(node, known), *names))

    with graph.as_default(), graph.name_scope("gradserve/summary"):
        for tensor in given:
            add(tensor.node, (), (tensor,))
        for node in order:
            add(node, node.inputs, [tensor for tensor in node.outputs if tensor.name not in summaries])
        # With one more row there is something to pack where nothing is watched.
        rows = [*summaries.values(), raw.ZerosLike(np.zeros(4))]
        summary = raw.Pack(rows, name="all")
    return Watch(tuple(nodes), tuple(summaries), summary.name)


def find_in_shards(watches: tuple[Watch, Watch], in_shards: Array, once: Array) -> wire.NonFinite | None:
    """As `find`, in the lowest shard first and at last in what ran once; `in_shards` has the rows of each shard."""
    for shard, rows in enumerate(in_shards):
        found = find(watches[0], rows)
        if found is not None:
            found.shard = shard
            return found
    return find(watches[1], once)


def find(watch: Watch, rows: Array) -> wire.NonFinite | None:
    """The first node that made a NaN or an infinity, or None where there is none, from the rows of the summary."""
    summaries = dict(zip(watch.tensors, rows, strict=False))
    for watched in watch.nodes:
        if any(_is_bad(summaries[name]) for name in watched.outputs) and not any(
            _is_bad(summaries[name]) for name in watched.inputs
        ):
            return wire.NonFinite(
                node=watched.node,
                op=watched.op,
                forward_node=watched.serves,
                inputs=[_range(name, summaries[name]) for name in dict.fromkeys(watched.inputs)],
                outputs=[_range(name, summaries[name]) for name in watched.outputs],
            )
    return None


def _floating(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.dtype.kind in "fc" and not tensor.dtype.is_reference]


def _summary(x: Tensor) -> Tensor:
    """[NaNs, infinities, least and greatest finite element] (float64); of complex numbers the absolute value's."""
    real = raw.ComplexAbs(x, Tout=x.dtype.real) if x.dtype.is_complex else x
    flat = raw.Cast(raw.Reshape(real, np.array([-1], np.int32)), DstT="float64")
    finite, every = raw.IsFinite(flat), np.array([0], np.int32)
    nans, infinities = (raw.Sum(raw.Cast(test, DstT="float64"), every) for test in (raw.IsNan(flat), raw.IsInf(flat)))
    # With one more entry the extremes of nothing are infinities too.
    bound = np.array([np.inf])
    least = raw.Min(raw.ConcatV2([raw.SelectV2(finite, flat, np.inf), bound], np.int32(0)), every)
    greatest = raw.Max(raw.ConcatV2([raw.SelectV2(finite, flat, -np.inf), -bound], np.int32(0)), every)
    return raw.Pack([nans, infinities, least, greatest])


def _is_bad(summary: Array) -> bool:
    return bool(summary[0] or summary[1])


def _range(name: str, summary: Array) -> wire.TensorRange:
    nans, infinities, least, greatest = (float(value) for value in summary)
    return wire.TensorRange(
        tensor=name, nan_count=int(nans), infinity_count=int(infinities), least=least, greatest=greatest
    )


def _serves(node: Node, known: Set[str]) -> str:
    """The forward node that a gradient node serves, by its scope: `gradients/a/b_grad/mul` serves `a/b`."""
    scope, found, _ = node.name.rpartition("_grad/")
    while found and scope:
        _, _, scope = scope.partition("/")
        if scope in known:
            return scope
    return ""
