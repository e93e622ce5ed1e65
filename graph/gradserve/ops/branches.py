"""If and Case: one of several bodies runs. The gradient is a branch on the same condition.

What the backward bodies read of the forward ones comes out of a second forward node as further outputs; a body that
is not taken gives a FakeParam in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument, InvalidGraph
from gradserve.graph import dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.functions import FORWARD, Function, add_function, argument, new_body, spec_of, trace
from gradserve.graph.graph import FunctionName, Graph, IndexedSlices, Node, Tensor
from gradserve.graph.inline import body_of
from gradserve.graph.op import Example, define, raw, within
from gradserve.graph.raising import RAISED
from gradserve.graph.shapes import Shape, is_static, widen
from gradserve.graph.symbolic import count_up, rank_of
from gradserve.graph.variants import TensorList
from gradserve.ops.bodies import (
    Call,
    Reverse,
    forward_of,
    fullest,
    is_unused,
    output_shapes,
    parts,
    reverse,
    unread,
    zeros_for,
)
from gradserve.ops.slices import densify


def branches_of(node: Node) -> list[FunctionName]:
    """The branches of an If (the one for true last) or a Case."""
    attrs = node.attrs
    return [attrs["else_branch"], attrs["then_branch"]] if "then_branch" in attrs else attrs["branches"]


def _named(node: Node, branches: Sequence[FunctionName]) -> dict[str, Any]:
    """The attrs of a node of the same type with other branches."""
    if "then_branch" in node.attrs:
        return {"else_branch": branches[0], "then_branch": branches[1]}
    return {"branches": list(branches)}


def _shapes(index: Tensor, inputs: Sequence[Tensor], *, node: Node) -> list[Shape]:
    if node.attrs["output_shapes"]:
        return list(node.attrs["output_shapes"])
    specs = [spec_of(tensor) for tensor in inputs]
    known = [shapes for b in branches_of(node) if (shapes := output_shapes(node, b, specs)) is not None]
    if not known:
        return [None] * len(node.attrs["Tout"])
    result = known[0]
    for shapes in known[1:]:
        if len(shapes) != len(result):
            raise InvalidGraph(f"its branches return {len(result)} and {len(shapes)} values.")
        result = [widen(a, b) for a, b in zip(result, shapes, strict=True)]
    return result


def truth(value: Any) -> bool:
    """TensorFlow's: a scalar is true if it is not 0 or empty, any other tensor if it has elements."""
    array = value if hasattr(value, "ndim") else np.asarray(value)
    return bool(array.size) if array.ndim else bool(array)


def place_of(node: Node, index: Any) -> int:
    """The number of the branch that is taken: the last one also for an index that is out of range."""
    if "then_branch" in node.attrs:
        return int(truth(index))
    count = len(node.attrs["branches"])
    return int(index) if 0 <= int(index) < count else count - 1


def _kernel(xp: Any, index: Any, inputs: Sequence[Any], *, node: Node, state: Any, call: Call) -> list[Any]:
    branches, place = branches_of(node), place_of(node, index)
    if node.bodies is None:
        node.bodies = (None,) * len(branches)
    taken = node.bodies[place]
    if taken is None:
        taken = body_of(node.graph, branches[place], [spec_of(tensor) for tensor in node.inputs[1:]])
        node.bodies = (*node.bodies[:place], taken, *node.bodies[place + 1 :])
    return call(taken, inputs, state)


def _gradient(
    dys: Sequence[Tensor | None], ys: Sequence[Tensor], index: Tensor, inputs: Sequence[Tensor],
    *, node: Node, sweep: Any,
) -> Any:  # fmt: skip
    specs = [spec_of(tensor) for tensor in inputs]
    wanted = [k for k, x in enumerate(inputs) if sweep.wants(x)]
    seeds = {k: dy for k, dy in enumerate(dys) if dy is not None and not is_unused(dy)}
    full = fullest(node)
    functions = [body_of(node.graph, branch, specs) for branch in branches_of(full)]
    hidden = sweep.hidden(node)
    backs = [reverse(function, sweep, list(seeds), wanted, hidden) for function in functions]
    given = [n for n in range(len(wanted) + len(hidden.xs)) if any(back.found[n] is not None for back in backs)]
    # Each output of a conditional of TF1 was a node of its own.
    missing = [] if RAISED in node.attrs else [k for n, k in enumerate(wanted) if n not in given]
    zeros = {k: zeros_for(inputs[k]) for k in sorted(unread(functions, sweep, dys, missing))}
    if not given:
        return None, [zeros.get(k) for k in range(len(inputs))]
    saved = [[t for t in back.captures if t not in back.body.inputs] for back in backs]
    values = _given_out(full, backs, saved)
    likes = {
        n: _like(node, hidden.xs[n - len(wanted)], [back.found[n] for back in backs]) for n in given if n >= len(wanted)
    }
    outer = [*inputs, *values, *likes.values(), *seeds.values()]
    results = [
        _Result(n, outer.index(likes[n]), None)
        if n in likes
        else _Result(n, wanted[n], _kind_of_indices([back.found[n] for back in backs], RAISED in node.attrs))
        for n in given
    ]
    bodies = [
        _backward(node.graph, f"{function.name}_grad", back, saved, number, outer, results)
        for number, (function, back) in enumerate(zip(functions, backs, strict=True))
    ]
    op = getattr(raw, node.type)
    found = iter(op.outputs(index, outer, Tout=bodies[0][1], **_named(node, [name for name, _ in bodies])))
    entries: dict[int, Any] = dict(zeros)
    for result in results:
        dx = next(found) if result.indices is None else IndexedSlices(next(found), next(found), next(found))
        if result.number < len(wanted):
            entries[wanted[result.number]] = dx
        else:
            sweep.hold(node, hidden.xs[result.number - len(wanted)], dx)
    return None, [entries.get(k) for k in range(len(inputs))]


