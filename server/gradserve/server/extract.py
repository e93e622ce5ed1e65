"""Takes part of a graph out into a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gradserve.graph import functions, op
from gradserve.graph.graph import Graph, Node, Tensor


def extract(
    graph: Graph,
    nodes: Iterable[Node],
    given: Iterable[Tensor],
    instead: Callable[[Node, Tensor, Tensor], Tensor] = lambda node, tensor, stands: stands,
) -> tuple[Graph, dict[Tensor, Tensor]]:
    """A graph of these nodes, with placeholders for what is given, and what stands in it for each tensor.

    Names stay. A control input that is not among the nodes is dropped.

    Args:
        graph: whose nodes they are; its library is shared.
        nodes: in an order in which they can run.
        given: what they read that they do not make.
        instead: says what a node's copy reads for one of its inputs, from the node, the input and what stands for it.
    """
    chosen = list(nodes)
    members = set(chosen)
    into = functions.new_body(graph)
    for node in chosen:
        into.reserve_name(node.name)
    stands: dict[Tensor, Tensor] = {}
    for tensor in given:
        plain = tensor.index == 0 and tensor.node not in members
        name = tensor.node.name if plain else into.unique_name(f"{tensor.node.name}/output_{tensor.index}")
        into.reserve_name(name)
        attrs = {"dtype": tensor.dtype.base, "shape": tensor.shape}
        holder = Node(into, name, "Placeholder", op.lookup("Placeholder"), (), attrs, (), tensor.node.device)
        stands[tensor] = into.append(holder).outputs[0]
    copies: dict[Node, Node] = {}
    for node in chosen:
        controls = tuple(copies[control] for control in node.control_inputs if control in copies)
        inputs = tuple(instead(node, tensor, stands[tensor]) for tensor in node.inputs)
        copy = into.append(Node(into, node.name, node.type, node.op, inputs, node.attrs, controls, node.device))
        copies[node] = copy
        for tensor in node.outputs:
            stands.setdefault(tensor, copy.output(tensor.index))
    return into, stands
