"""Graphs as the SDK builds and loads them: the language's Graph with variables and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from gradserve.autodiff import Gradients, gradients
from gradserve.client.messages import many, serialized
from gradserve.errors import InvalidArgument
from gradserve.graph import codec, dtypes
from gradserve.graph import graph as language
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import current_graph, raw
from gradserve.graph.shapes import Shape
from gradserve.saved.model import first_value, read_graph_def
from gradserve.saved.saved_model import Loaded, read_meta_graph, read_saved_model
from gradserve.v1 import graph_pb2


class Signature(NamedTuple):
    """The tensors of a SavedModel to feed and to fetch, by the names that its callers use."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Graph(language.Graph):
    """A dataflow graph to build, to load, to differentiate and to send.

    `with graph.as_default():` makes it the one that constants, placeholders and variables go to;
    `device`, `colocate_with`, `name_scope` and `control_dependencies` say where and how nodes are made.

    Attributes:
        variables: the Variables made in it, in order.
        initial_values: what to feed while its variables get their first values.
        signatures: of a SavedModel, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.variables: list[Variable] = []
        self.initial_values: dict[Tensor, np.ndarray[Any, Any]] = {}
        self.signatures: dict[str, Signature] = {}
        self._fills_tables: list[Node] = []

    @classmethod
    def from_graphdef(cls, source: Any) -> Self:
        """A graph of a GraphDef: a path (`.pbtxt` for text), bytes, or a message, TensorFlow's own included.

        Raises:
            InvalidGraph: it breaks a rule that every graph must keep; the message names the node.
        """
        return codec.graph_from_message(_message(source), cls)

    @classmethod
    def from_saved_model(cls, folder: str | PathLike[str], tags: Iterable[str] | None = None) -> Self:
        """A graph of a SavedModel's folder, such as `model.export(folder)` of Keras writes.

        `signatures` names what to feed and to fetch; `variables` are what it was saved with, and a session that is
        opened on the graph starts with their values. Custom gradients that were saved are used.

        Args:
            tags: of the meta graph; None for the only one, or the one for serving.

        Raises:
            InvalidArgument: it is no SavedModel, has no such meta graph, or its variables can't be read.
            InvalidGraph: the graph breaks a rule that every graph must keep; the message names the node.
        """
        return cls._of_loaded(read_saved_model(folder, tags))

    @classmethod
    def from_meta_graph(cls, path: str | PathLike[str]) -> Self:
        """A graph of PREFIX.meta and the checkpoint PREFIX beside it, as `tf.compat.v1.train.Saver` writes them.

        `variables` are those that the Saver restores; a session that is opened on the graph starts with their values.

        Raises:
            InvalidArgument: it is no MetaGraphDef, or its variables can't be read.
            InvalidGraph: the graph breaks a rule that every graph must keep; the message names the node.
        """
        return cls._of_loaded(read_meta_graph(path))

    @classmethod
    def _of_loaded(cls, loaded: Loaded) -> Self:
        graph = codec.graph_from_message(loaded.message, cls)
        for name, (inputs, outputs) in loaded.signatures.items():
            graph.signatures[name] = Signature(
                {key: graph.tensor(text) for key, text in inputs.items()},
                {key: graph.tensor(text) for key, text in outputs.items()},
            )
        graph._fills_tables += [graph.node(loaded.init)] if loaded.init else []
        with graph.as_default():
            for name in loaded.variables:
                if name in graph:
                    graph.variables.append(Variable.saved(graph.tensor(name), loaded.value(name)))
        return graph

    def as_graph_def(self) -> graph_pb2.GraphDef:
        """The GraphDef; what was loaded comes out as it went in."""
        return codec.graph_to_message(self)

    @contextlib.contextmanager
    def as_default(self) -> Generator[Self]:
        """Ops without tensor inputs (constants, placeholders) go to this graph inside the block."""
        with super().as_default():
            yield self

    @property
    def initializers(self) -> list[Node]:
        """The nodes that give the variables their first values, and fill the lookup tables of a SavedModel."""
        return [*(variable.initializer for variable in self.variables), *self._fills_tables]

    def gradients(
        self,
        ys: Any,
        xs: Any,
        grad_ys: Any = None,
        name: str = "gradients",
        colocate_gradients_with_ops: bool = False,
        gate_gradients: bool = False,
        aggregation_method: Any = None,
        stop_gradients: Any = None,
        unconnected_gradients: str = "none",
        *,
        deduplicate_slices: bool = False,
    ) -> Gradients:
        """Adds to this graph the nodes that compute dy/dx, without a server: see gradserve.autodiff.gradients.

        Tensors may be given by name; a Variable among the xs stands for all its reads.
        """
        return gradients(
            [self._tensor(y) for y in many(ys)],
            [self._tensor(x.handle if isinstance(x, Variable) else x) for x in many(xs)],
            grad_ys, name, colocate_gradients_with_ops, gate_gradients, aggregation_method,
            [self._tensor(stop) for stop in many(stop_gradients)], unconnected_gradients,
            deduplicate_slices=deduplicate_slices,
        )  # fmt: skip

    def _tensor(self, value: Any) -> Any:
        return self.tensor(value) if isinstance(value, str) else value


def load_graph(source: Any) -> Graph:
    """A graph of a GraphDef: a path (`.pbtxt` for text), bytes, or a message, TensorFlow's own included."""
    return Graph.from_graphdef(source)


