"""Examples of ops on values that are no arrays: ways from arrays into such values and out of them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, raw, within

Way = Callable[..., Sequence[Tensor]]


def ways(shape: Callable[[Any], Sequence[int]], *functions: Way) -> Callable[[Any], list[Example]]:
    """Examples that take an array of a shape that is drawn each way, and square what comes out.

    With squares none of the first three orders of derivatives is zero for what only moves entries.
    """

    def squared(way: Way) -> Way:
        return lambda x: [raw.Square(y) for y in way(x)]

    return lambda draw: [within(squared(way), draw.normal(*shape(draw)), order=3) for way in functions]
