"""The fitted head against loops written out: ridge regression, the mixture's weights, queries that help each other."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyro_smat.networks.heads import METRICS, compared, prototype_logits
from pyro_smat.networks.ridge import ridge_regression
from pyro_smat.networks.support_head import PENALTY, STEPS, TEMPERATURE, HeadSettings, fit_head

WAY, SHOT, QUERY, WIDTH = 3, 4, 5, 6


@pytest.fixture
def task():
    """One support with wrong labels to come, queries, and their labels; classes lie apart."""
    draw = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(WAY, WIDTH, generator=draw, dtype=torch.float64)
    labels = torch.arange(WAY).repeat_interleave(SHOT)
    support = centres[labels] + torch.randn(len(labels), WIDTH, generator=draw, dtype=torch.float64)
    truth = torch.arange(WAY).repeat_interleave(QUERY)
    queries = centres[truth] + torch.randn(len(truth), WIDTH, generator=draw, dtype=torch.float64)
    return support, labels, queries, truth


def everyone(labels):
    return torch.ones(len(labels), dtype=torch.bool), torch.ones(WAY, dtype=torch.bool)


def test_ridge_leaves_out_as_fitting_again_does():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(7, 5)), rng.normal(size=(7, 3))
    weights = rng.uniform(0.1, 1, 7)
    fitted, left_out = ridge_regression(*map(torch.from_numpy, (features, targets, weights)), 0.7)

    def solve(rows):
        scaled = features[rows].T * weights[rows]
        return np.linalg.solve(scaled @ features[rows] + 0.7 * np.eye(5), scaled @ targets[rows]).T

    assert np.abs(fitted.numpy() - solve(np.arange(7))).max() < 1e-12
    for i in range(7):
        assert np.abs(left_out[i].numpy() - solve(np.delete(np.arange(7), i)) @ features[i]).max() < 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_prototypes_alone_are_the_prototype_head(task, metric):
    support, labels, queries, _ = task
    mask, classes = everyone(labels)
    mask[2] = False
    head = fit_head(support, labels, mask, classes, HeadSettings(metric=metric), scale=7.0)
    expected = prototype_logits(support, labels, mask, queries, classes, 7.0, metric)
    assert torch.equal(head.logits(queries), expected)


def test_bhattacharyya_is_the_coefficient_of_features_that_sum_to_one():
    p, q = torch.rand(2, 5, dtype=torch.float64)
    ours = F.cosine_similarity(*(compared(part, "bhattacharyya") for part in (p, q)), dim=0)
    assert float(ours) == pytest.approx(float(((p / p.sum()) * (q / q.sum())).sqrt().sum()), abs=1e-12)
    zero = torch.zeros(3, requires_grad=True)
    compared(zero, "bhattacharyya").sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_the_mixture_by_a_loop(task):
    """Without label noise: leave-one-out evidence of both heads by fitting each again for every shot."""
    support, labels, queries, _ = task
    mask, classes = everyone(labels)
    head = fit_head(support, labels, mask, classes, HeadSettings("mixture"), 9.0, 11.0)

    def ridge_logits(rows, asked):
        unit = F.normalize(support[rows], dim=-1)
        targets = F.one_hot(labels[rows], WAY).double() - 1 / WAY
        solved = torch.linalg.solve(unit.T @ unit + PENALTY * torch.eye(WIDTH).double(), unit.T @ targets)
        return 11.0 * F.normalize(asked, dim=-1) @ solved

    def prototype(rows, asked):
        return prototype_logits(support[rows], labels[rows], mask[rows], asked, classes, 9.0)

    evidence = {ridge_logits: 0.0, prototype: 0.0}
    for i in range(len(labels)):
        rest = torch.arange(len(labels)) != i
        for classifier in evidence:
            found = classifier(rest, support[i : i + 1]).log_softmax(-1)[0, labels[i]]
            evidence[classifier] += float(found) / len(labels)
    share = 1 / (1 + math.exp(-(evidence[ridge_logits] - evidence[prototype]) / TEMPERATURE))
    assert float(head.ridge_share) == pytest.approx(share, abs=1e-9)
    expected = share * ridge_logits(mask, queries).softmax(-1) + (1 - share) * prototype(mask, queries).softmax(-1)
    assert torch.allclose(head.logits(queries).exp(), expected, atol=1e-9)


def test_wrong_labels_speak_against_the_ridge(task):
    support, labels, _, _ = task
    mask, classes = everyone(labels)
    wrong = labels.clone()
    wrong[[0, 5]] = torch.tensor([1, 2])
    settings = HeadSettings("mixture", label_noise=0.1)
    clean, noisy = (fit_head(support, found, mask, classes, settings) for found in (labels, wrong))
    assert noisy.trust[[0, 5]].max() < 0.5 < clean.trust.min()
    assert noisy.ridge_share < clean.ridge_share


def test_one_shot_is_no_evidence_for_either_head(task):
    support, labels, queries, _ = task
    rows = torch.tensor([0, SHOT, 2 * SHOT])
    head = fit_head(support[rows], labels[rows], *everyone(labels[rows]), HeadSettings("mixture", label_noise=0.1))
    assert float(head.ridge_share) == 0.5
    assert torch.isfinite(head.logits(queries)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_queries_help_by_a_loop(task, metric):
    """Prototypes of shots and of the other queries, each as one vector, updated one query at a time."""
    support, labels, queries, _ = task
    settings = HeadSettings(metric=metric, transduction=0.5)
    found = fit_head(support, labels, *everyone(labels), settings, scale=6.0).logits(queries)
    shots, asked = compared(support, metric), compared(queries, metric)

    def logits(shares):
        out = torch.zeros(len(asked), WAY, dtype=torch.float64)
        for j in range(len(asked)):
            for k in range(WAY):
                others = torch.arange(len(asked)) != j
                total = shots[labels == k].sum(0) + (shares[others, k, None] * asked[others]).sum(0)
                centre = total / (SHOT + shares[others, k].sum())
                if metric == "euclidean":
                    out[j, k] = -6.0 * (asked[j] - centre).square().mean()
                else:
                    out[j, k] = 6.0 * F.cosine_similarity(asked[j], centre, dim=0)
        return out

    alone = fit_head(support, labels, *everyone(labels), HeadSettings(metric=metric), scale=6.0)
    shares = 0.5 * alone.logits(queries).softmax(-1)
    for _ in range(STEPS):
        shares = (shares + 0.5 * logits(shares).softmax(-1)) / 2
    assert torch.allclose(found.softmax(-1), logits(shares).softmax(-1), atol=1e-9)


@pytest.mark.parametrize("classifier", ["prototypes", "mixture"])
def test_masked_shots_queries_and_classes_have_no_say(task, classifier):
    support, labels, queries, _ = task
    settings = HeadSettings(classifier, "bhattacharyya", label_noise=0.1, transduction=0.5)
    head = fit_head(support, labels, *everyone(labels), settings)
    padded = torch.cat([support, 100 * torch.rand(2, WIDTH).double()])
    mask = torch.cat([torch.ones(len(labels)), torch.zeros(2)]).bool()
    classes = torch.tensor([True] * WAY + [False])
    wide = fit_head(padded, torch.cat([labels, torch.tensor([0, 3])]), mask, classes, settings)
    asked = torch.cat([queries, 100 * torch.rand(3, WIDTH).double()])
    real = torch.cat([torch.ones(len(queries)), torch.zeros(3)]).bool()
    found = wide.logits(asked, real)[: len(queries)].softmax(-1)
    assert torch.allclose(found[:, :WAY], head.logits(queries).softmax(-1), atol=1e-5)
    assert not found[:, WAY:].any()


def test_queries_help_where_shots_are_few():
    """One noisy shot a class and forty queries: the true centres are those of the queries."""
    draw = torch.Generator().manual_seed(0)
    hits = {0.0: 0.0, 0.5: 0.0}
    for _ in range(40):
        centres = torch.randn(WAY, 20, generator=draw)
        labels, truth = torch.arange(WAY), torch.arange(WAY).repeat_interleave(14)
        support = centres[labels] + torch.randn(WAY, 20, generator=draw)
        queries = centres[truth] + torch.randn(len(truth), 20, generator=draw)
        for weight in hits:
            head = fit_head(support, labels, *everyone(labels), HeadSettings(transduction=weight))
            hits[weight] += float((head.logits(queries).argmax(-1) == truth).float().mean()) / 40
    assert hits[0.5] > hits[0.0] + 0.03


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("metric", METRICS)
def test_queries_found_no_class_without_shots(task, metric, count):
    """What is left of it without a query would be rounding, and tiny shares would draw queries in."""
    support, labels, queries, truth = (part.float() if part.is_floating_point() else part for part in task)
    shots, asked = labels < WAY - 1, (truth < WAY - 1).nonzero().flatten()[:count]
    settings = HeadSettings(metric=metric, transduction=1.0)
    head = fit_head(support, labels, shots, torch.ones(WAY, dtype=torch.bool), settings, scale=1.0)
    found = head.logits(queries[asked])[:, -1]
    empty = fit_head(support, labels, shots, torch.ones(WAY, dtype=torch.bool), HeadSettings(metric=metric), scale=1.0)
    torch.testing.assert_close(found, empty.logits(queries[asked])[:, -1])


@pytest.mark.parametrize("wrong", [{"classifier": "svm"}, {"label_noise": 1.0}, {"transduction": 2.0}])
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
        HeadSettings(**wrong)


def test_gradients_reach_both_scales(task):
    support, labels, queries, truth = task
    scales = [torch.tensor(10.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    settings = HeadSettings("mixture", "bhattacharyya", 0.1, 0.5)

    def loss(*scales):
        return F.cross_entropy(fit_head(support, labels, *everyone(labels), settings, *scales).logits(queries), truth)

    loss(*scales).backward()
    assert all(torch.isfinite(scale.grad) and scale.grad != 0 for scale in scales)
