"""Python values to messages and back: names, arrays, graphs, the options of gradients.

What is small travels inside the message; what is over 1 MiB, or would make a message larger than every gRPC
implementation takes, goes by reference through the TensorService, under a name made from its content.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradserve.autodiff.aggregate import as_method
from gradserve.client.blocks import Block, Blocks
from gradserve.client.call import CHUNK_BYTES, Array, Call, Copy, Deadline
from gradserve.client.results import Cause, GradientResult, NonFinite, Range, Reason
from gradserve.errors import InvalidArgument, InvalidType, NotFound, Unavailable
from gradserve.graph import codec, dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor, to_array
from gradserve.graph.variants import cannot_feed
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import tensor_service_pb2

INLINE_BYTES = CHUNK_BYTES
MESSAGE_BYTES = 3 << 20  # of the 4 MiB that every gRPC implementation takes by default
INLINE_GRAPH_BYTES = 32 << 10  # a larger graph is sent once and then named

REDUCTIONS = {"mean": wire.REDUCTION_MEAN, "sum": wire.REDUCTION_SUM}
UNCONNECTED = {"none": wire.UNCONNECTED_GRADIENTS_NONE, "zero": wire.UNCONNECTED_GRADIENTS_ZERO}

# Names


def many(value: Any) -> list[Any]:
    """A list as it is, None as no entry, anything else as one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def tensor_name(value: Any, what: str) -> str:
    """The name of a Tensor, or a name. Raises InvalidType."""
    if isinstance(value, Tensor):
        return value.name
    if isinstance(value, str):
        return value
    raise InvalidType(f"{what} must be a Tensor or a tensor's name, not {type(value).__name__}.")


def node_name(value: Any, what: str) -> str:
    """The name of a Node, of a Tensor's node, or a name. Raises InvalidType."""
    if isinstance(value, Node):
        return value.name
    return tensor_name(value, what).partition(":")[0]


def x_name(value: Any, what: str) -> str:
    """As tensor_name; a variable stands for all its reads."""
    handle = getattr(value, "handle", None)
    return tensor_name(value if handle is None else handle, what)


# Arrays


def dtype_of(graph: Any, name: Any) -> DType | None:
    """The dtype of a tensor that is fed, where it is known here."""
    if isinstance(name, Tensor):
        return name.dtype.base
    held = getattr(graph, "graph", graph)
    if isinstance(held, Graph):
        tensor = held.tensor(name)
        return None if tensor.node.op is None else tensor.dtype.base
    return None


def digest_name(data: memoryview, number: int, dims: Sequence[int]) -> str:
    """The name of a tensor in the TensorService."""
    digest = hashlib.sha256(data)
    digest.update(f"{number}:{','.join(map(str, dims))}".encode())
    return f"tensors/{digest.hexdigest()}"


