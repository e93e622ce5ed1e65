"""What an op is: signature, shape rule, gradient rule, kernel and examples, defined in one place.

`define(...)` enters an op in the catalogue; `raw.MatMul(a, b)` adds a node of that type to the graph of its
inputs. Rules are plain functions. What they take positionally is fixed (below); what they declare as
keyword-only parameters they get by name from the node's attrs (and `node` itself, if declared; a kernel may declare
`call`, which runs a function of the graph's library, and a gradient rule `sweep`, the walk that it is part of):

    shape(*inputs)                        Tensors, a list where the signature has a list -> Shape, or one per output
    gradient(*cotangents, *outputs, *inputs)   Tensors -> one entry per input: Tensor, IndexedSlices or None
    kernel(xp, *inputs)                   arrays of the namespace xp -> array, or one per output; a kernel that declares
                                          the keyword `state` reads and changes variables and random streams by it
    static(*inputs)                       Tensors -> NumPy array or None: a value known before anything runs

A gradient rule says only the calculus. For an op that broadcasts, the sweep sums over the broadcast axes; for
one that is holomorphic, it conjugates: dx = conj(rule(conj(dy))), so complex numbers need no thought.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gradserve.errors import InvalidArgument, NotFound
from gradserve.graph import shapes
from gradserve.graph import signature as _signature
from gradserve.graph.signature import Signature

if TYPE_CHECKING:
    from gradserve.graph.graph import Graph, Tensor

Rule = Callable[..., Any]

FAILURES = (ArithmeticError, ValueError, TypeError, IndexError, KeyError)
"""What a rule or a kernel raises, beside errors of our own, where inputs and attrs that fit the signature make no
sense."""


class NoRule(NamedTuple):
    """Stands where a gradient rule would: why there is none.

    Attributes:
        kind: ``none`` (gradient is None: registered as not differentiable), ``refused`` (LookupError, on purpose)
            or ``missing`` (LookupError: nobody wrote one).
        why: the sentence that ends up in the error.
    """

    kind: str
    why: str


NOT_DIFFERENTIABLE = NoRule("none", "the op is registered as not differentiable")
MISSING = NoRule("missing", "no gradient is defined for the op")


def refused(why: str) -> NoRule:
    """A gradient that always raises LookupError with this reason."""
    return NoRule("refused", why)


class Example(NamedTuple):
    """One call of an op that the tests run.

    Attributes:
        inputs: NumPy arrays (a list of them where the signature has a list).
        attrs: the attrs given.
        differences: False where the gradient is a convention and central differences would contradict it.
        order: the highest order of derivative to check.
        step: of the differences. Any will do where the op is linear: float32 wants a large one.
        held: names of inputs that have no gradient, as in TensorFlow, although the outputs depend on them.
        build: makes the outputs of tensors for the inputs; None for the call of the op and nothing else.
    """

    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    differences: bool = True
    order: int = 2
    step: float = 1e-5
    held: tuple[str, ...] = ()
    build: Callable[..., Sequence[Any]] | None = None


def call(
    *inputs: Any, differences: bool = True, order: int = 2, step: float = 1e-5, held: Sequence[str] = (), **attrs: Any
) -> Example:
    """An example: these inputs, these attrs."""
    return Example(inputs, attrs, differences, order, step, tuple(held))


def within(build: Callable[..., Sequence[Any]], *inputs: Any, order: int = 2) -> Example:
    """An example of an op whose inputs or outputs are no arrays: a small graph around it, of tensors of the inputs."""
    return Example(inputs, {}, order=order, build=build)


class BoundRule:
    """A rule with the names of the attrs that it wants, so that calling it needs no inspection."""

    __slots__ = ("function", "keywords", "wants_call", "wants_node", "wants_state", "wants_sweep")

    def __init__(self, function: Rule) -> None:
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        self.wants_node = "node" in names
        self.wants_state = "state" in names
        self.wants_call = "call" in names
        self.wants_sweep = "sweep" in names
        self.keywords = tuple(name for name in names if name not in ("node", "state", "call", "sweep"))

    def __call__(self, node: Any, attrs: Mapping[str, Any], *arguments: Any, **extra: Any) -> Any:
        if not self.keywords and not self.wants_node:
            return self.function(*arguments, **extra)
        return self.bind(node, attrs)(*arguments, **extra)

    def bind(self, node: Any, attrs: Mapping[str, Any]) -> Rule:
        """The function with its keywords filled in from a node."""
        keywords = {name: attrs[name] for name in self.keywords}
        if self.wants_node:
            keywords["node"] = node
        return functools.partial(self.function, **keywords) if keywords else self.function


class Symbol:
    """Base of Tensor: something that belongs to a graph."""

    __slots__ = ()

    @property
    def graph(self) -> Graph:
        raise NotImplementedError


_current: contextvars.ContextVar[Graph | None] = contextvars.ContextVar("current_graph", default=None)


def current_graph() -> Graph:
    """The graph that `with graph.as_default()` made current. Raises InvalidArgument outside of one."""
    graph = _current.get()
    if graph is None:
        raise InvalidArgument("No graph is current: call this inside `with graph.as_default():`.")
    return graph


def set_current_graph(graph: Graph | None) -> contextvars.Token[Graph | None]:
    """Makes a graph current and returns the token that undoes it."""
    return _current.set(graph)


def reset_current_graph(token: contextvars.Token[Graph | None]) -> None:
    """Undoes `set_current_graph`."""
    _current.reset(token)


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One op type. Instances live in the catalogue and are compared by identity.

    Attributes:
        name: TensorFlow's op type.
        signature: inputs, attrs and outputs.
        shape: the shape rule, or None where nothing is known of the outputs' shapes.
        gradient: the gradient rule, or why there is none.
        kernel: the kernel, or None for ops that an engine handles itself (placeholders, function calls).
        host: names of the inputs that must be NumPy arrays in every engine (shapes, axes, permutations).
        static: computes a value from what is known of the inputs' shapes.
        broadcasts: the sweep sums cotangents over broadcast axes.
        holomorphic: the sweep conjugates around the rule for complex dtypes.
        takes_slices: the gradient rule accepts IndexedSlices as cotangent.
        stateful: two nodes with the same inputs may give different values: never folded, never merged.
        dynamic: an output's shape depends on the inputs' values: runs between compiled pieces.
        examples: a function from a Draw to a list of examples.
    """

    name: str
    signature: Signature
    shape: BoundRule | None
    gradient: BoundRule | NoRule
    kernel: BoundRule | None
    host: frozenset[str]
    static: BoundRule | None
    broadcasts: bool
    holomorphic: bool
    takes_slices: bool
    stateful: bool
    dynamic: bool
    examples: Callable[[Any], Sequence[Example]] | None
    host_slots: tuple[int, ...] = field(default=())

    def __repr__(self) -> str:
        return f"Op({self.name})"

    @property
    def takes_complex(self) -> bool:
        """Whether the attr T allows complex dtypes."""
        allowed = self.signature.attrs["T"].allowed
        return allowed is not None and any(dtype.is_complex for dtype in allowed)

    def __call__(self, *inputs: Any, name: str | None = None, **attrs: Any) -> Tensor:
        """Adds a node with one output and returns that output."""
        outputs = self.outputs(*inputs, name=name, **attrs)
        if len(outputs) != 1:
            raise InvalidArgument(f"{self.name} has {len(outputs)} outputs: use raw.{self.name}.outputs(...).")
        return outputs[0]

    def outputs(self, *inputs: Any, name: str | None = None, **attrs: Any) -> tuple[Tensor, ...]:
        """Adds a node and returns all its outputs."""
        return _graph_of(inputs).apply(self, inputs, attrs, name).outputs

    def run(self, *inputs: Any, name: str | None = None, **attrs: Any) -> Any:
        """Adds a node and returns the node itself, for ops that are run for their effect."""
        return _graph_of(inputs).apply(self, inputs, attrs, name)


