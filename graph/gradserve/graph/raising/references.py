"""Assignments to references within branches and loops made assignments to resources.

A variable of TensorFlow 1 is a reference, and a body's arguments are values: what a branch assigned to its argument
would be lost. A handle of the same variable goes where the reference went, and the assignment goes by it.
"""

from __future__ import annotations

from gradserve.graph import dtypes
from gradserve.graph.raising.outlining import Item, Ref
from gradserve.graph.raising.rewriting import ENTERS, SWITCHES, Rewriting
from gradserve.v1 import graph_pb2

_ASSIGNS = {
    "Assign": "AssignVariableOp", "AssignAdd": "AssignAddVariableOp", "AssignSub": "AssignSubVariableOp",
}  # fmt: skip
_VARIABLES = frozenset(("Variable", "VariableV2"))
_IDENTITIES = frozenset(("Identity", "RefIdentity"))


def resources_for_references(raising: Rewriting) -> bool:
    """Rewrites the assignments whose reference passed a Switch or an Enter; says whether there were any."""
    handles: dict[Ref, Ref] = {}
    found = False
    for item in list(raising.items.values()):
        if item.op in _ASSIGNS:
            handle = _handle(raising, item.inputs[0], handles)
            if handle is not None and raising.items[handle.name].op != "VarHandleOp":
                _assign(raising, item, handle)
                found = True
    return found


def _handle(raising: Rewriting, ref: Ref, handles: dict[Ref, Ref]) -> Ref | None:
    """The handle beside a reference, made once; None where it is no variable's."""
    if ref in handles:
        return handles[ref]
    item = raising.items[ref.name]
    if item.op in _VARIABLES:
        handle = _declare(raising, item)
    elif item.op in _IDENTITIES or item.op in SWITCHES or item.op in ENTERS:
        source = _handle(raising, item.inputs[0], handles)
        if source is None or item.op in _IDENTITIES:
            return source
        node = graph_pb2.NodeDef(op="Switch" if item.op in SWITCHES else "Enter")
        if item.op in ENTERS:
            for key, value in item.message.attr.items():
                node.attr[key].CopyFrom(value)
        node.attr["T"].type = dtypes.resource.number  # pyright: ignore[reportAttributeAccessIssue]
        node.name = raising.unique_name(f"{item.name}/handle")
        raising.put(node, [source, *item.inputs[1:]])
        handle = Ref(node.name, ref.output)
    else:
        return None
    handles[ref] = handle
    return handle


def _declare(raising: Rewriting, variable: Item) -> Ref:
    """A handle of a variable, which goes by the variable's name."""
    node = graph_pb2.NodeDef(
        name=raising.unique_name(f"{variable.name}/handle"), op="VarHandleOp", device=variable.message.device
    )
    for key in ("dtype", "shape", "container", "shared_name"):
        if key in variable.message.attr:
            node.attr[key].CopyFrom(variable.message.attr[key])
    node.attr["shared_name"].s = node.attr["shared_name"].s or variable.name.encode()
    node.attr["_class"].list.s.append(b"loc:@" + variable.name.encode())
    raising.put(node, [])
    return Ref(node.name)


def _assign(raising: Rewriting, item: Item, handle: Ref) -> None:
    """Puts the assignment by a handle, and a read after it, in the place of one by reference."""
    kind = item.attr("T").type
    node = graph_pb2.NodeDef(
        name=raising.unique_name(f"{item.name}/assign"), op=_ASSIGNS[item.op], device=item.message.device
    )
    node.attr["dtype"].type = kind
    raising.put(node, [handle, item.inputs[1]], item.controls)
    read = graph_pb2.NodeDef(name=item.name, op="ReadVariableOp", device=item.message.device)
    read.attr["dtype"].type = kind
    raising.put(read, [handle], [node.name])
    raising.replaced.add(item.name)
