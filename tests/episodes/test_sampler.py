"""The episode sampler against brute-force checks on pools whose pixels name their row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.episodes.confounding import distinct_values
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler, SupportCorruption

VARIED = {"way": (2, 5), "shot": (1, 4), "query": (1, 6)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        VARIED,
        {**VARIED, "imbalance": 0.7},
        {**VARIED, "mix_domains": True},
        {**VARIED, "corruption": SupportCorruption(confounding=0.5)},
        {**VARIED, "corruption": SupportCorruption((0.0, 0.5), 0.5, 0.5), "imbalance": 0.5},
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


def test_imbalance_spreads_the_shots_and_keeps_one(crossed_pool):
    shots = torch.cat(
        [
            EpisodeSampler(crossed_pool, 5, 4, 3, imbalance=0.75, seed=s).episode().support.labels.bincount()
            for s in range(300)
        ]
    )
    assert set(shots.tolist()) == set(range(1, 8))  # round(4 u), u in [.25, 1.75]
    assert shots.float().mean() == pytest.approx(4, abs=0.2)
    smallest = EpisodeSampler(crossed_pool, 5, 1, 3, imbalance=0.9, seed=0).sample(50)
    assert smallest.support.mask.sum() >= 250


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


@pytest.mark.parametrize(("fraction", "shot", "expected"), [(0.4, 5, 10), (0.2, 5, 5), (0.1, 5, 3), (0.3, 2, 3)])
def test_label_noise_counts_are_exact(crossed_pool, fraction, shot, expected):
    sampler = EpisodeSampler(crossed_pool, 5, shot, 5, corruption=SupportCorruption(fraction), seed=1)
    for _ in range(100):
        e = sampler.episode()
        names = crossed_pool.class_names[e.route]
        truth = torch.tensor([e.class_names.index(names[k]) for k in crossed_pool.labels[e.support.rows, e.route]])
        wrong = truth != e.support.labels
        assert int(wrong.sum()) == e.corrupted_labels == expected
        assert set(truth[~wrong].tolist()) == set(range(5))  # every class keeps a true shot


def test_label_noise_is_uniform_over_shots_and_other_labels(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 3, 4, 1, attributes=["shape"], corruption=SupportCorruption(0.5), seed=1)
    moves = torch.zeros(3, 3)
    hit = torch.zeros(12)
    for _ in range(1500):
        e = sampler.episode()
        truth = torch.arange(3).repeat_interleave(4)
        for t, k in zip(truth.tolist(), e.support.labels.tolist(), strict=True):
            moves[t, k] += 1
        hit += truth != e.support.labels
    off = moves[~torch.eye(3, dtype=torch.bool)]
    assert ((off - 1500).abs() < 5 * 1500**0.5).all()  # 6 of 12 labels replaced, 6 kinds of move
    assert ((hit - 750).abs() < 5 * 375**0.5).all()


def test_label_noise_probability_and_range(crossed_pool):
    corruption = SupportCorruption((0.2, 0.4), label_noise_probability=0.5)
    counts = EpisodeSampler(crossed_pool, 5, 5, 5, corruption=corruption, seed=0).sample(1000).corrupted_labels
    assert abs(int((counts > 0).sum()) - 500) < 5 * 250**0.5
    assert set(counts.tolist()) == {0, 5, 6, 7, 8, 9, 10}


def test_one_shot_episodes_of_a_range_stay_clean(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 5, (1, 4), 5, corruption=SupportCorruption(0.4), seed=0)
    for _ in range(60):
        e = sampler.episode()
        assert e.corrupted_labels == {5: 0, 10: 4, 15: 6, 20: 8}[len(e.support.labels)]


def test_confounded_supports_are_one_to_one_and_queries_are_not(crossed_pool):
    corruption = SupportCorruption(confounding=0.5)
    sampler = EpisodeSampler(crossed_pool, 5, 2, 6, corruption=corruption, seed=0)
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


def test_batches_equal_collated_episodes(crossed_pool):
    options = {**VARIED, "imbalance": 0.5, "corruption": SupportCorruption((0.0, 0.4), 0.5, 0.3), "seed": 5}
    batch = EpisodeSampler(crossed_pool, **options).sample(12)
    alone = EpisodeSampler(crossed_pool, **options)
    assert_same(batch, EpisodeBatch.collate([alone.episode() for _ in range(12)]))


def test_two_halves_equal_the_whole(crossed_pool):
    halves = EpisodeSampler(crossed_pool, seed=9)
    first, second = halves.sample(4), halves.sample(4)
    whole = EpisodeSampler(crossed_pool, seed=9).sample(8)
    assert_same(whole[:4], first)
    assert_same(whole[4:], second)
    assert not torch.equal(first.support.rows, second.support.rows)
    assert not torch.equal(EpisodeSampler(crossed_pool, seed=10).sample(4).support.rows, first.support.rows)


def test_resume_through_json(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, **VARIED, seed=2)
    sampler.sample(7)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = sampler.sample(5)
    other = EpisodeSampler(crossed_pool, **VARIED, seed=77)
    other.load_state_dict(state)
    assert_same(other.sample(5), expected)


DRAW = """
import torch
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler, SupportCorruption

