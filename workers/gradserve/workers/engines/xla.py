"""The XLA engine: device pieces of a segment are traced through jax.numpy and compiled, each as one program.

What a trace may not see runs on NumPy between the compiled pieces (see split.py); loops, branches and lists are traced
where xla_known.py finds that they can be. Host values that a piece takes are part of what it is compiled for. Until a
background compilation is done the segment runs on the reference engine.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import jax
import numpy as np

from gradserve.errors import GradserveError, LimitExceeded
from gradserve.graph.graph import Tensor
from gradserve.graph.variants import Variant
from gradserve.ops import loops
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.caller import Caller
from gradserve.workers.engines.split import Kind, Piece, is_variable, split
from gradserve.workers.engines.xla_background import Compiler, Ticket, use_disk_cache
from gradserve.workers.engines.xla_control import Reshaped
from gradserve.workers.engines.xla_kernels import KERNELS
from gradserve.workers.engines.xla_known import known, says_more
from gradserve.workers.engines.xla_lists import DenseList
from gradserve.workers.engines.xla_plans import Body
from gradserve.workers.engines.xla_trace import Bound, MoreRounds, Report, bind, evaluate
from gradserve.workers.segment import Handle, Segment, State, last_reads

# 64-bit values would narrow silently without it.
jax.config.update("jax_enable_x64", True)
use_disk_cache()

Compiled = reference.Compiled
_CALLS_BEFORE_COMPILING = 3
_COMPILER = Compiler()
_MOST_PROGRAMS = 32
_MOST_NAMES = 3
# XLA would drop a cast to a narrower type and back, and with it the rounding.
_OPTIONS = {"xla_allow_excess_precision": False}


def compile(segment: Segment) -> Compiled:
    """The segment as a function from (fed values, state) to fetched values.

    The first calls run on the reference engine while a child process compiles, unless GRADSERVE_XLA_COMPILE_NOW=1.
    Raises Unsupported where a node has no kernel.
    """
    if os.environ.get("GRADSERVE_XLA_COMPILE_NOW") == "1":
        return compile_program(segment)
    return _Warming(segment)


def on_host(values: Sequence[Any]) -> list[Any]:
    """The values with JAX's arrays as NumPy's, without a copy where that is possible."""
    return [_on_host(value) for value in values]


def limit_memory(count: int, beside: int = 0) -> None:
    """Does nothing: a compiler's own needs would count, and a refusal would end it."""


class _Warming:
    """Runs on the reference engine until the compiled program lies in the disk cache.

    Attributes:
        is_compiled: whether it has changed over.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._run = reference.compile(segment)
        self._calls = 0
        self._ticket: Ticket | None = None
        self._settled = False
        self.is_compiled = False

    def __call__(self, values: Sequence[Any], state: State) -> list[Any]:
        if not self._settled:
            self._advance(values, state)
        return self._run(values, state)

    def _advance(self, values: Sequence[Any], state: State) -> None:
        self._calls += 1
        if self._ticket is None:
            if self._calls >= _CALLS_BEFORE_COMPILING:
                self._ticket = _COMPILER.submit(self._segment, values, state)
        elif self._ticket.done:
            self._settled = True
            if self._ticket.succeeded:
                self._run = compile_program(self._segment)
                self.is_compiled = True


def compile_program(segment: Segment) -> Compiled:
    """The segment compiled at its first call."""
    return _Known(segment) if says_more(segment) else _Pieces(Body.plain(segment))


class _Known:
    """A segment with loops, branches, calls or lists: pieces for each combination of shapes, in a bounded cache.

    A loop that runs more rounds than its lists have room for is run again with more room, and one that can't carry a
    variable is run again on the host; nothing of the first run stays. What is found out so holds for later calls, too.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._rounds: dict[str, int] = {}
        self._reshaped: set[int | str] = set()
        self._made: OrderedDict[Any, _Pieces] = OrderedDict()
        for node in segment.nodes():
            reference.definition_of(node)

    def __call__(self, values: Sequence[Any], state: State) -> list[Any]:
        shapes = tuple(None if isinstance(value, Handle | Variant) else np.shape(value) for value in values)
        while True:
            pieces = self._pieces(shapes, frozenset())
            missing = pieces.without_value(values, state) | self._reshaped
            if missing:
                pieces = self._pieces(shapes, missing)
            if not (pieces.guesses or pieces.carried):
                return pieces(values, state)
            draft = State(state.values, dict(state.updates), dict(state.draws))
            try:
                results = pieces(list(values), draft)
            except MoreRounds as told:
                self._rounds[told.name] = 1 << (told.rounds - 1).bit_length()
                self._made.pop((shapes, missing), None)
            except Reshaped as told:
                self._reshaped |= pieces.places_of(told.variable, values)
            else:
                state.values, state.updates, state.draws = draft.values, draft.updates, draft.draws
                return results

    def _pieces(self, shapes: tuple[Any, ...], missing: frozenset[int | str]) -> _Pieces:
        """The pieces for such feeds, where these variables have no value yet."""
        key = shapes, missing
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = _Pieces(self._known(shapes, missing))
            if len(self._made) > _MOST_PROGRAMS:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(key)
        return found

    def _known(self, shapes: tuple[Any, ...], missing: frozenset[int | str]) -> Body:
        try:
            return known(self._segment, shapes, self._rounds, missing)
        except GradserveError:  # shapes that contradict each other: the node that can't do with them says so itself
            return Body.plain(self._segment)


