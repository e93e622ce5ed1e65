"""While: a body runs until a condition says stop. The gradient is a loop that runs the body backwards, last round first.

What the backward body reads of each round is stacked by a second forward loop, in one TensorList a value; it counts
the rounds, too. What stays the same in all rounds is not stacked but passed to the backward loop as it is. Another
gradient of the loop takes the stacks that are there. As in TensorFlow, a variable that no y depends on has gradient 0,
but none at all in a loop that was one of TF1's frames; and there the gradients of what stays the same add up beside the
loop, so that rows of a table stay rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidGraph, LimitExceeded
from gradserve.graph import dtypes
from gradserve.graph.functions import (
    FORWARD,
    Function,
    Spec,
    add_function,
    argument,
    copy_of,
    new_body,
    spec_of,
    trace,
)  # fmt: skip
from gradserve.graph.graph import FunctionName, IndexedSlices, Node, Tensor
from gradserve.graph.inline import body_of
from gradserve.graph.op import Example, define, raw, within
from gradserve.graph.raising import RAISED
from gradserve.graph.shapes import Shape, compatible, merge, widen
from gradserve.graph.symbolic import concat, count_up, part, rank_of, shape_of
from gradserve.ops.bodies import (
    Call,
    Reverse,
    forward_of,
    fullest,
    is_unused,
    output_shapes,
    reverse,
    shape_vector,
    zeros_for,
)
from gradserve.ops.branches import truth
from gradserve.ops.recurrence import through
from gradserve.ops.slices import densify

ROUNDS = "_gradserve_rounds"
"""The attr of a loop that counts its rounds: the place of the count among its outputs."""

MOST_ROUNDS = 4_000_000
"""Of one loop, so that one that never ends does not hold a worker for ever: some minutes of the smallest bodies."""


def loop_specs(node: Node) -> list[Spec]:
    """What is known of the loop variables in every round: a dimension that changes is unknown.

    What the attr output_shapes says holds in every round, also where it does not follow from the inputs and the body.
    """
    said = node.attrs["output_shapes"] or [None] * len(node.inputs)
    specs = [_told(spec_of(tensor), shape) for tensor, shape in zip(node.inputs, said, strict=True)]
    while True:
        found = output_shapes(node, node.attrs["body"], specs)
        if found is None:
            return [spec._replace(shape=None) for spec in specs]
        if len(found) != len(specs):
            raise InvalidGraph(f"its body takes {len(specs)} values and returns {len(found)}.")
        wider = [spec._replace(shape=widen(spec.shape, shape)) for spec, shape in zip(specs, found, strict=True)]
        wider = [_told(spec, shape) for spec, shape in zip(wider, said, strict=True)]
        if wider == specs:
            return specs
        specs = wider


def _told(spec: Spec, said: Shape) -> Spec:
    return spec._replace(shape=merge(spec.shape, said)) if compatible(spec.shape, said) else spec


def _shapes(inputs: Sequence[Tensor], *, node: Node) -> list[Shape]:
    return [spec.shape for spec in loop_specs(node)]


def _kernel(xp: Any, inputs: Sequence[Any], *, node: Node, state: Any, call: Call) -> list[Any]:
    if node.bodies is None:
        specs = loop_specs(node)
        node.bodies = tuple(body_of(node.graph, node.attrs[name], specs) for name in ("cond", "body"))
    condition, body = node.bodies
    values = list(inputs)
    for _ in range(MOST_ROUNDS):
        if not truth(call(condition, values, state)[0]):
            return values
        values = call(body, values, state)
    raise too_many_rounds(node)


def too_many_rounds(node: Node) -> LimitExceeded:
    """The error of a loop that does not end."""
    return LimitExceeded(
        f"The loop {node.name} has not ended after {MOST_ROUNDS:,} rounds: make its condition false sooner, or give it "
        "fewer and larger rounds.",
        node=node.name, rounds=MOST_ROUNDS,
    )  # fmt: skip


def _gradient(
    dys: Sequence[Tensor | None], ys: Sequence[Tensor], inputs: Sequence[Tensor], *, node: Node, sweep: Any
) -> list[Any]:
    full = fullest(node)
    specs = loop_specs(full)
    body = body_of(node.graph, full.attrs["body"], specs)
    wanted = [k for k, x in enumerate(inputs) if sweep.wants(x)]
    if RAISED in node.attrs:
        used = [j for j, dy in enumerate(dys) if not is_unused(dy)]
        wanted = [k for k in wanted if not set(used).isdisjoint(_reached(body, [k]))]
    if not wanted:
        return [[None] * len(inputs)]
    moving = [k for k in _moving(body, wanted) if k < len(inputs)]
    apart = [k for k in moving if RAISED in node.attrs and _stays(body, k) and is_unused(dys[k])]
    apart += [k for k in wanted if specs[k].dtype.kind == "r"]
    moving = [k for k in moving if k not in apart]
    back = reverse(body, sweep, moving, [*moving, *apart])
    fixed = {k: t for k, t in enumerate(back.body.inputs) if back.body.outputs[k] is t or t.dtype.kind == "r"}
    saved = [t for t in back.captures if t not in fixed.values()]
    rounds, stacks = _stacked(full, specs, back, saved)
    sums = [
        _Rows(inputs[k], dx) if RAISED in node.attrs and isinstance(dx, IndexedSlices) else _Sum(inputs[k])
        for k, dx in zip(apart, back.found[len(moving) :], strict=True)
    ]
    invariant = [k for k, t in fixed.items() if t in back.captures or k in apart]
    found = _backward(
        node, back, saved, rounds, [dys[k] for k in moving], sums, stacks, [(k, inputs[k]) for k in invariant]
    )
    entries = dict(zip([*moving, *apart], found, strict=True))
    return [[entries.get(k) if k in wanted else None for k in range(len(inputs))]]


def _stays(body: Function, k: int) -> bool:
    """Whether an array is the same in all rounds."""
    return body.outputs[k] is body.inputs[k] and body.inputs[k].dtype.kind != "v"


class _Sum:
    """The gradient of what stays the same: the sum over the rounds.

    Attributes:
        starts: what the backward loop carries for it.
    """

    def __init__(self, x: Tensor) -> None:
        self.starts = [zeros_for(x)]

    def add(self, carried: Sequence[Tensor], dx: Tensor | IndexedSlices | None) -> list[Tensor]:
        """What is carried after a round."""
        return [carried[0] if dx is None else carried[0] + densify(dx)]

    def result(self, carried: Sequence[Tensor]) -> Tensor | IndexedSlices:
        """The gradient after the last round."""
        return carried[0]


class _Rows(_Sum):
    """The gradient of a table of which each round reads rows: the rows of all rounds, in two lists."""

    def __init__(self, x: Tensor, dx: IndexedSlices) -> None:
        self._whole = zeros_for(x) if x.dtype.kind == "r" else x
        self._values = concat(np.array([-1], np.int32), part(shape_of(self._whole), 1))
        self._indices = np.array([-1], np.int32)
        self.starts = [
            raw.EmptyTensorList(shape, np.int32(-1), element_dtype=rows.dtype.base, name="rows")
            for shape, rows in ((self._values, dx.values), (self._indices, dx.indices))
        ]
        self._kinds = dx.values.dtype.base, dx.indices.dtype.base

    def add(self, carried: Sequence[Tensor], dx: Tensor | IndexedSlices | None) -> list[Tensor]:
        assert isinstance(dx, IndexedSlices)
        return [
            raw.TensorListPushBack(held, rows, element_dtype=kind)
            for held, rows, kind in zip(carried, (dx.values, dx.indices), self._kinds, strict=True)
        ]

    def result(self, carried: Sequence[Tensor]) -> Tensor | IndexedSlices:
        values, indices = (
            raw.TensorListConcatV2.outputs(held, shape, np.zeros(0, np.int64), element_dtype=kind)[0]
            for held, shape, kind in zip(carried, (self._values, self._indices), self._kinds, strict=True)
        )
        shape = shape_of(self._whole)
        return IndexedSlices(
            values, indices, shape if isinstance(shape, Tensor) else values.graph.constant(shape, dtypes.int32)
        )


def _moving(body: Function, wanted: Sequence[int]) -> list[int]:
    """The loop variables that the wanted ones reach, whose cotangents the loop carries."""
    kinds = [tensor.dtype for tensor in body.inputs]
    return sorted(k for k in _reached(body, wanted) if kinds[k].is_trainable and kinds[k].kind != "r")


def _reached(body: Function, wanted: Sequence[int]) -> set[int]:
    """The loop variables that the wanted ones reach in any number of rounds, themselves among them."""
    reached: set[int] = set()
    queue = list(wanted)
    while queue:
        k = queue.pop()
        if k in reached:
            continue
        reached.add(k)
        after = _after(body.inputs[k])
        queue.extend(j for j, tensor in enumerate(body.outputs) if tensor in after)
    return reached


def _after(x: Tensor) -> set[Tensor]:
    """The tensors of trainable dtypes that follow from x."""
    seen = {x}
    stack = [x]
    while stack:
        for reader, _ in stack.pop().consumers:
            for tensor in reader.outputs:
                if tensor.dtype.is_trainable and tensor not in seen:
                    seen.add(tensor)
                    stack.append(tensor)
    return seen


def _stacked(node: Node, specs: Sequence[Spec], back: Reverse, saved: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The number of a loop's rounds, and the stacks of what the backward body reads, of the loop itself as far as it
    has them and of the loop once more for the rest."""
    places = _stacks(node, back.body)
    missing = [t for t in saved if t not in places]
    if missing or ROUNDS not in node.attrs:
        first = len(node.outputs) + (ROUNDS not in node.attrs)
        places |= {t: k for k, t in enumerate(missing, first)}
        node = _forward_again(node, specs, back.body, missing)
    return node.outputs[node.attrs[ROUNDS]], [node.outputs[places[t]] for t in saved]


