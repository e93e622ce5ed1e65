"""Calls in other forms: nodes whose op type is the name of a function, RemoteCall, and BatchFunction.

On import they become PartitionedCall and StatefulPartitionedCall, which everything else knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradserve.graph import op
from gradserve.graph.library import Library
from gradserve.v1 import graph_pb2, tensor_pb2

BECOME_CALLS = ("BatchFunction", "RemoteCall")
"""Op types that are in no graph here, as they are something else once they are imported."""


def new_calls(nodes: Iterable[graph_pb2.NodeDef], library: Library) -> dict[str, graph_pb2.NodeDef]:
    """What stands for each of the nodes that is such a call, by name."""
    if not len(library):
        return {}
    sources = {node.name: node for node in nodes}
    found: dict[str, graph_pb2.NodeDef] = {}
    for node in sources.values():
        if node.op == "RemoteCall":
            found[node.name] = _local(node, sources)
        elif node.op == "BatchFunction":
            found[node.name] = _unbatched(node, stateful(library, node.attr["f"].func.name))
        elif op.find(node.op) is None:
            definition = library.find(node.op)
            if definition is not None:
                found[node.name] = _call(node, definition, stateful(library, node.op))
    return found


def stateful(library: Library, name: str) -> bool:
    """Whether a function, or one that it calls, reads or changes state."""
    inside = (node for definition in library.needed([name]) for node in definition.node_def)
    found = (op.find(node.op) for node in inside if library.find(node.op) is None)
    return any(definition is None or definition.stateful for definition in found)


def _call(node: graph_pb2.NodeDef, definition: graph_pb2.FunctionDef, is_stateful: bool) -> graph_pb2.NodeDef:
    call = graph_pb2.NodeDef(
        name=node.name,
        op=_kind(is_stateful),
        input=node.input,
        device=node.device,
    )
    function = call.attr["f"].func
    function.name = node.op
    for key, value in node.attr.items():
        (call if key.startswith("_") else function).attr[key].CopyFrom(value)
    for key, arguments in (("Tin", definition.signature.input_arg), ("Tout", definition.signature.output_arg)):
        kinds = call.attr[key].list
        kinds.SetInParent()
        kinds.type.extend(argument.type or node.attr[argument.type_attr].type for argument in arguments)
    return call


def _kind(is_stateful: bool) -> str:
    return "StatefulPartitionedCall" if is_stateful else "PartitionedCall"


def _unbatched(node: graph_pb2.NodeDef, is_stateful: bool) -> graph_pb2.NodeDef:
    """A BatchFunction for this request alone: batches that several requests share are TensorFlow Serving's matter."""
    call = graph_pb2.NodeDef(name=node.name, op=_kind(is_stateful), input=node.input, device=node.device)
    for key, value in node.attr.items():
        if key in ("f", "Tin", "Tout") or key.startswith("_"):
            call.attr[key].CopyFrom(value)
    call.attr["Tin"].list.type.extend(node.attr["Tcaptured"].list.type)
    return call


def _local(node: graph_pb2.NodeDef, sources: Mapping[str, graph_pb2.NodeDef]) -> graph_pb2.NodeDef:
    """A RemoteCall without its target, on the device that the target names where that is a constant."""
    call = graph_pb2.NodeDef(name=node.name, op="StatefulPartitionedCall", input=node.input[1:], device=node.device)
    for key, value in node.attr.items():
        call.attr[key].CopyFrom(value)
    target = sources.get(node.input[0].partition(":")[0])
    if target is not None and target.op == "Const" and target.attr["value"].tensor.dtype == tensor_pb2.DT_STRING:
        call.device = target.attr["value"].tensor.string_val[0].decode()
    return call
