"""What `gradients` returns, adds and refuses: the contract, point by point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import AggregationMethod
from gradserve.autodiff import gradients as typed_gradients
from gradserve.autodiff.why_none import Cause
from gradserve.graph import codec
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run


def gradients(*arguments: Any, **options: Any) -> Any:
    """The function under test; the tests know what kind of entries they get."""
    return typed_gradients(*arguments, **options)


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    with graph.as_default():
        yield graph


def _x(shape: tuple[int, ...] = (3,), name: str = "x", dtype: str = "float64") -> Tensor:
    return raw.Placeholder(dtype=dtype, shape=shape, name=name)


def test_gradients_are_total_derivatives(graph: Graph) -> None:
    x = _x(())
    h = x * x
    dx, dh = gradients(h * x, [x, h])
    value = np.float64(2)
    # y = x³: dy/dx = 3x² = 12, and dy/dh = x = 2 with the other factor held.
    assert [float(v) for v in run([dx, dh], [x], [value])] == [12, 2]


def test_no_path_gives_none_and_a_reason(graph: Graph) -> None:
    x, other = _x(), _x(name="other")
    found = gradients(raw.Sin(x), [other])
    assert found == [None]
    assert found.reasons[0] is not None
    assert found.reasons[0].cause is Cause.UNCONNECTED


def test_an_op_without_derivative_is_named_as_the_reason(graph: Graph) -> None:
    x = _x()
    found = gradients(raw.Sin(raw.StopGradient(x)), [x])
    assert found == [None]
    reason = found.reasons[0]
    assert reason is not None
    assert (reason.cause, reason.op, reason.path) == (Cause.NOT_DIFFERENTIABLE, "StopGradient", ("x", "StopGradient"))


def test_integers_cut_the_path(graph: Graph) -> None:
    x = raw.Placeholder(dtype="int32", shape=(3,), name="x")
    found = gradients(raw.Cast(x, DstT="float64"), [x])
    assert found == [None]
    assert found.reasons[0] is not None
    assert found.reasons[0].cause is Cause.INTEGER_PATH


def test_unconnected_zero_gives_zeros_outside_of_the_scope(graph: Graph) -> None:
    x, other = _x(), _x(name="other")
    (zeros,) = gradients(raw.Sin(x), [other], unconnected_gradients="zero")
    assert isinstance(zeros, Tensor)
    assert zeros.node.name == "zeros_like"
    assert run([zeros], [other], [np.ones(3)])[0].tolist() == [0, 0, 0]


def test_duplicate_ys_count_twice_and_duplicate_xs_share_one_tensor(graph: Graph) -> None:
    x = _x(())
    y = raw.Sin(x)
    first, second = gradients([y, y], [x, x])
    assert first is second
    assert float(run([first], [x], [np.float64(0)])[0]) == 2


def test_y_that_is_x_gives_the_seed(graph: Graph) -> None:
    x = _x()
    (dx,) = gradients(x, x)
    assert run([dx], [x], [np.zeros(3)])[0].tolist() == [1, 1, 1]


def test_names_follow_the_scope(graph: Graph) -> None:
    x = _x()
    y = raw.Square(x)
    for prefix in ("gradients", "gradients_1"):
        (dx,) = gradients(y, x)
        assert dx.node.name.startswith(f"{prefix}/Square_grad/")
    (dx,) = gradients(y, x, name="mine")
    assert dx.node.name.startswith("mine/Square_grad/")


def test_only_what_leads_to_an_x_is_emitted(graph: Graph) -> None:
    a, b = _x((2, 3), "a"), _x((3, 4), "b")
    y = raw.MatMul(a, b)
    before = len(graph)
    gradients(y, a)
    assert sum(node.type == "MatMul" for node in graph.nodes[before:]) == 1


def test_no_forward_node_changes(graph: Graph) -> None:
    x = _x()
    y = raw.Exp(raw.Sin(x))
    before = codec.graph_to_message(graph)
    gradients(y, x)
    after = codec.graph_to_message(graph)
    assert list(after.node)[: len(before.node)] == list(before.node)


def test_a_failed_call_adds_nothing(graph: Graph) -> None:
    x = _x()
    y = raw.PreventGradient(raw.Sin(x), message="not here")
    z = raw.Exp(y)
    before = len(graph)
    with pytest.raises(LookupError, match="PreventGradient"):
        gradients(z, x)
    assert len(graph) == before


def test_an_op_without_a_rule_raises_with_the_path_from_y() -> None:
    from gradserve.v1 import graph_pb2, tensor_pb2

    kind = graph_pb2.AttrValue(type=tensor_pb2.DT_DOUBLE)
    message = graph_pb2.GraphDef(
        node=[
            graph_pb2.NodeDef(name="x", op="Placeholder", attr={"dtype": kind}),
            graph_pb2.NodeDef(name="odd", op="Unheard", input=["x"], attr={"T": kind}),
            graph_pb2.NodeDef(name="y", op="Exp", input=["odd"], attr={"T": kind}),
        ]
    )
    graph = codec.graph_from_message(message)
    with pytest.raises(LookupError, match=r"'odd' \(op type: Unheard\).*Path from y: y <- odd"):
        gradients(graph.tensor("y"), graph.tensor("x"))


@pytest.mark.parametrize("seed", [np.ones(2), np.ones(3, np.float32), np.ones(3, np.int32), np.ones(())])
def test_a_seed_of_other_shape_or_dtype_is_refused(graph: Graph, seed: np.ndarray) -> None:
    x = _x()
    with pytest.raises(ValueError, match=r"grad_ys\[0\].*ys\[0\]"):
        gradients(raw.Exp(x), x, grad_ys=[seed])


@pytest.mark.parametrize(("what", "position"), [("ys", 0), ("xs", 1), ("stop_gradients", 0)])
def test_none_is_refused_by_position(graph: Graph, what: str, position: int) -> None:
    x = _x()
    arguments: dict[str, Any] = {"ys": [raw.Exp(x)], "xs": [x, x], "stop_gradients": [x]}
    arguments[what][position] = None
    with pytest.raises(TypeError, match=rf"{what}\[{position}\]"):
        gradients(**arguments)


def test_stop_gradients_acts_on_the_tensor_alone(graph: Graph) -> None:
    x = _x((4,))
    left, right = raw.Split.outputs(0, x, num_split=2)
    (dx,) = gradients(left + right, x, stop_gradients=[left])
    # Only the right half lets the gradient through.
    assert run([dx], [x], [np.zeros(4)])[0].tolist() == [0, 0, 1, 1]


def test_a_stopped_x_still_gets_its_own_gradient(graph: Graph) -> None:
    x = _x(())
    h = raw.Sin(x)
    dx, dh = gradients(h * 3, [x, h], stop_gradients=[h])
    assert dx is None
    assert float(run([dh], [x], [np.float64(0)])[0]) == 3


def test_colocation_marks_every_added_node(graph: Graph) -> None:
    with graph.device("/job:worker/task:1"):
        x = _x()
        y = raw.Sin(x)
    before = len(graph)
    gradients(y, x, colocate_gradients_with_ops=True)
    for node in graph.nodes[before:]:
        assert node.attrs["_class"] == ["loc:@Sin"]
        assert node.device == "/job:worker/task:1"


def test_gating_ties_the_gradients_of_one_op(graph: Graph) -> None:
    a, b = _x(name="a"), _x(name="b")
    da, db = gradients(a * b, [a, b], gate_gradients=True)
    assert da.node.name == "gradients/Mul_grad/tuple/control_dependency"
    assert db.node.name == "gradients/Mul_grad/tuple/control_dependency_1"
    (group,) = da.node.control_inputs
    assert {node.type for node in group.control_inputs} == {"Mul"}
    assert len(group.control_inputs) == 2


def test_gates_stand_where_the_gradients_stand(graph: Graph) -> None:
    with graph.device("/job:worker/task:1"):
        a, b = _x(name="a"), _x(name="b")
        y = a * b
    da, _ = gradients(y, [a, b], gate_gradients=True, colocate_gradients_with_ops=True)
    (group,) = da.node.control_inputs
    assert group.device == da.node.device == "/job:worker/task:1"
    assert "_class" not in group.attrs


def test_what_stands_beside_the_rules_is_named_as_in_tensorflow(graph: Graph) -> None:
    table, dense = _x((4, 1), "table"), _x((4, 1), "dense")
    rows = [raw.GatherV2(table, np.array([2], kind), 0) for kind in (np.int32, np.int64, np.int32)]
    first, _ = raw.IdentityN.outputs([rows[0], dense])
    before = len(graph)
    gradients([first, *rows[1:]], [table, dense])
    names = {node.name for node in graph.nodes[before:] if node.name.count("/") == 1}
    assert {"gradients/zeros_like", "gradients/concat", "gradients/concat_1"} <= names
    # int64 indices stay as they are; the others are cast.
    assert {"gradients/Cast", "gradients/Cast_1"} <= names
    assert "gradients/Cast_2" not in names


@pytest.mark.parametrize("function", [raw.AddV2, raw.Sub])
def test_sums_of_complex_numbers_need_no_conjugation(graph: Graph, function: Any) -> None:
    a, b = _x(name="a", dtype="complex128"), _x(name="b", dtype="complex128")
    before = len(graph)
    gradients(function(a, b), [a, b], [np.ones(3, np.complex128)])
    assert "Conj" not in {node.type for node in graph.nodes[before:]}


@pytest.mark.parametrize(("method", "sums"), [("ADD_N", [5]), ("EXPERIMENTAL_TREE", [2] * 4), (2, [2] * 4)])
def test_each_method_sums_in_its_own_form(graph: Graph, method: str, sums: list[int]) -> None:
    x = _x(())
    total = raw.AddN([x * k for k in (1.0, 2.0, 3.0, 4.0, 5.0)])
    before = len(graph)
    (dx,) = gradients(total, x, aggregation_method=method)
    assert [len(node.inputs) for node in graph.nodes[before:] if node.type == "AddN"] == sums
    assert float(run([dx], [x], [np.float64(1)])[0]) == 15


def test_a_tree_takes_log_rounds(graph: Graph) -> None:
    x = _x(())
    total = raw.AddN([x * float(k) for k in range(8)])
    (dx,) = gradients(total, x, aggregation_method=AggregationMethod.EXPERIMENTAL_TREE)
    depth, node = 0, dx.node
    while node.type == "AddN":
        depth, node = depth + 1, node.inputs[0].node
    assert depth == 3


def test_partial_sums_stand_on_their_terms_device(graph: Graph) -> None:
    x = _x(())
    terms = []
    for task in (0, 1):
        with graph.device(f"/job:worker/task:{task}"):
            terms += [raw.Sin(x), raw.Cos(x)]
    before = len(graph)
    gradients(terms, x, colocate_gradients_with_ops=True)
    sums = [node for node in graph.nodes[before:] if node.type == "AddN"]
    assert [node.device for node in sums][:2] == ["/job:worker/task:0", "/job:worker/task:1"]
    assert len(sums) == 3


def test_an_unknown_method_is_refused(graph: Graph) -> None:
    x = _x()
    with pytest.raises(ValueError, match="Invalid `aggregation_method` specified 7"):
        gradients(raw.Sin(x), x, aggregation_method=7)


def test_lookups_give_slices_that_stay_as_they_come(graph: Graph) -> None:
    table = _x((5, 2), "table")
    y = raw.GatherV2(table, np.array([3, 1, 3], np.int32), 0)
    (slices,) = gradients(y, table)
    assert isinstance(slices, IndexedSlices)
    assert run([slices.indices], [table], [np.zeros((5, 2))])[0].tolist() == [3, 1, 3]


def test_deduplicated_slices_have_each_index_once_in_order(graph: Graph) -> None:
    table = _x((5, 2), "table")
    y = raw.GatherV2(table, np.array([3, 1, 3], np.int32), 0)
    (slices,) = gradients(y, table, deduplicate_slices=True)
    values, indices = run([slices.values, slices.indices], [table], [np.zeros((5, 2))])
    assert indices.tolist() == [1, 3]
    assert values.tolist() == [[1, 1], [2, 2]]


def test_dense_and_sparse_gradients_add_up_to_a_dense_one(graph: Graph) -> None:
    table = _x((3, 1), "table")
    y = raw.Sum(raw.GatherV2(table, np.array([2], np.int32), 0), [0, 1]) + raw.Sum(table, [0, 1])
    (dx,) = gradients(y, table)
    assert isinstance(dx, Tensor)
    assert run([dx], [table], [np.zeros((3, 1))])[0].ravel().tolist() == [1, 1, 2]


def test_complex_y_needs_a_seed(graph: Graph) -> None:
    z = _x((), "z", "complex128")
    with pytest.raises(TypeError, match="must set grad_ys"):
        gradients(z * z, z)
    (dz,) = gradients(z * z, z, grad_ys=[np.complex128(1)])
    # conj(2z) at 2 + 3i.
    assert complex(run([dz], [z], [np.complex128(2 + 3j)])[0]) == 4 - 6j


def test_a_y_without_a_default_seed_is_refused_also_where_nothing_leads_to_it(graph: Graph) -> None:
    x = _x(())
    for y in (_x((), "z", "complex64"), graph.constant("text")):
        with pytest.raises(TypeError):
            gradients(y, x)


def test_lists_of_different_length_are_refused(graph: Graph) -> None:
    x = _x()
    with pytest.raises(ValueError, match="Passed 2 grad_ys for 1 ys"):
        gradients(raw.Sin(x), x, grad_ys=[None, None])


def test_empty_xs_and_empty_ys(graph: Graph) -> None:
    x = _x()
    assert gradients(raw.Sin(x), []) == []
    assert gradients([], [x]) == [None]


def test_an_x_beside_an_output_on_the_way_gets_zeros(graph: Graph) -> None:
    x = _x((2, 3))
    first, second = raw.Split.outputs(0, x, num_split=2)
    assert gradients([second], [first]) == [None]
    beside, above = gradients([second], [first, x])
    found = run([beside, above], [x], [np.ones((2, 3))])
    assert [dx.tolist() for dx in found] == [[[0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]
