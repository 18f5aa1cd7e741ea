"""Modes by name, and the cache of adapted tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_smat.inference.deployment.refinement import (
    DirichletRefinement,
    FrankWolfe,
    GradientRefinement,
    RiskAverse,
    parse_refinement,
)
from pyro_smat.inference.deployment.refinement.cache import CacheInfo, TaskCache, support_digest


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("none", None),
        ("frank-wolfe", FrankWolfe()),
        (" frank-wolfe:steps=3,max_active=2 ", FrankWolfe(3, 2)),
        ("frank-wolfe:max_active=none", FrankWolfe()),
        ("frank-wolfe:method=away", FrankWolfe(method="away")),
        ("gradient:steps=7, learning_rate=1e-2", GradientRefinement(7, 0.01)),
        ("risk-averse:radius=1", RiskAverse(1.0)),
        ({"kind": "frank_wolfe", "steps": 5}, FrankWolfe(5)),
        ({"kind": "dirichlet", "draws": 4}, DirichletRefinement(draws=4)),
        ("dirichlet:steps=2,prior=0.5,draws=8", DirichletRefinement(2, None, 0.5, 8)),
    ],
)
def test_modes_by_name(text: str | dict[str, Any], mode: object) -> None:
    assert parse_refinement(text) == mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no refinement ''; expected one of dirichlet, frank_wolfe, gradient, risk_averse"),
        ("frankwolfe", "no refinement 'frankwolfe'; did you mean 'frank_wolfe'"),
        ("none:steps=1", "no refinement 'none'"),
        ("gradient:max_active=2", "'gradient' has no option 'max_active'; it has learning_rate, steps"),
        ("gradient:learning_rat=2", "'gradient' has no option 'learning_rat'; did you mean 'learning_rate'"),
        ("frank-wolfe:steps", "found 'steps'; expected options name=value, each once"),
        ("frank-wolfe:steps=1,steps=2", "found 'steps=2'; expected options name=value, each once"),
        ("frank-wolfe:name=x", "has no option 'name'"),
        ("frank-wolfe:method=newton", "method: Input should be 'vanilla'.*newton"),
        ("frank-wolfe:steps=2.5", "steps: .*2.5"),
        ("frank-wolfe:steps=none", "steps: .*None"),
        ("risk-averse:radius=wide", "radius: .*wide"),
        ("risk-averse:radius=3", "expected an l1 distance between mixtures, 0 to 2"),
    ],
)
def test_bad_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_refinement(text)


def test_the_least_recently_used_goes_first() -> None:
    cache: TaskCache[str] = TaskCache(2)
    made: list[str] = []

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb")  # c drives out b, which was used before a
    assert cache.info() == CacheInfo(2, 4, 2, 2)


def test_size_0_keeps_nothing() -> None:
    cache: TaskCache[object] = TaskCache(0)
    assert cache.get("a", object) is not cache.get("a", object)
    assert cache.info() == CacheInfo(0, 2, 0, 0)
    with pytest.raises(ValueError, match="cache_size is -1"):
        TaskCache(-1)


def test_digests() -> None:
    images = torch.rand(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[1, 0, 1, 2] += 1e-6
    supports = [
        (images, ["a", "b"]),
        (other, ["a", "b"]),
        (images.double(), ["a", "b"]),
        (images.view(2, 1, 3, 2), ["a", "b"]),
        (images, ["b", "a"]),
        (images, ["a", "c"]),
        (images, [0, 1]),
        (images, ["0", "1"]),
        (images, ["a', 'b", "c"]),
    ]
    assert len({support_digest(*support) for support in supports}) == len(supports)  # type: ignore[arg-type]
    noncontiguous = images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert support_digest(noncontiguous, ["a", "b"]) == support_digest(images, ["a", "b"])
    assert support_digest(images.bfloat16(), ["a", "b"]) != support_digest(images, ["a", "b"])
