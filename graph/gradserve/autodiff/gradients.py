"""Reverse mode on a graph: adds the nodes that compute the partial derivatives of ys with respect to xs.

The plan, in order:
    seed      a cotangent for every y: ones, or the caller's
    mark      the nodes that lie between: reachable from the xs, and from which a y is reachable
    sweep     backwards over them, each once all its cotangents are in: aggregate, call the op's rule, hand on
    collect   the cotangents of the xs; what leads to none of them is dropped again

The contract is that of TensorFlow's tf.gradients with the differences that docs/semantics.md lists. The order
of the walk is TensorFlow's, because it fixes names and the order of sums.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradserve.autodiff.aggregate import (
    AggregationMethod,
    Cotangent,
    aggregate,
    as_method,
    deduplicate,
)
from gradserve.autodiff.custom import apply_custom, custom_gradient, missing_gradient
from gradserve.autodiff.hidden import NOTHING, Hidden, holders, in_body
from gradserve.autodiff.why_none import Reason, explain
from gradserve.errors import GradserveError, InvalidArgument, InvalidSeed, InvalidShape, InvalidType, NoGradient
from gradserve.graph import collector, dtypes, op, shapes
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor, group, to_array
from gradserve.graph.handles import held_by
from gradserve.graph.op import NoRule, Op, raw
from gradserve.graph.unbroadcast import unbroadcast
from gradserve.ops.left_out import reason
from gradserve.ops.slices import densify

UNCONNECTED = ("none", "zero")


class Gradients(list[Cotangent | None]):
    """One entry for each x: a Tensor, an IndexedSlices, or None; `reasons[i]` says why entry i is None."""

    def __init__(self, entries: Sequence[Cotangent | None], reasons: Sequence[Reason | None]) -> None:
        super().__init__(entries)
        self.reasons = list(reasons)


def gradients(
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    name: str | None = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: Any = None,
    stop_gradients: Any = None,
    unconnected_gradients: str = "none",
    *,
    deduplicate_slices: bool = False,
) -> Gradients:
    """Adds to the graph of ys the nodes that compute, for each x, the sum over all ys of dy/dx.

    Args:
        ys, xs: a Tensor or a list. Python numbers and arrays become constants, hence unconnected.
            An IndexedSlices is allowed among ys.
        grad_ys: a seed for each y (Tensor, array, IndexedSlices) or None for ones. Dtype and shape must be y's.
        name: the scope of the added nodes, made unique; None means "gradients".
        colocate_gradients_with_ops: each added node gets the `_class` and device of the forward node it serves.
        gate_gradients: a node's gradients are used only once all of them are there.
        aggregation_method: an AggregationMethod, its number or its name.
        stop_gradients: tensors to treat as constants. Only the tensor named stops, not its op's other outputs.
        unconnected_gradients: "none", or "zero" for zeros of x's shape in place of None.
        deduplicate_slices: every index of an IndexedSlices once, in rising order.

    Raises:
        NoGradient (a LookupError): an op between x and y has no gradient; names the op and the path from y.
        InvalidArgument, InvalidSeed, InvalidShape (ValueErrors), InvalidType (a TypeError).
        Nothing has been added to the graph when it raises.
    """
    if unconnected_gradients not in UNCONNECTED:
        raise InvalidArgument(
            f"Unknown value for unconnected_gradients: {unconnected_gradients!r}. Use 'none' or 'zero'.",
            value=unconnected_gradients,
        )
    y_list, x_list, stop_list = (_as_list(value) for value in (ys, xs, stop_gradients))
    seeds = [None] * len(y_list) if grad_ys is None else _as_list(grad_ys)
    if len(seeds) != len(y_list):
        raise InvalidArgument(f"Length mismatch. Passed {len(seeds)} grad_ys for {len(y_list)} ys")
    graph = _graph_of(y_list, x_list)
    if graph is None:
        return Gradients([None] * len(x_list), [None] * len(x_list))
    with collector.paused(), graph.transaction() as start, graph.as_default():
        request = _Request(
            graph,
            colocate_gradients_with_ops,
            gate_gradients,
            as_method(aggregation_method),
            [_tensor(graph, value, "ys", k) for k, value in enumerate(y_list)],
            [_tensor(graph, value, "xs", k) for k, value in enumerate(x_list)],
            frozenset(_tensor(graph, value, "stop_gradients", k) for k, value in enumerate(stop_list)),
        )
        if graph.raised.added:
            request = replace(request, hidden=_names_of(request))
        with graph.name_scope("gradients" if name is None else name) as scope:
            graph.reserve_name(f"{scope}uid")
            found = _Sweep(request).run(seeds, y_list)
            if deduplicate_slices:
                found = [deduplicate(dx) if isinstance(dx, IndexedSlices) else dx for dx in found]
        reasons = [
            None if dx is not None else explain(request.ys, x, request.stops)
            for dx, x in zip(found, request.xs, strict=True)
        ]
        if unconnected_gradients == "zero":
            found = [_zeros(x) if dx is None else dx for dx, x in zip(found, request.xs, strict=True)]
        graph.keep(start, live(start, [*found, *request.ys, *request.xs]))
    return Gradients(found, reasons)


@dataclass(frozen=True, slots=True)
class _Request:
    """The arguments of one call, checked and converted; `hidden` are tensors to look for in branches as well."""

    graph: Graph
    colocate: bool
    gate: bool
    method: AggregationMethod
    ys: list[Tensor]
    xs: list[Tensor]
    stops: frozenset[Tensor]
    hidden: Hidden = NOTHING


def _names_of(request: _Request) -> Hidden:
    named = ([x.name for x in tensors if x.dtype.is_trainable] for tensors in (request.xs, request.stops))
    return Hidden(*(tuple(dict.fromkeys(names)) for names in named))


class _Sweep:
    """The walk of one call.

    Invariant: `cotangents[t]` holds every term that a processed consumer has sent to tensor t, in the order in
    which they were sent; a node is processed when `pending` of it has reached 0.

    Attributes:
        holders: conditionals that hold an x or a stop in a branch.
        held: what they sent to such an x.
    """

    def __init__(self, request: _Request) -> None:
        self.request = request
        self.graph = request.graph
        self.cotangents: dict[Tensor, list[Cotangent]] = {}
        self.holders = holders(self.graph, request.hidden)
        self.held: dict[str, list[tuple[Node, Cotangent]]] = {}
        self.reached = _forward(request.xs, [node for node, hidden in self.holders.items() if hidden.xs])
        self.pending = _pending(request.ys, self.reached)
        self.boundary = _boundary(request.xs, self.pending)
        self.totals: dict[Tensor, Cotangent | None] = {}
        self.came_from: dict[Node, Tensor] = {}

    def run(self, seeds: Sequence[Any], given_ys: Sequence[Any]) -> list[Cotangent | None]:
        """Seeds, sweeps and collects."""
        for k, (y, seed, given) in enumerate(zip(self.request.ys, seeds, given_ys, strict=True)):
            self._seed(k, y, seed, given)
        queue: deque[Node] = deque()
        queued: set[Node] = set()
        for y in self.request.ys:
            if y.node in self.pending and not self.pending[y.node] and y.node not in queued:
                queued.add(y.node)
                queue.append(y.node)
        while queue:
            node = queue.popleft()
            self._process(node)
            for tensor in node.inputs:
                source = tensor.node
                if source in self.pending:
                    self.pending[source] -= 1
                    if not self.pending[source]:
                        queue.append(source)
        return [self._with_held(self._total(x), x.name) for x in self.request.xs]

    # Seeds

    def _seed(self, k: int, y: Tensor, seed: Any, given: Any) -> None:
        if y.node not in self.reached:
            if seed is None and not isinstance(given, IndexedSlices):
                _check_default(k, y)
            _check_seed(k, y, seed)
            return
        with self._beside(y.node):
            if isinstance(given, IndexedSlices):
                cotangent = _slices_seed(k, given, seed)
            elif seed is None:
                cotangent = _ones(k, y)
            elif isinstance(seed, IndexedSlices):
                _check_seed(k, y, seed)
                cotangent = IndexedSlices(
                    *(
                        raw.Identity(part, name=f"grad_ys_{k}_{kind}")
                        for part, kind in zip(
                            (seed.values, seed.indices, seed.dense_shape),
                            ("values", "indices", "shape"),
                            strict=True,
                        )
                    )
                )
            else:
                cotangent = raw.Identity(_check_seed(k, y, seed), name=f"grad_ys_{k}")
        self.cotangents.setdefault(y, []).append(cotangent)

    # What rules of functions and loops ask for

    def wants(self, tensor: Tensor) -> bool:
        """Whether a cotangent of this tensor leads to an x."""
        return tensor.node in self.pending and tensor.dtype.is_trainable

    def inside(
        self, ys: Sequence[Tensor], xs: Sequence[Tensor], seeds: Sequence[Tensor], hidden: Hidden = NOTHING
    ) -> list[Cotangent | None]:
        """Gradients within the body of a function, with this call's options; those of `hidden.xs` follow."""
        outer, graph = self.request, ys[0].graph if ys else xs[0].graph
        local = in_body(graph, hidden.xs)
        request = _Request(
            graph, False, outer.gate, outer.method, list(ys), [*xs, *local],
            frozenset(in_body(graph, hidden.stops)), hidden,
        )  # fmt: skip
        with graph.transaction() as start, graph.as_default(), graph.name_scope("gradients"):
            sweep = _Sweep(request)
            found = sweep.run(seeds, ys)
            named = {x.name: dx for x, dx in zip(local, found[len(xs) :], strict=True)}
            found = found[: len(xs)]
            found += [named[name] if name in named else sweep._with_held(None, name) for name in hidden.xs]
            graph.keep(start, live(start, [*found, *request.ys, *request.xs]))
        return found

    def hidden(self, node: Node) -> Hidden:
        """The xs and stops that lie in branches of a node."""
        return self.holders.get(node, NOTHING)

    def hold(self, node: Node, name: str, dx: Cotangent) -> None:
        """Keeps the gradient of an x in a branch of a node."""
        self.held.setdefault(name, []).append((node, dx))

    def _with_held(self, total: Cotangent | None, name: str) -> Cotangent | None:
        """The gradient of an x with what conditionals that hold it have sent; made once the walk has ended."""
        held = self.held.get(name)
        if not held:
            return total
        terms = [dx for _, dx in held] if total is None else [total, *(dx for _, dx in held)]
        return aggregate(self.graph, held[0][0], terms, self.request.method)

    # The walk

    def _beside(self, node: Node) -> Any:
        return self.graph.colocate_with(node) if self.request.colocate else ExitStack()

    def _total(self, tensor: Tensor) -> Cotangent | None:
        """The aggregated cotangent of a tensor, made once."""
        if tensor not in self.totals:
            terms = self.cotangents.pop(tensor, None)
            self.totals[tensor] = aggregate(self.graph, tensor.node, terms, self.request.method) if terms else None
        return self.totals[tensor]

    def _process(self, node: Node) -> None:
        outputs = node.outputs
        with self._beside(node):
            totals = [self._total(tensor) for tensor in outputs]
            flowing = [
                None if tensor in self.request.stops else total for tensor, total in zip(outputs, totals, strict=True)
            ]
            if node in self.boundary or all(total is None for total in flowing):
                return
            rule = self._rule(node)
            if rule is None:
                return
            sources = [tensor for tensor in node.inputs if tensor.node in self.pending]
            if not any(tensor.dtype.is_trainable for tensor in sources) and node not in self.holders:
                return
            complete = [
                raw.ZerosLike(tensor, name="zeros_like") if total is None and tensor.dtype.is_trainable else total
                for tensor, total in zip(outputs, flowing, strict=True)
            ]
            for tensor, zeros in zip(outputs, complete, strict=True):
                if self.totals[tensor] is None:  # an x beside an output that y depends on gets these zeros
                    self.totals[tensor] = zeros
            scope = node.name
            with self.graph.name_scope(f"{scope}_grad"):
                results = rule(complete)
                if self.request.gate:
                    results = _gate(self.graph, results)
        for tensor, result in zip(node.inputs, results, strict=True):
            if result is not None and tensor.node in self.pending:
                self.cotangents.setdefault(tensor, []).append(result)
                self.came_from.setdefault(tensor.node, outputs[0])

    def _rule(self, node: Node) -> Callable[[Sequence[Cotangent | None]], list[Cotangent | None]] | None:
        """What makes the cotangents of a node's inputs of those of its outputs; None for a gradient of None."""
        custom = custom_gradient(node)
        if custom is not None:
            return lambda cotangents: apply_custom(custom, node, [_whole(term) for term in cotangents])
        override = node.attrs.get("_gradient_op_type")
        definition = node.op if override is None else op.find(override)
        if definition is None:
            if override is not None:
                raise self._no_gradient(node, missing_gradient(override))
            left_out = reason(node.type)
            raise self._no_gradient(node, f"the op is left out, because {left_out}" if left_out else op.MISSING.why)
        rule = definition.gradient
        if isinstance(rule, NoRule):
            if rule.kind == "none":
                return None
            said = node.attrs.get("message")  # PreventGradient's, in the words of whoever put it there
            raise self._no_gradient(node, f"{rule.why}. Reason: {said}" if said else rule.why)
        return lambda cotangents: self._apply_rule(node, definition, rule, cotangents)

    def _no_gradient(self, node: Node, why: str) -> NoGradient:
        path = [node.name]
        seen = {node}
        step = node
        while step in self.came_from:
            step = self.came_from[step].node
            if step in seen:
                break
            seen.add(step)
            path.append(step.name)
        route = " <- ".join(reversed(path))
        return NoGradient(
            f"No gradient defined for operation {node.name!r} (op type: {node.type}): {why}. Path from y: {route}.",
            node=node.name, op=node.type, path=route,
        )  # fmt: skip

    def _apply_rule(
        self, node: Node, definition: Op, rule: op.BoundRule, cotangents: Sequence[Cotangent | None]
    ) -> list[Cotangent | None]:
        """The cotangents of a node's inputs. Raises InvalidArgument where its inputs and attrs make no sense."""
        try:
            results = self._terms(node, definition, rule, cotangents)
        except GradserveError:
            raise
        except (*op.FAILURES, MemoryError) as error:
            raise InvalidArgument(
                f"No gradient of {node.name} ({node.type}) follows from its inputs and attrs: {error}.",
                node=node.name, op=node.type,
            ) from error  # fmt: skip
        for slot, (term, tensor) in enumerate(zip(results, node.inputs, strict=True)):
            _merge_shape(node, slot, term, tensor)
        return results

    def _terms(
        self, node: Node, definition: Op, rule: op.BoundRule, cotangents: Sequence[Cotangent | None]
    ) -> list[Cotangent | None]:
        if not definition.takes_slices:
            cotangents = [_whole(term) for term in cotangents]
        conjugate = definition.holomorphic and any(tensor.dtype.is_complex for tensor in node.outputs)
        if conjugate:
            cotangents = [_conj(term) for term in cotangents]
        signature = definition.signature
        extra = {"sweep": self} if rule.wants_sweep else {}
        returned = rule(
            node,
            node.attrs,
            *group(signature.outputs, node.attrs, cotangents),
            *group(signature.outputs, node.attrs, node.outputs),
            *node.arguments(),
            **extra,
        )
        results = _flatten(returned)
        if len(results) != len(node.inputs):
            raise InvalidArgument(
                f"Num gradients {len(results)} generated for op {node.name} do not match num inputs {len(node.inputs)}",
                node=node.name,
            )
        if conjugate:
            results = [_conj(term) for term in results]
        if definition.broadcasts:
            results = [
                None if term is None else _led_back(term, node.inputs, slot) for slot, term in enumerate(results)
            ]
        return results


