"""Normal numbers within bounds of their own: (Stateless)ParameterizedTruncatedNormal.

The numbers are TensorFlow's: one of three rejection samplers is chosen by where the bounds lie, and what is left of
a group of random numbers when a batch is full is thrown away. TensorFlow cuts large outputs into shards of their own
by its thread count; here the whole output is one.

The stateless op is differentiable, by TensorFlow's convention: ∂x/∂μ = 1 and ∂x/∂σ = z = (x - μ) / σ, as if the
bounds moved along; and at a fixed place of the distribution between the bounds a and b (Figurnov et al. 2018)
∂x/∂a = (1 - F) φ(a') / φ(z) and ∂x/∂b = F φ(b') / φ(z) with F = (Φ(z) - Φ(a')) / (Φ(b') - Φ(a')), where a' and b'
are the bounds as multiples of σ from μ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes, static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops import philox
from gradserve.ops.philox import Philox
from gradserve.ops.random import stateful_generator

Array = np.ndarray[Any, Any]
_MOST_TRIES = 1000
_INSIDE = 1.3
_BATCH = 100


class _Groups:
    """Groups of random numbers, one counter value each: 2 of float64, 4 of narrower types (made in float32)."""

    def __init__(self, generator: Philox, kind: Any) -> None:
        self._generator = generator
        self._kind = np.dtype(kind)
        self._size = 2 if self._kind == np.float64 else 4

    def _draw(self, sampler: Any) -> Array:
        values = sampler(self._generator, self._size, self._kind)
        self._generator = self._generator.skip(1)
        return values

    def uniform(self) -> Array:
        return self._draw(philox.uniform)

    def normal(self) -> Array:
        return self._draw(philox.normal)


def _by_normal(groups: _Groups, low: Any, high: Any) -> Iterator[tuple[Any, bool]]:
    while True:
        for z in groups.normal():
            yield z, bool(low <= z <= high)


def _by_uniform(groups: _Groups, low: Any, high: Any) -> Iterator[tuple[Any, bool]]:
    kind = low.dtype.type
    shift = kind(0) if low < 0 else low * low
    while True:
        z = groups.uniform() * (high - low) + low
        limit = np.exp((shift - z * z) / kind(2))
        yield from zip(z, (groups.uniform() <= limit).tolist(), strict=True)


def _by_exponential(groups: _Groups, low: Any, high: Any) -> Iterator[tuple[Any, bool]]:
    kind = low.dtype.type
    rate = (low + np.sqrt(low * low + kind(4))) / kind(2)
    while True:
        numbers = groups.uniform()
        for first, second in numbers.reshape(-1, 2):
            z = -np.log(first) / rate + low
            x = rate - z if low < rate else low - rate
            yield z, bool(second <= np.exp(-x * x / kind(2)) and z < high)


def _candidates(groups: _Groups, low: Any, high: Any) -> Iterator[tuple[Any, bool]]:
    """Standard normal numbers between the bounds, and whether each is accepted."""
    kind = low.dtype.type
    if (low < -_INSIDE and high >= 0) or (high > _INSIDE and low <= 0):
        return _by_normal(groups, low, high)
    root = np.sqrt(low * low + kind(4))
    cutoff = kind(2) * np.exp(kind(0.5) + (low * (low - root)) / kind(4)) / (low + root)
    return _by_uniform(groups, low, high) if high - low < cutoff else _by_exponential(groups, low, high)


def _batch(groups: _Groups, count: int, mean: Any, deviation: Any, low: Any, high: Any) -> Array:
    """`count` numbers with the same parameters."""
    if not (deviation > 0 and low < high and (np.isfinite(low) or np.isfinite(high))):
        raise InvalidArgument(
            f"A normal number of mean {mean} and deviation {deviation} can't lie between {low} and {high}: the"
            " deviation must be positive, the bounds in order, and one of them finite."
        )
    if (np.isinf(low) and low < 0) or high < mean:
        low, high, deviation = high, low, -deviation
    result, found, tries = np.empty(count, mean.dtype), 0, 0
    candidates = _candidates(groups, (low - mean) / deviation, (high - mean) / deviation)
    while found < count:
        z, accepted = next(candidates)
        tries = 0 if accepted else tries + 1
        if tries > _MOST_TRIES:
            raise InvalidArgument(f"No number between {low} and {high} was found in {_MOST_TRIES} tries.")
        if accepted:
            result[found] = z * deviation + mean
            found += 1
    return result


# With a stateful generator: parameters of one entry each row of the output, or one for all


def _stateful(
    xp: Any, shape: Any, means: Any, deviations: Any, lows: Any, highs: Any, *, node: Node, state: Any
) -> Any:  # fmt: skip
    sizes = tuple(int(size) for size in np.ravel(shape))
    count = math.prod(sizes)
    parameters = (means, deviations, lows, highs)
    if any(np.ndim(value) > 1 for value in parameters) or not sizes:
        raise InvalidArgument(f"{node.name}: parameters must be scalars or vectors, and the shape not empty.")
    if np.size(means) == np.size(deviations) == 1 and np.ndim(lows) == np.ndim(highs) == 0:
        batches, samples = -(-count // _BATCH), _BATCH
    else:
        batches, samples = sizes[0], count // max(sizes[0], 1)
    reserve = batches * 2 * _MOST_TRIES * (samples + 3) // 4
    groups = _Groups(stateful_generator(node, state, reserve), means.dtype)
    rows = [np.broadcast_to(np.ravel(value), (batches,)) for value in parameters]
    parts = [
        _batch(groups, min(samples, count - row * samples), *(value[row] for value in rows)) for row in range(batches)
    ]
    return np.concatenate(parts).reshape(sizes) if parts else np.zeros(sizes, means.dtype)


define(
    "ParameterizedTruncatedNormal(shape: T, means: dtype, stdevs: dtype, minvals: dtype, maxvals: dtype; seed: int = 0,"
    " seed2: int = 0, dtype: floating, T: index) -> (output: dtype)",
    shape=lambda shape, *_: static.shape_value(shape),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_stateful,
    host=("shape",),
    stateful=True,
    dynamic=True,
    examples=lambda draw: [
        call(np.array([3, 2], np.int32), draw.normal(n := draw.pick([1, 3])), draw.positive(n), -draw.positive(n) - 3,
             draw.positive(n) + 3, seed=3, seed2=5),
    ],
)  # fmt: skip


# By seed: parameters broadcast together, and the samples of each stand along the leading axes


def _stateless(xp: Any, shape: Any, seed: Any, means: Any, deviations: Any, lows: Any, highs: Any) -> Any:
    sizes = tuple(int(size) for size in np.ravel(shape))
    parameters = np.broadcast_arrays(means, deviations, lows, highs)
    batch = parameters[0].shape
    if batch != sizes[len(sizes) - len(batch) :]:
        raise InvalidArgument(f"Parameters of shape {batch} together are no last part of the shape {sizes}.")
    columns = [np.ravel(value) for value in parameters]
    samples = math.prod(sizes[: len(sizes) - len(batch)])
    groups = _Groups(Philox.from_stateless_seed(seed), means.dtype)
    result = np.empty((samples, columns[0].size), means.dtype)
    for place in range(columns[0].size):
        result[:, place] = _batch(groups, samples, *(value[place] for value in columns))
    return result.reshape(sizes)


def _gradient(
    dx: Tensor, x: Tensor, shape: Tensor, seed: Tensor, mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor
) -> tuple[None, None, Tensor, Tensor, Tensor, Tensor]:
    """See the head of the file. φ(a')/φ(z) = exp((z² - a'²) / 2), and 0 where the bound is infinite."""
    z = (x - mean) / deviation
    (from_low, before, low_counts), (from_high, until, high_counts) = (
        _end(bound, mean, deviation) for bound in (low, high)
    )
    place = (_distribution(z) - before) / (until - before)
    to_low = (1 - place) * raw.Exp((raw.Square(z) - raw.Square(from_low)) * 0.5) * low_counts
    to_high = place * raw.Exp((raw.Square(z) - raw.Square(from_high)) * 0.5) * high_counts
    return (
        None,
        None,
        _summed_like(dx, mean),
        _summed_like(dx * z, deviation),
        _summed_like(dx * to_low, low),
        _summed_like(dx * to_high, high),
    )


def _end(bound: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bound as a multiple of σ from μ, 0 for an infinite one; Φ there; and 1, or 0 for an infinite one.

    No infinity gets into the derivatives, in which it would meet a 0.
    """
    is_finite = raw.IsFinite(bound)
    distance = (raw.SelectV2(is_finite, bound, mean) - mean) / deviation
    beyond = raw.Cast(raw.Greater(bound, raw.ZerosLike(bound)), DstT=bound.dtype)
    return distance, raw.SelectV2(is_finite, _distribution(distance), beyond), raw.Cast(is_finite, DstT=bound.dtype)