class _Result(NamedTuple):
    """A gradient that the backward bodies return.

    Attributes:
        number: among those that were asked for.
        like: the argument that it is zeros like, where a body has none.
        indices: the dtype of the indices of slices; None for a dense gradient.
    """

    number: int
    like: int
    indices: DType | None


def _kind_of_indices(found: Sequence[Tensor | IndexedSlices | None], is_raised: bool) -> DType | None:
    """The dtype of the indices, int64 where the branches differ; None where the gradient is dense.

    As in TensorFlow it is made of slices where any branch has slices. In a conditional of TF1 each branch sends a
    gradient of its own, and with a dense one among them their sum is dense.
    """
    kinds = {dx.indices.dtype for dx in found if isinstance(dx, IndexedSlices)}
    if not kinds or (is_raised and any(isinstance(dx, Tensor) for dx in found)):
        return None
    return kinds.pop() if len(kinds) == 1 else dtypes.int64


def _like(node: Node, name: str, found: Sequence[Any]) -> Tensor:
    """A tensor of the shape of one in a branch, whose gradient is 0 where the branch is not taken."""
    for dx in found:
        if isinstance(dx, Tensor) and is_static(dx.shape):
            return raw.Fill(np.array(dx.shape, np.int32), node.graph.constant(np.zeros((), dx.dtype.numpy)))
    if name.partition(":")[0] in node.graph:
        return node.graph.tensor(name)
    raise InvalidArgument(
        f"The shape of {name} is not known, and it lies in a branch within a branch, where its gradient is zeros of that"
        " shape when another one is taken: give the placeholders before it their shapes.",
        tensor=name, node=node.name,
    )  # fmt: skip


