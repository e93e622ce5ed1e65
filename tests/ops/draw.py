"""Inputs for the examples that stand with each op: Hypothesis chooses sizes, a seeded generator the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
Choice = TypeVar("Choice")


class Draw:
    """What an op's `examples` function gets. All floating arrays are float64.

    Args:
        choose: gives an int between two bounds, both included; Hypothesis' in tests.
        seed: of the generator of the numbers.
    """

    def __init__(self, choose: Callable[[int, int], int], seed: int = 0) -> None:
        self._choose = choose
        self._generator = np.random.default_rng(seed)

    def size(self, low: int = 0, high: int = 4) -> int:
        """The size of one axis."""
        return self._choose(low, high)

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of these."""
        return options[self._choose(0, len(options) - 1)]

    def shape(self, low: int = 0, high: int = 3, smallest: int = 0) -> tuple[int, ...]:
        """A shape of rank low to high, size-0 and size-1 axes included."""
        return tuple(self.size(smallest, 3) for _ in range(self._choose(low, high)))

    def broadcastable_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Two shapes that broadcast together."""
        full = self.shape()
        shapes = [
            tuple(1 if self._choose(0, 3) == 0 else size for size in full[self._choose(0, len(full)) :])
            for _ in range(2)
        ]
        return shapes[0], shapes[1]

    def normal(self, *shape: int) -> Array:
        """Numbers around 0, none closer to it than 0.05."""
        values = self._generator.standard_normal(shape)
        return values + np.where(values < 0, -0.05, 0.05)

    def sparse(self, *shape: int) -> Array:
        """Numbers around 0, about a third of them 0."""
        return self.normal(*shape) * self._generator.integers(0, 3, shape).astype(bool)

    def positive(self, *shape: int) -> Array:
        """Numbers between 0.5 and 2.5."""
        return self._generator.uniform(0.5, 2.5, shape)

    def unit(self, *shape: int) -> Array:
        """Numbers between -0.9 and 0.9."""
        return self._generator.uniform(-0.9, 0.9, shape)

    def fraction(self, *shape: int) -> Array:
        """Numbers between 0.1 and 0.9."""
        return self._generator.uniform(0.1, 0.9, shape)

    def above_one(self, *shape: int) -> Array:
        """Numbers between 1.2 and 3."""
        return self._generator.uniform(1.2, 3.0, shape)

    def distinct(self, *shape: int) -> Array:
        """Numbers no two of which are closer than 0.3: no ties, and none appear under small changes."""
        count = int(np.prod(shape))
        return (self._generator.permutation(count) * 0.3 - count * 0.15 + 0.1).reshape(shape)

    def complex(self, *shape: int) -> Array:
        """Complex numbers (complex128)."""
        return self.normal(*shape) + 1j * self.normal(*shape)

    def integers(self, low: int, high: int, *shape: int, dtype: Any = np.int32) -> Array:
        """Integers in [low, high)."""
        return self._generator.integers(low, max(high, low + 1), shape).astype(dtype)

    def boolean(self, *shape: int) -> Array:
        """Truth values."""
        return self._generator.integers(0, 2, shape).astype(bool)

    def permutation(self, count: int) -> Array:
        """The integers 0 to count-1, shuffled (int32)."""
        return self._generator.permutation(count).astype(np.int32)

    def coordinates(self, *shape: int) -> Array:
        """Distinct coordinates of some cells of an array of this shape, in row-major order (int64 [n, rank])."""
        chosen = self._generator.integers(0, 2, shape) > 0
        return np.argwhere(chosen).astype(np.int64)
