"""Switch and Merge become If, or Case: the Merges of one conditional are its outputs.

The branch of a node is the set of predicates, with the side taken of each, that the Switches before it lay down. A
Merge joins what one predicate has parted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gradserve.graph import dtypes
from gradserve.graph.raising.outlining import Body, Item, Ref, Source, cut
from gradserve.graph.raising.rewriting import (
    ENTERS,
    MERGES,
    RAISED,
    SWITCHES,
    Captures,
    Rewriting,
    broken,
    integer,
)
from gradserve.v1 import graph_pb2

Branch = Mapping[Ref, int]
"""Which side of which predicates must have been taken for a node to run; -1 where there is no such side."""
_NEVER = -1


@dataclass(slots=True)
class _Conditional:
    """Merges that become the outputs of one If or Case.

    Attributes:
        predicate, sides: what decides, and among how many sides.
        branch: in which the conditional itself lies.
        scope: of the names.
        merges: for each Merge, the position among its inputs of what each side gives.
        before: the conditionals that must be decided first, a bit each.
    """

    predicate: Ref
    sides: int
    branch: Branch
    scope: str
    merges: dict[str, dict[int, int]] = field(default_factory=dict[str, dict[int, int]])
    before: int = 0


def raise_conditionals(raising: Rewriting, frame: str) -> None:
    """Makes the Merges of a frame that belong to conditionals hand on outputs of an If or Case."""
    _Branches(raising, frame).raise_all()


class _Branches:
    """The conditionals of one frame."""

    def __init__(self, raising: Rewriting, frame: str) -> None:
        self.raising = raising
        self.frame = frame
        self.branches: dict[str, Branch] = {}
        self.predicates: dict[Ref, tuple[Ref, int]] = {}
        self.conditionals: list[_Conditional] = []
        self.before: dict[str, int] = {}
        self.owners: dict[tuple[str, Ref], int] = {}

    def raise_all(self) -> None:
        for item in self.raising.members(self.frame):
            self._find_branch(item)
        for conditional in sorted(self.conditionals, key=lambda conditional: conditional.before.bit_count()):
            self._raise(conditional)

    # Which branch a node lies in

    def _find_branch(self, item: Item) -> None:
        before = 0
        for name in item.reads():
            if name not in self.raising.items:
                raise broken(item, f"reads {name}, which lies in a loop: only an Exit leaves one")
            before |= self.before.get(name, 0)
        if item.op in MERGES and not self.raising.is_loop_merge(item):
            self._decide(item, before)
            return
        self.before[item.name] = before
        branch: dict[Ref, int] = {}
        for other in (*map(self.branch_of, item.inputs), *(self.branches.get(name, {}) for name in item.controls)):
            _join(branch, other)
        self.branches[item.name] = branch
        predicate = self.predicate_of(item)
        if predicate is not None:
            sides = item.attr("num_outs").i if item.op == "_SwitchN" else 2
            self.predicates.setdefault(predicate, (item.inputs[1], sides))

    def predicate_of(self, item: Item) -> Ref | None:
        """What decides at a Switch, read through copies; None for other nodes and for the Switches of a loop."""
        if item.op not in SWITCHES or self.raising.items[item.inputs[1].name].op == "LoopCond":
            return None
        ref = item.inputs[1]
        item = self.raising.items[ref.name]
        while item.op in ("Identity", "RefIdentity") or self.predicate_of_data(item):
            ref = item.inputs[0]
            item = self.raising.items[ref.name]
        return ref

    def predicate_of_data(self, item: Item) -> bool:
        """Whether a node hands its first input on: an Enter, or a Switch of a conditional."""
        if item.op in SWITCHES:
            return self.raising.items[item.inputs[1].name].op != "LoopCond"
        return item.op in ENTERS and item.attr("is_constant").b

    def branch_of(self, ref: Ref) -> Branch:
        """The branch of a tensor: that of its node, and at a Switch the side."""
        branch = self.branches.get(ref.name, {})
        item = self.raising.items[ref.name]
        predicate = self.predicate_of(item) if item.frame == self.frame else None
        if predicate is None:
            return branch
        joined = dict(branch)
        _join(joined, {predicate: ref.output})
        return joined

    # Which Merges belong together

    def _decide(self, item: Item, before: int) -> None:
        """Finds the predicate that a Merge joins again, and the conditional that it belongs to."""
        alternatives = [(position, self.branch_of(ref)) for position, ref in enumerate(item.inputs)]
        alive = [pair for pair in alternatives if _NEVER not in pair[1].values()] or alternatives
        common = {
            predicate: side
            for predicate, side in alive[0][1].items()
            if all(other.get(predicate) == side for _, other in alive)
        }
        self.branches[item.name] = common
        if len(alive) == 1:
            self.before[item.name] = before
            self._merge_of_one(item, alive[0][0])
            return
        for predicate in alive[0][1]:
            sides = {other.get(predicate): position for position, other in alive}
            if len(sides) == len(alive) and None not in sides:
                break
        else:
            raise broken(item, "joins tensors that no Switch on one predicate has parted")
        found = {side: position for side, position in sides.items() if side is not None}
        self.before[item.name] = self._join_conditional(item, predicate, common, found, before)

    def _join_conditional(self, item: Item, predicate: Ref, branch: Branch, sides: dict[int, int], before: int) -> int:
        """Puts a Merge into the conditional that it can share; returns what its readers come after.

        That is one of its scope, or one that would compute some of the same nodes: what tf.gradients adds to a
        conditional has a scope for each of its Merges.
        """
        scope = item.name.rpartition("/")[0]
        for number, conditional in enumerate(self.conditionals):
            if before >> number & 1:
                before |= conditional.before
        inside, owners = self._inside(item, predicate)
        possible = [
            number
            for number, conditional in enumerate(self.conditionals)
            if (conditional.predicate, conditional.branch) == (predicate, branch) and not before >> number & 1
        ]
        named = [number for number in possible if self.conditionals[number].scope == scope]
        shared = [number for number in possible if number in owners]
        if named or shared:
            number = (named or shared)[0]
            conditional = self.conditionals[number]
        else:
            number = len(self.conditionals)
            conditional = _Conditional(predicate, self.predicates[predicate][1], branch, scope)
            self.conditionals.append(conditional)
        self.owners.update(dict.fromkeys(((name, predicate) for name in inside), number))
        conditional.merges[item.name] = sides
        conditional.before |= before
        for other in self.conditionals:
            if other.before >> number & 1:
                other.before |= before
        return before | conditional.before | 1 << number

    def _inside(self, merge: Item, predicate: Ref) -> tuple[list[str], set[int]]:
        """The nodes of a Merge's branches, as far as no conditional has them yet, and those that have the others."""
        inside: list[str] = []
        owners: set[int] = set()
        stack = [ref.name for ref in merge.inputs]
        seen = set(stack)
        while stack:
            name = stack.pop()
            owner = self.owners.get((name, predicate))
            if owner is not None:
                owners.add(owner)
            elif predicate in self.branches.get(name, {}):
                inside.append(name)
                new = [ref.name for ref in self.raising.items[name].inputs if ref.name not in seen]
                seen.update(new)
                stack += new
        return inside, owners

    def _merge_of_one(self, item: Item, position: int) -> None:
        raising = self.raising
        kind = item.attr("T").type
        if Ref(item.name, 1) not in raising.read:
            raising.replace(item, "Identity", [item.inputs[position]], [kind])
            return
        index = integer(raising.unique_name(f"{item.name}/value_index"), position)
        raising.put(index, [], frame=self.frame)
        self.branches[index.name] = self.branches[item.name]
        raising.replace(item, "IdentityN", [item.inputs[position], Ref(index.name)], [kind, dtypes.int32.number])

    # Cutting

    def _raise(self, conditional: _Conditional) -> None:
        """Adds the If or Case, and makes its Merges hand on what it gives."""
        raising = self.raising
        merges = [raising.items[name] for name in conditional.merges]
        indexed = [item for item in merges if Ref(item.name, 1) in raising.read]
        gives = [item.attr("T").type for item in merges] + [dtypes.int32.number] * len(indexed)
        key = merges[0].name.encode()
        known = raising.raised.get(key)
        name = known.name if known is not None else self._add_node(conditional, merges, indexed, gives, key)
        for position, item in enumerate(merges):
            if item in indexed:
                index = Ref(name, len(merges) + indexed.index(item))
                kinds = [gives[position], dtypes.int32.number]
                raising.replace(item, "IdentityN", [Ref(name, position), index], kinds)
            else:
                raising.replace(item, "Identity", [Ref(name, position)], [gives[position]])

    def _add_node(
        self,
        conditional: _Conditional,
        merges: Sequence[Item],
        indexed: Sequence[Item],
        gives: Sequence[int],
        key: bytes,
    ) -> str:
        raising = self.raising
        captures = Captures(raising, 0)
        sides: list[tuple[Body, list[int]]] = []
        for side in range(conditional.sides):
            positions = {item.name: conditional.merges[item.name].get(side) for item in merges}
            # a side that no input of a Merge stands for gives nothing there: any other input keeps the dtype
            chosen = [position if position is not None else 0 for position in positions.values()]
            outputs = [item.inputs[position] for item, position in zip(merges, chosen, strict=True)]
            body = cut(
                raising.items, outputs, self._resolver(conditional.predicate, side, captures),
                self._waiter(conditional.predicate, side),
            )  # fmt: skip
            sides.append((body, [positions[item.name] or 0 for item in indexed]))
        takes = [raising.dtype(ref) for ref in captures.positions]
        is_case = self._is_case(conditional)
        type_name = "Case" if is_case else "If"
        stateful = any(body.is_stateful for body, _ in sides)
        prefix = f"{conditional.scope}/" if conditional.scope else ""
        node = graph_pb2.NodeDef(
            name=raising.unique_name(f"{prefix}{type_name}"), op=type_name if stateful else f"Stateless{type_name}"
        )
        functions = [
            raising.add_function(f"{prefix}branch_{side}", body, takes, gives, *constants)
            for side, (body, constants) in enumerate(sides)
        ]
        if is_case:
            for function in functions:
                node.attr["branches"].list.func.add(name=function)
        else:
            node.attr["Tcond"].type = dtypes.bool_.number  # pyright: ignore[reportAttributeAccessIssue]
            node.attr["else_branch"].func.name, node.attr["then_branch"].func.name = functions
        for attr, kinds in (("Tin", takes), ("Tout", gives)):
            node.attr[attr].list.SetInParent()
            node.attr[attr].list.type.extend(kinds)  # pyright: ignore[reportArgumentType]
        node.attr["output_shapes"].list.SetInParent()
        node.attr[RAISED].s = key
        raising.put(node, [self._predicate(conditional), *captures.positions], frame=self.frame)
        self.branches[node.name] = conditional.branch
        return node.name

    def _is_case(self, conditional: _Conditional) -> bool:
        return self.raising.dtype(self._predicate(conditional)) != dtypes.bool_.number

    def _predicate(self, conditional: _Conditional) -> Ref:
        """What decides, as it is known where the conditional stands."""
        ref = self.predicates[conditional.predicate][0]
        while ref != conditional.predicate and not self._is_known(ref, conditional.branch):
            ref = self.raising.items[ref.name].inputs[0]
        return ref

    def _is_known(self, ref: Ref, branch: Branch) -> bool:
        return all(branch.get(predicate) == side for predicate, side in self.branch_of(ref).items())

    def _resolver(self, predicate: Ref, side: int, captures: Captures) -> Callable[[Ref], Source]:
        def resolve(ref: Ref) -> Source:
            while self.branch_of(ref).get(predicate) == side:
                item = self.raising.items[ref.name]
                if self.predicate_of(item) != predicate:
                    return ref
                ref = item.inputs[0]
            return captures.source(ref)

        return resolve

    def _waiter(self, predicate: Ref, side: int) -> Callable[[Item], list[str]]:
        def waits_for(item: Item) -> list[str]:
            return [
                name
                for name in item.controls
                if name in self.raising.effects and self.branches.get(name, {}).get(predicate) == side
            ]

        return waits_for


def _join(branch: dict[Ref, int], other: Branch) -> None:
    for predicate, side in other.items():
        branch[predicate] = side if branch.get(predicate, side) == side else _NEVER
