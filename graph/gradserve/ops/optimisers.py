"""The optimisers' updates of variables: of whole ones, and of the rows that indices name.

Each update is a function from (xp, old values of var and slots, the other inputs, attrs) to new values, and gives
four ops: Apply on TF1's references, ResourceApply on resources, and SparseApply and ResourceSparseApply on rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradserve.graph.checks import refuse_outside
from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, define
from gradserve.ops.gather import combine

Update = Callable[..., tuple[Any, ...]]


def _gradient_descent(xp: Any, var: Any, alpha: Any, delta: Any) -> tuple[Any, ...]:
    """var -= α δ."""
    return (var - alpha * delta,)


def _momentum(
    xp: Any, var: Any, accum: Any, lr: Any, grad: Any, momentum: Any, *, use_nesterov: bool
) -> tuple[Any, ...]:
    """accum = μ accum + g;  var -= η accum (Nesterov: η (g + μ accum))."""
    accum = momentum * accum + grad
    return var - (lr * (grad + momentum * accum) if use_nesterov else lr * accum), accum


def _keras_momentum(
    xp: Any, var: Any, accum: Any, lr: Any, grad: Any, momentum: Any, *, use_nesterov: bool
) -> tuple[Any, ...]:
    """accum = μ accum - η g;  var += accum (Nesterov: μ accum - η g)."""
    accum = momentum * accum - lr * grad
    return var + (momentum * accum - lr * grad if use_nesterov else accum), accum


def _adam(
    xp: Any, var: Any, m: Any, v: Any, beta1_power: Any, beta2_power: Any, lr: Any, beta1: Any, beta2: Any,
    epsilon: Any, grad: Any, *, use_nesterov: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """m and v are running means of g and g²;  var -= η √(1-β₂ᵗ)/(1-β₁ᵗ) m / (√v + ε).   Kingma and Ba 2015."""
    rate = lr * xp.sqrt(1 - beta2_power) / (1 - beta1_power)
    m = m + (grad - m) * (1 - beta1)
    v = v + (grad * grad - v) * (1 - beta2)
    direction = m * beta1 + (1 - beta1) * grad if use_nesterov else m
    return var - rate * direction / (xp.sqrt(v) + epsilon), m, v


def _adagrad(xp: Any, var: Any, accum: Any, lr: Any, grad: Any, *, update_slots: bool) -> tuple[Any, ...]:
    """accum += g²;  var -= η g / √accum."""
    accum = accum + grad * grad if update_slots else accum
    return var - lr * grad / xp.sqrt(accum), accum


def _rms_prop(
    xp: Any, var: Any, ms: Any, mom: Any, lr: Any, rho: Any, momentum: Any, epsilon: Any, grad: Any
) -> tuple[Any, ...]:
    """ms is a running mean of g²;  mom = μ mom + η g / √(ms + ε);  var -= mom."""
    ms = ms + (grad * grad - ms) * (1 - rho)
    mom = momentum * mom + lr * grad / xp.sqrt(ms + epsilon)
    return var - mom, ms, mom


def _max_norm_adam(
    xp: Any, var: Any, m: Any, v: Any, beta1_power: Any, lr: Any, beta1: Any, beta2: Any, epsilon: Any, grad: Any
) -> tuple[Any, ...]:
    """m is a running mean of g, v = max(β₂ v, |g|);  var -= η / (1-β₁ᵗ) m / (v + ε).   Kingma and Ba 2015, section 7."""
    m = m + (grad - m) * (1 - beta1)
    v = xp.maximum(beta2 * v, xp.abs(grad))
    return var - lr / (1 - beta1_power) * (m / (v + epsilon)), m, v


def _amsgrad(
    xp: Any, var: Any, m: Any, v: Any, vhat: Any, beta1_power: Any, beta2_power: Any, lr: Any, beta1: Any, beta2: Any,
    epsilon: Any, grad: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Adam with the largest v so far.   Reddi, Kale and Kumar 2018."""
    rate = lr * xp.sqrt(1 - beta2_power) / (1 - beta1_power)
    m = m + (grad - m) * (1 - beta1)
    v = v + (grad * grad - v) * (1 - beta2)
    vhat = xp.maximum(vhat, v)
    return var - rate * m / (xp.sqrt(vhat) + epsilon), m, v, vhat


