"""The library of a graph: FunctionDefs by name, as they came and as they were added."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from gradserve.v1 import graph_pb2


class Library:
    """The functions that a graph and the bodies in it may call. Append-only.

    Attributes:
        added: those that did not come with the graph, in order.
        bodies: what gradserve.graph.functions has made of them.
        gradients: for a function, the one that is its gradient.
        registered_gradients: for a `_gradient_op_type`, the function that is the gradient.
    """

    def __init__(self, message: graph_pb2.FunctionDefLibrary | None = None) -> None:
        message = graph_pb2.FunctionDefLibrary() if message is None else message
        self._by_name = {definition.signature.name: definition for definition in message.function}
        self.gradients = {entry.function_name: entry.gradient_func for entry in message.gradient}
        self.registered_gradients = {
            entry.registered_op_type: entry.gradient_func for entry in message.registered_gradients
        }
        self.added: list[graph_pb2.FunctionDef] = []
        self.bodies: OrderedDict[Any, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str) -> graph_pb2.FunctionDef | None:
        """The function of this name, or None."""
        return self._by_name.get(name)

    def add(self, definition: graph_pb2.FunctionDef) -> None:
        """Adds a function, whose name must be new."""
        self._by_name[definition.signature.name] = definition
        self.added.append(definition)

    def keep(self, count: int) -> None:
        """Drops the functions added after the first `count`, and the bodies that may call them."""
        for definition in self.added[count:]:
            del self._by_name[definition.signature.name]
            self.bodies.clear()
        del self.added[count:]

    def unique_name(self, hint: str) -> str:
        """The hint, with `_1`, `_2`, … where it is taken."""
        name, count = hint, 0
        while name in self._by_name:
            count += 1
            name = f"{hint}_{count}"
        return name

    def needed(self, names: Iterable[str]) -> list[graph_pb2.FunctionDef]:
        """The functions of these names and all that they call, in order of name. Unknown names are left out."""
        found: dict[str, graph_pb2.FunctionDef] = {}
        stack = list(names)
        while stack:
            name = stack.pop()
            definition = self._by_name.get(name)
            if definition is None or name in found:
                continue
            found[name] = definition
            for node in definition.node_def:
                stack.append(node.op)  # graphs of TensorFlow 1 call functions so
                for value in node.attr.values():
                    if value.HasField("func"):
                        stack.append(value.func.name)
                    elif value.HasField("list"):
                        stack.extend(entry.name for entry in value.list.func)
        return [found[name] for name in sorted(found)]
