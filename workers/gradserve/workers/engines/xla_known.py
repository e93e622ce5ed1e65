"""What is known of a segment before it is traced, and which of its loops, branches and lists can be traced.

The segment is copied, node by node, for the shapes of its feeds: what follows from them becomes constants, lists get
their kinds (see xla_lists.py), and bodies are copied in the same way for what is known of their arguments.

The rule, in one place: a loop, branch or call is traced if each of its bodies is one trace (see split.is_one_trace),
if its variables keep their shapes from round to round and its branches agree on theirs, if the lengths of its lists
are bounded (see xla_plans.py), and if the variables that it assigns to have known shapes. Everything else runs on the
host, body by body, and so does a body whose shapes contradict each other: it says so if it is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradserve.errors import GradserveError
from gradserve.graph import static
from gradserve.graph.functions import Function, argument, new_body, spec_of
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor
from gradserve.graph.inline import CALLS, body_of
from gradserve.graph.shapes import is_static
from gradserve.workers.engines import xla_list_kernels
from gradserve.workers.engines.split import is_one_trace, is_variable
from gradserve.workers.engines.xla_kernels import KERNELS
from gradserve.workers.engines.xla_list_kernels import LISTS, Facts
from gradserve.workers.engines.xla_lists import DenseList, ListKind
from gradserve.workers.engines.xla_plans import (
    Body,
    Branch,
    Known,
    Loop,
    Plan,
    never_runs,
    plan_branch,
    plan_call,
    plan_loop,
)
from gradserve.workers.engines.xla_rounds import Counter, source_of
from gradserve.workers.segment import Segment, State, controls

_LOOPS = frozenset(("While", "StatelessWhile"))
_BRANCHES = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))
CONTROL = _LOOPS | _BRANCHES | CALLS
_READERS = frozenset(
    ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp", "Identity")
)
_FORGETTERS = frozenset(("DestroyResourceOp", "DestroyTemporaryVariable"))
_CHECKED = frozenset(("TensorListGetItem", "TensorListPopBack"))
_LARGEST_BOUND = 1024
_FIRST_GUESS = 32


def says_more(segment: Segment) -> bool:
    """Whether anything in a segment is better known before it is traced: lists, loops, branches, calls.

    And so is a node that runs though one of its outputs is fed: in the copy nobody reads that output.
    """
    fed = {tensor.node for tensor in segment.feeds}
    return any(
        node.type in CONTROL or node in fed or any(tensor.dtype.kind == "v" for tensor in node.outputs)
        for node in segment.nodes()
    )


def known(
    segment: Segment, shapes: Sequence[tuple[int, ...] | None], guesses: Mapping[str, int],
    missing: frozenset[int | str] = frozenset(),
) -> Body:  # fmt: skip
    """A segment for feeds of these shapes.

    Args:
        segment: what is to run.
        shapes: of the feeds; None for what is no array.
        guesses: rounds of loops, by name.
        missing: variables that no loop can carry, by name or by the position of a feed: those without a value, and
            those that get values of other shapes.

    Raises InvalidGraph, InvalidShape where the shapes do not fit the graph.
    """
    copying = _Copying(_Analysis(guesses), segment, missing)
    for tensor, shape in zip(segment.feeds, shapes, strict=True):
        spec = spec_of(tensor)
        copying.feed(tensor, Known(spec if shape is None else spec._replace(shape=shape)))
    return copying.run()


class _Analysis:
    """Bodies, each copied once for what is known of its arguments."""

    def __init__(self, guesses: Mapping[str, int]) -> None:
        self._guesses = guesses
        self._made: dict[Any, Body | None] = {}
        self._open: set[str] = set()

    def rounds_of(self, name: str) -> int:
        return self._guesses.get(name, _FIRST_GUESS)

    def function(self, graph: Graph, called: FunctionName, knowns: Sequence[Known]) -> Function | None:
        try:
            return body_of(graph, called, [known.spec for known in knowns])
        except GradserveError:  # a body that contradicts itself, which is an error only if it is run
            return None

    def body(self, graph: Graph, called: FunctionName, knowns: Sequence[Known]) -> Body | None:
        key = called.name, repr(sorted(called.attrs.items())), tuple(map(_key, knowns))
        if key in self._made:
            return self._made[key]
        if called.name in self._open:  # it calls itself
            return None
        self._open.add(called.name)
        try:
            found = self._copied(graph, called, knowns)
        finally:
            self._open.remove(called.name)
        self._made[key] = found
        return found

    def _copied(self, graph: Graph, called: FunctionName, knowns: Sequence[Known]) -> Body | None:
        function = self.function(graph, called, knowns)
        if function is None:
            return None
        segment = Segment(function.graph, function.inputs, function.outputs, function.effects)
        copying = _Copying(self, segment)
        for tensor, known in zip(function.inputs, knowns, strict=True):
            copying.feed(tensor, known)
        try:
            body = copying.run()
        except GradserveError:  # as above
            return None
        return body if copying.is_whole and is_one_trace(body.segment, KERNELS, body.traced) else None


def _key(known: Known) -> Any:
    value = known.value
    if value is None:
        return known
    content = tuple(value.ravel().tolist()) if value.dtype.hasobject else value.tobytes()
    return known._replace(value=(value.dtype.str, value.shape, content))


class _Copying:
    """A segment on its way to a body.

    Attributes:
        is_whole: whether, for all that is known so far, it could be one trace.
    """

    def __init__(self, analysis: _Analysis, segment: Segment, missing: frozenset[int | str] | None = None) -> None:
        """`missing` is None for a body of a loop, a branch or a call."""
        self.is_whole = True
        self._analysis = analysis
        self._segment = segment
        self._is_nested = missing is None
        self._missing = missing or frozenset()
        self._fed = frozenset(segment.feeds)
        self._nodes = segment.nodes()
        self._graph = new_body(segment.graph)
        for node in self._nodes:
            self._graph.reserve_name(node.name)
        self._tensors: dict[Tensor, Tensor] = {}
        self._stands: dict[Node, tuple[Node, ...]] = {}
        self._inputs: list[Tensor] = []
        self._targets: dict[Node, None] = {}
        self._lists: dict[Tensor, ListKind] = {}
        self._lines: dict[Tensor, tuple[Counter, int]] = {}
        self._ranges: dict[Tensor, tuple[int, int]] = {}
        self._facts: dict[Node, Facts] = {}
        self._nothing: set[Tensor] = set()
        self._plans: dict[Node, Plan] = {}
        self._traced: set[Node] = set()
        self._skipped: set[Node] = set()
        self._assigned: set[int | str] = set()
        self._carried: set[int | str] = set()

    def feed(self, tensor: Tensor, known: Known) -> None:
        """The next input, with what is known of it."""
        with self._graph.as_default():
            if known.value is not None:
                stand = self._graph.constant(known.value, known.spec.dtype)
            else:
                stand = argument(known.spec, tensor.node.name)
        if known.kind is not None:
            self._lists[stand] = known.kind
        if known.line is not None:
            self._lines[stand] = known.line
        if known.is_nothing:
            self._nothing.add(stand)
        self._tensors[tensor] = stand
        self._inputs.append(stand)

    def run(self) -> Body:
        """Copies the nodes."""
        for node in self._nodes:
            self._add(node)
        outputs = tuple(self._tensors[tensor] for tensor in self._segment.fetches)
        self._targets |= dict.fromkeys(self._standing(self._segment.targets))
        for tensor in outputs:
            if tensor.dtype.kind == "v" and tensor not in self._lists:
                self.is_whole = False
        places = [k for k, tensor in enumerate(self._inputs) if tensor.node.type == "Placeholder"]
        feeds = tuple(self._inputs[k] for k in places)
        guesses = frozenset().union(*(plan.guesses for plan in self._plans.values()))
        return Body(
            Segment(self._graph, feeds, outputs, tuple(self._targets)), tuple(self._inputs), tuple(places),
            self._lists, self._facts, frozenset(self._nothing), self._plans, frozenset(self._traced),
            frozenset(self._assigned), frozenset(self._carried), guesses,
        )  # fmt: skip

    def _add(self, node: Node) -> None:
        inputs = tuple(self._tensors[tensor] for tensor in node.inputs)
        before = tuple(dict.fromkeys(self._standing(controls(node, self._fed))))
        copy = Node(self._graph, node.name, node.type, node.op, inputs, node.attrs, before, node.device)
        # Of branches that are never taken the shapes may well contradict each other.
        self._graph.append(copy, [tensor.shape for tensor in node.outputs] if node.type in CONTROL else None)
        for tensor in node.outputs[len(copy.outputs) :]:  # of an op that is not known
            copy.output(tensor.index)
        self._stands[node] = (copy,)
        known = self._known_outputs(copy, node)
        if copy in self._skipped:
            self._stands[node] = (*(t.node for t in inputs if t not in self._inputs), *before)
        for tensor, stand, value in zip(node.outputs, copy.outputs, known, strict=True):
            if tensor in self._fed:
                continue
            if isinstance(value, np.ndarray | np.generic):
                value = self._graph.constant(value, stand.dtype.base, f"{node.name}/known")
            self._tensors[tensor] = stand if value is None else value
        if self._nothing.intersection(inputs) and all(t in self._nothing or t.node.type == "Const" for t in inputs):
            self._nothing.update(tensor for tensor in copy.outputs if not is_static(tensor.shape))
        if self._is_nested:
            self._judge(copy)
        self._note_assignments(copy)

    def _standing(self, nodes: Iterable[Node]) -> list[Node]:
        """What to run for the effect of nodes."""
        return [stand for node in nodes for stand in self._stands[node]]

    def _known_outputs(self, node: Node, original: Node) -> list[Any]:
        """For each output its value, or the tensor that it is always equal to, where that is known; else None."""
        op = node.op
        if op is None or node.type == "Const":
            return [None] * len(node.outputs)
        if node.type in CONTROL:
            return self._plan(node)
        if self._is_nested and node.type == "FakeParam":
            return self._trace_nothing(node)
        if any(tensor.dtype.kind == "v" for tensor in (*node.inputs, *node.outputs)):
            told = self._trace_list(node, original)
            if node.type in _CHECKED and any(value is not None for value in told):
                self._targets[node] = None  # whether there is such an element is still to be asked
            return told
        if op.stateful:
            return [None] * len(node.outputs)
        values = [static.value(tensor) for tensor in node.outputs]
        return [None] * len(values) if any(value is None for value in values) else values

    def _trace_list(self, node: Node, original: Node) -> list[Any]:
        """Notes what a list op gives, if it is traced; all readers of `original` are there already."""
        handle = self._lists.get(node.inputs[0]) if node.inputs else None
        told: list[Any] = [None] * len(node.outputs)
        if handle is not None:
            told = [xla_list_kernels.known_value(node.type, k, handle, node.attrs) for k in range(len(node.outputs))]
        kernel = LISTS.get(node.type)
        if kernel is None:
            return told
        inputs: list[Any] = []
        for position, tensor in enumerate(node.inputs):
            known = None if tensor.dtype.kind == "s" else self._known(tensor)
            if known is None:
                return told
            if tensor in self._lists:
                inputs.append(xla_list_kernels.abstract(self._lists[tensor]))
            elif not is_static(tensor.shape) or (position in kernel.host and tensor.node.type != "Const"):
                return told
            elif position in kernel.host or known.value is not None:
                inputs.append(tensor.node.attrs["value"])
            else:
                inputs.append(jax.ShapeDtypeStruct(tensor.shape, tensor.dtype.base.numpy))
        facts = self._facts_of(node, original)
        found = xla_list_kernels.results(original, inputs, facts)
        if found is None:
            return told
        self._traced.add(node)
        self._facts[node] = facts
        for k, (tensor, value) in enumerate(zip(node.outputs, found, strict=True)):
            if isinstance(value, DenseList):
                self._lists[tensor] = value.kind
            else:
                tensor.shape = value.shape
                bounds = None if handle is None else xla_list_kernels.range_of(node.type, k, handle)
                if bounds is not None:
                    self._ranges[tensor] = bounds
        return told

    def _facts_of(self, node: Node, original: Node) -> Facts:
        """What is known of the input of a list op that is no list: an element or an index."""
        if len(node.inputs) < 2:
            return Facts()
        source = source_of(node.inputs[1])
        if source not in self._lines:
            return Facts(None, self._ranges.get(source))
        counter, rounds = self._lines[source]
        return Facts(counter if self._is_once_a_round(original) else None, counter.range(0, rounds - 1))

    def _is_once_a_round(self, node: Node) -> bool:
        """Whether what a node of a loop's body makes of a variable is the variable's next value."""
        pairs = zip(self._segment.feeds, self._segment.fetches, strict=False)
        return any(source_of(node.inputs[0]) is x and source_of(y) is node.outputs[0] for x, y in pairs)

    def _trace_nothing(self, node: Node) -> list[Any]:
        """Notes what stands for an output of another branch."""
        self._traced.add(node)
        (output,) = node.outputs
        self._nothing.add(output)
        if output.dtype.kind == "v":
            self._lists[output] = ListKind(output.dtype, None, 0, 0, 0)
        return [None]

    def _plan(self, node: Node) -> list[Any]:
        """Notes how a loop, a branch or a call is traced, if it is."""
        unknown: list[Any] = [None] * len(node.outputs)
        start = int(node.type in _BRANCHES)
        knowns = [self._known(tensor) for tensor in node.inputs[start:]]
        given = [known for known in knowns if known is not None]
        if len(given) < len(knowns) or (start and node.inputs[0].dtype.kind in "srv"):
            return unknown
        if node.type in _LOOPS:
            if never_runs(node, given, self._analysis):
                self._skipped.add(node)
                return list(node.inputs)
            plan = plan_loop(node, given, self._analysis)
        elif node.type in _BRANCHES:
            plan = plan_branch(node, static.value(node.inputs[0]), given, self._analysis)
        else:
            plan = plan_call(node, given, self._analysis)
        carried = None if plan is None else self._carried_by(node, plan)
        if plan is None or carried is None or not carried.isdisjoint(self._missing):
            return unknown
        self._assigned |= carried
        self._carried |= carried
        self._plans[node] = plan
        self._traced.add(node)
        return self._after_loop(node, plan) if isinstance(plan, Loop) else self._after_branch(node, plan)

    def _after_loop(self, node: Node, loop: Loop) -> list[Any]:
        if node.op is not None and node.op.stateful:  # it runs, also where nothing reads what it alone can tell
            self._targets[node] = None
        known: list[Any] = list(node.inputs)
        for k in loop.changing:
            known[k] = None
            kind = loop.after[k]
            if kind is not None:
                self._lists[node.outputs[k]] = kind
            else:
                node.outputs[k].shape = node.inputs[k].shape
            if loop.rounds is not None and k in loop.counters:
                known[k] = np.array(loop.counters[k].after(loop.rounds), node.outputs[k].dtype.numpy)
        return known

    def _after_branch(self, node: Node, branch: Branch) -> list[Any]:
        if node.op is not None and node.op.stateful:
            self._targets[node] = None
        for tensor, output in zip(node.outputs, branch.outputs, strict=True):
            tensor.shape = output.shape
            if output.kind is not None:
                self._lists[tensor] = output.kind
            if output.is_nothing:
                self._nothing.add(tensor)
        return [output.value for output in branch.outputs]

    def _known(self, tensor: Tensor) -> Known | None:
        """What is known of an argument; None where a body could not be traced for it."""
        spec, node = spec_of(tensor), tensor.node
        value = node.attrs["value"] if node.type == "Const" else None
        if value is not None and value.size > _LARGEST_BOUND:
            value = None
        kind = tensor.dtype.kind
        if tensor.dtype.is_reference or (kind == "s" and value is None):
            return None
        if kind == "v":
            held = self._lists.get(tensor)
            if held is not None and held.waiting:
                held = held.settled
            return None if held is None else Known(spec, None, held, None, tensor in self._nothing)
        if kind != "r" and not is_static(tensor.shape) and tensor not in self._nothing:
            return None
        return Known(spec, value, None, None, tensor in self._nothing)

    def _judge(self, node: Node) -> None:
        """Notes what keeps a body from being traced, besides what keeps any node from it."""
        if node.type == "Assert":
            texts = [tensor for tensor in node.inputs if tensor.dtype.kind == "s"]
            if all(tensor.node.type == "Const" for tensor in texts):
                self._traced.add(node)
        if node.type in _FORGETTERS or any(tensor.dtype.is_reference for tensor in node.inputs):
            self.is_whole = False

    def _note_assignments(self, node: Node) -> None:
        """Notes the variables that a node that is no loop or branch may assign to."""
        if node in self._plans or node.op is None or node.op.kernel is None or not node.op.kernel.wants_state:
            return
        if node.type not in _READERS:
            for tensor in node.inputs:
                if is_variable(tensor):
                    self._assigned |= self._variable(tensor)

    def _carried_by(self, node: Node, plan: Plan) -> set[int | str] | None:
        """The variables that a loop or branch may assign to; None where they are not known."""
        start = int(node.type in _BRANCHES)
        places = frozenset().union(*(body.assigned for body in plan.bodies))
        found = [{k} if isinstance(k, str) else self._variable(node.inputs[start + k]) for k in places]
        return set[int | str]().union(*found) if all(found) else None

    def _variable(self, handle: Tensor) -> set[int | str]:
        """The variable behind a handle: a name or the position of an input; nothing where that is not known."""
        if not is_static(spec_of(handle).held[1]):
            self.is_whole = False
        while handle.node.type == "Identity":
            handle = handle.node.inputs[0]
        if handle.node.type == "VarHandleOp":
            return {State().handle(handle.node).variable}
        if handle in self._inputs:
            return {self._inputs.index(handle)}
        self.is_whole = False
        return set()
