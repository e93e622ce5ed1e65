"""Polygamma and Zeta have no derivative by their first argument; by the second they agree with differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check

_X = np.array([0.7, 1.4, 3.1])


def _placeholder(value: Any) -> Tensor:
    return raw.Placeholder(dtype=value.dtype, shape=value.shape)


@pytest.mark.parametrize("order", [0.0, 1.0, 2.0])
def test_polygamma(order: float) -> None:
    with Graph().as_default():
        x = _placeholder(_X)
        check([raw.Polygamma(np.float64(order), x)], [x], [_X], order=3)


def test_zeta() -> None:
    with Graph().as_default():
        q = _placeholder(_X)
        check([raw.Zeta(np.float64(2.5), q)], [q], [_X], order=3)


def test_the_first_argument_has_none() -> None:
    with Graph().as_default():
        a, x = _placeholder(_X), _placeholder(_X)
        assert gradients([raw.Polygamma(a, x)], [a])[0] is None
        assert gradients([raw.Zeta(a, x)], [a])[0] is None