def _whole(term: Cotangent | None) -> Tensor | None:
    return densify(term) if isinstance(term, IndexedSlices) else term


def _led_back(term: Cotangent, inputs: Sequence[Tensor], slot: int) -> Cotangent:
    """A cotangent summed over the axes along which its input was broadcast; slices stay so where it surely was not."""
    x = inputs[slot]
    if isinstance(term, IndexedSlices):
        if all(shapes.is_kept(x.shape, other.shape) for k, other in enumerate(inputs) if k != slot):
            return term
        term = densify(term)
    return unbroadcast(term, x)


def _forward(xs: Sequence[Tensor], holding: Sequence[Node]) -> set[Node]:
    """The nodes that the xs reach through tensors of trainable dtypes, the xs' own nodes and what holds xs included."""
    reached = {x.node for x in xs} | set(holding)
    queue = deque(reached)
    while queue:
        node = queue.popleft()
        for tensor in node.outputs:
            if tensor.dtype.is_trainable:
                for consumer, _ in tensor.consumers:
                    if consumer not in reached:
                        reached.add(consumer)
                        queue.append(consumer)
    return reached


def _pending(ys: Sequence[Tensor], reached: set[Node]) -> dict[Node, int]:
    """For each node between xs and ys, the number of edges into nodes between that read it."""
    between: dict[Node, int] = {}
    queue: deque[Node] = deque()
    for y in ys:
        if y.node in reached and y.node not in between:
            between[y.node] = 0
            queue.append(y.node)
    while queue:
        node = queue.popleft()
        for tensor in node.inputs:
            source = tensor.node
            if source in reached and source not in between:
                between[source] = 0
                queue.append(source)
    for node in between:
        for tensor in node.inputs:
            if tensor.node in between:
                between[tensor.node] += 1
    return between


