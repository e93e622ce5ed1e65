"""The graph store: GraphDefs in SQLite, and in memory what has been made of them.

Two levels, because a graph is the same whether it is stored or inline:

    GraphStore     names, versions, etags; survives a restart
    GraphVersion   one content, told apart by the digest of its bytes: parsed once, never changed

A gradient request is prepared on a private copy of the graph, so that a stored graph changes only when asked to.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradserve.errors import AlreadyExists, FailedPrecondition, InvalidArgument, InvalidGraph, NotFound
from gradserve.graph import codec
from gradserve.graph.graph import Graph
from gradserve.graph.shapes import Shape, compatible, merge
from gradserve.server.limits import Limits
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import graph_pb2

SCHEMA = """
CREATE TABLE IF NOT EXISTS graphs (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL,
    node_count INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    graph_def BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS newest ON graphs (created DESC, name);
"""
COLUMNS = "name, version, digest, node_count, size_bytes, created, updated"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PLACEHOLDERS = frozenset(("Placeholder", "PlaceholderV2", "PlaceholderWithDefault"))
DEFAULT_PAGE = 50
LARGEST_PAGE = 1000


def digest_of(data: bytes) -> bytes:
    """What tells the contents of graphs apart."""
    return hashlib.sha256(data).digest()


def resource_name(collection: str, identifier: str) -> str:
    """`collection/identifier`, the identifier made up where it is empty. Raises InvalidArgument."""
    if not identifier:
        return f"{collection}/{uuid.uuid4().hex[:16]}"
    if ID.fullmatch(identifier) is None:
        raise InvalidArgument(
            f"{identifier!r} can't be an id: use up to 128 letters, digits, '-', '_' and '.', and begin with a "
            "letter or digit.",
            id=identifier,
        )
    return f"{collection}/{identifier}"


def page_bounds(page_size: int, page_token: str) -> tuple[int, int]:
    """Size and offset of a page. Raises InvalidArgument."""
    if page_size < 0:
        raise InvalidArgument(f"page_size can't be negative: {page_size}.", page_size=page_size)
    if page_token and not page_token.isdecimal():
        raise InvalidArgument(
            f"{page_token!r} is no page token: use the next_page_token of the page before.", page_token=page_token
        )
    return min(page_size or DEFAULT_PAGE, LARGEST_PAGE), int(page_token or 0)


class GraphVersion:
    """One content of a graph.

    Invariant: neither `data` nor what `graph()` returns changes.

    Attributes:
        digest: of the bytes.
        data: the serialised GraphDef.
        node_count: nodes, functions' bodies apart.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.digest = digest_of(data)
        self.data = data
        message = codec.read_graph(data)
        bodies = sum(len(function.node_def) for function in message.library.function)
        self.node_count = len(message.node)
        limits.check("max_graph_nodes", self.node_count + bodies, "The number of nodes", "send a smaller graph")
        self._graph = codec.graph_from_message(message)

    def graph(self) -> Graph:
        """The graph, to read."""
        return self._graph

    def copy(self, shapes: Iterable[tuple[str, Shape]] = ()) -> Graph:
        """A graph of its own, to extend; `shapes` say more of its placeholders, where they do not contradict."""
        message = codec.read_graph(self.data)
        said = dict(shapes)
        for node in message.node if said else ():
            shape = said.get(f"{node.name}:0")
            if shape is not None and node.op in PLACEHOLDERS:
                known = codec.shape_from_message(node.attr["shape"].shape) if "shape" in node.attr else None
                if compatible(known, shape):
                    node.attr["shape"].shape.CopyFrom(codec.shape_to_message(merge(known, shape)))
        return codec.graph_from_message(message)


def extend(data: bytes, addition: bytes) -> bytes:
    """The bytes of a graph and more nodes and functions. Raises InvalidGraph where a name is taken."""
    message, more = codec.read_graph(data), codec.read_graph(addition)
    taken = {node.name for node in message.node}
    for node in more.node:
        if node.name in taken:
            raise InvalidGraph(f"The graph already has a node {node.name!r}: rename the new one.", node=node.name)
    functions = {function.signature.name: function for function in message.library.function}
    for function in more.library.function:
        known = functions.get(function.signature.name)
        if known is not None and known != function:
            name = function.signature.name
            raise InvalidGraph(f"The graph already has another function {name!r}: rename the new one.", function=name)
    new = [function for function in more.library.function if function.signature.name not in functions]
    message.node.extend(more.node)
    message.library.function.extend(new)
    message.library.gradient.extend(more.library.gradient)
    return message.SerializeToString(deterministic=True)


def serialize(message: graph_pb2.GraphDef) -> bytes:
    """The bytes that stand for a graph given as a message."""
    return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Record:
    """What the store knows of a graph, apart from its bytes."""

    name: str
    version: int
    digest: bytes
    node_count: int
    size_bytes: int
    created: float
    updated: float

    @property
    def etag(self) -> str:
        return f"{self.version}-{self.digest.hex()[:16]}"

    def check(self, etag: str) -> None:
        """Raises FailedPrecondition where the caller has seen another state."""
        if etag and etag != self.etag:
            raise FailedPrecondition(
                f"{self.name} has changed: its etag is {self.etag!r}, not {etag!r}. Get it again and retry.",
                graph=self.name, etag=self.etag,
            )  # fmt: skip

    def message(self) -> wire.Graph:
        """The wire's form."""
        message = wire.Graph(
            name=self.name,
            version=self.version,
            etag=self.etag,
            node_count=self.node_count,
            size_bytes=self.size_bytes,
        )
        message.create_time.FromNanoseconds(int(self.created * 1e9))
        message.update_time.FromNanoseconds(int(self.updated * 1e9))
        return message


class GraphStore:
    """Named graphs on disk. Safe to use from several threads; one process at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._heads: dict[str, Record] = {}
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        """Ends the use of the file."""
        with self._lock:
            self._database.close()

    def count(self) -> int:
        """How many graphs there are."""
        with self._lock:
            return self._database.execute("SELECT COUNT(*) FROM graphs").fetchone()[0]

    def get(self, name: str) -> Record:
        """What is stored under a name. Raises NotFound."""
        head = self._heads.get(name)
        if head is not None:
            return head
        with self._lock:
            row = self._database.execute(f"SELECT {COLUMNS} FROM graphs WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"There is no graph {name!r}: create it first.", graph=name)
            self._heads[name] = Record(*row)
            return self._heads[name]

    def read(self, record: Record) -> bytes | None:
        """The serialised GraphDef, or None where the graph has changed since."""
        with self._lock:
            row = self._database.execute(
                "SELECT graph_def FROM graphs WHERE name = ? AND version = ? AND digest = ?",
                (record.name, record.version, record.digest),
            ).fetchone()
        return None if row is None else row[0]

    def page(self, page_size: int, page_token: str) -> tuple[list[Record], str]:
        """A page of graphs, the newest first, and the token of the next one."""
        size, offset = page_bounds(page_size, page_token)
        with self._lock:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM graphs ORDER BY created DESC, name LIMIT ? OFFSET ?", (size + 1, offset)
            ).fetchall()
        return [Record(*row) for row in rows[:size]], str(offset + size) if len(rows) > size else ""

    def create(self, name: str, version: GraphVersion) -> Record:
        """Stores a new graph. Raises AlreadyExists."""
        now = time.time()
        record = Record(name, 1, version.digest, version.node_count, len(version.data), now, now)
        with self._lock:
            try:
                self._database.execute(
                    f"INSERT INTO graphs ({COLUMNS}, graph_def) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, 1, version.digest, version.node_count, len(version.data), now, now, version.data),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExists(f"There is a graph {name!r} already: extend or delete it.", graph=name) from None
            self._heads[name] = record
        return record

    def replace(self, before: Record, version: GraphVersion) -> Record:
        """Stores the next version of a graph. Raises FailedPrecondition where it is no longer as it was before."""
        now = time.time()
        record = Record(
            before.name, before.version + 1, version.digest, version.node_count, len(version.data), before.created, now
        )
        with self._lock:
            changed = self._database.execute(
                "UPDATE graphs SET version = ?, digest = ?, node_count = ?, size_bytes = ?, updated = ?, graph_def = ? "
                "WHERE name = ? AND version = ?",
                (record.version, record.digest, record.node_count, record.size_bytes, now, version.data, before.name,
                 before.version),
            ).rowcount  # fmt: skip
            if not changed:
                self._heads.pop(before.name, None)
                raise FailedPrecondition(
                    f"{before.name} was changed by someone else meanwhile: get it again and retry.", graph=before.name
                )
            self._heads[before.name] = record
        return record

    def delete(self, name: str, etag: str = "") -> None:
        """Forgets a graph. Raises NotFound, FailedPrecondition."""
        self.get(name).check(etag)
        with self._lock:
            self._database.execute("DELETE FROM graphs WHERE name = ?", (name,))
            self._heads.pop(name, None)
