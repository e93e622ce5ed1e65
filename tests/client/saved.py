"""Writes SavedModels and checkpoints as TensorFlow does, from arrays and GraphDefs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.files.v1 import checkpoint_pb2, saved_model_pb2
from gradserve.graph import codec, dtypes
from gradserve.v1 import graph_pb2

Array = np.ndarray[Any, Any]

W = np.array([1.0, -2.0, 0.5], np.float32)
B = np.array(0.25, np.float32)


def write_checkpoint(prefix: Path, tensors: Mapping[str, Array], entries_a_block: int = 2) -> None:
    """Writes the tensors: an index of several blocks, and one data file."""
    entries: dict[bytes, bytes] = {b"": checkpoint_pb2.BundleHeaderProto(num_shards=1).SerializeToString()}
    data = b""
    for key, array in sorted(tensors.items()):
        entry = checkpoint_pb2.BundleEntryProto(offset=len(data), size=array.nbytes)
        entry.dtype = dtypes.as_dtype(array.dtype).number  # pyright: ignore[reportAttributeAccessIssue]
        entry.shape.CopyFrom(codec.shape_to_message(array.shape))
        entries[key.encode()] = entry.SerializeToString()
        data += array.tobytes()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(list(entries.items()), entries_a_block))


def table(entries: Sequence[tuple[bytes, bytes]], entries_a_block: int) -> bytes:
    """A table of LevelDB's format."""
    file, index = b"", []
    for start in range(0, len(entries), entries_a_block):
        block = _block(entries[start : start + entries_a_block])
        index.append((entries[start : start + entries_a_block][-1][0], _varints(len(file), len(block))))
        file += block + bytes(5)
    places = b""
    for block in (_block([]), _block(index)):
        places += _varints(len(file), len(block))
        file += block + bytes(5)
    return file + places.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Keys without what they share with the one before; one restart point, at the first."""
    block, last = b"", b""
    for key, value in entries:
        shared = next((k for k, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), min(len(last), len(key)))
        block += _varints(shared, len(key) - shared, len(value)) + key[shared:] + value
        last = key
    return block + struct.pack("<II", 0, 1)


def _varints(*numbers: int) -> bytes:
    found = bytearray()
    for number in numbers:
        while number > 0x7F:
            found.append(number & 0x7F | 0x80)
            number >>= 7
        found.append(number)
    return bytes(found)


class Nodes:
    """Nodes in a graph or in a function."""

    def __init__(self, into: Any) -> None:
        self.into = into

    def add(self, op: str, name: str, *inputs: str, **attrs: Any) -> graph_pb2.NodeDef:
        node = self.into.add(name=name, op=op, input=inputs)
        for key, value in attrs.items():
            kind = "type" if isinstance(value, dtypes.DType) else codec.kind_of(value)
            node.attr[key].CopyFrom(codec.attr_to_message(kind, value))
        return node

    def text(self, name: str, *values: str) -> None:
        array = np.empty(len(values), object)
        array[:] = [value.encode() for value in values]
        self.add("Const", name, value=array, dtype=dtypes.string)


def add_function(
    message: graph_pb2.GraphDef, name: str, takes: Mapping[str, dtypes.DType], gives: Mapping[str, str]
) -> Nodes:
    """Adds a function that gives float32 tensors; returns what its nodes are added to."""
    definition = message.library.function.add()
    definition.signature.name = name
    for key, dtype in takes.items():
        definition.signature.input_arg.add(name=key).type = dtype.number  # pyright: ignore[reportAttributeAccessIssue]
    for key, source in gives.items():
        definition.signature.output_arg.add(name=key).type = dtypes.float32.number  # pyright: ignore
        definition.ret[key] = source
    return Nodes(definition.node_def)


def write_model(folder: Path, *metas: saved_model_pb2.MetaGraphDef) -> Path:
    """Writes saved_model.pb."""
    folder.mkdir(parents=True, exist_ok=True)
    model = saved_model_pb2.SavedModel(meta_graphs=metas)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def write_references(folder: Path) -> Path:
    """Writes the model of `references` with its checkpoint."""
    write_checkpoint(folder / "variables" / "variables", {"layer/w": W, "b": B})
    return write_model(folder, references())


def references() -> saved_model_pb2.MetaGraphDef:
    """y = x w + b with the values W and B, as TensorFlow 1 saves it."""
    meta = saved_model_pb2.MetaGraphDef()
    meta.meta_info_def.tags.append("serve")
    nodes = Nodes(meta.graph_def.node)
    nodes.add("Placeholder", "x", dtype=dtypes.float32, shape=(3,))
    for name, value in (("w", W), ("b", B)):
        nodes.add("VariableV2", name, dtype=dtypes.float32, shape=value.shape)
        nodes.add("Identity", f"{name}/read", name, T=dtypes.float32)
    nodes.add("Mul", "product", "x", "w/read", T=dtypes.float32)
    nodes.add("AddV2", "y", "product", "b/read", T=dtypes.float32)
    nodes.add("Placeholder", "save/Const", dtype=dtypes.string, shape=())
    nodes.text("save/names", "b", "layer/w")
    nodes.text("save/slices", "", "")
    nodes.add(
        "RestoreV2",
        "save/RestoreV2",
        "save/Const",
        "save/names",
        "save/slices",
        dtypes=[dtypes.float32, dtypes.float32],
    )
    nodes.add("Assign", "save/Assign", "b", "save/RestoreV2", T=dtypes.float32)
    nodes.add("Assign", "save/Assign_1", "w", "save/RestoreV2:1", T=dtypes.float32)
    nodes.add("NoOp", "save/restore_all", "^save/Assign", "^save/Assign_1")
    meta.saver_def.filename_tensor_name, meta.saver_def.restore_op_name = "save/Const:0", "save/restore_all"
    signature = meta.signature_def["serving_default"]
    signature.inputs["x"].name, signature.outputs["y"].name = "x:0", "y:0"
    return meta
