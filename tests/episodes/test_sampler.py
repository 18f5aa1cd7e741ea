"""The episode sampler against brute-force checks on pools whose pixels name their row."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from other_process import run_python

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.corruptions.class_imbalance import ClassImbalance
from pyro_smat.episodes.corruptions.confounding import Confounding
from pyro_smat.episodes.corruptions.label_noise import LabelNoise

VARIED = {"way": (2, 5), "shot": (1, 4), "query": (1, 6)}
WRONG = [Confounding(probability=0.5), LabelNoise((0.0, 0.5), probability=0.5), ClassImbalance(0.5)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        VARIED,
        {**VARIED, "corruptions": [ClassImbalance(0.7)]},
        {**VARIED, "mix_domains": True},
        {**VARIED, "corruptions": [Confounding(probability=0.5)]},
        {**VARIED, "corruptions": WRONG},
    ],
)
def test_episodes_are_what_they_claim(crossed_pool, decode, options):
    """Disjoint, inside one domain, labelled by the drawn attribute, with the pixels of the rows that are recorded."""
    sampler = EpisodeSampler(crossed_pool, seed=3, **options)
    for _ in range(200):
        e = sampler.episode()
        rows = torch.cat([e.support.rows, e.query.rows])
        assert len(set(rows.tolist())) == len(rows)
        assert torch.equal(decode(torch.cat([e.support.images, e.query.images])), rows)
        names = [crossed_pool.class_names[e.route][k] for k in crossed_pool.labels[e.query.rows, e.route]]
        assert names == [e.class_names[k] for k in e.query.labels]
        domains = set(crossed_pool.domain[rows].tolist())
        assert e.domain == -1 if options.get("mix_domains") else domains == {e.domain}
        truth = [crossed_pool.class_names[e.route][k] for k in crossed_pool.labels[e.support.rows, e.route]]
        wrong = sum(t != e.class_names[k] for t, k in zip(truth, e.support.labels.tolist(), strict=True))
        assert wrong == e.corrupted_labels


def test_counts_stay_in_their_ranges_and_reach_both_ends(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, **VARIED, seed=0)
    seen = {"way": set(), "shot": set(), "query": set()}
    for _ in range(300):
        e = sampler.episode()
        shots, queries = set(e.support.labels.bincount().tolist()), set(e.query.labels.bincount().tolist())
        assert len(shots) == len(queries) == 1
        assert len(e.support.labels.bincount()) == e.way == len(e.class_names)
        seen["way"].add(e.way)
        seen["shot"] |= shots
        seen["query"] |= queries
    assert seen == {"way": set(range(2, 6)), "shot": set(range(1, 5)), "query": set(range(1, 7))}


def test_every_image_is_reached_in_both_roles(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 5, 5, 10, seed=0)
    support, query = set(), set()
    for _ in range(20):
        batch = sampler.sample(32)
        support |= set(batch.support.rows.flatten().tolist())
        query |= set(batch.query.rows.flatten().tolist())
    assert support == query == set(range(len(crossed_pool)))


def test_attributes_classes_and_label_positions_are_uniform(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 2, 1, 1, seed=0)
    batch = sampler.sample(6000)
    routes = batch.route.bincount()
    assert ((routes - 2000).abs() < 5 * (6000 * 2 / 9) ** 0.5).all()
    assert ((batch.domain.bincount() - 3000).abs() < 5 * 1500**0.5).all()
    shape = crossed_pool.labels[batch.support.rows[batch.route == 0], 0]  # (episodes, 2 labels)
    for position in (0, 1):
        counts = shape[:, position].bincount(minlength=8).float()
        expected = len(shape) / 8
        assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees, p = .001


def test_routes(crossed_pool, make_pool):
    only = EpisodeSampler(crossed_pool, attributes=["size"], domains=["night"], seed=0).sample(4)
    assert only.route.tolist() == [2] * 4
    assert only.domain.tolist() == [1] * 4
    classes = {name: 20 for name in "abcde"}
    two = make_pool({"x": classes, "y": classes})
    batch = EpisodeSampler(two, seed=0).sample(20)
    assert torch.equal(batch.route, batch.domain)
    assert set(batch.route.tolist()) == {0, 1}
    assert EpisodeSampler(two, mix_domains=True, seed=0).sample(2).route.tolist() == [-1, -1]
    assert EpisodeSampler(make_pool(classes), seed=0).sample(2).route.tolist() == [-1, -1]


def test_classes_restrict_the_draw(crossed_pool):
    wanted = {"shape": ["shape1", "shape4", "shape7"]}
    sampler = EpisodeSampler(crossed_pool, way=3, classes=wanted, seed=0)
    for _ in range(30):
        e = sampler.episode()
        if e.route == 0:
            assert set(e.class_names) == set(wanted["shape"])


def test_a_domain_gives_only_the_ways_that_it_has(make_pool):
    pool = make_pool({"small": {n: 20 for n in "abc"}, "large": {n: 20 for n in "abcdefg"}})
    sampler = EpisodeSampler(pool, way=(2, 6), seed=0)
    drawn = {(e.domain, e.way) for e in (sampler.episode() for _ in range(300))}
    assert drawn == {(0, 2), (0, 3)} | {(1, w) for w in range(2, 7)}


def test_batches_equal_collated_episodes(crossed_pool, assert_same):
    options = {**VARIED, "corruptions": [*WRONG, "gaussian_noise"], "seed": 5}
    batch = EpisodeSampler(crossed_pool, **options).sample(12)
    alone = EpisodeSampler(crossed_pool, **options)
    assert_same(batch, EpisodeBatch.collate([alone.episode() for _ in range(12)]))


def test_two_halves_equal_the_whole(crossed_pool, assert_same):
    halves = EpisodeSampler(crossed_pool, seed=9)
    first, second = halves.sample(4), halves.sample(4)
    whole = EpisodeSampler(crossed_pool, seed=9).sample(8)
    assert_same(whole[:4], first)
    assert_same(whole[4:], second)
    assert not torch.equal(first.support.rows, second.support.rows)
    assert not torch.equal(EpisodeSampler(crossed_pool, seed=10).sample(4).support.rows, first.support.rows)


def test_resume_through_json(crossed_pool, assert_same):
    sampler = EpisodeSampler(crossed_pool, **VARIED, seed=2)
    sampler.sample(7)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = sampler.sample(5)
    other = EpisodeSampler(crossed_pool, **VARIED, seed=77)
    other.load_state_dict(state)
    assert_same(other.sample(5), expected)


DRAW = """
import torch
from pyro_smat.episodes import ImagePool
from pyro_smat.episodes import EpisodeSampler

