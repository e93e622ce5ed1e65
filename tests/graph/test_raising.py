"""TF1's conditionals and loops, imported: values, gradients to third order, names, and what comes back out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.autodiff.why_none import Cause
from gradserve.errors import InvalidArgument, InvalidGraph, NotFound
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Graph, Tensor
from gradserve.v1 import graph_pb2, tensor_pb2
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State
from tests.graph.frames import Value, Writer
from tests.ops.differences import check, run

X = np.array([0.4, -0.7, 1.2])


def _counted(w: Writer, x: Value, rounds: int, step: Callable[[Value, Value], Value], scope: str = "while") -> Value:
    """A loop of so many rounds over y = step(y, x), from y = x; x is an invariant."""
    return w.loop(
        lambda i, y, x: w.node("Less", i, w.constant(np.int32(rounds), f"^{i}"), T=dtypes.int32),
        lambda i, y, x: [
            w.node("AddV2", i, w.constant(np.int32(1), f"^{i}"), T=dtypes.int32, name=f"{scope}/add"),
            step(y, x),
        ],
        [(w.constant(np.int32(0)), dtypes.int32), (x, dtypes.float64)],
        scope,
        [x],
    )[1]


def _power(w: Writer, x: Value, rounds: int = 3, scope: str = "while") -> Value:
    return _counted(w, x, rounds, lambda y, x: w.op("AddV2", w.op("Mul", y, x), w.op("Sin", y)), scope)


def _cond(w: Writer, x: Value) -> Value:
    p = w.flag("p")
    return w.conditional(p, [x], lambda x: [w.op("Mul", w.op("Sin", x), x)], lambda x: [w.op("Exp", x)], "cond")[0]


def _nested_cond(w: Writer, x: Value) -> Value:
    p, q = w.flag("p"), w.flag("q")

    def then(x: Value) -> list[Value]:
        inner = w.node("Switch", q, p, name="cond/q", T=dtypes.bool_)
        asks = w.node("Identity", f"{inner}:1", name="cond/q_id", T=dtypes.bool_)
        return w.conditional(asks, [x], lambda x: [w.op("Sin", x)], lambda x: [w.op("Mul", x, x)], "cond/cond")

    return w.conditional(p, [x], then, lambda x: [w.op("Neg", x)], "cond")[0]


def _same_predicate_inside(w: Writer, x: Value) -> Value:
    p = w.flag("p")

    def branch(sign: str) -> Callable[[Value], list[Value]]:
        return lambda x: w.conditional(
            p, [w.op(sign, x)], lambda x: [w.op("Sin", x)], lambda x: [w.op("Exp", x)], f"cond/{sign}"
        )

    return w.conditional(p, [x], branch("Neg"), branch("Square"), "cond")[0]


def _two_in_a_row(w: Writer, x: Value) -> Value:
    p = w.flag("p")
    y = w.conditional(p, [x], lambda x: [w.op("Sin", x)], lambda x: [w.op("Exp", x)], "cond")[0]
    return w.conditional(p, [y, x], lambda y, x: [w.op("Mul", y, x)], lambda y, x: [w.op("Neg", y)], "cond")[0]


def _several_outputs(w: Writer, x: Value) -> Value:
    p = w.flag("p")
    a, b = w.conditional(
        p, [x], lambda x: [w.op("Sin", x), w.op("Mul", x, x)], lambda x: [w.op("Exp", x), w.op("Neg", x)], "cond"
    )
    return w.op("Mul", a, b)


def _by_the_data(w: Writer, x: Value) -> Value:
    def norm(y: Value) -> Value:
        axes = w.constant(np.array([0], np.int32), f"^{y}")
        return w.node("Sum", w.op("Square", y), axes, T=dtypes.float64, Tidx=dtypes.int32)

    return w.loop(
        lambda y: w.op("Greater", norm(y), w.constant(0.1, f"^{y}")),
        lambda y: [w.op("Mul", w.op("Tanh", y), w.constant(0.6, f"^{y}"))],
        [(x, dtypes.float64)],
    )[0]


def _lowered(w: Writer, x: Value) -> Value:
    """A loop as TensorFlow lowers a While: every variable and every node of the body waits for a NoOp in the frame."""

    def step(y: Value, x: Value) -> Value:
        starts = w.node("NoOp", f"^{y}", name="while/starts")
        done = w.op("Sin", w.op("Mul", y, x), f"^{starts}")
        ends = w.node("NoOp", f"^{starts}", name="while/ends")
        return w.op("Identity", done, f"^{ends}")

    y = _counted(w, x, 3, step)
    for node in w.message.node:
        if node.op == "NextIteration":
            node.input.append("^while/ends")
    return y


def _loop_in_loop(w: Writer, x: Value) -> Value:
    return _counted(w, x, 2, lambda y, x: w.op("Mul", _power(w, y, 2, "while/while"), x))


def _cond_in_loop(w: Writer, x: Value) -> Value:
    def step(y: Value, x: Value) -> Value:
        axes = w.constant(np.array([0], np.int32), f"^{y}")
        p = w.op("Less", w.node("Sum", y, axes, T=dtypes.float64, Tidx=dtypes.int32), w.constant(1.0, f"^{y}"))
        return w.conditional(
            p, [y, x], lambda y, x: [w.op("Mul", w.op("Exp", y), x)], lambda y, x: [w.op("Sin", y)], "while/cond"
        )[0]

    return _counted(w, x, 3, step)


def _loop_in_cond(w: Writer, x: Value) -> Value:
    p = w.flag("p")
    return w.conditional(p, [x], lambda x: [_power(w, x, 2, "cond/while")], lambda x: [w.op("Exp", x)], "cond")[0]


def _case(w: Writer, x: Value) -> Value:
    index = w.node("Cast", w.flag("p"), SrcT=dtypes.bool_, DstT=dtypes.int32)
    parted = w.node("_SwitchN", x, index, T=dtypes.float64, num_outs=3)
    sides = [w.op("Sin", parted), w.op("Exp", f"{parted}:1"), w.op("Neg", f"{parted}:2")]
    return w.node("Merge", *sides, T=dtypes.float64, N=3)


MODELS: dict[str, Callable[[Writer, Value], Value]] = {
    "conditional": _cond,
    "nested conditionals": _nested_cond,
    "the same predicate inside": _same_predicate_inside,
    "two conditionals in a row": _two_in_a_row,
    "several outputs": _several_outputs,
    "case": _case,
    "loop": _power,
    "no rounds": lambda w, x: _power(w, x, 0),
    "rounds by the data": _by_the_data,
    "loop lowered from a While": _lowered,
    "loop in a loop": _loop_in_loop,
    "conditional in a loop": _cond_in_loop,
    "loop in a conditional": _loop_in_cond,
}
FRAME_OPS = {"Merge", "Enter", "Exit", "NextIteration", "LoopCond"}


def _graph(name: str, **flags: bool) -> tuple[Graph, Tensor, Tensor]:
    """The imported model with its x and y."""
    w = Writer(**flags)
    y = MODELS[name](w, w.placeholder("x"))
    graph = w.graph()
    return graph, graph.tensor("x"), graph.tensor(y)


def _slope(y: Tensor, x: Tensor) -> Tensor:
    (dx,) = gradients(y, x)
    assert isinstance(dx, Tensor)
    return dx


LOOPS = (
    "loop",
    "loop lowered from a While",
    "no rounds",
    "rounds by the data",
    "loop in a loop",
    "conditional in a loop",
)
SIDES = [(name, p, q) for name in MODELS for p in (True, False) for q in (True, False)
         if (p and q) or (name not in LOOPS and (q or name == "nested conditionals"))]  # fmt: skip


@pytest.mark.parametrize(("name", "p", "q"), SIDES)
def test_gradients_of_three_orders_agree_with_differences(name: str, p: bool, q: bool) -> None:
    graph, x, y = _graph(name, p=p, q=q)
    assert not FRAME_OPS & {node.type for node in graph.nodes}
    check([y], [x], [X], order=3)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("conditional", {"p": True}, np.sin(X) * X),
        ("conditional", {"p": False}, np.exp(X)),
        ("nested conditionals", {"p": True, "q": True}, np.sin(X)),
        ("nested conditionals", {"p": True, "q": False}, X * X),
        ("nested conditionals", {"p": False, "q": True}, -X),
        ("the same predicate inside", {"p": True}, np.sin(-X)),
        ("the same predicate inside", {"p": False}, np.exp(X**2)),
        ("two conditionals in a row", {"p": True}, np.sin(X) * X),
        ("two conditionals in a row", {"p": False}, -np.exp(X)),
        ("several outputs", {"p": True}, np.sin(X) * X * X),
        ("several outputs", {"p": False}, -np.exp(X) * X),
        ("case", {"p": True}, np.exp(X)),
        ("case", {"p": False}, np.sin(X)),
        ("no rounds", {}, X),
        ("loop in a conditional", {"p": False}, np.exp(X)),
    ],
)
def test_values_are_those_of_the_side_taken(name: str, flags: dict[str, bool], expected: np.ndarray[Any, Any]) -> None:
    _, x, y = _graph(name, **flags)
    np.testing.assert_allclose(run([y], [x], [X])[0], expected, rtol=1e-12)


def test_merges_of_one_conditional_share_one_if() -> None:
    graph, _, _ = _graph("several outputs", p=True)
    assert [node.type for node in graph.nodes].count("StatelessIf") == 1


def test_only_the_side_taken_runs() -> None:
    w = Writer(p=True)
    x = w.placeholder("x")
    forever = lambda x: [w.loop(lambda y: w.constant(np.array(True), f"^{y}"), lambda y: [y], [(x, dtypes.float64)])[0]]
    y = w.conditional(w.flag("p"), [x], lambda x: [w.op("Neg", x)], forever, "cond")[0]
    graph = w.graph()
    np.testing.assert_array_equal(run([graph.tensor(y)], [graph.tensor("x")], [X])[0], -X)


def test_a_merge_says_which_input_it_took() -> None:
    w = Writer(p=True)
    merged = _cond(w, w.placeholder("x"))
    w.node("Identity", f"{merged}:1", name="which", T=dtypes.int32)
    graph = w.graph()
    assert run([graph.tensor("which")], [graph.tensor("x")], [X])[0] == 1


def test_a_node_in_a_branch_is_computed_as_if_the_branch_had_been_taken() -> None:
    w = Writer(p=False)
    _cond(w, w.placeholder("x"))
    graph = w.graph()
    x, inner = graph.tensor("x"), graph.tensor("Sin:0")
    y, slope = run([inner, _slope(inner, x)], [x], [X])
    np.testing.assert_allclose(y, np.sin(X))
    np.testing.assert_array_equal(slope, np.zeros(3))  # the side was not taken


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("shape", [(3,), None])
def test_an_x_in_a_branch_has_the_gradient_of_what_lies_behind_the_conditional(taken: bool, shape: Any) -> None:
    w = Writer(p=taken)
    w.node("Placeholder", name="x", dtype=dtypes.float64, shape=shape)
    y = _cond(w, "x")  # x sin x, or exp x
    z = w.op("Mul", y, y)
    graph = w.graph()
    inner = graph.tensor("Sin:0")
    dx = _slope(graph.tensor(z), inner)
    slopes = run([dx, _slope(dx, inner), _slope(dx, graph.tensor("x"))], [graph.tensor("x")], [X])
    expected = [2 * np.sin(X) * X**2, 2 * X**2, 4 * np.sin(X) * X + 2 * X**2 * np.cos(X)]
    for slope, right in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, right if taken else np.zeros(3))


@pytest.mark.parametrize("taken", [True, False])
def test_a_stop_in_a_branch_stops_what_lies_behind_the_conditional(taken: bool) -> None:
    w = Writer(p=taken)
    y = _cond(w, w.placeholder("x"))
    graph = w.graph()
    x = graph.tensor("x")
    (dx,) = gradients(graph.tensor(y), x, stop_gradients=[graph.tensor("Sin:0")])
    assert isinstance(dx, Tensor)
    np.testing.assert_allclose(run([dx], [x], [X])[0], np.sin(X) if taken else np.exp(X))


@pytest.mark.parametrize(("p", "q"), [(True, True), (True, False), (False, True)])
def test_an_x_in_a_branch_within_a_branch_has_a_gradient(p: bool, q: bool) -> None:
    w = Writer(p=p, q=q)
    w.node("Placeholder", name="x", dtype=dtypes.float64, shape=(3,))
    y = _nested_cond(w, "x")
    graph = w.graph()
    inner = [graph.tensor("Sin:0"), graph.tensor("Mul:0")]
    found = gradients(graph.tensor(y), [*inner, graph.tensor("x")])
    slopes = run([dx for dx in found if isinstance(dx, Tensor)], [graph.tensor("x")], [X])
    np.testing.assert_array_equal(slopes[0], np.full(3, float(p and q)))
    np.testing.assert_array_equal(slopes[1], np.full(3, float(p and not q)))
    np.testing.assert_allclose(slopes[2], -np.ones(3) if not p else np.cos(X) if q else 2 * X)


def test_an_x_within_two_branches_must_have_a_known_shape() -> None:
    w = Writer(p=True, q=True)
    y = _nested_cond(w, w.placeholder("x"))
    graph = w.graph()
    with pytest.raises(InvalidArgument, match="The shape of Sin:0 is not known"):
        gradients(graph.tensor(y), graph.tensor("Sin:0"))


def test_what_a_branch_is_given_has_a_reason_that_names_what_to_ask_for() -> None:
    w = Writer(p=True)
    y = _cond(w, w.placeholder("x"))
    graph = w.graph()
    found = gradients(graph.tensor(y), graph.tensor("cond/Switch:1"))
    assert found == [None]
    assert "in place of x:0: ask for the gradient of that" in str(found.reasons[0])


def test_xs_inside_and_outside_of_a_branch_have_total_derivatives() -> None:
    w = Writer(p=True)
    y = _cond(w, w.placeholder("x"))
    both = w.op("AddV2", y, "Sin")  # reads the node by its name as well
    graph = w.graph()
    x, inner, product = (graph.tensor(name) for name in ("x", "Sin:0", "Mul:0"))
    found = gradients(graph.tensor(both), [x, inner, product])
    slopes = run([dx for dx in found if isinstance(dx, Tensor)], [x], [X])
    for slope, expected in zip(slopes, [np.sin(X) + X * np.cos(X) + np.cos(X), X + 1, np.ones(3)], strict=True):
        np.testing.assert_allclose(slope, expected)


def test_a_constant_that_a_branch_and_a_loop_read_is_an_x_like_any_other() -> None:
    w = Writer(p=True)
    x = w.constant(X, name="x")
    y = w.conditional(w.flag("p"), [x], lambda x: [w.op("Mul", x, x)], lambda x: [w.op("Neg", x)], "cond")[0]
    z = _power(w, x, 1)
    graph = w.graph()
    found = run([_slope(graph.tensor(name), graph.tensor("x")) for name in (y, z)], [], [])
    np.testing.assert_allclose(found[0], 2 * X)
    np.testing.assert_allclose(found[1], 2 * X + np.cos(X))


def test_a_node_in_a_loop_is_not_to_be_had_and_the_error_says_where_it_lies() -> None:
    graph, _, _ = _graph("loop")
    with pytest.raises(NotFound, match="'while/Identity' lies in the loop while/while_context"):
        graph.tensor("while/Identity:0")


def test_a_loop_variable_that_y_does_not_depend_on_has_no_gradient() -> None:
    w = Writer()
    x, z = w.placeholder("x"), w.placeholder("z")
    y, other = w.loop(
        lambda y, z: w.op("Less", w.constant(3.0, f"^{y}"), w.constant(2.0, f"^{y}")),
        lambda y, z: [w.op("Neg", y), w.op("Neg", z)],
        [(x, dtypes.float64), (z, dtypes.float64)],
    )
    graph = w.graph()
    found = gradients(graph.tensor(y), [graph.tensor("x"), graph.tensor("z")])
    assert found[0] is not None
    assert found[1] is None
    assert found.reasons[1] is not None
    assert found.reasons[1].cause is Cause.UNCONNECTED
    assert gradients([graph.tensor(y), graph.tensor(other)], [graph.tensor("z")])[0] is not None


# What goes out again


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_goes_out_as_it_came_in(name: str) -> None:
    w = Writer(p=True, q=False)
    MODELS[name](w, w.placeholder("x"))
    before = w.message.SerializeToString(deterministic=True)
    assert codec.graph_to_message(w.graph()).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", MODELS)
def test_gradients_extend_the_message_and_come_back(name: str) -> None:
    w = Writer(p=True, q=False)
    y = MODELS[name](w, w.placeholder("x"))
    graph = w.graph()
    x = graph.tensor("x")
    dx = _slope(graph.tensor(y), x)
    message = codec.graph_to_message(graph)
    assert list(message.node)[: len(w.message.node)] == list(w.message.node)
    assert not FRAME_OPS & {node.op for node in message.node[len(w.message.node) :]}
    again = codec.graph_from_message(message)
    second = _slope(again.tensor(dx.name), again.tensor("x"))
    values = run([again.tensor(dx.name), second], [again.tensor("x")], [X])
    for got, expected in zip(values, run([dx, _slope(dx, x)], [x], [X]), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert codec.graph_from_message(codec.graph_to_message(again)) is not None


def test_a_body_in_the_library_may_hold_frames() -> None:
    w = Writer()
    y = _power(w, w.placeholder("x"), 2)
    definition = graph_pb2.FunctionDef()
    definition.signature.name = "f"
    definition.signature.input_arg.add(name="x", type=tensor_pb2.DT_DOUBLE)
    definition.signature.output_arg.add(name="y", type=tensor_pb2.DT_DOUBLE)
    definition.ret["y"] = f"{y}:output:0"
    outputs = {"Const": "output", "Less": "z", "LoopCond": "output", "Mul": "z", "Sin": "y", "AddV2": "z"}
    types = {node.name: node.op for node in w.message.node}

    def named(text: str) -> str:
        name, _, index = text.partition(":")
        if text.startswith("^") or name == "x":
            return text
        if types[name] == "Switch":
            return f"{name}:{'output_true' if index == '1' else 'output_false'}:0"
        return f"{name}:{outputs.get(types[name], 'output')}:0"

    for node in w.message.node:
        if node.name != "x":
            copy = definition.node_def.add()
            copy.CopyFrom(node)
            copy.input[:] = [named(text) for text in node.input]
    caller = Writer()
    x = caller.placeholder("x")
    called = caller.node("PartitionedCall", x, name="call")
    node = caller.message.node[-1]
    node.attr["Tin"].list.type.append(tensor_pb2.DT_DOUBLE)
    node.attr["Tout"].list.type.append(tensor_pb2.DT_DOUBLE)
    node.attr["f"].func.name = "f"
    caller.message.library.function.append(definition)
    graph = caller.graph()
    check([graph.tensor(called)], [graph.tensor("x")], [X], order=2)
    assert graph.tensor("call:0") is graph.node("call").outputs[0]


# State


def _run_after_init(graph: Graph, y: str) -> State:
    """The state after the node `init`, then y, have run with x = X."""
    state = State()
    for fetches, targets in (((), (graph.node("init"),)), ((graph.tensor(y),), ())):
        engine.compile(Segment(graph, (graph.tensor("x"),), fetches, targets))([X], state)
        state.values.update(state.updates)
        state.updates = {}
    return state


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_assigns_only_if_it_is_taken(taken: bool) -> None:
    w = Writer(p=taken)
    x = w.placeholder("x")
    variable = w.node("VarHandleOp", name="v", dtype=dtypes.float64, shape=(3,))
    w.node("AssignVariableOp", variable, x, name="init", dtype=dtypes.float64)
    parted = w.node("Switch", variable, w.flag("p"), name="cond/handle", T=dtypes.resource)

    def assign(x: Value) -> list[Value]:
        done = w.node("AssignAddVariableOp", f"{parted}:1", x, name="cond/add", dtype=dtypes.float64)
        return [w.op("Identity", x, f"^{done}")]

    y = w.conditional("p", [x], assign, lambda x: [w.op("Neg", x)], "cond")[0]
    state = _run_after_init(w.graph(), y)
    np.testing.assert_array_equal(state.values["v"], X * 2 if taken else X)


def test_each_round_of_a_loop_assigns() -> None:
    w = Writer()
    x = w.placeholder("x")
    variable = w.node("VarHandleOp", name="v", dtype=dtypes.float64, shape=(3,))
    w.node("AssignVariableOp", variable, x, name="init", dtype=dtypes.float64)
    handle = w.node(
        "Enter", variable, name="while/handle", T=dtypes.resource, frame_name="while/while_context", is_constant=True
    )

    def step(y: Value, x: Value) -> Value:
        done = w.node("AssignAddVariableOp", handle, y, name="while/add_v", dtype=dtypes.float64)
        return w.op("Mul", w.op("Identity", y, f"^{done}"), x)

    y = _counted(w, x, 2, step)
    state = _run_after_init(w.graph(), y)
    np.testing.assert_allclose(state.values["v"], X + X + X * X)


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_assigns_to_a_reference_only_if_it_is_taken(taken: bool) -> None:
    w = Writer(p=taken)
    x = w.placeholder("x")
    variable = w.node("VariableV2", name="v", dtype=dtypes.float64, shape=(3,))
    w.op("Assign", variable, x, name="init")
    w.flag("p")

    def assign(x: Value) -> list[Value]:
        held = w.op("RefSwitch", variable, "p", name="cond/RefSwitch")
        return [w.op("Identity", w.op("AssignSub", f"{held}:1", w.op("Neg", x), name="cond/sub"))]

    y = w.conditional("p", [x], assign, lambda x: [w.op("Neg", x)], "cond")[0]
    graph = w.graph()
    state = _run_after_init(graph, y)
    np.testing.assert_array_equal(state.values["v"], X * 2 if taken else X)
    assert codec.graph_to_message(graph) == w.message


def test_each_round_of_a_loop_assigns_to_a_reference() -> None:
    w = Writer()
    x = w.placeholder("x")
    variable = w.node("VariableV2", name="v", dtype=dtypes.float64, shape=(3,))
    w.op("Assign", variable, x, name="init")
    held = w.node(
        "RefEnter", variable, name="while/v", T=dtypes.float64, frame_name="while/while_context", is_constant=True
    )
    y = _counted(w, x, 2, lambda y, x: w.op("Mul", w.op("AssignAdd", held, y, name="while/add_v"), x))
    state = _run_after_init(w.graph(), y)
    np.testing.assert_allclose(state.values["v"], 2 * X + 2 * X * X)  # x + x, and the next round adds that times x


# What can't be raised


def _exit_outside(w: Writer) -> None:
    w.op("Exit", w.placeholder("x"), name="out")


def _no_next(w: Writer) -> None:
    _power(w, w.placeholder("x"))
    entered = w.node("Enter", "x", name="lost", T=dtypes.float64, frame_name="while/while_context")
    w.op("Neg", entered, name="while/reader")
    next(node for node in w.message.node if node.op == "NextIteration" and node.name.endswith("_1")).input[0] = (
        "while/reader"
    )


def _two_conditions(w: Writer) -> None:
    _power(w, w.placeholder("x"))
    w.node("LoopCond", "while/Less" if "while/Less" in {n.name for n in w.message.node} else "Less", name="again")


def _not_parted(w: Writer) -> None:
    x = w.placeholder("x")
    w.node("Merge", x, w.op("Neg", x), name="joined", T=dtypes.float64, N=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_exit_outside, "out .Exit. lies in no loop"),
        (_no_next, "lost .Enter. is read inside of the loop, but is neither"),
        (_two_conditions, "The frame while/while_context has loop variables and 2 LoopCond nodes"),
        (_not_parted, "joined .Merge. joins tensors that no Switch"),
    ],
)
def test_what_does_not_close_is_refused_by_name(build: Callable[[Writer], None], message: str) -> None:
    w = Writer()
    build(w)
    with pytest.raises(InvalidGraph, match=message):
        w.graph()