def _distribution(z: Tensor) -> Tensor:
    """Φ(z), of the standard normal distribution."""
    return raw.Erfc(z * -math.sqrt(0.5)) * 0.5


def _summed_like(dy: Tensor, x: Tensor) -> Tensor:
    """dy summed over the axes along which x was broadcast to it."""
    if shapes.is_static(x.shape) and x.shape == dy.shape:
        return dy
    _, axes = raw.BroadcastGradientArgs.outputs(raw.Shape(dy), raw.Shape(x))
    return raw.Reshape(raw.Sum(dy, axes), raw.Shape(x))


def _shape(shape: Tensor, *_: Tensor) -> Shape:
    return static.shape_value(shape)


def _stateless_examples(draw: Any) -> list[Example]:
    """A small change of the parameters may change which numbers are accepted: no differences."""
    n = draw.size(1, 3)
    size, seed = np.array([draw.size(0, 3), n], np.int32), np.array([draw.size(), 7])
    mean, deviation = draw.normal(n), draw.positive(draw.pick([1, n]))
    bounds = [(-4.0, 4.0), (0.3, 0.9), (2.5, np.inf), (-np.inf, -2.0), (-0.5, 0.5)]
    low, high = draw.pick(bounds)
    return [call(size, seed, mean, deviation, mean + low, mean + high, differences=False)]


define(
    "StatelessParameterizedTruncatedNormal(shape: S, seed: Tseed, means: dtype, stddevs: dtype, minvals: dtype,"
    " maxvals: dtype; S: index, Tseed: index = int64, dtype: float16|float32|float64) -> (output: dtype)",
    shape=_shape,
    gradient=_gradient,
    kernel=_stateless,
    host=("shape", "seed"),
    dynamic=True,
    examples=_stateless_examples,
)