labels = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(12))[:, :2].contiguous()
images = torch.arange(len(labels)).view(-1, 1).div(torch.tensor([1, 256]), rounding_mode="floor").to(torch.uint8)
images, domain = images.view(-1, 1, 1, 2), torch.zeros(len(labels), dtype=torch.long)
pool = ImagePool(images, labels, ("a", "b"), (tuple("uvwxyz"), tuple("UVWXYZ")), domain)
wrong = ["confounding", {"kind": "class_imbalance", "imbalance": 0.3}, {"kind": "label_noise", "fraction": 0.2}]
batch = EpisodeSampler(pool, (2, 5), (2, 4), 3, corruptions=wrong, seed=11).sample(10)
drawn = str([batch.support.rows.tolist(), batch.query.rows.tolist(), batch.support.labels.tolist()])
"""


def test_same_seed_same_episodes_in_another_process():
    here: dict = {}
    exec(DRAW, here)
    assert run_python("-c", DRAW + "print(drawn)").strip() == here["drawn"]


ERRORS = [
    ({"way": 1}, "way is 1; expected at least 2"),
    ({"way": (5, 3)}, r"way is \(5, 3\)"),
    ({"shot": 0}, "shot is 0; expected at least 1"),
    ({"shot": 2.5}, "shot is 2.5; expected an integer"),
    ({"query": True}, "query is True; expected an integer"),
    ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
    ({"corruptions": "label_noise"}, r"corruptions is 'label_noise'; expected a list"),
    ({"corruptions": ["label_nois"]}, "there is no corruption 'label_nois'; did you mean 'label_noise'"),
    ({"corruptions": [{"kind": "label_noise", "fractoin": 0.3}]}, "no option 'fractoin'; did you mean 'fraction'"),
    ({"corruptions": [{"kind": "label_noise", "fraction": 1.5}]}, "fraction of label_noise is 1.5; expected 0 <= low"),
    ({"exclude_classes": {"shape": ["cube"]}}, r"exclude_classes of attribute 'shape' \['cube'\] are not in the pool"),
    ({"attributes": ["size"], "exclude_classes": ["size0", "size1"]}, "'size' has 4 classes .* expected 5 for way 5"),
    ({"exclude_classes": {"size": [f"size{i}" for i in range(6)]}}, "leaves no class of attribute 'size'"),
    (
        {"attributes": ["shape", "taste"]},
        r"attributes \['taste'\] are not in the pool; expected some of \['shape', 'colour'",
    ),
    ({"attributes": "shape"}, r"attributes is the text 'shape'; expected a list"),
    ({"attributes": []}, "attributes"),
    ({"domains": ["dusk"]}, r"domains \['dusk'\] are not in the pool; expected some of \['day', 'night'\]"),
    ({"classes": ["shape1"]}, "classes is a list for 3 attributes"),
    ({"classes": {"shape": ["cube"]}}, r"classes of attribute 'shape' \['cube'\] are not in the pool"),
    ({"way": 7}, "attribute 'colour' has 6 classes with at least 15 images in any one domain; expected 7 for way 7"),
    ({"corruptions": [LabelNoise(0.9)]}, "label_noise 0.9 replaces 23 of 25 labels.*expected at most 20"),
    ({"shot": 1, "corruptions": [LabelNoise(0.4)]}, "expected at most 0, for every class keeps one true shot"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_refusals(crossed_pool, options, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(crossed_pool, **options)


def test_small_classes_are_named_or_skipped(make_pool):
    pool = make_pool({**{n: 20 for n in "abcdef"}, "tiny": 3, "slim": 14})
    with pytest.raises(ValueError, match=r"the 15 images .*class 'slim' has 14, class 'tiny' has 3"):
        EpisodeSampler(pool)
    with pytest.raises(ValueError, match="the 19 images"):
        EpisodeSampler(pool, 2, 6, 10, corruptions=[ClassImbalance(0.5)])  # round(6 * 1.5) + 10
    sampler = EpisodeSampler(pool, skip_small_classes=True)
    assert {n for _ in range(50) for n in sampler.episode().class_names} == set("abcdef")
    with pytest.raises(ValueError, match=r"has 6 classes with at least 15 images.*expected 7.*'slim' has 14"):
        EpisodeSampler(pool, way=7, skip_small_classes=True)
    many = make_pool({**{n: 20 for n in "abcdef"}, **{f"tiny{i}": 3 for i in range(12)}})
    with pytest.raises(ValueError, match=r"'tiny3' has 3 and 4 more|'tiny5' has 3 and 4 more"):
        EpisodeSampler(many)


def test_exactly_enough_images_are_enough(make_pool):
    pool = make_pool({n: 7 for n in "abc"})
    batch = EpisodeSampler(pool, 3, 3, 4).sample(5)
    rows = torch.cat([batch.support.rows, batch.query.rows], 1).sort(1).values
    assert torch.equal(rows, torch.arange(21).expand(5, 21))
    with pytest.raises(ValueError, match="0 classes with at least 8 images"):
        EpisodeSampler(pool, 3, 3, 5)


def test_idle_domains_and_absent_classes_are_named(make_pool):
    pool = make_pool({"x": {n: 20 for n in "abcde"}, "y": {n: 20 for n in "abc"}})
    with pytest.raises(ValueError, match="domain 'y' has 3 usable classes of attribute 'class'; expected at least 5"):
        EpisodeSampler(pool)
    assert set(EpisodeSampler(pool, skip_small_classes=True).sample(20).domain.tolist()) == {0}
    with pytest.raises(
        ValueError, match=r"classes \['d', 'e'\] of attribute 'class' have 0 images in the chosen domains"
    ):
        EpisodeSampler(pool, way=3, domains=["y"], classes=["a", "b", "c", "d", "e"])


def test_sample_and_state_refusals(crossed_pool):
    sampler = EpisodeSampler(crossed_pool)
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        sampler.sample(0)
    with pytest.raises(ValueError, match=r"sampler state has keys \['seed'\]"):
        sampler.load_state_dict({"seed": 3})
    with pytest.raises(ValueError, match="PCG64"):
        sampler.load_state_dict({"generator": {"bit_generator": "MT19937"}})


def test_episodes_by_number(crossed_pool, assert_same):
    """Number i is the same in any order, batch, process and state of the stream, and leaves the stream alone."""
    options = {**VARIED, "corruptions": [*WRONG, "jpeg"], "seed": 3}
    sampler = EpisodeSampler(crossed_pool, **options)
    before = sampler.state_dict()
    batch = sampler.at(range(12))
    assert sampler.state_dict() == before
    sampler.sample(5)
    for i in (7, 0, 11):
        assert_same(sampler.at(i), batch.episode(i))
    ranks = [EpisodeSampler(crossed_pool, **options).at(range(rank, 12, 3)) for rank in range(3)]
    for i in range(12):
        assert_same(ranks[i % 3].episode(i // 3), batch.episode(i))
    other = EpisodeSampler(crossed_pool, **{**options, "seed": 4})
    assert not torch.equal(other.at(0).query.rows, sampler.at(0).query.rows)
    with pytest.raises(ValueError, match="episode number is -1; expected at least 0"):
        sampler.at(-1)
    with pytest.raises(ValueError, match="got no episode numbers"):
        sampler.at([])


def test_numbered_episodes_have_the_distribution_of_the_stream(crossed_pool):
    batch = EpisodeSampler(crossed_pool, 2, 1, 1, seed=0).at(range(3000))
    assert ((batch.route.bincount() - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5).all()
    assert ((batch.domain.bincount() - 1500).abs() < 5 * 750**0.5).all()
    shape = crossed_pool.labels[batch.support.rows[batch.route == 0], 0]
    counts = shape[:, 0].bincount(minlength=8).float()
    expected = len(shape) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees, p = .001


def test_the_state_is_small(crossed_pool):
    assert len(json.dumps(EpisodeSampler(crossed_pool, corruptions=WRONG).state_dict())) < 300


def test_excluded_classes_are_never_drawn(crossed_pool):
    seen = {"shape": ["shape0", "shape5"], "size": ["size3"]}
    sampler = EpisodeSampler(crossed_pool, exclude_classes=seen, classes={"size": [f"size{i}" for i in range(6)]})
    names = {n for _ in range(60) for n in sampler.episode().class_names}
    everything = {n for named in crossed_pool.class_names for n in named}
    assert names == everything - {"shape0", "shape5", "size3"}


def test_the_record_says_what_was_done(crossed_pool):
    wrong = [*WRONG, {"kind": "jpeg", "probability": 0.5}]
    batch = EpisodeSampler(crossed_pool, 5, 4, 3, corruptions=wrong, seed=1).sample(200)
    counts = Counter(name for names in batch.corruptions for name in names)
    assert counts["class_imbalance"] == 200
    for name in ("confounding", "label_noise", "jpeg"):
        assert abs(counts[name] - 100) < 5 * 50**0.5
    assert [b >= 0 for b in batch.confounded_with.tolist()] == ["confounding" in names for names in batch.corruptions]
    assert all("label_noise" in names for names, n in zip(batch.corruptions, batch.corrupted_labels, strict=True) if n)


def test_a_sampler_says_what_it_draws(make_pool):
    pool = make_pool({n: 20 for n in "abcde"})
    assert repr(EpisodeSampler(pool, 3, (1, 5), 2, corruptions=[LabelNoise(0.2, probability=0.5)], seed=7)) == (
        "EpisodeSampler(ImagePool(100 images 1x2x2, class: 5 classes), way=3, shot=(1, 5), query=2, "
        "corruptions=[label noise 0.2 in 50% of the episodes], seed=7)"
    )