class Writer:
    """Writes the values of one request, and takes the large ones of its answer.

    Attributes:
        deadline: of the call.
        references: the names of what was sent ahead.
        blocks: where large feeds are handed over on the same host, if they are.
        shared: the names of the blocks that this request used.
    """

    def __init__(self, deadline: Deadline, blocks: Blocks | None = None) -> None:
        self.deadline = deadline
        self.references: set[str] = set()
        self.blocks = blocks
        self.shared: set[str] = set()
        self._lent: list[Block] = []
        self._used = 0
        self._offered: Block | None = None
        self._end = 0  # of the results in it
        self._results: Array | None = None

    def value(self, value: Any, dtype: DType | None = None) -> Call[wire.TensorValue]:
        """An array as a value, sent ahead where it is large."""
        if isinstance(value, Tensor):
            raise InvalidType(f"{value.name} is a tensor of the graph: a value is needed here.", tensor=value.name)
        array = to_array(value, None if _fits(value, dtype) else dtype)
        kind = dtype or dtypes.as_dtype(array.dtype)
        if kind.kind == "s" or (array.nbytes <= INLINE_BYTES and self._used + array.nbytes <= MESSAGE_BYTES):
            self._used += array.nbytes
            return wire.TensorValue(tensor=codec.array_to_message(array, kind))
        return wire.TensorValue(reference=(yield from self.send_ahead(array, kind)))

    def slices(self, slices: IndexedSlices) -> Call[wire.IndexedSlicesValue]:
        """An IndexedSlices of arrays."""
        values = yield from self.value(slices.values)
        indices = yield from self.value(slices.indices)
        dense_shape = yield from self.value(slices.dense_shape)
        return wire.IndexedSlicesValue(values=values, indices=indices, dense_shape=dense_shape)

    def feeds(self, graph: Any, feeds: Mapping[Any, Any] | None) -> Call[list[wire.NamedTensor]]:
        """Values by tensor; each gets its tensor's dtype where that is known."""
        named: list[wire.NamedTensor] = []
        for key, value in (feeds or {}).items():
            name = tensor_name(key, "A key of feeds")
            dtype = dtype_of(graph, key)
            if dtype is not None and dtype.base.kind in "rv":
                raise cannot_feed(name, dtype.base)
            shared = yield from self._shared(value, dtype)
            named.append(wire.NamedTensor(name=name, value=shared or (yield from self.value(value, dtype))))
        return named

    def _shared(self, value: Any, dtype: DType | None) -> Call[wire.TensorValue | None]:
        """A large array as a value in shared memory, None where that is not the way."""
        if self.blocks is None or not isinstance(value, np.ndarray) or value.nbytes <= INLINE_BYTES:
            return None
        kind = dtype or dtypes.as_dtype(value.dtype)
        if kind.kind in "srv" or value.dtype != kind.numpy:
            return None
        block = self.blocks.take(value.nbytes)
        if block is None:
            return None
        self.shared.add(block.name)
        self._lent.append(block)
        yield Copy(value, block.memory)
        found = wire.SharedMemory(block=block.name, dims=value.shape)
        found.dtype = kind.number  # pyright: ignore[reportAttributeAccessIssue]
        return wire.TensorValue(shared_memory=found)

    def end(self, *, unread: bool) -> None:
        """Gives the blocks back; `unread`: a server may still read them."""
        if self._results is not None and self.blocks is not None:
            self.blocks.expect(self._end)
        elif self._offered is not None:
            self._lent.append(self._offered)
        self._results = self._offered = None
        while self.blocks is not None and self._lent:
            self.blocks.give_back(self._lent.pop(), unread=unread)

    def offer(self) -> str:
        """The name of a block for large results, "" where that is not the way."""
        self._offered = self.blocks.offer() if self.blocks is not None else None
        return self._offered.name if self._offered is not None else ""

    def received(self, found: wire.SharedMemory) -> Array:
        """A result in the block that was offered: a view of it, or a copy where it is small.

        Raises Unavailable where it is not there.
        """
        block = self._offered
        if self.blocks is None or block is None or found.block != block.name:
            raise Unavailable(f"A result came in {found.block!r}, which was not offered.", block=found.block)
        dtype = dtypes.from_number(found.dtype).numpy
        count = math.prod(found.dims)
        self._end = max(self._end, found.offset + count * dtype.itemsize)
        block.reach(self._end)
        if count * dtype.itemsize < INLINE_BYTES:
            return np.frombuffer(block.memory, dtype, count, found.offset).reshape(found.dims).copy()
        if self._results is None:
            self._results = self.blocks.lend(block)
        return np.frombuffer(self._results, dtype, count, found.offset).reshape(found.dims)

    def send_ahead(self, array: Array, dtype: DType) -> Call[str]:
        """Puts an array into the TensorService, unless it is there, and returns its name."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        name = digest_name(data, dtype.number, array.shape)
        self.references.add(name)
        try:
            yield from self.deadline.unary("tensors", "GetTensor", tensor_service_pb2.GetTensorRequest(name=name))
        except NotFound:
            header = tensor_service_pb2.TensorHeader(name=name, dims=array.shape, size_bytes=len(data))
            header.dtype = dtype.number  # pyright: ignore[reportAttributeAccessIssue]
            yield from self.deadline.upload(header, data)
        return name


def _fits(value: Any, dtype: DType | None) -> bool:
    return dtype is not None and isinstance(value, np.ndarray) and value.dtype == dtype.numpy and dtype.kind != "s"


def read_value(value: wire.TensorValue, writer: Writer) -> Call[Array]:
    """The array of a value, fetched where it came by reference, in place where it came in the block of the request."""
    match value.WhichOneof("kind"):
        case "reference":
            return (yield from writer.deadline.download(value.reference))
        case "shared_memory":
            return writer.received(value.shared_memory)
        case _:
            return codec.array_from_message(value.tensor)


def read_values(values: Iterable[wire.NamedTensor], writer: Writer) -> Call[list[Array]]:
    """The arrays of named values."""
    arrays: list[Array] = []
    for entry in values:
        arrays.append((yield from read_value(entry.value, writer)))
    return arrays


# Graphs


class Uploaded:
    """What this client knows of graphs: the bytes of each, made once, and where the server has them.

    Attributes:
        blocks: shared memory with the server, None where there is none.
    """

    def __init__(self, blocks: Blocks | None = None) -> None:
        self.blocks = blocks
        self._bytes: weakref.WeakKeyDictionary[Graph, tuple[int, Node | None, bytes]] = weakref.WeakKeyDictionary()
        self._names: dict[bytes, str] = {}

    def bytes_of(self, graph: Graph) -> bytes:
        """The serialised GraphDef; a graph that has not grown is not serialised again."""
        last = graph.nodes[-1] if graph.nodes else None
        known = self._bytes.get(graph)
        if known is not None and known[:2] == (len(graph), last):
            return known[2]
        data = codec.graph_to_message(graph).SerializeToString(deterministic=True)
        self._bytes[graph] = (len(graph), last, data)
        return data

    def graph_value(self, graph: Any, writer: Writer) -> Call[wire.GraphValue]:
        """A graph as a value: in the message while it is small, later and else by its digest."""
        data = self.bytes_of(graph) if isinstance(graph, Graph) else serialized(graph)
        if len(data) <= INLINE_GRAPH_BYTES:
            return wire.GraphValue(serialized=data)
        key = hashlib.sha256(data).digest()
        name = self._names.get(key)
        if name is None:
            name = yield from writer.send_ahead(np.frombuffer(data, np.uint8), dtypes.as_dtype("uint8"))
            self._names[key] = name
        writer.references.add(name)
        return wire.GraphValue(reference=name)

    def source(self, graph: Any, writer: Writer) -> Call[wire.GraphSource]:
        """Where the graph of a request is: `graphs/…`, `sessions/…`, or with the request."""
        name = graph if isinstance(graph, str) else getattr(graph, "name", None)
        if isinstance(name, str):
            if name.startswith("graphs/"):
                return wire.GraphSource(graph=name)
            if name.startswith("sessions/"):
                return wire.GraphSource(session=name)
            raise InvalidArgument(f"{name!r} names neither a graph (graphs/…) nor a session (sessions/…).", name=name)
        return wire.GraphSource(inline=(yield from self.graph_value(graph, writer)))

    def forget(self, names: Iterable[str]) -> None:
        """The server no longer holds these."""
        gone = set(names)
        self._names = {key: name for key, name in self._names.items() if name not in gone}


def serialized(graph: Any) -> bytes:
    """The bytes of a GraphDef given as bytes or as a message, TensorFlow's own included. Raises InvalidType."""
    if isinstance(graph, (bytes, bytearray)):
        return bytes(graph)
    serialize = getattr(graph, "SerializeToString", None)
    if serialize is None:
        raise InvalidType(f"A graph is a Graph, a GraphDef, its bytes or a name, not {type(graph).__name__}.")
    return serialize()


