"""The CuPy engine: the kernels on one GPU. What leaves a segment stays there until it is asked for on the host.

A node runs on one side. On the host, with NumPy, runs what must be known there or what no GPU takes: constants and
shapes, strings, lists and other variants, draws from a stateful stream, outputs whose shape depends on data, dtypes
that CuPy lacks, and arithmetic of integers that are there already. Everything else runs on the device. A value that is
wanted on the other side is copied once and kept on both. Importing this module raises Unsupported where there is no
CuPy or no GPU.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from gradserve.errors import GradserveError, Unsupported
from gradserve.graph import checks
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import FAILURES
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.caller import Caller
from gradserve.workers.engines.split import draws, host_positions
from gradserve.workers.memory import with_slack
from gradserve.workers.segment import Handle, Segment, State, last_reads

# Their kernels ask for what CuPy lacks: ufuncs other than sums and products that accumulate.
_ON_HOST = frozenset(("CumulativeLogsumexp",))
_DTYPES = frozenset("?bBhHiIlLqQefdFD")
_INTEGERS = "biu"
# Page-locked memory is the host's to give: larger results are copied into ordinary memory, and the host waits.
_MOST_PINNED_BYTES = 256 << 20
# Of the body of a loop, say: they are looked at together, at the latest when there are so many.
_MOST_CHECKS = 256


def _namespace() -> Any:
    try:
        found = importlib.import_module("cupy")
        count = found.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise Unsupported(
            f"The cupy engine needs CuPy: pip install 'gradserve[gpu]'. {error}.", engine="cupy"
        ) from None
    except RuntimeError as error:  # CUDARuntimeError: no driver, or no device
        raise Unsupported(f"The cupy engine needs an NVIDIA GPU: {error}.", engine="cupy") from None
    if not count:
        raise Unsupported("The cupy engine needs an NVIDIA GPU, and there is none.", engine="cupy")
    return found


cupy = _namespace()


def compile(segment: Segment) -> reference.Compiled:
    """The segment as a function from (fed values, state) to fetched values; those made on the device are there still.

    Raises Unsupported where a node has no kernel.
    """
    call = Caller(compile)
    nodes = segment.nodes()
    constants = {node.outputs[0]: node.attrs["value"] for node in nodes if node.type == "Const"}
    steps = [_Step(node, call) for node in nodes if node.type != "Const"]
    dying = last_reads([(*step.node.inputs, *step.node.outputs) for step in steps], segment.fetches)
    uploaded: dict[Tensor, Any] = {}

    def run(values: Sequence[Any], state: State) -> list[Any]:
        env = _Values(constants, uploaded)
        for tensor, value in zip(segment.feeds, values, strict=True):
            env.put(tensor, value)
        del values  # what is read for the last time can go, unless the caller holds it
        with np.errstate(all="ignore"), _checked():
            for step, dead in zip(steps, dying, strict=True):
                step(env, state)
                for tensor in dead:
                    env.drop(tensor)
        return [_fetched(env.as_made(tensor), tensor, state) for tensor in segment.fetches]

    return run


class _Checks:
    """The checks of the kernels that have run, which the device has yet to compute."""

    def __init__(self) -> None:
        self._found: list[tuple[Any, GradserveError]] = []

    def refuse(self, wrong: Any, error: GradserveError) -> None:
        self._found.append((wrong, error))
        if len(self._found) > _MOST_CHECKS:
            self.look()

    def look(self) -> None:
        """Waits for the flags; raises the error of the first that is set."""
        found, self._found = self._found, []
        for flag, (_, error) in zip(on_host([flag for flag, _ in found]), found, strict=True):
            if flag:
                raise error


@contextlib.contextmanager
def _checked() -> Generator[None]:
    """Gathers the checks of the kernels within, and raises for one that fails."""
    if checks.collector.get() is not None:  # the run of a body
        yield
        return
    found = _Checks()
    token = checks.collector.set(found)
    try:
        yield
    finally:
        checks.collector.reset(token)
    found.look()


def on_host(values: Sequence[Any]) -> list[Any]:
    """The values with arrays of the device brought to the host: the host waits once, for all."""
    on_device = [value for value in values if isinstance(value, cupy.ndarray)]
    if not on_device:
        return list(values)
    pinned = sum(value.nbytes for value in on_device) <= _MOST_PINNED_BYTES
    empty = importlib.import_module("cupyx").empty_pinned if pinned else np.empty
    stream = cupy.cuda.get_current_stream()
    brought: list[Any] = []
    for value in values:
        if isinstance(value, cupy.ndarray):
            made = empty(value.shape, value.dtype) if value.size else np.empty(value.shape, value.dtype)
            if value.size:
                value.get(stream, out=made, blocking=False)
            brought.append(made)
        else:
            brought.append(value)
    stream.synchronize()
    return brought


def limit_memory(count: int, beside: int = 0) -> None:
    """Bounds the device memory of this process: so many bytes for tensors, and kernels' scratch space."""
    cupy.get_default_memory_pool().set_limit(size=with_slack(count))


