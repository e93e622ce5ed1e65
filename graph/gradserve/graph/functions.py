"""Functions of a graph's library: bodies of calls, branches and loops.

A library holds FunctionDefs as they came. A body is made when somebody asks for it, with what the caller knows of
its arguments (shapes, and what is behind a resource), so that shapes are as static inside as they are outside. In
a body, arguments are Placeholders, and its library is that of the graph around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradserve.errors import InvalidGraph, NotFound
from gradserve.graph import codec, op
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor, group
from gradserve.graph.handles import held_by
from gradserve.graph.library import Library
from gradserve.graph.shapes import Shape, merge
from gradserve.v1 import graph_pb2

FORWARD = "_gradserve_forward"
"""The attr by which a node that a gradient has added names the forward node that it repeats."""


class Spec(NamedTuple):
    """What is known of an argument: `held` is the dtype and shape of the variable behind a resource."""

    dtype: DType
    shape: Shape
    held: tuple[DType | None, Shape] = (None, None)


@dataclass(frozen=True, eq=False, slots=True)
class Function:
    """A body.

    Attributes:
        name: in the library.
        graph: holds the body's nodes.
        inputs: its arguments, Placeholders of the graph.
        outputs: what it returns.
        effects: nodes that run although no output needs them.
    """

    name: str
    graph: Graph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    effects: tuple[Node, ...] = ()


def spec_of(tensor: Tensor) -> Spec:
    """What is known of a tensor that is passed to a function."""
    return Spec(tensor.dtype.base, tensor.shape, held_by(tensor) if tensor.dtype.kind == "r" else (None, None))


def read_body(library: Library, called: FunctionName, specs: Sequence[Spec]) -> Function:
    """The body of a function as its definition has it (see gradserve.graph.inline.body_of).

    Raises:
        NotFound: the library has no such function.
        InvalidGraph: the function takes other arguments, or its body breaks a rule of graphs.
    """
    definition = library.find(called.name)
    if definition is None:
        raise NotFound(f"The graph's library has no function {called.name!r}.", function=called.name)
    arguments = definition.signature.input_arg
    if len(arguments) != len(specs):
        raise InvalidGraph(
            f"The function {called.name} takes {len(arguments)} arguments, not {len(specs)}.", function=called.name
        )
    message = graph_pb2.GraphDef()
    for position, (argument, spec) in enumerate(zip(arguments, specs, strict=True)):
        _add_argument(message, argument, definition.arg_attr.get(position), spec)
    given = {key: codec.attr_to_message(codec.kind_of(value), value) for key, value in called.attrs.items()}
    outputs = {node.name: _offsets(node, given, library) for node in definition.node_def}
    for node in definition.node_def:
        copy = message.node.add()
        copy.CopyFrom(node)
        for key in [key for key, value in node.attr.items() if value.WhichOneof("value") == "placeholder"]:
            if key in given or node.attr[key].placeholder in given:
                copy.attr[key].CopyFrom(given[node.attr[key].placeholder])
        del copy.input[:]
        copy.input.extend(_flat_name(text, outputs, called.name) for text in node.input)
    try:
        graph = codec.graph_from_message(message, library=library)
    except InvalidGraph as error:
        error.message = f"In the function {called.name}: {error.message}"
        error.metadata["function"] = called.name
        raise
    graph.source = None
    returned = [
        _flat_name(definition.ret[argument.name], outputs, called.name) for argument in definition.signature.output_arg
    ]
    return Function(
        called.name,
        graph,
        tuple(graph.tensor(argument.name) for argument in arguments),
        tuple(graph.tensor(name) for name in returned),
        tuple(graph.node(name) for name in dict.fromkeys(definition.control_ret.values())),
    )


def _add_argument(message: graph_pb2.GraphDef, argument: graph_pb2.OpDef.ArgDef, attrs: Any, spec: Spec) -> None:
    """A Placeholder with all that the caller and the function itself know."""
    node = message.node.add(name=argument.name, op="Placeholder")
    shape = spec.shape
    if attrs is not None and "_output_shapes" in attrs.attr:
        said = attrs.attr["_output_shapes"].list.shape
        shape = merge(shape, codec.shape_from_message(said[0])) if said and shape is None else shape
    node.attr["dtype"].type = spec.dtype.number  # pyright: ignore[reportAttributeAccessIssue]
    node.attr["shape"].shape.CopyFrom(codec.shape_to_message(shape))
    dtype, held = spec.held
    if dtype is not None:
        node.attr["_handle_dtypes"].list.type.append(dtype.number)  # pyright: ignore[reportArgumentType]
        node.attr["_handle_shapes"].list.shape.append(codec.shape_to_message(held))
    elif attrs is not None:
        for key in ("_handle_dtypes", "_handle_shapes"):
            if key in attrs.attr:
                node.attr[key].CopyFrom(attrs.attr[key])


def _offsets(
    node: graph_pb2.NodeDef, given: Mapping[str, graph_pb2.AttrValue], library: Library | None = None
) -> dict[str, int]:
    """Where each named output of a node starts among all of them."""
    definition = op.find(node.op)
    called = library.find(node.op) if definition is None and library is not None else None
    if called is not None:
        return {argument.name: position for position, argument in enumerate(called.signature.output_arg)}
    offsets: dict[str, int] = {}
    total = 0
    for argument in () if definition is None else definition.signature.outputs:
        offsets[argument.name] = total
        if argument.number_attr:
            total += node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            total += len(node.attr[argument.type_list_attr].list.type)
        else:
            total += 1
    return offsets


def named_output(node: graph_pb2.NodeDef, index: int) -> str:
    """An output of a function's node as the other nodes of the function name it: `node:output:index`."""
    starts = _offsets(node, node.attr).items()
    name, start = max((pair for pair in starts if pair[1] <= index), key=lambda pair: pair[1], default=("output", 0))
    return f"{node.name}:{name}:{index - start}"


