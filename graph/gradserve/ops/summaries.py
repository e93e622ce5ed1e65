"""Records for TensorBoard: serialised Summary messages, as the training graphs of TensorFlow 1 make them.

A Summary is a list of values, each a tag (or a node's name) and a number, histogram, picture, sound or tensor. The
bytes are those that TensorFlow writes, but for
how pictures are compressed.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import codec
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, scalar_shape
from gradserve.ops.messages import bytes_field, double_field, fields, float_field, integer_field
from gradserve.ops.strings import texts
from gradserve.v1 import tensor_pb2

Array = np.ndarray[Any, Any]

_LARGEST = float(np.finfo(np.float64).max)
_DARKEST = 1e-6

# Values


def _value(tag: bytes, field: int, payload: bytes, more: bytes = b"") -> bytes:
    """One value of a Summary."""
    return bytes_field(1, bytes_field(1, tag) + bytes_field(field, payload) + more)


def _scalar(text: bytes) -> Array:
    result = np.empty((), object)
    result[()] = text
    return result


def _tag(tag: Any) -> bytes:
    if np.shape(tag):
        raise InvalidArgument(f"A tag is one string, but its shape is {np.shape(tag)}.")
    return np.asarray(tag, object).item()


# Numbers


def _numbers(xp: Any, tags: Any, values: Any) -> Array:
    if tags.shape != values.shape:
        raise InvalidArgument(f"Tags of shape {tags.shape} don't fit values of shape {values.shape}.")
    pairs = zip(np.ravel(tags).tolist(), np.ravel(values).astype(np.float32).tolist(), strict=True)
    return _scalar(b"".join(bytes_field(1, bytes_field(1, tag) + float_field(2, value)) for tag, value in pairs))


@functools.cache
def _limits() -> Array:
    """Ends of the bins: each a tenth wider than the one before, from 1e-12 to 1e20, of either sign."""
    rising: list[float] = []
    end = 1.0e-12
    while end < 1.0e20:
        rising.append(end)
        end *= 1.1
    rising.append(_LARGEST)
    return np.array([*(-number for number in reversed(rising)), 0.0, *rising])


def _bins(counts: Array) -> tuple[list[float], list[float]]:
    """Ends and counts of the bins, each run of empty ones as one."""
    limits = _limits()
    last = [place for place in range(len(counts)) if counts[place] or place + 1 == len(counts) or counts[place + 1]]
    return limits[last].tolist(), counts[last].tolist()


def _histogram(xp: Any, tag: Any, values: Any, *, node: Node) -> Array:
    numbers = np.ravel(values).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InvalidArgument(f"{node.name}: a histogram can't have NaN or infinity in it.", node=node.name)
    limits = _limits()
    places = np.searchsorted(limits, numbers, side="right")
    ends, counts = _bins(np.bincount(places, minlength=len(limits)).astype(np.float64))
    histogram = (
        double_field(1, float(numbers.min(initial=_LARGEST)))
        + double_field(2, float(numbers.max(initial=-_LARGEST)))
        + double_field(3, float(numbers.size))
        + double_field(4, functools.reduce(float.__add__, numbers.tolist(), 0.0))
        + double_field(5, functools.reduce(float.__add__, (numbers * numbers).tolist(), 0.0))
        + bytes_field(6, struct.pack(f"<{len(ends)}d", *ends))
        + bytes_field(7, struct.pack(f"<{len(counts)}d", *counts))
    )
    return _scalar(_value(_tag(tag), 5, histogram))


# Tensors


def _tensor(x: Any, kind: DType) -> bytes:
    message = codec.array_to_message(np.asarray(x), kind)
    if kind.kind != "s":
        shape = message.tensor_shape
        content = np.ascontiguousarray(x).tobytes()
        message = tensor_pb2.TensorProto(dtype=message.dtype, tensor_shape=shape, tensor_content=content)
    return message.SerializeToString(deterministic=True)


def _of_tensor(xp: Any, x: Any, *, T: DType, node: Node) -> Array:
    return _scalar(bytes_field(1, bytes_field(7, node.name.encode()) + bytes_field(8, _tensor(x, T))))


def _of_tagged_tensor(xp: Any, tag: Any, x: Any, metadata: Any, *, T: DType) -> Array:
    return _scalar(_value(_tag(tag), 8, _tensor(x, T), bytes_field(9, _tag(metadata))))


# Sounds and pictures


def _each(tag: bytes, kind: bytes, count: int, limit: int) -> list[bytes]:
    """The tags of so many sounds or pictures."""
    base = tag + b"/" + kind
    return [base] if limit == 1 and count else [base + b"/%d" % place for place in range(min(count, limit))]


def _wave(samples: Array, rate: int) -> bytes:
    """A WAV file of 16 bits a sample, from samples [frames, channels] between -1 and 1."""
    scaled = np.trunc(samples * np.float32(32768) + np.copysign(np.float32(0.5), samples))
    data = np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
    channels = samples.shape[1]
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    length = struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + length + data


def _sounds(tag: Any, x: Any, rate: float, limit: int) -> Array:
    if x.ndim not in (2, 3) or rate <= 0:
        raise InvalidArgument(f"Sounds are [batch, frames, channels] at a rate over 0, not {x.shape} at {rate}.")
    sounds = x.reshape(*x.shape[:2], -1) if x.size else x.reshape(*x.shape[:2], x.shape[2] if x.ndim == 3 else 1)
    result = b""
    for name, samples in zip(_each(_tag(tag), b"audio", len(sounds), limit), sounds, strict=False):
        frames, channels = samples.shape
        audio = float_field(1, rate) + integer_field(2, channels) + integer_field(3, frames)
        result += _value(name, 6, audio + bytes_field(4, _wave(samples, round(rate))) + bytes_field(5, b"audio/wav"))
    return _scalar(result)


def _png(pixels: Array) -> bytes:
    """A PNG file of pixels [height, width, channels] of 1 (grey), 3 (colour) or 4 (with transparency) bytes."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _to_bytes(pixels: Array, bad: Array) -> Array:
    """Floats spread over 0 to 255, or with 0 at 128 where some are negative; what is not finite gets another colour."""
    wide = pixels.astype(np.promote_types(pixels.dtype, np.float32))
    finite = np.isfinite(wide)
    kept = wide[finite]
    low, high = kept.min(initial=0), kept.max(initial=0)
    reach = max(abs(low), abs(high))
    scale = wide.dtype.type(0 if reach < _DARKEST else (127 if low < 0 else 255) / reach)
    levels = np.where(finite, wide, 0) * scale + wide.dtype.type(128 if low < 0 else 0)
    return np.where(finite.all(-1, keepdims=True), levels.astype(np.uint8), bad[: pixels.shape[-1]])


