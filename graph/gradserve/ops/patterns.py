"""Regular expressions on strings, in RE2's language and by RE2 itself: no pattern takes exponential time."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, Unsupported
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, same_shape
from gradserve.graph.variants import each
from gradserve.ops.strings import encoded, texts

Array = np.ndarray[Any, Any]

_REFERENCE = re.compile(rb"\\(.?)", re.DOTALL)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: bytes) -> Any:
    try:
        import re2  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise Unsupported(
            "Regular expressions need google-re2, which is not installed on this worker: install gradserve[server]."
        ) from None
    options: Any = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise InvalidArgument(f"{pattern!r} is no regular expression of RE2: {reason}.", pattern=pattern) from None


def _text(scalar: Any, what: str) -> bytes:
    if np.shape(scalar):
        raise InvalidArgument(f"The {what} is one string, but its shape is {np.shape(scalar)}.")
    return np.asarray(scalar, object).item()


def _matches(x: Any, pattern: bytes) -> Array:
    whole = _compiled(pattern)
    found = [whole.fullmatch(text) is not None for text in x.reshape(-1)]
    return np.array(found, bool).reshape(x.shape)


def _pieces(rewrite: bytes) -> list[bytes | int]:
    """A rewrite as bytes and numbers of groups: \\0 to \\9 stand for groups, two backslashes for one."""
    pieces: list[bytes | int] = []
    end = 0
    for found in _REFERENCE.finditer(rewrite):
        letter = found.group(1)
        if letter != b"\\" and not letter.isdigit():
            raise InvalidArgument(
                f"The rewrite {rewrite!r} has a backslash before {letter!r}: write \\0 to \\9, or two backslashes.",
                rewrite=rewrite,
            )
        pieces += [rewrite[end : found.start()], int(letter) if letter.isdigit() else letter]
        end = found.end()
    return [*pieces, rewrite[end:]]


def _letter_length(text: bytes, at: int) -> int:
    """Bytes of the letter (UTF-8) that starts there; a byte that starts none stands for itself."""
    for length in range(1, 5):
        try:
            text[at : at + length].decode()
        except UnicodeDecodeError:
            continue
        return length
    return 1


def _replaced(x: Any, pattern: bytes, rewrite: bytes, everywhere: bool) -> Array:
    """Every match, or the first. An empty match right behind another match doesn't count."""
    search = _compiled(pattern)
    pieces = _pieces(rewrite)
    if any(isinstance(piece, int) and piece > search.groups for piece in pieces):
        return x  # as RE2 does where the pattern has no such group

    def replaced(text: bytes) -> bytes:
        result: list[bytes] = []
        start, last_end = 0, -1
        while start <= len(text) and (found := search.search(text, start)) is not None:
            begin, end = found.span()
            result.append(text[start:begin])
            if begin == end == last_end:
                end += _letter_length(text, begin)
                result.append(text[begin:end])
            else:
                result += [piece if isinstance(piece, bytes) else found.group(piece) or b"" for piece in pieces]
                last_end = end
            start = end
            if not everywhere:
                break
        return b"".join([*result, text[start:]])

    return each(replaced, x)


_WORDS = texts(b"a1 b22", b"", b"\xc3\xa4b")

define(
    "RegexFullMatch(input: string, pattern: string) -> (output: bool)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, pattern: _matches(x, _text(pattern, "pattern")),
    dynamic=True,
    examples=lambda draw: [call(_WORDS, np.array(b"[a-z].*", object))],
)
define(
    "StaticRegexFullMatch(input: string; pattern: string) -> (output: bool)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, pattern: _matches(x, encoded(pattern)),
    dynamic=True,
    examples=lambda draw: [call(_WORDS, pattern="[a-z].*")],
)
define(
    "RegexReplace(input: string, pattern: string, rewrite: string; replace_global: bool = true) -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, pattern, rewrite, *, replace_global: _replaced(
        x, _text(pattern, "pattern"), _text(rewrite, "rewrite"), replace_global
    ),
    dynamic=True,
    examples=lambda draw: [call(_WORDS, np.array(b"[0-9]+", object), np.array(b"<\\0>", object))],
)
define(
    "StaticRegexReplace(input: string; pattern: string, rewrite: string, replace_global: bool = true)"
    " -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, pattern, rewrite, replace_global: _replaced(
        x, encoded(pattern), encoded(rewrite), replace_global
    ),
    dynamic=True,
    examples=lambda draw: [call(_WORDS, pattern="[0-9]", rewrite="", replace_global=False)],
)
