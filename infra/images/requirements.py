#!/usr/bin/env python3
"""The lock's two halves: print what pyproject.toml asks for (no argument), or the lines of a resolution (a pip report)."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def asked() -> list[str]:
    """The base set and the extras that every machine installs."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["jobs"], *project["optional-dependencies"]["dev"]]


def locked(report: dict[str, Any]) -> list[str]:
    """`name==version`, sorted, local version labels (such as +cpu) left out."""
    rows = (item["metadata"] for item in report["install"])
    return sorted(f"{row['name'].lower()}=={row['version'].split('+')[0]}" for row in rows)


def main(argv: list[str]) -> int:
    """Print one requirement a line."""
    print("\n".join(locked(json.loads(Path(argv[0]).read_text())) if argv else asked()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
