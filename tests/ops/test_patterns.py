"""Regular expressions against TensorFlow 2.21's answers: empty matches, letters of several bytes, groups, bad patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run

TEXTS = np.array([b"hello world 123", b"", b"aaa", "äbö".encode(), b"\xff\xfeab"], object)


def _replaced(pattern: bytes, rewrite: bytes, *, replace_global: bool = True) -> list[bytes]:
    with Graph().as_default():
        inputs = [np.array(text, object) for text in (pattern, rewrite)]
        return run(raw.RegexReplace.outputs(TEXTS, *inputs, replace_global=replace_global), [], [])[0].tolist()


@pytest.mark.parametrize(
    ("pattern", "rewrite", "expected"),
    [
        (b"a*", b"-", [b"-h-e-l-l-o- -w-o-r-l-d- -1-2-3-", b"-", b"-", "-ä-b-ö-".encode(), b"-\xff-\xfe-b-"]),
        (b"(l+)o?", b"<\\1|\\0>", [b"he<ll|llo> wor<l|l>d 123", b"", b"aaa", "äbö".encode(), b"\xff\xfeab"]),
        (b"\\d+", b"\\\\", [b"hello world \\", b"", b"aaa", "äbö".encode(), b"\xff\xfeab"]),
        (b"a", b"\\1", TEXTS.tolist()),
    ],
)
def test_every_match_is_replaced_as_re2_does(pattern: bytes, rewrite: bytes, expected: list[bytes]) -> None:
    assert _replaced(pattern, rewrite) == expected


def test_only_the_first_match_is_replaced_where_asked() -> None:
    assert _replaced(b"[a-z]", b"", replace_global=False)[:3] == [b"ello world 123", b"", b"aa"]


@pytest.mark.parametrize(("pattern", "rewrite"), [(b"(", b""), (b"a", b"\\x"), (b"a", b"\\")])
def test_bad_patterns_and_rewrites_are_refused(pattern: bytes, rewrite: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"regular expression|rewrite"):
        _replaced(pattern, rewrite)


def test_a_match_is_of_the_whole_text() -> None:
    def matches(op: str, *inputs: Any, **attrs: Any) -> list[bool]:
        with Graph().as_default():
            return run(getattr(raw, op).outputs(TEXTS, *inputs, **attrs), [], [])[0].tolist()

    assert matches("RegexFullMatch", np.array(b"a*", object)) == [False, True, True, False, False]
    assert matches("StaticRegexFullMatch", pattern="ä?b.|h.*3") == [True, False, False, True, False]


def test_a_pattern_that_backtracking_would_choke_on_takes_no_time() -> None:
    with Graph().as_default():
        text = np.array([b"a" * 5000 + b"b"], object)
        assert not run(raw.StaticRegexFullMatch.outputs(text, pattern="(a*)*c"), [], [])[0].any()
