"""The config section against the sampler that it makes."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from pyro_smat.episodes import EpisodeSampler, EpisodeSettings
from pyro_smat.episodes.corruptions.label_noise import LabelNoise


def test_it_makes_the_sampler_that_it_describes(crossed_pool, assert_same):
    noise = {"kind": "label_noise", "fraction": [0.0, 0.5], "probability": 0.5}
    settings = EpisodeSettings(
        way=[2, 5], shot=4, attributes=["size", "taste"], domains=["night"], corruptions=["confounding", noise]
    )
    expected = EpisodeSampler(
        crossed_pool,
        (2, 5),
        4,
        attributes=["size"],
        domains=["night"],
        corruptions=["confounding", LabelNoise((0.0, 0.5), probability=0.5)],
        seed=3,
    )
    assert_same(settings.sampler(crossed_pool, seed=3).sample(8), expected.sample(8))
    clean = settings.sampler(crossed_pool, seed=3, corruptions=())
    assert clean.sample(8).corruptions == ((),) * 8
    again = EpisodeSettings.model_validate(json.loads(settings.model_dump_json()))
    assert again == settings


def test_domains_that_a_pool_lacks_are_all_of_its_own(crossed_pool):
    settings = EpisodeSettings(domains=("night", "dusk"), attributes=("taste",))
    assert {0, 1} == set(settings.sampler(crossed_pool, seed=0).sample(30).domain.tolist())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way": 1}, "way is 1; expected at least 2"),
        ({"shot": [3, 1]}, r"shot is \[3, 1\]; expected at least 1, and low <= high"),
        ({"query": 2.5}, "query is 2.5; expected an integer or a range"),
        ({"shots": 3}, "Extra inputs are not permitted"),
        ({"imbalance": 0.3}, "Extra inputs are not permitted"),
        ({"corruptions": ["label_nois"]}, "there is no corruption 'label_nois'; did you mean 'label_noise'"),
        ({"corruptions": [{"kind": "jpeg", "severty": 2}]}, "'jpeg' has no option 'severty'; did you mean 'severity'"),
        ({"corruptions": [{"kind": "jpeg", "severity": 6}]}, "severity of jpeg is 6; expected one of 1, 2, 3, 4, 5"),
        ({"corruptions": [{"kind": "label_noise", "fraction": [0.5, 0.2]}]}, "expected 0 <= low <= high < 1"),
        ({"corruptions": [{"kind": "confounding", "probability": 2}]}, "probability of confounding is 2"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValidationError, match=message):
        EpisodeSettings.model_validate(values)


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        EpisodeSettings().way = 3