class _Pieces:
    """The pieces of a segment, one after the other.

    Attributes:
        guesses: the loops whose number of rounds is guessed.
        carried: the variables that traced loops and branches may assign to, by name or by the position of a feed.
    """

    def __init__(self, body: Body) -> None:
        call = Caller(compile_program)
        parts = split(body.segment, KERNELS, body.traced)
        self.guesses = body.guesses
        self.carried = body.carried
        self._pieces = [_runner(piece, body, call) for piece in parts]
        self._feeds, self._fetches = body.segment.feeds, body.segment.fetches
        groups = [(*piece.inputs, *(t for node in piece.nodes for t in node.outputs)) for piece in parts]
        self._dying = last_reads(groups, self._fetches)

    def __call__(self, values: Sequence[Any], state: State) -> list[Any]:
        env: dict[Tensor, Any] = dict(zip(self._feeds, values, strict=True))
        del values
        try:
            for piece, dead in zip(self._pieces, self._dying, strict=True):
                piece(env, state)
                for tensor in dead:
                    env.pop(tensor, None)
            return [_fetched(env[tensor], tensor, state) for tensor in self._fetches]
        except jax.errors.JaxRuntimeError as error:  # programs run on while the next one is prepared
            if "RESOURCE_EXHAUSTED" in str(error):
                raise _out_of_memory(self._fetches, error) from error
            raise

    def without_value(self, values: Sequence[Any], state: State) -> frozenset[int | str]:
        """Those that are carried and have no value yet to begin with."""
        return frozenset(k for k in self.carried if not state.is_initialised(Handle(_variable(k, values))))

    def places_of(self, variable: str, values: Sequence[Any]) -> frozenset[int | str]:
        """Those that are carried and stand for a variable."""
        return frozenset(k for k in self.carried if _variable(k, values) == variable)


def _variable(place: int | str, values: Sequence[Any]) -> str:
    """The name of a variable that is given by its name or by the position of its handle among the feeds."""
    return place if isinstance(place, str) else values[place].variable


def _out_of_memory(fetches: Sequence[Tensor], error: Exception) -> LimitExceeded:
    names = ", ".join(tensor.name for tensor in fetches[:_MOST_NAMES])
    return LimitExceeded(
        f"The segment that computes {names} found no memory on its worker: {error} Feed smaller batches, let loops "
        "whose rounds are saved have fewer of them, or ask for shards or a memory_budget.",
        tensor=names,
    )


def _fetched(value: Any, tensor: Tensor, state: State) -> Any:
    if tensor.dtype.is_reference and isinstance(value, Handle):
        value = state.read(value)
    if isinstance(value, DenseList):
        return value.on_host()
    return value if isinstance(value, (Handle, Variant)) else np.asarray(value)


def _runner(piece: Piece, body: Body, call: Caller) -> Callable[[dict[Tensor, Any], State], None]:
    return _host_runner(piece, call) if piece.kind is Kind.HOST else _DeviceRunner(piece, body, call)


def _host_runner(piece: Piece, call: Caller) -> Callable[[dict[Tensor, Any], State], None]:
    steps = [bind(node, call) for node in piece.nodes]

    def run(env: dict[Tensor, Any], state: State) -> None:
        with np.errstate(all="ignore"):
            for step in steps:
                evaluate(step, np, [_on_host(env[tensor]) for tensor in step.node.inputs], env, state)

    return run


