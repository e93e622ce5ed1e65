"""Changes of dtype that lose digits."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run


@pytest.mark.parametrize(
    ("wide", "narrow", "x", "rounded", "truncated"),
    [
        # 2 - 2⁻³⁰ lies between float32's 2 - 2⁻²³ and 2.
        ("float64", "float32", 2 - 2**-30, 2.0, 2 - 2**-23),
        ("float64", "float32", -(2 - 2**-30), -2.0, -(2 - 2**-23)),
        ("float32", "float16", 2 - 2**-20, 2.0, 2 - 2**-10),
        ("float32", "bfloat16", -(2 - 2**-20), -2.0, -(2 - 2**-7)),
    ],
)
def test_truncating_rounds_towards_zero(wide: str, narrow: str, x: float, rounded: float, truncated: float) -> None:
    graph = Graph()
    with graph.as_default():
        source = graph.constant(np.array(x, wide))
        values = run([raw.Cast(source, DstT=narrow, Truncate=cut) for cut in (False, True)], [], [])
    assert [float(value) for value in values] == [rounded, truncated]