class _Values:
    """The values of one run, each on the side where it was made and, once it was wanted there, on the other.

    A constant is uploaded at its first use in any run.
    """

    __slots__ = ("_constants", "_device", "_host", "_uploaded")

    def __init__(self, constants: dict[Tensor, Any], uploaded: dict[Tensor, Any]) -> None:
        self._constants = constants
        self._uploaded = uploaded
        self._host: dict[Tensor, Any] = {}
        self._device: dict[Tensor, Any] = {}

    def put(self, tensor: Tensor, value: Any) -> None:
        """Enters a value, unless the tensor has one: a fed output keeps what was fed."""
        if tensor not in self._host and tensor not in self._device:
            (self._device if isinstance(value, cupy.ndarray) else self._host)[tensor] = value

    def drop(self, tensor: Tensor) -> None:
        """Forgets a value."""
        self._host.pop(tensor, None)
        self._device.pop(tensor, None)

    def as_made(self, tensor: Tensor) -> Any:
        """The value where it is; on the device where it is on both sides."""
        return self._device[tensor] if tensor in self._device else self._known(tensor)

    def on(self, tensor: Tensor, side: _Side) -> Any:
        """The value on a side. What is no array, or of a dtype that CuPy lacks, is the same on both."""
        if side is _Side.HOST:
            value = self._device.get(tensor)
            if value is not None and tensor not in self._host:
                self._host[tensor] = to_side(value, side)
            return self._known(tensor)
        value = self._device.get(tensor)
        if value is None:
            value = self._uploaded.get(tensor) if tensor not in self._host else None
        if value is None:
            host = self._known(tensor)
            value = to_side(host, side)
            if value is not host:
                (self._device if tensor in self._host else self._uploaded)[tensor] = value
        return value

    def is_integer(self, tensor: Tensor) -> bool:
        """Whether the value is on the host and holds integers, or is no array."""
        return tensor not in self._device and is_integer(self._known(tensor))

    def _known(self, tensor: Tensor) -> Any:
        return self._host[tensor] if tensor in self._host else self._constants[tensor]


class _Side(enum.Enum):
    """Where a node runs."""

    HOST = "host"
    DEVICE = "device"
    AS_MADE = "as made"


def to_side(value: Any, side: _Side) -> Any:
    """The value on a side: copied where it is an array on the other one."""
    if side is _Side.HOST:
        return cupy.asnumpy(value) if isinstance(value, cupy.ndarray) else value
    if side is _Side.DEVICE and isinstance(value, (np.ndarray, np.generic)) and value.dtype.char in _DTYPES:
        return cupy.asarray(value)
    return value


def _row_major(value: Any) -> Any:
    """As reference.row_major, on both sides."""
    if isinstance(value, cupy.ndarray):
        return value if value.flags.c_contiguous else cupy.ascontiguousarray(value)
    return reference.row_major(value)


