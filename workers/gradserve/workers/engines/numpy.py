"""The reference engine: NumPy, by a plan whose order, constants and last uses are decided at compile time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import ComputationFailed, GradserveError, LimitExceeded
from gradserve.graph.graph import Node, Tensor, group
from gradserve.graph.op import FAILURES, Op
from gradserve.ops.left_out import unsupported
from gradserve.workers.engines.caller import Caller
from gradserve.workers.memory import limit_memory as limit_memory  # part of an engine
from gradserve.workers.segment import Segment, State

Array = np.ndarray[Any, Any]
Compiled = Callable[[Sequence[Any], State], list[Any]]


class Step(NamedTuple):
    """One node of the plan.

    Attributes:
        node: for error messages.
        function: the kernel with its attrs bound; takes the inputs as the plan holds them.
        inputs, outputs: places in the plan's table of values.
        references: the positions among the inputs where a variable's value, not its handle, is wanted.
        stateful: whether the kernel takes the state.
        frees: places whose value no later step reads.
    """

    node: Node
    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    references: tuple[int, ...]
    stateful: bool
    frees: tuple[int, ...]


def compile(segment: Segment) -> Compiled:
    """The segment as a function from (fed values, state) to fetched values.

    Raises Unsupported where a node has no kernel.
    """
    return _compile(segment, _execute_quietly)


def _compile_body(segment: Segment) -> Compiled:
    """A body that runs within a segment."""
    return _compile(segment, _execute_all)


def _compile(segment: Segment, execute: Callable[[Sequence[Step], list[Any], State], None]) -> Compiled:
    places: dict[Tensor, int] = {}
    for tensor in segment.feeds:
        places.setdefault(tensor, len(places))
    table: list[Any] = [None] * len(places)
    steps: list[Step] = []
    call = Caller(_compile_body)
    for node in segment.nodes():
        if node.type == "Const":
            places[node.outputs[0]] = len(table)
            table.append(node.attrs["value"])
            continue
        steps.append(_step(node, places, table, call))
    constants = frozenset(place for place, value in enumerate(table) if value is not None)
    kept = constants | {places[tensor] for tensor in segment.fetches}
    plan = _with_frees(steps, kept)
    feeds = [places[tensor] for tensor in segment.feeds]
    fetches = [(places[tensor], tensor.dtype.is_reference) for tensor in segment.fetches]

    def run(values: Sequence[Any], state: State) -> list[Any]:
        env = table.copy()
        for place, value in zip(feeds, values, strict=True):
            env[place] = value
        del values  # what is read for the last time can go, unless the caller holds it
        execute(plan, env, state)
        return [state.read(env[place]) if is_reference else env[place] for place, is_reference in fetches]

    return run


def on_host(values: Sequence[Any]) -> Sequence[Any]:
    """The values, which are there."""
    return values


def _step(node: Node, places: dict[Tensor, int], table: list[Any], call: Caller) -> Step:
    definition = definition_of(node)
    inputs = tuple(places[tensor] for tensor in node.inputs)
    outputs: list[int] = []
    for tensor in node.outputs:
        if tensor in places:  # fed: the kernel's value goes nowhere
            outputs.append(-1)
            continue
        places[tensor] = len(table)
        outputs.append(len(table))
        table.append(None)
    return Step(
        node,
        kernel_of(node, definition, call),
        inputs,
        tuple(outputs),
        references(node),
        takes_state(definition),
        (),
    )


def definition_of(node: Node) -> Op:
    """The op of a node that is to be run. Raises Unsupported where it has no kernel."""
    if node.op is None or node.op.kernel is None:
        raise unsupported(node)
    return node.op


def kernel_of(node: Node, definition: Op, call: Caller) -> Callable[..., Any]:
    """The kernel of a node as a function of (xp, flat inputs, state keyword if any)."""
    assert definition.kernel is not None
    kernel = definition.kernel.bind(node, node.attrs)
    if definition.kernel.wants_call:
        kernel = functools.partial(kernel, call=call)
    if not any(argument.is_list for argument in definition.signature.inputs):
        return kernel
    # An int for an argument, a slice for one that is a list.
    entries = [
        place if isinstance(place, int) else slice(place[0], place[-1] + 1) if place else slice(0)
        for place in group(definition.signature.inputs, node.attrs, range(len(node.inputs)))
    ]

    def grouped(xp: Any, *flat: Any, **extra: Any) -> Any:
        return kernel(xp, *[list(flat[e]) if type(e) is slice else flat[e] for e in entries], **extra)

    return grouped


def takes_state(definition: Op) -> bool:
    """Whether the op's kernel reads or changes variables or random streams."""
    return definition.kernel is not None and definition.kernel.wants_state


