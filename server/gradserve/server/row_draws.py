"""Numbers that stateless ops draw for the rows of a batch: a shard draws those of all rows and keeps its own.

The same key gives the same numbers: drawn for the shard's rows alone they would be the same in all shards.
"""

from __future__ import annotations

from collections.abc import Collection

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import raw

DRAWS = frozenset((
    "StatelessRandomNormal", "StatelessRandomNormalV2", "StatelessRandomUniform", "StatelessRandomUniformFullInt",
    "StatelessRandomUniformFullIntV2", "StatelessRandomUniformInt", "StatelessRandomUniformIntV2",
    "StatelessRandomUniformV2", "StatelessTruncatedNormal", "StatelessTruncatedNormalV2",
))  # fmt: skip
"""The ops that draw so many numbers as their first input, a shape, says, and the next ones for further rows."""


class RowDraws:
    """The rows of a shard among those of the whole batch, each cut out once.

    Attributes:
        name: of the int64 vector that is fed the number of the shard's first example, of its examples and of all
            examples; "" where nothing is drawn.
    """

    def __init__(self, nodes: Collection[Node]) -> None:
        """`nodes` draw rows: the first dimension of what they give is a multiple of the number of examples."""
        self._nodes = nodes
        self._place: Tensor | None = None
        self._shapes: dict[Tensor, Tensor] = {}  # of a shard's rows, by that of all
        self._rows: dict[Tensor, Tensor] = {}

    @property
    def name(self) -> str:
        return "" if self._place is None else self._place.name

    def instead(self, node: Node, tensor: Tensor, stands: Tensor) -> Tensor:
        """What a copy of a node reads for one of its inputs."""
        if node in self._nodes and tensor is node.inputs[0]:
            return self._of_all(stands)
        return self.rows(tensor, stands)

    def _of_all(self, shape: Tensor) -> Tensor:
        """The shape of the whole batch's numbers, from that of the shard's."""
        with shape.graph.as_default(), shape.graph.name_scope(""):
            first, others = _cut(shape, 0, 1), _cut(shape, 1, -1)
            whole = raw.ConcatV2([self._scaled(first, 2), others], 0, name="gradserve/all_rows")
        self._shapes[whole] = shape
        return whole

    def rows(self, tensor: Tensor, stands: Tensor) -> Tensor:
        """The shard's part of what a tensor stands for, where that was drawn for the whole batch."""
        if tensor.node not in self._nodes:
            return stands
        if stands not in self._rows:
            with stands.graph.as_default(), stands.graph.name_scope(""), stands.graph.colocate_with(stands):
                shape = self._shapes[stands.node.inputs[0]]
                first, others = _cut(shape, 0, 1), _cut(shape, 1, -1)
                begin = raw.ConcatV2([self._scaled(first, 0), raw.ZerosLike(others)], 0)
                self._rows[stands] = raw.Slice(stands, begin, shape, name="gradserve/rows")
        return self._rows[stands]

    def _scaled(self, rows: Tensor, entry: int) -> Tensor:
        """So many rows as go with another number of examples than the shard's."""
        if self._place is None:
            self._place = raw.Placeholder(dtype="int64", shape=(3,), name="gradserve/place")
        place = raw.Cast(self._place, DstT=rows.dtype.base)
        return raw.Mul(raw.FloorDiv(rows, _cut(place, 1, 1)), _cut(place, entry, 1))


def _cut(x: Tensor, begin: int, size: int) -> Tensor:
    return raw.Slice(x, [begin], [size])
