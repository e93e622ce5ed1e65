"""Ops that the xla engine compiles with kernels of its own: one program, and the reference's answers at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.split import Kind, split
from gradserve.workers.segment import Segment, State

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")


def _segment(name: str, *arrays: Any, **attrs: Any) -> Segment:
    with Graph().as_default() as graph:
        feeds = [raw.Placeholder(dtype=array.dtype, shape=array.shape) for array in arrays]
        fetches = getattr(raw, name).outputs(*(raw.Neg(raw.Neg(feed)) for feed in feeds), **attrs)
        return Segment(graph, tuple(feeds), tuple(fetches))


def _both(name: str, *arrays: Any, **attrs: Any) -> None:
    segment = _segment(name, *arrays, **attrs)
    expected = reference.compile(segment)(list(arrays), State())
    got = xla.compile_program(segment)(list(arrays), State())
    for a, b in zip(expected, got, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        tolerance = (
            1e-10 if a.dtype in (np.float64, np.complex128, np.int64) else 1e-3 if a.dtype.itemsize == 2 else 1e-4
        )
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(name for name in xla.KERNELS if catalogue.lookup(name).dynamic))
def test_nothing_of_it_runs_on_the_host(name: str) -> None:
    arrays = [np.ones((3, 3))] * len(catalogue.lookup(name).signature.inputs)
    segment = _segment(name, *arrays)
    assert [piece.kind for piece in split(segment, xla.KERNELS)] == [Kind.DEVICE]
    assert Kind.HOST in [piece.kind for piece in split(segment)]


@pytest.mark.parametrize(
    ("kind", "batch"), [("float16", ()), ("float32", (2,)), ("complex128", (0,)), ("complex64", (2, 1))]
)
def test_batches_of_every_dtype_agree(kind: str, batch: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).standard_normal((*batch, 4, 4)).astype(kind)
    _both("MatrixExponential", x)
    _both("Lu", x, output_idx_type="int64")


def test_matrices_large_and_not_finite_agree() -> None:
    large = np.random.default_rng(4).standard_normal((5, 5)) * 20
    _both("MatrixExponential", np.stack([large, np.full((5, 5), np.nan), np.zeros((5, 5))]))


def test_what_has_no_factors_is_refused() -> None:
    segment = _segment("Lu", np.ones((2, 2)))
    for engine in (reference.compile, xla.compile_program):
        with pytest.raises(InvalidArgument, match="inverted"):
            engine(segment)([np.ones((2, 2))], State())


def test_singular_bands_give_nan_and_the_ends_of_diagonals_are_not_read() -> None:
    diagonals = np.array([[[1.0, 2.0, np.inf], [4.0, 5.0, 6.0], [np.inf, 1.0, 1.0]], np.zeros((3, 3))])
    _both("TridiagonalSolve", diagonals, np.ones((2, 3, 2)))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_parts_of_complex_numbers_leave_each_other_alone(kind: str) -> None:
    parts = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan], kind)
    _both("Complex", parts[:, None], parts, Tout="complex64" if kind == "float32" else "complex128")


def test_zeta_vanishes_at_infinity() -> None:
    _both("Zeta", np.array([1.5, 2.0, 3.0]), np.array([np.inf, 2.0, np.inf]))
    _both("Polygamma", np.array([0.0, 1.0, 2.0, 3.0]), np.full(4, np.inf))
