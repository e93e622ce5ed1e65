"""How a batch is cut: which feeds, where, and which piece of them a shard gets."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gradserve.errors import InvalidArgument
from gradserve.graph.shapes import Shape
from gradserve.server.values import Array


class Reduction(enum.Enum):
    """What the loss is over its examples."""

    MEAN = "mean"
    SUM = "sum"


class Slices(NamedTuple):
    """Three feeds that are one sparse tensor with a row an example."""

    values: str
    indices: str
    dense_shape: str


@dataclass(frozen=True, slots=True)
class Sharding:
    """What a request asks for.

    Attributes:
        shards: how many.
        feeds: canonical names of the feeds to split along their first dimension.
        reduction: of the loss, over its examples; it weighs what the graph does not tell.
        shapes: of all feeds, the first dimension of those to split left open.
        slices: feeds to split by their indices.
        local: whether examples that look at each other may see those of their shard only.
        sizes: numbers of examples to look at the graph with: of a shard, and of the whole.
    """

    shards: int
    feeds: tuple[str, ...]
    reduction: Reduction
    shapes: tuple[tuple[str, Shape], ...] = ()
    slices: tuple[Slices, ...] = ()
    local: bool = False
    sizes: tuple[int, int] = field(default=(1, 2), compare=False)

    @property
    def split(self) -> tuple[str, ...]:
        """All feeds of which each shard gets a piece."""
        return (*self.feeds, *(name for slices in self.slices for name in slices))


def bounds(examples: int, shards: int) -> list[int]:
    """Where each shard begins, and the end: sizes differ by one at most, the larger ones first."""
    size, larger = divmod(examples, shards)
    return [k * size + min(k, larger) for k in range(shards + 1)]


def check_feeds(sharding: Sharding, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """The number of examples in the feeds that are split by rows. Raises InvalidArgument where they can't be split."""
    sizes = {name: shape[0] if shape else None for name, shape in shapes}
    for name, size in sizes.items():
        if size is None:
            raise InvalidArgument(
                f"{name} is a scalar, which has no examples to split: name the feeds to split.", tensor=name
            )
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise InvalidArgument(
            f"The split feeds have different numbers of examples ({told}): name only those that have a row an example.",
            sizes=told,
        )
    examples = next(iter(sizes.values()))
    assert examples is not None
    if examples < sharding.shards:
        raise InvalidArgument(
            f"{examples} examples can't be split into {sharding.shards} shards: ask for at most "
            f"{max(examples, 1)} shards, or feed more examples.",
            examples=examples, shards=sharding.shards,
        )  # fmt: skip
    return examples


def check_slices(sharding: Sharding, feeds: Mapping[str, Array], examples: int) -> None:
    """Raises InvalidArgument where a sparse feed is not one of so many rows."""
    for values, indices, dense_shape in sharding.slices:
        places, shape = feeds[indices], feeds[dense_shape]
        flat = places.ndim == shape.ndim == 1 and feeds[values].shape[:1] == places.shape
        if not flat or not shape.size or shape[0] != examples:
            raise InvalidArgument(
                f"{values} can't be split: its dense_shape is {shape.tolist()}, with indices of shape {places.shape} "
                f"for values of shape {feeds[values].shape}, and there are {examples} examples.",
                tensor=values,
            )
        if places.size and not 0 <= places.min() <= places.max() < examples:
            raise InvalidArgument(
                f"{indices} has indices from {places.min()} to {places.max()}, and there are {examples} rows.",
                tensor=indices,
            )


def piece(sharding: Sharding, feeds: Mapping[str, Array], start: int, end: int) -> dict[str, Array]:
    """What the shard of examples start … end - 1 is fed of the split feeds."""
    found = {name: feeds[name][start:end] for name in sharding.feeds}
    for values, indices, dense_shape in sharding.slices:
        places = feeds[indices]
        inside = (start <= places) & (places < end)
        shape = feeds[dense_shape].copy()
        shape[0] = end - start
        found |= {values: feeds[values][inside], indices: places[inside] - places.dtype.type(start), dense_shape: shape}
    return found


def piece_shapes(sharding: Sharding, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of what the first, and largest, shard is fed; rows of a sparse feed are taken to lie evenly."""
    examples = check_feeds(sharding, [(name, feeds[name]) for name in sharding.feeds])
    size = bounds(examples, sharding.shards)[1]
    found: dict[str, tuple[int, ...]] = {name: (size, *feeds[name][1:]) for name in sharding.feeds}
    for values, indices, dense_shape in sharding.slices:
        for name in (values, indices):
            found[name] = (-(-feeds[name][0] // sharding.shards), *feeds[name][1:])
        found[dense_shape] = feeds[dense_shape]
    return found