def _flat_name(text: str, outputs: Mapping[str, Mapping[str, int]], function: str) -> str:
    """`node:output:index` as `node:index`; an argument and a control input as they are."""
    parts = text.split(":")
    if text.startswith("^") or parts[0] not in outputs:
        return parts[0]
    if len(parts) == 1:
        return text
    index = int(parts[2]) if len(parts) > 2 else 0
    offset = outputs[parts[0]].get(parts[1], 0 if not outputs[parts[0]] else None)
    if offset is None:
        raise InvalidGraph(f"In the function {function}, {text!r} names no output of {parts[0]}.", function=function)
    return f"{parts[0]}:{offset + index}"


# Making functions


def trace(graph: Graph, hint: str, specs: Sequence[Spec], body: Callable[..., Sequence[Tensor]]) -> FunctionName:
    """Adds a body to the library of a graph: what `body(*arguments)` makes of arguments of which so much is known."""
    with new_body(graph).as_default():
        arguments = [argument(spec, f"argument_{k}") for k, spec in enumerate(specs)]
        return add_function(graph, hint, arguments, body(*arguments))


def add_function(
    graph: Graph, hint: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], effects: Sequence[Node] = ()
) -> FunctionName:
    """Adds the body that computes the outputs from the inputs, its Placeholders, to the library of a graph."""
    library = graph.library
    name = library.unique_name(hint)
    given = frozenset(inputs)
    body = inputs[0].graph if inputs else outputs[0].graph
    definition = graph_pb2.FunctionDef()
    definition.signature.name = name
    for tensor in inputs:
        definition.signature.input_arg.add(name=tensor.node.name, type=tensor.dtype.base.number)  # pyright: ignore
    for position, tensor in enumerate(outputs):
        out = f"output_{position}"
        definition.signature.output_arg.add(name=out, type=tensor.dtype.base.number)  # pyright: ignore
        definition.ret[out] = _named_output(tensor, given)
    for node in effects:
        definition.signature.control_output.append(node.name)
        definition.control_ret[node.name] = node.name
    arguments = {tensor.node for tensor in inputs}
    for node in needed(body, [*(t.node for t in outputs), *effects]):
        if node not in arguments:
            message = codec.node_to_message(node)
            copy = definition.node_def.add()
            copy.CopyFrom(message)
            del copy.input[:]
            copy.input.extend(_named_output(tensor, given) for tensor in node.inputs)
            copy.input.extend(f"^{control.name}" for control in node.control_inputs)
    library.add(definition)
    return FunctionName(name, {})


