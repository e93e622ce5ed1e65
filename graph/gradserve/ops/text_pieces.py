"""Pieces of texts: substrings, n-grams of ragged rows, and joins by segment."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, broadcast_shape, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops.ragged import checked
from gradserve.ops.strings import encoded, texts

Array = np.ndarray[Any, Any]

_WORDS = texts(b"one", b"two", b"three", b"four", b"five")

# Substrings


def _letters(text: bytes) -> list[bytes]:
    """The letters of UTF-8: bytes that continue no letter start one of their own."""
    starts = [place for place, byte in enumerate(text) if byte & 0xC0 != 0x80 or place == 0]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _substring(text: bytes, start: int, length: int, unit: str) -> bytes:
    pieces: Any = _letters(text) if unit == "UTF8_CHAR" else text
    if not -len(pieces) <= start <= len(pieces):
        raise InvalidArgument(f"{text[:40]!r} has no place {start}: it has {len(pieces)} letters.", place=start)
    first = start if start >= 0 else start + len(pieces)
    if unit == "UTF8_CHAR":
        return b"".join(pieces[first : first + max(length, 0)])
    return bytes(pieces[first : first + length] if length >= 0 else pieces[first:])


def _substrings(xp: Any, x: Any, starts: Any, lengths: Any, *, unit: str) -> Array:
    if starts.shape != lengths.shape:
        raise InvalidArgument(f"pos and len must have one shape, not {starts.shape} and {lengths.shape}.")
    spread: list[Any] = list(np.broadcast_arrays(x, starts, lengths))
    result = np.empty(spread[0].shape, object)
    for place in np.ndindex(result.shape):
        text, start, length = (part[place] for part in spread)
        result[place] = _substring(text, int(start), int(length), unit)
    return result


define(
    "Substr(input: string, pos: T, len: T; T: index, unit: string = 'BYTE') -> (output: string)",
    shape=broadcast_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_substrings,
    dynamic=True,
    examples=lambda draw: [
        call(_WORDS, np.int32(draw.size(0, 3)), np.int32(2)),
        call(_WORDS, np.array([-1, 0, 2, 3, 1]), np.array([1, 2, 3, 4, 0]), unit="UTF8_CHAR"),
    ],
)

# N-grams


def _grams(row: list[bytes], width: int, separator: bytes, left: bytes, right: bytes, pads: int) -> list[bytes]:
    """Every run of `width` words; pads stand for the words before the first and after the last."""
    padded = [left] * pads + row + [right] * pads
    return [separator.join(padded[start : start + width]) for start in range(len(padded) - width + 1)]


def _ngrams(
    xp: Any, data: Any, splits: Any, *, separator: str, ngram_widths: list[int], left_pad: str, right_pad: str,
    pad_width: int, preserve_short_sequences: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """A negative pad width pads as much as an n-gram can take: its width less one."""
    if any(width < 1 for width in ngram_widths):
        raise InvalidArgument(f"The widths of n-grams must be over 0, but are {ngram_widths}.")
    ends = checked(splits, len(data)).tolist() if len(splits) else [0]
    parts = encoded(separator), encoded(left_pad), encoded(right_pad)
    result: list[bytes] = []
    counts = [0]
    for start, end in itertools.pairwise(ends):
        row = data[start:end].tolist()
        found: list[bytes] = []
        for width in ngram_widths:
            pads = width - 1 if pad_width < 0 else min(pad_width, width - 1)
            found += _grams(row, width, *parts, pads)
        if not found and preserve_short_sequences and row:
            pads = max(pad_width, 0)
            found = [parts[0].join([parts[1]] * pads + row + [parts[2]] * pads)]
        result += found
        counts.append(len(result))
    return texts(*result), np.array(counts if len(splits) else [], splits.dtype)


define(
    "StringNGrams(data: string, data_splits: Tsplits; separator: string, ngram_widths: list(int), left_pad: string,"
    " right_pad: string, pad_width: int, preserve_short_sequences: bool, Tsplits: index = int64)"
    " -> (ngrams: string, ngrams_splits: Tsplits)",
    shape=lambda data, splits: [(None,), splits.shape],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_ngrams,
    dynamic=True,
    examples=lambda draw: [
        call(_WORDS, np.array([0, draw.size(0, 4), 4, 5]), separator=" ", ngram_widths=[1, 3], left_pad="<",
             right_pad=">", pad_width=width, preserve_short_sequences=True)
        for width in (-1, 0, 1)
    ],
)  # fmt: skip

# Joins by segment


def _joined(xp: Any, x: Any, places: Any, count: Any, *, separator: str) -> Array:
    """The inputs of each segment in row-major order."""
    rank = places.ndim
    segments = int(count)
    if x.shape[:rank] != places.shape or segments < 0:
        raise InvalidArgument(f"Segments of shape {places.shape} don't fit strings of shape {x.shape}.")
    rows = x.reshape(-1, *x.shape[rank:])
    found: list[list[Any]] = [[] for _ in range(segments)]
    for row, place in zip(rows, places.reshape(-1).tolist(), strict=True):
        if not 0 <= place < segments:
            raise InvalidArgument(f"There is no segment {place}: there are {segments}.", segment=place)
        found[place].append(row)
    result = np.empty((segments, *x.shape[rank:]), object)
    between = encoded(separator)
    for place in np.ndindex(result.shape):
        entries: list[Any] = [np.asarray(row, object)[place[1:]] for row in found[place[0]]]
        result[place] = between.join(entries)
    return result


def _joined_shape(x: Tensor, places: Tensor, count: Tensor) -> Shape:
    if x.shape is None or places.shape is None:
        return None
    return (static.scalar(count), *x.shape[len(places.shape) :])


define(
    "UnsortedSegmentJoin(inputs: string, segment_ids: Tindices, num_segments: Tnumsegments; separator: string = '',"
    " Tindices: index, Tnumsegments: index = int32) -> (output: string)",
    shape=_joined_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_joined,
    host=("num_segments",),
    dynamic=True,
    examples=lambda draw: [
        call(_WORDS, draw.integers(0, 3, 5), np.int32(3), separator="-"),
        call(_WORDS[:4].reshape(2, 2), draw.integers(0, 3, 2), np.int32(3)),
    ],
)