def _stacks(node: Node, body: Function) -> dict[Tensor, int]:
    """The tensors of a body that each round adds to a list which starts empty, with the list's place."""
    return {
        out.node.inputs[1]: k
        for k, (x, held, out) in enumerate(zip(node.inputs, body.inputs, body.outputs, strict=True))
        if x.node.type == "EmptyTensorList" and out.node.type == "TensorListPushBack" and out.node.inputs[0] is held
    }


def _forward_again(node: Node, specs: Sequence[Spec], body: Function, saved: Sequence[Tensor]) -> Node:
    """The loop once more. It also counts its rounds, if it has not done so yet, and then stacks what is to be saved."""
    graph = node.graph
    stacks = [
        raw.EmptyTensorList(shape_vector(t.shape), np.int32(-1), element_dtype=t.dtype.base, name="stack")
        for t in saved
    ]
    counts = [] if ROUNDS in node.attrs else [graph.constant(np.int32(0))]
    inputs = [*node.inputs, *counts, *stacks]
    with body.graph.as_default():
        counted = [argument(spec_of(count), "rounds") for count in counts]
        lists = [argument(spec_of(stack), f"stack_{k}") for k, stack in enumerate(stacks)]
        pushed = [
            raw.TensorListPushBack(held, t, element_dtype=t.dtype.base) for held, t in zip(lists, saved, strict=True)
        ]
        outputs = [*body.outputs, *(count + 1 for count in counted), *pushed]
        saving = add_function(graph, f"{body.name}_saving", [*body.inputs, *counted, *lists], outputs, body.effects)
    condition = copy_of(body_of(graph, node.attrs["cond"], specs))
    with condition.graph.as_default():
        more = [argument(spec_of(x), f"more_{k}") for k, x in enumerate(inputs[len(node.inputs) :])]
        asking = add_function(
            graph, f"{condition.name}_saving", [*condition.inputs, *more], condition.outputs, condition.effects
        )
    attrs = {FORWARD: forward_of(node), ROUNDS: node.attrs.get(ROUNDS, len(node.outputs))}
    return _loop(node, inputs, asking, saving, **attrs)[0].node


