"""State that a step makes and that ends with it: TF1's temporary variables, and locks.

Steps that may write run one after another, so that a lock is always free: what it protects, the session protects.
"""

from __future__ import annotations

from typing import Any

from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, define
from gradserve.graph.variants import Components


def _handle(xp: Any, *, node: Node, state: Any) -> Any:
    return state.handle(node)


define(
    "TemporaryVariable(; shape: shape, dtype: type, var_name: string = '') -> (ref: ref(dtype))",
    shape=lambda *, shape: shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_handle,
    stateful=True,
)


def _last_value(xp: Any, handle: Any, *, state: Any) -> Any:
    value = state.read(handle)
    state.forget(handle)
    return value


define(
    "DestroyTemporaryVariable(ref: ref(T); T: type, var_name: string) -> (value: T)",
    shape=lambda ref: ref.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_last_value,
    stateful=True,
)
define(
    "MutexV2(; container: string = '', shared_name: string = '') -> (resource: resource)",
    shape=lambda: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_handle,
    stateful=True,
    dynamic=True,
)
define(
    "MutexLock(mutex: resource) -> (mutex_lock: variant)",
    shape=lambda mutex: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, mutex: Components(()),
    stateful=True,
    dynamic=True,
)
define(
    "ConsumeMutexLock(mutex_lock: variant) -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, lock: (),
    stateful=True,
    dynamic=True,
)
