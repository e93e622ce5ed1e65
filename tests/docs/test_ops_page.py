"""docs/ops.md says what the catalogue says; what is left out says why."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import NoGradient, UnsupportedOp
from gradserve.graph import codec, op
from gradserve.graph.other_calls import BECOME_CALLS
from gradserve.ops.left_out import FAMILIES, REASONS, reason
from gradserve.v1 import graph_pb2, tensor_pb2
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State
from tests.paths import ROOT


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "ops.md").read_text()
    assert runpy.run_path(str(ROOT / "docs" / "ops.py"))["page"]() == written, "run `make docs` and commit docs/ops.md"


def test_no_op_is_both_defined_and_left_out() -> None:
    assert not set(REASONS) & set(op.catalogue())


def test_what_is_defined_needs_no_reason() -> None:
    defined = [name for name in op.catalogue() for _, pattern, _ in FAMILIES if re.fullmatch(pattern, name)]
    assert {name for name in defined if not name.startswith("_")} <= {
        "DebugGradientIdentity", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3", "XlaEinsum", "XlaSharding",
    }  # fmt: skip


def test_every_op_of_tensorflow_is_defined_or_says_why_not() -> None:
    """The names are those of TensorFlow 2.21, without what only its own tests register."""
    names = Path(__file__).with_name("tensorflow_ops.txt").read_text().split()
    known = {*op.catalogue(), *BECOME_CALLS}
    assert [name for name in names if name not in known and reason(name) is None] == []
    assert sorted(known - set(names)) == []


def _graph(kind: str) -> graph_pb2.GraphDef:
    message = graph_pb2.GraphDef()
    source = message.node.add(name="x", op="Placeholder")
    source.attr["dtype"].type = tensor_pb2.DT_FLOAT
    node = message.node.add(name="y", op=kind, input=["x"])
    node.attr["T"].type = tensor_pb2.DT_FLOAT
    return message


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("PyFunc", "Python function"),
        ("Whatever", "no such op"),
        ("IteratorGetNext", "feed what the iterator gives"),
        ("RestoreV2", "checkpoints"),
        ("DecodeJpeg", "pictures"),
        ("QueueDequeueManyV2", "input queues"),
    ],
)
def test_running_an_op_that_is_left_out_says_why(kind: str, why: str) -> None:
    graph = codec.graph_from_message(_graph(kind))
    with pytest.raises(UnsupportedOp, match=why) as caught:
        engine.compile(Segment(graph, (graph.tensor("x:0"),), (graph.tensor("y:0"),)))([np.float32(1)], State())
    assert caught.value.metadata["op"] == kind
    assert caught.value.reason == "UNSUPPORTED_OP"


def test_differentiating_an_op_that_is_left_out_says_why() -> None:
    graph = codec.graph_from_message(_graph("PyFunc"))
    with pytest.raises(NoGradient, match="Python function"):
        gradients([graph.tensor("y:0")], [graph.tensor("x:0")])
