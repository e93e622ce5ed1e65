"""Loops, branches and calls that can be traced: what is known of their bodies, variables and lists.

A loop's lists are traced in buffers that hold all rounds: what a round adds to a list, times the number of rounds, is
its capacity. Where the number of rounds follows from a counter (see xla_rounds.py) it is exact, and so are lengths.
Elsewhere it is a guess that grows: a run that has more rounds says so, and is done again with larger buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from gradserve.graph import static
from gradserve.graph.functions import Function, Spec
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor
from gradserve.graph.shapes import Shape, is_static
from gradserve.ops.branches import branches_of, place_of, truth
from gradserve.workers.engines import xla_rounds
from gradserve.workers.engines.xla_list_kernels import Facts
from gradserve.workers.engines.xla_lists import Constant, ListKind
from gradserve.workers.engines.xla_rounds import Counter, Rounds
from gradserve.workers.segment import Segment

_MOST_TRIES = 6
"""To find the kinds of a loop's lists: one a level of lists in lists, and one to see that they stay."""


_LARGEST_ROOM = 2**30
"""Bytes for a list that not every round adds to: most of them might never be used."""


class Known(NamedTuple):
    """What is known of an argument of a body.

    Attributes:
        spec: its dtype and static shape.
        value: it itself, where it is a small constant.
        kind: of a list.
        line: what a counter is in each round of a loop, and the number of rounds.
        is_nothing: whether it is there only because a branch that is not taken has it; then its shape may be unknown.
    """

    spec: Spec
    value: np.ndarray | None = None
    kind: ListKind | None = None
    line: tuple[Counter, int] | None = None
    is_nothing: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Body:
    """A segment for what is known of its inputs.

    Attributes:
        segment: its feeds are those inputs that are no constants.
        inputs: all of them.
        places: the positions of the feeds among the inputs.
        lists: the kinds of its lists.
        facts: what else is known of the inputs of list ops.
        nothing: what is there only because a branch that is not taken has it.
        plans: its loops, branches and calls that are traced.
        traced: the nodes that are traced otherwise than by their own kernels: those of the plans, and ops of lists.
        assigned: the variables that it may assign to: positions of inputs, and names of those declared here.
        carried: those of them that its loops and branches may assign to.
        guesses: the loops in it whose rounds are guessed.
    """

    segment: Segment
    inputs: tuple[Tensor, ...]
    places: tuple[int, ...]
    lists: Mapping[Tensor, ListKind]
    facts: Mapping[Node, Facts]
    nothing: frozenset[Tensor]
    plans: Mapping[Node, Plan]
    traced: frozenset[Node]
    assigned: frozenset[int | str]
    carried: frozenset[int | str]
    guesses: frozenset[str]

    @staticmethod
    def plain(segment: Segment) -> Body:
        """A segment of which nothing is known."""
        none: frozenset[Any] = frozenset()
        places = tuple(range(len(segment.feeds)))
        return Body(segment, segment.feeds, places, {}, {}, none, {}, none, none, none, none)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self.segment.fetches

    @property
    def has_effects(self) -> bool:
        """Whether it does more than to compute its outputs."""
        return bool(self.segment.targets or self.assigned)


@dataclass(frozen=True, eq=False, slots=True)
class Loop:
    """A While.

    Attributes:
        node: the node.
        condition, body: its bodies.
        changing: the positions of the variables that change; the others are what they were before.
        kinds: of each variable that is a list, in a round.
        carried: the same as it goes from round to round.
        after: the same after the loop.
        growth: of each list by how much a round changes its length, where that is known and so is the number of rounds.
        rounds: their number, where it is known.
        guess: what the number is bounded by in the lists' capacities where it is a guess, with the guess's name.
        counters: variables that count, where the number of rounds is known.
    """

    node: Node
    condition: Body
    body: Body
    changing: tuple[int, ...]
    kinds: tuple[ListKind | None, ...]
    carried: tuple[ListKind | None, ...]
    after: tuple[ListKind | None, ...]
    growth: tuple[int | None, ...]
    rounds: int | None
    guess: tuple[str, int] | None
    counters: Mapping[int, Counter]

    @property
    def bodies(self) -> tuple[Body, ...]:
        return self.condition, self.body

    @property
    def guesses(self) -> frozenset[str]:
        own = frozenset() if self.guess is None else frozenset((self.guess[0],))
        return own | self.condition.guesses | self.body.guesses


class Output(NamedTuple):
    """What is known of an output of a branch: its shape, itself where it is a constant, the kind of a list.

    `is_nothing`: it is there only because a branch that is not taken has it.
    """

    shape: Shape
    value: np.ndarray | None
    kind: ListKind | None
    is_nothing: bool


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """An If or a Case; a call, too, which has one body and no index.

    Attributes:
        node: the node.
        bodies: in the order of the index; one alone where it is known which is taken.
        outputs: what is known of its outputs.
    """

    node: Node
    bodies: tuple[Body, ...]
    outputs: tuple[Output, ...]

    @property
    def guesses(self) -> frozenset[str]:
        return frozenset().union(*(body.guesses for body in self.bodies))


