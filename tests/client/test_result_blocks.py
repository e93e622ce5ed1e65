"""Large results of a server on the same host come in a block that the client offers, else by message."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.client import blocks as module
from gradserve.client.blocks import FOLDER, Block, Blocks
from gradserve.client.call import Deadline
from gradserve.client.messages import Writer
from gradserve.errors import InvalidArgument, Unavailable
from gradserve.graph import dtypes
from gradserve.v1 import gradient_service_pb2 as wire
from tests.client.test_calls import either

__all__ = ["either"]

MEBIBYTE = 1 << 18  # elements of float32


def ones() -> tuple[gs.Graph, gs.Tensor, gs.Tensor]:
    """A tensor of as many elements as are fed, each of them the number."""
    with gs.Graph().as_default() as graph:
        count = gs.placeholder("int32", (1,), "count")
        return graph, count, gs.raw.Fill(count, np.float32(3))


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("A large result came in messages.")

    monkeypatch.setattr(Deadline, "download", refused)


def test_large_results_come_in_a_block(either: Any, no_downloads: None) -> None:
    graph, count, filled = ones()
    kept: list[np.ndarray[Any, Any]] = []
    for size in (2 * MEBIBYTE, 5 * MEBIBYTE, 100_000, 7):  # the second is longer than what was offered
        result, same, total = either.run(graph, {count: [size]}, [filled, filled * np.float32(2), gs.sum(filled)])
        np.testing.assert_array_equal(result, np.full(size, 3, np.float32))
        np.testing.assert_array_equal(same, np.full(size, 6, np.float32))
        assert total == 3 * size
        kept.append(result)
    for result in kept:  # no call has written over what another one gave
        assert np.all(result == 3)


def test_gradients_come_in_a_block_too(either: Any, no_downloads: None) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), "x")
        y = gs.sum(gs.square(x))
    value = np.linspace(-1, 1, 3 * MEBIBYTE, dtype=np.float32)
    for shards in (None, 2):
        gradients = either.compute_gradients(
            graph, y, x, {x: value}, shards=shards, split=shards and x, reduction="sum"
        )
        np.testing.assert_array_equal(gradients[0], 2 * value)


def test_a_block_is_used_again_when_its_last_result_is_gone(client: gs.Client) -> None:
    graph, count, filled = ones()
    blocks = client.uploaded.blocks
    assert blocks is not None
    [first] = client.run(graph, {count: [2 * MEBIBYTE]}, filled)
    [lent] = blocks._lent
    part = first[10:20]
    del first
    gc.collect()
    assert blocks._lent == [lent]
    [second] = client.run(graph, {count: [2 * MEBIBYTE]}, filled)
    assert len(blocks._lent) == 2
    del part
    gc.collect()
    idle = list(blocks._idle)  # and what other tests have left
    assert lent in idle
    [third] = client.run(graph, {count: [2 * MEBIBYTE]}, filled)
    assert any(block in idle for block in blocks._lent)
    del second, third
    gc.collect()
    assert not blocks._lent


def test_small_results_hold_no_block(client: gs.Client) -> None:
    graph, count, filled = ones()
    blocks = client.uploaded.blocks
    assert blocks is not None
    [result] = client.run(graph, {count: [MEBIBYTE // 4]}, filled)
    assert not blocks._lent
    assert result.base is None or isinstance(result.base, np.ndarray)
    np.testing.assert_array_equal(result, np.full(MEBIBYTE // 4, 3, np.float32))


def test_a_server_that_can_not_reach_the_block_answers_by_reference(
    client: gs.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, count, filled = ones()

    class Elsewhere(Blocks):
        def offer(self) -> Block | None:
            block = super().offer()
            assert block is not None
            os.unlink(FOLDER / block.name)
            return block

    elsewhere = Elsewhere()
    monkeypatch.setattr(client.uploaded, "blocks", elsewhere)
    [result] = client.run(graph, {count: [2 * MEBIBYTE]}, filled)
    np.testing.assert_array_equal(result, np.full(2 * MEBIBYTE, 3, np.float32))
    assert not elsewhere._lent
    elsewhere.close()


def test_results_hold_no_more_than_the_bound(client: gs.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LENT", 2)  # calls that run count too
    graph, count, filled = ones()
    blocks = client.uploaded.blocks
    assert blocks is not None
    kept = [client.run(graph, {count: [2 * MEBIBYTE]}, filled)[0] for _ in range(4)]
    assert len(blocks._lent) == 2
    assert all(np.all(result == 3) for result in kept)


def test_results_outlive_their_client_and_their_blocks_names_do_not() -> None:
    blocks = Blocks()
    block = blocks.offer()
    assert block is not None
    os.pwrite(block.descriptor, b"abc", 0)
    result = blocks.lend(block)
    gone = weakref.ref(result)
    blocks.close()
    assert not (FOLDER / block.name).exists()
    assert bytes(result[:3]) == b"abc"
    del result
    gc.collect()
    assert gone() is None
    assert block.descriptor == -1


def test_an_answer_that_names_what_is_not_there_is_refused() -> None:
    blocks = Blocks()
    writer = Writer(Deadline(None), blocks)
    name = writer.offer()
    number = dtypes.as_dtype("float32").number
    with pytest.raises(Unavailable, match="not offered"):
        writer.received(wire.SharedMemory(block="gradserve-client-other", dtype=number, dims=[1]))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unavailable, match="broke off"):
        writer.received(wire.SharedMemory(block=name, dtype=number, dims=[1 << 30]))  # pyright: ignore[reportArgumentType]
    writer.end(unread=False)
    blocks.close()


def test_only_a_clients_block_is_written_to(client: gs.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, count, filled = ones()
    blocks = client.uploaded.blocks
    assert blocks is not None
    block = Block(1 << 20)
    name = block.name
    block.name = "gradserve-worker"
    monkeypatch.setattr(blocks, "offer", lambda: block)
    with pytest.raises(InvalidArgument, match="gradserve-client-"):
        client.run(graph, {count: [2 * MEBIBYTE]}, filled)
    os.unlink(FOLDER / name)
