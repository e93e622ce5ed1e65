"""Derivatives of special functions by one argument: which there are, and how they agree with differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check, run

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


def test_the_incomplete_gamma_function_far_out() -> None:
    # Where the distribution is wide ∂P/∂a is near to minus the density at a = x; else P does not move.
    x = np.array([1e10, 1e30, 2e4, 1e300])
    a = np.array([1e10, 1.0, 1e30, 1e300])
    with Graph().as_default() as graph:
        slope = run([raw.IgammaGradA(graph.constant(a), graph.constant(x))], [], [])[0]
    assert slope[0] == pytest.approx(-1 / np.sqrt(2 * np.pi * 1e10), rel=1e-4)
    assert np.abs(slope[1:]).max() < 1e-12


def test_both_ways_to_the_slope_of_the_incomplete_gamma_function_agree() -> None:
    a = np.array([9800.0, 9990.0, 10200.0, 10400.0])
    with Graph().as_default() as graph:
        below, above = (raw.IgammaGradA(graph.constant(a), np.float64(x)) for x in (1e4, np.nextafter(1e4, 2e4)))
        below, above = run([below, above], [], [])
    np.testing.assert_allclose(above, below, rtol=1e-8)
