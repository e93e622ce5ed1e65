"""Kernels that XLA does better itself, and checks that a compiled program hands back.

A compiled program can't raise: an override notes a flag (true where something is wrong) and a message, the
program returns the flags, and the engine raises after the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradserve.graph.graph import Node


class Checks:
    """What a program being traced will report.

    Attributes:
        flags: traced booleans, true where something is wrong.
        messages: what to say for each.
    """

    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.messages: list[str] = []

    def refuse(self, flag: Any, message: str) -> None:
        """Reports the message if the flag turns out true."""
        self.flags.append(flag)
        self.messages.append(message)


Override = Callable[[Checks, Node, Sequence[Any]], Sequence[Any]]

OVERRIDES: dict[str, Override] = {}
