"""Gives the nodes of a request the shapes that follow from what is fed.

A placeholder may leave dimensions open, the batch's mostly. A plan is made for feeds of known shapes: with these, what
gradients compute of shapes at run time is known when the plan is made and folds away, costs and memory are no guesses,
and what crosses between workers is known to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.shapes import StaticShape
from gradserve.workers.segment import needed

Request = tuple[list[Tensor], list[Tensor], list[Node]]


def with_fed_shapes(
    fed: Sequence[Tensor], shapes: Sequence[StaticShape], fetches: Sequence[Tensor], targets: Sequence[Node]
) -> Request:
    """The fed and fetched tensors and the targets of the same request where all shapes are known that can be.

    What shapes change for is made anew beside the graph, which stays as it is. Where an inner tensor is fed nothing
    changes: its value may contradict what is known of the shapes behind it.

    Raises:
        InvalidArgument: a placeholder that is needed is not fed.
        InvalidShape: the shapes fed do not go together; the message names the node.
    """
    given: Request = list(fed), list(fetches), list(targets)
    opened = {t: shape for t, shape in zip(fed, shapes, strict=True) if t.shape != shape}
    if not opened or any(tensor.node.type != "Placeholder" for tensor in fed):
        return given
    nodes: dict[Node, Node] = {}
    tensors: dict[Tensor, Tensor] = {}

    def replace(node: Node, anew: Node) -> None:
        nodes[node] = anew
        tensors.update(zip(node.outputs, anew.outputs, strict=True))

    for tensor, shape in opened.items():
        node = tensor.node
        replace(node, node.anew((), {**node.attrs, "shape": shape}, node.control_inputs))
    find = tensors.get
    for node in needed(fetches, targets, frozenset(fed)):
        if any(tensor in tensors for tensor in node.inputs) or any(c in nodes for c in node.control_inputs):
            inputs = tuple([find(tensor, tensor) for tensor in node.inputs])
            controls = tuple([nodes.get(control, control) for control in node.control_inputs])
            replace(node, node.anew(inputs, node.attrs, controls))
    return (
        [find(tensor, tensor) for tensor in fed],
        [find(tensor, tensor) for tensor in fetches],
        [nodes.get(node, node) for node in targets],
    )
