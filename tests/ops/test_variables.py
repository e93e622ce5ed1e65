"""Reads of variables, and writes with a result: gradients to second order against central differences of the value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State
from tests.ops.differences import check

_STEP = 1e-5
_ROWS = np.array([[2, 0], [2, 2]], np.int32)
_TRUE = np.array(True)
_RESOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "ReadVariableOp": lambda w: raw.ReadVariableOp(w, dtype="float64"),
    "ResourceGather": lambda w: raw.ResourceGather(w, _ROWS, dtype="float64"),
    "ResourceGather of rows in a batch": lambda w: raw.ResourceGather(w, _ROWS[[0, 1, 1]] % 2, batch_dims=1, dtype="float64"),
    "ResourceGather of no rows": lambda w: raw.ResourceGather(w, np.zeros(0, np.int32), dtype="float64"),
    "ResourceGatherNd of entries": lambda w: raw.ResourceGatherNd(w, _ROWS % 2, dtype="float64"),
    "ResourceGatherNd of rows": lambda w: raw.ResourceGatherNd(w, _ROWS[:, :1], dtype="float64"),
    "two reads": lambda w: (
        raw.ReadVariableOp(w, dtype="float64") * raw.Sum(raw.ResourceGather(w, _ROWS, dtype="float64"), [0, 1])
    ),
}  # fmt: skip
_REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "the variable itself": lambda w: raw.Identity(w),
    "RefIdentity": lambda w: raw.Identity(raw.RefIdentity(w)),
    "RefSwitch, the side taken": lambda w: raw.Identity(raw.RefSwitch.outputs(w, _TRUE)[1]),
}


def _checked(variable: Tensor, read: Tensor) -> None:
    """Two directional derivatives of Σ sin(read) read by the value of the variable, which is a shared one named w."""
    value, along, again = np.random.default_rng(4).normal(size=(3, 3, 2))
    levels = [raw.Sum(raw.Sin(read) * read, np.arange(read.rank or 0, dtype=np.int32))]
    for direction in (along, again):
        (found,) = gradients(levels[-1], variable)
        assert found is not None
        levels.append(raw.Sum(densify(found) * direction, [0, 1]))

    def run(y: Tensor, w: np.ndarray) -> float:
        return float(engine.compile(Segment(y.graph, (), (y,)))([], State(values={"w": w}))[0])

    for y, dy, direction in zip(levels, levels[1:], (along, again), strict=False):
        difference = (run(y, value + _STEP * direction) - run(y, value - _STEP * direction)) / (2 * _STEP)
        assert run(dy, value) == pytest.approx(difference, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("known_shape", [True, False])
@pytest.mark.parametrize("name", _RESOURCES)
def test_reads_of_a_resource(name: str, known_shape: bool) -> None:
    with Graph().as_default():
        variable = raw.VarHandleOp(dtype="float64", shape=(3, 2) if known_shape else None, shared_name="w")
        read = _RESOURCES[name](variable)
        _checked(variable, read if read.rank is not None else raw.Reshape(read, np.array([-1], np.int32)))


@pytest.mark.parametrize("name", _REFERENCES)
def test_reads_of_a_reference(name: str) -> None:
    with Graph().as_default():
        variable = raw.VariableV2(dtype="float64", shape=(3, 2), shared_name="w")
        _checked(variable, _REFERENCES[name](variable))


_WRITTEN = np.array([[2], [2], [0]], np.int32)
_UPDATES = np.array([[0.4, -3.0], [-0.2, 3.0], [2.5, 0.7]])
"""Of the row that is written twice one update wins; of another one the variable may."""


@pytest.mark.parametrize("name", ["ScatterNdMax", "ScatterNdMin"])
def test_extremes_of_a_reference_and_what_is_written(name: str) -> None:
    with Graph().as_default():
        variable = raw.VariableV2(dtype="float64", shape=(3, 2), shared_name="w")
        _checked(variable, raw.Identity(getattr(raw, name)(variable, _WRITTEN, _UPDATES)))
        filled = raw.Assign(variable, np.sin(np.arange(6.0)).reshape(3, 2))
        updates = raw.Placeholder(dtype="float64", shape=(3, 2))
        check([raw.Identity(getattr(raw, name)(filled, _WRITTEN, updates))], [updates], [_UPDATES], order=2)