def _graph_of(inputs: Sequence[Any]) -> Graph:
    for value in inputs:
        if isinstance(value, Symbol):
            return value.graph
        if isinstance(value, (list, tuple)):
            for entry in value:  # pyright: ignore[reportUnknownVariableType]
                if isinstance(entry, Symbol):
                    return entry.graph
    return current_graph()


_catalogue: dict[str, Op] = {}


def define(
    text: str,
    *,
    gradient: Rule | NoRule,
    shape: Rule | None = None,
    kernel: Rule | None = None,
    host: Sequence[str] = (),
    static: Rule | None = None,
    broadcasts: bool = False,
    holomorphic: bool = False,
    takes_slices: bool = False,
    stateful: bool = False,
    dynamic: bool = False,
    examples: Callable[[Any], Sequence[Example]] | None = None,
) -> Op:
    """Enters an op in the catalogue and returns it.

    Args:
        text: the signature (see gradserve.graph.signature).
        gradient: the rule, or NOT_DIFFERENTIABLE, MISSING, refused(why): stopping is said aloud.
        shape, kernel, host, static, broadcasts, holomorphic, takes_slices, stateful, dynamic, examples: see Op.

    Raises:
        InvalidArgument: the name is taken, or a rule wants an attr that the signature lacks.
    """
    parsed = _signature.parse(text)
    if parsed.name in _catalogue:
        raise InvalidArgument(f"The op {parsed.name} is defined twice.", op=parsed.name)
    input_names = [argument.name for argument in parsed.inputs]
    op = Op(
        parsed.name,
        parsed,
        _bind(parsed, shape),
        gradient if isinstance(gradient, NoRule) else BoundRule(gradient),
        _bind(parsed, kernel),
        frozenset(host),
        _bind(parsed, static),
        broadcasts,
        holomorphic,
        takes_slices,
        stateful,
        dynamic,
        examples,
        tuple(input_names.index(name) for name in host),
    )
    if isinstance(op.gradient, BoundRule):
        _check_keywords(parsed, op.gradient)
    _catalogue[op.name] = op
    return op


