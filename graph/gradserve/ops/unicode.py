"""Texts as code points and back, and from one encoding to another, as TensorFlow's ops do it through ICU."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, same_shape
from gradserve.graph.variants import each
from gradserve.ops.ragged import checked
from gradserve.ops.strings import texts

Array = np.ndarray[Any, Any]

_OUTPUTS = {"UTF-8": "utf-8", "UTF-16-BE": "utf-16-be", "UTF-32-BE": "utf-32-be"}
_LAST_CONTROL = 0x1F
_LARGEST = 0x10FFFF


class _Policy(NamedTuple):
    """What becomes of what is no letter."""

    errors: str
    replacement: int
    controls: bool

    def of(self, point: int | None, what: str) -> int | None:
        """The code point to go on with, or None to leave it out. Raises InvalidArgument where errors are strict."""
        if point is not None and not (self.controls and point <= _LAST_CONTROL):
            return point
        if point is None and self.errors == "strict":
            raise InvalidArgument(f"{what} is no text of its encoding: clean it, or set errors to replace or ignore.")
        return None if self.errors == "ignore" else self.replacement


def _policy(errors: str, replacement_char: int, replace_control_characters: bool = False) -> _Policy:
    if errors not in ("strict", "replace", "ignore"):
        raise InvalidArgument(f"errors is {errors!r}, but must be strict, replace or ignore.")
    if not _is_letter(replacement_char):
        raise InvalidArgument(f"replacement_char {replacement_char} is no code point.")
    return _Policy(errors, replacement_char, replace_control_characters)


def _is_letter(point: int) -> bool:
    return 0 <= point <= _LARGEST and not 0xD800 <= point <= 0xDFFF


def _codec(name: str) -> str:
    """Python's name of an encoding; without a byte order UTF-16 and UTF-32 are big-endian."""
    try:
        found = codecs.lookup(name).name
    except LookupError:
        raise InvalidArgument(f"There is no encoding {name!r}.", encoding=name) from None
    return f"{found}-be" if found in ("utf-16", "utf-32") else found


def _points(text: bytes, encoding: str) -> Iterator[tuple[int | None, int]]:
    """Each code point with the byte that it starts at; None for bytes that are none."""
    start = 0
    while start < len(text):
        end, bad_end = len(text), len(text)
        try:
            letters = text[start:].decode(encoding)
        except UnicodeDecodeError as error:
            end, bad_end = start + error.start, start + error.end
            letters = text[start:end].decode(encoding)
        for letter in letters:
            yield ord(letter), start
            start += len(letter.encode(encoding))
        if end < len(text):
            yield None, end
        start = bad_end


def _decoded(text: bytes, encoding: str, policy: _Policy) -> list[tuple[int, int]]:
    found = ((policy.of(point, repr(text[:40])), start) for point, start in _points(text, encoding))
    return [(point, start) for point, start in found if point is not None]


def _encoded(points: list[int], encoding: str) -> bytes:
    return "".join(map(chr, points)).encode(encoding)


def _output(name: str) -> str:
    if name not in _OUTPUTS:
        raise InvalidArgument(f"output_encoding is {name!r}, but must be one of {', '.join(_OUTPUTS)}.")
    return _OUTPUTS[name]


def _decode(
    xp: Any, x: Any, *, input_encoding: str, errors: str, replacement_char: int, replace_control_characters: bool,
    Tsplits: DType,
) -> tuple[Array, Array, Array]:  # fmt: skip
    policy, encoding = _policy(errors, replacement_char, replace_control_characters), _codec(input_encoding)
    rows = [_decoded(text, encoding, policy) for text in x.reshape(-1)]
    flat = np.array(list(itertools.chain.from_iterable(rows)), np.int64).reshape(-1, 2)
    splits = np.cumsum([0, *map(len, rows)]).astype(Tsplits.numpy)
    return splits, flat[:, 0].astype(np.int32), flat[:, 1]


def _transcode(
    xp: Any, x: Any, *, input_encoding: str, output_encoding: str, errors: str, replacement_char: int,
    replace_control_characters: bool,
) -> Array:  # fmt: skip
    policy, encoding = _policy(errors, replacement_char, replace_control_characters), _codec(input_encoding)
    target = _output(output_encoding)
    return each(lambda text: _encoded([point for point, _ in _decoded(text, encoding, policy)], target), x)


def _encode(xp: Any, values: Any, splits: Any, *, errors: str, output_encoding: str, replacement_char: int) -> Array:
    policy, target = _policy(errors, replacement_char), _output(output_encoding)
    kept = [policy.of(point if _is_letter(point) else None, f"Code point {point}") for point in values.tolist()]
    ends = checked(splits, len(kept)).tolist()
    rows = (kept[start:end] for start, end in itertools.pairwise(ends))
    return texts(*(_encoded([point for point in row if point is not None], target) for row in rows))


_SOME = texts("aä€😀".encode(), b"", b"\xffb\xe2\x82", b"\tz")
_POLICY = "errors: string = 'replace', replacement_char: int = 65533"
_DECODING = f"input_encoding: string, {_POLICY}, replace_control_characters: bool = false, Tsplits: index = int64"
define(
    f"UnicodeDecode(input: string; {_DECODING}) -> (row_splits: Tsplits, char_values: int32)",
    shape=lambda x: [(None,), (None,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, input_encoding, errors, replacement_char, replace_control_characters, Tsplits: _decode(
        xp, x, input_encoding=input_encoding, errors=errors, replacement_char=replacement_char,
        replace_control_characters=replace_control_characters, Tsplits=Tsplits,
    )[:2],
    dynamic=True,
    examples=lambda draw: [call(_SOME, input_encoding="UTF-8")],
)  # fmt: skip
define(
    f"UnicodeDecodeWithOffsets(input: string; {_DECODING})"
    " -> (row_splits: Tsplits, char_values: int32, char_to_byte_starts: int64)",
    shape=lambda x: [(None,), (None,), (None,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_decode,
    dynamic=True,
    examples=lambda draw: [call(_SOME, input_encoding="UTF-8", errors="ignore")],
)
define(
    f"UnicodeTranscode(input: string; input_encoding: string, output_encoding: string, {_POLICY},"
    " replace_control_characters: bool = false) -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_transcode,
    dynamic=True,
    examples=lambda draw: [call(_SOME, input_encoding="UTF-8", output_encoding="UTF-16-BE")],
)
define(
    "UnicodeEncode(input_values: int32, input_splits: Tsplits; errors: string = 'replace', output_encoding: string,"
    " replacement_char: int = 65533, Tsplits: index = int64) -> (output: string)",
    shape=lambda values, splits: (
        None if splits.shape is None else (None if splits.shape[0] is None else splits.shape[0] - 1,)
    ),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_encode,
    dynamic=True,
    examples=lambda draw: [
        call(np.array([97, 8364, -1], np.int32), np.array([0, draw.size(0, 3), 3]), output_encoding="UTF-8")
    ],
)