def _backward(
    node: Node, back: Reverse, saved: Sequence[Tensor], rounds: Tensor, cotangents: Sequence[Any],
    sums: Sequence[_Sum], stacks: Sequence[Tensor], invariant: Sequence[tuple[int, Tensor]],
) -> list[Tensor | IndexedSlices]:  # fmt: skip
    """The cotangents at the start of the loop: of the variables that move, then the sums."""
    graph = node.graph
    starts = [*cotangents, *(start for one in sums for start in one.starts)]
    inputs = [graph.constant(np.int32(0)), rounds, *starts, *stacks, *(x for _, x in invariant)]
    with new_body(graph).as_default():
        arguments = [argument(spec, f"argument_{k}") for k, spec in enumerate(_backward_specs(inputs, back, starts))]
        place, last = arguments[:2]
        carried = arguments[2 : 2 + len(starts)]
        lists = arguments[2 + len(starts) : 2 + len(starts) + len(stacks)]
        fixed = arguments[2 + len(starts) + len(stacks) :]
        popped = [
            raw.TensorListPopBack.outputs(held, shape_vector(t.shape), element_dtype=t.dtype.base)
            for held, t in zip(lists, saved, strict=True)
        ]
        given = {back.body.inputs[k]: local for (k, _), local in zip(invariant, fixed, strict=True)}
        given.update(zip(saved, (value for _, value in popped), strict=True))
        given.update(zip(back.seeds, carried, strict=False))
        found = back.emit(given)
        moving = list(zip(carried, found, strict=False))[: len(cotangents)]
        moved = [raw.ZerosLike(c) if dx is None else densify(dx) for c, dx in moving]
        for one, own, dx in zip(sums, _each(sums, carried[len(cotangents) :]), found[len(cotangents) :], strict=True):
            moved += one.add(own, dx)
        outputs = [place + 1, last, *moved, *(rest for rest, _ in popped), *fixed]
        body = add_function(graph, f"{back.body.name}_grad", arguments, outputs)
    condition = trace(
        graph, f"{back.body.name}_grad_cond", [spec_of(x) for x in inputs], lambda *given: [raw.Less(*given[:2])]
    )
    ended = _loop(node, inputs, condition, body)[2 : 2 + len(starts)]
    added = _each(sums, ended[len(cotangents) :])
    return [*ended[: len(cotangents)], *(one.result(own) for one, own in zip(sums, added, strict=True))]


