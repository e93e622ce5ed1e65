"""A step repeated over rows: side by side and as a loop, forwards and backwards, to third order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import shape_of
from gradserve.ops.scan import MOST_SIDE_BY_SIDE, scan
from tests.ops.differences import check, run


def _step(state: Any, rows: Any, fixed: Any) -> Any:
    """s' = sin(s) x + w where a flag says so, and s s' goes out."""
    (s,), (x, flag), (w,) = state, rows, fixed
    after = raw.SelectV2(flag, raw.Sin(s) * x + w, s)
    return [after], [s * after]


def _by_hand(s: Any, x: Any, flags: Any, w: Any, backwards: bool) -> tuple[Any, Any]:
    made = np.zeros_like(x)
    for place in range(len(x))[:: -1 if backwards else 1]:
        after = np.sin(s) * x[place] + w if flags[place] else s
        made[place] = s * after
        s = after
    return s, made


def _build(rounds: int, known_rounds: bool, backwards: bool) -> tuple[list[Tensor], list[Tensor], list[Any], Any]:
    generator = np.random.default_rng(rounds)
    values = [generator.normal(size=shape) for shape in ((2,), (rounds, 2), (2,))]
    flags = np.arange(rounds) % 3 != 1
    with Graph().as_default():
        s, x, w = (
            raw.Placeholder(dtype=np.float64, shape=value.shape if known_rounds else (None,) * value.ndim)
            for value in values
        )
        last, made = scan(_step, [s], [x, x.graph.constant(flags)], [w], [shape_of(s)], backwards=backwards)
    return [*last, *made], [s, x, w], values, flags


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rounds", [0, 1, 4, MOST_SIDE_BY_SIDE + 1])
def test_rounds_follow_each_other(rounds: int, known: bool, backwards: bool) -> None:
    ys, xs, values, flags = _build(rounds, known, backwards)
    s, x, w = values
    for found, expected in zip(run(ys, xs, values), _by_hand(s, x, flags, w, backwards), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_three_orders_agree_with_central_differences(rounds: int, known: bool, backwards: bool) -> None:
    ys, xs, values, _ = _build(rounds, known, backwards)
    check(ys, xs, values, order=3)


def test_few_rounds_stand_side_by_side_and_many_are_a_loop() -> None:
    for rounds, known, is_loop in ((4, True, False), (MOST_SIDE_BY_SIDE + 1, True, True), (4, False, True)):
        ys, *_ = _build(rounds, known, False)
        assert any(node.type == "StatelessWhile" for node in ys[0].graph.nodes) == is_loop
