"""The XLA engine: device pieces of a segment are traced through jax.numpy and compiled, each as one program.

What a trace may not see runs on NumPy between the compiled pieces (see split.py). Host values that a piece takes
are part of what it is compiled for. Until a background compilation is done the segment runs on the reference engine.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradserve.errors import GradserveError, InvalidArgument
from gradserve.graph import checks
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import BoundRule
from gradserve.graph.variants import Variant
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.caller import Caller
from gradserve.workers.engines.split import Kind, Piece, host_positions, is_shape_arithmetic, is_variable, split
from gradserve.workers.engines.xla_background import Compiler, Ticket, use_disk_cache
from gradserve.workers.engines.xla_kernels import KERNELS
from gradserve.workers.segment import Handle, Segment, State, last_reads

# 64-bit values would narrow silently without it.
jax.config.update("jax_enable_x64", True)
use_disk_cache()

Compiled = reference.Compiled
_CALLS_BEFORE_COMPILING = 3
_COMPILER = Compiler()
_MOST_PROGRAMS = 32
_LARGEST_LITERAL = 1024
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
    call = Caller(compile_program)
    parts = split(segment, KERNELS)
    pieces = [_runner(piece, call) for piece in parts]
    feeds, fetches = segment.feeds, segment.fetches
    dying = last_reads(
        [(*piece.inputs, *(t for node in piece.nodes for t in node.outputs)) for piece in parts], fetches
    )

    def run(values: Sequence[Any], state: State) -> list[Any]:
        env: dict[Tensor, Any] = dict(zip(feeds, values, strict=True))
        del values
        for piece, dead in zip(pieces, dying, strict=True):
            piece(env, state)
            for tensor in dead:
                env.pop(tensor, None)
        return [_fetched(env[tensor], tensor, state) for tensor in fetches]

    return run


def _fetched(value: Any, tensor: Tensor, state: State) -> Any:
    if tensor.dtype.is_reference and isinstance(value, Handle):
        value = state.read(value)
    return value if isinstance(value, (Handle, Variant)) else np.asarray(value)


def _runner(piece: Piece, call: Caller) -> Callable[[dict[Tensor, Any], State], None]:
    return _host_runner(piece, call) if piece.kind is Kind.HOST else _DeviceRunner(piece, call)


def _host_runner(piece: Piece, call: Caller) -> Callable[[dict[Tensor, Any], State], None]:
    steps = [(node, *_bound(node, call)) for node in piece.nodes]

    def run(env: dict[Tensor, Any], state: State) -> None:
        with np.errstate(all="ignore"):
            for node, kernel, dereferenced, stateful in steps:
                values = [_on_host(env[tensor]) for tensor in node.inputs]
                _evaluate(node, kernel, dereferenced, stateful, np, values, env, state)

    return run


def _on_host(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, jax.Array) else value


def _bound(node: Node, call: Caller, own: BoundRule | None = None) -> tuple[Callable[..., Any], tuple[int, ...], bool]:
    """Kernel (the engine's own, where there is one), inputs to dereference, and whether it takes the state."""
    definition = reference.definition_of(node)
    return (
        reference.kernel_of(node, definition, call) if own is None else own.bind(node, node.attrs),
        reference.references(node),
        reference.takes_state(definition),
    )


def _evaluate(
    node: Node, kernel: Callable[..., Any], dereferenced: tuple[int, ...], stateful: bool,
    namespace: Any, values: list[Any], env: dict[Tensor, Any], state: State,
) -> None:  # fmt: skip
    for position in dereferenced:
        values[position] = state.read(values[position])
    try:
        result = kernel(namespace, *values, state=state) if stateful else kernel(namespace, *values)
    except GradserveError:
        raise
    except (ArithmeticError, ValueError, TypeError, IndexError, KeyError, np.linalg.LinAlgError) as error:
        raise reference.failed(node, error) from error
    results = (result,) if len(node.outputs) == 1 and type(result) is not list else result
    for tensor, value in zip(node.outputs, results if results is not None else (), strict=True):
        env[tensor] = value


class _DeviceRunner:
    """A device piece: a program for each combination of host values and shapes, in a bounded cache."""

    def __init__(self, piece: Piece, call: Caller) -> None:
        self.piece = piece
        self.steps = [(node, *_bound(node, call, KERNELS.get(node.type))) for node in piece.nodes]
        self.static = [t for t in piece.inputs if t in piece.static or is_variable(t)]
        self.dynamic = [t for t in piece.inputs if t not in self.static]
        self.literals = [
            node.outputs[0] for node in piece.nodes if _is_large(node) and node.outputs[0] not in piece.static
        ]
        self.variables = _declared(self.steps)
        self._programs: OrderedDict[Any, _Program] = OrderedDict()

    def __call__(self, env: dict[Tensor, Any], state: State) -> None:
        host = {tensor: _on_host(env[tensor]) for tensor in self.static}
        values = [env[tensor] for tensor in self.dynamic]
        key = (*map(_key, host.values()), *((np.shape(value), value.dtype) for value in values))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = _Program(self, host)
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        env.update(zip(self.piece.outputs, program(values, state), strict=True))


class _Program:
    """A device piece compiled for given host values.

    What can't leave a compiled program (handles, strings) is remembered from the trace, and so are the messages of
    the checks whose flags the program returns.
    """

    def __init__(self, runner: _DeviceRunner, host: Mapping[Tensor, Any]) -> None:
        self._runner = runner
        self._host = host
        self._variables = runner.variables | {v.variable for v in host.values() if isinstance(v, Handle)}
        self._literals = [tensor.node.attrs["value"] for tensor in runner.literals]
        self._constants: dict[int, Any] = {}
        self._messages: list[str] = []
        self._compiled = jax.jit(self._trace, compiler_options=_OPTIONS)

    def __call__(self, values: list[Any], state: State) -> list[Any]:
        current = {**state.values, **state.updates}
        used = {name: value for name, value in current.items() if name in self._variables}
        outputs, updates, flags = self._compiled(values, self._literals, used)
        for flag, message in zip(flags, self._messages, strict=True):
            if bool(flag):
                raise InvalidArgument(message)
        state.updates.update(updates)
        for position, value in self._constants.items():
            outputs[position] = value
        return outputs

    def _trace(self, values: list[Any], literals: list[Any], current: dict[str, Any]) -> tuple[Any, Any, Any]:
        runner = self._runner
        env: dict[Tensor, Any] = {**self._host, **dict(zip(runner.dynamic, values, strict=True))}
        given = dict(zip(runner.literals, literals, strict=True))
        state = State(values=current)
        found: checks.Collected = []
        token = checks.collector.set(found)
        try:
            for node, kernel, dereferenced, stateful in runner.steps:
                if node.type == "Const":
                    env[node.outputs[0]] = given.get(node.outputs[0], node.attrs["value"])
                    continue
                inputs = [env[tensor] for tensor in node.inputs]
                traced = stateful or any(isinstance(value, jax.Array) for value in inputs)
                namespace: Any = jnp if traced or not _is_trace_time(node) else np
                if traced:
                    inputs = _for_device(node, inputs)
                _evaluate(node, kernel, dereferenced, stateful, namespace, inputs, env, state)
        finally:
            checks.collector.reset(token)
        self._messages = [message for _, message in found]
        outputs = [env[tensor] for tensor in runner.piece.outputs]
        self._constants = {k: value for k, value in enumerate(outputs) if _stays_outside(value)}
        arrays = [() if k in self._constants else value for k, value in enumerate(outputs)]
        return arrays, state.updates, [flag for flag, _ in found]


def _for_device(node: Node, inputs: list[Any]) -> list[Any]:
    """The inputs with NumPy arrays, which traced ones can't index, as JAX's; save what the kernel wants on the host."""
    host = host_positions(node)
    return [
        jnp.asarray(value)
        if position not in host and isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject
        else value
        for position, value in enumerate(inputs)
    ]


def _is_large(node: Node) -> bool:
    """Whether a constant is passed to the program and not built into it, which would slow the compiler down."""
    if node.type != "Const":
        return False
    value = node.attrs["value"]
    return value.size > _LARGEST_LITERAL and not value.dtype.hasobject


def _stays_outside(value: Any) -> bool:
    return isinstance(value, Handle) or (isinstance(value, np.ndarray) and value.dtype.hasobject)


def _declared(steps: Sequence[tuple[Node, Callable[..., Any], tuple[int, ...], bool]]) -> set[str]:
    """The variables whose handles are made in these steps."""
    return {
        kernel(np, state=State()).variable
        for node, kernel, _, stateful in steps
        if stateful and not node.inputs and node.outputs and is_variable(node.outputs[0])
    }


def _is_trace_time(node: Node) -> bool:
    """Whether NumPy computes a node whose inputs are all on the host: small things and values of shapes."""
    return not node.inputs or node.op is None or node.op.static is not None or is_shape_arithmetic(node)


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return value