def _boundary(xs: Sequence[Tensor], pending: dict[Node, int]) -> set[Node]:
    """The xs' nodes that no other x lies before: their own rules are not needed."""
    return {x.node for x in xs if not any(pending.get(tensor.node, 0) > 0 for tensor in x.node.inputs)}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _graph_of(ys: Sequence[Any], xs: Sequence[Any]) -> Graph | None:
    for value in (*ys, *xs):
        if isinstance(value, Tensor):
            return value.graph
        if isinstance(value, IndexedSlices) and isinstance(value.values, Tensor):
            return value.values.graph
    return None


def _tensor(graph: Graph, value: Any, what: str, position: int) -> Tensor:
    if isinstance(value, IndexedSlices) and what == "ys":
        value = value.values
    if isinstance(value, Tensor):
        if value.graph is not graph:
            raise InvalidArgument(f"{what}[{position}] ({value.name}) must be from the same graph as ys.")
        return value
    if value is None or isinstance(value, (Node, IndexedSlices, dict)):
        kind = type(value).__name__
        raise InvalidType(f"{what}[{position}] must be a tensor, not {kind}.", position=position, type=kind)
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Tensor) for entry in value):
        return raw.Pack(list(value))
    return graph.constant(value)


def _check_seed(k: int, y: Tensor, seed: Any) -> Any:
    """The explicit seed as a Tensor of y's dtype and shape; None where the default seed is meant."""
    if seed is None:
        return None
    parts = seed.values if isinstance(seed, IndexedSlices) else seed
    if isinstance(parts, Node):
        raise InvalidType(f"grad_ys[{k}] must be a tensor, not Node.", position=k, type="Node")
    tensor: Any = parts
    if not y.dtype.is_numeric and y.dtype.kind not in "vr":
        raise InvalidType(f"ys[{k}] ({y.name}) is {y.dtype}: it must be numeric to take a seed.", tensor=y.name)
    if not isinstance(tensor, Tensor):
        array = to_array(tensor, None if isinstance(tensor, np.ndarray) else _seed_dtype(y, tensor))
        tensor = y.graph.constant(array, dtypes.as_dtype(array.dtype))
    if tensor.dtype.base is not y.dtype.base:
        raise InvalidSeed(
            f"grad_ys[{k}] is {tensor.dtype.base}, but ys[{k}] ({y.name}) is {y.dtype.base}: they must be the same.",
            position=k, tensor=y.name,
        )  # fmt: skip
    if isinstance(seed, IndexedSlices):
        return seed
    if not shapes.compatible(tensor.shape, y.shape):
        raise InvalidSeed(
            f"grad_ys[{k}] has shape {tensor.shape}, but ys[{k}] ({y.name}) has {y.shape}: they must be the same.",
            position=k, tensor=y.name,
        )  # fmt: skip
    return tensor


