"""TensorFlow's random numbers: the counter-based generator Philox 4x32-10 and what is made of its bits.

Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". A generator is a key and a 128-bit
counter; each counter value gives four 32-bit words. The words become numbers just as TensorFlow's CPU kernels make
them, so that the same seeds give the same bits. All of it runs on NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_MASK = np.uint64(0xFFFFFFFF)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
RESERVED = 256
"""Counter values that a stateful op sets aside for each number that it gives."""


@dataclass(frozen=True, slots=True)
class Philox:
    """A generator.

    Attributes:
        key: 64 bits.
        counter: 128 bits.
    """

    key: int
    counter: int

    @staticmethod
    def from_seeds(seed: int, seed2: int) -> Philox:
        """The generator of a stateful op."""
        return Philox(seed & (2**64 - 1), (seed2 & (2**64 - 1)) << 64)

    @staticmethod
    def from_stateless_seed(seed: Any) -> Philox:
        """The generator of a stateless op: the two seeds are scrambled into key and counter."""
        first, second = (int(entry) & (2**64 - 1) for entry in np.ravel(seed))
        mix = [int(word) for word in Philox(0x02461E293EC8F720, first | second << 64).blocks(0, 1)[0]]
        return Philox(mix[0] | mix[1] << 32, (mix[2] | mix[3] << 32) << 64)

    @staticmethod
    def from_key_counter(key: Any, counter: Any) -> Philox:
        """The generator of a V2 op: a key of one and a counter of two 64-bit words."""
        low, high = (int(word) for word in np.ravel(counter)[:2])
        return Philox(int(np.ravel(key)[0]), low | high << 64)

    def skip(self, count: int) -> Philox:
        """The generator `count` counter values further on."""
        return Philox(self.key, (self.counter + count) & (2**128 - 1))

    def blocks(self, start: int, count: int, stride: int = 1) -> Array:
        """The four words (uint32) at `count` counter values, `stride` apart, from `start` on: [count, 4]."""
        first = self.counter + start
        if (first & (2**64 - 1)) + count * stride < 2**64:
            low = np.uint64(first & (2**64 - 1)) + np.arange(count, dtype=np.uint64) * np.uint64(stride)
            high = np.full(count, (first >> 64) & (2**64 - 1), np.uint64)
        else:
            values = [(first + k * stride) & (2**128 - 1) for k in range(count)]
            low = np.array([value & (2**64 - 1) for value in values], np.uint64)
            high = np.array([value >> 64 for value in values], np.uint64)
        shift = np.uint64(32)
        words = [low & _MASK, low >> shift, high & _MASK, high >> shift]
        keys = [self.key & 0xFFFFFFFF, self.key >> 32]
        for _ in range(10):
            a, b = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
            words = [
                (b >> shift) ^ words[1] ^ np.uint64(keys[0]), b & _MASK,
                (a >> shift) ^ words[3] ^ np.uint64(keys[1]), a & _MASK,
            ]  # fmt: skip
            keys = [(key + weyl) & 0xFFFFFFFF for key, weyl in zip(keys, _WEYL, strict=True)]
        return np.stack(words, axis=-1).astype(np.uint32)

    def words(self, count: int) -> Array:
        """The first `count` words."""
        return self.blocks(0, -(-count // 4)).reshape(-1)[:count]


# Numbers from words


def unit_floats(words: Array) -> Array:
    """Floats (float32) in [0, 1): 23 bits of a word each."""
    return ((words & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)


def unit_doubles(high: Array, low: Array) -> Array:
    """Doubles in [0, 1): 20 bits of the first word and 32 of the second."""
    bits = ((high.astype(np.uint64) & np.uint64(0xFFFFF)) << np.uint64(32)) | low.astype(np.uint64)
    return (bits | np.uint64(0x3FF0000000000000)).view(np.float64) - 1.0


def _unit_halves(words: Array) -> Array:
    bits = (words & np.uint32(0x3FF)).astype(np.uint16) | np.uint16(15 << 10)
    return bits.view(np.float16) - np.float16(1)


def _unit_brains(words: Array, kind: Any) -> Array:
    bits = (words & np.uint32(0x7F)).astype(np.uint16) | np.uint16(127 << 7)
    return (bits.view(kind).astype(np.float32) - 1).astype(kind)


def uniform(generator: Philox, count: int, kind: Any) -> Array:
    """Uniform numbers in [0, 1)."""
    kind = np.dtype(kind)
    if kind == np.float64:
        pairs = generator.words(2 * count).reshape(-1, 2)
        return unit_doubles(pairs[:, 0], pairs[:, 1])
    words = generator.words(count)
    if kind == np.float32:
        return unit_floats(words)
    return _unit_halves(words) if kind == np.float16 else _unit_brains(words, kind)


def _box_muller(u: Array, v: Array) -> tuple[Array, Array]:
    """Two normal numbers from two uniform ones.   Box and Muller 1958."""
    kind = u.dtype.type
    radius = np.sqrt(kind(-2) * np.log(np.maximum(u, kind(1.0e-7))))
    angle = kind(2 * np.pi) * v
    return np.sin(angle) * radius, np.cos(angle) * radius


def normal(generator: Philox, count: int, kind: Any) -> Array:
    """Standard normal numbers; 16-bit ones are made in float32."""
    kind = np.dtype(kind)
    if kind == np.float64:
        words = generator.blocks(0, -(-count // 2))
        pair = _box_muller(unit_doubles(words[:, 0], words[:, 1]), unit_doubles(words[:, 2], words[:, 3]))
    else:
        words = generator.words(2 * -(-count // 2)).reshape(-1, 2)
        pair = _box_muller(unit_floats(words[:, 0]), unit_floats(words[:, 1]))
    return np.stack(pair, axis=-1).reshape(-1)[:count].astype(kind)


def truncated_normal(generator: Philox, count: int, kind: Any) -> Array:
    """Standard normal numbers of absolute value below 2: others are thrown away.

    Each group of numbers (2 for float64, else 4) has its own stretch of the generator to draw from.
    """
    kind = np.dtype(kind)
    wide = kind == np.float64
    size = 2 if wide else 4
    groups = -(-count // size)
    stride = size * RESERVED // 4
    result = np.zeros((groups, size), np.float64 if wide else np.float32)
    filled = np.zeros(groups, np.int64)
    step = 0
    while groups and (filled < size).any():
        words = generator.blocks(step, groups, stride)
        if wide:
            pairs = [_box_muller(unit_doubles(words[:, 0], words[:, 1]), unit_doubles(words[:, 2], words[:, 3]))]
        else:
            floats = unit_floats(words)
            pairs = [_box_muller(floats[:, 0], floats[:, 1]), _box_muller(floats[:, 2], floats[:, 3])]
        for candidate in (value for pair in pairs for value in pair):
            taken = np.flatnonzero((np.abs(candidate) < 2) & (filled < size))
            result[taken, filled[taken]] = candidate[taken]
            filled[taken] += 1
        step += 1
    return result.reshape(-1)[:count].astype(kind)


def full_integers(generator: Philox, count: int, kind: Any) -> Array:
    """Integers of any bits."""
    kind = np.dtype(kind)
    if kind.itemsize == 8:
        pairs = generator.words(2 * count).reshape(-1, 2).astype(np.uint64)
        return (pairs[:, 0] | pairs[:, 1] << np.uint64(32)).view(kind)
    return generator.words(count).view(kind)


def integers(generator: Philox, count: int, low: Any, high: Any, kind: Any) -> Array:
    """Integers in [low, high)."""
    kind = np.dtype(kind)
    unsigned = np.dtype(f"u{kind.itemsize}")
    raw = full_integers(generator, count, unsigned)
    span = unsigned.type((int(high) - int(low)) % 2 ** (8 * kind.itemsize))
    return ((raw % span) + np.array(low, kind).view(unsigned)).view(kind)


def shuffle(generator: Philox, count: int) -> Array:
    """A permutation of `count` things: each place in turn is swapped with itself or a later one."""
    order = np.arange(count)
    words = generator.words(max(count - 1, 0))
    for k in range(count - 1):
        other = k + int(words[k]) % (count - k)
        order[k], order[other] = order[other], order[k]
    return order


class Stream:
    """Numbers one at a time from a generator, the last of each pair first, as TensorFlow's gamma sampler takes them."""

    def __init__(self, generator: Philox) -> None:
        self._words = generator.blocks(0, RESERVED)
        self._next = 0
        self._normals: list[float] = []
        self._uniforms: list[float] = []

    def _block(self) -> Array:
        block = self._words[self._next][None]
        self._next += 1
        return block

    def normal(self) -> float:
        """The next standard normal number."""
        if not self._normals:
            words = self._block()
            pair = _box_muller(unit_doubles(words[:, 0], words[:, 1]), unit_doubles(words[:, 2], words[:, 3]))
            self._normals = [float(value[0]) for value in pair]
        return self._normals.pop()

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        if not self._uniforms:
            words = self._block()
            self._uniforms = unit_doubles(words[0, ::2], words[0, 1::2]).tolist()
        return self._uniforms.pop()


def gamma(generator: Philox, alphas: Array, samples: int) -> Array:
    """Gamma numbers (double), [samples, alphas]: `samples` for each shape parameter alpha.

    Marsaglia and Tsang 2000, with alpha + 1 and a power of a uniform number where alpha < 1.
    """
    result = np.empty((samples, alphas.size))
    for column, alpha in enumerate(alphas.astype(np.float64).tolist()):
        for row in range(samples):
            stream = Stream(generator.skip(RESERVED * (column * samples + row)))
            result[row, column] = -np.log1p(-stream.uniform()) if alpha == 1 else _gamma(stream, alpha)
    return result


def _gamma(stream: Stream, alpha: float) -> float:
    d = alpha + (2 / 3 if alpha < 1 else -1 / 3)
    c = 1 / 3 / np.sqrt(d)
    while True:
        x = stream.normal()
        v = (1 + c * x) ** 3
        if v <= 0:
            continue
        u = stream.uniform()
        if u < 1 - 0.0331 * x**4 or np.log(u) < 0.5 * x * x + d * (1 - v + np.log(v)):
            power = 1 / alpha if alpha else np.inf  # an alpha of 0 has all its weight at 0
            return float(d * v * (stream.uniform() ** power if alpha < 1 else 1))
