"""Arrays, attrs and graphs to the wire and back.

A tensor over a few elements travels as raw little-endian row-major bytes. An imported node is given back
byte for byte: it keeps the message that it came from, unknown fields included.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError

from gradserve.errors import InvalidGraph
from gradserve.graph import collector, dtypes, op
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor
from gradserve.graph.library import Library
from gradserve.graph.node_checks import FIELDS, check_attrs, check_edges
from gradserve.graph.other_calls import new_calls
from gradserve.graph.raising import is_back_edge, needs_raising, raise_control_flow
from gradserve.graph.shapes import Shape
from gradserve.v1 import graph_pb2, tensor_pb2

GraphType = TypeVar("GraphType", bound=Graph)

# Arrays

_FIELD = {
    "float32": "float_val", "float64": "double_val", "int32": "int_val", "int16": "int_val", "int8": "int_val",
    "uint8": "int_val", "uint16": "int_val", "qint8": "int_val", "quint8": "int_val", "qint32": "int_val",
    "qint16": "int_val", "quint16": "int_val", "int4": "int_val", "uint4": "int_val", "int64": "int64_val",
    "bool": "bool_val", "uint32": "uint32_val", "uint64": "uint64_val", "string": "string_val",
    "complex64": "scomplex_val", "complex128": "dcomplex_val", "float16": "half_val", "bfloat16": "half_val",
}  # fmt: skip
_MOST_AXES = 64  # as many as NumPy has
_MOST_REPEATED_BYTES = 1 << 30
_WORTH_REPEATING_BYTES = 1 << 16


def array_to_message(array: np.ndarray[Any, Any], dtype: DType | None = None) -> tensor_pb2.TensorProto:
    """The message of an array; strings as string_val, everything else as tensor_content."""
    dtype = dtype or dtypes.as_dtype(array.dtype)
    message = tensor_pb2.TensorProto(dtype=dtype.base.number)  # pyright: ignore[reportArgumentType]
    message.tensor_shape.SetInParent()
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    if dtype.kind == "s":
        message.string_val.extend(array.ravel().tolist())
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
        message.tensor_content = little.tobytes()
    return message


def constant_to_message(array: np.ndarray[Any, Any], dtype: DType) -> tensor_pb2.TensorProto:
    """The message of a constant in a graph: one value stands for all of an array that repeats it."""
    base = dtype.base
    if not is_repeated(array) or base.name not in _FIELD:
        return array_to_message(array, dtype)
    message = tensor_pb2.TensorProto(dtype=base.number, tensor_shape=shape_to_message(array.shape))  # pyright: ignore[reportArgumentType]
    getattr(message, _FIELD[base.name]).extend(_as_fields(array[(0,) * array.ndim], base))
    return message


def _as_fields(value: Any, dtype: DType) -> list[Any]:
    """A value as typed fields hold it."""
    if dtype.name in ("float16", "bfloat16"):
        return [int(np.asarray(value).view(np.uint16))]
    if dtype.is_complex:
        return [value.real, value.imag]
    return [int(value) if dtype.kind in "iuq" else value]


def is_repeated(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is one value, held once, for all of its elements."""
    return array.size > 1 and not any(array.strides)


def array_from_message(message: tensor_pb2.TensorProto) -> np.ndarray[Any, Any]:
    """The array of a message; read-only where it shares the message's bytes, or repeats one value for all elements.

    Raises InvalidGraph.
    """
    dtype = dtypes.from_number(message.dtype)
    shape = _array_shape(message.tensor_shape, dtype)
    count = math.prod(shape)
    if message.tensor_content and dtype.kind == "s":
        return _packed_strings(message.tensor_content, count).reshape(shape)
    if message.tensor_content:
        if len(message.tensor_content) != count * dtype.numpy.itemsize or dtype.size == 0:
            raise InvalidGraph(
                f"A tensor of {dtype} {shape} needs {count * dtype.size} bytes and has {len(message.tensor_content)}."
            )
        return np.frombuffer(message.tensor_content, dtype.numpy.newbyteorder("<")).reshape(shape)
    return _typed_values(message, dtype, shape, count)


def _array_shape(message: tensor_pb2.TensorShapeProto, dtype: DType) -> tuple[int, ...]:
    """The shape of an array that could be. Raises InvalidGraph."""
    shape = tuple([dim.size for dim in message.dim])
    if min(shape, default=0) < 0:
        raise InvalidGraph(f"A constant has the shape {shape}: its dimensions must be known.", shape=shape)
    if len(shape) > _MOST_AXES or math.prod(size for size in shape if size) * dtype.numpy.itemsize >= 2**63:
        raise InvalidGraph(f"No memory holds a tensor of {dtype} {shape}.", shape=shape)
    return shape


