"""Readers on damaged files: refused by name, or read rightly. New failures go into corpus/<kind>/ and stay there."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from fuzzed import KINDS, outcome, prepare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    prepare(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_damaged_is_read(inputs: Path, kind: str) -> None:
    assert outcome(kind, inputs, (inputs / KINDS[kind][0]).read_bytes()) == "answer"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(inputs: Path, kind: str) -> None:
    _fuzz(inputs, kind, 15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(inputs: Path, kind: str) -> None:
    _fuzz(inputs, kind, 1000)


def _fuzz(inputs: Path, kind: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64))
    def damaged(seed: int) -> None:
        started = time.perf_counter()
        assert outcome(kind, inputs, random.Random(seed)) in ("error", "answer")
        assert time.perf_counter() - started < SECONDS

    damaged()


@pytest.mark.parametrize("path", sorted(p for p in CORPUS.rglob("*") if p.is_file()), ids=lambda path: path.name)
def test_corpus(inputs: Path, path: Path) -> None:
    """What once went wrong, or looks as if it could."""
    assert outcome(path.parent.name.replace("_", " "), inputs, path.read_bytes()) in ("error", "answer")
