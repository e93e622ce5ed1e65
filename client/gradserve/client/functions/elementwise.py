"""Functions of each element, comparisons and choices."""

from __future__ import annotations

from typing import Any

from gradserve.client.functions.convert import TensorLike, as_tensor, binary, unary
from gradserve.graph.dtypes import as_dtype
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw

# fmt: off
negative = unary("Neg", "-x.")
sign = unary("Sign", "The sign of x.")
square = unary("Square", "x².")
sqrt = unary("Sqrt", "The square root.")
rsqrt = unary("Rsqrt", "1/√x.")
reciprocal = unary("Reciprocal", "1/x.")
exp = unary("Exp", "eˣ.")
expm1 = unary("Expm1", "eˣ - 1, also for small x.")
log = unary("Log", "The natural logarithm.")
log1p = unary("Log1p", "log(1 + x), also for small x.")
sin = unary("Sin", "The sine.")
cos = unary("Cos", "The cosine.")
tan = unary("Tan", "The tangent.")
arcsin = unary("Asin", "The inverse sine.")
arccos = unary("Acos", "The inverse cosine.")
arctan = unary("Atan", "The inverse tangent.")
sinh = unary("Sinh", "The hyperbolic sine.")
cosh = unary("Cosh", "The hyperbolic cosine.")
tanh = unary("Tanh", "The hyperbolic tangent.")
arcsinh = unary("Asinh", "The inverse hyperbolic sine.")
arccosh = unary("Acosh", "The inverse hyperbolic cosine.")
arctanh = unary("Atanh", "The inverse hyperbolic tangent.")
sigmoid = unary("Sigmoid", "1/(1 + e⁻ˣ).")
erf = unary("Erf", "The error function.")
erfc = unary("Erfc", "1 - erf(x).")
lgamma = unary("Lgamma", "log |Γ(x)|.")
digamma = unary("Digamma", "The derivative of log Γ(x).")
floor = unary("Floor", "The largest integer not above x.")
ceil = unary("Ceil", "The smallest integer not below x.")
rint = unary("Rint", "The nearest integer, halves to even.")
isfinite = unary("IsFinite", "Whether x is a number and not infinite.")
isnan = unary("IsNan", "Whether x is not a number.")
real = unary("Real", "The real part.")
imag = unary("Imag", "The imaginary part.")
conj = unary("Conj", "The complex conjugate.")
logical_not = unary("LogicalNot", "Not x.")
stop_gradient = unary("StopGradient", "x, through which no gradient flows.")
identity = unary("Identity", "x itself, as a node of its own.")

add = binary("AddV2", "x + y.")
subtract = binary("Sub", "x - y.")
multiply = binary("Mul", "x y.")
divide = binary("RealDiv", "x / y.")
divide_no_nan = binary("DivNoNan", "x / y, and 0 where y is 0.")
power = binary("Pow", "x to the power y.")
maximum = binary("Maximum", "The larger one.")
minimum = binary("Minimum", "The smaller one.")
squared_difference = binary("SquaredDifference", "(x - y)².")
arctan2 = binary("Atan2", "The angle of the point (y, x).")
floor_divide = binary("FloorDiv", "x / y rounded down.")
mod = binary("FloorMod", "The rest of x / y rounded down.")
equal = binary("Equal", "x = y.")
not_equal = binary("NotEqual", "x ≠ y.")
less = binary("Less", "x < y.")
less_equal = binary("LessEqual", "x ≤ y.")
greater = binary("Greater", "x > y.")
greater_equal = binary("GreaterEqual", "x ≥ y.")
logical_and = binary("LogicalAnd", "x and y.")
logical_or = binary("LogicalOr", "x or y.")
# fmt: on


def abs(x: TensorLike) -> Tensor:
    """|x|."""
    return as_tensor(x).__abs__()


def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """x where the condition holds, else y, all broadcast together."""
    return raw.SelectV2(condition, x, y)


def clip(x: TensorLike, low: TensorLike, high: TensorLike) -> Tensor:
    """x, no lower than low and no higher than high."""
    return raw.ClipByValue(as_tensor(x), low, high)


def cast(x: TensorLike, dtype: Any) -> Tensor:
    """x in another dtype."""
    return raw.Cast(as_tensor(x), DstT=as_dtype(dtype))
