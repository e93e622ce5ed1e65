"""How many rounds a loop runs, where that follows from a counter that is compared with a bound, as in most loops.

The condition is a comparison, or several that must all hold. Those of an integer loop variable that starts at a known
value and changes by a known step, with a known bound, bound the rounds; if there are no others the number is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.graph import static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor

_SAME = frozenset(("Identity", "StopGradient", "PreventGradient", "Snapshot"))
_SMALLEST = {"Less": 0, "LessEqual": 1}
_LARGEST = {"Greater": 0, "GreaterEqual": 1}
_TURNED = {"Less": "Greater", "LessEqual": "GreaterEqual", "Greater": "Less", "GreaterEqual": "LessEqual"}


class Rounds(NamedTuple):
    """Of one loop.

    Attributes:
        exact: how many there are; None where that is not known.
        most: a bound; None where there is none.
    """

    exact: int | None
    most: int | None


class Counter(NamedTuple):
    """Numbers at equal distances: the values of a loop variable that changes by the same step in every round."""

    start: int
    step: int

    def after(self, rounds: Any) -> Any:
        """The value after so many rounds."""
        return self.start + self.step * rounds

    def range(self, first: int, last: int) -> tuple[int, int]:
        """The least and the greatest value from one round to another."""
        ends = self.after(first), self.after(last)
        return min(ends), max(ends)

    def fits(self, dtype: DType, rounds: int) -> bool:
        """Whether so many rounds stay in a dtype's range, past which integers wrap around."""
        limits = np.iinfo(dtype.base.numpy)
        return limits.min <= self.after(rounds) <= limits.max


def source_of(tensor: Tensor) -> Tensor:
    """The tensor that this one is handed on from."""
    while tensor.node.type in _SAME and not tensor.dtype.is_reference:
        tensor = tensor.node.inputs[0]
    return tensor


def counters(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], starts: Sequence[np.ndarray | None]
) -> dict[int, Counter]:
    """The counters among a loop's variables, by position: what its body takes and returns, and the first values."""
    found: dict[int, Counter] = {}
    fixed = {x: start for x, y, start in zip(inputs, outputs, starts, strict=True) if source_of(y) is x}
    for position, (after, start) in enumerate(zip(outputs, starts, strict=True)):
        if start is None or start.ndim or start.dtype.kind not in "iu":
            continue
        step = _step(source_of(after), inputs[position], fixed)
        if step is not None:
            found[position] = Counter(int(start), step)
    return found


def _step(after: Tensor, before: Tensor, fixed: Mapping[Tensor, np.ndarray | None]) -> int | None:
    """By how much the body changes a variable."""
    if after is before:
        return 0
    if after.node.type not in ("AddV2", "Add", "Sub"):
        return None
    a, b = (source_of(tensor) for tensor in after.node.inputs)
    if a is before and (known := _scalar(b, fixed.get(b))) is not None:
        return -known if after.node.type == "Sub" else known
    if b is before and after.node.type != "Sub":
        return _scalar(a, fixed.get(a))
    return None


def _scalar(tensor: Tensor, known: np.ndarray | None = None) -> int | None:
    """The value of an integer scalar, where it is known; `known` where it has been found out already."""
    known = static.value(tensor) if known is None else known
    return None if known is None or known.ndim or known.dtype.kind not in "iu" else int(known)


def count(asks: Tensor, inputs: Sequence[Tensor], found: Mapping[int, Counter]) -> Rounds:
    """The rounds of a loop with this condition on `inputs`."""
    places = {inputs[position]: counter for position, counter in found.items()}
    bounds = [_bound(term, places) for term in _terms(source_of(asks)) if not _holds(term)]
    known = [bound for bound in bounds if bound is not None]
    most = min(known, default=None)
    return Rounds(most if len(known) == len(bounds) or most == 0 else None, most)


def _holds(term: Tensor) -> bool:
    """Whether a condition is known to hold always."""
    known = static.value(term)
    return known is not None and not known.ndim and bool(known)


def _terms(tensor: Tensor) -> list[Tensor]:
    """The conditions that must all hold."""
    if tensor.node.type != "LogicalAnd":
        return [tensor]
    return [term for part in tensor.node.inputs for term in _terms(source_of(part))]


def _bound(term: Tensor, places: dict[Tensor, Counter]) -> int | None:
    """The number of rounds after which a condition fails for the first time."""
    known = static.value(term)
    if known is not None and not known.ndim:
        return 0
    kind = term.node.type
    if kind not in _TURNED:
        return None
    left, right = (source_of(tensor) for tensor in term.node.inputs)
    if left not in places:
        left, right, kind = right, left, _TURNED[kind]
    limit = _scalar(right)
    if left not in places or limit is None:
        return None
    counter = places[left]
    room = limit - counter.start if kind in _SMALLEST else counter.start - limit
    step = counter.step if kind in _SMALLEST else -counter.step
    room += _SMALLEST.get(kind, 0) + _LARGEST.get(kind, 0)
    if room <= 0:
        return 0
    rounds = -(-room // step) if step > 0 else None
    return rounds if rounds is not None and counter.fits(left.dtype, rounds) else None