def _named_output(tensor: Tensor, given: frozenset[Tensor]) -> str:
    """`node:output:index`, or the argument's name."""
    node = tensor.node
    if tensor in given:
        return node.name
    if node.op is None:
        return f"{node.name}:output:{tensor.index}"
    entries = group(node.op.signature.outputs, node.attrs, node.outputs)
    for argument, entry in zip(node.op.signature.outputs, entries, strict=True):
        members = entry if isinstance(entry, list) else [entry]
        if tensor in members:
            return f"{node.name}:{argument.name}:{members.index(tensor)}"
    raise InvalidGraph(f"{tensor.name} is no output of {node.name}.", node=node.name)


def needed(graph: Graph, roots: Iterable[Node]) -> list[Node]:
    """The nodes that these need, in order."""
    wanted: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack.extend(tensor.node for tensor in node.inputs)
            stack.extend(node.control_inputs)
    return [node for node in graph.nodes if node in wanted]


def clone(nodes: Iterable[Node], mapping: dict[Tensor, Tensor], into: Graph, rename: Callable[[str], str]) -> None:
    """Copies nodes, in order, into another graph; `mapping` says what stands for what they read, and grows."""
    copies: dict[Node, Node] = {}
    names: dict[str, str] = {}
    for node in nodes:
        if any(tensor in mapping for tensor in node.outputs):
            continue
        controls = [copies[control] for control in node.control_inputs if control in copies]
        copy = Node(
            into, rename(node.name), node.type, node.op, tuple(mapping[tensor] for tensor in node.inputs),
            with_forward(node, names), tuple(controls), node.device,
        )  # fmt: skip
        names[node.name] = copy.name
        into.reserve_name(copy.name)
        into.append(copy)
        copies[node] = copy
        if node.op is None:
            for tensor in node.outputs:
                copy.output(tensor.index)
        mapping.update(zip(node.outputs, copy.outputs, strict=True))


def with_forward(node: Node, names: Mapping[str, str]) -> Mapping[str, Any]:
    """A node's attrs for a copy of it, where these are the new names of nodes that were copied with it."""
    if FORWARD not in node.attrs:
        return node.attrs
    attrs = {key: value for key, value in node.attrs.items() if key != FORWARD}
    forward = names.get(node.attrs[FORWARD])
    return attrs if forward is None else {**attrs, FORWARD: forward}


def copy_of(function: Function) -> Function:
    """The same body in a graph of its own, to be extended."""
    graph = new_body(function.graph)
    mapping: dict[Tensor, Tensor] = {}
    clone(function.graph.nodes, mapping, graph, lambda name: name)
    return Function(
        function.name,
        graph,
        tuple(mapping[tensor] for tensor in function.inputs),
        tuple(mapping[tensor] for tensor in function.outputs),
        tuple(graph.node(node.name) for node in function.effects),
    )


def argument(spec: Spec, name: str) -> Tensor:
    """An argument of the body that is the current graph."""
    dtype, shape = spec.held
    held = {} if dtype is None else {"_handle_dtypes": [dtype], "_handle_shapes": [shape]}
    return op.raw.Placeholder(dtype=spec.dtype, shape=spec.shape, name=name, **held)


def new_body(graph: Graph) -> Graph:
    """An empty body that calls what the graph calls."""
    body = Graph()
    body.library = graph.library
    return body
