"""Shared memory: what is stored is read elsewhere, and blocks are used again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gradserve.workers.memory import Folder, Mapper, Pool, pack, unlink, unpack


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [np.float32, np.complex128, ml_dtypes.bfloat16, np.bool_])
@pytest.mark.parametrize("shape", [(), (0, 3), (300, 7)])
def test_what_is_stored_is_read_back(folder: Folder, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    read = Mapper(folder.path).load(Pool(folder.path, "a").store(array))
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.tobytes() == array.tobytes()


def test_strided_views_are_stored_as_they_look(folder: Folder) -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    assert np.array_equal(Mapper(folder.path).load(Pool(folder.path, "a").store(array)), array)


def test_a_block_that_comes_back_is_used_again(folder: Folder) -> None:
    pool = Pool(folder.path, "a")
    first = pool.store(np.zeros(10))
    second = pool.store(np.zeros(10))
    pool.take_back(first.block)
    assert pool.store(np.ones(20)).block == first.block != second.block


def test_an_unlinked_block_gives_its_pages_back_though_mapped(folder: Folder) -> None:
    reference = Pool(folder.path, "a").store(np.zeros(1 << 20))
    memory = Mapper(folder.path).memory(reference.block)
    unlink(folder.path, reference.block)
    assert not (Path(folder.path) / reference.block).exists()
    assert memory.size() == 0


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex64, ml_dtypes.bfloat16, np.bool_, object])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_packed_arrays_come_back_as_they_were(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype).T
    back = unpack(pack(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)
