"""Runs the benchmarks: `python -m benchmarks [NAME ...] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

NAMES = ("construction", "feeds", "fleets", "loops", "overhead", "placement", "plan", "scaling")


def main() -> None:
    """Runs what is named (everything by default) and prints a row a measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").run():
            print(row, flush=True)
            rows.append(row)
    if arguments.json:
        machine = {"python": sys.version.split()[0], "machine": platform.machine(), "system": platform.system()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [row.as_json() for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