Plan = Loop | Branch


class Analysis(Protocol):
    """What planning needs to know."""

    def function(self, graph: Graph, called: FunctionName, knowns: Sequence[Known]) -> Function | None:
        """A function of the library for arguments of these dtypes and shapes; None where it contradicts itself."""
        ...

    def body(self, graph: Graph, called: FunctionName, knowns: Sequence[Known]) -> Body | None:
        """The same with all that is known of them; None where it is not one trace."""
        ...

    def rounds_of(self, name: str) -> int:
        """The guess for a loop."""
        ...


def plan_branch(node: Node, index: np.ndarray | None, knowns: Sequence[Known], analysis: Analysis) -> Branch | None:
    """How an If or a Case is traced; None where it is not. `index` is its condition, where that is known."""
    names = branches_of(node)
    if index is not None:
        names = [names[place_of(node, index)]]
    return _branch(node, names, knowns, analysis)


def plan_call(node: Node, knowns: Sequence[Known], analysis: Analysis) -> Branch | None:
    """How a call is traced; None where it is not."""
    return _branch(node, [node.attrs["f"]], knowns, analysis)


def _branch(node: Node, names: Sequence[FunctionName], knowns: Sequence[Known], analysis: Analysis) -> Branch | None:
    bodies: list[Body] = []
    for name in names:
        body = analysis.body(node.graph, name, knowns)
        if body is None:
            return None
        bodies.append(body)
    outputs: list[Output] = []
    for position in range(len(node.outputs)):
        output = _output(position, bodies)
        if output is None:
            return None
        outputs.append(output)
    return Branch(node, tuple(bodies), tuple(outputs))


def _output(position: int, bodies: Sequence[Body]) -> Output | None:
    """What is known of an output of a branch; None where bodies do not agree on it."""
    meant = [(body, body.outputs[position]) for body in bodies if body.outputs[position] not in body.nothing]
    given = meant or [(body, body.outputs[position]) for body in bodies]
    _, first = given[0]
    if first.dtype.kind in "rs" and len(bodies) > 1:
        return None
    kinds = [body.lists.get(tensor) for body, tensor in given]
    kind = kinds[0]
    for other in kinds[1:]:
        kind = None if kind is None or other is None else kind.join(other)
    if first.dtype.kind == "v":
        if kind is None or not (kind.has_rows or len(bodies) == 1):
            return None
    elif meant and (not is_static(first.shape) or any(tensor.shape != first.shape for _, tensor in given)):
        return None
    constants = {Constant.of(tensor.node.attrs.get("value")) for _, tensor in given}
    constant = constants.pop() if len(constants) == 1 else None
    kind = None if kind is None else kind.settled
    return Output(first.shape, None if constant is None else constant.value, kind, not meant)


def never_runs(node: Node, knowns: Sequence[Known], analysis: Analysis) -> bool:
    """Whether the condition of a While is false before its first round."""
    condition = analysis.body(node.graph, node.attrs["cond"], knowns)
    if condition is None or condition.has_effects:
        return False
    first = static.value(condition.outputs[0])
    return first is not None and not truth(first)


def plan_loop(node: Node, knowns: Sequence[Known], analysis: Analysis) -> Loop | None:
    """How a While is traced; None where it is not."""
    written = analysis.function(node.graph, node.attrs["body"], knowns)
    if written is None:
        return None
    changing = [
        k for k, (x, y) in enumerate(zip(written.inputs, written.outputs, strict=True))
        if xla_rounds.source_of(y) is not x
    ]  # fmt: skip
    if any(knowns[k].spec.dtype.kind in "rs" for k in changing):
        return None
    return _Loop(node, knowns, changing, analysis).plan(written)


class _Change(NamedTuple):
    """By how much a round changes the length of a list: at least, at most, and whether always by the same."""

    least: int
    most: int
    is_steady: bool

    @staticmethod
    def of(before: ListKind, after: ListKind, known: _Change | None) -> _Change:
        """The change from one kind to another, and what was known of it."""
        least, most = after.least - before.least, after.most - before.most
        if known is None:
            return _Change(least, most, least == most)
        steady = least == most == known.most
        return _Change(min(least, known.least), max(most, known.most), known.is_steady and steady)