def _seed_dtype(y: Tensor, value: Any) -> Any:
    """Python numbers and lists take y's dtype where they fit it without loss of kind."""
    kind = np.asarray(value).dtype.kind
    return None if (kind == "c" and not y.dtype.is_complex) or (kind == "f" and y.dtype.is_integer) else y.dtype


def _ones(k: int, y: Tensor) -> Tensor:
    _check_default(k, y)
    shape = _shape_of(y)
    one = y.graph.constant(np.ones((), y.dtype.numpy), y.dtype.base, name=f"grad_ys_{k}/Const")
    return raw.Fill(shape, one, name=f"grad_ys_{k}")


def _check_default(k: int, y: Tensor) -> None:
    """Raises InvalidType where ones are no seed of y."""
    if y.dtype.is_complex:
        raise InvalidType(
            f"Gradients of complex tensors ({y.name}) must set grad_ys (y.dtype = {y.dtype})", tensor=y.name
        )
    if not y.dtype.is_numeric and y.dtype.kind != "b":
        raise InvalidType(f"ys[{k}] ({y.name}) is {y.dtype}, which has no default gradient.", tensor=y.name)


def _slices_seed(k: int, y: IndexedSlices, seed: Any) -> Tensor:
    """The seed of an IndexedSlices y, as a cotangent of its values."""
    if seed is None:
        return _ones(k, y.values)
    if isinstance(seed, IndexedSlices):
        seed = densify(seed)
    elif not isinstance(seed, Tensor):
        seed = y.values.graph.constant(to_array(seed, y.values.dtype), y.values.dtype)
    if seed.dtype is not y.values.dtype:
        raise InvalidSeed(f"grad_ys[{k}] is {seed.dtype}, but ys[{k}] is {y.values.dtype}.", position=k)
    return raw.GatherV2(raw.Identity(seed, name=f"grad_ys_{k}"), y.indices, 0)


