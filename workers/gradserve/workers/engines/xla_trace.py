"""Nodes run under a trace: each by its kernel on jax.numpy, loops and branches by xla_control.py.

What follows from shapes and constants is computed by NumPy while tracing, so that it costs nothing and breaks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradserve.errors import GradserveError
from gradserve.graph import checks
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import FAILURES, BoundRule
from gradserve.graph.shapes import Shape
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines import xla_control
from gradserve.workers.engines.caller import Caller
from gradserve.workers.engines.split import host_positions, is_shape_arithmetic, is_variable
from gradserve.workers.engines.xla_kernels import KERNELS
from gradserve.workers.engines.xla_list_kernels import LISTS, Facts, ListKernel
from gradserve.workers.engines.xla_lists import DenseList, ListKind
from gradserve.workers.engines.xla_plans import Body
from gradserve.workers.segment import State

_LARGEST_LITERAL = 1024


class Step(NamedTuple):
    """A node and its kernel.

    Attributes:
        references: inputs to dereference.
        stateful: whether the kernel takes the state.
        wanted: positions of the inputs that it takes as NumPy arrays.
        kept: positions of the inputs that stay NumPy arrays where they are some.
    """

    node: Node
    kernel: Callable[..., Any]
    references: tuple[int, ...]
    stateful: bool
    wanted: frozenset[int]
    kept: frozenset[int]


class MoreRounds(Exception):
    """A loop ran so many rounds, which is more than its lists have room for: nothing of the run counts.

    As a check of a program it holds the rounds that there is room for.
    """

    def __init__(self, name: str, rounds: int) -> None:
        super().__init__(name, rounds)
        self.name = name
        self.rounds = rounds


class Report:
    """What a program tells besides values: the first of its checks that failed, and the rounds of guessed loops.

    Loops and branches have reports of their own inside, which join this one.

    Attributes:
        errors: of all checks of the program; a code is a place in it, from 1.
        code: of the first check that failed, 0 for none.
        rounds: of each loop whose number of rounds is guessed.
    """

    def __init__(self, errors: list[GradserveError | MoreRounds], code: Any = 0) -> None:
        self.errors = errors
        self.code = jnp.asarray(code, jnp.int32)
        self.rounds: dict[str, Any] = {}

    def inside(self, code: Any) -> Report:
        """A report of what happens in a loop or a branch, where this has been the code so far."""
        return Report(self.errors, code)

    def refuse(self, wrong: Any, error: GradserveError | MoreRounds) -> None:
        """Notes a check."""
        self.errors.append(error)
        self.code = jnp.where((self.code == 0) & wrong, jnp.int32(len(self.errors)), self.code)

    def count(self, name: str, rounds: Any, room: int) -> None:
        """Notes how many rounds a guessed loop ran, which is too many where they are more than it has room for."""
        self.rounds[name] = jnp.maximum(self.rounds.get(name, jnp.int32(0)), rounds)
        self.refuse(rounds > room, MoreRounds(name, room))

    def join(self, code: Any, rounds: Mapping[str, Any]) -> None:
        """Takes over what a report inside has come to."""
        self.code = code
        for name, count in rounds.items():
            self.rounds[name] = jnp.maximum(self.rounds.get(name, jnp.int32(0)), count)


class Bound:
    """A body whose nodes have their kernels.

    Attributes:
        body: the body.
        steps: its nodes in order.
        bodies: of its loops and branches.
        literals: its large constants and theirs, which are passed to the program and not built into it: they would
            slow the compiler down.
        variables: those declared in it and in them.
    """

    def __init__(self, body: Body, nodes: Sequence[Node], call: Caller) -> None:
        self.body = body
        self.steps = [_step(node, body, call) for node in nodes]
        self.bodies = {
            node: tuple(Bound(inner, inner.segment.nodes(), call) for inner in body.plans[node].bodies)
            for node in nodes
            if node in body.plans
        }
        below = [inner for bodies in self.bodies.values() for inner in bodies]
        wanted = {step.node.inputs[position] for step in self.steps for position in step.wanted}
        self.literals = [node.outputs[0] for node in nodes if _is_large(node) and node.outputs[0] not in wanted]
        self.literals += [tensor for inner in below for tensor in inner.literals]
        self.variables = _declared(self.steps).union(*(inner.variables for inner in below))

    def run(self, env: dict[Tensor, Any], state: State, report: Report, literals: Mapping[Tensor, Any]) -> None:
        """Computes what the nodes give, into `env`."""
        token = checks.collector.set(report)
        try:
            for step in self.steps:
                node = step.node
                if node.type == "Const":
                    env[node.outputs[0]] = literals.get(node.outputs[0], node.attrs["value"])
                elif node in self.body.plans:
                    env.update(zip(node.outputs, self._controlled(node, env, state, report, literals), strict=True))
                else:
                    inputs = [env[tensor] for tensor in node.inputs]
                    traced = step.stateful or any(isinstance(value, jax.Array) for value in inputs)
                    lists = node in self.body.traced
                    namespace: Any = jnp if traced or lists or not _is_trace_time(node) else np
                    if traced or lists:
                        inputs = _for_device(step, inputs)
                    evaluate(step, namespace, inputs, env, state)
        finally:
            checks.collector.reset(token)

    def _controlled(
        self, node: Node, env: Mapping[Tensor, Any], state: State, report: Report, literals: Mapping[Tensor, Any]
    ) -> list[Any]:
        values = [env[tensor] for tensor in node.inputs]
        return xla_control.run(self.body.plans[node], self.bodies[node], values, state, report, literals)

    def call(self, values: Sequence[Any], state: State, report: Report, literals: Mapping[Tensor, Any]) -> list[Any]:
        """The body's outputs for values of all its inputs."""
        segment = self.body.segment
        env = {tensor: values[place] for tensor, place in zip(segment.feeds, self.body.places, strict=True)}
        self.run(env, state, report, literals)
        return [env[tensor] for tensor in self.body.outputs]


