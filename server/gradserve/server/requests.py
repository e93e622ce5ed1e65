"""What a command asks for, as the messages of the wire."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import codec, dtypes
from gradserve.saved.model import Model, read_model
from gradserve.server.remote import Array, Remote
from gradserve.v1 import gradient_service_pb2 as wire

METHODS = {
    "add-n": wire.AGGREGATION_METHOD_ADD_N,
    "tree": wire.AGGREGATION_METHOD_TREE,
    "accumulate-n": wire.AGGREGATION_METHOD_ACCUMULATE_N,
}
UNCONNECTED = {"none": wire.UNCONNECTED_GRADIENTS_NONE, "zero": wire.UNCONNECTED_GRADIENTS_ZERO}
REDUCTIONS = {"mean": wire.REDUCTION_MEAN, "sum": wire.REDUCTION_SUM}


class Asked:
    """A model, and the tensors that a command names: as its signature does, or as the graph does."""

    def __init__(self, path: Path, signature: str | None) -> None:
        """Raises NotFound where there is no such signature, and the errors of `read_model`."""
        self.model: Model = read_model(path)
        self._names: Mapping[str, str] = self.model.names(signature) if signature is not None else {}

    def tensor(self, name: str) -> str:
        """The name of a tensor in the graph."""
        return self._names.get(name, name)

    def tensors(self, names: Iterable[str]) -> list[str]:
        """The names of tensors in the graph."""
        return [self.tensor(name) for name in names]

    def signatures(self) -> str:
        """A sentence on each signature."""
        return "".join(
            f" The signature {name} has the inputs {', '.join(sorted(inputs))} and the outputs "
            f"{', '.join(sorted(outputs))}."
            for name, (inputs, outputs) in sorted(self.model.signatures.items())
        )

    def feeds(self, remote: Remote, arrays: Mapping[str, Array]) -> list[wire.NamedTensor]:
        """Values to feed."""
        return [
            wire.NamedTensor(name=self.tensor(name), value=remote.value(array, name)) for name, array in arrays.items()
        ]

    def specs(self, arrays: Mapping[str, Array]) -> list[wire.TensorSpec]:
        """Dtypes and shapes to feed."""
        specs: list[wire.TensorSpec] = []
        for name, array in arrays.items():
            number: Any = dtypes.as_dtype(array.dtype).number
            shape = codec.shape_to_message(array.shape)
            specs.append(wire.TensorSpec(name=self.tensor(name), dtype=number, shape=shape))
        return specs

    def run_options(
        self,
        allow_soft_placement: bool,
        shards: int | None,
        split: Sequence[str],
        reduction: str,
        local_statistics: bool,
        memory_budget: int,
    ) -> wire.RunOptions:
        """How a step is run. Raises InvalidArgument."""
        message = wire.RunOptions(allow_soft_placement=allow_soft_placement, memory_budget_bytes=memory_budget)
        if shards is not None:
            message.sharding.CopyFrom(
                wire.Sharding(
                    shards=shards, feeds=self.tensors(split), reduction=REDUCTIONS[reduction],
                    local_statistics=local_statistics,
                )
            )  # fmt: skip
        elif split:
            raise InvalidArgument("--split names feeds to split, but there is no --shards: say how many.")
        return message

    def gradient_options(self, remote: Remote, options: Mapping[str, Any]) -> wire.GradientOptions:
        """The arguments of `gradients`. Raises InvalidArgument."""
        message = wire.GradientOptions(
            ys=self.tensors(options["ys"]),
            xs=self.tensors(options["xs"]),
            name=options["name"],
            colocate_gradients_with_ops=options["colocate_gradients_with_ops"],
            gate_gradients=options["gate_gradients"],
            aggregation_method=METHODS[options["aggregation_method"]],
            stop_gradients=self.tensors(options["stop_gradients"]),
            unconnected_gradients=UNCONNECTED[options["unconnected_gradients"]],
            deduplicate=options["deduplicate"],
        )
        arrays, tensors = read_arrays(options["grad_ys"]), options["grad_y_tensors"]
        unknown = sorted((set(arrays) | set(tensors)) - set(options["ys"]))
        if unknown:
            raise InvalidArgument(
                f"There are seeds for {', '.join(unknown)}, which --ys does not name: name them there too."
            )
        if arrays or tensors:
            for y in options["ys"]:
                seed = message.grad_ys.add()
                if y in tensors:
                    seed.tensor = self.tensor(tensors[y])
                elif y in arrays:
                    seed.value.CopyFrom(remote.value(arrays[y], f"seed of {y}"))
        return message


def read_arrays(path: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file. Raises InvalidArgument."""
    if path is None:
        return {}
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise InvalidArgument(f"{path} is no .npz file of plain arrays: {error}. Write it with numpy.savez.") from None
