"""The graph: nodes that are only ever appended, and the tensors between them.

A `Graph` keeps these invariants: names are unique; a node's inputs exist before it; a node never changes once it has
been added. `gradients()` therefore only extends.
Names, scopes and uniquifying follow TensorFlow: the first `Mul` is `Mul`, the next `Mul_1`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import GradserveError, InvalidArgument, InvalidGraph, InvalidType, NotFound
from gradserve.graph import devices, dtypes, op, shapes
from gradserve.graph.dtypes import DType
from gradserve.graph.indexing import index
from gradserve.graph.library import Library
from gradserve.graph.op import Op, Symbol, raw
from gradserve.graph.raising import Raised
from gradserve.graph.shapes import Shape
from gradserve.graph.signature import REQUIRED, Argument

UNKNOWN_YET: Any = object()
_ANYWHERE = devices.Device()


MOST_TENSORS = 1 << 16
"""Inputs, or outputs, of one node: an attr of a few bytes may ask for any number."""


@dataclass(frozen=True, slots=True)
class FunctionName:
    """The value of an attr of kind `func`: a function of the library and the attrs that it is called with."""

    name: str
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class IndexedSlices:
    """A sparse gradient: row `values[i]` belongs to row `indices[i]` of an array of shape `dense_shape`.

    The three are Tensors in a graph and NumPy arrays in a result. An index may occur several times: rows add up.
    """

    values: Any
    indices: Any
    dense_shape: Any

    def __neg__(self) -> IndexedSlices:
        return IndexedSlices(-self.values, self.indices, self.dense_shape)


class Tensor(Symbol):
    """One output of a node.

    Attributes:
        node, index: whose output, and which.
        dtype: element type.
        shape: what is known of the shape.
        consumers: the (node, input slot) pairs that read it.
        static_cache: what gradserve.graph.static found out of its value.
    """

    __slots__ = ("consumers", "dtype", "index", "node", "shape", "static_cache")

    __array_ufunc__ = None
    """So that NumPy leaves `array + tensor` to the tensor, in place of an array of tensors."""

    def __init__(self, node: Node, index: int, dtype: DType, shape: Shape) -> None:
        self.node = node
        self.index = index
        self.dtype = dtype
        self.shape = shape
        self.consumers: list[tuple[Node, int]] = []
        self.static_cache: Any = UNKNOWN_YET

    @property
    def graph(self) -> Graph:
        return self.node.graph

    @property
    def name(self) -> str:
        """`node:index`, as on the wire."""
        return f"{self.node.name}:{self.index}"

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __repr__(self) -> str:
        return f"<Tensor {self.name} {self.dtype} {self.shape}>"

    def __add__(self, other: Any) -> Tensor:
        return raw.AddV2(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return raw.AddV2(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return raw.Sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return raw.Sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return raw.Mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return raw.Mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return raw.RealDiv(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return raw.RealDiv(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return raw.FloorDiv(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return raw.FloorDiv(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return raw.FloorMod(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return raw.FloorMod(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return raw.Pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return raw.Pow(other, self)

    def __neg__(self) -> Tensor:
        return raw.Neg(self)

    def __abs__(self) -> Tensor:
        return raw.ComplexAbs(self) if self.dtype.is_complex else raw.Abs(self)

    def __matmul__(self, other: Any) -> Tensor:
        return _product(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _product(other, self)

    def __and__(self, other: Any) -> Tensor:
        return raw.LogicalAnd(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return raw.LogicalAnd(other, self)

    def __or__(self, other: Any) -> Tensor:
        return raw.LogicalOr(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return raw.LogicalOr(other, self)

    def __invert__(self) -> Tensor:
        return raw.LogicalNot(self)

    def __getitem__(self, key: Any) -> Tensor:
        return index(self, key)

    def __lt__(self, other: Any) -> Tensor:
        return raw.Less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return raw.LessEqual(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return raw.Greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return raw.GreaterEqual(self, other)

    def __bool__(self) -> bool:
        raise InvalidType(
            f"The tensor {self.name} has no truth value before it is run: use Select or a comparison op.",
            tensor=self.name,
        )

    def __iter__(self) -> Iterator[Tensor]:
        raise InvalidType(f"The tensor {self.name} can't be iterated: use raw.Unpack.outputs(...).", tensor=self.name)


def _product(a: Any, b: Any) -> Tensor:
    ranks = [x.rank if isinstance(x, Tensor) else np.ndim(x) for x in (a, b)]
    return raw.MatMul(a, b) if ranks == [2, 2] else raw.BatchMatMulV2(a, b)


class Node:
    """One op in a graph.

    Attributes:
        name: unique in the graph.
        type: TensorFlow's op type.
        op: what the catalogue knows of it, or None for an unknown type.
        attrs: every attr, defaults included; see Graph for the Python types of the values.
        inputs, control_inputs: what it reads, and what it runs after.
        device: device string, "" where nothing is said.
        outputs: its tensors.
        id: rank in the order of creation.
        source: the message that it was imported from, given back byte for byte on export.
        bodies: those that it has run, so that it need not look for them again.
    """

    __slots__ = (
        "_outputs", "attrs", "bodies", "control_inputs", "device", "graph", "id", "inputs", "name", "op",
        "source", "type",
    )  # fmt: skip

    def __init__(
        self,
        graph: Graph,
        name: str,
        type_name: str,
        definition: Op | None,
        inputs: tuple[Tensor, ...],
        attrs: Mapping[str, Any],
        control_inputs: tuple[Node, ...] = (),
        device: str = "",
        source: Any = None,
    ) -> None:
        self.graph = graph
        self.name = name
        self.type = type_name
        self.op = definition
        self.inputs = inputs
        self.attrs = attrs
        self.control_inputs = control_inputs
        self.device = device
        self.source = source
        self.bodies: tuple[Any, ...] | None = None
        self.id = -1
        self._outputs: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        return f"<Node {self.name} ({self.type})>"

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._outputs

    def output(self, index: int) -> Tensor:
        """Output number `index`. An unknown op grows outputs as they are asked for. Raises InvalidGraph."""
        if index < len(self._outputs):
            return self._outputs[index]
        if self.op is not None:
            raise InvalidGraph(
                f"{self.name} ({self.type}) has {len(self._outputs)} outputs; there is no {self.name}:{index}.",
                node=self.name, op=self.type, tensor=f"{self.name}:{index}",
            )  # fmt: skip
        grown = [Tensor(self, k, *_guessed(self, k)) for k in range(len(self._outputs), index + 1)]
        self._outputs += tuple(grown)
        return self._outputs[index]

    def double(
        self, name: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, Any], control_inputs: tuple[Node, ...]
    ) -> Node:
        """A node of the same type with outputs of the same dtypes and shapes, beside the graph and not in it."""
        double = Node(self.graph, name, self.type, self.op, inputs, attrs, control_inputs, self.device)
        double._outputs = tuple(Tensor(double, t.index, t.dtype, t.shape) for t in self._outputs)
        return double

    def anew(self, inputs: tuple[Tensor, ...], attrs: Mapping[str, Any], control_inputs: tuple[Node, ...]) -> Node:
        """The node for other inputs or attrs, beside the graph and not in it, with the shapes that follow from them.

        Raises InvalidShape and the like, as `Graph.append` does.
        """
        anew = Node(self.graph, self.name, self.type, self.op, inputs, attrs, control_inputs, self.device, self.source)
        anew.id = self.id
        if self.op is None:
            anew._outputs = tuple(Tensor(anew, t.index, t.dtype, t.shape) for t in self._outputs)
        else:
            _infer_outputs(anew, self.op)
            for before, tensor in zip(self._outputs, anew._outputs, strict=True):
                tensor.shape = shapes.merge(tensor.shape, before.shape)
        return anew

    @property
    def colocation_groups(self) -> list[str]:
        """The names of the nodes that it must stand beside; its own where none is named."""
        groups = [text[5:] for text in self.attrs.get("_class", ()) if text.startswith("loc:@")]
        return groups or [self.name]

    def arguments(self) -> list[Any]:
        """Its inputs as rules take them: one entry an argument, a list where the signature has a list."""
        if self.op is None:
            return list(self.inputs)
        signature = self.op.signature
        return group(signature.inputs, self.attrs, self.inputs) if signature.has_lists else list(self.inputs)

    def functions(self) -> list[FunctionName]:
        """The functions that its attrs name."""
        found: list[FunctionName] = []
        for value in self.attrs.values():
            entries: list[Any] = value if isinstance(value, list) else [value]
            found.extend(entry for entry in entries if isinstance(entry, FunctionName))
        return found


class Graph:
    """An append-only dataflow graph.

    Attr values are int, float, bool, str (bytes decoded with surrogateescape), DType, Shape wrapped in a tuple or
    None, NumPy arrays (kind `tensor`), FunctionName, or lists of these. Not thread-safe while it is built.

    Attributes:
        nodes: in an order in which they can run.
        source: the message that it was imported from.
        library: the functions that its nodes may call.
        raised: what has become of TF1's control flow in that message.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.source: Any = None
        self.library = Library()
        self.raised = Raised()
        self._by_name: dict[str, Node] = {}
        self._names: dict[str, int] = {}
        self._scope = ""
        self._device = _ANYWHERE
        self._colocation: tuple[Node, ...] = ()
        self._controls: tuple[Node, ...] = ()

    # Looking things up

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self.nodes)

    def node(self, name: str) -> Node:
        """The node of this name. Raises NotFound."""
        try:
            return self._by_name[name]
        except KeyError:
            frame = self.raised.inside.get(name)
            if frame is not None:
                raise NotFound(
                    f"The node {name!r} lies in the loop {frame} and has a value for each round: ask for an Exit.",
                    node=name, frame=frame,
                ) from None  # fmt: skip
            raise NotFound(f"The graph has no node {name!r}.", node=name) from None

    def tensor(self, name: str) -> Tensor:
        """The tensor `node:index` (`node` means `node:0`). Raises NotFound, InvalidArgument."""
        node_name, _, index = name.partition(":")
        if index and not index.isdigit():
            raise InvalidArgument(f"{name!r} is not a tensor name: write node:index.", tensor=name)
        if name.startswith("^"):
            raise InvalidArgument(f"{name!r} is a control input, not a tensor.", tensor=name)
        node = self.node(node_name)
        position = int(index or 0)
        if node.op is not None and position >= len(node.outputs):
            raise NotFound(
                f"{node_name} ({node.type}) has {len(node.outputs)} outputs; there is no {name}.",
                tensor=name, node=node_name, op=node.type,
            )  # fmt: skip
        return node.output(position)

    # Scopes

    @contextlib.contextmanager
    def as_default(self) -> Generator[Graph]:
        """Ops without tensor inputs (constants, placeholders) go to this graph inside the block."""
        token = op.set_current_graph(self)
        try:
            yield self
        finally:
            op.reset_current_graph(token)

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Generator[str]:
        """Prefixes names with `name/`, made unique; `name/` with the slash re-enters a scope; "" is the top."""
        outer = self._scope
        if name.endswith("/"):
            self._scope = name
        else:
            self._scope = f"{self.unique_name(name)}/" if name else ""
        try:
            yield self._scope
        finally:
            self._scope = outer

    @contextlib.contextmanager
    def device(self, text: str | None) -> Generator[None]:
        """Places the block's nodes; a nested device adds to the outer one, None clears it."""
        outer = self._device
        self._device = outer.merge(devices.parse(text)) if text else _ANYWHERE if text is None else outer
        try:
            yield
        finally:
            self._device = outer

    @contextlib.contextmanager
    def colocate_with(self, target: Node | Tensor | None) -> Generator[None]:
        """Keeps the block's nodes beside a node (None: clears it). The caller's device no longer applies."""
        outer, outer_device = self._colocation, self._device
        node = target.node if isinstance(target, Tensor) else target
        self._colocation = () if node is None else (node,)
        if node is not None:
            self._device = devices.parse(node.device) if node.device else _ANYWHERE
        try:
            yield
        finally:
            self._colocation, self._device = outer, outer_device

    @contextlib.contextmanager
    def control_dependencies(self, nodes: Sequence[Node | Tensor]) -> Generator[None]:
        """The block's nodes run after these."""
        outer = self._controls
        added = tuple(item.node if isinstance(item, Tensor) else item for item in nodes)
        self._controls = outer + tuple(node for node in added if node not in outer)
        try:
            yield
        finally:
            self._controls = outer

    @contextlib.contextmanager
    def transaction(self) -> Generator[int]:
        """Yields the number of nodes before; takes every addition back if the block raises."""
        start, functions = len(self.nodes), len(self.library.added)
        scopes = self._scope, self._device, self._colocation, self._controls
        try:
            yield start
        except BaseException:
            self._scope, self._device, self._colocation, self._controls = scopes
            self.keep(start, frozenset())
            self.library.keep(functions)
            raise

    def keep(self, start: int, wanted: frozenset[Node]) -> None:
        """Drops the nodes from rank `start` on that are not wanted; no kept node may read a dropped one."""
        dropped = [node for node in self.nodes[start:] if node not in wanted]
        gone = frozenset(dropped)
        for node in dropped:
            del self._by_name[node.name]
        for tensor in {tensor for node in dropped for tensor in node.inputs if tensor.node not in gone}:
            tensor.consumers = [pair for pair in tensor.consumers if pair[0] not in gone]
        self.nodes[start:] = [node for node in self.nodes[start:] if node not in gone]
        for rank in range(start, len(self.nodes)):
            self.nodes[rank].id = rank

    def unique_name(self, name: str) -> str:
        """The name in the current scope, with `_1`, `_2`, … where it is taken (letter case ignored)."""
        full = self._scope + name
        key = full.lower()
        count = self._names.get(key, 0)
        self._names[key] = count + 1
        if not count:
            return full
        candidate = f"{key}_{count}"
        while candidate in self._names:
            count += 1
            candidate = f"{key}_{count}"
        self._names[key] = count + 1
        self._names[candidate] = 1
        return f"{full}_{count}"

    def reserve_name(self, name: str) -> None:
        """Marks an imported name, and the scopes that it lies in, as taken."""
        key = name.lower()
        while key and key not in self._names:
            self._names[key] = 1
            key = key.rpartition("/")[0]

    # Adding nodes

    def apply(self, definition: Op, inputs: Sequence[Any], attrs: Mapping[str, Any], name: str | None = None) -> Node:
        """Adds a node: Python values among the inputs become constants, attrs are inferred from dtypes.

        Raises:
            InvalidArgument, InvalidType, InvalidShape: inputs or attrs do not fit the op.
        """
        tensors, complete = self._bind(definition, inputs, dict(attrs))
        device = "" if self._device is _ANYWHERE else str(self._device)
        if self._colocation:
            complete["_class"] = [f"loc:@{group}" for node in self._colocation for group in node.colocation_groups]
        # TensorFlow takes no name that begins with an underscore, as some op types do.
        unique = self.unique_name(name or definition.name.lstrip("_"))
        node = Node(self, unique, definition.name, definition, tuple(tensors), complete, self._controls, device)
        return self.append(node)

    def append(self, node: Node, shapes: Sequence[Shape] | None = None) -> Node:
        """Adds a finished node: checks it against its op's signature, infers dtypes and shapes.

        Args:
            node: a node of this graph, not added yet.
            shapes: those of its outputs where they are known already, and are not to be inferred.

        Raises:
            InvalidGraph: duplicate name, wrong arity, dtype or attr; the message names the node.
        """
        if node.name in self._by_name:
            raise InvalidGraph(f"Two nodes are called {node.name!r}: rename one.", node=node.name)
        if node.op is not None:
            _infer_outputs(node, node.op, shapes)
        node.id = len(self.nodes)
        self.nodes.append(node)
        self._by_name[node.name] = node
        for slot, tensor in enumerate(node.inputs):
            tensor.consumers.append((node, slot))
        return node

    def constant(self, value: Any, dtype: DType | None = None, name: str = "Const") -> Tensor:
        """A Const node. Python floats are float32 and ints int32 unless a dtype is given."""
        array = to_array(value, dtype)
        attrs = {"value": array, "dtype": dtype or dtypes.as_dtype(array.dtype)}
        return self.apply(op.lookup("Const"), (), attrs, name).outputs[0]

    def _bind(
        self, definition: Op, inputs: Sequence[Any], attrs: dict[str, Any]
    ) -> tuple[list[Tensor], dict[str, Any]]:
        arguments = definition.signature.inputs
        specs = definition.signature.attrs
        if len(inputs) != len(arguments):
            names = ", ".join(argument.name for argument in arguments)
            raise InvalidArgument(
                f"{definition.name} takes {len(arguments)} inputs ({names}), not {len(inputs)}.",
                op=definition.name,
            )
        for key in attrs:
            if key not in specs and not key.startswith("_"):
                raise InvalidArgument(f"{definition.name} has no attr {key!r}.", op=definition.name, attr=key)
            if key in specs and specs[key].kind == "type":
                attrs[key] = dtypes.as_dtype(attrs[key])
            elif key in specs and specs[key].kind == "list(type)":
                attrs[key] = [dtypes.as_dtype(entry) for entry in attrs[key]]
        for argument, value in zip(arguments, inputs, strict=True):
            _bind_types(argument, value, attrs)
        tensors: list[Tensor] = []
        for argument, value in zip(arguments, inputs, strict=True):
            if argument.is_list:
                tensors.extend(self._convert_list(definition, argument, value, attrs))
            else:
                tensors.append(self._convert(definition, argument, value, attrs, argument.type_attr))
        for key, spec in specs.items():
            if key not in attrs:
                if spec.default is REQUIRED:
                    raise InvalidArgument(f"{definition.name} needs the attr {key!r}.", op=definition.name, attr=key)
                attrs[key] = spec.default
        return tensors, attrs

    def _convert_list(
        self, definition: Op, argument: Argument, values: Sequence[Any], attrs: dict[str, Any]
    ) -> list[Tensor]:
        tensors = [self._convert(definition, argument, value, attrs, argument.type_attr) for value in values]
        if argument.number_attr:
            attrs[argument.number_attr] = len(tensors)
        else:
            attrs[argument.type_list_attr] = [tensor.dtype.base for tensor in tensors]
        return tensors

    def _convert(self, definition: Op, argument: Argument, value: Any, attrs: dict[str, Any], type_attr: str) -> Tensor:
        if isinstance(value, Tensor):
            if value.graph is not self:
                raise InvalidArgument(
                    f"{value.name} must be from the same graph as the node that reads it.", tensor=value.name
                )
            wanted = argument.dtype or attrs.get(type_attr)
            if wanted is not None and value.dtype is not wanted and value.dtype.base is not wanted.base:
                raise InvalidType(
                    f"Input {argument.name} of {definition.name} must be {wanted.base}, but {value.name} is "
                    f"{value.dtype.base}: add a Cast.",
                    op=definition.name, tensor=value.name, dtype=value.dtype.base,
                )  # fmt: skip
            return value
        dtype = argument.dtype or attrs.get(type_attr)
        if dtype is None and type_attr and not isinstance(value, np.ndarray):
            default = definition.signature.attrs[type_attr].default
            dtype = default if default is not REQUIRED else None
        if value is None:
            raise InvalidType(f"Input {argument.name} of {definition.name} is None.", op=definition.name)
        array = to_array(value, dtype)
        dtype = dtype or dtypes.as_dtype(array.dtype)
        if type_attr:
            attrs[type_attr] = dtype
        return self.constant(array, dtype)