def references(node: Node) -> tuple[int, ...]:
    """Input positions that hold a TF1 reference where the op wants the value."""
    assert node.op is not None
    if not any(tensor.dtype.is_reference for tensor in node.inputs):
        return ()
    wants: list[bool] = []
    for argument, entry in zip(node.op.signature.inputs, node.arguments(), strict=True):
        wants.extend([argument.is_reference] * (len(entry) if argument.is_list else 1))
    return tuple(k for k, tensor in enumerate(node.inputs) if tensor.dtype.is_reference and not wants[k])


def _with_frees(steps: Sequence[Step], kept: frozenset[int]) -> list[Step]:
    seen = set(kept)
    plan: list[Step] = []
    for step in reversed(steps):
        last = {place for place in (*step.inputs, *step.outputs) if place >= 0 and place not in seen}
        seen |= last
        plan.append(step._replace(frees=tuple(sorted(last))))
    plan.reverse()
    return plan


def _execute_quietly(plan: Sequence[Step], env: list[Any], state: State) -> None:
    """Runs a plan; infinities and NaN are values as others are."""
    with np.errstate(all="ignore"):
        _execute_all(plan, env, state)


def _execute_all(plan: Sequence[Step], env: list[Any], state: State) -> None:
    for step in plan:
        _execute(step, env, state)


def _execute(step: Step, env: list[Any], state: State) -> None:
    values = [env[place] for place in step.inputs]
    for position in step.references:
        values[position] = state.read(values[position])
    try:
        result = step.function(np, *values, state=state) if step.stateful else step.function(np, *values)
    except GradserveError:
        raise
    except FAILURES as error:
        raise failed(step.node, error) from error
    except MemoryError as error:
        raise out_of_memory(step.node, error) from error
    outputs = step.outputs
    if len(outputs) == 1:
        if outputs[0] >= 0:
            env[outputs[0]] = row_major(result[0] if type(result) is list else result)
    else:
        for place, value in zip(outputs, result if result is not None else (), strict=True):
            if place >= 0:
                env[place] = row_major(value)
    for place in step.frees:
        env[place] = None


def row_major(value: Any) -> Any:
    """The value, an array in row-major order.

    Sums and products of other layouts, as kernels that return views make them, round otherwise; and what crosses to
    another worker arrives in this one.
    """
    if type(value) is np.ndarray and not value.flags.c_contiguous:
        return np.ascontiguousarray(value)
    return value


def out_of_memory(node: Node, error: MemoryError) -> LimitExceeded:
    """The error of a kernel that found no memory for its outputs."""
    outputs = ", ".join(tensor.name for tensor in node.outputs)
    return LimitExceeded(
        f"{node.name} ({node.type}) found no memory on its worker for {outputs}: {error}. Feed smaller batches, ask "
        "for shards or a memory_budget, or give workers more (--memory-limit-bytes).",
        node=node.name, op=node.type, tensor=outputs,
    )  # fmt: skip


def failed(node: Node, error: Exception) -> ComputationFailed:
    """The error of a kernel that raised."""
    shapes = ", ".join(str(tensor.shape) for tensor in node.inputs)
    return ComputationFailed(
        f"{node.name} ({node.type}) failed on inputs of shapes {shapes}: {error}",
        node=node.name,
        op=node.type,
    )
