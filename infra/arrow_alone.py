"""Arrow without pandas, which it imports at the first value that it makes of Python's: a quarter of a second of every driver and worker.

Asked once while pandas cannot be found, Arrow goes on without it; `to_pandas` looks for it again, so that whoever wants it has it.
"""

from __future__ import annotations

import sys
from typing import Any

import pyarrow as pa


class _NoPandas:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError("pandas is not asked for yet", name=name)


def _ask_arrow() -> None:
    finder: Any = _NoPandas
    sys.meta_path.insert(0, finder)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(finder)


_ask_arrow()
