"""Calls of functions. The gradient of a call is a call: of the body with its gradients added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradserve.graph.functions import FORWARD, add_function, spec_of, trace
from gradserve.graph.graph import FunctionName, IndexedSlices, Node, Tensor
from gradserve.graph.inline import body_of
from gradserve.graph.op import Example, define, raw, within
from gradserve.graph.shapes import Shape
from gradserve.ops.bodies import Call, is_unused, output_shapes, parts, reverse, unread, zeros_for


def _shapes(args: Sequence[Tensor], *, node: Node) -> list[Shape]:
    found = output_shapes(node, node.attrs["f"], [spec_of(tensor) for tensor in args])
    return [None] * len(node.attrs["Tout"]) if found is None else found


def _kernel(xp: Any, args: Sequence[Any], *, node: Node, state: Any, call: Call) -> list[Any]:
    return call(body_of(node.graph, node.attrs["f"], [spec_of(tensor) for tensor in node.inputs]), args, state)


def _gradient(
    dys: Sequence[Tensor | None], ys: Sequence[Tensor], args: Sequence[Tensor], *, node: Node, sweep: Any
) -> list[Any]:
    function = body_of(node.graph, node.attrs["f"], [spec_of(tensor) for tensor in args])
    wanted = [k for k, x in enumerate(args) if sweep.wants(x)]
    seeded = [k for k, dy in enumerate(dys) if not is_unused(dy)]
    back = reverse(function, sweep, seeded, wanted)
    missing = [k for k, dx in zip(wanted, back.found, strict=True) if dx is None]
    zeros = {k: zeros_for(args[k]) for k in sorted(unread([function], sweep, dys, missing))}
    results = [part for dx in back.found if dx is not None for part in parts(dx)]
    if not results:
        return [[zeros.get(k) for k in range(len(args))]]
    called = add_function(node.graph, f"{function.name}_grad", [*back.body.inputs, *back.seeds], results)
    op = getattr(raw, node.type)
    found = op.outputs(
        [*args, *(dys[k] for k in seeded)], Tout=[tensor.dtype.base for tensor in results], f=called,
        **{FORWARD: node.name},
    )  # fmt: skip
    entries = dict(zip(wanted, entries_of(back.found, iter(found)), strict=True))
    return [[zeros.get(k, entries.get(k)) for k in range(len(args))]]


def entries_of(found: Sequence[Any], results: Iterator[Tensor]) -> list[Any]:
    """The gradients that a call returned in parts, in the form in which the body found them."""
    entries: list[Any] = []
    for dx in found:
        taken = [] if dx is None else [next(results) for _ in parts(dx)]
        entries.append(IndexedSlices(*taken) if isinstance(dx, IndexedSlices) else taken[0] if taken else None)
    return entries


def called_twice(x: Tensor, function: Callable[..., Sequence[Tensor]]) -> list[Tensor]:
    """sin(x) 2x e^2x, of the two outputs that `function(name, inputs)` gives for the body (sin(a) b, e^b)."""
    inputs = [x, x * 2]
    body = trace(x.graph, "f", [spec_of(each) for each in inputs], lambda a, b: [raw.Sin(a) * b, raw.Exp(b)])
    first, second = function(body, inputs)
    return [first * second]


def _examples(draw: Any, name: str) -> list[Example]:
    def calling(body: FunctionName, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return getattr(raw, name).outputs(inputs, Tout=[x.dtype.base for x in inputs], f=body)

    return [within(lambda x: called_twice(x, calling), draw.normal(*draw.shape()), order=3)]


for _name in ("PartitionedCall", "StatefulPartitionedCall"):
    define(
        f"{_name}(args: Tin; Tin: list(type), Tout: list(type), f: func, config: string = '', config_proto: string = '',"
        " executor_type: string = '') -> (output: Tout)",
        shape=_shapes,
        gradient=_gradient,
        kernel=_kernel,
        stateful=_name.startswith("Stateful"),
        dynamic=True,
        examples=lambda draw, name=_name: _examples(draw, name),
    )