def _second_adagrad(
    xp: Any, var: Any, accum: Any, lr: Any, epsilon: Any, grad: Any, *, update_slots: bool
) -> tuple[Any, ...]:
    """accum += g²;  var -= η g / (√accum + ε)."""
    accum = accum + grad * grad if update_slots else accum
    return var - lr * grad / (xp.sqrt(accum) + epsilon), accum


def _adadelta(xp: Any, var: Any, accum: Any, moved: Any, lr: Any, rho: Any, epsilon: Any, grad: Any) -> tuple[Any, ...]:
    """accum and moved are running means of g² and of the squared steps √(moved + ε) / √(accum + ε) g.   Zeiler 2012."""
    accum = rho * accum + (1 - rho) * grad * grad
    step = xp.sqrt(moved + epsilon) / xp.sqrt(accum + epsilon) * grad
    return var - lr * step, accum, rho * moved + (1 - rho) * step * step


def _centered_rms_prop(
    xp: Any, var: Any, mg: Any, ms: Any, mom: Any, lr: Any, rho: Any, momentum: Any, epsilon: Any, grad: Any
) -> tuple[Any, ...]:
    """As RMSProp, with the running variance ms - mg² in place of the mean of squares."""
    mg, ms = mg + (grad - mg) * (1 - rho), ms + (grad * grad - ms) * (1 - rho)
    mom = momentum * mom + lr * grad / xp.sqrt(ms - mg * mg + epsilon)
    return var - mom, mg, ms, mom


def _shrunk(xp: Any, value: Any, rate: Any, l1: Any, l2: Any) -> Any:
    """The proximal step: nearer to 0 by η l1, and over 1 + η l2."""
    return xp.sign(value) * xp.maximum(xp.abs(value) - rate * l1, xp.zeros_like(value)) / (1 + rate * l2)


def _proximal_descent(xp: Any, var: Any, alpha: Any, l1: Any, l2: Any, grad: Any) -> tuple[Any, ...]:
    """Duchi and Singer 2009."""
    return (_shrunk(xp, var - alpha * grad, alpha, l1, l2),)


def _proximal_adagrad(xp: Any, var: Any, accum: Any, lr: Any, l1: Any, l2: Any, grad: Any) -> tuple[Any, ...]:
    """The proximal step with Adagrad's rate η / √accum."""
    accum = accum + grad * grad
    rate = lr / xp.sqrt(accum)
    return _shrunk(xp, var - rate * grad, rate, l1, l2), accum


def _add_sign(xp: Any, var: Any, m: Any, lr: Any, alpha: Any, sign_decay: Any, beta: Any, grad: Any) -> tuple[Any, ...]:
    """var -= η (α + decay · sign g · sign m) g.   Bello et al. 2017."""
    m = m * beta + grad * (1 - beta)
    return var - lr * (alpha + sign_decay * xp.sign(grad) * xp.sign(m)) * grad, m


def _power_sign(
    xp: Any, var: Any, m: Any, lr: Any, logbase: Any, sign_decay: Any, beta: Any, grad: Any
) -> tuple[Any, ...]:
    """var -= η exp(log base · decay · sign g · sign m) g.   Bello et al. 2017."""
    m = m * beta + grad * (1 - beta)
    return var - lr * xp.exp(logbase * sign_decay * xp.sign(grad) * xp.sign(m)) * grad, m


