"""Any file or folder that holds a graph, with what must be done before it runs.

a folder, saved_model.pb    a SavedModel
PREFIX.meta                 a meta graph, with the checkpoint PREFIX beside it
*.pbtxt, *.txt              a GraphDef as text
anything else               a GraphDef
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format

from gradserve.errors import InvalidArgument, InvalidGraph, NotFound
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import raw
from gradserve.saved.checkpoint import Array
from gradserve.saved.saved_model import Loaded, read_meta_graph, read_saved_model
from gradserve.v1 import graph_pb2

TEXT_SUFFIXES = (".pbtxt", ".txt")
Signature = tuple[Mapping[str, str], Mapping[str, str]]
"""Names of tensors to feed and to fetch, by the names that callers use."""


@dataclass(frozen=True, slots=True)
class Model:
    """A graph as it is sent.

    Attributes:
        graph: the serialised GraphDef.
        targets: the nodes that give its variables their values and fill its tables, to be run once.
        values: what to feed then, by tensor.
        signatures: of a SavedModel, by name.
    """

    graph: bytes
    targets: tuple[str, ...] = ()
    values: Mapping[str, Array] = field(default_factory=dict)
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    def names(self, signature: str) -> Mapping[str, str]:
        """Tensors by the names that a signature gives them. Raises NotFound."""
        if signature not in self.signatures:
            known = ", ".join(sorted(self.signatures)) or "none"
            raise NotFound(f"There is no signature {signature!r}: the model has {known}.", signature=signature)
        inputs, outputs = self.signatures[signature]
        return {**outputs, **inputs}


def read_model(path: Path) -> Model:
    """Reads a file or folder that holds a graph. Raises InvalidArgument, InvalidGraph."""
    if path.is_dir() or path.name == "saved_model.pb":
        return _of_loaded(read_saved_model(path if path.is_dir() else path.parent))
    if path.suffix == ".meta":
        return _of_loaded(read_meta_graph(path))
    if path.suffix in TEXT_SUFFIXES:
        return Model(read_graph_def(path).SerializeToString())
    return Model(_bytes(path))


def read_graph_def(path: Path) -> graph_pb2.GraphDef:
    """A GraphDef file, binary or text. Raises InvalidArgument, InvalidGraph."""
    data = _bytes(path)
    if path.suffix not in TEXT_SUFFIXES:
        return codec.read_graph(data)
    try:
        return text_format.Parse(data, graph_pb2.GraphDef())
    except text_format.ParseError as error:
        raise InvalidGraph(f"{path} is no GraphDef in text form: {error}.", file=path) from None


def first_value(handle: Tensor, value: Array) -> tuple[Tensor, Node]:
    """Adds to a variable's graph a placeholder for its first value, and the node that gives it to the variable."""
    graph, kind = handle.graph, dtypes.as_dtype(value.dtype)
    scope = graph.unique_name(f"{handle.node.name}/saved")
    with graph.as_default(), graph.colocate_with(handle), graph.name_scope(f"{scope}/"):
        first = raw.Placeholder(dtype=kind, shape=value.shape, name="value")
        if handle.dtype.kind == "r":
            return first, raw.AssignVariableOp.run(handle, first, dtype=kind, name="assign")
        return first, raw.Assign(handle, first, name="assign").node


def _of_loaded(loaded: Loaded) -> Model:
    graph = codec.graph_from_message(loaded.message)
    targets = [loaded.init] if loaded.init else []
    values: dict[str, Array] = {}
    for name in loaded.variables:
        if name in graph:
            value = loaded.value(name)
            first, assigned = first_value(graph.tensor(name), value)
            values[first.name] = value
            targets.append(assigned.name)
    data = codec.graph_to_message(graph).SerializeToString(deterministic=True)
    return Model(data, tuple(targets), values, loaded.signatures)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} can't be read: {error.strerror}.", file=path) from None