def _pictures(xp: Any, tag: Any, x: Any, *, max_images: int, bad_color: Any) -> Array:
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4):
        raise InvalidArgument(f"Pictures are [batch, height, width, 1, 3 or 4], not {x.shape}.")
    bad = np.ravel(bad_color).astype(np.uint8)
    if len(bad) < x.shape[-1]:
        raise InvalidArgument(f"bad_color has {len(bad)} channels, fewer than the {x.shape[-1]} of the pictures.")
    result = b""
    for name, pixels in zip(_each(_tag(tag), b"image", len(x), max_images), x, strict=False):
        height, width, channels = pixels.shape
        shown = pixels if pixels.dtype == np.uint8 else _to_bytes(pixels, bad)
        picture = (
            integer_field(1, height)
            + integer_field(2, width)
            + integer_field(3, channels)
            + bytes_field(4, _png(shown))
        )
        result += _value(name, 4, picture)
    return _scalar(result)


# Several as one


def _tags(summary: bytes) -> list[bytes]:
    """The tags of a Summary's values. Raises InvalidArgument where it is none."""
    tags: list[bytes] = []
    for number, _, value in fields(summary):
        if number == 1 and isinstance(value, bytes):
            tags += [tag for field, _, tag in fields(value) if field == 1 and isinstance(tag, bytes)]
    return tags


def _merged(xp: Any, inputs: list[Any]) -> Array:
    whole = b"".join(text for entry in inputs for text in np.ravel(entry).tolist())
    tags = _tags(whole)
    twice = next((tag for tag in tags if tags.count(tag) > 1), None)
    if twice is not None:
        raise InvalidArgument(f"Two summaries to be merged have the tag {twice!r}.", tag=twice)
    return _scalar(whole)


# The ops

_NAME = _scalar(b"name")


def _sound_examples(draw: Any, *more: Any, **attrs: Any) -> list[Example]:
    shapes = (draw.size(), 3), (2, draw.size(), 2)
    return [call(_NAME, draw.unit(*shape).astype(np.float32), *more, **attrs) for shape in shapes]


define(
    "ScalarSummary(tags: string, values: T; T: real) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_numbers,
    dynamic=True,
    examples=lambda draw: [call(_NAME, draw.normal()), call(texts(b"a", b"b"), draw.normal(2))],
)
define(
    "HistogramSummary(tag: string, values: T; T: real = float32) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_histogram,
    dynamic=True,
    examples=lambda draw: [call(_NAME, draw.normal(*draw.shape()))],
)
define(
    "MergeSummary(inputs: N * string; N: int) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_merged,
    dynamic=True,
    examples=lambda draw: [call([_numbers(np, _NAME, draw.normal()), _scalar(b"")])],
)
define(
    "TensorSummary(tensor: T; T: type, description: string = '', labels: list(string) = [], display_name: string = '')"
    " -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_of_tensor,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(*draw.shape())), call(texts(b"a", b"b"))],
)
define(
    "TensorSummaryV2(tag: string, tensor: T, serialized_summary_metadata: string; T: type) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_of_tagged_tensor,
    dynamic=True,
    examples=lambda draw: [call(_NAME, draw.normal(*draw.shape()), _scalar(b""))],
)
define(
    "AudioSummary(tag: string, tensor: float32; sample_rate: float, max_outputs: int = 3) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, tag, x, *, sample_rate, max_outputs: _sounds(tag, x, sample_rate, max_outputs),
    dynamic=True,
    examples=lambda draw: _sound_examples(draw, sample_rate=8000.0),
)
define(
    "AudioSummaryV2(tag: string, tensor: float32, sample_rate: float32; max_outputs: int = 3) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, tag, x, rate, *, max_outputs: _sounds(tag, x, float(rate), max_outputs),
    dynamic=True,
    examples=lambda draw: _sound_examples(draw, np.float32(8000)),
)
define(
    "ImageSummary(tag: string, tensor: T; max_images: int = 3, T: float16|float32|float64|uint8 = float32,"
    " bad_color: tensor = uint8 [255, 0, 0, 255]) -> (summary: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_pictures,
    dynamic=True,
    examples=lambda draw: [
        call(_NAME, draw.normal(draw.size(), 2, 3, channels).astype(np.float32)) for channels in (1, 3, 4)
    ],
)