def _message(source: Any) -> graph_pb2.GraphDef:
    if isinstance(source, (str, PathLike)):
        path = Path(fspath(source))
        if path.is_dir() or path.name == "saved_model.pb":
            raise InvalidArgument(f"{path} is a SavedModel: load its folder with Graph.from_saved_model.", file=path)
        if path.suffix == ".meta":
            raise InvalidArgument(f"{path} is a meta graph: load it with Graph.from_meta_graph.", file=path)
        return read_graph_def(path)
    if isinstance(source, graph_pb2.GraphDef):
        return source
    return codec.read_graph(serialized(source))


def placeholder(dtype: Any = "float32", shape: Shape = None, name: str = "Placeholder") -> Tensor:
    """A tensor to be fed; None stands for an unknown shape, and in a shape for an unknown size."""
    return raw.Placeholder(dtype=dtypes.as_dtype(dtype), shape=shape, name=name)


def constant(value: Any, dtype: Any = None, name: str = "Const") -> Tensor:
    """A constant. Python floats are float32 and ints int32 unless a dtype is given."""
    return current_graph().constant(value, None if dtype is None else dtypes.as_dtype(dtype), name)


class Variable(Tensor):
    """A variable that a session holds: as a tensor it is the value at the start of the step.

    Attributes:
        handle: the resource behind it; the gradient with respect to it counts all reads.
        initializer: the node that gives it its first value, run when a session opens.
    """

    __slots__ = ("handle", "initializer")

    def __init__(self, initial: Any, dtype: Any = None, name: str = "Variable") -> None:
        """Makes a variable in the current graph.

        Args:
            initial: its first value: an array, or a tensor such as a random one.
            dtype: of the variable; None for that of the value.
            name: its name, made unique.
        """
        if not isinstance(initial, Tensor):
            initial = language.to_array(initial, None if dtype is None else dtypes.as_dtype(dtype))
        kind = initial.dtype.base if isinstance(initial, Tensor) else dtypes.as_dtype(initial.dtype)
        graph = initial.graph if isinstance(initial, Tensor) else current_graph()
        with graph.as_default():
            unique = graph.unique_name(name)
            with graph.name_scope(f"{unique}/"):
                self.handle: Tensor = raw.VarHandleOp(
                    dtype=kind, shape=initial.shape, shared_name=unique, name="handle"
                )
                with graph.colocate_with(self.handle):
                    self.initializer: Node = raw.AssignVariableOp.run(self.handle, initial, dtype=kind, name="assign")
                    read = raw.ReadVariableOp(self.handle, dtype=kind, name="read")
        super().__init__(read.node, 0, read.dtype, read.shape)
        read.node._outputs = (self,)  # pyright: ignore[reportPrivateUsage]  # so that it is that very tensor
        if isinstance(graph, Graph):
            graph.variables.append(self)

    @classmethod
    def saved(cls, handle: Tensor, value: np.ndarray[Any, Any]) -> Variable:
        """The Variable of a loaded graph behind a handle or reference, whose first value is fed to the graph."""
        graph = handle.graph
        kind = dtypes.as_dtype(value.dtype)
        variable = cls.__new__(cls)
        variable.handle = handle
        first, variable.initializer = first_value(handle, value)
        with graph.colocate_with(handle), graph.name_scope(first.node.name.removesuffix("value")):
            if handle.dtype.kind == "r":
                read = raw.ReadVariableOp(handle, dtype=kind, name="read")
            else:
                read = raw.Identity(handle, name="read")
        Tensor.__init__(variable, read.node, 0, read.dtype, read.shape)
        read.node._outputs = (variable,)  # pyright: ignore[reportPrivateUsage]  # so that it is that very tensor
        if isinstance(graph, Graph):
            graph.initial_values[first] = value
        return variable

    def assign(self, value: Any) -> Node:
        """A node that gives it a value, for `targets`."""
        with self.graph.colocate_with(self.handle):
            return raw.AssignVariableOp.run(self.handle, value, dtype=self.dtype)

    def assign_add(self, value: Any) -> Node:
        """A node that adds to its value."""
        with self.graph.colocate_with(self.handle):
            return raw.AssignAddVariableOp.run(self.handle, value, dtype=self.dtype)

    def read(self) -> Tensor:
        """Another read, for the value after the nodes of `control_dependencies`."""
        return raw.ReadVariableOp(self.handle, dtype=self.dtype)


def group(*nodes: Node | Tensor, name: str = "group") -> Node:
    """One node that runs after all of these, for `targets`. Raises InvalidArgument where there are none."""
    if not nodes:
        raise InvalidArgument("There is nothing to group: give at least one node.")
    graph = nodes[0].graph
    with graph.as_default(), graph.control_dependencies(nodes):
        return raw.NoOp.run(name=name)


def zeros_variable(variable: Variable, name: str) -> Variable:
    """A variable of zeros, of the shape and dtype of another one and beside it. Raises InvalidArgument."""
    shape = variable.shape
    if shape is None or None in shape:
        raise InvalidArgument(f"The shape of {variable.name} is not known: {shape}.", tensor=variable.name)
    with variable.graph.as_default(), variable.graph.colocate_with(variable.handle):
        zero = constant(0, variable.dtype)
        return Variable(raw.Fill(np.array(shape, np.int32), zero), name=name)  # a constant would travel whole
