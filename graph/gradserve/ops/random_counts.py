"""Random counts: Poisson and binomial numbers, from the same uniform numbers as TensorFlow's.

Every number has its own stretch of the generator. Small means are sampled by multiplying uniform (Poisson) or adding
geometric numbers (binomial); larger ones by transformed rejection   (Hörmann 1993, PTRS and BTRS).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops.generators import taken
from gradserve.ops.philox import RESERVED, Philox, Stream
from gradserve.ops.random import stateful_generator

Array = np.ndarray[Any, Any]
_INVERSION_RESERVED = 42


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.ravel(shape))


# Poisson


def _poisson(stream: Stream, rate: float, largest: float) -> float:
    """A Poisson number that is not over `largest`."""
    if rate < 10:
        limit, product, count = math.exp(-rate), 1.0, 0
        while True:
            product *= stream.uniform()
            if product <= limit and count <= largest:
                return count
            count += 1
    log_rate = math.log(rate)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    while True:
        u = stream.uniform() - 0.5
        v = stream.uniform()
        edge = 0.5 - abs(u)
        k = math.floor((2 * a / edge + b) * u + rate + 0.43) if edge else math.inf
        if k > largest:
            continue
        if edge >= 0.07 and v <= 0.9277 - 3.6224 / (b - 2):
            return k
        if k < 0 or (edge < 0.013 and v > edge):
            continue
        if math.log(v * inverse_alpha / (a / (edge * edge) + b)) <= -rate + k * log_rate - math.lgamma(k + 1):
            return k


def _poisson_numbers(generator: Philox, rates: Array, samples: int, kind: Any) -> Array:
    """[samples, rates]."""
    if not (rates >= 0).all() or not np.isfinite(rates).all():
        raise InvalidArgument("The rates of Poisson numbers must be finite and not negative.")
    kind = np.dtype(kind)
    largest = float(np.iinfo(kind).max) if kind.kind == "i" else float(np.finfo(kind).max)
    result = np.empty((samples, rates.size), kind)
    for column, rate in enumerate(rates.astype(np.float64).ravel().tolist()):
        for row in range(samples):
            stream = Stream(generator.skip(RESERVED * (column * samples + row)))
            result[row, column] = _poisson(stream, rate, largest)
    return result


def _stateful_poisson(xp: Any, shape: Any, rates: Any, *, dtype: Any, node: Node, state: Any) -> Any:
    sizes = _sizes(shape)
    samples = math.prod(sizes)
    generator = stateful_generator(node, state, samples * rates.size * RESERVED)
    return _poisson_numbers(generator, rates, samples, dtype.numpy).reshape((*sizes, *rates.shape))


def _leading(sizes: tuple[int, ...], batch: tuple[int, ...], name: str) -> int:
    """How many numbers there are for each entry of the parameters, which must be the last axes of the shape."""
    if batch != sizes[len(sizes) - len(batch) :]:
        raise InvalidArgument(f"{name}: parameters of shape {batch} are no last part of the shape {sizes}.")
    return math.prod(sizes[: len(sizes) - len(batch)])


def _stateless_poisson(xp: Any, shape: Any, seed: Any, rates: Any, *, dtype: Any) -> Any:
    sizes = _sizes(shape)
    samples = _leading(sizes, rates.shape, "StatelessRandomPoisson")
    return _poisson_numbers(Philox.from_stateless_seed(seed), rates, samples, dtype.numpy).reshape(sizes)


def _with_rates(shape: Tensor, rates: Tensor) -> Shape:
    lead = static.shape_value(shape)
    return None if lead is None or rates.shape is None else (*lead, *rates.shape)


_RATES = np.array([0.5, 4.0, 30.0])
_SIZE = np.array([2], np.int32)
define(
    "RandomPoisson(shape: S, rate: dtype; seed: int = 0, seed2: int = 0, S: index, dtype: float16|float32|float64)"
    " -> (output: dtype)",
    shape=_with_rates, gradient=NOT_DIFFERENTIABLE, kernel=_stateful_poisson, host=("shape",), stateful=True,
    dynamic=True, examples=lambda draw: [call(_SIZE, _RATES, seed=3, seed2=5)],
)  # fmt: skip
define(
    "RandomPoissonV2(shape: S, rate: R; seed: int = 0, seed2: int = 0, S: index,"
    " R: float16|float32|float64|int32|int64 = float64, dtype: float16|float32|float64|int32|int64 = int64)"
    " -> (output: dtype)",
    shape=_with_rates, gradient=NOT_DIFFERENTIABLE, kernel=_stateful_poisson, host=("shape",), stateful=True,
    dynamic=True, examples=lambda draw: [call(_SIZE, _RATES, seed=3, seed2=5)],
)  # fmt: skip
define(
    "StatelessRandomPoisson(shape: T, seed: Tseed, lam: Rtype; Rtype: float16|float32|float64|int32|int64,"
    " dtype: float16|float32|float64|int32|int64, T: index, Tseed: index = int64) -> (output: dtype)",
    shape=lambda shape, *_: static.shape_value(shape), gradient=NOT_DIFFERENTIABLE, kernel=_stateless_poisson,
    host=("shape", "seed"), dynamic=True,
    examples=lambda draw: [call(np.array([4, 3], np.int32), np.array([draw.size(), 5]), _RATES, dtype="int64")],
)  # fmt: skip


# Binomial

_TAILS = (
    0.0810614667953272, 0.0413406959554092, 0.0276779256849983, 0.02079067210376509, 0.0166446911898211,
    0.0138761288230707, 0.0118967099458917, 0.0104112652619720, 0.00925546218271273, 0.00833056343336287,
)  # fmt: skip


def _stirling_tail(k: float) -> float:
    """What Stirling's formula for log k! leaves out."""
    if k <= 9:
        return _TAILS[int(k)]
    square = (k + 1) ** 2
    return (1 / 12 - (1 / 360 - 1 / 1260 / square) / square) / (k + 1)


