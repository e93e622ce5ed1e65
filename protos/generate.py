"""Makes the Python modules of the protos: a build hook of the wheel, and a script.

    python protos/generate.py

writes `_pb2.py`, `_pb2.pyi` and `_pb2_grpc.py` beside every .proto file.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Any

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(root: Path = ROOT) -> None:
    """Runs protoc over every .proto below the root. Raises RuntimeError if it fails."""
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    arguments = [
        "protoc",
        f"-I{root}",
        f"-I{well_known}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        f"--grpc_python_out={root}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed on {', '.join(files)}")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    pass  # run as a script, outside of a build
else:

    class ProtoBuildHook(BuildHookInterface[Any]):
        """Generates before the wheel, also an editable one, is put together."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            generate()


if __name__ == "__main__":
    generate()
    print(f"Generated from {ROOT}", file=sys.stderr)
