"""Large feeds for a server on the same host go through shared memory, and through messages where that fails."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.client.blocks import FOLDER, Block, Blocks, for_address
from gradserve.client.messages import Writer
from gradserve.errors import GradserveError
from tests.client.test_calls import either

__all__ = ["either"]

LARGE = np.linspace(0, 1, 1 << 20, dtype=np.float64)  # 8 MiB


def total() -> tuple[gs.Graph, gs.Tensor, gs.Tensor]:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float64", (None,), "x")
        return graph, x, gs.sum(x)


@pytest.fixture
def no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("A large feed went ahead in messages.")

    monkeypatch.setattr(Writer, "send_ahead", refused)


def test_large_feeds_are_handed_over_without_messages(either: Any, no_messages: None) -> None:
    graph, x, y = total()
    for factor in (1.0, 2.0, -3.0):  # the same block, other content
        [result] = either.run(graph, {x: LARGE * factor}, y)
        np.testing.assert_allclose(result, factor * (1 << 19))
    strided = np.repeat(LARGE, 2)[::2]
    np.testing.assert_allclose(either.run(graph, {x: strided}, y)[0], 1 << 19)
    [dx] = either.compute_gradients(graph, y, x, {x: LARGE}, shards=2)
    np.testing.assert_array_equal(dx, np.ones(1 << 20))


def test_what_the_server_can_not_see_goes_by_message(monkeypatch: pytest.MonkeyPatch, client: gs.Client) -> None:
    graph, x, y = total()

    class Elsewhere(Blocks):
        def take(self, size: int) -> Block | None:
            block = super().take(size)
            assert block is not None
            os.unlink(FOLDER / block.name)
            return block

    monkeypatch.setattr(client.uploaded, "blocks", Elsewhere())
    np.testing.assert_allclose(client.run(graph, {x: LARGE}, y)[0], 1 << 19)
    assert client.uploaded.blocks is None


def test_a_block_is_used_again_once_the_server_has_answered_and_only_then(client: gs.Client) -> None:
    graph, x, y = total()
    blocks = client.uploaded.blocks
    assert blocks is not None
    client.run(graph, {x: LARGE}, y)
    before = {block.name for block in blocks._idle}
    client.run(graph, {x: LARGE}, y)
    assert {block.name for block in blocks._idle} == before
    with pytest.raises(GradserveError):
        client.run(graph, {x: LARGE}, "no_such_tensor")
    left = {block.name for block in blocks._idle}
    assert left < before
    assert len(left) == len(before) - 2  # the one that was fed, and the one for results


def test_blocks_go_with_their_client_and_those_of_the_dead_with_the_next() -> None:
    blocks = Blocks()
    block = blocks.take(1)
    assert block is not None
    blocks.give_back(block, unread=False)
    left = FOLDER / "gradserve-client-0-left"
    left.write_bytes(b"0")
    other = Blocks()
    assert (FOLDER / block.name).exists()
    assert not left.exists()
    for each in (blocks, other):
        each.close()
        each.close()
    assert not (FOLDER / block.name).exists()


def test_only_servers_on_this_host_are_handed_blocks() -> None:
    assert for_address("10.0.0.7:7433") is None
    assert for_address("127.0.0.1:7433") is not None