class _Loop:
    """A While on its way to a plan."""

    def __init__(self, node: Node, knowns: Sequence[Known], changing: Sequence[int], analysis: Analysis) -> None:
        self.node = node
        self.knowns = knowns
        self.changing = changing
        self.analysis = analysis
        self.lists = {k: kind for k in changing if (kind := knowns[k].kind) is not None}
        self.changes: dict[int, _Change] = {}
        self.name = f"{node.attrs['body'].name}/{node.name}"
        self.counters: Mapping[int, Counter] = {}
        self.rounds = Rounds(None, None)

    def plan(self, written: Function) -> Loop | None:
        """Runs a round on what is known of the variables until that holds after the round as before it."""
        graph, attrs = self.node.graph, self.node.attrs
        current = list(self.knowns)
        for k in self.changing:
            kind = current[k].kind
            current[k] = current[k]._replace(value=None, kind=None if kind is None else kind.settled)
        condition = self.analysis.body(graph, attrs["cond"], current)
        if condition is None:
            return None
        self._count(condition, written)
        for k, counter in self.counters.items():
            if self.rounds.exact:
                current[k] = current[k]._replace(line=(counter, self.rounds.exact))
        for _ in range(_MOST_TRIES):
            body = self.analysis.body(graph, attrs["body"], current)
            if body is None or not self._keeps_shapes(body):
                return None
            wider = self._widened(current, body)
            if wider is None:
                return None
            if wider == current:
                condition = self.analysis.body(graph, attrs["cond"], current)
                return None if condition is None else self._made(condition, body, current)
            current = wider
        return None

    def _keeps_shapes(self, body: Body) -> bool:
        """Whether the variables that are no lists are after a round what they were before."""
        for k in self.changing:
            known, after = self.knowns[k], body.outputs[k]
            if known.kind is None and (after.shape != known.spec.shape or not is_static(after.shape)):
                return False
        return True

    def _count(self, condition: Body, written: Function) -> None:
        """Finds the number of rounds."""
        counters = xla_rounds.counters(written.inputs, written.outputs, [known.value for known in self.knowns])
        moving = {k: counter for k, counter in counters.items() if k in self.changing}
        found = xla_rounds.count(condition.outputs[0], condition.inputs, moving)
        self.rounds = found._replace(exact=None) if condition.has_effects else found
        if self.rounds.exact is not None:
            dtypes = [known.spec.dtype for known in self.knowns]
            self.counters = {k: one for k, one in moving.items() if one.fits(dtypes[k], self.rounds.exact)}

    @property
    def _bound(self) -> int:
        """What the capacities of lists are made for: a bound of the number of rounds, or a guess."""
        if self.rounds.exact is not None:
            return self.rounds.exact
        guess = self.analysis.rounds_of(self.name)
        return guess if self.rounds.most is None else min(guess, self.rounds.most)

    def _widened(self, current: Sequence[Known], body: Body) -> list[Known] | None:
        """What is known of the variables at the start of any round, after one more look at a round."""
        wider = list(current)
        # A condition that is asked sees what the last round leaves, too.
        last = max(self._bound - 1, 0) if self.rounds.exact is not None else self._bound
        for k, start in self.lists.items():
            before, after = current[k].kind, body.lists.get(body.outputs[k])
            joined = None if after is None else start.join(after)
            if before is None or after is None or joined is None:
                return None
            change = self.changes[k] = _Change.of(before, after, self.changes.get(k))
            low = 0 if change.least < 0 else start.least
            if self._is_steady(k):
                low = start.least + min(change.least, 0) * last
            if change.most > 0 and (start.most or not self._is_steady(k)):
                joined = replace(joined, line=None)  # it has not an element for each round before
            kind = replace(
                joined.settled,
                least=max(low, 0),
                most=start.most + max(change.most, 0) * last,
                capacity=max(joined.capacity, start.most + max(change.most, 0) * (last + 1)),
            )
            wider[k] = wider[k]._replace(kind=kind)
        return wider

    def _is_steady(self, k: int) -> bool:
        """Whether the length of a list follows from the number of the round."""
        return self.rounds.exact is not None and self.changes[k].is_steady

    def _made(self, condition: Body, body: Body, current: Sequence[Known]) -> Loop | None:
        growth: list[int | None] = [None] * len(current)
        carried = [known.kind for known in current]
        after = [known.kind for known in self.knowns]
        for k, start in self.lists.items():
            kind, change = current[k].kind, self.changes[k]
            if kind is None or not kind.has_rows:
                return None
            if change.least < change.most and kind.nbytes > _LARGEST_ROOM:
                return None
            low, high = kind.least, start.most + max(change.most, 0) * self._bound
            if self._is_steady(k):
                growth[k] = change.most
                low, high = start.least + change.most * self._bound, start.most + change.most * self._bound
            carried[k] = replace(kind, waiting=body.lists[body.outputs[k]].waiting)
            after[k] = kind.of_length(low, high)
        grows = any(change.most > 0 for change in self.changes.values())
        is_guess = self.rounds.exact is None and (self.rounds.most is None or self.rounds.most > self._bound)
        return Loop(
            self.node, condition, body, tuple(self.changing), tuple(known.kind for known in current), tuple(carried),
            tuple(after), tuple(growth), self.rounds.exact, (self.name, self._bound) if grows and is_guess else None,
            self.counters,
        )  # fmt: skip
