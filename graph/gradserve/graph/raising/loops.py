"""A frame of TF1 becomes a While in the frame around it: its Merges are the variables, its Exits the outputs."""

from __future__ import annotations

from collections.abc import Sequence

from gradserve.errors import InvalidGraph
from gradserve.graph import dtypes
from gradserve.graph.raising.outlining import Body, Item, Ref, Source, cut
from gradserve.graph.raising.rewriting import (
    COPIES,
    ENTERS,
    EXITS,
    NEXT,
    RAISED,
    SWITCHES,
    Captures,
    Rewriting,
    broken,
)
from gradserve.v1 import graph_pb2


def raise_loop(raising: Rewriting, frame: str) -> None:
    """Replaces the nodes of a frame by one While in the frame around it."""
    members = raising.members(frame)
    merges = [item for item in members if raising.is_loop_merge(item)]
    conditions = [item for item in members if item.op == "LoopCond"]
    exits = [
        item
        for item in raising.items.values()
        if item.op in EXITS and raising.items[item.inputs[0].name].frame == frame
    ]
    if not merges:
        _dissolve(raising, frame, members, exits)
        return
    if len(conditions) != 1:
        raise InvalidGraph(
            f"The frame {frame} has loop variables and {len(conditions)} LoopCond nodes: it must have one.", frame=frame
        )
    loop = _Loop(raising, frame, merges, conditions[0])
    name = loop.add_while()
    for item in exits:
        variable = loop.variable_left_by(item)
        raising.replace(item, "Identity", [Ref(name, variable)], [loop.kinds[variable]])
    for item in members:
        del raising.items[item.name]
        raising.inside[item.name] = frame


def _dissolve(raising: Rewriting, frame: str, members: Sequence[Item], exits: Sequence[Item]) -> None:
    """A frame without loop variables runs once: its nodes move to the frame around it."""
    for item in members:
        item.frame = raising.parents[frame]
    for item in [*(member for member in members if member.op in ENTERS), *exits]:
        raising.replace(item, "Identity", item.inputs, [item.attr("T").type])


class _Loop:
    """One frame on its way to a While: variables first, then what the loop only reads."""

    def __init__(self, raising: Rewriting, frame: str, merges: Sequence[Item], condition: Item) -> None:
        self.raising = raising
        self.frame = frame
        self.condition = condition
        self.merges = merges
        self.variables = {item.name: position for position, item in enumerate(merges)}
        self.kinds = [item.attr("T").type for item in merges]
        self.captures = Captures(raising, len(merges))
        self.enters: list[Item] = []
        self.next: list[Item] = []
        for item in merges:
            sources = [raising.items[ref.name] for ref in item.inputs]
            enters = [source for source in sources if source.op in ENTERS]
            following = [source for source in sources if source.op in NEXT]
            if len(sources) != 2 or len(enters) != 1 or len(following) != 1:
                raise broken(item, "is a loop variable: it must read one Enter and one NextIteration")
            self.enters += enters
            self.next += following

    def add_while(self) -> str:
        """Adds the While and its functions; returns its name, the old one where the graph has been raised before."""
        raising = self.raising
        known = raising.raised.get(self.frame.encode("utf-8", "surrogateescape"))
        if known is not None:
            return known.name
        condition = self._cut([self.condition.inputs[0]])
        body = self._cut([Ref(item.name) if self._waits_for(item) else item.inputs[0] for item in self.next])
        kinds = [*self.kinds, *(raising.dtype(ref) for ref in self.captures.positions)]
        body.outputs += self.captures.positions.values()
        scope = self.frame.rpartition("/")[0] or self.frame
        stateful = condition.is_stateful or body.is_stateful
        node = graph_pb2.NodeDef(
            name=raising.unique_name(f"{scope}/While"), op="While" if stateful else "StatelessWhile"
        )
        node.attr["T"].list.type.extend(kinds)  # pyright: ignore[reportArgumentType]
        node.attr["cond"].func.name = raising.add_function(f"{scope}_cond", condition, kinds, [dtypes.bool_.number])
        node.attr["body"].func.name = raising.add_function(f"{scope}_body", body, kinds, kinds)
        node.attr["output_shapes"].list.SetInParent()
        node.attr["parallel_iterations"].i = self.enters[0].attr("parallel_iterations").i or 10
        node.attr[RAISED].s = self.frame.encode("utf-8", "surrogateescape")
        starts = [item.inputs[0] for item in self.enters]
        controls = dict.fromkeys(name for item in self.enters for name in item.controls)
        raising.put(node, [*starts, *self.captures.positions], list(controls), raising.parents[self.frame])
        return node.name

    def _cut(self, outputs: Sequence[Ref]) -> Body:
        return cut(self.raising.items, outputs, self._resolve, self._waits_for)

    def _resolve(self, ref: Ref) -> Source:
        item = self.raising.items[ref.name]
        if item.frame != self.frame:
            return self.captures.source(ref)
        if item.name in self.variables and ref.output == 0:
            return self.variables[item.name]
        if self._is_variable_switch(item):
            if ref.output == 0:
                raise broken(item, "ends the loop, but what it gives there is read inside of it")
            return self._resolve(item.inputs[0])
        if item.op in ENTERS:
            if not item.attr("is_constant").b:
                raise broken(item, "is read inside of the loop, but is neither a loop variable nor constant")
            return self.captures.source(item.inputs[0])
        return ref

    def _is_variable_switch(self, item: Item) -> bool:
        return item.op in SWITCHES and item.inputs[1].name == self.condition.name

    def _waits_for(self, item: Item) -> list[str]:
        return [
            name
            for name in item.controls
            if name in self.raising.effects and self.raising.items[name].frame == self.frame == item.frame
        ]

    def variable_left_by(self, item: Item) -> int:
        """The position of the variable that an Exit hands on."""
        ref = item.inputs[0]
        source = self.raising.items[ref.name]
        while source.op in COPIES:
            ref = source.inputs[0]
            source = self.raising.items[ref.name]
        if not self._is_variable_switch(source) or ref.output or source.inputs[0].name not in self.variables:
            raise broken(item, "must read the Switch of a loop variable, on the side where the loop ends")
        return self.variables[source.inputs[0].name]
