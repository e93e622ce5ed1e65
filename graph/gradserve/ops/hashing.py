"""Strings to buckets, by the hash functions that TensorFlow uses, bit for bit.

Fast is FarmHash's 64-bit fingerprint (Pike and Alakuijala; the hash of CityHash's family that never changes), strong is
SipHash-2-4 (Aumasson and Bernstein 2012), and the old one is MurmurHash64A (Appleby) with TensorFlow's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.op import NOT_DIFFERENTIABLE, Rule, call, define, same_shape

_ALL = (1 << 64) - 1


def _word(text: bytes, start: int) -> int:
    return int.from_bytes(text[start : start + 8], "little")


def _right(value: int, count: int) -> int:
    value &= _ALL
    return (value >> count | value << 64 - count) & _ALL


def _left(value: int, count: int) -> int:
    return _right(value, 64 - count)


# FarmHash

_A, _B, _C = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def _folded(value: int) -> int:
    value &= _ALL
    return value ^ value >> 47


def _mixed(u: int, v: int, factor: int) -> int:
    first = _folded((u ^ v) * factor)
    return _folded((v & _ALL ^ first) * factor) * factor & _ALL


def _short(text: bytes) -> int:
    """Up to 16 bytes."""
    count = len(text)
    factor = _C + count * 2
    if count >= 8:
        a, b = _word(text, 0) + _C, _word(text, count - 8)
        return _mixed((_right(b, 37) * factor + a) & _ALL, (_right(a, 25) + b) * factor & _ALL, factor)
    if count >= 4:
        a, b = int.from_bytes(text[:4], "little"), int.from_bytes(text[-4:], "little")
        return _mixed(count + (a << 3), b, factor)
    if count:
        y, z = text[0] + (text[count >> 1] << 8), count + (text[-1] << 2)
        return _folded(y * _C ^ z * _A) * _C & _ALL
    return _C


def _medium(text: bytes) -> int:
    """17 to 64 bytes."""
    count = len(text)
    factor = _C + count * 2
    first = _B if count <= 32 else _C
    a, b = _word(text, 0) * first & _ALL, _word(text, 8)
    c, d = _word(text, count - 8) * factor & _ALL, _word(text, count - 16) * _C
    y = (_right(a + b, 43) + _right(c, 30) + d) & _ALL
    z = _mixed(y, (a + _right(b + _C, 18) + c) & _ALL, factor)
    if count <= 32:
        return z
    e, f = _word(text, 16) * factor & _ALL, _word(text, 24)
    g, h = (y + _word(text, count - 32)) * factor & _ALL, (z + _word(text, count - 24)) * factor
    return _mixed((_right(e + f, 43) + _right(g, 30) + h) & _ALL, (e + _right(f + a, 18) + g) & _ALL, factor)


def _weak(text: bytes, start: int, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = (_word(text, start + 8 * k) for k in range(4))
    a += w
    b = _right(b + a + z, 21)
    total = a + x + y
    return (total + z) & _ALL, (b + _right(total, 44) + a) & _ALL


def _round(
    text: bytes, start: int, x: int, y: int, z: int, v: tuple[int, int], w: tuple[int, int], factor: int, weight: int
) -> tuple[int, int, int, tuple[int, int], tuple[int, int]]:
    """One block of 64 bytes."""
    x = _right(x + y + v[0] + _word(text, start + 8), 37) * factor & _ALL
    y = _right(y + v[1] + _word(text, start + 48), 42) * factor
    x ^= w[1] * weight & _ALL
    y = (y + v[0] * weight + _word(text, start + 40)) & _ALL
    z = _right(z + w[0], 33) * factor & _ALL
    v = _weak(text, start, v[1] * factor, x + w[0])
    w = _weak(text, start + 32, z + w[1], y + _word(text, start + 16))
    return z, y, x, v, w


def fingerprint(text: bytes) -> int:
    """FarmHash's 64-bit fingerprint."""
    count = len(text)
    if count <= 16:
        return _short(text)
    if count <= 64:
        return _medium(text)
    x, y = 81, (81 * _B + 113) & _ALL
    z = _folded(y * _C + 113) * _C & _ALL
    v, w = (0, 0), (0, 0)
    x = (x * _C + _word(text, 0)) & _ALL
    end = (count - 1) // 64 * 64
    for start in range(0, end, 64):
        x, y, z, v, w = _round(text, start, x, y, z, v, w, _B, 1)
    factor = _B + ((z & 0xFF) << 1)
    rest = (count - 1) & 63
    second = (w[0] + rest) & _ALL
    v = ((v[0] + second) & _ALL, v[1])
    w = ((second + v[0]) & _ALL, w[1])
    x, y, z, v, w = _round(text, end + rest - 63, x, y, z, v, w, factor, 9)
    left = _mixed(v[0], w[0], factor) + _folded(y) * _A + z
    return _mixed(left & _ALL, (_mixed(v[1], w[1], factor) + x) & _ALL, factor)


