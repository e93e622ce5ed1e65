"""Random order and place: shuffles by key and counter, places in an order that is never made, and crops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, same_shape
from gradserve.graph.shapes import Shape
from gradserve.ops import philox
from gradserve.ops.philox import Philox
from gradserve.ops.random import stateful_generator

_PHILOX = 1


def _crop(xp: Any, image: Any, size: Any, *, node: Node, state: Any) -> Any:
    """A window [height, width] at a random place of an image [h, w, channels]."""
    height, width = (int(length) for length in np.ravel(size))
    if height > image.shape[0] or width > image.shape[1]:
        raise InvalidArgument(
            f"{node.name}: a crop of {height} x {width} does not fit into {image.shape}.", node=node.name
        )
    words = stateful_generator(node, state, 1).words(2).tolist()
    top, left = words[0] % (image.shape[0] - height + 1), words[1] % (image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


define(
    "RandomCrop(image: T, size: int64; T: float32|float64|int16|int32|int64|int8|uint8, seed: int = 0, seed2: int = 0)"
    " -> (output: T)",
    shape=lambda image, size: (
        *(static.shape_value(size) or (None, None)),
        None if image.shape is None else image.shape[2],
    ),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_crop,
    host=("size",),
    stateful=True,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(4, 5, 2), np.array([draw.size(1, 4), 3]), seed=draw.size(1), seed2=2)],
)


def _shuffle(xp: Any, value: Any, key: Any, counter: Any, alg: Any) -> Any:
    return value[philox.shuffle(Philox.from_key_counter(key, counter), len(value))]


define(
    "StatelessShuffle(value: T, key: uint64, counter: uint64, alg: int32; T: type) -> (output: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_shuffle,
    host=("key", "counter", "alg"),
    dynamic=True,
    examples=lambda draw: [
        call(draw.normal(draw.size(), 2), np.array([3], np.uint64), np.array([0, 5], np.uint64), np.int32(_PHILOX))
    ],
)

# Places in a random order that is never made

_SMALLEST_BLOCK = 16
_CONSTANT, _SEQUENCE = 0xFFFFFFFC, 0x7369F885192C0EF5


def _index_shuffled(index: int, seed: list[int], largest: int, rounds: int) -> int:
    """Where `index` comes to stand among 0 to `largest`: Simon's cipher, until its result lies in that range.

    Beaulieu and others 2013, "The Simon and Speck families"; Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains" (cycle walking). Blocks have an even number of bits, 16 at least; rounds are few, as no secret is kept.
    """
    if largest == 0:
        return 0
    bits = math.ceil(math.log2(largest))
    half = max(bits + bits % 2, _SMALLEST_BLOCK) // 2
    mask = (1 << half) - 1

    def turned(word: int, count: int) -> int:
        return (word << count | word >> (half - count)) & mask

    def scrambled(word: int) -> int:
        return turned(word, 1) & turned(word, 8 % half) ^ turned(word, 2)

    keys = [word & mask for word in seed]
    for k in range(3, rounds):
        bit = (_SEQUENCE & mask) >> (k - 3) & 1
        keys.append(
            (_CONSTANT & mask) ^ bit ^ keys[k - 3] ^ turned(keys[k - 1], half - 3) ^ turned(keys[k - 1], half - 4)
        )
    while True:
        left, right = index >> half & mask, index & mask
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            left ^= scrambled(right) ^ first
            right ^= scrambled(left) ^ second
        index = left << half | right
        if index <= largest:
            return index


def _index_shuffle(xp: Any, index: Any, seed: Any, largest: Any, *, rounds: int, dtype: Any, node: Node) -> Any:
    if rounds < 4 or rounds % 2:
        raise InvalidArgument(f"{node.name}: rounds must be even and 4 at least, not {rounds}.", node=node.name)
    count = max(index.size, largest.size, seed.size // 3)
    sizes = {index.shape, largest.shape, seed.shape[:-1]} - {()}
    if seed.shape[-1:] != (3,) or sizes - {(count,)} or (index > largest).any() or (index < 0).any():
        raise InvalidArgument(
            f"{node.name}: wants an index of 0 to max_index and a seed of 3 integers, each once or {count} times; the"
            f" shapes are {index.shape}, {seed.shape} and {largest.shape}.",
            node=node.name,
        )
    rows = zip(
        np.broadcast_to(index, (count,)).tolist(),
        (np.broadcast_to(seed, (count, 3)).astype(np.uint64) & np.uint64(0xFFFFFFFF)).tolist(),
        np.broadcast_to(largest, (count,)).tolist(),
        strict=True,
    )
    places = [_index_shuffled(*row, rounds) for row in rows]
    return np.array(places, dtype.numpy).reshape((count,) if sizes else ())


def _index_shape(index: Tensor, seed: Tensor, largest: Tensor) -> Shape:
    known = (index.shape, None if seed.shape is None else seed.shape[:-1], largest.shape)
    return None if None in known else next((shape for shape in known if shape), ())


define(
    "RandomIndexShuffle(index: dtype, seed: Tseed, max_index: dtype; rounds: int = 4,"
    " dtype: int32|int64|uint32|uint64, Tseed: int32|int64|uint32|uint64) -> (output: dtype)",
    shape=_index_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_index_shuffle,
    host=("seed",),
    dynamic=True,
    examples=lambda draw: [
        call(np.int32(draw.size()), np.array([1, 2, 3]), np.int32(9)),
        call(np.arange(4), draw.integers(0, 99, 4, 3), np.int64(700)),
    ],
)
