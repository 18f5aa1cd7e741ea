"""Labels come back as they went in, or are refused by a ValueError that says which and why."""

from __future__ import annotations

import datetime
import enum
import fractions
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_smat.inference.deployment.support_labels import read_labels


class Animal(enum.Enum):  # has no order
    DOG = 1
    CAT = 2


DAYS = np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[ns]")
A, B, C = datetime.date(2026, 1, 2), datetime.date(2025, 1, 2), datetime.date(2026, 1, 1)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([7, 3, 7, 3], (3, 7)),
        (["b", "a", "b", "a"], ("a", "b")),
        (["nan", "b", "nan", "b"], ("b", "nan")),
        ([True, False, True, False], (False, True)),
        ([1.5, -2.0, 1.5, 1.5], (-2.0, 1.5)),
        (["-1", "1", "-1", "1"], ("-1", "1")),
        ([A, B, C, A], (B, C, A)),
        ([(1, "x"), (0, "y"), (1, "x"), (0, "y")], ((0, "y"), (1, "x"))),
        ([Animal.DOG, Animal.CAT, Animal.DOG, Animal.CAT], (Animal.DOG, Animal.CAT)),
        ([frozenset("ab"), frozenset("b"), frozenset("ac"), frozenset("b")], tuple(map(frozenset, ("ab", "b", "ac")))),
        ([fractions.Fraction(1, 2), 2, 2, 2], (fractions.Fraction(1, 2), 2)),
        (range(4), (0, 1, 2, 3)),
        (np.array([7, 3, 7, 3]), (3, 7)),
        (np.array(["b", "a", "b", "a"]), ("a", "b")),
        (list(np.array([7, 3, 7, 3], dtype=np.int8)), (3, 7)),
        (torch.tensor([7, 3, 7, 3]), (3, 7)),
        (list(torch.tensor([7, 3, 7, 3])), (3, 7)),
        (torch.tensor([[7], [3], [7], [3]]), (3, 7)),
        (np.array([1, -1, 1, -1]), (-1, 1)),
        (pd.Series(["b", "a", "b", "a"], index=[5, 4, 3, 2]), ("a", "b")),
        (pd.Series(["b", "a", "b", "a"], dtype="category"), ("a", "b")),
        (DAYS[[1, 0, 1, 0]], tuple(DAYS)),
        (list(DAYS[[1, 0, 1, 0]]), tuple(DAYS)),
        (pd.Series(DAYS[[1, 0, 1, 0]]), tuple(DAYS)),
        (DAYS[[1, 0, 1, 0]] - DAYS[0], (DAYS[0] - DAYS[0], DAYS[1] - DAYS[0])),
        (pd.get_dummies(pd.Series(["b", "a", "b", "a"])), ("a", "b")),
        (pd.get_dummies(pd.Series([7, 3, 7, 3]), dtype=float), (3, 7)),
        (pd.DataFrame({"label": [7, 3, 7, 3]}), (3, 7)),
        (torch.nn.functional.one_hot(torch.tensor([2, 0, 2, 0])), (0, 2)),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], (0, 1)),
        (np.eye(4, dtype=np.float32), (0, 1, 2, 3)),
    ],
)
def test_they_come_back_as_they_went_in(labels: Any, classes: tuple[Hashable, ...]) -> None:
    values, found = read_labels(labels, 4)
    assert found == classes
    assert [type(label) for label in found] == [type(label) for label in classes]
    assert len(values) == 4
    assert set(values) == set(classes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.Series([0.0, 0.0, 1.0, np.nan]), r"labels \[3\] are missing \(nan\)"),
        ([0.0, 1.0, float("nan"), float("nan")], r"labels \[2, 3\] are missing"),
        (pd.Series(["a", "b", None, None]), r"labels \[2, 3\] are missing"),
        (pd.Series([1, 2, None, 1], dtype="Int64"), r"labels \[2\] are missing"),
        (pd.Series(pd.to_datetime(["2026-01-01", None, "2026-01-02", None])), "missing"),
        (np.array([*DAYS, "NaT", DAYS[0]], dtype="datetime64[ns]"), r"labels \[2\] are missing"),
        (torch.tensor([0.0, torch.nan, 1.0, 1.0]), r"labels \[1\] are missing"),
        ([0, 1, -1, -1], r"labels \[2, 3\] are negative \(-1\), .* leave these images out, or.* map labels to names"),
        (torch.tensor([0, 1, -100, 2]), r"labels \[2\] are negative \(-100\)"),
        (np.array([0, -1, 1, 2], dtype=np.int8), r"labels \[1\] are negative"),
        (np.array([0.0, -1.0, 1.0, 2.0]), r"labels \[1\] are negative \(-1.0\)"),
        ([[0], [1], [-1], [1]], r"labels \[2\] are negative"),
        (["0", "0", 1, 1], r"labels are of more than one kind: '0' \(text\), 1 \(number\)"),
        ([True, 0, 1, False], "more than one kind"),
        ([[0.3, 0.7]] * 4, r"not one-hot, \[0.3, 0.7\] the first"),
        ([[1, 1], [1, 0], [0, 1], [0, 1]], "not one-hot"),
        ([[1, 0], [1], [0, 1], [0, 1]], "not one-hot"),
        (torch.zeros(4, 2, 2), r"labels have shape \(4, 2, 2\)"),
        (torch.tensor(3), r"labels have shape \(\)"),
        ([{}, {}, {}, {}], r"labels\[0\] is a dict, which cannot be hashed"),
        ("abab", "labels is a str, 'abab'"),
        ({"a": 1}, "labels is a dict"),
        ({1, 2}, "labels is a set"),
        (None, "labels is a NoneType"),
        (3, "labels is a int"),
        ([1, 2, 1], "got 4 images and 3 labels"),
        ([], "got 4 images and 0 labels"),
        (["x"] * 4, "the one class 'x'"),
    ],
)
def test_what_is_unclear_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(labels, 4)


@given(st.lists(st.integers(min_value=0) | st.floats(min_value=0), min_size=2, max_size=9))
def test_numbers_are_sorted(values: list[float]) -> None:
    if len(set(values)) < 2:
        return
    found, classes = read_labels(values, len(values))
    assert found == values
    assert list(classes) == sorted(set(values))
