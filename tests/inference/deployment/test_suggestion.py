"""Reasons and suggestions: from hand-made supports, and the information gain against Bayes' rule by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_router
from torch import nn

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.suggestion import RoutingView, reasons_of, suggestion_of

LABELS = np.array([0, 0, 1, 1, 2, 2])


def view(
    weights: tuple[float, ...],
    losses: tuple[float, ...],
    hard_class: int | None = None,
    errors: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
) -> RoutingView:
    table = np.repeat(np.array(losses)[:, None], len(LABELS), axis=1)
    if hard_class is not None:
        table[:, hard_class == LABELS] += 0.5
    return RoutingView(("letter", "face", "style"), weights, table, np.array(errors), LABELS, ("x", "y", "z"))


def test_what_the_routing_is_torn_between_is_said() -> None:
    torn = view((0.02, 0.5, 0.48), (0.9, 0.02, 0.02), hard_class=1)
    (reason,) = reasons_of(torn)
    assert reason == (
        "the support fits face and style about equally well (50% and 48%); a shot in which they differ would decide"
    )
    suggestion = suggestion_of(torn)
    assert suggestion.pairs == (("face", "style"),)
    assert suggestion.classes[0] == "y"
    assert "face and style differ" in str(suggestion)
    three = suggestion_of(view((0.2, 0.42, 0.38), (0.1, 0.1, 0.1)))
    assert three.pairs == (("face", "style"), ("face", "letter"), ("style", "letter"))
    assert "all in part (42%, 38% and 20%)" in reasons_of(view((0.2, 0.42, 0.38), (0.1, 0.1, 0.1)))[0]


def test_a_sure_routing_and_one_of_a_support_that_nothing_explains() -> None:
    sure = view((0.97, 0.02, 0.01), (0.05, 0.8, 0.9))
    assert reasons_of(sure) == ("the support fits letter (97%) and little else",)
    assert "more shots would change little" in str(suggestion_of(sure))
    noise = view((0.9, 0.05, 0.05), (1.4, 1.5, 1.5), errors=(0.6, 0.5, 0.7, 0.6))
    (reason,) = reasons_of(noise)
    assert "no source explains the support" in reason
    assert "left out in turn, 50% of the shots are misclassified; by guessing, 67%" in reason
    assert "check the labels" in str(suggestion_of(noise))
    flat = view((0.9, 0.05, 0.05), (1.09, 1.09, 1.09))  # right of every shot, by a hair
    assert reasons_of(flat) == ("the support fits letter (90%) and little else",)
    mixed = view((0.9, 0.05, 0.05), (1.4, 1.5, 1.5), errors=(0.6, 0.5, 0.7, 0.1))  # right together
    assert mixed.is_explained
    single = view((0.9, 0.05, 0.05), (1.4, 1.5, 1.5), errors=(np.nan,) * 4)
    assert reasons_of(single)[1].startswith("every class has a single shot")


@pytest.mark.parametrize(("noise", "shuffled"), [(0.01, False), (0.05, False), (0.3, False), (0.05, True)])
def test_reasons_and_expected_errors_agree(noise: float, shuffled: bool) -> None:
    """Whatever the scale of the features: nothing is called unexplained that is relied on for getting shots right."""

    class Offset(nn.Module):  # features that are nearly parallel
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.mean((2, 3))) + 20

    network, generator = Offset(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.layer.weight.copy_(torch.eye(3))
        network.layer.bias.zero_()
    classes = torch.arange(3).repeat_interleave(8)
    means = torch.eye(3)[classes] * 0.5 + 0.25
    shots = (means + noise * torch.randn(24, 3, generator=generator)).clamp(0, 1).view(24, 3, 1, 1).expand(24, 3, 8, 8)
    made = RoutedClassifier.from_sources({"a": network, "b": network}, network=network, image_shape=(3, 8, 8))
    labels = classes[torch.randperm(24, generator=generator)] if shuffled else classes
    task = made.adapt(shots, labels)
    explained = "no source explains" not in str(task.explain())
    assert explained == task.reliable == (not shuffled)
    if noise < 0.1 and not shuffled:
        assert task.risk == 0
        assert (task.predict_proba(shots).argmax(1) == classes).all()


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_candidates_are_ranked_by_what_their_label_would_say_of_the_routing() -> None:
    rule = {"kind": "posterior_predictive", "mass": 1.0}
    router = tiny_router(tiny_config(["guide.kind=catalog"]))
    task = RoutedClassifier(router, Deployment(rule=rule)).adapt(images(9, 0), ["b", "a", "c"] * 3)
    candidates = images(7, 1)
    found = task.suggest(candidates, count=3)
    prior = task.posterior.routing_probabilities()[0].double()  # type: ignore[attr-defined]
    routings = [{"kind": "fallback", "routing": name} for name in router.catalog.names]  # type: ignore[union-attr]
    answers = torch.stack([task.predict_proba(candidates, one) for one in routings]).double()  # (J, 7, 3)
    gains = []
    for x in range(7):  # E_y KL(q(c | y) || q(c)), with Bayes' rule for every label
        gain = 0.0
        for y in range(3):
            joint = prior * answers[:, x, y]
            after = joint / joint.sum()
            gain += float(joint.sum() * (after * (after / prior).log()).sum())
        gains.append(gain)
    best = sorted(range(7), key=lambda x: -gains[x])[:3]
    assert found.candidates == tuple(best)
    assert found.gains == pytest.approx([gains[x] for x in best], abs=1e-6)
    with pytest.raises(ValueError, match="count is 0"):
        task.suggest(candidates, count=0)


@pytest.mark.parametrize("tolerance", [-1.0, 10.0])
def test_doubt_and_fallback_are_two_decisions(tolerance: float) -> None:
    router = tiny_router(tiny_config(["guide.kind=catalog"]))
    deployment = Deployment(reliability=Reliability(risk="support_loss", tolerance=tolerance))
    task = RoutedClassifier(router, deployment).adapt(images(9, 0), ["b", "a", "c"] * 3)
    assert task.reliable == (tolerance > 0) == (not task.abstains)
    assert not task.falls_back  # whatever the doubt: nothing said that the fallback pays
    assert torch.equal(task.predict_proba(images(2, 1)), task.predict_proba(images(2, 1), "posterior_predictive"))
    assert len(task.predict_sets(images(2, 1), -1.0)[0]) == (0 if task.reliable else 3)
    text = str(task.explain())
    assert ("not reliable: abstains" in text) == task.abstains
    assert "never falls back" in text
    assert "the posterior's own, not calibrated" in text
