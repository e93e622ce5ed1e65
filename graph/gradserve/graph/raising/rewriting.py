"""The graph while control flow is raised: its nodes, frames and effects, and what joins it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradserve.errors import InvalidGraph
from gradserve.graph import dtypes, op
from gradserve.graph.library import Library
from gradserve.graph.raising.outlining import Body, Item, Ref, Source, define_function, dtype_of, item_of
from gradserve.v1 import graph_pb2, tensor_pb2

ENTERS = frozenset(("Enter", "RefEnter"))
EXITS = frozenset(("Exit", "RefExit"))
NEXT = frozenset(("NextIteration", "RefNextIteration"))
MERGES = frozenset(("Merge", "RefMerge"))
SWITCHES = frozenset(("Switch", "RefSwitch", "_SwitchN"))
COPIES = frozenset(("Identity", "RefIdentity", "LoopCond"))
_MOST_COPIED_BYTES = 4096
"""A constant of up to this size is copied into the bodies that read it, so that shapes stay static there."""

RAISED = "_raised"
"""The attr that says what a node was raised from: a graph that travels again is not raised again."""


@dataclass(frozen=True, slots=True)
class Raised:
    """What has become of an imported graph.

    Attributes:
        replaced: names of imported nodes that have another meaning now.
        added: names of nodes that were not imported.
        inside: for each imported node that has gone, the frame that it lay in.
    """

    replaced: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    inside: Mapping[str, str] = field(default_factory=dict[str, str])


def is_back_edge(reader: graph_pb2.NodeDef, source: graph_pb2.NodeDef) -> bool:
    """Whether an input closes a loop of TF1."""
    return reader.op in MERGES and source.op in NEXT


class Rewriting:
    """The graph while it is rewritten. Invariant: `items` computes what the imported graph does.

    Attributes:
        replaced: the names of imported nodes that have another meaning now.
        read: the tensors that something reads.
        parents, depths: the frame around each frame, and how deep it lies.
        effects: the nodes that read or change state, and those behind them in the same frame.
    """

    def __init__(self, nodes: Sequence[graph_pb2.NodeDef], library: Library) -> None:
        self.items = {node.name: item_of(node) for node in nodes}
        self.library = library
        self.functions = Library()
        self.replaced: set[str] = set()
        self.read: frozenset[Ref] = frozenset()
        self.raised = {node.attr[RAISED].s: node for node in nodes if RAISED in node.attr}
        self.inside: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.depths = {"": 0}
        self.effects: set[str] = set()

    def find_frames(self) -> None:
        """Finds what is read, and the frame of every item and how deep it lies; items must follow what they read."""
        self.read = frozenset(ref for item in self.items.values() for ref in item.inputs)
        for item in self.items.values():
            item.frame = self._deepest(item)
            if item.op in ENTERS:
                frame = item.attr("frame_name").s.decode("utf-8", "surrogateescape")
                if self.depths.get(frame, 0) <= self.depths[item.frame]:
                    self.parents[frame] = item.frame
                    self.depths[frame] = self.depths[item.frame] + 1
                item.frame = frame
            elif item.op in EXITS:
                if not item.frame:
                    raise broken(item, "lies in no loop: an Exit must follow an Enter")
                item.frame = self.parents[item.frame]
        for item in self.items.values():
            for name in item.reads():
                if self.items[name].op in NEXT and self.items[name].frame != item.frame:
                    raise broken(item, f"reads {name}, of another loop")

    def find_frames_again(self) -> None:
        """Does so where items have come or gone. Raises InvalidGraph where one that has gone is read."""
        for item in self.items.values():
            gone = next((name for name in item.reads() if name not in self.items), None)
            if gone is not None:
                raise broken(item, f"reads {gone}, of an array or a stack of TF1, as none of their ops does")
        self.items = {item.name: item for item in _in_order(self.items)}
        self.find_frames()

    def _deepest(self, item: Item) -> str:
        """The innermost frame among those of a node's inputs; a back edge comes from the node's own."""
        frames = [self.items[name].frame for name in item.reads() if self.items[name].op not in NEXT]
        return max(frames, key=lambda frame: self.depths[frame], default="")

    def members(self, frame: str) -> list[Item]:
        """The nodes of a frame, each after those of the frame that it reads. Finds their effects."""
        inner = {name: item for name, item in self.items.items() if item.frame == frame}
        members = _in_order(inner)
        for item in members:
            if _has_effect(item) or any(
                name in self.effects and name in inner and not is_back_edge(item.message, inner[name].message)
                for name in item.reads()
            ):
                self.effects.add(item.name)
        return members

    def unique_name(self, hint: str) -> str:
        name = hint
        for count in itertools.count(1):
            if name not in self.items and name not in self.inside:
                break
            name = f"{hint}_{count}"
        return name

    def replace(self, item: Item, type_name: str, inputs: Sequence[Ref], kinds: Sequence[int]) -> None:
        """Makes a node an Identity or IdentityN of other tensors, under its own name."""
        message = graph_pb2.NodeDef(name=item.name, op=type_name, device=item.message.device)
        if type_name == "Identity":
            message.attr["T"].type = kinds[0]  # pyright: ignore[reportAttributeAccessIssue]
        else:
            message.attr["T"].list.type.extend(kinds)  # pyright: ignore[reportArgumentType]
        self.put(message, inputs, item.controls, item.frame)
        self.replaced.add(item.name)

    def put(
        self, message: graph_pb2.NodeDef, inputs: Sequence[Ref], controls: Sequence[str] = (), frame: str = ""
    ) -> None:
        """Enters a node, its inputs filled in."""
        message.input.extend(str(ref) for ref in inputs)
        message.input.extend(f"^{name}" for name in controls)
        self.items[message.name] = Item(message, list(inputs), list(controls), frame)

    def dtype(self, ref: Ref) -> int:
        """The number of the dtype of a tensor."""
        return dtype_of(self.items[ref.name], ref.output)

    def is_loop_merge(self, item: Item) -> bool:
        """Whether a Merge is a loop variable."""
        return item.op in MERGES and any(self.items[ref.name].op in NEXT for ref in item.inputs)

    def constant(self, ref: Ref) -> Ref | None:
        """The small constant that a tensor is, however often it is handed on; None where it is none.

        One that can carry a gradient is none: somebody may ask for it.
        """
        item = self.items[ref.name]
        while item.op in COPIES or item.op in ENTERS or (item.op in SWITCHES and item.inputs):
            ref = item.inputs[0]
            item = self.items[ref.name]
        if item.op != "Const" or item.message.ByteSize() > _MOST_COPIED_BYTES:
            return None
        return None if dtypes.from_number(item.attr("dtype").type).is_trainable else ref

    def add_function(self, hint: str, body: Body, takes: Sequence[int], gives: Sequence[int], *constants: int) -> str:
        """Adds a function and returns its name; each of `constants` becomes one more output, an int32."""
        nodes: list[graph_pb2.NodeDef] = []
        for value in constants:
            name = f"value_index_{len(nodes)}"
            while name in body.nodes:
                name += "_"
            nodes.append(integer(name, value))
        hint = name = hint.replace("/", "_").replace(".", "_")
        for count in itertools.count(1):
            if self.library.find(name) is None and self.functions.find(name) is None:
                break
            name = f"{hint}_{count}"
        self.functions.add(define_function(name, body, takes, gives, nodes))
        return name

    def keep_functions(self) -> None:
        """Adds to the library the functions that the graph calls."""
        values = [value for item in self.items.values() for value in item.message.attr.values()]
        called = [value.func.name for value in values if value.HasField("func")]
        called += [entry.name for value in values if value.HasField("list") for entry in value.list.func]
        for definition in self.functions.needed(called):
            self.library.add(definition)


def _has_effect(item: Item) -> bool:
    """Whether an op reads or changes state; one that only orders others does not."""
    definition = op.find(item.op)
    return definition is not None and definition.stateful and item.op not in ("NoOp", "ControlTrigger")


class Captures:
    """What the functions of one node read from outside: each tensor once, behind the node's own arguments."""

    def __init__(self, raising: Rewriting, first: int) -> None:
        self.raising = raising
        self.first = first
        self.positions: dict[Ref, int] = {}

    def source(self, ref: Ref) -> Source:
        """The argument that a tensor from outside becomes; a small constant is copied inside."""
        constant = self.raising.constant(ref)
        if constant is not None:
            return constant
        return self.positions.setdefault(ref, self.first + len(self.positions))


def broken(item: Item, what: str) -> InvalidGraph:
    """The error of a node whose control flow does not close."""
    return InvalidGraph(f"{item.name} ({item.op}) {what}.", node=item.name, op=item.op)


def _in_order(items: Mapping[str, Item]) -> list[Item]:
    """The items so that each follows those that it reads, back edges apart."""
    order: list[Item] = []
    done: set[str] = set()
    for root in items:
        stack = [(root, False)]
        while stack:
            name, entered = stack.pop()
            if entered:
                order.append(items[name])
            elif name not in done:
                done.add(name)
                stack.append((name, True))
                item = items[name]
                stack.extend(
                    (other, False)
                    for other in reversed(list(item.reads()))
                    if other in items and not is_back_edge(item.message, items[other].message)
                )
    return order


def integer(name: str, value: int) -> graph_pb2.NodeDef:
    node = graph_pb2.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tensor_pb2.DT_INT32
    node.attr["value"].tensor.dtype = tensor_pb2.DT_INT32
    node.attr["value"].tensor.tensor_shape.SetInParent()
    node.attr["value"].tensor.int_val.append(value)
    return node
