"""Sums the partial gradients of one tensor with the method that the request names.

Terms are first summed device by device, each sum beside its terms, so that one partial sum leaves a device; then
over the devices:

    ADD_N                       one AddN of all partial sums, at one place
    EXPERIMENTAL_TREE           pairs, pairs of pairs: log2 rounds between devices
    EXPERIMENTAL_ACCUMULATE_N   one running sum that goes from device to device and ends on that of the tensor's
                                owner: no device ever holds more of it than one buffer and one term

The grouping follows from the device strings of the graph and the order of the walk alone, so the bits are the same
on any number of workers. IndexedSlices are concatenated in place of summed; a running sum of them that travels is
deduplicated on the way, so that it holds no more rows than there are distinct ones.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify

Cotangent = Tensor | IndexedSlices
Term = TypeVar("Term", Tensor, IndexedSlices)


class AggregationMethod(enum.IntEnum):
    """How partial gradients are summed; the values are TensorFlow's."""

    ADD_N = 0
    DEFAULT = 0
    EXPERIMENTAL_TREE = 1
    EXPERIMENTAL_ACCUMULATE_N = 2


def as_method(value: object) -> AggregationMethod:
    """The method that an enum member, its number or its name means. Raises InvalidArgument."""
    if value is None:
        return AggregationMethod.ADD_N
    try:
        return AggregationMethod[value] if isinstance(value, str) else AggregationMethod(value)  # pyright: ignore[reportArgumentType]
    except (ValueError, KeyError):
        raise InvalidArgument(
            f"Invalid `aggregation_method` specified {value}. Accepted values are [0, 1, 2].", value=value
        ) from None


def aggregate(graph: Graph, owner: Node, terms: Sequence[Cotangent], method: AggregationMethod) -> Cotangent:
    """The sum of the terms (at least one) of a tensor of node `owner`.

    IndexedSlices alone are concatenated, not summed; mixed with dense terms they become dense.
    """
    if len(terms) == 1:
        return terms[0]
    slices = [term for term in terms if isinstance(term, IndexedSlices)]
    if len(slices) == len(terms):
        return _join(graph, owner, slices, method)
    groups = _by_device([_dense(graph, term) for term in terms])
    if method is AggregationMethod.ADD_N:
        sums = [_beside(graph, local, raw.AddN) for local in groups.values()]
        return sums[0] if len(sums) == 1 else raw.AddN(sums)
    with graph.name_scope(f"{owner.name}_gradient_sum"):
        if method is AggregationMethod.EXPERIMENTAL_TREE:
            return _tree(graph, [_tree(graph, local, raw.AddN) for local in groups.values()], raw.AddN)
        ordered = _ending_at(owner.device, groups)
        return _running(graph, [_running(graph, local, raw.AddN) for local in ordered], raw.AddN)


def deduplicate(slices: IndexedSlices) -> IndexedSlices:
    """The same gradient with every index once, in rising order."""
    unique, position = raw.Unique.outputs(slices.indices)
    order = raw.TopKV2.outputs(raw.Neg(unique), raw.Size(unique))[1]
    rank = raw.InvertPermutation(order)
    values = raw.UnsortedSegmentSum(slices.values, raw.GatherV2(rank, position, 0), raw.Size(unique))
    return IndexedSlices(values, raw.GatherV2(unique, order, 0), slices.dense_shape)


def _device_of(term: Cotangent) -> str:
    return (term if isinstance(term, Tensor) else term.values).node.device


def _by_device(terms: Sequence[Term]) -> dict[str, list[Term]]:
    """The terms of each device in their order, the devices sorted by name, none at all first."""
    groups: dict[str, list[Term]] = {}
    for term in terms:
        groups.setdefault(_device_of(term), []).append(term)
    return {device: groups[device] for device in sorted(groups)}


def _ending_at(device: str, groups: dict[str, list[Term]]) -> list[list[Term]]:
    """The groups in order, that of the device last: a running sum then ends where it is wanted."""
    return [groups[name] for name in sorted(groups, key=lambda name: (name == device, name))]


def _dense(graph: Graph, term: Cotangent) -> Tensor:
    """A term as a dense one, made where it stands if it stands somewhere."""
    if isinstance(term, Tensor) or not _device_of(term):
        return densify(term)
    with graph.colocate_with(term.values):
        return densify(term)


def _beside(graph: Graph, terms: list[Term], join: Callable[[list[Term]], Term]) -> Term:
    """The joined terms, on the device of the first; one alone as it is."""
    if len(terms) == 1:
        return terms[0]
    first = terms[0]
    with graph.colocate_with(first if isinstance(first, Tensor) else first.values):
        return join(terms)


def _tree(graph: Graph, terms: list[Term], join: Callable[[list[Term]], Term]) -> Term:
    """Joins pairs, and pairs of pairs; an odd one out waits for the next round."""
    level = terms
    while len(level) > 1:
        level = [_beside(graph, level[k : k + 2], join) for k in range(0, len(level), 2)]
    return level[0]


def _running(graph: Graph, terms: list[Term], join: Callable[[list[Term]], Term]) -> Term:
    """Joins one term after another, each beside the term: what has been joined comes to it."""
    total = terms[0]
    for term in terms[1:]:
        with graph.colocate_with(term if isinstance(term, Tensor) else term.values):
            total = join([total, term])
    return total


def _join(graph: Graph, owner: Node, slices: list[IndexedSlices], method: AggregationMethod) -> IndexedSlices:
    """One IndexedSlices of all rows; only the ways between devices depend on the method."""
    groups = _by_device(slices)
    if len(groups) == 1 or method is AggregationMethod.ADD_N:
        return _concatenate(slices)
    if method is AggregationMethod.EXPERIMENTAL_TREE:
        return _tree(graph, [_beside(graph, local, _concatenate) for local in groups.values()], _concatenate)
    local = [_beside(graph, local, _concatenate) for local in _ending_at(owner.device, groups)]
    return _running(graph, local, lambda pair: deduplicate(_concatenate(pair)))


def _concatenate(slices: Sequence[IndexedSlices]) -> IndexedSlices:
    indices = [term.indices for term in slices]
    if len({index.dtype for index in indices}) > 1:
        indices = [index if index.dtype is dtypes.int64 else raw.Cast(index, DstT="int64") for index in indices]
    axis = np.array(0, np.int32)
    return IndexedSlices(
        raw.ConcatV2([term.values for term in slices], axis, name="concat"),
        raw.ConcatV2(indices, axis, name="concat"),
        slices[0].dense_shape,
    )