def _each(sums: Sequence[_Sum], carried: Sequence[Tensor]) -> list[list[Tensor]]:
    """What is carried for each sum."""
    rest = iter(carried)
    return [[next(rest) for _ in one.starts] for one in sums]


def _backward_specs(inputs: Sequence[Tensor], back: Reverse, starts: Sequence[Tensor]) -> list[Spec]:
    """What the arguments of the backward body are: a cotangent has the shape of its variable in every round."""
    specs = [spec_of(x) for x in inputs]
    for k, seed in enumerate(back.seeds):
        specs[2 + k] = specs[2 + k]._replace(shape=widen(seed.shape, starts[k].shape))
    return specs


def _loop(node: Node, inputs: Sequence[Tensor], cond: FunctionName, body: FunctionName, **attrs: Any) -> list[Tensor]:
    """A loop of the same kind as a node."""
    op = getattr(raw, node.type)
    parallel = node.attrs["parallel_iterations"]
    return list(op.outputs(list(inputs), cond=cond, body=body, parallel_iterations=parallel, **attrs))


def _examples(draw: Any, name: str) -> list[Example]:
    """y' = y x + sin y, a number of times that is known and one that depends on y; the second returns it, too."""
    x, rounds = draw.normal(draw.size(0, 2)), np.int32(draw.size(0, 3))

    def counted(x: Tensor) -> list[Tensor]:
        inputs = [x.graph.constant(np.int32(0)), raw.Sin(x), x]
        specs = [spec_of(each) for each in inputs]
        asks = trace(x.graph, "cond", specs, lambda i, y, x: [raw.Less(i, rounds)])
        runs = trace(x.graph, "body", specs, lambda i, y, x: [i + 1, y * x + raw.Sin(y), x])
        return [getattr(raw, name).outputs(inputs, cond=asks, body=runs)[1]]

    def by_size(x: Tensor) -> list[Tensor]:
        specs = [spec_of(x)]
        asks = trace(
            x.graph, "cond", specs, lambda y: [raw.Greater(raw.Sum(raw.Square(y), count_up(0, rank_of(y))), 0.1)]
        )
        runs = trace(x.graph, "body", specs, lambda y: [raw.Tanh(y) * 0.6])
        return list(getattr(raw, name).outputs([x], cond=asks, body=runs))

    return [within(counted, x, order=3), within(by_size, x)]