def _packed_strings(content: bytes, count: int) -> np.ndarray[Any, Any]:
    """Strings as TensorFlow packs them: all lengths, seven bits a byte, then all bytes. Raises InvalidGraph."""
    lengths: list[int] = []
    length = shift = start = 0
    for byte in content:
        if len(lengths) == count:
            break
        start += 1
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            lengths.append(length)
            length = shift = 0
    if len(lengths) < count or start + sum(lengths) != len(content):
        raise InvalidGraph(f"{len(content)} bytes are no packed tensor of {count} strings.")
    flat = np.empty(count, object)
    for place, length in enumerate(lengths):
        flat[place] = content[start : start + length]
        start += length
    return flat


def _typed_values(
    message: tensor_pb2.TensorProto, dtype: DType, shape: tuple[int, ...], count: int
) -> np.ndarray[Any, Any]:
    """Values of the typed fields; the last one stands for all that follow."""
    if dtype.name not in _FIELD:
        if count == 0:
            return np.empty(shape, dtype.numpy)
        raise InvalidGraph(f"A constant of type {dtype} can't be read.", dtype=dtype)
    values = list(getattr(message, _FIELD[dtype.name]))
    if dtype.kind == "s":
        array = np.empty(max(len(values), 1), object)
        array[:] = values or [b""]
    elif dtype.name in ("float16", "bfloat16"):
        bits = np.array(values, np.int32).astype(np.uint16)
        array = bits.view(np.float16 if dtype.name == "float16" else ml_dtypes.bfloat16)
    elif dtype.is_complex:
        array = np.array(values[: len(values) // 2 * 2], dtype.real.numpy).view(dtype.numpy)
    else:
        array = np.array(values).astype(dtype.numpy) if values else np.empty(0, dtype.numpy)
    if len(array) >= count:
        return array[:count].reshape(shape)
    size = count * dtype.numpy.itemsize
    if len(array) <= 1:
        repeated = np.broadcast_to(array.reshape(()) if len(array) else np.zeros((), dtype.numpy), shape)
        return repeated if size > _WORTH_REPEATING_BYTES else repeated.copy()
    if size > _MOST_REPEATED_BYTES:
        raise InvalidGraph(
            f"A constant of {dtype} {shape} says {len(array)} of its {count} values and is too large for that: give it "
            "as tensor_content.",
            shape=shape,
        )
    return np.concatenate([array, np.repeat(array[-1:], count - len(array))]).reshape(shape)


def shape_to_message(shape: Shape) -> tensor_pb2.TensorShapeProto:
    """The message of a shape; -1 for an unknown dimension."""
    if shape is None:
        return tensor_pb2.TensorShapeProto(unknown_rank=True)
    dims = [tensor_pb2.TensorShapeProto.Dim(size=-1 if size is None else size) for size in shape]
    return tensor_pb2.TensorShapeProto(dim=dims)


def shape_from_message(message: tensor_pb2.TensorShapeProto) -> Shape:
    """The shape of a message."""
    if message.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in message.dim)


# Attrs


def attr_from_message(value: graph_pb2.AttrValue) -> Any:
    """The Python value of an attr (see Graph for the types)."""
    match value.WhichOneof("value"):
        case "i":
            return value.i
        case "type":
            return dtypes.from_number(value.type)
        case "s":
            return value.s.decode("utf-8", "surrogateescape")
        case "b":
            return value.b
        case "f":
            return value.f
        case "shape":
            return shape_from_message(value.shape)
        case "tensor":
            return array_from_message(value.tensor)
        case "func":
            return _function_from_message(value.func)
        case "list":
            return _list_from_message(value.list)
        case "placeholder":
            return value.placeholder
        case _:
            return None


def _function_from_message(message: graph_pb2.NameAttrList) -> FunctionName:
    return FunctionName(message.name, {key: attr_from_message(message.attr[key]) for key in message.attr})


def _list_from_message(message: graph_pb2.AttrValue.ListValue) -> list[Any]:
    for field, read in (
        ("i", int), ("type", dtypes.from_number), ("s", lambda s: s.decode("utf-8", "surrogateescape")), ("f", float),
        ("b", bool), ("shape", shape_from_message), ("tensor", array_from_message), ("func", _function_from_message),
    ):  # fmt: skip
        entries = getattr(message, field)
        if entries:
            return [read(entry) for entry in entries]
    return []


def attr_to_message(kind: str, value: Any) -> graph_pb2.AttrValue:
    """The message of an attr of a kind (as in a signature)."""
    message = graph_pb2.AttrValue()
    if kind.startswith("list("):
        kind = kind[5:-1]
        entries = getattr(message.list, FIELDS[kind])
        message.list.SetInParent()
        entries.extend(_scalar_to_message(kind, entry) for entry in value)
        return message
    field = FIELDS[kind]
    converted = _scalar_to_message(kind, value)
    if kind in ("shape", "tensor", "func"):
        getattr(message, field).CopyFrom(converted)
    else:
        setattr(message, field, converted)
    return message


def _scalar_to_message(kind: str, value: Any) -> Any:
    match kind:
        case "type":
            return value.number
        case "string":
            return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        case "shape":
            return shape_to_message(value)
        case "tensor":
            return array_to_message(value)
        case "func":
            attrs = {key: attr_to_message(kind_of(entry), entry) for key, entry in value.attrs.items()}
            return graph_pb2.NameAttrList(name=value.name, attr=attrs)
        case "int":
            return int(value)
        case _:
            return value


def kind_of(value: Any) -> str:
    """The kind of an attr that no signature describes."""
    if isinstance(value, list):
        return f"list({kind_of(value[0]) if value else 'int'})"  # pyright: ignore[reportUnknownArgumentType]
    for kind, types in (
        ("bool", bool), ("int", int), ("float", float), ("string", (str, bytes)), ("type", DType),
        ("tensor", np.ndarray), ("func", FunctionName), ("shape", (tuple, type(None))),
    ):  # fmt: skip
        if isinstance(value, types):
            return kind
    raise InvalidGraph(f"An attr can't hold {type(value).__name__}.")


# Graphs


def graph_to_message(graph: Graph) -> graph_pb2.GraphDef:
    """The GraphDef of a graph: the imported part as it came, then the nodes added since."""
    message = graph_pb2.GraphDef()
    if graph.source is not None:
        message.CopyFrom(graph.source)
    else:
        message.versions.producer = 1882
    message.MergeFrom(additions(graph))
    return message


def additions(graph: Graph) -> graph_pb2.GraphDef:
    """What the imported message must be extended by to hold the whole graph: nodes and functions.

    What TF1's control flow was raised to is part of it only where an added node reads or calls it.
    """
    raised = graph.raised
    nodes = [node for node in graph.nodes if node.source is None and node.name not in raised.replaced]
    if raised.added:
        wanted = {node.name for node in nodes} - raised.added
        for node in reversed(nodes):
            if node.name in wanted:
                wanted.update(tensor.node.name for tensor in node.inputs)
                wanted.update(control.name for control in node.control_inputs)
        nodes = [node for node in nodes if node.name in wanted]
    message = graph_pb2.GraphDef(node=[node_to_message(node) for node in nodes])
    if graph.library.added:
        called = {called.name for node in nodes for called in node.functions()}
        needed = {definition.signature.name for definition in graph.library.needed(called)}
        functions = [definition for definition in graph.library.added if definition.signature.name in needed]
        if functions:
            message.library.function.extend(functions)
    return message


def node_to_message(node: Node) -> graph_pb2.NodeDef:
    """The NodeDef of a node."""
    if node.source is not None:
        return node.source
    message = graph_pb2.NodeDef(name=node.name, op=node.type, device=node.device)
    message.input.extend([tensor.node.name if tensor.index == 0 else tensor.name for tensor in node.inputs])
    if node.control_inputs:
        message.input.extend([f"^{control.name}" for control in node.control_inputs])
    write_attrs(node, message)
    return message


def write_attrs(node: Node, message: graph_pb2.NodeDef, brief: bool = False) -> None:
    """Fills in the attrs of a node's NodeDef; `brief` leaves out what need not be said: a default, and colocation where
    nodes have their place."""
    specs = node.op.signature.attrs if node.op is not None else {}
    written = message.attr
    for key, value in node.attrs.items():
        spec = specs.get(key)
        if brief and (key == "_class" if spec is None else value is spec.default):
            continue
        kind = spec.kind if spec is not None else "list(string)" if key == "_class" else kind_of(value)
        if kind == "type":
            written[key].type = value.number
        elif kind == "bool":
            written[key].b = value
        elif kind == "int":
            written[key].i = int(value)
        elif key == "value" and node.type == "Const":
            written[key].tensor.CopyFrom(constant_to_message(value, node.attrs["dtype"]))
        else:
            written[key].CopyFrom(attr_to_message(kind, value))


def graph_from_message(
    message: graph_pb2.GraphDef, kind: type[GraphType] = Graph, library: Library | None = None
) -> GraphType:
    """A graph of a GraphDef, nodes in topological order; of a subclass of Graph where `kind` names one.

    Conditionals, loops and arrays of TF1 become functional (see gradserve.graph.raising); the message is kept as it is.
    A body of a function is given the `library` of the graph around it.

    Raises:
        InvalidGraph: duplicate names, an input that does not exist, a cycle outside of a TF1 loop, an attr of the
            wrong kind, wrong arity or dtype. The message names the node.
    """
    graph = kind()
    graph.source = message
    graph.library = Library(message.library) if library is None else library
    sources: dict[str, graph_pb2.NodeDef] = {}
    for source in message.node:
        if source.name in sources:
            raise InvalidGraph(f"Two nodes are called {source.name!r}: rename one.", node=source.name)
        sources[source.name] = source
    with collector.paused():
        ordered = _in_order(sources)
        calls = new_calls(ordered, graph.library)
        if calls:
            ordered = [calls.get(source.name, source) for source in ordered]
        if needs_raising(ordered):
            check_edges(sources)
            ordered = _raised(graph, ordered)
        if calls:
            left = calls.keys() - graph.raised.inside.keys()
            graph.raised = replace(graph.raised, replaced=graph.raised.replaced | left)
        for source in ordered:
            node = _node_from_message(graph, source)
            node.source = source if source is sources.get(source.name) else None
            graph.append(node)
        for name in sources:
            graph.reserve_name(name)
    return graph


def _raised(graph: Graph, sources: Sequence[graph_pb2.NodeDef]) -> list[graph_pb2.NodeDef]:
    """The nodes of a graph without the control flow of TF1, in order."""
    nodes, graph.raised = raise_control_flow(sources, graph.library)
    for name in graph.raised.added:
        graph.reserve_name(name)
    return _in_order({node.name: node for node in nodes})


def input_name(text: str) -> tuple[str, int]:
    """Node name and output index of a data input; index -1 for a control input."""
    if text.startswith("^"):
        return text[1:], -1
    name, colon, index = text.rpartition(":")
    return (name, int(index)) if colon and index.isdigit() else (text, 0)


def _in_order(sources: Mapping[str, graph_pb2.NodeDef]) -> list[graph_pb2.NodeDef]:
    """The nodes so that each follows its inputs, otherwise in message order: a message in order keeps its own."""
    waiting: dict[str, int] = {}
    readers: dict[str, list[str]] = {}
    for name, source in sources.items():
        waiting[name] = 0
        for text in source.input:
            other = input_name(text)[0]
            if other not in sources:
                raise InvalidGraph(
                    f"{name} ({source.op}) reads {text!r}, but there is no node {other!r}.",
                    node=name, op=source.op, tensor=text,
                )  # fmt: skip
            if not is_back_edge(source, sources[other]):
                waiting[name] += 1
                readers.setdefault(other, []).append(name)
    names = list(sources)
    ranks = {name: rank for rank, name in enumerate(names)}
    ready = [ranks[name] for name, count in waiting.items() if not count]
    order: list[graph_pb2.NodeDef] = []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(sources[name])
        for reader in readers.get(name, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, ranks[reader])
    if len(order) < len(sources):
        stuck = sorted(name for name, count in waiting.items() if count)
        raise InvalidGraph(
            f"The graph has a cycle outside of a loop through {', '.join(stuck[:5])}.",
            node=stuck[0],
            nodes=len(stuck),
        )
    return order


def _node_from_message(graph: Graph, source: graph_pb2.NodeDef) -> Node:
    definition = op.find(source.op)
    inputs: list[Tensor] = []
    controls: list[Node] = []
    for text in source.input:
        name, index = input_name(text)
        if index < 0:
            controls.append(graph.node(name))
        else:
            inputs.append(graph.node(name).output(index))
    attrs = _attrs_from_message(source, definition)
    return Node(
        graph, source.name, source.op, definition, tuple(inputs), attrs, tuple(controls), source.device, source
    )  # fmt: skip


def _attrs_from_message(source: graph_pb2.NodeDef, definition: op.Op | None) -> dict[str, Any]:
    try:
        attrs = {key: attr_from_message(value) for key, value in source.attr.items()}
    except (InvalidGraph, TypeError) as error:
        raise InvalidGraph(f"{source.name} ({source.op}): an attr can't be read: {error}", node=source.name) from None
    if definition is None:
        return attrs
    check_attrs(source, definition)
    for key, spec in definition.signature.attrs.items():
        if key not in attrs:
            attrs[key] = spec.default
    return attrs


def read_graph(data: bytes) -> graph_pb2.GraphDef:
    """The GraphDef of serialised bytes. Raises InvalidGraph where they are none."""
    try:
        return graph_pb2.GraphDef.FromString(data)
    except DecodeError as error:
        raise InvalidGraph(f"These bytes are no GraphDef: {error}.") from None


def names(tensors: Sequence[Tensor]) -> list[str]:
    """The wire names of tensors."""
    return [tensor.name for tensor in tensors]
