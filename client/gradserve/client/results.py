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


@dataclass(frozen=True, slots=True)
class Range:
    """What a tensor held: NaNs, infinities, and the least and greatest finite element (complex: absolute value)."""

    tensor: str
    nan_count: int
    infinity_count: int
    least: float
    greatest: float

    def __str__(self) -> str:
        bad = [f"{count} {what}" for count, what in ((self.nan_count, "NaN"), (self.infinity_count, "inf")) if count]
        finite = [] if self.least > self.greatest else [f"{self.least:g} to {self.greatest:g}"]
        return f"{self.tensor}: {', '.join(finite + bad) or 'empty'}"


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first node of a step that gave a NaN or an infinity and was given none.

    Attributes:
        node, op: its name and op type.
        forward_node: the forward node that it serves, "" where it is one itself.
        inputs, outputs: what it was given, and what it made of it.
        shard: the one that it ran in, the lowest where a node did so; None without shards, and for what ran once after
            them: a node of theirs is then one whose total over the shards is not finite.
    """

    node: str
    op: str
    forward_node: str
    inputs: tuple[Range, ...]
    outputs: tuple[Range, ...]
    shard: int | None = None

    def __str__(self) -> str:
        place = f", in the gradient of {self.forward_node}" if self.forward_node else ""
        place += f", in shard {self.shard}" if self.shard is not None else ""
        given, made = ("; ".join(map(str, ranges)) for ranges in (self.inputs, self.outputs))
        return f"{self.node} ({self.op}{place}) made {made} of {given or 'no floating input'}"


class GradientResult(list[Array | IndexedSlices | None]):
    """One entry for each x: an array, an IndexedSlices, or None.

    Attributes:
        reasons: `reasons[i]` says why entry i is None.
        ys: the values of the ys, where `return_ys=True` asked for them.
        fetches: the other tensors asked for.
        nonfinite: the op that made the first NaN or infinity, where `find_nonfinite=True` asked and there is one.
    """

    def __init__(
        self,
        entries: Sequence[Array | IndexedSlices | None],
        reasons: Sequence[Reason | None],
        ys: Sequence[Array],
        fetches: Sequence[Array],
        nonfinite: NonFinite | None = None,
    ) -> None:
        super().__init__(entries)
        self.reasons = list(reasons)
        self.ys = list(ys)
        self.fetches = list(fetches)
        self.nonfinite = nonfinite


def dense(gradient: Array | IndexedSlices) -> Array:
    """An IndexedSlices as an ordinary array: rows of the same index added up."""
    if not isinstance(gradient, IndexedSlices):
        return gradient
    values = np.asarray(gradient.values)
    whole = np.zeros(tuple(np.asarray(gradient.dense_shape)), values.dtype)
    np.add.at(whole, np.asarray(gradient.indices), values)
    return whole
