"""The stacks of a TF1 loop's exported backward pass made TensorLists, which flow from round to round.

tf.gradients saved what a loop's backward pass reads in one stack a value: made outside, entered as a constant, pushed
by the forward loop and popped by the backward one. Here the stack is one more variable of every loop that its handle
entered, and one more value of every branch that the handle was switched into. So the two loops run as any others do,
and differentiate once more, which TensorFlow refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gradserve.graph import dtypes
from gradserve.graph.raising.outlining import Item, Ref
from gradserve.graph.raising.rewriting import ENTERS, MERGES, SWITCHES, Rewriting, broken, integer
from gradserve.v1 import graph_pb2

_MAKES = frozenset(("Stack", "StackV2"))
_PUSHES = frozenset(("StackPush", "StackPushV2"))
_POPS = frozenset(("StackPop", "StackPopV2"))
_CLOSES = frozenset(("StackClose", "StackCloseV2"))
_COPIES = frozenset(("Identity", "RefIdentity"))


class _Step(NamedTuple):
    """Where a list goes: into a loop by an Enter, or to one side of a Switch.

    `predicate` is what decides at the Switch, read through copies.
    """

    item: Item
    side: int = 0
    predicate: Ref | None = None


Branch = Mapping[Ref, _Step]
"""The predicates that decide whether a node runs, and for each a Switch on it with the side that must be taken."""


Change = Callable[[Ref], Ref]
"""Adds what reads a list and returns the list after it."""


def is_stack(type_name: str) -> bool:
    """Whether an op makes a stack."""
    return type_name in _MAKES


def lists_for_stacks(raising: Rewriting) -> bool:
    """Makes lists of the stacks; says whether there were any. Frames must be found before, and again afterwards.

    Raises InvalidGraph for a stack with two pushes or pops in the graph, or whose handle goes elsewhere: tf.gradients
    writes no such thing, and which of them comes first is not known.
    """
    makers = [item for item in raising.items.values() if is_stack(item.op)]
    if not makers:
        return False
    surroundings = _Surroundings(raising)
    gone: set[str] = set()
    for maker in makers:
        gone |= _Stack(raising, maker, surroundings).rewrite()
    for item in raising.items.values():
        if not gone.isdisjoint(item.controls):
            message = graph_pb2.NodeDef()
            message.CopyFrom(item.message)
            item.message = message  # the imported one stays as it came
            item.controls = [name for name in item.controls if name not in gone]
            _rewrite_inputs(item)
    return True


class _Surroundings:
    """What must be known of a graph before a list can take a way through it: readers, conditions and branches."""

    def __init__(self, raising: Rewriting) -> None:
        self.items = raising.items
        self.readers: dict[str, list[Item]] = {}
        self.conditions: dict[str, Item] = {}
        self.branches: dict[str, Branch] = {}
        self.frames: dict[str, Branch] = {}
        for item in raising.items.values():
            for name in dict.fromkeys(ref.name for ref in item.inputs):
                self.readers.setdefault(name, []).append(item)
            if item.op == "LoopCond":
                self.conditions[item.frame] = item
            starts = item.op in ENTERS or raising.is_loop_merge(item)
            self.branches[item.name] = {} if starts else self._branch_of(item)
            if item.op in ENTERS:
                self.frames[item.frame] = {**self.frames.get(item.frame, {}), **self.before(item.inputs[0])}

    def steps_to(self, branch: Branch, passed: Sequence[_Step]) -> tuple[_Step, ...]:
        """The steps so far, and the Switches of a branch on other predicates than theirs, the outermost first."""
        known = {step.predicate for step in passed}
        new = [step for predicate, step in branch.items() if predicate not in known]
        return (*passed, *sorted(new, key=lambda step: len(self.branches[step.item.inputs[1].name])))

    def before(self, ref: Ref) -> Branch:
        """The branch of a tensor: that of its node, and at a Switch the side."""
        item = self.items[ref.name]
        branch = self.branches[ref.name]
        if not self._parts(item):
            return branch
        predicate = item.inputs[1]
        while self.items[predicate.name].op in _COPIES or self.items[predicate.name].op in ENTERS:
            predicate = self.items[predicate.name].inputs[0]
        return {**branch, predicate: _Step(item, ref.output, predicate)}

    def _branch_of(self, item: Item) -> Branch:
        branches = [self.before(ref) for ref in item.inputs]
        if item.op not in MERGES:
            return {predicate: step for branch in branches for predicate, step in branch.items()}
        return {
            predicate: step
            for predicate, step in branches[0].items()
            if all(predicate in branch and branch[predicate].side == step.side for branch in branches[1:])
        }

    def _parts(self, item: Item) -> bool:
        return item.op in SWITCHES and self.items[item.inputs[1].name].op != "LoopCond"


class _Stack:
    """One stack on its way to a list."""

    def __init__(self, raising: Rewriting, maker: Item, surroundings: _Surroundings) -> None:
        self.raising = raising
        self.maker = maker
        self.around = surroundings
        self.kind = maker.attr("elem_type").type
        self.gone = {maker.name}
        self.uses: dict[str, tuple[Item, tuple[_Step, ...]]] = {}
        self._follow(Ref(maker.name), ())

    def rewrite(self) -> set[str]:
        """Puts a list in its place; returns the names of the nodes that go with the handle."""
        pushes = [use for use in self.uses.values() if use[0].op in _PUSHES]
        pops = [use for use in self.uses.values() if use[0].op in _POPS]
        if len(pushes) > 1 or len(pops) > 1:
            raise broken(self.maker, "is pushed or popped in two places, of which neither is known to come first")
        made = self._empty()
        for item, steps in pushes:
            value = item.inputs[1]
            made = self._thread(made, steps, lambda held, value=value: self._push(held, value))
            self.raising.replace(item, "Identity", [value], [self.kind])
        for item, steps in pops:
            self._thread(made, steps, lambda held, item=item: self._pop(held, item))
        for name in self.gone:
            del self.raising.items[name]
            self.raising.replaced.add(name)
        return self.gone

    def _follow(self, handle: Ref, steps: tuple[_Step, ...]) -> None:
        """Collects the pushes and pops behind a handle, and the steps that a list takes to each.

        These are the Enters, and the Switches of the branches that the loops and the last node lie in. They may be
        others than the handle passed: a value may be there in one branch only, and so may be a predicate or a loop.
        """
        for item in self.around.readers.get(handle.name, ()):
            if handle not in item.inputs:
                continue
            if item.op in _PUSHES or item.op in _POPS:
                self.uses[item.name] = item, self.around.steps_to(self.around.branches[item.name], steps)
            elif item.op in _CLOSES:
                self.raising.put(graph_pb2.NodeDef(name=item.name, op="NoOp"), [], item.controls, item.frame)
            elif item.op in ENTERS:
                self.gone.add(item.name)
                outside = self.around.steps_to(self.around.frames[item.frame], steps)
                self._follow(Ref(item.name), (*outside, _Step(item)))
            elif item.op in _COPIES or item.op in SWITCHES:
                self.gone.add(item.name)
                for side in (0, 1) if item.op in SWITCHES else (0,):
                    self._follow(Ref(item.name, side), steps)
            else:
                raise broken(item, "reads the handle of a stack, which only pushes and pops may do")

    # What is added

    def _empty(self) -> Ref:
        anything = self._put("EmptyTensorList/any", integer("", -1), [])
        node = graph_pb2.NodeDef(op="EmptyTensorList")
        node.attr["element_dtype"].type = self.kind
        node.attr["shape_type"].type = dtypes.int32.number  # pyright: ignore[reportAttributeAccessIssue]
        return self._put("list", node, [anything, anything])

    def _push(self, held: Ref, value: Ref) -> Ref:
        node = graph_pb2.NodeDef(op="TensorListPushBack")
        node.attr["element_dtype"].type = self.kind
        return self._put("push", node, [held, value])

    def _pop(self, held: Ref, item: Item) -> Ref:
        anything = self._put("TensorListPopBack/any", integer("", -1), [])
        node = graph_pb2.NodeDef(op="TensorListPopBack")
        node.attr["element_dtype"].type = self.kind
        popped = self._put("pop", node, [held, anything])
        self.raising.replace(item, "Identity", [Ref(popped.name, 1)], [self.kind])
        return popped

    def _thread(self, held: Ref, steps: Sequence[_Step], change: Change) -> Ref:
        """Takes a list along these steps, to where `change` makes another one of it, and back again."""
        if not steps:
            return change(held)
        item, side, _ = steps[0]
        if item.op in ENTERS:
            return self._through_loop(held, item, lambda inner: self._thread(inner, steps[1:], change))
        predicate = item.inputs[1]
        switch = self._copy("Switch", [held, predicate])
        sides = [Ref(switch.name, 0), Ref(switch.name, 1)]
        sides[side] = self._thread(sides[side], steps[1:], change)
        # in the scope of the predicate: the conditional there then gives the list beside its other outputs
        scope, slash, _ = predicate.name.rpartition("/")
        return self._copy("Merge", sides, self.raising.unique_name(f"{scope}{slash}list"))

    def _through_loop(self, held: Ref, entering: Item, inside: Change) -> Ref:
        """Makes a list a variable of a loop."""
        condition = self.around.conditions.get(entering.frame)
        if condition is None:
            raise broken(entering, "takes a stack into a frame that has no LoopCond")
        enter = self._copy("Enter", [held])
        attr = self.raising.items[enter.name].message.attr
        for key in ("frame_name", "parallel_iterations"):
            attr[key].CopyFrom(entering.attr(key))
        merge = self._copy("Merge", [enter, enter])
        switch = self._copy("Switch", [merge, Ref(condition.name)])
        following = self._copy("NextIteration", [inside(Ref(switch.name, 1))])
        closed = self.raising.items[merge.name]
        closed.inputs[1] = following
        _rewrite_inputs(closed)
        return self._copy("Exit", [switch])

    def _copy(self, type_name: str, inputs: Sequence[Ref], name: str | None = None) -> Ref:
        node = graph_pb2.NodeDef(op=type_name)
        node.attr["T"].type = dtypes.variant.number  # pyright: ignore[reportAttributeAccessIssue]
        if type_name == "Merge":
            node.attr["N"].i = len(inputs)
        return self._put(type_name, node, inputs, name)

    def _put(self, hint: str, node: graph_pb2.NodeDef, inputs: Sequence[Ref], name: str | None = None) -> Ref:
        node.name = name or self.raising.unique_name(f"{self.maker.name}/{hint}")
        self.raising.put(node, inputs)
        return Ref(node.name)


def _rewrite_inputs(item: Item) -> None:
    """Makes the message of an item say what the item says."""
    del item.message.input[:]
    item.message.input.extend(str(ref) for ref in item.inputs)
    item.message.input.extend(f"^{name}" for name in item.controls)
