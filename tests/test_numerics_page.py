"""docs/numerics.md names tests that exist, and has a line for every difference between the paper and the released code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "numerics.md").read_text()
DIFFERENCES = 15  # between the paper's text and the released code, numbered in the page's first table


def defined_tests() -> set[str]:
    return {name for path in Path(ROOT, "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named <= defined_tests(), f"docs/numerics.md names tests that are gone: {sorted(named - defined_tests())}"


@pytest.mark.parametrize("stem", sorted(set(re.findall(r"(test_\w+|parity_\w+):", PAGE))))
def test_every_test_file_that_the_page_names_exists(stem: str) -> None:
    file = f"{stem}.py" if stem.startswith("test_") else f"test_{stem}.py"
    assert list(Path(ROOT, "tests").rglob(file)), f"docs/numerics.md names {stem}, and there is no {file}"


def test_every_difference_has_a_line_and_a_test() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, DIFFERENCES + 1))
    untested = [row[0] for row in rows[:-1] if "test_" not in row[-1] and "parity_" not in row[-1]]
    assert not untested, f"lines {untested} of docs/numerics.md have no test; the last one points to the tables below it"