def evaluate(step: Step, namespace: Any, values: list[Any], env: dict[Tensor, Any], state: State) -> None:
    """Runs a kernel; what it gives goes into `env`. Raises what it raises, by the node's name."""
    for position in step.references:
        values[position] = state.read(values[position])
    try:
        result = step.kernel(namespace, *values, state=state) if step.stateful else step.kernel(namespace, *values)
    except GradserveError:
        raise
    except FAILURES as error:
        raise reference.failed(step.node, error) from error
    outputs = step.node.outputs
    results = (result,) if len(outputs) == 1 and type(result) is not list else result
    for tensor, value in zip(outputs, results if results is not None else (), strict=True):
        env[tensor] = value


def bind(node: Node, call: Caller, own: BoundRule | None = None) -> Step:
    """A node with its kernel, or the engine's own where there is one. Raises Unsupported where it has none."""
    definition, wanted = reference.definition_of(node), host_positions(node)
    return Step(
        node,
        reference.kernel_of(node, definition, call) if own is None else own.bind(node, node.attrs),
        reference.references(node),
        reference.takes_state(definition),
        wanted,
        wanted,
    )


def _step(node: Node, body: Body, call: Caller) -> Step:
    if node not in body.traced:
        return bind(node, call, KERNELS.get(node.type))
    kernel = _PLANNED if node in body.plans else LISTS.get(node.type) or _IN_BODIES[node.type]
    constants = frozenset(k for k, tensor in enumerate(node.inputs) if tensor.node.type == "Const")
    function = kernel.bind(node, body.facts.get(node, Facts()))
    return Step(node, function, (), False, frozenset(kernel.host), constants)


def _assert(xp: Any, condition: Any, *data: Any) -> tuple[()]:
    texts = [str(np.asarray(entry).ravel()[:3].tolist()) for entry in data if not isinstance(entry, jax.Array)]
    checks.refuse_if(~xp.all(condition), f"Assertion failed: {', '.join(texts)}")
    return ()


def _nothing(xp: Any, *, dtype: DType, shape: Shape) -> Any:
    if dtype.kind == "v":
        return DenseList.zeros(ListKind(dtype, None, 0, 0, 0))
    return xp.zeros([size or 0 for size in shape or ()], dtype.numpy)


_IN_BODIES = {"Assert": ListKernel(BoundRule(_assert)), "FakeParam": ListKernel(BoundRule(_nothing))}
"""Ops that are traced otherwise than by their own kernels in bodies alone."""
_PLANNED = ListKernel(BoundRule(lambda xp, *inputs: None))
"""Stands for loops and branches, which xla_control.py runs."""


def _for_device(step: Step, inputs: list[Any]) -> list[Any]:
    """The inputs with NumPy arrays, which traced ones can't index, as JAX's; save what the kernel wants on the host."""
    return [
        jnp.asarray(value)
        if position not in step.kept and isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject
        else value
        for position, value in enumerate(inputs)
    ]


def _is_large(node: Node) -> bool:
    if node.type != "Const":
        return False
    value = node.attrs["value"]
    return value.size > _LARGEST_LITERAL and not value.dtype.hasobject


def _declared(steps: Sequence[Step]) -> set[str]:
    """The variables whose handles are made in these steps."""
    return {
        step.kernel(np, state=State()).variable
        for step in steps
        if step.stateful and not step.node.inputs and step.node.outputs and is_variable(step.node.outputs[0])
    }


def _is_trace_time(node: Node) -> bool:
    """Whether NumPy computes a node whose inputs are all on the host: small things and values of shapes."""
    return not node.inputs or node.op is None or node.op.static is not None or is_shape_arithmetic(node)
