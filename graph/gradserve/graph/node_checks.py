"""What the message of a node must hold by its op's signature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradserve.errors import InvalidGraph
from gradserve.graph import dtypes, op
from gradserve.graph.signature import REQUIRED, Argument, Attr
from gradserve.v1 import graph_pb2

FIELDS = {
    "int": "i", "float": "f", "bool": "b", "type": "type", "string": "s", "shape": "shape", "tensor": "tensor",
    "func": "func",
}  # fmt: skip
"""The field of an AttrValue, or of its list, that holds a kind of value."""


def check_attrs(source: graph_pb2.NodeDef, definition: op.Op) -> None:
    """Checks that a message has the attrs of its op, of their kinds. Raises InvalidGraph."""
    for key, spec in definition.signature.attrs.items():
        if key not in source.attr:
            if spec.default is REQUIRED:
                raise _wrong(source, f"lacks the attr {key!r}.", attr=key)
            continue
        value = source.attr[key]
        held = value.WhichOneof("value")
        wanted = "list" if spec.kind.startswith("list(") else FIELDS[spec.kind]
        if held not in (wanted, "placeholder"):
            raise _wrong(source, f"the attr {key!r} must be of kind {spec.kind}, not {held}.", attr=key)
        if held == "type" and value.type > dtypes.REFERENCE_OFFSET:
            raise _wrong(source, f"the attr {key!r} can't be a type of references.", attr=key)


def check_edges(sources: Mapping[str, graph_pb2.NodeDef]) -> None:
    """Checks that messages have as many inputs as their ops take, and that these are there.

    For those who read messages before there are nodes. Raises InvalidGraph.
    """
    outputs: dict[str, int | None] = {}
    for source in sources.values():
        definition = op.find(source.op)
        if definition is None:
            continue
        check_attrs(source, definition)
        signature = definition.signature
        expected = _count(signature.inputs, signature.attrs, source)
        found = sum(not text.startswith("^") for text in source.input)
        if expected is not None and expected != found:
            raise _wrong(source, f"needs {expected} inputs and has {found}.")
        outputs[source.name] = _count(signature.outputs, signature.attrs, source)
    for source in sources.values():
        for text in source.input:
            name, _, index = text.rpartition(":")
            count = outputs.get(name)
            if index.isdigit() and count is not None and int(index) >= count:
                raise _wrong(source, f"reads {text!r}, but {name} has {count} outputs.", tensor=text)


def _count(arguments: Iterable[Argument], attrs: Mapping[str, Attr], source: graph_pb2.NodeDef) -> int | None:
    """How many tensors a message has for arguments; None where a placeholder of a function stands for the number."""
    count = 0
    for argument in arguments:
        key = argument.number_attr or argument.type_list_attr
        if not key:
            count += 1
        elif key not in source.attr:
            default = attrs[key].default
            count += default if argument.number_attr else len(default)
        elif source.attr[key].HasField("placeholder"):
            return None
        else:
            count += source.attr[key].i if argument.number_attr else len(source.attr[key].list.type)
    return count


def _wrong(source: graph_pb2.NodeDef, what: str, **metadata: object) -> InvalidGraph:
    return InvalidGraph(f"{source.name} ({source.op}): {what}", node=source.name, op=source.op, **metadata)
