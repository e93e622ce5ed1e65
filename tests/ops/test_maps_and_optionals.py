"""Maps and Optionals: what they hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import GradserveError
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run

_A, _B, _C = (np.array(letter, object) for letter in (b"a", b"b", b"c"))


def _insert(handle: Tensor, key: object, value: Tensor) -> Tensor:
    return raw.TensorMapInsert(handle, value.graph.constant(key), value)


def test_questions_to_a_map() -> None:
    graph = Graph()
    with graph.as_default():
        handle = _insert(_insert(raw.EmptyTensorMap(), _A, graph.constant(1.0)), _B, graph.constant(2.0))
        asked = [raw.TensorMapHasKey(handle, graph.constant(key)) for key in (_B, _C)]
        fetches = [*asked, raw.TensorMapSize(handle), raw.TensorMapStackKeys(handle, key_dtype="string")]
        missing = raw.TensorMapLookup(handle, graph.constant(_C), value_dtype="float32")
    has_b, has_c, size, keys = run(fetches, (), ())
    assert (bool(has_b), bool(has_c), int(size), keys.tolist()) == (True, False, 2, [b"a", b"b"])
    with pytest.raises(GradserveError, match="has no key b'c'"):
        run([missing], (), ())


def test_an_empty_optional_says_so() -> None:
    graph = Graph()
    with graph.as_default():
        nothing = raw.OptionalNone()
        (value,) = raw.OptionalGetValue.outputs(nothing, output_types=["float32"], output_shapes=[None])
        there = raw.OptionalHasValue(nothing)
    assert not run([there], (), ())[0]
    with pytest.raises(GradserveError, match="without a value"):
        run([value], (), ())
