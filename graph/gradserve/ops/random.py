"""Random sources: the same seeds give the same bits as TensorFlow's (see philox.py).

A stateful op goes on where its last run in the session stopped; with both seeds 0 it starts somewhere new.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops import philox
from gradserve.ops.incomplete import curvature_in_a, log_density, score
from gradserve.ops.philox import RESERVED, Philox

_PHILOX = 1
Sampler = Callable[[Philox, int, Any], Any]


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.ravel(shape))


def _of_shape(shape: Tensor, *_: Any) -> Shape:
    return static.shape_value(shape)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def stateful_generator(node: Node, state: Any, reserve: int) -> Philox:
    """The generator of a node, `reserve` counter values of which belong to this run."""
    seed, seed2 = node.attrs["seed"], node.attrs["seed2"]
    if not seed and not seed2:
        return Philox.from_seeds(secrets.randbits(63), secrets.randbits(63))
    return Philox.from_seeds(seed, seed2).skip(state.take(node.name, reserve))


# Uniform and normal numbers, stateful, stateless, and stateless by key and counter


def _source(name: str, sampler: Sampler) -> None:
    stateful = {"Uniform": "RandomUniform", "Normal": "RandomStandardNormal", "Truncated": "TruncatedNormal"}[name]
    stateless = "StatelessTruncatedNormal" if name == "Truncated" else f"StatelessRandom{name}"

    def run(xp: Any, shape: Any, *, dtype: Any, node: Node, state: Any) -> Any:
        size = _sizes(shape)
        generator = stateful_generator(node, state, _count(size) * RESERVED)
        return sampler(generator, _count(size), dtype.numpy).reshape(size)

    def run_seeded(xp: Any, shape: Any, seed: Any, *, dtype: Any) -> Any:
        size = _sizes(shape)
        return sampler(Philox.from_stateless_seed(seed), _count(size), dtype.numpy).reshape(size)

    def run_keyed(xp: Any, shape: Any, key: Any, counter: Any, alg: Any, *, dtype: Any) -> Any:
        size = _sizes(shape)
        return sampler(Philox.from_key_counter(key, counter), _count(size), dtype.numpy).reshape(size)

    size = np.array([3, 2], np.int32)
    define(
        f"{stateful}(shape: T; seed: int = 0, seed2: int = 0, dtype: floating, T: index) -> (output: dtype)",
        shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=run, host=("shape",), stateful=True,
        examples=lambda draw: [call(size, seed=3, seed2=5, dtype="float64")],
    )  # fmt: skip
    define(
        f"{stateless}(shape: T, seed: Tseed; dtype: floating = float32, T: index = int32, Tseed: index = int64)"
        " -> (output: dtype)",
        shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=run_seeded, host=("shape", "seed"), dynamic=True,
        examples=lambda draw: [call(size, np.array([3, 5]), dtype="float64")],
    )  # fmt: skip
    define(
        f"{stateless}V2(shape: Tshape, key: uint64, counter: uint64, alg: int32; dtype: floating = float32,"
        " Tshape: index = int32) -> (output: dtype)",
        shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=run_keyed, host=("shape", "key", "counter", "alg"),
        dynamic=True,
        examples=lambda draw: [
            call(size, np.array([3], np.uint64), np.array([0, 5], np.uint64), np.int32(_PHILOX), dtype="float64")
        ],
    )  # fmt: skip


_source("Uniform", philox.uniform)
_source("Normal", philox.normal)
_source("Truncated", philox.truncated_normal)


# Integers


def _random_integers(xp: Any, shape: Any, low: Any, high: Any, *, node: Node, state: Any, Tout: Any) -> Any:
    size = _sizes(shape)
    generator = stateful_generator(node, state, _count(size) * RESERVED)
    return philox.integers(generator, _count(size), low, high, Tout.numpy).reshape(size)


def _seeded_integers(xp: Any, shape: Any, seed: Any, low: Any, high: Any, *, dtype: Any) -> Any:
    size = _sizes(shape)
    return philox.integers(Philox.from_stateless_seed(seed), _count(size), low, high, dtype.numpy).reshape(size)


def _keyed_integers(xp: Any, shape: Any, key: Any, counter: Any, alg: Any, low: Any, high: Any, *, dtype: Any) -> Any:
    size = _sizes(shape)
    generator = Philox.from_key_counter(key, counter)
    return philox.integers(generator, _count(size), low, high, dtype.numpy).reshape(size)


def _seeded_full(xp: Any, shape: Any, seed: Any, *, dtype: Any) -> Any:
    size = _sizes(shape)
    return philox.full_integers(Philox.from_stateless_seed(seed), _count(size), dtype.numpy).reshape(size)


def _keyed_full(xp: Any, shape: Any, key: Any, counter: Any, alg: Any, *, dtype: Any) -> Any:
    size = _sizes(shape)
    return philox.full_integers(Philox.from_key_counter(key, counter), _count(size), dtype.numpy).reshape(size)


_WHOLE = "int32|int64|uint32|uint64"
define(
    "RandomUniformInt(shape: T, minval: Tout, maxval: Tout; seed: int = 0, seed2: int = 0, Tout: index, T: index)"
    " -> (output: Tout)",
    shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=_random_integers, host=("shape", "minval", "maxval"),
    stateful=True,
    examples=lambda draw: [call(np.array([4], np.int32), np.int32(-2), np.int32(5), seed=1, seed2=2)],
)  # fmt: skip
define(
    "StatelessRandomUniformInt(shape: T, seed: Tseed, minval: dtype, maxval: dtype; dtype: index, T: index,"
    " Tseed: index = int64) -> (output: dtype)",
    shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=_seeded_integers, dynamic=True,
    host=("shape", "seed", "minval", "maxval"),
    examples=lambda draw: [call(np.array([4], np.int32), np.array([1, 2]), np.int32(-2), np.int32(5))],
)  # fmt: skip
define(
    "StatelessRandomUniformIntV2(shape: Tshape, key: uint64, counter: uint64, alg: int32, minval: dtype, maxval: dtype;"
    f" dtype: {_WHOLE}, Tshape: index = int32) -> (output: dtype)",
    shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=_keyed_integers, dynamic=True,
    host=("shape", "key", "counter", "alg", "minval", "maxval"),
)  # fmt: skip
define(
    f"StatelessRandomUniformFullInt(shape: T, seed: Tseed; dtype: {_WHOLE} = uint64, T: index = int32,"
    f" Tseed: {_WHOLE} = int64) -> (output: dtype)",
    shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=_seeded_full, host=("shape", "seed"), dynamic=True,
    examples=lambda draw: [call(np.array([4], np.int32), np.array([1, 2]))],
)  # fmt: skip
define(
    "StatelessRandomUniformFullIntV2(shape: Tshape, key: uint64, counter: uint64, alg: int32;"
    f" dtype: {_WHOLE} = uint64, Tshape: index = int32) -> (output: dtype)",
    shape=_of_shape, gradient=NOT_DIFFERENTIABLE, kernel=_keyed_full, dynamic=True,
    host=("shape", "key", "counter", "alg"),
)  # fmt: skip


# Keys and counters of stateless seeds


def _key_counter(xp: Any, seed: Any) -> tuple[Any, Any]:
    generator = Philox.from_stateless_seed(seed)
    words = [generator.counter & (2**64 - 1), generator.counter >> 64]
    return np.array([generator.key], np.uint64), np.array(words, np.uint64)


define(
    "StatelessRandomGetKeyCounter(seed: Tseed; Tseed: index = int64) -> (key: uint64, counter: uint64)",
    shape=lambda seed: [(1,), (2,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_key_counter,
    host=("seed",),
    examples=lambda draw: [call(np.array([1, 2]))],
)
define(
    "StatelessRandomGetKeyCounterAlg(seed: Tseed; Tseed: index = int64) -> (key: uint64, counter: uint64, alg: int32)",
    shape=lambda seed: [(1,), (2,), ()],
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, seed: (*_key_counter(xp, seed), np.int32(_PHILOX)),
    host=("seed",),
    examples=lambda draw: [call(np.array([1, 2]))],
)
define(
    "StatelessRandomGetAlg() -> (alg: int32)",
    shape=lambda: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp: np.int32(_PHILOX),
    stateful=True,
)


# Shuffling, and drawing classes


def _shuffle(xp: Any, value: Any, *, node: Node, state: Any) -> Any:
    count = value.shape[0] if value.ndim else 0
    if count < 2:
        return value
    generator = stateful_generator(node, state, -(-count // 4))
    return value[philox.shuffle(generator, count)]


define(
    "RandomShuffle(value: T; seed: int = 0, seed2: int = 0, T: type) -> (output: T)",
    shape=lambda value: value.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_shuffle,
    stateful=True,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(5, 2), seed=1, seed2=2)],
)


def _classes(generator: Philox, logits: Any, samples: int, kind: Any) -> Any:
    """For each row of logits, classes drawn with probability softmax(logits): a uniform number finds its place in
    the running sum. Of a row's logits only finite ones count."""
    wide = logits.astype(np.float64)
    finite = np.isfinite(wide)
    greatest = np.max(wide, axis=1, keepdims=True, initial=-np.inf, where=finite)
    sums = np.cumsum(np.where(finite, np.exp(wide - greatest), 0), axis=1)
    draws = philox.uniform(generator, samples * len(sums), np.float64).reshape(len(sums), samples)
    rows = [np.searchsorted(row, draw * row[-1], side="right") for row, draw in zip(sums, draws, strict=True)]
    return np.stack(rows).astype(kind) if rows else np.zeros((0, samples), kind)


