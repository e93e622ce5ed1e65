"""The floors of the house: nothing imports upward, and the client never meets the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT


def test_imports_keep_to_the_floors() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", str(ROOT / "pyproject.toml")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_portion_closes_the_namespace() -> None:
    assert not list(ROOT.glob("*/gradserve/__init__.py"))