for _name in ("While", "StatelessWhile"):
    define(
        f"{_name}(input: T; T: list(type), cond: func, body: func, output_shapes: list(shape) = [],"
        " parallel_iterations: int = 10) -> (output: T)",
        shape=_shapes,
        gradient=_gradient,
        kernel=_kernel,
        stateful=not _name.startswith("Stateless"),
        dynamic=True,
        examples=lambda draw, name=_name: _examples(draw, name),
    )

# For: the body gets the number of the round, which counts from start by delta to limit


def _for_specs(node: Node) -> list[Spec]:
    """What is known of the loop variables in every round, the number of the round first."""
    specs = [spec_of(tensor) for tensor in (node.inputs[0], *node.inputs[3:])]
    while True:
        found = output_shapes(node, node.attrs["body"], specs)
        if found is None:
            return [specs[0], *(spec._replace(shape=None) for spec in specs[1:])]
        wider = [spec._replace(shape=widen(spec.shape, shape)) for spec, shape in zip(specs[1:], found, strict=True)]
        if wider == specs[1:]:
            return specs
        specs = [specs[0], *wider]


def _for_kernel(
    xp: Any, start: Any, limit: Any, delta: Any, inputs: Sequence[Any], *, node: Node, state: Any, call: Call
) -> list[Any]:
    if not int(delta):
        raise InvalidArgument(f"{node.name}: delta is 0.", node=node.name)
    rounds = range(int(start), int(limit), int(delta))
    if len(rounds) > MOST_ROUNDS:
        raise LimitExceeded(f"{node.name}: {len(rounds):,} rounds are more than {MOST_ROUNDS:,}.", node=node.name)
    body = body_of(node.graph, node.attrs["body"], _for_specs(node))
    values = list(inputs)
    for number in rounds:
        values = call(body, [np.int32(number), *values], state)
    return values


def _for_gradient(*values: Any, node: Node, sweep: Any) -> list[Any]:
    """That of the While that does the same."""
    dys, _, *inputs = values

    def rounds(start: Tensor, limit: Tensor, delta: Tensor, *variables: Tensor) -> list[Tensor]:
        specs = _for_specs(node)
        kinds = [specs[0], specs[0], *specs]

        def one_more(place: Tensor, last: Tensor, step: Tensor, *variables: Tensor) -> list[Tensor]:
            types = [spec.dtype for spec in specs[1:]]
            found = raw.PartitionedCall.outputs([place, *variables], f=node.attrs["body"], Tout=types)
            return [place + step, last, step, *found]

        def is_next(place: Tensor, last: Tensor, step: Tensor, *variables: Tensor) -> list[Tensor]:
            return [raw.Less(place * raw.Sign(step), last * raw.Sign(step))]

        body = trace(node.graph, f"{node.name}_body", kinds, one_more)
        condition = trace(node.graph, f"{node.name}_cond", kinds, is_next)
        loop = raw.While.outputs([start, limit, delta, *variables], cond=condition, body=body)
        return list(loop[3:])

    found = through(rounds, dys, [*inputs[:3], *inputs[3]], sweep)
    return [*found[:3], found[3:]]


def _for_examples(draw: Any) -> list[Example]:
    """y' = y x + sin (i y), for i up to some limit or down to one."""
    x, start, limit = draw.normal(draw.size(0, 2)), np.int32(draw.size(0, 3)), np.int32(draw.size(0, 3))

    def counted(x: Tensor) -> list[Tensor]:
        specs = [Spec(dtypes.int32, ()), spec_of(x), spec_of(x)]
        runs = trace(x.graph, "body", specs, lambda i, y, x: [y * x + raw.Sin(raw.Cast(i, DstT=x.dtype) * y), x])
        delta = np.int32(1 if limit >= start else -1)
        return [raw.For.outputs(start, limit, delta, [raw.Sin(x), x], body=runs)[0]]

    return [within(counted, x, order=3)]


define(
    "For(start: int32, limit: int32, delta: int32, input: T; T: list(type), body: func) -> (output: T)",
    shape=lambda start, limit, delta, inputs, *, node: [spec.shape for spec in _for_specs(node)[1:]],
    gradient=_for_gradient,
    kernel=_for_kernel,
    stateful=True,
    dynamic=True,
    examples=_for_examples,
)