def _multinomial(xp: Any, logits: Any, samples: Any, *, node: Node, state: Any, output_dtype: Any) -> Any:
    reserve = len(logits) * -(-int(samples) // 4) * 4 * 2 * RESERVED  # two words a number
    return _classes(stateful_generator(node, state, reserve), logits, int(samples), output_dtype.numpy)


def _classes_shape(logits: Tensor, samples: Tensor, *_: Any) -> Shape:
    return (None if logits.shape is None else logits.shape[0], static.scalar(samples))


define(
    "Multinomial(logits: T, num_samples: int32; seed: int = 0, seed2: int = 0, T: real, output_dtype: index = int64)"
    " -> (output: output_dtype)",
    shape=_classes_shape, gradient=NOT_DIFFERENTIABLE, kernel=_multinomial, host=("num_samples",), stateful=True,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(2, 3), np.int32(4), seed=1, seed2=2)],
)  # fmt: skip
define(
    "StatelessMultinomial(logits: T, num_samples: int32, seed: Tseed; T: real, Tseed: index = int64,"
    " output_dtype: index = int64) -> (output: output_dtype)",
    shape=_classes_shape, gradient=NOT_DIFFERENTIABLE, host=("num_samples", "seed"), dynamic=True,
    kernel=lambda xp, logits, samples, seed, *, output_dtype: _classes(
        Philox.from_stateless_seed(seed), logits, int(samples), output_dtype.numpy
    ),
    examples=lambda draw: [call(draw.normal(2, 3), np.int32(4), np.array([1, 2]))],
)  # fmt: skip


