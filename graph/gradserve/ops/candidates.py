"""Sampled classes for losses over many classes, as TensorFlow draws them, and what is expected of them.

The sampled softmax and noise-contrastive losses are made of these   (Jean et al. 2015; Gutmann and Hyvärinen 2010).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops.philox import Philox, unit_doubles, unit_floats
from gradserve.ops.random import stateful_generator

Array = np.ndarray[Any, Any]
_WORDS_RESERVED = 2048
_LOWEST = float(np.finfo(np.float32).min)


def _words(generator: Philox) -> Iterator[int]:
    """The words of the generator, one after another."""
    while True:
        yield from generator.words(1024).tolist()
        generator = generator.skip(256)


def _uniform(words: Iterator[int], classes: int) -> int:
    """Any class alike; 64-bit numbers that would favour some are thrown away."""
    rest = 2**64 % classes
    while True:
        number = next(words) | next(words) << 32
        if not rest or number >= rest:
            return number % classes


def _below(words: Iterator[int], bound: int) -> int:
    """Any of the numbers below a bound alike, of 32 bits."""
    rest = 2**32 % bound
    while True:
        number = next(words)
        if number >= rest:
            return number % bound


def _log_uniform(words: Iterator[int], classes: int) -> int:
    """Class k with the probability log((k + 2) / (k + 1)) / log(classes + 1)."""
    pair = np.array([[next(words), next(words)]], np.uint32)
    value = float(unit_doubles(pair[:, 0], pair[:, 1])[0])
    return (int(math.exp(value * math.log1p(classes))) - 1) % classes


def _uniform_chance(values: Array, classes: int) -> Array:
    return np.full(values.shape, np.float32(1 / classes))


def _log_uniform_chance(values: Array, classes: int) -> Array:
    return (np.log((values + 2.0) / (values + 1.0)) / math.log1p(classes)).astype(np.float32)


def _expected(chances: Array, count: int, tries: int) -> Array:
    """How often classes are expected among the sampled: with repeats p count; without, 1 - (1 - p)^tries."""
    if tries == count:
        return (chances * np.float32(count)).astype(np.float32)
    return (-np.expm1(tries * np.log1p(-chances.astype(np.float64)))).astype(np.float32)


class _Classes(NamedTuple):
    """How a class is drawn from random words, and with what chance each of these classes is (float32)."""

    draw: Callable[[Iterator[int]], int]
    chance: Callable[[Array], Array]


def _sampler(classes: Callable[[Node], _Classes]) -> Any:
    def kernel(
        xp: Any, true: Any, *, num_sampled: int, unique: bool, range_max: int, node: Node, state: Any
    ) -> tuple[Any, Any, Any]:
        draw, chance = classes(node)
        if unique and num_sampled > range_max:
            raise InvalidArgument(f"{node.name}: {num_sampled} different classes can't be drawn from {range_max}.")
        words = _words(stateful_generator(node, state, _WORDS_RESERVED * num_sampled // 4))
        sampled: list[int] = []
        seen: set[int] = set()
        tries = 0
        while len(sampled) < num_sampled:
            tries += 1
            value = draw(words)
            if not unique or value not in seen:
                sampled.append(value)
                seen.add(value)
        found = np.array(sampled, np.int64)
        of_true, of_found = (_expected(chance(values), num_sampled, tries) for values in (true, found))
        return found, of_true, of_found

    return kernel


def _shapes(true: Tensor, *, num_sampled: int) -> list[Shape]:
    return [(num_sampled,), true.shape, (num_sampled,)]


_DRAWN = "true_classes: int64; num_true: int, num_sampled: int, unique: bool, range_max: int"
_SEEDED = (
    "seed: int = 0, seed2: int = 0)"
    " -> (sampled_candidates: int64, true_expected_count: float32, sampled_expected_count: float32)"
)


def _enter(name: str, classes: Callable[[Node], _Classes], attrs: str = "", **given: Any) -> None:
    define(
        f"{name}({_DRAWN}, {attrs}{_SEEDED}",
        shape=_shapes,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_sampler(classes),
        stateful=True,
        dynamic=True,
        examples=lambda draw: [
            call(
                draw.integers(0, 9, draw.size(1), 2, dtype=np.int64), num_true=2, num_sampled=draw.size(1, 5),
                unique=draw.pick([True, False]), range_max=9, seed=3, seed2=5, **given,
            )
        ],
    )  # fmt: skip


def _all_alike(node: Node) -> _Classes:
    count = node.attrs["range_max"]
    return _Classes(lambda words: _uniform(words, count), lambda values: _uniform_chance(values, count))


def _rare_behind(node: Node) -> _Classes:
    count = node.attrs["range_max"]
    return _Classes(lambda words: _log_uniform(words, count), lambda values: _log_uniform_chance(values, count))


_enter("UniformCandidateSampler", _all_alike)
_enter("LogUniformCandidateSampler", _rare_behind)


# Classes by given weights


@functools.lru_cache(maxsize=16)
def _alias_table(weights: tuple[float, ...]) -> tuple[list[float], list[int]]:
    """For each class how often it stands for itself when it is hit, and for whom else it stands   (Walker 1977)."""
    chances = (np.array(weights) * (len(weights) / sum(weights))).tolist()
    other = list(range(len(weights)))
    low = [k for k, chance in enumerate(chances) if chance < 1]
    high = [k for k, chance in enumerate(chances) if chance >= 1]
    while low and high:
        k, taken = low.pop(), high.pop()
        other[k] = taken
        chances[taken] -= 1 - chances[k]
        (low if chances[taken] < 1 else high).append(taken)
    for k in (*low, *high):  # rounding leaves some, close to 1
        chances[k] = 1.0
    return np.array(chances, np.float32).tolist(), other


def _by_weight(node: Node) -> _Classes:
    """Class k with a chance that is proportional to unigrams[k] ** distortion, of the classes of this shard."""
    attrs = node.attrs
    if attrs["vocab_file"]:
        raise InvalidArgument(f"{node.name}: vocab_file is a file: give unigrams.", node=node.name)
    powers = np.power(np.array(attrs["unigrams"], np.float32), np.float32(attrs["distortion"]))
    shard, shards = attrs["shard"], attrs["num_shards"]
    reserved = len(range(shard, attrs["num_reserved_ids"], shards))  # behind which TensorFlow counts on, in each shard
    weights = np.concatenate([np.zeros(reserved, np.float32), powers[(shard - reserved) % shards :: shards]])
    if len(weights) != attrs["range_max"] or not weights.sum() > 0:
        raise InvalidArgument(
            f"{node.name}: range_max is {attrs['range_max']}, but there are {len(weights)} weights with the sum "
            f"{weights.sum()}.",
            node=node.name,
        )
    kept, other = _alias_table(tuple(weights.tolist()))

    def draw(words: Iterator[int]) -> int:
        value = float(unit_floats(np.array([next(words)], np.uint32))[0])
        place = _below(words, len(weights))
        return place if value < kept[place] else other[place]

    return _Classes(draw, lambda values: (weights[values] / weights.sum(dtype=np.float32)).astype(np.float32))


_enter(
    "FixedUnigramCandidateSampler",
    _by_weight,
    "vocab_file: string = '', distortion: float = 1.0, num_reserved_ids: int = 0, num_shards: int = 1, shard: int = 0,"
    " unigrams: list(float) = [], ",
    unigrams=[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0],
)


def _all(xp: Any, true: Any, *, num_sampled: int) -> tuple[Any, Any, Any]:
    """Every class once."""
    return np.arange(num_sampled), np.ones(true.shape, np.float32), np.ones(num_sampled, np.float32)


define(
    "AllCandidateSampler(true_classes: int64; num_true: int, num_sampled: int, unique: bool, seed: int = 0,"
    " seed2: int = 0) -> (sampled_candidates: int64, true_expected_count: float32, sampled_expected_count: float32)",
    shape=_shapes,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_all,
    stateful=True,
    dynamic=True,
    examples=lambda draw: [
        call(draw.integers(0, 4, draw.size(), 2, dtype=np.int64), num_true=2, num_sampled=4, unique=True)
    ],
)


def _accidental_hits(xp: Any, true: Any, sampled: Any) -> tuple[Any, Any, Any]:
    """Where a sampled class is one of the row's true ones: row, place among the sampled, and the lowest number."""
    places = {value: place for place, value in enumerate(sampled.tolist())}
    hits = [(row, places[value]) for row, values in enumerate(true.tolist()) for value in values if value in places]
    table = np.array(hits, np.int64).reshape(-1, 2)
    return table[:, 0].astype(np.int32), table[:, 1], np.full(len(hits), _LOWEST, np.float32)


define(
    "ComputeAccidentalHits(true_classes: int64, sampled_candidates: int64; num_true: int, seed: int = 0, seed2: int = 0)"
    " -> (indices: int32, ids: int64, weights: float32)",
    shape=lambda true, sampled: [(None,), (None,), (None,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_accidental_hits,
    dynamic=True,
    examples=lambda draw: [
        call(draw.integers(0, 4, draw.size(), 2, dtype=np.int64), draw.integers(0, 4, 5, dtype=np.int64), num_true=2)
    ],
)
