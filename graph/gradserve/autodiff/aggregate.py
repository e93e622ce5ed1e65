"""Sums the partial gradients of one tensor with the method that the request names.

ADD_N: one AddN a device, then one over the devices. EXPERIMENTAL_TREE: pairs, pairs of pairs, log2 rounds.
EXPERIMENTAL_ACCUMULATE_N: one running sum, a term at a time, so that one buffer is enough. The terms keep the
order of the walk, which fixes the bits; a partial sum stands on its terms' device.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor
from gradserve.graph.op import raw

Cotangent = Tensor | IndexedSlices


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
    dense = [term for term in terms if isinstance(term, Tensor)]
    slices = [term for term in terms if isinstance(term, IndexedSlices)]
    if not dense:
        return _concatenate(slices)
    if slices:
        dense = [densify(term) for term in terms]
    if method is AggregationMethod.ADD_N:
        return _add_by_device(graph, dense)
    with graph.name_scope(f"{owner.name}_gradient_sum"):
        if method is AggregationMethod.EXPERIMENTAL_TREE:
            return _tree(graph, dense)
        return _running_sum(graph, dense)


def densify(term: Cotangent) -> Tensor:
    """A dense tensor: rows of equal index added up."""
    if isinstance(term, Tensor):
        return term
    rows = raw.StridedSlice(
        term.dense_shape,
        np.array([0], np.int32),
        np.array([1], np.int32),
        np.array([1], np.int32),
        shrink_axis_mask=1,
    )
    return raw.UnsortedSegmentSum(term.values, term.indices, rows)


def deduplicate(slices: IndexedSlices) -> IndexedSlices:
    """The same gradient with every index once, in rising order."""
    unique, position = raw.Unique.outputs(slices.indices)
    order = raw.TopKV2.outputs(raw.Neg(unique), raw.Size(unique))[1]
    rank = raw.InvertPermutation(order)
    values = raw.UnsortedSegmentSum(slices.values, raw.GatherV2(rank, position, 0), raw.Size(unique))
    return IndexedSlices(values, raw.GatherV2(unique, order, 0), slices.dense_shape)


def _concatenate(slices: Sequence[IndexedSlices]) -> IndexedSlices:
    indices = [term.indices for term in slices]
    if len({index.dtype for index in indices}) > 1:
        indices = [raw.Cast(index, DstT="int64") for index in indices]
    axis = np.array(0, np.int32)
    return IndexedSlices(
        raw.ConcatV2([term.values for term in slices], axis),
        raw.ConcatV2(indices, axis),
        slices[0].dense_shape,
    )


def _add_by_device(graph: Graph, terms: Sequence[Tensor]) -> Tensor:
    devices: dict[str, list[Tensor]] = {}
    for term in terms:
        devices.setdefault(term.node.device, []).append(term)
    sums: list[Tensor] = []
    for device in sorted(devices):
        local = devices[device]
        if len(local) == 1:
            sums.append(local[0])
            continue
        with graph.colocate_with(local[0]):
            sums.append(raw.AddN(local))
    return sums[0] if len(sums) == 1 else raw.AddN(sums)


def _beside(graph: Graph, a: Tensor, b: Tensor) -> Tensor:
    with graph.colocate_with(a):
        return raw.AddN([a, b])


def _tree(graph: Graph, terms: Sequence[Tensor]) -> Tensor:
    level = list(terms)
    while len(level) > 1:
        pairs = [_beside(graph, *level[k : k + 2]) for k in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0]


def _running_sum(graph: Graph, terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = _beside(graph, total, term)
    return total