# Gamma numbers, differentiable in their shape parameter


def _sample_gradient(xp: Any, alpha: Any, sample: Any) -> Any:
    """∂x/∂α of a gamma number x at a fixed place of its distribution: -(∂P/∂α) / p.

    Figurnov, Mohamed and Mnih 2018. With P = Σ xᵅ⁺ⁿ e⁻ˣ / Γ(α+n+1) the quotient is Σ r_n (ψ(α+n+1) - log x),
    r_n = Π x / (α+k).
    """
    from scipy.special import digamma

    a, x = np.broadcast_arrays(np.asarray(alpha, np.float64), np.asarray(sample, np.float64))
    total = np.zeros_like(x)
    ratio = x / a
    log = np.log(x)
    for n in range(10_000):
        term = ratio * (digamma(a + n + 1) - log)
        total = total + term
        ratio = ratio * x / (a + n + 1)
        if not (np.abs(term) > 1e-17 * np.abs(total)).any() and n > np.max(x - a, initial=0):
            break
    return total.astype(np.asarray(sample).dtype)


def _sample_curvature(dy: Tensor, y: Tensor, alpha: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """y = -P_α / p with P the distribution of x and p its density, so y_x = -s - y (log p)_x and y_α = -P_αα / p - y s.

    Here s = (log p)_α = log x - ψ(α) and (log p)_x = (α - 1) / x - 1.
    """
    rate = score(alpha, sample)
    d_sample = -rate - y * ((alpha - 1) / sample - 1)
    d_alpha = -curvature_in_a(alpha, sample, log_density(alpha, sample)) - y * rate
    return dy * d_alpha, dy * d_sample


define(
    "RandomGammaGrad(alpha: T, sample: T; T: float32|float64) -> (output: T)",
    shape=lambda alpha, sample: sample.shape,
    gradient=_sample_curvature,
    kernel=_sample_gradient,
    dynamic=True,
    examples=lambda draw: [call(draw.positive(n := draw.size()), draw.positive(n))],
)


def _gamma_gradient(dy: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
    """dα: the samples of each α stand along the leading axes."""
    per_sample = dy * raw.RandomGammaGrad(raw.BroadcastTo(alpha, raw.Shape(y)), y)
    lead = raw.Range(0, raw.Rank(y) - raw.Rank(alpha), 1)
    return raw.Sum(per_sample, lead)


def _gamma(generator: Philox, samples: int, alpha: Any) -> Any:
    values = philox.gamma(generator, np.ravel(alpha), samples)
    return values.astype(alpha.dtype)


def _random_gamma(xp: Any, shape: Any, alpha: Any, *, node: Node, state: Any) -> Any:
    size = _sizes(shape)
    generator = stateful_generator(node, state, _count(size) * alpha.size * RESERVED)
    return _gamma(generator, _count(size), alpha).reshape((*size, *alpha.shape))


def _gamma_of_shape(generator: Philox, shape: Any, alpha: Any) -> Any:
    size = _sizes(shape)
    samples = _count(size) // max(alpha.size, 1)
    return _gamma(generator, samples, alpha).reshape(size)


def _joined(shape: Tensor, alpha: Tensor) -> Shape:
    lead = static.shape_value(shape)
    return None if lead is None or alpha.shape is None else (*lead, *alpha.shape)


define(
    "RandomGamma(shape: S, alpha: T; seed: int = 0, seed2: int = 0, S: index, T: float16|float32|float64) -> (output: T)",
    shape=_joined,
    gradient=lambda dy, y, shape, alpha: (None, _gamma_gradient(dy, y, alpha)),
    kernel=_random_gamma,
    host=("shape",),
    stateful=True,
    dynamic=True,
)
define(
    "StatelessRandomGammaV2(shape: T, seed: Tseed, alpha: dtype; dtype: float16|float32|float64, T: index,"
    " Tseed: index = int64) -> (output: dtype)",
    shape=_of_shape,
    gradient=lambda dy, y, shape, seed, alpha: (None, None, _gamma_gradient(dy, y, alpha)),
    kernel=lambda xp, shape, seed, alpha: _gamma_of_shape(Philox.from_stateless_seed(seed), shape, alpha),
    host=("shape", "seed"),
    dynamic=True,
    examples=lambda draw: [call(np.array([3, 2], np.int32), np.array([1, 2]), draw.above_one(2), differences=False)],
)
define(
    "StatelessRandomGammaV3(shape: shape_dtype, key: uint64, counter: uint64, alg: int32, alpha: dtype;"
    " dtype: float16|float32|float64, shape_dtype: index = int32) -> (output: dtype)",
    shape=_of_shape,
    gradient=lambda dy, y, shape, key, counter, alg, alpha: (None, None, None, None, _gamma_gradient(dy, y, alpha)),
    kernel=lambda xp, shape, key, counter, alg, alpha: _gamma_of_shape(
        Philox.from_key_counter(key, counter), shape, alpha
    ),
    host=("shape", "key", "counter", "alg"),
    dynamic=True,
)
