"""The worst group against a loop, with names, numbers and tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_smat.metrics import worst_group


def test_is_the_maximum_over_a_loop() -> None:
    generator = np.random.default_rng(0)
    losses, groups = generator.random(200), generator.integers(5, size=200) * 10
    means = {g: losses[groups == g].mean() for g in range(0, 50, 10)}
    assert worst_group(losses, groups) == (max(means, key=means.__getitem__), pytest.approx(max(means.values())))
    assert worst_group(torch.tensor(losses), torch.tensor(groups))[0] == max(means, key=means.__getitem__)


def test_the_worst_tail_is_another_group() -> None:
    """A is bad on the whole; a quarter of B is worse, 1.5 of its losses by the exact tail mean at rho = .375."""
    losses, groups = [0.5, 0.5, 0.5, 0.5, 0.9, 0.6, 0.0, 0.0], list("AAAABBBB")
    assert worst_group(losses, groups) == ("A", 0.5)
    assert worst_group(losses, groups, rho=0.375) == ("B", pytest.approx((0.9 + 0.6 / 2) / 1.5))
    assert worst_group(losses, groups, rho=1.0) == worst_group(losses, groups)


def test_ties_and_bad_input() -> None:
    assert worst_group([1.0, 1.0], ["z", "a"]) == ("a", 1.0)
    with pytest.raises(ValueError, match="values and groups have 2 and 1 entries"):
        worst_group([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="rho is 0"):
        worst_group([1.0], ["a"], rho=0)
    with pytest.raises(ValueError, match="values hold 1 NaN"):
        worst_group([float("nan")], ["a"])
