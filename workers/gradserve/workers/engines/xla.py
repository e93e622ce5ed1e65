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
from gradserve.graph.graph import Node, Tensor
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.split import Kind, Piece, is_variable, split
from gradserve.workers.engines.xla_background import Compiler, Ticket, use_disk_cache
from gradserve.workers.engines.xla_kernels import OVERRIDES, Checks
from gradserve.workers.segment import Handle, Segment, State

# 64-bit values would narrow silently without it.
jax.config.update("jax_enable_x64", True)
use_disk_cache()

Compiled = reference.Compiled
_CALLS_BEFORE_COMPILING = 3
_COMPILER = Compiler()
_MOST_VARIANTS = 32
_LARGEST_LITERAL = 1024


def compile(segment: Segment) -> Compiled:
    """The segment as a function from (fed values, state) to fetched values.

    The first calls run on the reference engine while a child process compiles, unless GRADSERVE_XLA_COMPILE_NOW=1.
    Raises Unsupported where a node has no kernel.
    """
    if os.environ.get("GRADSERVE_XLA_COMPILE_NOW") == "1":
        return compile_program(segment)
    return _Warming(segment)


class _Warming:
    """Runs on the reference engine until the compiled program lies in the disk cache."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._run = reference.compile(segment)
        self._calls = 0
        self._ticket: Ticket | None = None
        self._compiled = False

    def __call__(self, values: Sequence[Any], state: State) -> list[Any]:
        if not self._compiled:
            self._advance(values, state)
        return self._run(values, state)

    def _advance(self, values: Sequence[Any], state: State) -> None:
        self._calls += 1
        if self._ticket is None:
            if self._calls >= _CALLS_BEFORE_COMPILING:
                self._ticket = _COMPILER.submit(self._segment, values, state)
        elif self._ticket.done:
            self._compiled = True
            if self._ticket.succeeded:
                self._run = compile_program(self._segment)


def compile_program(segment: Segment) -> Compiled:
    """The segment compiled at its first call."""
    pieces = [_runner(piece) for piece in split(segment)]
    feeds, fetches = segment.feeds, segment.fetches

    def run(values: Sequence[Any], state: State) -> list[Any]:
        env: dict[Tensor, Any] = dict(zip(feeds, values, strict=True))
        for piece in pieces:
            piece(env, state)
        return [_fetched(env[tensor], tensor, state) for tensor in fetches]

    return run


def _fetched(value: Any, tensor: Tensor, state: State) -> Any:
    if tensor.dtype.is_reference and isinstance(value, Handle):
        value = state.read(value)
    return value if isinstance(value, Handle) else np.asarray(value)


def _runner(piece: Piece) -> Callable[[dict[Tensor, Any], State], None]:
    return _host_runner(piece) if piece.kind is Kind.HOST else _DeviceRunner(piece)


def _host_runner(piece: Piece) -> Callable[[dict[Tensor, Any], State], None]:
    steps = [(node, *_bound(node)) for node in piece.nodes]

    def run(env: dict[Tensor, Any], state: State) -> None:
        with np.errstate(all="ignore"):
            for node, kernel, dereferenced, stateful in steps:
                values = [_on_host(env[tensor]) for tensor in node.inputs]
                _evaluate(node, kernel, dereferenced, stateful, np, values, env, state)

    return run


def _on_host(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, jax.Array) else value


def _bound(node: Node) -> tuple[Callable[..., Any], tuple[int, ...], bool]:
    definition = reference.definition_of(node)
    return (
        reference.kernel_of(node, definition),
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
    results = (result,) if len(node.outputs) == 1 else result
    for tensor, value in zip(node.outputs, results if results is not None else (), strict=True):
        env[tensor] = value


class _DeviceRunner:
    """A device piece: one compiled program for each combination of host values, kept in a bounded cache."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.steps = [(node, *_bound(node)) for node in piece.nodes]
        self.variants: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self.messages: dict[Any, list[str]] = {}
        self.literals = [
            node.outputs[0]
            for node in piece.nodes
            if node.type == "Const" and node.attrs["value"].size > _LARGEST_LITERAL
            and node.attrs["value"].dtype != np.dtype(object)
            and not any(tensor is node.outputs[0] for tensor in piece.static)
        ]  # fmt: skip
        self.handles = [tensor for tensor in piece.inputs if is_variable(tensor)]
        self.static = [t for t in piece.inputs if t in set(piece.static) or is_variable(t)]
        self.dynamic = [t for t in piece.inputs if t not in set(self.static)]

    def __call__(self, env: dict[Tensor, Any], state: State) -> None:
        host = {tensor: _on_host(env[tensor]) for tensor in self.static}
        key = tuple(_key(value) for value in host.values())
        variant = self.variants.get(key)
        if variant is None:
            variant = self._variant(key, host)
        else:
            self.variants.move_to_end(key)
        current = {**state.values, **state.updates}
        outputs, updates, flags = variant([env[tensor] for tensor in self.dynamic], current, dict(state.draws))
        if flags:
            self._raise_failed(key, flags)
        state.updates.update(updates)
        for tensor, value in zip(self.piece.outputs, outputs, strict=True):
            env[tensor] = value

    def _raise_failed(self, key: Any, flags: Sequence[Any]) -> None:
        for flag, message in zip(flags, self.messages[key], strict=True):
            if bool(flag):
                raise InvalidArgument(message)

    def _variant(self, key: Any, host: Mapping[Tensor, Any]) -> Callable[..., Any]:
        """The program for these host values."""
        constants: dict[int, Any] = {}
        messages = self.messages.setdefault(key, [])

        def trace(values: list[Any], literals: list[Any], current: dict[str, Any]) -> tuple[Any, Any, Any]:
            env: dict[Tensor, Any] = dict(host) | dict(zip(self.dynamic, values, strict=True))
            given = dict(zip(self.literals, literals, strict=True))
            state = State(values=current)
            checks = Checks()
            constants.clear()
            for node, kernel, dereferenced, stateful in self.steps:
                if node.type == "Const":
                    env[node.outputs[0]] = given.get(node.outputs[0], node.attrs["value"])
                    continue
                inputs = [env[tensor] for tensor in node.inputs]
                override = OVERRIDES.get(node.type)
                on_device = any(isinstance(value, jax.Array) for value in inputs) or stateful
                if override is not None and on_device:
                    env.update(zip(node.outputs, override(checks, node, inputs), strict=True))
                    continue
                namespace: Any = jnp if on_device or not _is_trace_time(node) else np
                _evaluate(node, kernel, dereferenced, stateful, namespace, inputs, env, state)
            messages[:] = checks.messages
            arrays: list[Any] = []
            for position, tensor in enumerate(self.piece.outputs):
                value = env[tensor]
                if isinstance(value, Handle) or (isinstance(value, np.ndarray) and value.dtype == np.dtype(object)):
                    constants[position] = value
                    value = ()
                arrays.append(value)
            return arrays, state.updates, checks.flags

        program = jax.jit(trace)
        literals = [tensor.node.attrs["value"] for tensor in self.literals]
        names = {handle.variable for handle in host.values() if isinstance(handle, Handle)}

        def run(values: list[Any], current: dict[str, Any], draws: dict[str, int]) -> tuple[Any, Any, Any]:
            names.update(self._own_variables(draws))
            used = {name: value for name, value in current.items() if name in names}
            outputs, updates, flags = program(values, literals, used)
            for position, value in constants.items():
                outputs[position] = value
            return outputs, updates, flags

        self.variants[key] = run
        if len(self.variants) > _MOST_VARIANTS:
            oldest, _ = self.variants.popitem(last=False)
            self.messages.pop(oldest, None)
        return run

    def _own_variables(self, draws: dict[str, int]) -> list[str]:
        """The variables whose handles are made in this piece."""
        found: list[str] = []
        for node, kernel, _, stateful in self.steps:
            if not node.inputs and stateful and node.outputs and is_variable(node.outputs[0]):
                handle = kernel(np, state=State(draws=draws))
                if isinstance(handle, Handle):
                    found.append(handle.variable)
        return found


def _is_trace_time(node: Node) -> bool:
    """Whether NumPy computes a node whose inputs are all on the host: small things and values of shapes."""
    return (
        not node.inputs
        or node.op is None
        or node.op.static is not None
        or all(tensor.dtype.kind in "iub" for tensor in (*node.inputs, *node.outputs))
    )


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return value
