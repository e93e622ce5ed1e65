"""Sampled classes for losses over many classes, as TensorFlow draws them, and what is expected of them.

The sampled softmax and noise-contrastive losses are made of these   (Jean et al. 2015; Gutmann and Hyvärinen 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops.philox import Philox, unit_doubles
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


def _sampler(draw: Callable[[Iterator[int], int], int], chance: Callable[[Array, int], Array]) -> Any:
    def kernel(
        xp: Any, true: Any, *, num_sampled: int, unique: bool, range_max: int, node: Node, state: Any
    ) -> tuple[Any, Any, Any]:
        if unique and num_sampled > range_max:
            raise InvalidArgument(f"{node.name}: {num_sampled} different classes can't be drawn from {range_max}.")
        words = _words(stateful_generator(node, state, _WORDS_RESERVED * num_sampled // 4))
        sampled: list[int] = []
        seen: set[int] = set()
        tries = 0
        while len(sampled) < num_sampled:
            tries += 1
            value = draw(words, range_max)
            if not unique or value not in seen:
                sampled.append(value)
                seen.add(value)
        found = np.array(sampled, np.int64)
        of_true, of_found = (_expected(chance(values, range_max), num_sampled, tries) for values in (true, found))
        return found, of_true, of_found

    return kernel


def _shapes(true: Tensor, *, num_sampled: int) -> list[Shape]:
    return [(num_sampled,), true.shape, (num_sampled,)]


for _name, _draw, _chance in (
    ("UniformCandidateSampler", _uniform, _uniform_chance),
    ("LogUniformCandidateSampler", _log_uniform, _log_uniform_chance),
):
    define(
        f"{_name}(true_classes: int64; num_true: int, num_sampled: int, unique: bool, range_max: int, seed: int = 0,"
        " seed2: int = 0) -> (sampled_candidates: int64, true_expected_count: float32, sampled_expected_count: float32)",
        shape=_shapes,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_sampler(_draw, _chance),
        stateful=True,
        dynamic=True,
        examples=lambda draw: [
            call(
                draw.integers(0, 9, draw.size(1), 2, dtype=np.int64), num_true=2, num_sampled=draw.size(1, 5),
                unique=draw.pick([True, False]), range_max=9, seed=3, seed2=5,
            )
        ],
    )  # fmt: skip


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
