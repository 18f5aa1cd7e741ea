"""docs/reliability.md: every promise names a test or a measurement, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
TROUBLES = TEXT.partition("## Troubles of real users")[2].partition("|---|---|\n")[2].partition("\n\n")[0].splitlines()
PROMISES = [line for line in TEXT.splitlines() if line.startswith("| **")]


def named(text: str) -> list[str]:
    """Paths of tests and benchmarks, with the name of a test function where one is given."""
    return re.findall(r"(?:tests|benchmarks)/[\w/]+(?:\.py)?(?:::\w+)?", text)


def test_there_are_promises_and_troubles() -> None:
    assert len(PROMISES) >= 12
    assert len(TROUBLES) >= 20


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split("**")[1])
def test_a_promise_names_its_test_and_whose_promise_it_is_measured_by(row: str) -> None:
    _, tests, anchor = row.strip("| ").split(" | ")
    assert [name for name in named(tests) if name.startswith("tests/")]
    assert anchor.strip()


@pytest.mark.parametrize("row", TROUBLES, ids=lambda row: row.split("|")[1].strip())
def test_a_trouble_names_its_tests(row: str) -> None:
    trouble, tests = row.strip("| ").split(" | ")
    assert trouble
    assert named(tests)
    assert ", ".join(named(tests)) == tests.strip()


@pytest.mark.parametrize("name", sorted(set(named(TEXT))))
def test_what_is_named_is_there(name: str) -> None:
    path, _, function = name.partition("::")
    assert (ROOT / path).exists()
    assert not function or f"def {function}(" in (ROOT / path).read_text()
