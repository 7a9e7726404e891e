"""docs/traps.md names tests that exist, and what it says is never called is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "traps.md").read_text()
FILES = {path.stem: path for path in Path(ROOT, "tests").rglob("test_*.py")}
NEVER = {
    "report", "as_directory",  # Ray Train's: on every worker equally often, or it hangs
    "save_checkpoint", "load_checkpoint",  # DeepSpeed's: of one world size, and hanging where one rank saves
    "seed_everything", "setup_mlflow", "start_run",  # one seed for all ranks; a thread's active run
}  # fmt: skip


@pytest.mark.parametrize("stem", sorted(set(re.findall(r"\btest_\w+(?=[^`\w])(?!`)", re.sub(r"`test_\w+`", "", PAGE)))))
def test_every_test_file_that_the_page_names_exists(stem: str) -> None:
    assert stem in FILES


def test_every_test_that_the_page_names_is_in_the_file_named_before_it() -> None:
    named, stem = 0, ""
    for name in re.findall(r"`?test_\w+", PAGE):
        if not name.startswith("`"):
            stem = name
            continue
        named += 1
        assert f"def {name[1:]}(" in FILES[stem].read_text(), f"{stem} has no {name[1:]}"
    assert named > 8


def test_what_the_page_says_is_never_called_is_not() -> None:
    for path in Path(ROOT, "training").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
        assert not names & NEVER, path
