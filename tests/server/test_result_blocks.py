"""What the server writes to blocks that callers offer for results, and what it refuses to."""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gradserve.errors import InvalidArgument, LimitExceeded
from gradserve.graph import dtypes
from gradserve.server.blocks import SHARED_MEMORY, Results, read_block
from gradserve.server.limits import Limits
from gradserve.server.tensor_store import TensorStore
from gradserve.server.values import Encoder
from gradserve.v1 import gradient_service_pb2 as wire

FLOAT = dtypes.as_dtype("float32")
LARGE = np.arange(600_000, dtype=np.float32)


@pytest.fixture
def block() -> Iterator[Path]:
    """An empty block of a client's."""
    path = SHARED_MEMORY / f"gradserve-client-test-{uuid.uuid4().hex}"
    path.touch(0o600)
    yield path
    path.unlink(missing_ok=True)


def test_results_stand_one_behind_the_other_and_are_read_as_feeds_are(block: Path) -> None:
    results = Results(block.name)
    arrays = [LARGE, LARGE[::7], np.float32(3) * LARGE.reshape(2, -1)]
    found = [asyncio.run(results.write(array, FLOAT)) for array in arrays]
    for array, where in zip(arrays, found, strict=True):
        assert where is not None
        assert where.offset % 64 == 0
        np.testing.assert_array_equal(read_block(where), array)


def test_a_block_that_can_not_grow_is_left_as_it_was(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    block.write_bytes(b"before")
    results = Results(block.name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert asyncio.run(results.write(LARGE, FLOAT)) is None
    assert block.read_bytes() == b"before"
    assert asyncio.run(results.write(LARGE, FLOAT)) is None  # the rest of the answer goes the other way too


def test_only_blocks_of_clients_that_are_there_are_written(block: Path) -> None:
    assert asyncio.run(Results("").write(LARGE, FLOAT)) is None
    assert asyncio.run(Results(f"{block.name}-gone").write(LARGE, FLOAT)) is None
    for name in ("gradserve-worker", "gradserve-client-/../other", "passwords"):
        with pytest.raises(InvalidArgument, match="gradserve-client-"):
            Results(name)
    link = block.with_name(f"{block.name}-link")
    link.symlink_to(block)
    try:
        assert asyncio.run(Results(link.name).write(LARGE, FLOAT)) is None
    finally:
        link.unlink()
    assert not block.read_bytes()


def test_the_limit_of_a_tensor_holds_in_blocks_too(block: Path, tmp_path: Path) -> None:
    encoder = Encoder(TensorStore(tmp_path, Limits(max_tensor_bytes=1 << 20)), block.name)
    with pytest.raises(LimitExceeded, match="fetch it in parts"):
        asyncio.run(encoder.encode(wire.TensorValue(), LARGE, FLOAT))
    assert not block.read_bytes()