def _shape_of(tensor: Tensor) -> Tensor:
    if tensor.shape is None or not shapes.is_static(tensor.shape):
        return raw.Shape(tensor)
    shape = np.array(tensor.shape, np.int64)
    kind = dtypes.int32 if shape.max(initial=0) < 2**31 else dtypes.int64
    return tensor.graph.constant(shape.astype(kind.numpy), kind, name="Shape")


def _zeros(x: Tensor) -> Tensor:
    """Zeros of x's shape and dtype; for a resource variable those of its value."""
    if x.dtype.kind != "r":
        return raw.ZerosLike(x, name="zeros_like")
    dtype, shape = held_by(x)
    if dtype is None:
        raise InvalidType(f"Nothing in the graph says what the resource {x.name} holds.", tensor=x.name)
    if not shapes.is_static(shape):
        return raw.ZerosLike(raw.ReadVariableOp(x, dtype=dtype), name="zeros")
    zero = np.zeros((), dtype.numpy)
    return raw.Fill(np.array(shape, np.int32), x.graph.constant(zero, dtype), name="zeros")


def _conj(term: Any) -> Any:
    return raw.Conj(term) if isinstance(term, Tensor) and term.dtype.is_complex else term


def _flatten(returned: Any) -> list[Cotangent | None]:
    """A rule's return as a flat list: one value stands alone, lists belong to list inputs."""
    if not isinstance(returned, (list, tuple)):
        return [returned]
    flat: list[Any] = []
    for entry in returned:  # pyright: ignore[reportUnknownVariableType]
        flat.extend(entry) if isinstance(entry, (list, tuple)) else flat.append(entry)  # pyright: ignore[reportUnknownArgumentType]
    return flat