def _bind(signature: Signature, rule: Rule | None) -> BoundRule | None:
    if rule is None:
        return None
    bound = BoundRule(rule)
    _check_keywords(signature, bound)
    return bound


def _check_keywords(signature: Signature, rule: BoundRule) -> None:
    missing = [name for name in rule.keywords if name not in signature.attrs]
    if missing:
        raise InvalidArgument(f"A rule of {signature.name} wants attrs that it lacks: {', '.join(missing)}.")


def find(name: str) -> Op | None:
    """The op of this type, or None."""
    return _catalogue.get(name)


def lookup(name: str) -> Op:
    """The op of this type. Raises NotFound."""
    op = _catalogue.get(name)
    if op is None:
        raise NotFound(f"There is no op type {name}.", op=name)
    return op


def catalogue() -> Mapping[str, Op]:
    """Every op defined so far, by name."""
    return _catalogue


class _Raw:
    """Ops by attribute: `raw.MatMul` is the op MatMul, looked up when it is used and not before."""

    def __getattr__(self, name: str) -> Op:
        op = _catalogue.get(name)
        if op is None:
            raise AttributeError(f"There is no op type {name}.")
        return op


raw = _Raw()


def unary(
    name: str,
    y: Rule,
    dx: Rule | NoRule,
    *,
    types: str = "inexact",
    domain: str = "normal",
    order: int = 2,
    holomorphic: bool = True,
    differences: bool = True,
    argument: str = "x",
    result: str = "y",
    takes_slices: bool = False,
) -> Op:
    """A row: an elementwise op of one input. `dx` is a function of (dy, y, x); `y` of (xp, x).

    `domain` names the Draw method that makes its test inputs; where the types allow it, complex ones are tried too.
    """

    def examples(draw: Any) -> list[Example]:
        domains = [domain, "complex"] if defined.takes_complex else [domain]
        shape = draw.shape()
        return [call(getattr(draw, kind)(*shape), order=order, differences=differences) for kind in domains]

    defined = define(
        f"{name}({argument}: T; T: {types}) -> ({result}: T)",
        shape=same_shape,
        gradient=dx,
        kernel=y,
        holomorphic=holomorphic,
        takes_slices=takes_slices,
        examples=examples,
    )
    return defined


def binary(
    name: str,
    z: Rule,
    dx_dy: Rule | NoRule,
    *,
    types: str = "arithmetic",
    domain: tuple[str, str] = ("normal", "normal"),
    order: int = 2,
    result: str = "T",
    holomorphic: bool = True,
    arguments: tuple[str, str] = ("x", "y"),
    complex_examples: bool = True,
    takes_slices: bool = False,
) -> Op:
    """A row: a broadcasting elementwise op of two inputs. `dx_dy` is a function of (dz, z, x, y).

    `complex_examples=False` where the types allow complex numbers, but no kernel takes them.
    """

    def examples(draw: Any) -> list[Example]:
        complex_too = complex_examples and defined.takes_complex
        domains = [domain, ("complex", "complex")] if complex_too else [domain]
        x, y = draw.broadcastable_shapes()
        return [call(getattr(draw, a)(*x), getattr(draw, b)(*y), order=order) for a, b in domains]

    defined = define(
        f"{name}({arguments[0]}: T, {arguments[1]}: T; T: {types}) -> (z: {result})",
        shape=broadcast_shape,
        gradient=dx_dy,
        kernel=z,
        broadcasts=True,
        holomorphic=holomorphic,
        takes_slices=takes_slices,
        examples=examples,
    )
    return defined


def same_shape(x: Tensor, *others: Any) -> Any:
    """Shape rule: that of the first input."""
    return x.shape


def scalar_shape(*inputs: Any) -> Any:
    """Shape rule: a scalar."""
    return ()


def broadcast_shape(*inputs: Tensor) -> Any:
    """Shape rule: all inputs broadcast together."""
    result = inputs[0].shape
    for other in inputs[1:]:
        result = shapes.broadcast(result, other.shape)
    return result