def is_integer(value: Any) -> bool:
    """Whether a value is no array of floating point numbers, and not on the device."""
    if isinstance(value, cupy.ndarray):
        return False
    return not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind in _INTEGERS


class _Step:
    """One node, with where it runs."""

    def __init__(self, node: Node, call: Caller) -> None:
        definition = reference.definition_of(node)
        self.node = node
        self.kernel = reference.kernel_of(node, definition, call)
        self.dereferenced = reference.references(node)
        self.stateful = reference.takes_state(definition)
        self.host = host_positions(node)
        self.side = _side(node)
        self.integers = all(tensor.dtype.base.numpy.kind in _INTEGERS for tensor in node.outputs if _is_array(tensor))

    def __call__(self, env: _Values, state: State) -> None:
        try:
            results = self._run(env, state)
        except GradserveError:
            raise
        except MemoryError as error:
            raise reference.out_of_memory(self.node, error) from error
        except FAILURES as error:
            raise reference.failed(self.node, error) from error
        except (AttributeError, RuntimeError) as error:  # what CuPy lacks, and CUDA's errors: not the caller's fault
            raise GradserveError(
                f"{self.node.name} ({self.node.type}) can't be run on the GPU: {error}",
                node=self.node.name, op=self.node.type,
            ) from error  # fmt: skip
        for tensor, value in zip(self.node.outputs, results, strict=True):
            env.put(tensor, _row_major(value))

    def _run(self, env: _Values, state: State) -> Any:
        inputs = self.node.inputs
        side = self._chosen(env, state)
        values = [
            env.as_made(tensor) if side is _Side.AS_MADE and position not in self.host
            else env.on(tensor, _Side.HOST if position in self.host else side)
            for position, tensor in enumerate(inputs)
        ]  # fmt: skip
        if side is not _Side.AS_MADE:
            for value in values:
                if isinstance(value, Handle):
                    _bring(value, state, side)
        for position in self.dereferenced:
            values[position] = state.read(values[position])
        namespace = cupy if side is _Side.DEVICE else np
        result = self.kernel(namespace, *values, state=state) if self.stateful else self.kernel(namespace, *values)
        if len(self.node.outputs) == 1:
            return (result[0] if type(result) is list else result,)
        return result if result is not None else ()

    def _chosen(self, env: _Values, state: State) -> _Side:
        """Where the node runs this time: on the host, too, where all that it takes are integers that are there."""
        if self.side is not _Side.DEVICE or not self.integers:
            return self.side
        for position, tensor in enumerate(self.node.inputs):
            if position not in self.host and not env.is_integer(tensor):
                return _Side.DEVICE
            value = env.as_made(tensor)
            if isinstance(value, Handle) and state.is_initialised(value) and not is_integer(state.read(value)):
                return _Side.DEVICE
        return _Side.HOST


def _side(node: Node) -> _Side:
    """Where a node is to run by what it is."""
    op = node.op
    assert op is not None
    assert op.kernel is not None
    if op.kernel.wants_call or op.static is not None:
        return _Side.AS_MADE
    tensors = (*node.inputs, *node.outputs)
    if op.dynamic or not node.inputs or draws(node, op) or node.type in _ON_HOST:
        return _Side.HOST
    if any(tensor.dtype.kind in "sv" or (_is_array(tensor) and not _has_dtype(tensor)) for tensor in tensors):
        return _Side.HOST
    return _Side.DEVICE


def _is_array(tensor: Tensor) -> bool:
    return tensor.dtype.kind not in "rsv"


def _has_dtype(tensor: Tensor) -> bool:
    return np.dtype(tensor.dtype.base.numpy).char in _DTYPES


def _bring(handle: Handle, state: State, side: _Side) -> None:
    """Brings a variable's value to a side, for this step and the segments that come after it."""
    for values in (state.updates, state.values):
        if handle.variable in values:
            values[handle.variable] = to_side(values[handle.variable], side)
            return


def _fetched(value: Any, tensor: Tensor, state: State) -> Any:
    return state.read(value) if tensor.dtype.is_reference and isinstance(value, Handle) else value