def _by_inversion(stream: Stream, count: float, chance: float) -> int:
    total, hits = 0.0, 0
    while True:
        u = stream.uniform()
        total += math.ceil(math.log(u) / math.log1p(-chance)) if u else math.inf
        if total > count:
            return hits
        hits += 1


def _by_rejection(stream: Stream, count: float, chance: float) -> float:
    deviation = math.sqrt(count * chance * (1 - chance))
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * chance
    odds, alpha = chance / (1 - chance), (2.83 + 5.1 / b) * deviation
    mode = math.floor((count + 1) * chance)
    while True:
        u = stream.uniform()
        v = stream.uniform()
        u -= 0.5
        edge = 0.5 - abs(u)
        k = math.floor((2 * a / edge + b) * u + count * chance + 0.5) if edge else -1
        if edge >= 0.07 and v <= 0.92 - 4.2 / b:
            return k
        if k < 0 or k > count or v == 0:
            continue
        bound = (
            (mode + 0.5) * math.log((mode + 1) / (odds * (count - mode + 1)))
            + (count + 1) * math.log((count - mode + 1) / (count - k + 1))
            + (k + 0.5) * math.log(odds * (count - k + 1) / (k + 1))
            + _stirling_tail(mode) + _stirling_tail(count - mode) - _stirling_tail(k) - _stirling_tail(count - k)
        )  # fmt: skip
        if math.log(v * alpha / (a / (edge * edge) + b)) <= bound:
            return k


def _binomial(generator: Philox, number: int, count: float, chance: float) -> float:
    """The `number`-th number of the generator; the rarer of hit and miss is sampled."""
    if count <= 0 or chance <= 0:
        return 0
    if chance >= 1:
        return count
    if math.isnan(chance):
        return math.nan
    rare = chance if chance <= 0.5 else 1 - chance
    if count * rare >= 10:
        hits = _by_rejection(Stream(generator.skip(RESERVED * number)), count, rare)
    else:
        hits = _by_inversion(Stream(generator.skip(_INVERSION_RESERVED * number)), count, rare)
    return hits if chance <= 0.5 else count - hits


def _binomial_numbers(
    generator: Philox, sizes: tuple[int, ...], counts: Array, chances: Array, samples: int, kind: Any
) -> Array:
    """Numbers of this shape, which ends with that of the parameters."""
    result = np.empty((samples, counts.size), kind)
    pairs = zip(counts.astype(np.float64).ravel().tolist(), chances.astype(np.float64).ravel().tolist(), strict=True)
    for column, (count, chance) in enumerate(pairs):
        for row in range(samples):
            result[row, column] = _binomial(generator, column * samples + row, count, chance)
    return result.reshape(sizes)


def _stateless_binomial(xp: Any, shape: Any, seed: Any, counts: Any, chances: Any, *, dtype: Any) -> Any:
    sizes = _sizes(shape)
    counts, chances = np.broadcast_arrays(counts, chances)
    samples = _leading(sizes, counts.shape, "StatelessRandomBinomial")
    generator = Philox.from_stateless_seed(seed)
    return _binomial_numbers(generator, sizes, counts, chances, samples, dtype.numpy)


def _stateful_binomial(
    xp: Any, handle: Any, algorithm: Any, shape: Any, counts: Any, chances: Any, *, dtype: Any, node: Node, state: Any
) -> Any:
    sizes = _sizes(shape)
    counts, chances = np.broadcast_arrays(counts, chances)
    samples = _leading(sizes, counts.shape, "StatefulRandomBinomial")
    words = taken(handle, algorithm, counts.size * 200 * (samples + 3) // 4, node, state).view(np.uint64)
    generator = Philox.from_key_counter(words[2:], words[:2])
    return _binomial_numbers(generator, sizes, counts, chances, samples, dtype.numpy)


define(
    "StatelessRandomBinomial(shape: S, seed: Tseed, counts: T, probs: T; S: index, Tseed: index = int64,"
    " T: float16|float32|float64|int32|int64 = float64, dtype: float16|float32|float64|int32|int64 = int64)"
    " -> (output: dtype)",
    shape=lambda shape, *_: static.shape_value(shape), gradient=NOT_DIFFERENTIABLE, kernel=_stateless_binomial,
    host=("shape", "seed"), dynamic=True,
    examples=lambda draw: [
        call(np.array([4, 3], np.int32), np.array([draw.size(), 5]), np.array([5.0, 60.0, 100.0]), np.array(chance))
        for chance in ([0.3, 0.4, 0.9], 0.8)
    ],
)  # fmt: skip
define(
    "StatefulRandomBinomial(resource: resource, algorithm: int64, shape: S, counts: T, probs: T; S: index,"
    " T: float16|float32|float64|int32|int64 = float64, dtype: float16|float32|float64|int32|int64 = int64)"
    " -> (output: dtype)",
    shape=lambda handle, algorithm, shape, *_: static.shape_value(shape),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_stateful_binomial,
    host=("algorithm", "shape"),
    stateful=True,
    dynamic=True,
)
