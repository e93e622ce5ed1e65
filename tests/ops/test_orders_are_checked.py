"""Every differentiable op of the catalogue is checked to second order: by its example, or by a test that says why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradserve.autodiff.symbolic_gradient
import gradserve.ops  # noqa: F401
from gradserve.graph import op as catalogue
from tests.ops.draw import Draw
from tests.paths import ROOT

_TESTS = Path("tests/ops")
_CONVENTIONS = _TESTS / "test_conventions.py", "test_cotangents_go_straight_through"
_NORMALISATION = _TESTS / "test_normalisation.py", "test_batch_normalisation"
_RANDOM = _TESTS / "test_random_derivatives.py"
_VARIABLES = _TESTS / "test_variables.py"

ELSEWHERE: dict[str, tuple[Path, str]] = {
    **dict.fromkeys(
        (
            "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel",
            "QuantizeAndDequantize", "QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4",
            "Sign", "Switch", "_SwitchN",
        ),
        _CONVENTIONS,
    ),
    **dict.fromkeys(("FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"), _NORMALISATION),
    **dict.fromkeys(
        ("RandomGamma", "StatelessRandomGammaV2", "StatelessRandomGammaV3"), (_RANDOM, "test_gamma_numbers")
    ),
    "StatelessParameterizedTruncatedNormal": (_RANDOM, "test_normal_numbers_within_bounds"),
    **dict.fromkeys(("ReadVariableOp", "ResourceGather", "ResourceGatherNd"), (_VARIABLES, "test_reads_of_a_resource")),
    **dict.fromkeys(("RefIdentity", "RefSwitch"), (_VARIABLES, "test_reads_of_a_reference")),
    **dict.fromkeys(
        ("ScatterNdMax", "ScatterNdMin"), (_VARIABLES, "test_extremes_of_a_reference_and_what_is_written")
    ),
}  # fmt: skip
"""Ops that central differences of an example can't check, or whose value is not in the graph: file and test."""


_CONTROL_FLOW = (
    "If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile",
    "PartitionedCall", "StatefulPartitionedCall", "SymbolicGradient",
    "TensorListFromTensor", "TensorListPushBack", "TensorListPopBack", "TensorListGetItem", "TensorListSetItem",
    "TensorListStack", "TensorListGather", "TensorListScatterV2",
)  # fmt: skip
"""What branches, loops and calls are made of, in graphs of both versions of TensorFlow once they are imported."""


def _differentiable() -> list[str]:
    """Ops with a gradient rule and an input that it could be for."""
    ops = catalogue.catalogue().items()
    return sorted(name for name, op in ops if isinstance(op.gradient, catalogue.BoundRule) and op.signature.inputs)


def _has_example(name: str, order: int = 2) -> bool:
    """Whether test_every_op checks the op to this order; it asserts itself that it does find second derivatives."""
    examples = catalogue.lookup(name).examples
    drawn = [] if examples is None else examples(Draw(lambda low, high: min(high, max(low, 2)), 1))
    return any(example.differences and example.order >= order for example in drawn)


def test_every_differentiable_op_is_checked_to_second_order() -> None:
    unchecked = [name for name in _differentiable() if not _has_example(name) and name not in ELSEWHERE]
    assert not unchecked, f"give these an example, or name the test that checks them: {unchecked}"


def test_control_flow_is_checked_to_third_order() -> None:
    assert not [name for name in _CONTROL_FLOW if not _has_example(name, 3)]


def test_what_an_example_checks_is_not_said_to_be_checked_elsewhere() -> None:
    assert not [name for name in ELSEWHERE if _has_example(name) or name not in _differentiable()]


@pytest.mark.parametrize(("path", "test"), sorted(set(ELSEWHERE.values())))
def test_the_test_exists_and_names_the_ops(path: Path, test: str) -> None:
    text = (ROOT / path).read_text()
    assert test in {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert not [name for name, place in ELSEWHERE.items() if place == (path, test) and name not in text]
