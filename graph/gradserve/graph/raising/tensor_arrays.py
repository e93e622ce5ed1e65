"""TF1's TensorArrays made TensorLists: values that flow, in place of state behind a handle.

Each TensorArray op takes the array's handle and a flow, a float that only orders what happens. Here the flow becomes
the list itself, from op to op and through the copies in between (loops, branches and stacks included), and the handle
is read by nobody any more. So a loop over arrays differentiates like any other.

What tf.gradients wrote for an array is the same once more: the flow of a gradient array is the cotangent of the
list. Where it starts from a flow of the forward pass it is a list of unset elements; contributions, which
TensorFlow writes into one array, are added where TensorFlow adds their flows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradserve.graph import dtypes
from gradserve.graph.raising.outlining import Item, Ref
from gradserve.v1 import graph_pb2, tensor_pb2

_VERSIONS = ("", "V2", "V3")
_MAKERS = frozenset(f"TensorArray{version}" for version in _VERSIONS)
_GRADIENTS = frozenset(f"TensorArrayGrad{version}" for version in _VERSIONS)
_CLOSES = frozenset(f"TensorArrayClose{version}" for version in _VERSIONS)
_FLOW_SLOT = {
    f"TensorArray{kind}{version}": slot
    for version in _VERSIONS
    for kind, slot in (
        ("Write", 3), ("Read", 2), ("Gather", 2), ("Scatter", 3), ("Concat", 1), ("Split", 3), ("Size", 1), ("Grad", 1),
    )
}  # fmt: skip
"""Which input is the flow; the handle is always the first. An op that closes an array has a handle only."""
_CHANGES = frozenset(f"TensorArray{kind}{version}" for version in _VERSIONS for kind in ("Write", "Scatter", "Split"))
"""These give a flow; nothing else but what makes an array does, or its gradient array."""

_SWITCHES = frozenset(("Switch", "RefSwitch"))
_MERGES = frozenset(("Merge", "RefMerge"))
_COPIES = _SWITCHES | _MERGES | {
    f"{reference}{kind}" for reference in ("", "Ref") for kind in ("Identity", "Enter", "Exit", "NextIteration")
}  # fmt: skip
_SUMS = frozenset(("Add", "AddV2", "AddN"))
_ZEROS = frozenset(("Const", "Fill", "ZerosLike"))
"""What gives the zero that a sum of flows starts from, or a flow of the versions before the third."""
_PUSHES = frozenset(("StackPush", "StackPushV2"))
_POPS = frozenset(("StackPop", "StackPopV2"))


def is_array(type_name: str) -> bool:
    """Whether an op makes an array."""
    return type_name in _MAKERS


def lists_for_arrays(items: dict[str, Item]) -> set[str]:
    """Rewrites the items where every array in them can become a list; returns the names of what has changed.

    What was a flow has another name now, since a list is no float: the name with `/list` behind it.

    The frames of the items must be known. An array whose handle or flow leaves the ops of this module (into a
    function, say) keeps everything as it is.
    """
    makers = [item for item in items.values() if is_array(item.op)]
    if not makers:
        return set()
    graph = _Reading(items)
    arrays = [_Array(graph, maker) for maker in makers]
    flows = [ref for array in arrays for ref in array.flows]
    used = {name for array in arrays for name in array.uses}
    unknown = any(item.op in _FLOW_SLOT and item.name not in used for item in items.values())
    if unknown or len(set(flows)) < len(flows) or not all(array.stays_among_arrays() for array in arrays):
        return set()
    changed: set[str] = set()
    for array in arrays:
        changed |= _Writing(array).rewrite()
    for item in list(items.values()):
        if any(name in graph.renamed for name in item.controls):
            controls = [graph.renamed.get(name, name) for name in item.controls]
            _put(items, _copy(item.message, item.name), item.inputs, controls)
            changed.add(item.name)
    return changed


class _Reading:
    """The graph as it came: who reads a tensor, and which pop gives what was pushed.

    Attributes:
        renamed: the new names of what is rewritten.
    """

    def __init__(self, items: dict[str, Item]) -> None:
        self.items = items
        self.renamed: dict[str, str] = {}
        self.readers: dict[Ref, list[tuple[Item, int]]] = {}
        for item in items.values():
            for slot, ref in enumerate(item.inputs):
                self.readers.setdefault(ref, []).append((item, slot))
        self.pushed: dict[str, list[Item]] = {}
        self.popped: dict[str, list[Item]] = {}
        self.stacks: dict[str, Item] = {}
        for item in items.values():
            if item.op in ("Stack", "StackV2"):
                self._pair(item)

    def _pair(self, stack: Item) -> None:
        handles = self.copies([Ref(stack.name)])
        users = [pair for ref in handles for pair in self.readers.get(ref, ())]
        pushes = [item for item, slot in users if item.op in _PUSHES and slot == 0]
        pops = [item for item, _ in users if item.op in _POPS]
        self.popped.update((item.name, pops) for item in pushes)
        self.pushed.update((item.name, pushes) for item in pops)
        self.stacks.update((item.name, stack) for item in (*pushes, *pops))

    def copies(self, starts: Sequence[Ref]) -> set[Ref]:
        """These tensors and all copies of them; what a stack gives back is a copy of what it was given."""
        found = set(starts)
        stack = list(starts)
        while stack:
            for reader, slot in self.readers.get(stack.pop(), ()):
                for ref in self.handed_on(reader, slot):
                    if ref not in found:
                        found.add(ref)
                        stack.append(ref)
        return found

    def handed_on(self, reader: Item, slot: int) -> Iterator[Ref]:
        """The copies that a node makes of its input."""
        if reader.op in _SWITCHES:
            if slot == 0:
                yield from (Ref(reader.name, 0), Ref(reader.name, 1))
        elif reader.op in _COPIES:
            yield Ref(reader.name)
        elif reader.op in _PUSHES and slot == 1:
            yield from (Ref(pop.name) for pop in self.popped.get(reader.name, ()))

    def sources(self, ref: Ref) -> list[Ref]:
        """The tensors that a copy or a sum is one of."""
        item = self.items[ref.name]
        if item.op in _POPS:
            return [push.inputs[1] for push in self.pushed.get(item.name, ())]
        if item.op in _MERGES or item.op in _SUMS:
            return item.inputs
        return item.inputs[:1] if item.op in _COPIES else []


class _Array:
    """One array and what belongs to it.

    Attributes:
        handles, gradients: copies of its handle, and of those of its gradient arrays.
        uses: the ops on either, by name.
        forward: the flows of the array itself.
        flows: these and those of its gradient arrays.
    """

    def __init__(self, graph: _Reading, maker: Item) -> None:
        self.graph = graph
        self.maker = maker
        self.handles = graph.copies([Ref(maker.name)])
        self.uses = {item.name: item for item, slot in self._readers(self.handles) if slot == 0}
        grads = [item for item in self.uses.values() if item.op in _GRADIENTS]
        self.gradients = graph.copies([Ref(item.name) for item in grads])
        own = [item for item in self.uses.values() if item.op in _FLOW_SLOT and item.op not in _GRADIENTS]
        self.uses.update((item.name, item) for item, slot in self._readers(self.gradients) if slot == 0)
        self.uses = {name: item for name, item in self.uses.items() if item.op in _FLOW_SLOT or item.op in _CLOSES}
        self.starts = [Ref(maker.name, 1)] if maker.op.endswith("V3") else []
        written = [Ref(item.name) for item in own if item.op in _CHANGES]
        before = self._origins([item.inputs[_FLOW_SLOT[item.op]] for item in own])
        self.forward = graph.copies([*self.starts, *written, *before])
        self.flows = self._connected()

    def _readers(self, refs: set[Ref]) -> Iterator[tuple[Item, int]]:
        return (pair for ref in refs for pair in self.graph.readers.get(ref, ()))

    def _is_zero(self, ref: Ref) -> bool:
        return self.graph.items[ref.name].op in _ZEROS

    def _origins(self, refs: Sequence[Ref]) -> list[Ref]:
        """These and what they are copies of, zeros apart: an array of an old version has a flow that starts as 0."""
        found = [ref for ref in dict.fromkeys(refs) if not self._is_zero(ref)]
        for ref in found:
            if self.graph.items[ref.name].op in _COPIES:
                new = (source for source in self.graph.sources(ref) if not self._is_zero(source))
                found += [source for source in new if source not in found]
        return found

    def _connected(self) -> set[Ref]:
        """All flows: what is handed on to one or from one, or added to one."""
        found = set(self.forward)
        for item in self.uses.values():
            if item.op in _FLOW_SLOT:
                found.add(item.inputs[_FLOW_SLOT[item.op]])
            if item.op in _CHANGES:
                found.add(Ref(item.name))
            if item.op in _GRADIENTS:
                found.add(Ref(item.name, 1))
        found = {ref for ref in found if not self._is_zero(ref)}
        stack = list(found)
        while stack:
            ref = stack.pop()
            beside = self.graph.sources(ref)
            for reader, slot in self.graph.readers.get(ref, ()):
                beside = [*beside, *self.graph.handed_on(reader, slot)]
                if reader.op in _SUMS:
                    beside.append(Ref(reader.name))
            for other in beside:
                if other not in found and not self._is_zero(other):
                    found.add(other)
                    stack.append(other)
        return found

    def stays_among_arrays(self) -> bool:
        """Whether nothing but array ops, copies and sums touches its handles and flows."""
        items = self.graph.items
        made = {Ref(item.name) for item in self.uses.values() if item.op in _CHANGES}
        made |= {Ref(item.name, 1) for item in self.uses.values() if item.op in _GRADIENTS} | set(self.starts)
        return (
            all(ref in made or self.graph.sources(ref) for ref in self.flows)
            and all(self._is_flow_slot(item, slot) for item, slot in self._readers(self.flows))
            and all(
                (slot == 0 and item.name in self.uses) or any(True for _ in self.graph.handed_on(item, slot))
                for item, slot in self._readers(self.handles | self.gradients)
            )
            and self.handles.isdisjoint(self.gradients)
            and not any(items[ref.name].op in _MERGES for ref in self.handles | self.gradients)
        )

    def _is_flow_slot(self, item: Item, slot: int) -> bool:
        if item.name in self.uses:
            return _FLOW_SLOT.get(item.op) == slot
        copied = item.op in _COPIES and (item.op not in _SWITCHES or slot == 0)
        return copied or item.op in _SUMS or item.op == "ZerosLike" or (item.op in _PUSHES and slot == 1)


class _Writing:
    """Puts list ops in the place of the ops of one array."""

    def __init__(self, array: _Array) -> None:
        self.array = array
        self.items = array.graph.items
        self.maker = array.maker
        self.names = {ref.name: _unique(self.items, f"{ref.name}/list") for ref in array.flows}
        self.list = Ref(self.names.setdefault(self.maker.name, _unique(self.items, f"{self.maker.name}/list")))
        shape = self.maker.attr("element_shape").shape if "element_shape" in self.maker.message.attr else None
        self.element_shape = shape
        self.kind = self.maker.attr("dtype").type

    def rewrite(self) -> set[str]:
        """Rewrites all that belongs to the array; returns the names of what has changed."""
        array, graph = self.array, self.array.graph
        graph.renamed.update(self.names)
        changed: set[str] = set()
        handles = array.handles | array.gradients
        flowing = {ref.name for ref in array.flows}
        for item in list(self.items.values()):
            if item is self.maker or item.name in array.uses:
                self._rewrite_use(item)
            elif item.name in flowing:
                self._rewrite_flow(item)
            elif item.op in _COPIES and Ref(item.name) in handles:
                del self.items[item.name]
            elif item.op in _PUSHES and item.inputs[1] in handles:
                self._push_nothing(item)
            elif item.op in _PUSHES and item.inputs[1] in array.flows:
                self._push_list(item)
            elif item.op == "ZerosLike" and item.inputs[0] in array.flows:
                zero = self.constant(item.name, "zero", [0], (), dtypes.float32.numpy)
                self._replace(item, _node("Identity", T=dtypes.float32.number), [zero])
            else:
                continue
            changed.add(item.name)
        return changed

    def reading(self, ref: Ref, is_forward: bool = False) -> Ref:
        """The list where a flow was read; a zero is the list as it was made, in which nothing is set."""
        if ref in self.array.starts:
            return self.list
        if ref not in self.array.flows:
            return self.list if is_forward or not self.maker.frame else self._zero(ref)
        use = self.array.uses.get(ref.name)
        if use is not None and use.op in _GRADIENTS:
            return self.reading(use.inputs[1])
        return Ref(self.names[ref.name], ref.output)

    def _zero(self, ref: Ref) -> Ref:
        """An empty list, which is the neutral element of a sum where the array was made in another loop."""
        item = self.items[ref.name]
        node = _node("EmptyTensorList", element_dtype=self.kind, shape_type=dtypes.int32.number)
        return self._add(item, "zero", node, [self.shape_of(item, self.element_shape), self.shape_of(item, None)])

    # What stands for a node

    def _rewrite_flow(self, item: Item) -> None:
        """A copy or a sum of flows becomes one of lists; what is popped from a stack is a list."""
        if item.op in _POPS:
            self._replace(item, _copy(item.message, "", elem_type=dtypes.variant.number), item.inputs)
            return
        if item.op in _SUMS:
            node = _node("AddN", T=dtypes.variant.number)
            node.attr["N"].i = len(item.inputs)
        else:
            node = _copy(item.message, "", T=dtypes.variant.number)
        count = 1 if item.op in _SWITCHES else len(item.inputs)
        is_forward = Ref(item.name) in self.array.forward
        inputs = [self.reading(ref, is_forward) for ref in item.inputs[:count]]
        self._replace(item, node, [*inputs, *item.inputs[count:]])

    def _push_list(self, item: Item) -> None:
        stack, value = item.inputs
        self._replace(item, _copy(item.message, "", T=dtypes.variant.number), [stack, self.reading(value)])
        self._set_stack(item, dtypes.variant.number)

    def _push_nothing(self, item: Item) -> None:
        """A handle that was saved is not needed: an integer keeps its place."""
        nothing = self.constant(item.name, "nothing", [0], (), dtypes.int32.numpy)
        self._replace(item, _copy(item.message, "", T=dtypes.int32.number), [item.inputs[0], nothing])
        for pop in self.array.graph.popped.get(item.name, ()):
            pop = self.items[pop.name]
            self._replace(pop, _copy(pop.message, "", elem_type=dtypes.int32.number), pop.inputs)
        self._set_stack(item, dtypes.int32.number)

    def _set_stack(self, push: Item, kind: int) -> None:
        stack = self.items[self.array.graph.stacks[push.name].name]
        self._replace(stack, _copy(stack.message, "", elem_type=kind), stack.inputs)

    def _rewrite_use(self, item: Item) -> None:
        if item.op in _CLOSES or item.op in _GRADIENTS:
            self._replace(item, _node("NoOp"), [])
            return
        if item is self.maker:
            shape = self.shape_of(item, self.element_shape)
            node = _node("TensorListReserve", element_dtype=self.kind, shape_type=dtypes.int32.number)
            self._replace(item, node, [shape, item.inputs[0]])
            return
        slot = _FLOW_SLOT[item.op]
        is_gradient, flow = item.inputs[0] in self.array.gradients, item.inputs[slot]
        held = self.reading(flow, not is_gradient)
        if is_gradient and (flow in self.array.forward or item.op in _CHANGES):
            held = self._unset_like(item, held)
        node, inputs = self._list_op(item, held, is_gradient)
        if is_gradient and item.op in _CHANGES and flow not in self.array.forward:
            alone = _put(self.items, _named(node, _unique(self.items, f"{item.name}/alone")), inputs, item.controls)
            node, inputs = _node("AddN", T=dtypes.variant.number), [self.reading(flow), alone]
            node.attr["N"].i = 2
        self._replace(item, node, inputs)

    def _list_op(self, item: Item, held: Ref, is_gradient: bool) -> tuple[graph_pb2.NodeDef, list[Ref]]:
        """The list op that stands for an array op, and its inputs."""
        node = _node(element_dtype=self.kind)
        rest = [ref for slot, ref in enumerate(item.inputs) if slot not in (0, _FLOW_SLOT[item.op])]
        match item.op.removesuffix("V2").removesuffix("V3"):
            case "TensorArrayWrite":
                node.op = "TensorListSetItem"
                if self.maker.attr("dynamic_size").b and not is_gradient:
                    node.attr["resize_if_index_out_of_bounds"].b = True
                return node, [held, *rest]
            case "TensorArrayRead":
                node.op = "TensorListGetItem"
                return node, [held, *rest, self.shape_of(item, self.element_shape)]
            case "TensorArrayGather":
                node.op = "TensorListGather"
                own = item.attr("element_shape").shape if "element_shape" in item.message.attr else None
                shape = self.element_shape if own is None or own.unknown_rank else own
                return node, [held, *rest, self.shape_of(item, shape)]
            case "TensorArrayScatter":
                node.op = "TensorListScatterIntoExistingList"
                indices, value = self._summed(item, *rest) if is_gradient else rest
                return node, [held, value, indices]
            case "TensorArrayConcat":
                node.op = "TensorListConcatV2"
                node.attr["shape_type"].type = tensor_pb2.DT_INT32
                rows = self.constant(item.name, "leading_dims", [], (0,), dtypes.int64.numpy)
                return node, [held, self.shape_of(item, self.element_shape), rows]
            case "TensorArraySplit":
                node.op = "TensorListSplit"
                node.attr["shape_type"].type = tensor_pb2.DT_INT32
                value, lengths = rest
                return node, [value, self.shape_of(item, self.element_shape), lengths]
            case _:
                return _node("TensorListLength"), [held]

    def _unset_like(self, item: Item, held: Ref) -> Ref:
        """A list as long as another one, of which nothing is set."""
        length = self._add(item, "length", _node("TensorListLength"), [held])
        shape = _node("TensorListElementShape", shape_type=dtypes.int32.number)
        found = self._add(item, "shape", shape, [held])
        node = _node("TensorListReserve", element_dtype=self.kind, shape_type=dtypes.int32.number)
        return self._add(item, "unset", node, [found, length])

    def _summed(self, item: Item, indices: Ref, value: Ref) -> tuple[Ref, Ref]:
        """The rows of a gradient, those for one element added up."""
        if self.items[indices.name].op == "Range":
            return indices, value
        kinds = {"T": dtypes.int32.number, "out_idx": dtypes.int32.number}
        places = self._add(item, "places", _node("Unique", **kinds), [indices])
        count = self._add(item, "count", _node("Size", T=dtypes.int32.number, out_type=dtypes.int32.number), [places])
        node = _node("UnsortedSegmentSum", T=self.kind, Tindices=dtypes.int32.number, Tnumsegments=dtypes.int32.number)
        return places, self._add(item, "rows", node, [value, Ref(places.name, 1), count])

    # Adding nodes

    def _replace(self, item: Item, node: graph_pb2.NodeDef, inputs: Sequence[Ref]) -> None:
        """Puts a node in the place of an item, under its new name if it has one."""
        node.name = self.names.get(item.name, item.name)
        node.device = item.message.device
        del self.items[item.name]
        _put(self.items, node, inputs, item.controls)

    def _add(self, item: Item, what: str, node: graph_pb2.NodeDef, inputs: Sequence[Ref]) -> Ref:
        return _put(self.items, _named(node, _unique(self.items, f"{item.name}/{what}")), inputs)

    def shape_of(self, item: Item, shape: tensor_pb2.TensorShapeProto | None) -> Ref:
        """An element shape as the list ops take it: -1 for a size, or for the whole, that is not known."""
        if shape is None or shape.unknown_rank:
            return self.constant(item.name, "element_shape", [-1], (), dtypes.int32.numpy)
        sizes = [dim.size for dim in shape.dim]
        return self.constant(item.name, "element_shape", sizes, (len(sizes),), dtypes.int32.numpy)

    def constant(self, name: str, what: str, values: Sequence[int], shape: tuple[int, ...], dtype: Any) -> Ref:
        array = np.array(values, dtype).reshape(shape)
        node = _node("Const", dtype=dtypes.as_dtype(array.dtype).number)
        tensor = node.attr["value"].tensor
        tensor.dtype = node.attr["dtype"].type
        tensor.tensor_shape.SetInParent()
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = array.tobytes()
        return _put(self.items, _named(node, _unique(self.items, f"{name}/{what}")), [])


def _node(op: str = "", **types: int) -> graph_pb2.NodeDef:
    """A node without a name, with these attrs of kind type."""
    node = graph_pb2.NodeDef(op=op)
    for key, number in types.items():
        node.attr[key].type = number  # pyright: ignore[reportAttributeAccessIssue]
    return node


def _copy(message: graph_pb2.NodeDef, name: str, **types: int) -> graph_pb2.NodeDef:
    """A copy of a node with some of its dtypes changed."""
    node = graph_pb2.NodeDef()
    node.CopyFrom(message)
    node.name = name
    for key, number in types.items():
        node.attr[key].type = number  # pyright: ignore[reportAttributeAccessIssue]
    return node


def _named(node: graph_pb2.NodeDef, name: str) -> graph_pb2.NodeDef:
    node.name = name
    return node


def _put(items: dict[str, Item], node: graph_pb2.NodeDef, inputs: Sequence[Ref], controls: Sequence[str] = ()) -> Ref:
    """Enters a node that reads these."""
    del node.input[:]
    node.input.extend(str(ref) for ref in inputs)
    node.input.extend(f"^{name}" for name in controls)
    items[node.name] = Item(node, list(inputs), list(controls))
    return Ref(node.name)


def _unique(items: Mapping[str, Item], name: str) -> str:
    while name in items:
        name += "_"
    return name
