"""Between which workers' devices tensors go directly, by NCCL. What goes no way passes through host memory.

Workers are named by the epochs of their incarnations: what was true of one life says nothing of the next.
"""

from __future__ import annotations

import logging

from gradserve.workers.transport import Gpu

log = logging.getLogger(__name__)

# Ways between living workers that NCCL failed on. With so many it is not the ways that are wrong: none is used then.
_MOST_CUT = 2


class Ways:
    """The devices that there are, and the ways between them. What is no way is said once, with the reason."""

    def __init__(self) -> None:
        self._gpus: dict[str, tuple[int, Gpu]] = {}
        self._cut: set[tuple[str, str]] = set()

    def enter(self, worker: int, epoch: str, gpu: Gpu | str | None) -> None:
        """A worker is there, with what it says of its device: why it has no way to others, or None if nobody asked."""
        if isinstance(gpu, str):
            log.warning("Worker %d hands tensors to other GPUs through host memory: %s.", worker, gpu)
        if not isinstance(gpu, Gpu):
            return
        joined: list[int] = []
        for other, theirs in self._gpus.values():
            why = _why_apart(gpu, theirs)
            if why is None:
                joined.append(other)
            else:
                log.warning("Tensors go between workers %d and %d through host memory: %s.",
                            *sorted((other, worker)), why)  # fmt: skip
        if joined:
            log.info("Tensors go by NCCL between the GPU of worker %d and those of workers %s.", worker, joined)
        self._gpus[epoch] = worker, gpu

    def leave(self, epoch: str) -> list[int]:
        """A worker is gone. Returns those that it may have had to do with."""
        if self._gpus.pop(epoch, None) is None:
            return []
        self._cut = {way for way in self._cut if epoch not in way}
        return [worker for worker, _ in self._gpus.values()]

    def lead(self, maker: str, reader: str) -> bool:
        """Whether tensors go directly from one worker to another."""
        if (maker, reader) in self._cut or len(self._cut) >= _MOST_CUT:
            return False
        if maker not in self._gpus or reader not in self._gpus:
            return False
        return _why_apart(self._gpus[maker][1], self._gpus[reader][1]) is None

    def cut(self, maker: str, reader: str, why: str) -> bool:
        """NCCL has failed between two workers. False where that is known, or one of them is gone, and so is the way."""
        if maker not in self._gpus or reader not in self._gpus or (maker, reader) in self._cut:
            return False
        self._cut.add((maker, reader))
        log.warning("Tensors go from worker %d to worker %d through host memory from now on: %s.",
                    self._gpus[maker][0], self._gpus[reader][0], why)  # fmt: skip
        if len(self._cut) == _MOST_CUT:
            log.warning("So do they between all other workers, while these live.")
        return True


def _why_apart(one: Gpu, other: Gpu) -> str | None:
    """Why NCCL can't join two devices, None where it can."""
    if one.identity == other.identity:
        return "they share one GPU"
    if one.version != other.version:
        return f"one has version {one.version} of NCCL, the other {other.version}"
    return None
