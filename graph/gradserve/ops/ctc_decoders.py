"""The labels that a CTC model's outputs mean, by the best class a step or by a beam search (Graves et al. 2006).

Inputs are logits [steps, batch, classes]; blanks part repeated labels. Decoded rows come out as sparse matrices.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape

Array = np.ndarray[Any, Any]
Prefix = tuple[int, ...]


def _checked(inputs: Any, lengths: Any) -> None:
    if inputs.ndim != 3 or lengths.shape != inputs.shape[1:2]:
        raise InvalidArgument(
            f"CTC inputs are [steps, batch, classes] with a length a sequence, not {inputs.shape} and {lengths.shape}."
        )
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= inputs.shape[0]:
        raise InvalidArgument(f"Sequence lengths {lengths.tolist()} don't lie between 0 and {inputs.shape[0]} steps.")


def _sparse(rows: list[Prefix]) -> tuple[Array, Array, Array]:
    at = [(row, place) for row, labels in enumerate(rows) for place in range(len(labels))]
    longest = max((len(labels) for labels in rows), default=0)
    values = np.array(list(itertools.chain.from_iterable(rows)), np.int64)
    return np.array(at, np.int64).reshape(-1, 2), values, np.array([len(rows), longest], np.int64)


def _without_repeats(labels: list[int]) -> list[int]:
    return [label for label, _ in itertools.groupby(labels)]


# The best class of each step


def _greedy(xp: Any, inputs: Any, lengths: Any, *, merge_repeated: bool, blank_index: int) -> tuple[Any, ...]:
    """The score is the negative sum of the largest logits, as they are."""
    _checked(inputs, lengths)
    classes = inputs.shape[2]
    if not -classes <= blank_index < classes:
        raise InvalidArgument(f"There is no class {blank_index} among {classes} that could be the blank.")
    blank = blank_index % classes
    rows: list[Prefix] = []
    scores = np.zeros((inputs.shape[1], 1), inputs.dtype)
    for row, length in enumerate(lengths):
        steps = inputs[:length, row]
        best = np.argmax(steps, 1).tolist()
        scores[row] = -steps.max(1).sum() if length else 0
        rows.append(tuple(label for label in (_without_repeats(best) if merge_repeated else best) if label != blank))
    return (*_sparse(rows), scores)


def _greedy_shapes(inputs: Tensor, lengths: Tensor) -> list[Shape]:
    return [(None, 2), (None,), (2,), (inputs.shape[1] if inputs.shape else None, 1)]


define(
    "CTCGreedyDecoder(inputs: T, sequence_length: int32; merge_repeated: bool = false, blank_index: int = -1,"
    " T: float32|float64 = float32)"
    " -> (decoded_indices: int64, decoded_values: int64, decoded_shape: int64, log_probability: T)",
    shape=_greedy_shapes,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_greedy,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(3, 2, draw.size(1)), np.array([3, draw.size(0, 3)], np.int32))],
)

# Beam search


class _Chance(NamedTuple):
    """Log probabilities of a prefix: that a blank was the last class read, that its last label was, and that either."""

    ended: float
    open: float
    total: float


_NONE = _Chance(-math.inf, -math.inf, -math.inf)


def _either(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class _Prefix:
    """Labels read so far, as a node of a tree: its last label below what comes before.

    `before` and `now` are its chances after the step before and after this one, none where it is not in the beam.
    """

    __slots__ = ("before", "children", "label", "now", "parent")

    def __init__(self, parent: _Prefix | None, label: int) -> None:
        self.parent = parent
        self.label = label
        self.children: dict[int, _Prefix] = {}
        self.before = self.now = _NONE

    def labels(self) -> Prefix:
        return () if self.parent is None else (*self.parent.labels(), self.label)

    def onwards(self, label: int) -> float:
        """The chance that the step before leads to this label behind: a label that repeats needs a blank between."""
        return self.before.ended if label == self.label else self.before.total


def _lengthened(beam: list[_Prefix], scores: list[float]) -> None:
    """One more step of the prefixes in the beam: a blank, the last label once more, or the last label at last."""
    for prefix in beam:
        prefix.before = prefix.now
    for prefix in beam:
        ended, read = prefix.before.total + scores[-1], -math.inf
        if prefix.parent is not None:
            there = prefix.parent.now is not _NONE
            read = _either(prefix.before.open, prefix.parent.onwards(prefix.label) if there else -math.inf)
            read += scores[prefix.label]
        prefix.now = _Chance(ended, read, _either(ended, read))


def _grown(beam: list[_Prefix], scores: list[float], width: int) -> list[_Prefix]:
    """The beam with its prefixes' children, which one after another take the place of the worst in it, best first.

    As in TensorFlow a prefix that loses its place may come back as a child of another within the step, without what
    it had, and has no children any more where it does not.
    """
    numbers = itertools.count()
    held = [(prefix.now.total, next(numbers), prefix) for prefix in beam]
    heapq.heapify(held)

    def fits(total: float) -> bool:
        return total > (held[0][0] if len(held) == width else -math.inf)

    for prefix in beam:
        if not fits(prefix.before.total):
            continue
        for label in range(len(scores) - 1):
            child = prefix.children.setdefault(label, _Prefix(prefix, label))
            if child.now is not _NONE:
                continue
            read = scores[label] + prefix.onwards(label)
            if not fits(read):
                child.before = _NONE
                continue
            child.now = _Chance(-math.inf, read, read)
            if len(held) < width:
                heapq.heappush(held, (read, next(numbers), child))
            else:
                heapq.heapreplace(held, (read, next(numbers), child))[2].now = _NONE
    return [prefix for _, _, prefix in sorted(held, key=lambda entry: -entry[0])]


def _beams(steps: Array, width: int) -> list[tuple[float, Prefix]]:
    """The best prefixes with their log probabilities, best first."""
    root = _Prefix(None, -1)
    root.now = _Chance(0.0, -math.inf, 0.0)
    beam = [root]
    for scores in steps.tolist():
        _lengthened(beam, scores)
        beam = _grown(beam, scores, width)
    return [(prefix.now.total, prefix.labels()) for prefix in beam]


def _beam_search(
    xp: Any, inputs: Any, lengths: Any, *, beam_width: int, top_paths: int, merge_repeated: bool
) -> tuple[Any, ...]:
    """The last class is the blank; `merge_repeated` merges equal labels of what was found, blanks or not."""
    _checked(inputs, lengths)
    if not 1 <= top_paths <= beam_width:
        raise InvalidArgument(f"A beam of {beam_width} can't give {top_paths} paths.")
    wide = inputs.astype(np.float64)
    normal = wide - np.logaddexp.reduce(wide, axis=2, keepdims=True)
    scores = np.zeros((inputs.shape[1], top_paths), inputs.dtype)
    paths: list[list[Prefix]] = [[] for _ in range(top_paths)]
    for row, length in enumerate(lengths):
        found = _beams(normal[:length, row], beam_width)
        if len(found) < top_paths:
            raise InvalidArgument(f"Sequence {row} has only {len(found)} paths, fewer than the {top_paths} asked for.")
        for place, (score, prefix) in enumerate(found[:top_paths]):
            paths[place].append(tuple(_without_repeats(list(prefix))) if merge_repeated else prefix)
            scores[row, place] = score
    columns = zip(*(_sparse(rows) for rows in paths), strict=True)
    return (*(entry for column in columns for entry in column), scores)


def _beam_shapes(inputs: Tensor, lengths: Tensor, *, top_paths: int) -> list[Shape]:
    batch = inputs.shape[1] if inputs.shape else None
    return [*[(None, 2)] * top_paths, *[(None,)] * top_paths, *[(2,)] * top_paths, (batch, top_paths)]


define(
    "CTCBeamSearchDecoder(inputs: T, sequence_length: int32; beam_width: int, top_paths: int,"
    " merge_repeated: bool = true, T: float32|float64 = float32)"
    " -> (decoded_indices: top_paths * int64, decoded_values: top_paths * int64, decoded_shape: top_paths * int64,"
    " log_probability: T)",
    shape=_beam_shapes,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_beam_search,
    dynamic=True,
    examples=lambda draw: [
        call(draw.normal(3, 2, 3), np.array([3, 2], np.int32), beam_width=4, top_paths=draw.size(1, 2))
    ],
)
