"""What calls return."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.graph.graph import IndexedSlices
from gradserve.v1 import gradient_service_pb2 as wire

Array = np.ndarray[Any, Any]


class Cause(enum.Enum):
    """What cut the flow of gradients to an x."""

    UNKNOWN = wire.NoGradient.REASON_UNSPECIFIED
    UNCONNECTED = wire.NoGradient.REASON_UNCONNECTED
    INTEGER_PATH = wire.NoGradient.REASON_INTEGER_PATH
    NOT_DIFFERENTIABLE = wire.NoGradient.REASON_NOT_DIFFERENTIABLE
    STOPPED = wire.NoGradient.REASON_STOPPED


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an x has no gradient.

    Attributes:
        cause: which of the causes it is.
        node, op: the node that cut the flow and its type; "" where x is unconnected.
        path: the names of the nodes from x to that node.
        message: the same as a sentence.
    """

    cause: Cause
    node: str
    op: str
    path: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return self.message


class GradientResult(list[Array | IndexedSlices | None]):
    """One entry for each x: an array, an IndexedSlices, or None.

    Attributes:
        reasons: `reasons[i]` says why entry i is None.
        ys: the values of the ys, where `return_ys=True` asked for them.
        fetches: the other tensors asked for.
    """

    def __init__(
        self,
        entries: Sequence[Array | IndexedSlices | None],
        reasons: Sequence[Reason | None],
        ys: Sequence[Array],
        fetches: Sequence[Array],
    ) -> None:
        super().__init__(entries)
        self.reasons = list(reasons)
        self.ys = list(ys)
        self.fetches = list(fetches)


def dense(gradient: Array | IndexedSlices) -> Array:
    """An IndexedSlices as an ordinary array: rows of the same index added up."""
    if not isinstance(gradient, IndexedSlices):
        return gradient
    values = np.asarray(gradient.values)
    whole = np.zeros(tuple(np.asarray(gradient.dense_shape)), values.dtype)
    np.add.at(whole, np.asarray(gradient.indices), values)
    return whole
