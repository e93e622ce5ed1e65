"""Bodies cut out of a graph of messages: the nodes that some tensors need, up to where arguments come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gradserve.graph import dtypes, op
from gradserve.graph.signature import REQUIRED
from gradserve.v1 import graph_pb2

_IN_BODIES = {"RefIdentity": "Identity", "NextIteration": "Identity", "RefNextIteration": "Identity",
              "LoopCond": "Identity"}  # fmt: skip
"""What stands in a function for an op that only has a meaning in a frame, or for references."""


class Ref(NamedTuple):
    """An output of a node."""

    name: str
    output: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.output}" if self.output else self.name


Source = Ref | int
"""Where a tensor of a body comes from: an output of a node in the body, or the argument of this position."""


@dataclass(slots=True)
class Item:
    """A node while a graph is rewritten; `inputs` and `controls` are what its message says.

    `frame` is the loop that it lies in, "" for none.
    """

    message: graph_pb2.NodeDef
    inputs: list[Ref]
    controls: list[str]
    frame: str = ""

    @property
    def op(self) -> str:
        return self.message.op

    @property
    def name(self) -> str:
        return self.message.name

    def attr(self, key: str) -> graph_pb2.AttrValue:
        """An attr, empty where the message has none: looked up by index, a map of a message would take it in."""
        attrs = self.message.attr
        return attrs[key] if key in attrs else graph_pb2.AttrValue()

    def reads(self) -> Iterator[str]:
        """The names of the nodes before it."""
        yield from (ref.name for ref in self.inputs)
        yield from self.controls


def item_of(message: graph_pb2.NodeDef) -> Item:
    """The item of a node of a GraphDef."""
    inputs: list[Ref] = []
    controls: list[str] = []
    for text in message.input:
        name, colon, index = text.rpartition(":")
        if text.startswith("^"):
            controls.append(text[1:])
        else:
            inputs.append(Ref(name, int(index)) if colon and index.isdigit() else Ref(text))
    return Item(message, inputs, controls)


@dataclass(slots=True)
class _Inner:
    """A node of a body: its item, what its inputs come from, and the nodes of the body that it waits for."""

    item: Item
    inputs: list[Source]
    controls: list[str]


@dataclass(slots=True)
class Body:
    """What some outputs need."""

    outputs: list[Source] = field(default_factory=list[Source])
    nodes: dict[str, _Inner] = field(default_factory=dict[str, _Inner])

    @property
    def is_stateful(self) -> bool:
        """Whether a node reads or changes state."""
        found = (op.find(inner.item.op) for inner in self.nodes.values())
        return any(definition is None or definition.stateful for definition in found)


def cut(
    items: Mapping[str, Item],
    outputs: Sequence[Ref],
    resolve: Callable[[Ref], Source],
    waits_for: Callable[[Item], list[str]],
) -> Body:
    """The body that computes `outputs`.

    Args:
        items: the graph.
        resolve: what a tensor that is read inside comes from.
        waits_for: those control inputs of an inner node that matter inside.
    """
    body = Body([resolve(ref) for ref in outputs])
    stack = [source.name for source in body.outputs if isinstance(source, Ref)]
    while stack:
        name = stack.pop()
        if name not in body.nodes:
            item = items[name]
            inner = body.nodes[name] = _Inner(item, [resolve(ref) for ref in item.inputs], waits_for(item))
            stack.extend(source.name for source in inner.inputs if isinstance(source, Ref))
            stack.extend(inner.controls)
    return body


def define_function(
    name: str, body: Body, takes: Sequence[int], gives: Sequence[int], constants: Sequence[graph_pb2.NodeDef] = ()
) -> graph_pb2.FunctionDef:
    """The FunctionDef of a body.

    Args:
        takes, gives: the numbers of the dtypes of its arguments and outputs.
        constants: further nodes, each of which gives one more output after those of the body.
    """
    definition = graph_pb2.FunctionDef()
    definition.signature.name = name
    prefix = "argument"
    while any(f"{prefix}_{position}" in body.nodes for position in range(len(takes))):
        prefix += "_"
    arguments = [f"{prefix}_{position}" for position in range(len(takes))]
    for argument, kind in zip(arguments, takes, strict=True):
        definition.signature.input_arg.add(name=argument, type=kind)  # pyright: ignore[reportArgumentType]

    def text(source: Source) -> str:
        if isinstance(source, int):
            return arguments[source]
        return f"{source.name}:{_place(body.nodes[source.name].item, source.output)}"

    for inner in body.nodes.values():
        node = definition.node_def.add()
        node.CopyFrom(inner.item.message)
        node.op = _IN_BODIES.get(node.op, node.op)
        if node.op != inner.item.op and "parallel_iterations" in node.attr:
            del node.attr["parallel_iterations"]
        _keep_groups(node, body)
        del node.input[:]
        node.input.extend(text(source) for source in inner.inputs)
        node.input.extend(f"^{control}" for control in inner.controls)
    definition.node_def.extend(constants)
    results = [text(source) for source in body.outputs] + [f"{node.name}:output:0" for node in constants]
    for position, (kind, result) in enumerate(zip(gives, results, strict=True)):
        argument = definition.signature.output_arg.add(name=f"output_{position}")
        argument.type = kind  # pyright: ignore[reportAttributeAccessIssue]
        definition.ret[argument.name] = result
    return definition


def _keep_groups(node: graph_pb2.NodeDef, body: Body) -> None:
    """Leaves a node the colocation groups that lie in the body with it."""
    if "_class" in node.attr:
        groups = [name for name in node.attr["_class"].list.s if name[5:].decode() in body.nodes]
        del node.attr["_class"]
        if groups:
            node.attr["_class"].list.s.extend(groups)


def _place(item: Item, index: int) -> str:
    """`output argument:position` of a node's output; of an unknown op, whose outputs have no names, `output`."""
    for name, start, kinds in _output_arguments(item):
        if start <= index < start + len(kinds):
            return f"{name}:{index - start}"
    return f"output:{index}"


def dtype_of(item: Item, index: int) -> int:
    """The number of the dtype of a node's output, as far as the catalogue and the node's attrs say."""
    for _, start, kinds in _output_arguments(item):
        if start <= index < start + len(kinds):
            return kinds[index - start]
    attrs = item.message.attr
    return next((attrs[key].type for key in ("T", "dtype") if key in attrs), dtypes.variant.number)


def _output_arguments(item: Item) -> list[tuple[str, int, list[int]]]:
    """Of each output argument: its name, the index of its first tensor, and the numbers of the dtypes of all."""
    definition = op.find(item.op)
    if definition is None:
        return []
    attrs = item.message.attr
    specs = definition.signature.attrs
    found: list[tuple[str, int, list[int]]] = []
    start = 0
    for argument in definition.signature.outputs:
        if argument.type_list_attr:
            key = argument.type_list_attr
            kinds = list(attrs[key].list.type) if key in attrs else [kind.number for kind in specs[key].default]
        else:
            number, key = 1, argument.number_attr
            if key:
                number = attrs[key].i if key in attrs else specs[key].default
            key = argument.type_attr
            if argument.dtype is not None:
                kind = argument.dtype.base.number
            elif key in attrs:
                kind = attrs[key].type
            else:
                kind = specs[key].default.number if specs[key].default is not REQUIRED else 0
            kinds = [kind] * number
        found.append((argument.name, start, kinds))
        start += len(kinds)
    return found
