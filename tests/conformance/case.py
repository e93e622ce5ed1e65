"""One case: a graph, feeds, a request for gradients, and what TensorFlow answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gradserve.v1 import graph_pb2

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """Three files with a common stem."""

    folder: Path
    stem: str

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.stem}.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, Array]:
        with np.load(self.folder / f"{self.stem}.npz", allow_pickle=False) as file:
            return dict(file)

    @cached_property
    def graph(self) -> graph_pb2.GraphDef:
        return graph_pb2.GraphDef.FromString((self.folder / f"{self.stem}.pb").read_bytes())

    @property
    def request(self) -> dict[str, Any]:
        return self.meta["request"]

    @property
    def expected(self) -> dict[str, Any]:
        return self.meta["expected"]

    @property
    def y_kinds(self) -> list[str]:
        """The dtypes of the ys, as far as the case says."""
        return [entry["dtype"] for entry in self.expected.get("y", [])]

    @property
    def feeds(self) -> dict[str, Array]:
        """Fed tensors by name, in their dtypes (bfloat16 is stored as float32)."""
        return {name: _as(self.arrays[entry["key"]], entry["dtype"]) for name, entry in self.meta["feeds"].items()}

    def grad_ys(self, kinds: Sequence[str]) -> list[Array | None] | None:
        """The seeds, in the dtypes in which the request gives them; `kinds` are the dtypes of the ys."""
        keys = self.request["grad_ys"]
        if keys is None or (keys and all(key is None for key in keys)):
            return None
        return [
            None if key is None
            else _as(self.arrays[key], "bfloat16") if k < len(kinds) and kinds[k] == "bfloat16"
            else self.arrays[key]
            for k, key in enumerate(keys)
        ]  # fmt: skip


def _as(array: Array, dtype: str) -> Array:
    return array.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else array


def load(folder: Path) -> Iterator[Case]:
    """The cases of a folder, by name."""
    for path in sorted(folder.glob("*.json")):
        if path.with_suffix(".pb").exists():
            yield Case(folder, path.stem)
