"""Loops and branches inside of a trace, as those of XLA: nothing is unrolled, and each body is traced once.

A loop carries the variables that change, those of the session that it assigns to, and what its report tells. It stops
at the first check that fails. A loop whose number of rounds is known counts rounds and asks no condition; the lengths
of its lists, and what it counts itself, follow from the count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradserve.errors import GradserveError
from gradserve.graph.graph import Tensor
from gradserve.ops import loops
from gradserve.workers.engines.xla_lists import DenseList, ListKind
from gradserve.workers.engines.xla_plans import Branch, Loop, Plan
from gradserve.workers.segment import Handle, State

if TYPE_CHECKING:
    from gradserve.workers.engines.xla_trace import Bound, Report

Literals = Mapping[Tensor, Any]


class Reshaped(Exception):
    """A loop or branch gives a variable a value of another shape or dtype, so that it can't carry it."""

    def __init__(self, variable: str) -> None:
        super().__init__(variable)
        self.variable = variable


def run(
    plan: Plan, bodies: Sequence[Bound], values: Sequence[Any], state: State, report: Report, literals: Literals
) -> list[Any]:
    """What a loop, a branch or a call gives for the values of its inputs."""
    if isinstance(plan, Loop):
        return _Loop(plan, bodies, values, state, report, literals).run()
    arguments = values[len(values) - len(bodies[0].body.inputs) :]
    if len(bodies) == 1:
        return bodies[0].call(arguments, state, report, literals)
    return _branch(plan, bodies, values[0], arguments, state, report, literals)


# Branches


def _branch(
    plan: Branch, bodies: Sequence[Bound], index: Any, arguments: Sequence[Any], state: State, report: Report,
    literals: Literals,
) -> list[Any]:  # fmt: skip
    before = _read(state, _assigned(bodies, arguments))
    rounds = sorted(plan.guesses)

    def taken(bound: Bound) -> Any:
        inner, held = report.inside(report.code), State(values={**state.values, **state.updates})
        found = _attempt(bound, arguments, held, inner, literals, plan)
        outputs = [
            _zeros(plan, k) if tensor in bound.body.nothing else _shaped(plan, k, value)
            for k, (tensor, value) in enumerate(zip(bound.body.outputs, found, strict=True))
        ]
        return outputs, _read_alike(held, before), inner.code, _counts(inner, rounds)

    branches = [lambda bound=bound: taken(bound) for bound in bodies]
    outputs, variables, code, counts = lax.switch(_place(plan, index), branches)
    for name, value in variables.items():
        state.assign(Handle(name), value)
    report.join(code, counts)
    return outputs


def _place(plan: Branch, index: Any) -> Any:
    """Which branch is taken: the last one also for an index that is out of range."""
    count = len(plan.bodies)
    if "then_branch" in plan.node.attrs:
        return _truth(index).astype(jnp.int32)
    return jnp.where((index >= 0) & (index < count), index, count - 1).astype(jnp.int32)


def _shaped(plan: Branch, k: int, value: Any) -> Any:
    kind = plan.outputs[k].kind
    if kind is not None:
        return value.fit(kind)
    return jnp.asarray(value, plan.node.outputs[k].dtype.base.numpy)


def _zeros(plan: Branch, k: int) -> Any:
    output = plan.outputs[k]
    if output.kind is not None:
        return DenseList.zeros(output.kind).fit(output.kind)
    return jnp.zeros([size or 0 for size in output.shape or ()], plan.node.outputs[k].dtype.base.numpy)


def _attempt(
    bound: Bound, arguments: Sequence[Any], state: State, report: Report, literals: Literals, plan: Branch
) -> list[Any]:
    """The outputs of a branch. One that fails for what is known already fails whenever it is taken, and not before."""
    try:
        return bound.call(arguments, state, report, literals)
    except GradserveError as error:
        report.refuse(np.True_, error)
        return [_zeros(plan, k) for k in range(len(plan.outputs))]


# Loops


class _Carry(NamedTuple):
    """What goes from round to round.

    Attributes:
        changing: the variables that change: arrays and lists; without a length where it follows from the round.
        variables: those of the session that are assigned to.
        code: of the first check that failed.
        counts: rounds of the guessed loops inside.
    """

    changing: tuple[Any, ...]
    variables: dict[str, Any]
    code: Any
    counts: dict[str, Any]


