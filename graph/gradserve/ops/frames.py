"""TF1's control flow as nodes. An imported graph has it raised to If, Case and While (see gradserve.graph.raising).

What is left of it are the Switches in front of a branch's nodes, for whoever asks for one of those by name: a Switch
hands its input to both sides, so that a branch is computed as if it had been taken; its gradient is 0 if it was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, raw, refused, same_shape

_RAISED = refused("it must be raised to If or While first: import the graph that it belongs to as one GraphDef")


def _both_shapes(data: Tensor, predicate: Tensor) -> Any:
    return [data.shape, data.shape]


def _switch_gradient(
    dfalse: Tensor, dtrue: Tensor, output_false: Tensor, output_true: Tensor, data: Tensor, pred: Tensor
) -> tuple[Tensor, None]:
    return raw.SelectV2(pred, dtrue, dfalse), None


def _switch_n_gradient(douts: list[Tensor], outputs: list[Tensor], data: Tensor, index: Tensor) -> tuple[Tensor, None]:
    dx = douts[-1]
    for k, dy in enumerate(douts[:-1]):
        dx = raw.SelectV2(raw.Equal(index, k), dy, dx)
    return dx, None


_SWITCH = "Switch(data: {T}, pred: bool; T: type) -> (output_false: {T}, output_true: {T})"
_FRAME = "frame_name: string, is_constant: bool = false, parallel_iterations: int = 10"

define(
    _SWITCH.format(T="T"),
    shape=_both_shapes,
    gradient=_switch_gradient,
    kernel=lambda xp, data, pred: (data, data),
    examples=lambda draw: [
        call(draw.normal(*draw.shape()), np.array(taken), differences=False) for taken in (True, False)
    ],
)
define(
    "Ref" + _SWITCH.format(T="ref(T)"),
    shape=_both_shapes,
    gradient=_switch_gradient,
    kernel=lambda xp, data, pred: (data, data),
)
define(
    "_SwitchN(data: T, output_index: int32; num_outs: int, T: type) -> (outputs: num_outs * T)",
    shape=lambda data, index, *, num_outs: [data.shape] * num_outs,
    gradient=_switch_n_gradient,
    kernel=lambda xp, data, index, *, num_outs: (data,) * num_outs,
    examples=lambda draw: [call(draw.normal(*draw.shape()), np.int32(1), num_outs=3, differences=False)],
)
for _signature in (
    "Merge(inputs: {many}; T: type, N: int) -> (output: {T}, value_index: int32)",
    "Enter(data: {T}; T: type, " + _FRAME + ") -> (output: {T})",
    "Exit(data: {T}; T: type) -> (output: {T})",
    "NextIteration(data: {T}; T: type) -> (output: {T})",
):
    define(_signature.format(T="T", many="N * T"), gradient=_RAISED)
    define("Ref" + _signature.format(T="ref(T)", many="ref(N * T)"), gradient=_RAISED)
define("LoopCond(input: bool) -> (output: bool)", shape=same_shape, gradient=NOT_DIFFERENTIABLE)

# The stacks of a loop's backward pass: on import they become lists that flow from round to round.
for _version, _handle, _inputs in (("", "ref(string)", ""), ("V2", "resource", "max_size: int32")):
    for _signature in (
        f"Stack{_version}({_inputs}; elem_type: type, stack_name: string = '') -> (handle: {_handle})",
        f"StackPush{_version}(handle: {_handle}, elem: T; T: type, swap_memory: bool = false) -> (output: T)",
        f"StackPop{_version}(handle: {_handle}; elem_type: type) -> (elem: elem_type)",
        f"StackClose{_version}(handle: {_handle}) -> ()",
    ):
        define(_signature, gradient=NOT_DIFFERENTIABLE, stateful=True)
