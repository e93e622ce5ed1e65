"""Where the optional conformance cases lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASES = Path(os.environ.get("GRADSERVE_CONFORMANCE", ROOT.parent / "shared" / "conformance"))

needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"no conformance cases at {CASES}: set GRADSERVE_CONFORMANCE"
)