# Options


def run_options(
    shards: int | None, split: Any, reduction: str, local_statistics: bool, **options: Any
) -> wire.RunOptions:
    """How a step is run. Raises InvalidArgument."""
    message = wire.RunOptions(**options)
    if reduction not in REDUCTIONS:
        raise InvalidArgument(f"Unknown reduction {reduction!r}: use 'mean' or 'sum'.", value=reduction)
    if shards is not None:
        feeds = [tensor_name(feed, "An entry of split") for feed in many(split)]
        message.sharding.CopyFrom(
            wire.Sharding(
                shards=shards, feeds=feeds, reduction=REDUCTIONS[reduction], local_statistics=local_statistics
            )
        )
    elif split is not None:
        raise InvalidArgument("There are feeds to split, but no shards: say how many.")
    return message


# Gradients


def gradient_options(
    graph: Any,
    writer: Writer,
    ys: Any,
    xs: Any,
    grad_ys: Any,
    name: str,
    colocate_gradients_with_ops: bool,
    gate_gradients: bool,
    aggregation_method: Any,
    stop_gradients: Any,
    unconnected_gradients: str,
    deduplicate_slices: bool,
) -> Call[wire.GradientOptions]:
    """The arguments of `gradients` as a message."""
    if unconnected_gradients not in UNCONNECTED:
        raise InvalidArgument(
            f"Unknown value for unconnected_gradients: {unconnected_gradients!r}. Use 'none' or 'zero'.",
            value=unconnected_gradients,
        )
    options = wire.GradientOptions(
        ys=[tensor_name(y, "An entry of ys") for y in many(ys)],
        xs=[x_name(x, "An entry of xs") for x in many(xs)],
        name=name,
        colocate_gradients_with_ops=colocate_gradients_with_ops,
        gate_gradients=gate_gradients,
        stop_gradients=[tensor_name(stop, "An entry of stop_gradients") for stop in many(stop_gradients)],
        unconnected_gradients=UNCONNECTED[unconnected_gradients],
        deduplicate=deduplicate_slices,
    )
    if aggregation_method is not None:
        options.aggregation_method = as_method(aggregation_method) + 1  # pyright: ignore[reportAttributeAccessIssue]
    if grad_ys is not None:
        seeds = many(grad_ys)
        if len(seeds) != len(options.ys):
            raise InvalidArgument(f"Length mismatch. Passed {len(seeds)} grad_ys for {len(options.ys)} ys")
        for y, seed in zip(many(ys), seeds, strict=True):
            options.grad_ys.append((yield from _seed(graph, writer, y, seed)))
    return options


