"""Differentiation of graphs."""

from gradserve.autodiff.aggregate import AggregationMethod
from gradserve.autodiff.gradients import Gradients, gradients

__all__ = ["AggregationMethod", "Gradients", "gradients"]