def _given_out(node: Node, backs: Sequence[Reverse], saved: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """What is saved of each branch, from the node itself as far as it gives it out and from the node once more."""
    places = {tensor: k for back in backs for k, tensor in enumerate(back.body.outputs)}
    missing = [[t for t in captured if t not in places] for captured in saved]
    if any(missing):
        rest = [t for captured in missing for t in captured]
        places |= {t: k for k, t in enumerate(rest, len(node.outputs))}
        node = _forward_again(node, [back.body for back in backs], missing)
    return [node.outputs[places[t]] for captured in saved for t in captured]


def _forward_again(node: Node, bodies: Sequence[Function], saved: Sequence[Sequence[Tensor]]) -> Node:
    """The node once more, with what is saved of each branch as further outputs."""
    names: list[FunctionName] = []
    for number, body in enumerate(bodies):
        with body.graph.as_default():
            extra = [
                tensor if own == number else raw.FakeParam(dtype=tensor.dtype.base, shape=tensor.shape)
                for own, captured in enumerate(saved)
                for tensor in captured
            ]
        outputs = [*body.outputs, *extra]
        names.append(add_function(node.graph, f"{body.name}_saving", body.inputs, outputs, body.effects))
    tout = [*node.attrs["Tout"], *(tensor.dtype.base for captured in saved for tensor in captured)]
    index, *inputs = node.inputs
    attrs = {**_named(node, names), FORWARD: forward_of(node)}
    return getattr(raw, node.type).outputs(index, inputs, Tout=tout, **attrs)[0].node


def _backward(
    graph: Graph, name: str, back: Reverse, saved: Sequence[Sequence[Tensor]], number: int, outer: Sequence[Tensor],
    results: Sequence[_Result],
) -> tuple[FunctionName, list[DType]]:  # fmt: skip
    """The backward body of one branch, and the dtypes that it returns. Its arguments stand for `outer`."""
    with new_body(graph).as_default():
        arguments = [argument(spec_of(x), f"argument_{k}") for k, x in enumerate(outer)]
        count = len(back.body.inputs)
        mapping = dict(zip(back.body.inputs, arguments, strict=False))
        start = count + sum(len(captured) for captured in saved[:number])
        mapping.update(zip(saved[number], arguments[start:], strict=False))
        seeds = len(arguments) - len(back.seeds)
        mapping.update(zip(back.seeds, arguments[seeds:], strict=True))
        found = back.emit(mapping)
        returned: list[Tensor] = []
        for result in results:
            dx, like = found[result.number], arguments[result.like]
            if result.indices is not None:
                returned += parts(_slices(dx, like, result.indices))
            else:
                returned.append(zeros_for(like) if dx is None else densify(dx))
    return add_function(graph, name, arguments, returned), [tensor.dtype.base for tensor in returned]


def _slices(dx: Tensor | IndexedSlices | None, like: Tensor, kind: DType) -> IndexedSlices:
    """A gradient as slices with int64 shape: all rows of a dense one, no rows where there is none."""
    if isinstance(dx, IndexedSlices):
        indices = dx.indices if dx.indices.dtype is kind else raw.Cast(dx.indices, DstT=kind)
        shape = dx.dense_shape if dx.dense_shape.dtype is dtypes.int64 else raw.Cast(dx.dense_shape, DstT=dtypes.int64)
        return IndexedSlices(dx.values, indices, shape)
    whole = zeros_for(like) if dx is None else dx
    shape = raw.Shape(whole, out_type=dtypes.int64)
    if dx is None:
        none = np.array([0], np.int32)
        return IndexedSlices(
            raw.StridedSlice(whole, none, none, np.array([1], np.int32)),
            whole.graph.constant(np.zeros(0, kind.numpy), kind),
            shape,
        )
    rows = raw.Cast(raw.StridedSlice(shape, [0], [1], [1], shrink_axis_mask=1), DstT=kind)
    zero, one = (whole.graph.constant(np.array(k, kind.numpy), kind) for k in (0, 1))
    return IndexedSlices(whole, raw.Range(zero, rows, one), shape)


def _examples(draw: Any, name: str) -> list[Example]:
    """Branches that read different things; one of them gives a constant, which has no gradient."""
    x, number = draw.normal(draw.size(0, 3)), draw.size(-1, 4)

    def chosen(x: Tensor) -> list[Tensor]:
        inputs = [x, raw.Square(x)]
        specs = [spec_of(each) for each in inputs]
        bodies = [
            trace(x.graph, f"branch_{k}", specs, body)
            for k, body in enumerate(
                [
                    lambda x, y: [raw.Sin(x) * y],
                    lambda x, y: [raw.Exp(y) * x],
                    lambda x, y: [raw.OnesLike(y)],
                ]
            )
        ]
        op, kinds = getattr(raw, name), [x.dtype.base]
        if name.endswith("Case"):
            return list(op.outputs(np.int32(number), inputs, Tout=kinds, branches=bodies))
        condition = raw.Greater(raw.Sum(x, count_up(0, rank_of(x))), 0)
        attrs = {"then_branch": bodies[0], "else_branch": bodies[1 + number % 2]}
        return list(op.outputs(condition, inputs, Tout=kinds, **attrs))

    return [within(chosen, x, order=3)]


_BRANCHES = "Tin: list(type), Tout: list(type), then_branch: func, else_branch: func, output_shapes: list(shape) = []"
_CASES = "Tin: list(type), Tout: list(type), branches: list(func), output_shapes: list(shape) = []"

for _name in ("If", "StatelessIf", "Case", "StatelessCase"):
    _index, _attrs = ("cond: Tcond", f"Tcond: type, {_BRANCHES}") if "If" in _name else ("branch_index: int32", _CASES)
    define(
        f"{_name}({_index}, input: Tin; {_attrs}) -> (output: Tout)",
        shape=_shapes,
        gradient=_gradient,
        kernel=_kernel,
        stateful=not _name.startswith("Stateless"),
        dynamic=True,
        examples=lambda draw, name=_name: _examples(draw, name),
    )


def _nothing(xp: Any, *, dtype: DType, shape: Shape) -> Any:
    if dtype is dtypes.variant:
        return TensorList(dtype, None)
    return np.zeros([size or 0 for size in shape or ()], dtype.numpy)


define(
    "FakeParam(; dtype: type, shape: shape) -> (output: dtype)",
    shape=lambda *, shape: shape,
    gradient=lambda dy, y: (),
    kernel=_nothing,
    dynamic=True,
)
