"""Gradients that a graph brings along as functions of its library.

There are two kinds. A GradientDef names the gradient of a function, and so of its calls: it takes what the call takes
and the cotangents of all outputs, and returns a cotangent for each input. A RegisteredGradient is that of a
`_gradient_op_type`, which tf.custom_gradient leaves on an IdentityN: it takes the cotangents, then what it captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradserve.autodiff.aggregate import Cotangent
from gradserve.errors import NoGradient
from gradserve.graph import dtypes
from gradserve.graph.graph import FunctionName, Node, Tensor
from gradserve.graph.inline import CALLS
from gradserve.graph.op import raw
from gradserve.graph.other_calls import stateful

CAPTURES = "_gradserve_captures"
"""The attr of an IdentityN that says how many of its last inputs are there for its gradient function only."""
GIVEN = "_gradserve_given"
"""The attr that says which inputs the results of its gradient function belong to; the last ones where it is missing."""


@dataclass(frozen=True, slots=True)
class Custom:
    """The gradient of a node.

    Attributes:
        name: of the function.
        takes_inputs: whether it takes the inputs of the node before the cotangents.
    """

    name: str
    takes_inputs: bool


def custom_gradient(node: Node) -> Custom | None:
    """The function that the library gives as a node's gradient."""
    library = node.graph.library
    override = node.attrs.get("_gradient_op_type")
    if override in library.registered_gradients:
        return Custom(library.registered_gradients[override], takes_inputs=False)
    if override is None and node.type in CALLS and node.attrs["f"].name in library.gradients:
        return Custom(library.gradients[node.attrs["f"].name], takes_inputs=True)
    return None


def apply_custom(custom: Custom, node: Node, cotangents: Sequence[Tensor | None]) -> list[Cotangent | None]:
    """Calls the function; a cotangent for each input. Raises NoGradient where it does not fit the node."""
    definition = node.graph.library.find(custom.name)
    if definition is None:
        raise _unfit(custom, node, "the graph's library has no such function")
    captures = node.attrs.get(CAPTURES, 0)
    inputs = len(node.inputs) - captures
    dys = [raw.ZerosLike(y) if dy is None else dy for y, dy in zip(node.outputs, cotangents, strict=True)]
    arguments = [*node.inputs, *dys] if custom.takes_inputs else [*dys[:inputs], *node.inputs[inputs:]]
    wanted = len(definition.signature.input_arg)
    if wanted != len(arguments):
        why = f"it takes {wanted} arguments and would get {len(arguments)}"
        if not custom.takes_inputs and wanted > len(arguments):
            why += ": which tensors it captured stands in the SavedModel only, so load that (Graph.from_saved_model)"
        raise _unfit(custom, node, why)
    kinds = [dtypes.from_number(argument.type) for argument in definition.signature.output_arg]
    called = raw.StatefulPartitionedCall if stateful(node.graph.library, custom.name) else raw.PartitionedCall
    found = called.outputs(arguments, Tout=kinds, f=FunctionName(custom.name, {}))
    given = node.attrs.get(GIVEN) or range(inputs - len(found), inputs)
    if len(given) != len(found) or min(given, default=0) < 0:
        raise _unfit(custom, node, f"it returns {len(found)} gradients for {inputs} inputs")
    entries = dict(zip(given, found, strict=True))
    return [entries.get(k) if x.dtype.is_trainable else None for k, x in enumerate(node.inputs)]


def _unfit(custom: Custom, node: Node, why: str) -> NoGradient:
    return NoGradient(
        f"No gradient defined for operation {node.name!r} (op type: {node.type}): its gradient function {custom.name} "
        f"does not fit it, {why}.",
        node=node.name, op=node.type, function=custom.name,
    )  # fmt: skip


def missing_gradient(override: str) -> str:
    """Why an unknown `_gradient_op_type` is no gradient, and what to do."""
    if not override.startswith("CustomGradient-"):
        return f"its _gradient_op_type names {override!r}, which is not known here"
    return (
        f"its gradient {override!r} was a Python function (tf.custom_gradient) of the process that made the graph: "
        "load the SavedModel, which holds it (Graph.from_saved_model), add a RegisteredGradient to the graph's library "
        "or remove the attr _gradient_op_type to differentiate what the node computes"
    )