class _Loop:
    """A loop that is being traced."""

    def __init__(
        self, plan: Loop, bodies: Sequence[Bound], values: Sequence[Any], state: State, report: Report,
        literals: Literals,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.bodies = self.condition, self.body = bodies
        self.values = values
        self.state = state
        self.report = report
        self.literals = literals
        self.changing = [k for k in plan.changing if k not in plan.counters]
        self.inner = sorted(plan.body.guesses | plan.condition.guesses)

    def run(self) -> list[Any]:
        plan = self.plan
        start = _Carry(
            tuple(self._carried(k, self.values[k]) for k in self.changing),
            _read(self.state, _assigned(self.bodies, self.values)),
            self.report.code,
            dict.fromkeys(self.inner, jnp.int32(0)),
        )
        count, end = self._counted(start) if plan.rounds is not None else self._asked(start)
        for name, value in end.variables.items():
            self.state.assign(Handle(name), value)
        self.report.join(end.code, end.counts)
        if plan.rounds is None:
            self.report.refuse(count >= loops.MOST_ROUNDS, loops.too_many_rounds(plan.node))
        if plan.guess is not None:
            self.report.count(plan.guess[0], count, plan.guess[1])
        return self._opened(end, count, plan.after)

    def _counted(self, start: _Carry) -> tuple[int, _Carry]:
        """All rounds, where their number is known."""
        count = self.plan.rounds
        assert count is not None
        if count >= loops.MOST_ROUNDS:
            raise loops.too_many_rounds(self.plan.node)
        return count, lax.fori_loop(np.int32(0), np.int32(count), lambda k, carry: self._round(carry, k), start)

    def _asked(self, start: _Carry) -> tuple[Any, _Carry]:
        """All rounds, where a condition tells; and their number."""
        most = loops.MOST_ROUNDS

        def goes_on(held: Any) -> Any:
            count, more, carry = held
            return more & (count < most) & (carry.code == 0)

        def step(held: Any) -> Any:
            count, _, carry = held
            carry = self._round(carry, count)
            more, carry = self._ask(carry)
            return count + 1, more, carry

        more, start = self._ask(start)
        count, _, end = lax.while_loop(goes_on, step, (jnp.int32(0), more, start))
        return count, end

    def _ask(self, carry: _Carry) -> tuple[Any, _Carry]:
        held, inner = self._state(carry), self.report.inside(carry.code)
        values = self._opened(carry, None, self.plan.kinds)
        found = self.condition.call(values, held, inner, self.literals)
        return _truth(jnp.asarray(found[0])), self._closed(carry.changing, held, inner, carry)

    def _round(self, carry: _Carry, count: Any) -> _Carry:
        """One round. A body that fails for what is known already fails in the first round, and not before."""
        plan = self.plan
        held, inner = self._state(carry), self.report.inside(carry.code)
        try:
            found = self.body.call(self._opened(carry, count, plan.kinds), held, inner, self.literals)
            changing = tuple(self._carried(k, found[k]) for k in self.changing)
        except GradserveError as error:
            inner.refuse(np.True_, error)
            changing = carry.changing
        return self._closed(changing, held, inner, carry)

    def _state(self, carry: _Carry) -> State:
        return State(values={**self.state.values, **self.state.updates, **carry.variables})

    def _closed(self, changing: tuple[Any, ...], held: State, inner: Report, before: _Carry) -> _Carry:
        counts = {name: jnp.maximum(before.counts[name], count) for name, count in _counts(inner, self.inner).items()}
        return _Carry(changing, _read_alike(held, before.variables), inner.code, counts)

    def _carried(self, k: int, value: Any) -> Any:
        """A variable as it goes from round to round."""
        kind = self.plan.carried[k]
        if kind is None:
            return jnp.asarray(value, self.plan.node.inputs[k].dtype.base.numpy)
        held = value.fit(kind)
        return held if self.plan.growth[k] is None else (held.items, held.waiting)

    def _opened(self, carry: _Carry, count: Any, kinds: Sequence[ListKind | None]) -> list[Any]:
        """The variables after so many rounds; where their number is not known, the variables tell it themselves."""
        values = list(self.values)
        for k, counter in self.plan.counters.items():
            values[k] = counter.after(jnp.asarray(count, self.plan.node.inputs[k].dtype.base.numpy))
        for k, value in zip(self.changing, carry.changing, strict=True):
            kind, growth = kinds[k], self.plan.growth[k]
            if kind is None:
                values[k] = value
                continue
            if growth is None:
                items, waiting, length = value.items, value.waiting, value.length
            else:
                (items, waiting), length = value, self.values[k].length + growth * count
            values[k] = DenseList(kind, items, kind.least if kind.is_exact else length, waiting).dense()
        return values


# Both


def _truth(value: Any) -> Any:
    """TensorFlow's: a scalar is true if it is not 0, any other tensor if it has elements."""
    return jnp.asarray(value) != 0 if not np.ndim(value) else jnp.asarray(bool(np.size(value)))


def _assigned(bodies: Sequence[Bound], arguments: Sequence[Any]) -> list[str]:
    """The names of the session's variables that bodies may assign to."""
    places = frozenset().union(*(bound.body.assigned for bound in bodies))
    return sorted({place if isinstance(place, str) else arguments[place].variable for place in places})


def _read(state: State, names: Sequence[str]) -> dict[str, Any]:
    return {name: jnp.asarray(state.read(Handle(name))) for name in names}


def _read_alike(state: State, before: Mapping[str, Any]) -> dict[str, Any]:
    """What variables have become. Raises Reshaped where they do not keep their shapes."""
    after = _read(state, list(before))
    for name, value in after.items():
        if (value.shape, value.dtype) != (before[name].shape, before[name].dtype):
            raise Reshaped(name)
    return after


def _counts(report: Report, names: Sequence[str]) -> dict[str, Any]:
    return {name: report.rounds.get(name, jnp.int32(0)) for name in names}
