"""TF1's TensorArrays as nodes. An imported graph has them made lists: see ops/tensor_list.py and
gradserve.graph.raising.

What is here tells an array that could not become a list: one that leaves its graph for a function, or is read through
TensorArrayGradWithShape. Such a graph is still read, checked and sent on; running or differentiating these nodes is
refused.
"""

from __future__ import annotations

from gradserve.graph.op import NOT_DIFFERENTIABLE, define, refused

_UNRAISED = refused(
    "TensorArrays are differentiated as lists, and this one could not become a list: it must stay, with its flow, among"
    " the ops of one GraphDef"
)
_MAKE = "dtype: type, element_shape: shape = unknown, dynamic_size: bool = false, clear_after_read: bool = true"

define(
    f"TensorArrayV3(size: int32; {_MAKE}, identical_element_shapes: bool = false, tensor_array_name: string = '')"
    " -> (handle: resource, flow: float32)",
    shape=lambda size: [(), ()],
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
define(
    f"TensorArrayV2(size: int32; {_MAKE}, tensor_array_name: string = '') -> (handle: string)",
    shape=lambda size: None,
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
define(
    f"TensorArray(size: int32; {_MAKE}, tensor_array_name: string = '') -> (handle: ref(string))",
    shape=lambda size: None,
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
for _version, _handle in (("", "ref(string)"), ("V2", "string"), ("V3", "resource")):
    _array = f"{_version}(handle: {_handle}"
    define(
        f"TensorArrayWrite{_array}, index: int32, value: T, flow_in: float32; T: type) -> (flow_out: float32)",
        shape=lambda handle, index, value, flow: (),
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArrayRead{_array}, index: int32, flow_in: float32; dtype: type) -> (value: dtype)",
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArrayGather{_array}, indices: int32, flow_in: float32; dtype: type, element_shape: shape = unknown)"
        " -> (value: dtype)",
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArrayScatter{_array}, indices: int32, value: T, flow_in: float32; T: type) -> (flow_out: float32)",
        shape=lambda handle, indices, value, flow: (),
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArrayConcat{_array}, flow_in: float32; dtype: type, element_shape_except0: shape = unknown)"
        " -> (value: dtype, lengths: int64)",
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArraySplit{_array}, value: T, lengths: int64, flow_in: float32; T: type) -> (flow_out: float32)",
        shape=lambda handle, value, lengths, flow: (),
        gradient=_UNRAISED,
        stateful=True,
    )
    define(
        f"TensorArraySize{_array}, flow_in: float32) -> (size: int32)",
        shape=lambda handle, flow: (),
        gradient=NOT_DIFFERENTIABLE,
        stateful=True,
    )
    define(f"TensorArrayClose{_array}) -> ()", gradient=NOT_DIFFERENTIABLE, stateful=True)

_GRADIENT = "flow_in: float32; source: string)"
define(
    f"TensorArrayGrad(handle: string, {_GRADIENT} -> (grad_handle: ref(string))",
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
define(
    f"TensorArrayGradV2(handle: string, {_GRADIENT} -> (grad_handle: string)",
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
define(
    f"TensorArrayGradV3(handle: resource, {_GRADIENT} -> (grad_handle: resource, flow_out: float32)",
    shape=lambda handle, flow: [(), ()],
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
define(
    "TensorArrayGradWithShape(handle: resource, flow_in: float32, shape_to_prepend: int32; source: string)"
    " -> (grad_handle: resource, flow_out: float32)",
    shape=lambda handle, flow, shape: [(), ()],
    gradient=NOT_DIFFERENTIABLE,
    stateful=True,
)
