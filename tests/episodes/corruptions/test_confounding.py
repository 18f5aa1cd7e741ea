"""Confounding: one value of another attribute for each class of the support."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pyro_smat.episodes import EpisodeSampler, ImagePool
from pyro_smat.episodes.corruptions.confounding import Confounding, distinct_values


def test_confounded_supports_are_one_to_one_and_queries_are_not(crossed_pool):
    corruption = Confounding(probability=0.5)
    sampler = EpisodeSampler(crossed_pool, 5, 2, 6, corruptions=[corruption], seed=0)
    confounders, agreements, total, confounded = Counter(), 0, 0, 0
    first_values = torch.zeros(8)
    for _ in range(600):
        e = sampler.episode()
        if e.confounded_with == -1:
            continue
        confounded += 1
        assert e.confounded_with != e.route
        confounders[e.route, e.confounded_with] += 1
        values = crossed_pool.labels[e.support.rows, e.confounded_with].reshape(5, 2)
        assert (values[:, 0] == values[:, 1]).all()
        assert len(set(values[:, 0].tolist())) == 5
        first_values[values[0, 0]] += 1
        query = crossed_pool.labels[e.query.rows, e.confounded_with].reshape(5, 6)
        agreements += int((query == values[:, :1]).sum())
        total += 30
    assert abs(confounded - 300) < 5 * 150**0.5
    assert len(confounders) == 6
    assert (first_values > 0).all()
    assert first_values[:6].max() < 2.5 * first_values[:6].min()
    # Honest queries share the value of their class's support as often as chance has it: about 1 of 6 to 8.
    assert 0.07 < agreements / total < 0.2


def test_distinct_values_finds_the_only_assignment():
    rng = np.random.default_rng(0)
    chain = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]).bool().numpy()
    for _ in range(50):
        assert distinct_values(chain, rng).tolist() == [0, 1, 2]
    assert (distinct_values(chain[:, 1:3], rng) >= 0).sum() == 2


def paired_pool(values: list[int]) -> ImagePool:
    """Two attributes; class k of the first has 8 images, and all of them have value ``values[k]`` of the second."""
    labels = torch.tensor([[k, v] for k, v in enumerate(values) for _ in range(8)])
    return ImagePool(
        images=torch.tensor([[n % 256, n // 256] for n in range(len(labels))], dtype=torch.uint8).view(-1, 1, 1, 2),
        labels=labels,
        attributes=("shape", "colour"),
        class_names=(
            tuple(f"shape{k}" for k in range(len(values))),
            tuple(f"colour{v}" for v in range(max(values) + 1)),
        ),
        domain=torch.zeros(len(labels), dtype=torch.long),
    )


def test_confounding_that_the_pool_cannot_supply():
    corruption, options = Confounding(), {"attributes": ["shape"], "seed": 0}
    message = (
        r"attribute 'shape' in domain 'all' cannot be confounded with \['colour'\]; expected 3 classes with a value of "
        r"their own that 4 of their images share, found at most 2; class 'shape0' has at most 8 images"
    )
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(paired_pool([0, 0, 0, 1]), 3, 4, 4, corruptions=[corruption], **options)

    lucky = EpisodeSampler(paired_pool([0] * 19 + [1]), 2, 4, 4, corruptions=[corruption], **options)
    for _ in range(20):  # other classes are drawn until two values meet
        assert "shape19" in lucky.episode().class_names

    rare = EpisodeSampler(paired_pool([0] * 58 + [1, 2]), 3, 4, 4, corruptions=[corruption], **options)
    with pytest.raises(ValueError, match="no confounded episode in 100 draws: attribute 'shape' in domain 'all'"):
        rare.sample(50)


def test_confounding_needs_a_second_attribute(make_pool):
    with pytest.raises(ValueError, match="the pool has the one attribute 'class'"):
        EpisodeSampler(make_pool({n: 20 for n in "abcde"}), corruptions=[Confounding(probability=0.1)])


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"probability of confounding is -0.5; expected a probability in \[0, 1\]"):
        Confounding(probability=-0.5)