def _seed(graph: Any, writer: Writer, y: Any, seed: Any) -> Call[wire.GradientSeed]:
    if seed is None:
        return wire.GradientSeed()
    if isinstance(seed, Tensor):
        return wire.GradientSeed(tensor=seed.name)
    if isinstance(seed, IndexedSlices):
        return wire.GradientSeed(indexed_slices=(yield from writer.slices(seed)))
    dtype = None if isinstance(seed, np.ndarray) else dtype_of(graph, y)
    return wire.GradientSeed(value=(yield from writer.value(seed, dtype)))


def read_gradients(response: wire.ComputeGradientsResponse, writer: Writer) -> Call[GradientResult]:
    """The result of ComputeGradients."""
    entries: list[Array | IndexedSlices | None] = []
    reasons: list[Reason | None] = []
    for gradient in response.gradients:
        reason = None
        match gradient.WhichOneof("kind"):
            case "dense":
                entries.append((yield from read_value(gradient.dense, writer)))
            case "indexed_slices":
                parts = gradient.indexed_slices
                values = yield from read_value(parts.values, writer)
                indices = yield from read_value(parts.indices, writer)
                dense_shape = yield from read_value(parts.dense_shape, writer)
                entries.append(IndexedSlices(values, indices, dense_shape))
            case _:
                none = gradient.none
                entries.append(None)
                reason = Reason(Cause(none.reason), none.node, none.op, tuple(none.path), none.message)
        reasons.append(reason)
    ys = yield from read_values(response.ys, writer)
    fetches = yield from read_values(response.fetches, writer)
    return GradientResult(entries, reasons, ys, fetches, _culprit(response))


def _culprit(response: wire.ComputeGradientsResponse) -> NonFinite | None:
    if not response.HasField("nonfinite"):
        return None
    found = response.nonfinite
    given, made = (
        tuple(Range(each.tensor, each.nan_count, each.infinity_count, each.least, each.greatest) for each in ranges)
        for ranges in (found.inputs, found.outputs)
    )
    shard = found.shard if found.HasField("shard") else None
    return NonFinite(found.node, found.op, found.forward_node, given, made, shard)


def specs(graph: Any, feeds: Mapping[Any, Any] | None) -> list[wire.TensorSpec]:
    """What is known of feeds without their values: from arrays, or from shapes (tuples) in place of them."""
    found: list[wire.TensorSpec] = []
    for key, value in (feeds or {}).items():
        dtype = dtype_of(graph, key)
        if isinstance(value, tuple):
            if dtype is None:
                raise InvalidArgument(
                    f"The dtype of {key} is not known here: feed an array in place of a shape.", tensor=key
                )
            shape = value
        else:
            array = to_array(value, dtype)
            dtype, shape = dtype or dtypes.as_dtype(array.dtype), array.shape
        spec = wire.TensorSpec(name=tensor_name(key, "A key of feeds"), shape=codec.shape_to_message(shape))
        spec.dtype = dtype.number  # pyright: ignore[reportAttributeAccessIssue]
        found.append(spec)
    return found
