"""SymbolicGradient: the op that tf.gradients of TensorFlow 1 wrote for the gradient of a call.

Its inputs are those of the function and a cotangent for each output; its outputs a cotangent for each input, zeros
where there is none. It runs the function that a GradientDef names, or else the body with its gradients added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradserve.autodiff.aggregate import densify
from gradserve.autodiff.gradients import gradients
from gradserve.errors import InvalidGraph
from gradserve.graph.functions import Function, add_function, argument, copy_of, spec_of
from gradserve.graph.graph import FunctionName, IndexedSlices, Node, Tensor
from gradserve.graph.inline import body_of, kept
from gradserve.graph.op import Example, define, raw, within
from gradserve.graph.shapes import Shape
from gradserve.ops.bodies import Call, is_unused, parts, reverse
from gradserve.ops.calls import called_twice, entries_of


def _derived(node: Node) -> Function:
    """What the op computes, as a function."""
    graph, called = node.graph, node.attrs["f"]
    specs = [spec_of(tensor) for tensor in node.inputs]
    named = graph.library.gradients.get(called.name)
    if named is not None:
        return body_of(graph, FunctionName(named, called.attrs), specs)
    definition = graph.library.find(called.name)
    count = len(specs) if definition is None else len(definition.signature.input_arg)
    function = body_of(graph, called, specs[:count])
    if len(specs) != count + len(function.outputs):
        raise InvalidGraph(
            f"{node.name} (SymbolicGradient) must have the {count} inputs of {called.name} and the cotangents of its "
            f"{len(function.outputs)} outputs, not {len(specs)} inputs.",
            node=node.name, function=called.name,
        )  # fmt: skip
    return kept(graph, called, specs, "derived", lambda: _differentiated(function, specs[count:]))


def _differentiated(function: Function, specs: Sequence[Any]) -> Function:
    body = copy_of(function)
    with body.graph.as_default():
        seeds = [argument(spec, f"cotangent_{k}") for k, spec in enumerate(specs)]
        ys = [k for k, y in enumerate(body.outputs) if y.dtype.is_trainable]
        found = gradients([body.outputs[k] for k in ys], list(body.inputs), [seeds[k] for k in ys])
        dense = [densify(dx) if isinstance(dx, IndexedSlices) else dx for dx in found]
        outputs = [raw.ZerosLike(x) if dx is None else dx for x, dx in zip(body.inputs, dense, strict=True)]
    return Function(f"{function.name}_grad", body.graph, (*body.inputs, *seeds), tuple(outputs), body.effects)


def _shapes(inputs: Sequence[Tensor], *, node: Node) -> list[Shape]:
    return [tensor.shape for tensor in _derived(node).outputs]


def _kernel(xp: Any, inputs: Sequence[Any], *, node: Node, state: Any, call: Call) -> list[Any]:
    return call(_derived(node), inputs, state)


def _gradient(
    dys: Sequence[Tensor | None], ys: Sequence[Tensor], inputs: Sequence[Tensor], *, node: Node, sweep: Any
) -> list[Any]:
    wanted = [k for k, x in enumerate(inputs) if sweep.wants(x)]
    seeded = [k for k, dy in enumerate(dys) if not is_unused(dy)]
    back = reverse(_derived(node), sweep, seeded, wanted)
    results = [part for dx in back.found if dx is not None for part in parts(dx)]
    if not results:
        return [[None] * len(inputs)]
    called = add_function(node.graph, f"{back.body.name}_grad", [*back.body.inputs, *back.seeds], results)
    kinds = [tensor.dtype.base for tensor in results]
    found = raw.PartitionedCall.outputs([*inputs, *(dys[k] for k in seeded)], Tout=kinds, f=called)
    entries = dict(zip(wanted, entries_of(back.found, iter(found)), strict=True))
    return [[entries.get(k) for k in range(len(inputs))]]


def _examples(draw: Any) -> list[Example]:
    def slopes(body: FunctionName, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        cotangents = [raw.Cos(x) for x in inputs]
        return raw.SymbolicGradient.outputs([*inputs, *cotangents], Tout=[x.dtype.base for x in inputs], f=body)

    return [within(lambda x: called_twice(x, slopes), draw.normal(*draw.shape()), order=3)]


define(
    "SymbolicGradient(input: Tin; Tin: list(type), Tout: list(type), f: func) -> (output: Tout)",
    shape=_shapes,
    gradient=_gradient,
    kernel=_kernel,
    dynamic=True,
    examples=_examples,
)