def _on_host(value: Any) -> Any:
    if isinstance(value, DenseList):
        return value.on_host()
    return np.asarray(value) if isinstance(value, jax.Array) else value


class _DeviceRunner:
    """A device piece: a program for each combination of host values and shapes, in a bounded cache."""

    def __init__(self, piece: Piece, body: Body, call: Caller) -> None:
        self.piece = piece
        self.bound = Bound(body, piece.nodes, call)
        self.static = [t for t in piece.inputs if t in piece.static or is_variable(t)]
        self.dynamic = [t for t in piece.inputs if t not in self.static]
        self.literals = [tensor for tensor in self.bound.literals if tensor not in piece.static]
        self._programs: OrderedDict[Any, _Program] = OrderedDict()

    def __call__(self, env: dict[Tensor, Any], state: State) -> None:
        host = {tensor: _on_host(env[tensor]) for tensor in self.static}
        values = [env[tensor] for tensor in self.dynamic]
        names = self.bound.variables | {value.variable for value in host.values() if isinstance(value, Handle)}
        held = {name: state.read(Handle(name)) for name in sorted(names) if state.is_initialised(Handle(name))}
        key = (*map(_key, host.values()), *map(_signature, values), *held, *map(_signature, held.values()))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = _Program(self, host)
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        env.update(zip(self.piece.outputs, program(values, held, state), strict=True))


class _Program:
    """A device piece compiled for given host values.

    What can't leave a compiled program (handles, strings) is remembered from the trace, and so are the errors of the
    checks that the program makes, and the variables that it destroys.
    """

    def __init__(self, runner: _DeviceRunner, host: Mapping[Tensor, Any]) -> None:
        self._runner = runner
        self._host = host
        self._literals = [tensor.node.attrs["value"] for tensor in runner.literals]
        self._constants: dict[int, Any] = {}
        self._errors: list[GradserveError | MoreRounds] = []
        self._destroyed: set[str] = set()
        self._compiled = jax.jit(self._trace, compiler_options=_OPTIONS)

    def __call__(self, values: list[Any], variables: dict[str, Any], state: State) -> list[Any]:
        outputs, updates, code, rounds = self._compiled(values, self._literals, variables)
        failed = int(code) if self._errors else 0
        if failed:
            raise self._error(failed, rounds)
        for name in self._destroyed:
            state.forget(Handle(name))
        state.updates.update(updates)
        for position, value in self._constants.items():
            outputs[position] = value
        return outputs

    def _error(self, code: int, rounds: Mapping[str, Any]) -> GradserveError | MoreRounds:
        """What a run failed with. Without room for all rounds it has read rows that were never written: any other
        error may come of that alone, save that a loop does not end."""
        for error in self._errors:
            if isinstance(error, MoreRounds):
                count = int(rounds.get(error.name, 0))
                if error.rounds < count < loops.MOST_ROUNDS:
                    return MoreRounds(error.name, count)
        return copy(self._errors[code - 1])

    def _trace(self, values: list[Any], literals: list[Any], variables: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        runner = self._runner
        env: dict[Tensor, Any] = {**self._host, **dict(zip(runner.dynamic, values, strict=True))}
        state = State(values=variables)
        self._errors.clear()
        report = Report(self._errors)
        self._constants, self._destroyed = {}, set()
        try:
            with np.errstate(all="ignore"):
                runner.bound.run(env, state, report, dict(zip(runner.literals, literals, strict=True)))
        except GradserveError as error:  # which every run raises, unless a check before it fails
            report.refuse(np.True_, error)
            return [], {}, report.code, report.rounds
        self._destroyed = variables.keys() - state.values.keys() - state.updates.keys()
        outputs = [env[tensor] for tensor in runner.piece.outputs]
        self._constants = {k: value for k, value in enumerate(outputs) if _stays_outside(value)}
        arrays = [() if k in self._constants else value for k, value in enumerate(outputs)]
        return arrays, state.updates, report.code, report.rounds


def _stays_outside(value: Any) -> bool:
    return isinstance(value, Handle) or (isinstance(value, np.ndarray) and value.dtype.hasobject)


def _signature(value: Any) -> Any:
    """What a program is compiled for."""
    if isinstance(value, DenseList):
        leaves, structure = jax.tree_util.tree_flatten(value)
        return structure, *((np.shape(leaf), leaf.dtype) for leaf in leaves)
    return np.shape(value), value.dtype


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return value
