"""Turns the pieces of a plan into programs: GraphDefs of their own, as they travel to workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from gradserve.graph import codec
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.shapes import Shape
from gradserve.server.draft import Draft
from gradserve.server.fleet.base import Program
from gradserve.server.partition import Piece
from gradserve.server.simplify import Work
from gradserve.v1 import graph_pb2

Traffic = Sequence[Mapping[Tensor, int]]
_LARGEST_KEPT = 256


def programs(draft: Draft, kept: Traffic, sent: Traffic, numbers: Sequence[int]) -> list[Program]:
    """One program a piece.

    Args:
        draft: the pieces and what they stand for.
        kept, sent: for each piece, the outputs that later pieces of its worker read, and those that leave it, with
            the number of readers.
        numbers: of the programs.
    """
    writer = _Writer(draft)
    return [
        writer.program(piece, number, readers, leaving)
        for piece, number, readers, leaving in zip(draft.pieces, numbers, kept, sent, strict=True)
    ]


class _Writer:
    """Writes the GraphDefs of one plan."""

    def __init__(self, draft: Draft) -> None:
        self.work = draft.work
        self._fed = dict(zip(draft.work.feeds, draft.feeds, strict=True))
        # What is fed for an inner tensor need not have the shapes that follow from what it replaces.
        self._shapes_hold = all(tensor.node.type == "Placeholder" for tensor in draft.work.feeds)
        self._placeholders: dict[tuple[DType, Shape], graph_pb2.NodeDef] = {}
        self._small_constants: dict[Tensor, graph_pb2.NodeDef] = {}
        self._has_handles = bool(draft.flow.handles)
        scopes = {node.name.partition("/")[0] for node in draft.work.nodes}
        self._inputs, self._constants = _free_name("inputs", scopes), _free_name("constants", scopes)
        self._frame = graph_pb2.GraphDef()
        self._frame.versions.producer = 1882
        self._library = draft.graph.library

    def program(self, piece: Piece, number: int, kept: Mapping[Tensor, int], sent: Mapping[Tensor, int]) -> Program:
        """A piece as a GraphDef of its own: inputs are Placeholders, constants are copied in."""
        message = graph_pb2.GraphDef()
        message.CopyFrom(self._frame)
        if len(self._library):
            called = [function.name for node in piece.nodes for function in node.functions()]
            message.library.function.extend(self._library.needed(called))
        add = message.node.add
        names: dict[Tensor, str] = {}
        for tensor in piece.inputs:
            placeholder = add()
            placeholder.CopyFrom(self._placeholder(tensor))
            placeholder.name = names[tensor] = f"{self._inputs}/{len(names)}"
        feeds = tuple([f"{name}:0" for name in names.values()])
        for tensor in piece.constants:
            constant = add()
            constant.CopyFrom(self._constant(tensor))
            constant.name = names[tensor] = f"{self._constants}/{len(names)}"
        stand_ins = _stand_ins(piece) if self._has_handles else {}
        _add_nodes(message, self.work, piece, names, stand_ins)
        outputs = list(piece.outputs)
        positions = {tensor: position for position, tensor in enumerate(outputs)}
        return Program(
            number,
            message.SerializeToString(),
            feeds,
            tuple([f"{stand_ins[t]}:0" if t in stand_ins else t.name for t in outputs]),
            tuple([node.name for node in piece.targets]),
            tuple([(position, kept[tensor]) for position, tensor in enumerate(outputs) if tensor in kept]),
            tuple([positions[tensor] for tensor in sent]),
        )

    def _constant(self, tensor: Tensor) -> graph_pb2.NodeDef:
        """A constant without a name; a small one is written once for all pieces."""
        found = self._small_constants.get(tensor)
        if found is None:
            value = self.work.constants[tensor]
            found = graph_pb2.NodeDef(op="Const")
            found.attr["dtype"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]
            found.attr["value"].tensor.CopyFrom(codec.constant_to_message(value, tensor.dtype))
            if value.size <= _LARGEST_KEPT:
                self._small_constants[tensor] = found
        return found

    def _placeholder(self, tensor: Tensor) -> graph_pb2.NodeDef:
        """What stands for a tensor from outside, without a name; those of one dtype and shape are copies of one."""
        fed = self._fed.get(tensor)
        shape = fed.shape if fed is not None else tensor.shape if self._shapes_hold else None
        found = self._placeholders.get((tensor.dtype, shape))
        if found is None:
            found = self._placeholders[tensor.dtype, shape] = graph_pb2.NodeDef(op="Placeholder")
            found.attr["dtype"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]
            found.attr["shape"].shape.CopyFrom(codec.shape_to_message(shape))
        return found


def _add_nodes(
    message: graph_pb2.GraphDef, work: Work, piece: Piece, names: Mapping[Tensor, str], stand_ins: Mapping[Tensor, str]
) -> None:
    add, controls, inputs, find = message.node.add, piece.controls, work.inputs, names.get
    for node in piece.nodes:
        if node.source is not None:
            copy = add()
            copy.CopyFrom(node.source)
            copy.ClearField("device")
            copy.ClearField("input")
        else:
            copy = add(name=node.name, op=node.type)
            codec.write_attrs(node, copy, brief=True)
        copy.input.extend([find(tensor) or _wire_name(tensor) for tensor in inputs[node]])
        if node in controls:
            for control in controls[node]:
                copy.input.append(f"^{control.name}")
                copy.input.extend(f"^{stand_ins[t]}" for t in control.outputs if t in stand_ins)
        if stand_ins:
            for tensor in node.outputs:
                if tensor in stand_ins:
                    reader = add(name=stand_ins[tensor], op="Identity", input=[_wire_name(tensor)])
                    reader.attr["T"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]


def _free_name(name: str, taken: Set[str]) -> str:
    """The name, or a longer one where it is taken."""
    while name in taken:
        name += "_"
    return name


def _stand_ins(piece: Piece) -> dict[Tensor, str]:
    """Names of the Identities that read a TF1 variable where its value leaves the piece, at its turn and not later."""
    taken = {node.name for node in piece.nodes}
    return {t: _free_name(f"{t.node.name}/value", taken) for t in piece.outputs if t.dtype.is_reference}


def _wire_name(tensor: Tensor) -> str:
    return tensor.node.name if tensor.index == 0 else f"{tensor.node.name}:{tensor.index}"
