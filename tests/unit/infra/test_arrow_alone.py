"""Arrow makes values without pandas, and finds it when somebody wants it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
import infra.dataset
import pyarrow as pa
table = pa.Table.from_pylist([{"a": 1}, {"a": 2}])
assert pa.scalar(3).as_py() == 3
assert "pandas" not in sys.modules, "a quarter of a second"
frame = table.to_pandas()
assert pa.Table.from_pandas(frame).equals(table)
assert pa.array(frame["a"]).to_pylist() == [1, 2]
"""


def test_pandas_is_not_imported_before_somebody_wants_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