# SipHash


def sip_hash(text: bytes, key: tuple[int, int]) -> int:
    """SipHash-2-4 under a key of two 64-bit words."""
    first, second = (word & _ALL for word in key)
    a, b = first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D
    c, d = first ^ 0x6C7967656E657261, second ^ 0x7465646279746573

    def rounds(count: int) -> None:
        nonlocal a, b, c, d
        for _ in range(count):
            a, c = (a + b) & _ALL, (c + d) & _ALL
            b, d = _left(b, 13) ^ a, _left(d, 16) ^ c
            a = _left(a, 32)
            a, c = (a + d) & _ALL, (c + b) & _ALL
            d, b = _left(d, 21) ^ a, _left(b, 17) ^ c
            c = _left(c, 32)

    whole = len(text) // 8 * 8
    blocks = [_word(text, start) for start in range(0, whole, 8)]
    blocks.append(int.from_bytes(text[whole:], "little") | (len(text) & 0xFF) << 56)
    for block in blocks:
        d ^= block
        rounds(2)
        a ^= block
    c ^= 0xFF
    rounds(4)
    return a ^ b ^ c ^ d


# MurmurHash64A

_FACTOR, _SEED = 0xC6A4A7935BD1E995, 0xDECAFCAFFE


def murmur(text: bytes) -> int:
    """MurmurHash64A with TensorFlow's seed."""
    value = _SEED ^ len(text) * _FACTOR & _ALL
    whole = len(text) // 8 * 8
    for start in range(0, whole, 8):
        block = _word(text, start) * _FACTOR & _ALL
        value = (value ^ (block ^ block >> 47) * _FACTOR) * _FACTOR & _ALL
    if whole < len(text):
        value = (value ^ int.from_bytes(text[whole:], "little")) * _FACTOR & _ALL
    value = (value ^ value >> 47) * _FACTOR & _ALL
    return value ^ value >> 47


# Buckets


def _buckets(x: Any, count: int, function: Callable[[bytes], int]) -> Any:
    if count < 1:
        raise InvalidArgument(f"Strings need at least 1 bucket, not {count}.")
    return np.array([function(text) % count for text in x.reshape(-1)], np.int64).reshape(x.shape)


def _hashed(function: Callable[[bytes], int]) -> Rule:
    def kernel(xp: Any, x: Any, *, num_buckets: int) -> Any:
        return _buckets(x, num_buckets, function)

    return kernel


def _strong(xp: Any, x: Any, *, num_buckets: int, key: list[int]) -> Any:
    if len(key) != 2:
        raise InvalidArgument(f"The key of a strong hash is 2 integers, not {len(key)}.")
    return _buckets(x, num_buckets, lambda text: sip_hash(text, (key[0], key[1])))


def _examples(**attrs: Any) -> Callable[[Any], list[Any]]:
    words = np.array([b"", b"word", b"w" * 100], object)
    return lambda draw: [call(words, num_buckets=5, **attrs), call(words[:0], num_buckets=5, **attrs)]


for _name, _argument, _function in (
    ("StringToHashBucket", "string_tensor", murmur),
    ("StringToHashBucketFast", "input", fingerprint),
):
    define(
        f"{_name}({_argument}: string; num_buckets: int) -> (output: int64)",
        shape=same_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_hashed(_function),
        dynamic=True,
        examples=_examples(),
    )
define(
    "StringToHashBucketStrong(input: string; num_buckets: int, key: list(int)) -> (output: int64)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_strong,
    dynamic=True,
    examples=_examples(key=[1, 2]),
)


# Fingerprints of anything


def _eight(text: bytes) -> bytes:
    return fingerprint(text).to_bytes(8, "little")


def _fingerprints(xp: Any, x: Any, method: Any) -> Any:
    """Of each row's bytes, eight bytes each; a row of several strings is the string of their fingerprints."""
    name = np.asarray(method, object).item()
    if name != b"farmhash64":
        raise InvalidArgument(f"There is no fingerprint {name!r}: give farmhash64.")
    if x.ndim < 1:
        raise InvalidArgument("Fingerprints are of the rows of a tensor, but this is a scalar.")
    if x.dtype != object:
        found = [_eight(np.ascontiguousarray(row).tobytes()) for row in x]
    elif x.ndim == 1:
        found = [_eight(text) for text in x.tolist()]
    else:
        found = [_eight(b"".join(map(_eight, row.reshape(-1).tolist()))) for row in x]
    return np.frombuffer(b"".join(found), np.uint8).reshape(len(x), 8)


define(
    "Fingerprint(data: T, method: string; T: type) -> (fingerprint: uint8)",
    shape=lambda x, method: (x.shape[0] if x.shape else None, 8),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_fingerprints,
    dynamic=True,
    examples=lambda draw: [
        call(data, np.array(b"farmhash64", object))
        for data in (draw.normal(draw.size(), 2), np.array([[b"a", b"b"]], object), np.array([b"a", b""], object))
    ],
)
