"""Random generators kept in variables, as `tf.random.Generator` keeps them: numbers, and skipping numbers.

The variable holds three 64-bit words: the counter's low and high half and the key. Each number that is asked for
moves the counter on by 256.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, define
from gradserve.ops import philox
from gradserve.ops.philox import RESERVED, Philox
from gradserve.ops.random import Sampler

Array = np.ndarray[Any, Any]
_PHILOX, _AUTOMATIC = 1, 3
_WORD = 2**64 - 1


def taken(handle: Any, algorithm: Any, count: int, node: Node, state: Any) -> Array:
    """The words of the generator as they were; in the variable its counter is moved on by `count` numbers."""
    if int(algorithm) not in (_PHILOX, _AUTOMATIC):
        raise InvalidArgument(f"{node.name}: the algorithm must be {_PHILOX} (Philox), and is {int(algorithm)}.")
    words = np.asarray(state.read(handle))
    if words.shape[:1] < (3,) or words.dtype != np.int64:
        raise InvalidArgument(f"{node.name}: the state must be 3 words of int64, and is {words.dtype} {words.shape}.")
    low, high = (int(word) & _WORD for word in words[:2])
    counter = ((low | high << 64) + count * RESERVED) & (2**128 - 1)
    moved = np.array([counter & _WORD, counter >> 64], np.uint64).view(np.int64)
    state.assign(handle, np.concatenate([moved, words[2:]]))
    return words


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.ravel(shape))


def _generator(handle: Any, algorithm: Any, sizes: tuple[int, ...], node: Node, state: Any) -> Philox:
    words = taken(handle, algorithm, math.prod(sizes), node, state).view(np.uint64)
    return Philox.from_key_counter(words[2:], words[:2])


def _numbers(sampler: Sampler) -> Any:
    def kernel(xp: Any, handle: Any, algorithm: Any, shape: Any, *, dtype: Any, node: Node, state: Any) -> Any:
        sizes = _sizes(shape)
        return sampler(_generator(handle, algorithm, sizes, node, state), math.prod(sizes), dtype.numpy).reshape(sizes)

    return kernel


def _integers(
    xp: Any, handle: Any, algorithm: Any, shape: Any, low: Any, high: Any, *, dtype: Any, node: Node, state: Any
) -> Any:  # fmt: skip
    sizes = _sizes(shape)
    generator = _generator(handle, algorithm, sizes, node, state)
    return philox.integers(generator, math.prod(sizes), low, high, dtype.numpy).reshape(sizes)


def _source(name: str, kernel: Any, default: str, bounds: str = "") -> None:
    define(
        f"{name}(resource: resource, algorithm: int64, shape: shape_dtype{bounds}; dtype: type = {default},"
        " shape_dtype: type = int64) -> (output: dtype)",
        shape=lambda handle, algorithm, shape, *_: static.shape_value(shape),
        gradient=NOT_DIFFERENTIABLE,
        kernel=kernel,
        host=("algorithm", "shape"),
        stateful=True,
        dynamic=True,
    )


_source("StatefulUniform", _numbers(philox.uniform), "float32")
_source("StatefulStandardNormalV2", _numbers(philox.normal), "float32")
_source("StatefulTruncatedNormal", _numbers(philox.truncated_normal), "float32")
_source("StatefulUniformFullInt", _numbers(philox.full_integers), "uint64")
_source("StatefulUniformInt", _integers, "int64", ", minval: dtype, maxval: dtype")


def _read_and_skip(xp: Any, handle: Any, alg: Any, delta: Any, *, node: Node, state: Any) -> Any:
    return taken(handle, alg, int(delta), node, state)


def _skip(xp: Any, handle: Any, algorithm: Any, delta: Any, *, node: Node, state: Any) -> tuple[()]:
    taken(handle, algorithm, int(delta), node, state)
    return ()


define(
    "RngReadAndSkip(resource: resource, alg: int32, delta: uint64) -> (value: int64)",
    shape=lambda handle, alg, delta: (None,),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_read_and_skip,
    host=("alg", "delta"),
    stateful=True,
    dynamic=True,
)
define(
    "RngSkip(resource: resource, algorithm: int64, delta: int64) -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_skip,
    host=("algorithm", "delta"),
    stateful=True,
    dynamic=True,
)
