"""Reads TensorFlow's SavedModels (a folder with saved_model.pb and a checkpoint of the variables) and meta graphs.

The plan:
    choose     one of its meta graphs, by tags
    drop       the nodes that save and restore: what they restore to which variable is read off them first
    captures   of gradient functions become inputs of the nodes whose gradient they are
    variables  get a placeholder each for their first value, which a session is opened with
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from gradserve.autodiff.custom import CAPTURES, GIVEN
from gradserve.errors import InvalidArgument
from gradserve.files.v1 import saved_model_pb2
from gradserve.graph import codec
from gradserve.graph.functions import named_output
from gradserve.graph.library import Library
from gradserve.saved.checkpoint import Array, Checkpoint, Extents, read_part
from gradserve.v1 import graph_pb2

Message = TypeVar("Message", saved_model_pb2.SavedModel, saved_model_pb2.MetaGraphDef)

_INIT = "__saved_model_init_op"
_SERVING = frozenset(("serve",))
_ASSIGNS = frozenset(("Assign", "AssignVariableOp"))
_GIVING = frozenset(("AssignVariableOp", "VarIsInitializedOp"))
_COPIES = frozenset(("Identity", "RefIdentity", "Cast"))


class Place(NamedTuple):
    """A tensor of a checkpoint, by key, or a part of it."""

    key: str
    part: Extents | None


class Loaded(NamedTuple):
    """A SavedModel as it was read.

    Attributes:
        message: its graph.
        variables: for the node of each variable that is restored, where its value stands in the checkpoint.
        checkpoint: holds the values; None for a model without variables.
        signatures: for each signature, names of tensors to feed and to fetch.
        init: the name of the node that fills lookup tables; "" where there is nothing to fill.
    """

    message: graph_pb2.GraphDef
    variables: Mapping[str, Place]
    checkpoint: Checkpoint | None
    signatures: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]
    init: str

    def value(self, variable: str) -> Array:
        """The value of a variable. Raises NotFound, InvalidArgument."""
        assert self.checkpoint is not None
        return self.checkpoint.read(*self.variables[variable])


def read_saved_model(folder: str | PathLike[str], tags: Iterable[str] | None = None) -> Loaded:
    """Reads a SavedModel's folder.

    Args:
        tags: of the meta graph; None for the only one, or the one for serving.

    Raises:
        InvalidArgument: it is no SavedModel, or has no such meta graph.
    """
    path = Path(fspath(folder))
    model = _read(path / "saved_model.pb", saved_model_pb2.SavedModel, "Name a SavedModel's folder")
    meta = _choose(path, model, None if tags is None else frozenset(tags))
    return _loaded(meta, path / "variables" / "variables")


def read_meta_graph(path: str | PathLike[str]) -> Loaded:
    """Reads PREFIX.meta, with the checkpoint PREFIX beside it, as TensorFlow 1's Saver writes them.

    Raises InvalidArgument: it is no MetaGraphDef.
    """
    file = Path(fspath(path))
    meta = _read(file, saved_model_pb2.MetaGraphDef, "Name the file that ends in .meta")
    return _loaded(meta, file.with_suffix("") if file.suffix == ".meta" else file)


def _loaded(meta: saved_model_pb2.MetaGraphDef, prefix: Path) -> Loaded:
    message = meta.graph_def
    variables = dict(_restored(message, meta.saver_def.restore_op_name))
    _add_captures(meta)
    _drop_saver(message, meta.saver_def)
    if message.library.function:
        used = _used(message)
        variables = {variable: place for variable, place in variables.items() if variable in used}
    signatures = {
        name: (
            {key: info.name for key, info in signature.inputs.items() if info.name},
            {key: info.name for key, info in signature.outputs.items() if info.name},
        )
        for name, signature in meta.signature_def.items()
        if name != _INIT
    }
    init = next((_name(info.name) for info in meta.signature_def[_INIT].outputs.values()), "")
    if not any(node.input for node in message.node if node.name == init):
        init = ""
    checkpoint = Checkpoint(prefix) if variables else None
    return Loaded(message, variables, checkpoint, signatures, init)


def _read(path: Path, kind: type[Message], advice: str) -> Message:
    try:
        return kind.FromString(path.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{path} can't be read: {error.strerror}. {advice}.", file=path) from None
    except DecodeError as error:
        raise InvalidArgument(f"{path} is no {kind.DESCRIPTOR.name}: {error}. {advice}.", file=path) from None


def _choose(
    path: Path, model: saved_model_pb2.SavedModel, tags: frozenset[str] | None
) -> saved_model_pb2.MetaGraphDef:  # fmt: skip
    found = {frozenset(meta.meta_info_def.tags): meta for meta in model.meta_graphs}
    if tags is None:
        tags = next(iter(found)) if len(found) == 1 else _SERVING
    if tags not in found:
        known = ", ".join(str(sorted(known)) for known in found)
        raise InvalidArgument(f"{path} has no meta graph with the tags {sorted(tags)}: it has {known}.", file=path)
    return found[tags]


# What is restored


def _restored(message: graph_pb2.GraphDef, restore: str) -> Iterator[tuple[str, Place]]:
    """The node of each variable that is restored, and where its value stands."""
    nodes = {node.name: node for node in message.node}
    yield from _assigned(nodes, {})
    call = nodes.get(restore)
    if call is None or "f" not in call.attr:
        return
    definition = Library(message.library).find(call.attr["f"].func.name)
    if definition is None:
        raise InvalidArgument(f"The graph's library has no function {call.attr['f'].func.name!r}.", node=restore)
    outside = dict(zip((argument.name for argument in definition.signature.input_arg), call.input, strict=False))
    yield from _assigned({node.name: node for node in definition.node_def}, outside)


def _assigned(nodes: Mapping[str, graph_pb2.NodeDef], outside: Mapping[str, str]) -> Iterator[tuple[str, Place]]:
    """The variables of nodes that assign what a RestoreV2 reads; `outside` are the arguments of their function."""
    for node in nodes.values():
        if node.op not in _ASSIGNS:
            continue
        source = node.input[1]
        while (maker := nodes.get(_name(source))) is not None and maker.op in _COPIES:
            source = maker.input[0]
        if maker is None or maker.op != "RestoreV2":
            continue
        keys, slices = (codec.array_from_message(nodes[_name(name)].attr["value"].tensor) for name in maker.input[1:3])
        index = source.rpartition(":")[2]
        place = int(index) if index.isdigit() else 0
        variable = _name(outside.get(_name(node.input[0]), node.input[0]))
        key = keys[place].decode()
        yield variable, Place(key, read_part(slices[place].decode(), key))


def _used(message: graph_pb2.GraphDef) -> set[str]:
    """The nodes that something reads other than what only gives them a value, or reads it for nobody.

    TensorFlow 2 saves every variable with such nodes, those also that no signature needs.
    """
    read = {_name(text) for node in message.node for text in node.input}
    idle = {
        node.name
        for node in message.node
        if node.op in _GIVING or (node.op == "ReadVariableOp" and node.name not in read)
    }
    return {_name(text) for node in message.node if node.name not in idle for text in node.input}


def _name(text: str) -> str:
    return text.removeprefix("^").partition(":")[0]


def _drop_saver(message: graph_pb2.GraphDef, saver: saved_model_pb2.SaverDef) -> None:
    """Drops what depends on the name of the checkpoint, and the functions that are then called no more."""
    gone = {_name(saver.filename_tensor_name), saver.restore_op_name}
    readers: dict[str, list[str]] = {}
    for node in message.node:
        for text in node.input:
            readers.setdefault(_name(text), []).append(node.name)
    stack = list(gone)
    while stack:
        new = [name for name in readers.get(stack.pop(), ()) if name not in gone]
        gone.update(new)
        stack += new
    kept = [node for node in message.node if node.name not in gone]
    del message.node[:]
    message.node.extend(kept)
    library = message.library
    called = [value.func.name for node in kept for value in node.attr.values() if value.HasField("func")]
    called += [entry.name for node in kept for value in node.attr.values() for entry in value.list.func]
    called += [entry.gradient_func for entry in (*library.gradient, *library.registered_gradients)]
    needed = Library(library).needed(called)
    del library.function[:]
    library.function.extend(needed)


# Gradient functions


def _add_captures(meta: saved_model_pb2.MetaGraphDef) -> None:
    """Makes what gradient functions captured inputs of the nodes whose gradients they are.

    Where a gradient function captured something from another function than the node's, the node stays as it is, and
    differentiating it is an error.
    """
    library, objects = meta.graph_def.library, meta.object_graph_def
    for entry in library.registered_gradients:
        traced = objects.concrete_functions.get(entry.gradient_func)
        if traced is None:
            continue
        captured = [objects.nodes[place].captured_tensor for place in traced.bound_inputs]
        results = traced.output_signature
        returned = results.tuple_value.values if results.HasField("tuple_value") else results.list_value.values
        given = [k for k, value in enumerate(returned) if not value.HasField("none_value")]
        gradient = next(f for f in library.function if f.signature.name == entry.gradient_func)
        for definition in library.function:
            if any(capture.concrete_function != definition.signature.name for capture in captured):
                continue
            for node in definition.node_def:
                if _gradient_type(node) == entry.registered_op_type:
                    _capture(definition, node, [capture.name for capture in captured], gradient)
                    node.attr[GIVEN].list.i.extend(given)


def _gradient_type(node: graph_pb2.NodeDef) -> str | None:
    return node.attr["_gradient_op_type"].s.decode() if "_gradient_op_type" in node.attr else None


def _capture(
    definition: graph_pb2.FunctionDef, node: graph_pb2.NodeDef, names: Sequence[str], gradient: graph_pb2.FunctionDef
) -> None:
    """Adds the captured tensors to the inputs of a node."""
    arguments = {argument.name for argument in definition.signature.input_arg}
    makers = {maker.name: maker for maker in definition.node_def}
    data = [text for text in node.input if not text.startswith("^")]
    controls = [text for text in node.input if text.startswith("^")]
    for text in names:
        name, _, index = text.partition(":")
        data.append(name if name in arguments else named_output(makers[name], int(index or 0)))
    del node.input[:]
    node.input.extend([*data, *controls])
    kinds = [argument.type for argument in gradient.signature.input_arg]
    node.attr["T"].list.type.extend(kinds[len(kinds) - len(names) :])
    node.attr[CAPTURES].i = len(names)