def _bind_types(argument: Argument, value: Any, attrs: dict[str, Any]) -> None:
    """Reads the dtype attr that the tensors among an argument's values fix."""
    if not argument.type_attr or argument.type_attr in attrs:
        return
    for entry in value if argument.is_list else (value,):
        if isinstance(entry, Tensor):
            attrs[argument.type_attr] = entry.dtype.base
            return


def to_array(value: Any, dtype: DType | None = None) -> np.ndarray[Any, Any]:
    """A NumPy array of a Python value. Without a dtype, Python floats become float32 and ints int32.

    Raises InvalidType where the value does not fit the dtype (a float for an int, a string for a number).
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidType(f"{value!r} can't become one array: {error}.") from None
    if dtype is None:
        if isinstance(value, (np.ndarray, np.generic)) or array.dtype.kind not in "fi":
            return _text_to_bytes(array)
        narrow = np.float32 if array.dtype.kind == "f" else np.int32
        if narrow is np.int32 and array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            return array
        return array.astype(narrow)
    if dtype.kind == "s":
        return _text_to_bytes(array)
    if array.dtype.kind in "USO" or (dtype.kind in "iu" and array.dtype.kind in "fc" and array.size):
        raise InvalidType(f"{value!r} can't become {dtype}.", dtype=dtype)
    if dtype.kind == "f" and array.dtype.kind == "c":
        raise InvalidType(f"A complex value can't become {dtype}.", dtype=dtype)
    return array.astype(dtype.numpy)


def _text_to_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "US":
        return array
    flat = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)


def group(arguments: Sequence[Argument], attrs: Mapping[str, Any], flat: Sequence[Any]) -> list[Any]:
    """A flat list of inputs or outputs as one entry an argument, a list where the argument is a list."""
    if not any(argument.is_list for argument in arguments):
        return list(flat)
    grouped: list[Any] = []
    position = 0
    for argument in arguments:
        if not argument.is_list:
            grouped.append(flat[position])
            position += 1
            continue
        count = attrs[argument.number_attr] if argument.number_attr else len(attrs[argument.type_list_attr])
        grouped.append(list(flat[position : position + count]))
        position += count
    return grouped


def argument_dtypes(arguments: Sequence[Argument], attrs: Mapping[str, Any]) -> list[DType]:
    """The dtype of every flat input or output that the attrs imply. Raises InvalidGraph for a senseless number."""
    result: list[DType] = []
    for argument in arguments:
        if argument.type_list_attr:
            result.extend(attrs[argument.type_list_attr])
            continue
        dtype = argument.dtype or attrs[argument.type_attr]
        if argument.is_reference:
            dtype = dtypes.reference(dtype)
        number = 1
        if argument.number_attr:
            number = attrs[argument.number_attr]
            if not 0 <= number <= MOST_TENSORS:
                raise InvalidGraph(
                    f"the attr {argument.number_attr} asks for {number} tensors, of at most {MOST_TENSORS}.",
                    attr=argument.number_attr, number=number,
                )  # fmt: skip
        result.extend([dtype] * number)
    return result


def _infer_outputs(node: Node, definition: Op, known: Sequence[Shape] | None = None) -> None:
    """Checks a node against its signature and makes its output tensors.

    Raises InvalidGraph, also where the shape rule finds its inputs and attrs to make no sense.
    """
    try:
        _check(node, definition)
        kinds = argument_dtypes(definition.signature.outputs, node.attrs)
        if known is not None:
            inferred = known
        elif definition.shape is None:
            inferred: Sequence[Shape] = [None] * len(kinds)
        else:
            result = definition.shape(node, node.attrs, *node.arguments())
            inferred = result if isinstance(result, list) else [result]
        if len(inferred) != len(kinds):
            raise InvalidGraph(f"its attrs name {len(kinds)} outputs, but it has {len(inferred)}.")
    except GradserveError as error:
        error.message = f"{node.name} ({node.type}): {error.message}"
        error.metadata |= {"node": node.name, "op": node.type}
        raise
    except (*op.FAILURES, MemoryError) as error:
        raise InvalidGraph(
            f"{node.name} ({node.type}): no shape follows from its inputs and attrs: {error}.",
            node=node.name, op=node.type,
        ) from error  # fmt: skip
    node._outputs = tuple(  # pyright: ignore[reportPrivateUsage]
        Tensor(node, k, dtype, shape) for k, (dtype, shape) in enumerate(zip(kinds, inferred, strict=True))
    )


def _check(node: Node, definition: Op) -> None:
    for spec in definition.signature.typed_attrs:
        value = node.attrs[spec.name]
        for dtype in value if spec.kind == "list(type)" else (value,):
            if dtype not in spec.allowed and dtype.base not in spec.allowed:  # pyright: ignore[reportOperatorIssue]
                raise InvalidGraph(f"the attr {spec.name} can't be {dtype}.", attr=spec.name, dtype=dtype)
    expected = argument_dtypes(definition.signature.inputs, node.attrs)
    if len(expected) != len(node.inputs):
        raise InvalidGraph(f"needs {len(expected)} inputs and has {len(node.inputs)}.")
    for slot, (dtype, tensor) in enumerate(zip(expected, node.inputs, strict=True)):
        if tensor.dtype is not dtype and tensor.dtype.base is not dtype.base and tensor.node.op is not None:
            raise InvalidGraph(
                f"input {slot} must be {dtype.base}, but {tensor.name} is {tensor.dtype.base}.",
                slot=slot, tensor=tensor.name,
            )  # fmt: skip


_TYPE_LISTS = ("output_types", "component_types", "Toutput_types", "Tout", "out_types", "OUT_TYPE", "dtypes", "T")
_SHAPE_LISTS = ("output_shapes", "shapes")


def _guessed(node: Node, index: int) -> tuple[DType, Shape]:
    """Dtype and shape of an unknown op's output, by the attrs in which ops say such things; variant if none does."""

    def entry(names: Sequence[str]) -> Any:
        lists: list[list[Any]] = [value for name in names if isinstance(value := node.attrs.get(name), list)]
        return next((value[index] for value in lists if index < len(value)), None)

    shape = entry(_SHAPE_LISTS)
    for guess in (entry(_TYPE_LISTS), node.attrs.get("T"), node.attrs.get("dtype")):
        if isinstance(guess, DType):
            return guess, shape
    return dtypes.variant, shape