labels = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(12))[:, :2].contiguous()
images, domain = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.zeros(len(labels), dtype=torch.long)
pool = ImagePool(images, labels, ("a", "b"), (tuple("uvwxyz"), tuple("UVWXYZ")), domain)
corruption = SupportCorruption((0, 0.3), 0.5, 0.5)
batch = EpisodeSampler(pool, (2, 5), (2, 4), 3, imbalance=0.3, corruption=corruption, seed=11).sample(10)
drawn = str([batch.support.rows.tolist(), batch.query.rows.tolist(), batch.support.labels.tolist()])
"""


def test_same_seed_same_episodes_in_another_process():
    here: dict = {}
    exec(DRAW, here)
    there = subprocess.run([sys.executable, "-c", DRAW + "print(drawn)"], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here["drawn"]


ERRORS = [
    ({"way": 1}, "way is 1; expected at least 2"),
    ({"way": (5, 3)}, r"way is \(5, 3\)"),
    ({"shot": 0}, "shot is 0; expected at least 1"),
    ({"shot": 2.5}, "shot is 2.5; expected an integer"),
    ({"query": True}, "query is True; expected an integer"),
    ({"imbalance": 1.0}, r"imbalance is 1.0; expected a number in \[0, 1\)"),
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
    ({"corruption": SupportCorruption(0.9)}, "label_noise 0.9 replaces 23 of 25 labels.*expected at most 20"),
    ({"shot": 1, "corruption": SupportCorruption(0.4)}, "expected at most 0, for every class keeps one true shot"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_refusals(crossed_pool, options, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(crossed_pool, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 1.0}, "label_noise is 1.0; expected 0 <= low <= high < 1"),
        ({"label_noise": -0.1}, "label_noise is -0.1"),
        ({"label_noise": (0.5, 0.2)}, r"label_noise is \(0.5, 0.2\)"),
        ({"label_noise": (0.5,)}, "expected a number or a pair"),
        ({"label_noise": float("nan")}, "label_noise is nan"),
        ({"label_noise_probability": 1.1}, "label_noise_probability is 1.1"),
        ({"confounding": -0.5}, r"confounding is -0.5; expected a probability in \[0, 1\]"),
    ],
)
def test_corruption_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        SupportCorruption(**options)


def test_small_classes_are_named_or_skipped(make_pool):
    pool = make_pool({**{n: 20 for n in "abcdef"}, "tiny": 3, "slim": 14})
    with pytest.raises(ValueError, match=r"the 15 images .*class 'slim' has 14, class 'tiny' has 3"):
        EpisodeSampler(pool)
    with pytest.raises(ValueError, match="the 19 images"):
        EpisodeSampler(pool, 2, 6, 10, imbalance=0.5)  # round(6 * 1.5) + 10
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


def paired_pool(values: list[int]) -> ImagePool:
    """Two attributes; class k of the first has 8 images, and all of them have value ``values[k]`` of the second."""
    labels = torch.tensor([[k, v] for k, v in enumerate(values) for _ in range(8)])
    return ImagePool(
        images=torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8),
        labels=labels,
        attributes=("shape", "colour"),
        class_names=(
            tuple(f"shape{k}" for k in range(len(values))),
            tuple(f"colour{v}" for v in range(max(values) + 1)),
        ),
        domain=torch.zeros(len(labels), dtype=torch.long),
    )


def test_confounding_that_the_pool_cannot_supply():
    corruption, options = SupportCorruption(confounding=1.0), {"attributes": ["shape"], "seed": 0}
    message = (
        r"attribute 'shape' in domain 'all' cannot be confounded with \['colour'\]; expected 3 classes with a value of "
        r"their own that 4 of their images share, found at most 2; class 'shape0' has at most 8 images"
    )
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(paired_pool([0, 0, 0, 1]), 3, 4, 4, corruption=corruption, **options)

    lucky = EpisodeSampler(paired_pool([0] * 19 + [1]), 2, 4, 4, corruption=corruption, **options)
    for _ in range(20):  # other classes are drawn until two values meet
        assert "shape19" in lucky.episode().class_names

    rare = EpisodeSampler(paired_pool([0] * 58 + [1, 2]), 3, 4, 4, corruption=corruption, **options)
    with pytest.raises(ValueError, match="no confounded episode in 100 draws: attribute 'shape' in domain 'all'"):
        rare.sample(50)


def test_confounding_needs_a_second_attribute(make_pool):
    with pytest.raises(ValueError, match="the pool has the one attribute 'class'"):
        EpisodeSampler(make_pool({n: 20 for n in "abcde"}), corruption=SupportCorruption(confounding=0.1))


def test_sample_and_state_refusals(crossed_pool):
    sampler = EpisodeSampler(crossed_pool)
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        sampler.sample(0)
    with pytest.raises(ValueError, match=r"sampler state has keys \['seed'\]"):
        sampler.load_state_dict({"seed": 3})
    with pytest.raises(ValueError, match="PCG64"):
        sampler.load_state_dict({"generator": {"bit_generator": "MT19937"}})


def assert_same(a: EpisodeBatch | Labelled, b: EpisodeBatch | Labelled) -> None:
    for name in vars(a):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, Labelled):
            assert_same(left, right)
        elif left is None:
            assert right is None
        else:
            assert left.dtype == right.dtype
            assert torch.equal(left, right), name
