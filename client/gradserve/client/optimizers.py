"""Optimisers: they add to a graph the nodes that compute gradients and update variables on the server.

loss -> gradients -> one ResourceApply… a variable, beside it -> one node to run as a target
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.autodiff import gradients
from gradserve.client.graph import Graph, Variable, group, zeros_variable
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import IndexedSlices, Node, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify


class Optimizer(abc.ABC):
    """What all optimisers share: gradients, then one update a variable."""

    name = "optimizer"

    def minimize(
        self,
        loss: Tensor,
        variables: Sequence[Variable] | None = None,
        *,
        colocate_gradients_with_ops: bool = True,
        gate_gradients: bool = False,
        aggregation_method: Any = None,
    ) -> Node:
        """A node that, run as a target, lowers the loss by one step.

        Args:
            loss: the tensor to minimise; one that is not a scalar counts as its sum.
            variables: what to change; None for all the variables of the graph.
            colocate_gradients_with_ops, gate_gradients, aggregation_method: as of `gradients`.
        """
        chosen = self._variables(loss, variables)
        found = gradients(
            loss,
            [variable.handle for variable in chosen],
            colocate_gradients_with_ops=colocate_gradients_with_ops,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
        )
        return self.apply(list(zip(found, chosen, strict=True)))

    def apply(self, pairs: Sequence[tuple[Tensor | IndexedSlices | None, Variable]]) -> Node:
        """A node that applies gradients, each paired with its variable; None leaves the variable as it is."""
        pairs = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
        if not pairs:
            raise InvalidArgument("The loss depends on none of the variables: there is nothing to update.")
        graph = pairs[0][1].graph
        with graph.as_default(), graph.name_scope(self.name):
            self.begin(pairs[0][1])
            updates: list[Node] = []
            for gradient, variable in pairs:
                with graph.colocate_with(variable.handle):
                    if isinstance(gradient, IndexedSlices):
                        updates.append(self.update_rows(variable, gradient))
                    else:
                        updates.append(self.update(variable, gradient))
            updates += self.end(updates)
            return group(*updates, name="update")

    def begin(self, first: Variable) -> None:  # noqa: B027  # nothing to make, for most
        """Makes what all updates share."""

    @abc.abstractmethod
    def update(self, variable: Variable, gradient: Any) -> Node:
        """The node that updates one variable."""

    def update_rows(self, variable: Variable, gradient: IndexedSlices) -> Node:
        """The node that updates a variable by a sparse gradient, as if it were dense."""
        return self.update(variable, densify(gradient))

    def end(self, updates: Sequence[Node]) -> list[Node]:
        """What is left to do once all variables are updated."""
        return []

    def _variables(self, loss: Tensor, variables: Sequence[Variable] | None) -> list[Variable]:
        if variables is not None:
            return list(variables)
        if not isinstance(loss.graph, Graph):
            raise InvalidArgument("The graph does not know its variables: name those to update.")
        return list(loss.graph.variables)


@dataclass
class GradientDescent(Optimizer):
    """w -= η g."""

    learning_rate: Any = 0.01
    name: str = "GradientDescent"

    def update(self, variable: Variable, gradient: Any) -> Node:
        return raw.ResourceApplyGradientDescent.run(variable.handle, self.learning_rate, gradient)

    def update_rows(self, variable: Variable, gradient: IndexedSlices) -> Node:
        """Only the rows that the gradient names are touched."""
        steps = gradient.values * self.learning_rate
        return raw.ResourceScatterSub.run(variable.handle, gradient.indices, steps, dtype=variable.dtype)


@dataclass
class Momentum(Optimizer):
    """a = μ a + g;  w -= η a  (with Nesterov: w -= η (g + μ a))."""

    learning_rate: Any = 0.01
    momentum: Any = 0.9
    use_nesterov: bool = False
    name: str = "Momentum"

    def update(self, variable: Variable, gradient: Any) -> Node:
        accumulated = zeros_variable(variable, f"{variable.handle.node.attrs['shared_name']}/accumulated")
        return raw.ResourceApplyMomentum.run(
            variable.handle, accumulated.handle, self.learning_rate, gradient, self.momentum,
            use_nesterov=self.use_nesterov,
        )  # fmt: skip


@dataclass
class Adam(Optimizer):
    """Kingma and Ba 2015, algorithm 1 with the efficient order of section 2, as TensorFlow's ApplyAdam."""

    learning_rate: Any = 0.001
    beta_one: float = 0.9
    beta_two: float = 0.999
    epsilon: float = 1e-8
    name: str = "Adam"

    def begin(self, first: Variable) -> None:
        kind = first.dtype.numpy
        with first.graph.colocate_with(first.handle):
            self._powers = [
                Variable(np.array(beta, kind), name=name)
                for beta, name in ((self.beta_one, "beta_one_power"), (self.beta_two, "beta_two_power"))
            ]

    def update(self, variable: Variable, gradient: Any) -> Node:
        owner = variable.handle.node.attrs["shared_name"]
        moments = [zeros_variable(variable, f"{owner}/{name}") for name in ("mean", "variance")]
        powers = [self._as(power, variable) for power in self._powers]
        return raw.ResourceApplyAdam.run(
            variable.handle, *(moment.handle for moment in moments), *powers,
            self.learning_rate, self.beta_one, self.beta_two, self.epsilon, gradient,
        )  # fmt: skip

    def end(self, updates: Sequence[Node]) -> list[Node]:
        graph = updates[0].graph
        with graph.control_dependencies(updates):
            return [
                power.assign(power * beta)
                for power, beta in zip(self._powers, (self.beta_one, self.beta_two), strict=True)
            ]

    @staticmethod
    def _as(power: Variable, variable: Variable) -> Tensor:
        return power if power.dtype is variable.dtype else raw.Cast(power, DstT=variable.dtype)
