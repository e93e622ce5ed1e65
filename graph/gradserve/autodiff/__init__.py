"""Differentiation of graphs."""

from gradserve.autodiff import symbolic_gradient  # an op that is made of gradients
from gradserve.autodiff.aggregate import AggregationMethod
from gradserve.autodiff.derivatives import hessian, hvp, jacobian, jvp
from gradserve.autodiff.gradients import Gradients, gradients

__all__ = ["AggregationMethod", "Gradients", "gradients", "hessian", "hvp", "jacobian", "jvp", "symbolic_gradient"]
