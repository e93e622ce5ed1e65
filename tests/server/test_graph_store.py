"""The graph store: names, versions, etags, and that they survive a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradserve.errors import AlreadyExists, FailedPrecondition, InvalidArgument, InvalidGraph, NotFound
from gradserve.server.graphs import GraphStore, GraphVersion, extend, page_bounds, resource_name
from gradserve.server.limits import Limits
from gradserve.v1 import graph_pb2
from tests.server.serving import chain, product


def version(data: bytes) -> GraphVersion:
    return GraphVersion(data, Limits())


def test_a_graph_survives_a_restart(tmp_path: Path) -> None:
    store = GraphStore(tmp_path / "graphs.sqlite")
    made = store.create("graphs/a", version(product()))
    store.close()
    again = GraphStore(tmp_path / "graphs.sqlite")
    assert again.get("graphs/a") == made
    assert again.read(made) == product()
    again.close()


def test_each_change_is_a_new_version_with_a_new_etag(tmp_path: Path) -> None:
    store = GraphStore(tmp_path / "graphs.sqlite")
    first = store.create("graphs/a", version(product()))
    second = store.replace(first, version(chain(3)))
    assert (second.version, second.created) == (2, first.created)
    assert first.etag != second.etag
    assert store.read(first) is None
    with pytest.raises(FailedPrecondition, match="changed by someone else"):
        store.replace(first, version(chain(4)))
    with pytest.raises(FailedPrecondition, match="has changed"):
        store.delete("graphs/a", first.etag)
    store.delete("graphs/a", second.etag)
    with pytest.raises(NotFound):
        store.get("graphs/a")
    store.close()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    store = GraphStore(tmp_path / "graphs.sqlite")
    store.create("graphs/a", version(product()))
    with pytest.raises(AlreadyExists):
        store.create("graphs/a", version(chain(1)))
    store.close()


def test_an_extension_may_not_redefine_a_node() -> None:
    with pytest.raises(InvalidGraph, match="already has a node 'x'"):
        extend(product(), graph_pb2.GraphDef(node=[graph_pb2.NodeDef(name="x", op="NoOp")]).SerializeToString())


def test_ids_are_checked_and_made_up() -> None:
    assert resource_name("graphs", "a.b-c_1") == "graphs/a.b-c_1"
    assert resource_name("graphs", "") != resource_name("graphs", "")
    for wrong in ("../up", "a/b", ".hidden", "x" * 200):
        with pytest.raises(InvalidArgument, match="can't be an id"):
            resource_name("graphs", wrong)


def test_page_tokens_are_checked() -> None:
    assert page_bounds(0, "") == (50, 0)
    assert page_bounds(9999, "7") == (1000, 7)
    for size, token in ((-1, ""), (1, "x")):
        with pytest.raises(InvalidArgument):
            page_bounds(size, token)
