"""The optimisers' updates are TensorFlow's; the expected variables were printed by TensorFlow 2.21."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State

_SCALARS = {
    "lr": 0.1, "alpha": 0.1, "rho": 0.9, "momentum": 0.8, "epsilon": 0.01, "beta1": 0.9, "beta2": 0.99,
    "beta1_power": 0.9, "beta2_power": 0.99, "l1": 0.05, "l2": 0.02, "l2_shrinkage": 0.03, "lr_power": -0.5,
    "global_step": np.int64(3), "sign_decay": 0.7, "beta": 0.9, "logbase": 1.0,
}  # fmt: skip
_GRADIENT = np.array([0.5, -0.25])

# A variable that was [1, -2], with slots that were [0.5, 0.25], after one update.
_EXPECTED = [
    ("GradientDescent", [0.95, -1.975]),
    ("Momentum", [0.91, -1.995]),
    ("KerasMomentum", [1.35, -1.775]),
    ("Adam", [0.930102854947397, -2.0393606669593214]),
    ("AdaMax", [0.01960784313725472, -2.7692307692307696]),
    ("AdamWithAmsgrad", [0.9302753769567366, -2.0392156862745097]),
    ("Adagrad", [0.9422649730810374, -1.9552786404500042]),
    ("AdagradV2", [0.9429240296183199, -1.9560645811159614]),
    ("AdagradDA", [-0.09747422452501359, 0.0]),
    ("Adadelta", [0.94872753195543, -1.9740466740178897]),
    ("RMSProp", [0.5282041841382261, -2.149101340144071]),
    ("CenteredRMSProp", [0.4968578753741206, -2.144272178742465]),
    ("ProximalGradientDescent", [0.9431137724550898, -1.9660678642714573]),
    ("ProximalAdagrad", [0.9343337190922177, -1.9393957752779292]),
    ("AddSign", [0.96, -2.015]),
    ("PowerSign", [0.8993123646264761, -1.9875853674052149]),
    ("Ftrl", [0.06197361865912843, -0.20076479019142832]),
    ("FtrlV2", [0.055077268306712064, -0.1794510463437453]),
]


def _updated(name: str, **arrays: Any) -> Any:
    """The variable after the op has run: `arrays` and the scalars above are its inputs, [0.5, 0.25] fills the slots."""
    op = catalogue.lookup(name)
    graph, state = Graph(), State()
    inputs: list[Any] = []
    fill: list[Any] = []
    rows = {"var": np.array([1.0, -2.0]), **arrays}
    with graph.as_default():
        for argument in op.signature.inputs:
            if argument.dtype is not None and argument.dtype.name == "resource":
                start = rows.get(argument.name, np.array([0.5, 0.25]))
                handle = raw.VarHandleOp(dtype="float64", shape=start.shape, shared_name=argument.name)
                fill.append(raw.AssignVariableOp.run(handle, start))
                inputs.append(handle)
            else:
                inputs.append(rows.get(argument.name, _SCALARS.get(argument.name)))
        step = op.run(*(np.float64(value) if isinstance(value, float) else value for value in inputs))
        read = raw.ReadVariableOp(inputs[0], dtype="float64")
    for targets in (tuple(fill), (step,)):
        engine.compile(Segment(graph, (), (), targets))([], state)
        state.values.update(state.updates)
        state.updates = {}
    (value,) = engine.compile(Segment(graph, (), (read,)))([], state)
    return np.asarray(value)


@pytest.mark.parametrize(("name", "expected"), _EXPECTED)
def test_a_whole_variable_is_updated(name: str, expected: list[float]) -> None:
    found = _updated(f"ResourceApply{name}", grad=_GRADIENT, delta=_GRADIENT)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [row for row in _EXPECTED if f"ResourceSparseApply{row[0]}" in catalogue.catalogue()]
)
def test_rows_are_updated_as_whole_variables_are(name: str, expected: list[float]) -> None:
    indices = np.array([1, 0], np.int32)
    found = _updated(f"ResourceSparseApply{name}", grad=_GRADIENT[::-1], indices=indices)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_row_that_is_named_twice_is_updated_twice() -> None:
    # accum 0.5 -> 0.75 -> 1; var 1 - 0.1 * 0.5 / sqrt(0.75) - 0.1 * 0.5 / 1.
    twice, grads = np.array([0, 0], np.int32), np.array([0.5, 0.5])
    found = _updated("ResourceSparseApplyAdagrad", grad=grads, indices=twice)
    np.testing.assert_allclose(found, [1 - 0.05 / np.sqrt(0.75) - 0.05, -2])