def _merge_shape(node: Node, slot: int, term: Cotangent | None, tensor: Tensor) -> None:
    """Gives a dense cotangent what is known of its input's shape. Raises InvalidShape when they contradict."""
    if not isinstance(term, Tensor) or tensor.dtype.kind in "rv" or term.shape == tensor.shape:
        return
    try:
        term.shape = shapes.merge(term.shape, tensor.shape)
    except InvalidShape:
        raise InvalidShape(
            "Incompatible shapes between op input and calculated input gradient. "
            f"Forward operation: {node.name}. Input index: {slot}. Original input shape: {tensor.shape}. "
            f"Calculated input gradient shape: {term.shape}",
            node=node.name, op=node.type, slot=slot,
        ) from None  # fmt: skip


def _gate(graph: Graph, results: list[Cotangent | None]) -> list[Cotangent | None]:
    """Ties the gradients of one op together, where they stand: none is used before all are there."""
    if sum(term is not None for term in results) < 2:
        return results
    nodes = sorted(
        {part.node for term in results if term is not None for part in _parts(term)}, key=lambda node: node.id
    )
    devices = {node.device for node in nodes}
    place = devices.pop() if len(devices) == 1 else None
    with graph.name_scope("tuple"):
        with graph.colocate_with(None), graph.device(None), graph.device(place), graph.control_dependencies(nodes):
            done = raw.NoOp.run(name="group_deps")

        def gated(tensor: Tensor) -> Tensor:
            with graph.colocate_with(tensor), graph.control_dependencies([done]):
                return raw.Identity(tensor, name="control_dependency")

        return [
            gated(term) if isinstance(term, Tensor)
            else None if term is None
            else IndexedSlices(gated(term.values), gated(term.indices), term.dense_shape)
            for term in results
        ]  # fmt: skip


def _parts(term: Cotangent) -> Iterator[Tensor]:
    if isinstance(term, Tensor):
        yield term
    else:
        yield from (term.values, term.indices, term.dense_shape)


def live(start: int, found: Sequence[Cotangent | None]) -> frozenset[Node]:
    """Of the nodes added since rank `start`, those that a result needs."""
    stack = [part.node for term in found if term is not None for part in _parts(term)]
    needed: set[Node] = set()
    while stack:
        node = stack.pop()
        if node.id >= start and node not in needed:
            needed.add(node)
            stack.extend(tensor.node for tensor in node.inputs)
            stack.extend(node.control_inputs)
    return frozenset(needed)