def _follow_the_leader(
    xp: Any, var: Any, accum: Any, linear: Any, grad: Any, lr: Any, l1: Any, l2: Any, lr_power: Any,
    *, multiply_linear_by_lr: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """FTRL-Proximal   (McMahan et al. 2013)."""
    zero = xp.zeros_like(l2)
    return _shrinking_leader(
        xp, var, accum, linear, grad, lr, l1, l2, zero, lr_power, multiply_linear_by_lr=multiply_linear_by_lr
    )


def _shrinking_leader(
    xp: Any, var: Any, accum: Any, linear: Any, grad: Any, lr: Any, l1: Any, l2: Any, l2_shrinkage: Any, lr_power: Any,
    *, multiply_linear_by_lr: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """FTRL-Proximal with a penalty on the weights' size; `linear` is kept times η where the attr says so."""
    rate = lr if multiply_linear_by_lr else xp.ones_like(lr)
    total = accum + grad * grad
    before, after = xp.power(accum, -lr_power) * (rate / lr), xp.power(total, -lr_power) * (rate / lr)
    linear = linear + (grad + 2 * l2_shrinkage * var) * rate - (after - before) * var
    pulled = xp.sign(linear) * l1 * rate - linear
    step = pulled / (after + 2 * l2 * rate)
    return xp.where(xp.abs(linear) > l1 * rate, step, xp.zeros_like(step)), total, linear


def _dual_averaging(
    xp: Any, var: Any, total: Any, squares: Any, grad: Any, lr: Any, l1: Any, l2: Any, step: Any
) -> tuple[Any, ...]:
    """total += g, squares += g²;  var = -η S(total, l₁ t) / (l₂ η t + √squares) with S to 0.   Duchi and others 2011."""
    total, squares, time = total + grad, squares + grad * grad, xp.asarray(step).astype(grad.dtype)
    shrunk = xp.sign(total) * xp.maximum(xp.abs(total) - l1 * time, xp.zeros_like(total))
    return -lr * shrunk / (l2 * lr * time + xp.sqrt(squares)), total, squares


# The ops


def _optimiser(
    name: str, slots: tuple[str, ...], inputs: tuple[str, ...], attrs: str, update: Update, *,
    dense: Sequence[str] = ("", "Resource"), rows: Sequence[str] = (),
) -> None:  # fmt: skip
    """Defines {prefix}Apply{name} for the prefixes `dense`, and {prefix}SparseApply{name} for the prefixes `rows`."""
    keywords = [attr.partition(":")[0].strip() for attr in attrs.split(",") if attr.strip()]
    tail = f"use_locking: bool = false{', ' + attrs if attrs else ''}"
    given = [entry if ":" in entry else f"{entry}: T" for entry in inputs]
    at = [*given[: inputs.index("grad") + 1], "indices: Tindices", *given[inputs.index("grad") + 1 :]] if rows else []
    for prefix in dense:
        _define(prefix, f"Apply{name}", slots, given, f"T: number, {tail}", _whole(len(slots), keywords, update))
    for prefix in rows:
        kernel = _by_rows(len(slots), inputs, keywords, update)
        _define(prefix, f"SparseApply{name}", slots, at, f"T: number, Tindices: index, {tail}", kernel)


def _define(prefix: str, name: str, slots: Sequence[str], inputs: Sequence[str], attrs: str, kernel: Any) -> None:
    """On references the op gives back var's; on resources it has no output."""
    kind = "resource" if prefix else "ref(T)"
    arguments = ", ".join([*(f"{slot}: {kind}" for slot in slots), *inputs])

    def effect(xp: Any, *values: Any, node: Node, state: Any) -> tuple[()]:
        kernel(xp, *values, node=node, state=state)
        return ()

    define(
        f"{prefix}{name}({arguments}; {attrs}) -> ({'' if prefix else 'out: ref(T)'})",
        shape=None if prefix else lambda var, *rest: var.shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=effect if prefix else kernel,
        stateful=True,
    )


def _whole(count: int, keywords: Sequence[str], update: Update) -> Any:
    def kernel(xp: Any, *values: Any, node: Node, state: Any) -> Any:
        handles, rest = values[:count], values[count:]
        old = [state.read(handle) for handle in handles]
        chosen = {key: node.attrs[key] for key in keywords}
        for handle, before, value in zip(handles, old, update(xp, *old, *rest, **chosen), strict=False):
            state.assign(handle, value.astype(before.dtype))
        return handles[0]

    return kernel


def _by_rows(count: int, inputs: Sequence[str], keywords: Sequence[str], update: Update) -> Any:
    place = inputs.index("grad")

    def kernel(xp: Any, *values: Any, node: Node, state: Any) -> Any:
        """grad[i] belongs to row indices[i]; rows of equal index are updated one after another."""
        handles, rest = values[:count], list(values[count:])
        indices = rest.pop(place + 1)
        chosen = {key: node.attrs[key] for key in keywords}
        current = [state.read(handle) for handle in handles]
        refuse_outside(indices, current[0].shape[0], "Index")

        def change(rows: Any, grad: Any) -> list[Any]:
            others = (*rest[:place], grad, *rest[place + 1 :])
            changed = update(xp, *(value[rows] for value in current), *others, **chosen)
            pairs = zip(current, changed, strict=True)
            return [combine(xp, "set", value, rows, after.astype(value.dtype)) for value, after in pairs]

        if isinstance(indices, np.ndarray) and len(np.unique(indices)) == len(indices):
            current = change(indices, rest[place])
        else:
            for k in range(indices.shape[0]):
                current = change(indices[k], rest[place][k])
        for handle, value in zip(handles, current, strict=True):
            state.assign(handle, value)
        return handles[0]

    return kernel


_BOTH = ("", "Resource")
_NESTEROV, _SLOTS = "use_nesterov: bool = false", "update_slots: bool = true"
_LINEAR = "multiply_linear_by_lr: bool = false"
_ADAM = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon", "grad")
_RMS = ("lr", "rho", "momentum", "epsilon", "grad")
_FTRL = ("grad", "lr", "l1", "l2", "lr_power")

# fmt: off
#          name                       slots                                inputs, attrs, update
_optimiser("GradientDescent",         ("var",),                            ("alpha", "delta"), "", _gradient_descent)
_optimiser("Momentum",                ("var", "accum"),                    ("lr", "grad", "momentum"), _NESTEROV, _momentum, rows=_BOTH)
_optimiser("KerasMomentum",           ("var", "accum"),                    ("lr", "grad", "momentum"), _NESTEROV, _keras_momentum, dense=("Resource",), rows=("Resource",))
_optimiser("Adam",                    ("var", "m", "v"),                   _ADAM, _NESTEROV, _adam)
_optimiser("AdaMax",                  ("var", "m", "v"),                   ("beta1_power", "lr", "beta1", "beta2", "epsilon", "grad"), "", _max_norm_adam)
_optimiser("AdamWithAmsgrad",         ("var", "m", "v", "vhat"),           _ADAM, "", _amsgrad, dense=("Resource",))
_optimiser("Adagrad",                 ("var", "accum"),                    ("lr", "grad"), _SLOTS, _adagrad, rows=_BOTH)
_optimiser("AdagradV2",               ("var", "accum"),                    ("lr", "epsilon", "grad"), _SLOTS, _second_adagrad, rows=_BOTH)
_optimiser("AdagradDA",               ("var", "gradient_accumulator", "gradient_squared_accumulator"), ("grad", "lr", "l1", "l2", "global_step: int64"), "", _dual_averaging, rows=_BOTH)
_optimiser("Adadelta",                ("var", "accum", "accum_update"),    ("lr", "rho", "epsilon", "grad"), "", _adadelta, rows=_BOTH)
_optimiser("RMSProp",                 ("var", "ms", "mom"),                _RMS, "", _rms_prop, rows=_BOTH)
_optimiser("CenteredRMSProp",         ("var", "mg", "ms", "mom"),          _RMS, "", _centered_rms_prop, rows=_BOTH)
_optimiser("ProximalGradientDescent", ("var",),                            ("alpha", "l1", "l2", "delta"), "", _proximal_descent)
_optimiser("ProximalGradientDescent", ("var",),                            ("alpha", "l1", "l2", "grad"), "", _proximal_descent, dense=(), rows=_BOTH)
_optimiser("ProximalAdagrad",         ("var", "accum"),                    ("lr", "l1", "l2", "grad"), "", _proximal_adagrad, rows=_BOTH)
_optimiser("AddSign",                 ("var", "m"),                        ("lr", "alpha", "sign_decay", "beta", "grad"), "", _add_sign)
_optimiser("PowerSign",               ("var", "m"),                        ("lr", "logbase", "sign_decay", "beta", "grad"), "", _power_sign)
_optimiser("Ftrl",                    ("var", "accum", "linear"),          _FTRL, _LINEAR, _follow_the_leader, rows=_BOTH)
_optimiser("FtrlV2",                  ("var", "accum", "linear"),          ("grad", "lr", "l1", "l2", "l2_shrinkage", "lr_power"), _LINEAR, _shrinking_leader, rows=_BOTH)
# fmt: on
