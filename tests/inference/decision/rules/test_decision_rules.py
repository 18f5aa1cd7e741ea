"""What each decision rule evaluates, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyro_smat.inference.decision.named_routings import NamedRoutings
from pyro_smat.inference.decision.rules import (
    Fallback,
    Gibbs,
    Map,
    Mean,
    PosteriorPredictive,
    TopK,
    UniformMixing,
)
from pyro_smat.registry import build, choose

FAMILIES = ("logistic_normal", "catalog", "hierarchical", "concrete", "dirichlet", "point")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_each_rule_evaluates(family: str, make_router: Callable) -> None:
    router = make_router(family)
    posterior = router.guide.posterior(router.batch)
    seeded = torch.Generator().manual_seed
    first = torch.eye(5, dtype=torch.float64)[0].expand(1, 4, 5)
    assert torch.equal(Mean()(posterior).coefficients, posterior.mean[None])
    assert torch.equal(Map()(posterior).coefficients, posterior.mode[None])
    assert torch.equal(Fallback(NamedRoutings(router.model))(posterior).coefficients, first)
    assert torch.equal(Gibbs()(posterior, generator=seeded(3)).coefficients, posterior.sample(1, seeded(3)))
    uniform = UniformMixing()(posterior).coefficients
    assert torch.equal(uniform, torch.tensor([1 / 3] * 3 + [0.0] * 2, dtype=torch.float64).expand(1, 4, 5))
    rule = PosteriorPredictive(7)
    again, other = (rule(posterior, generator=seeded(seed)) for seed in (3, 4))
    listed = family in ("catalog", "hierarchical")  # summed, not drawn
    if not listed:
        assert torch.equal(again.coefficients, posterior.sample(7, seeded(3)))
        assert torch.equal(again.weights, torch.full((7, 4), 1 / 7, dtype=torch.float64))
    assert torch.equal(again.coefficients, other.coefficients) == (family == "point" or listed)
    assert torch.equal(TopK(2)(posterior).coefficients, posterior.top(2)[0])


@torch.no_grad()
def test_a_catalog_is_summed_to_a_mass(make_router: Callable) -> None:
    posterior = make_router("catalog").guide.posterior(make_router("catalog").batch)
    exact = PosteriorPredictive(mass=1.0)(posterior)
    order = posterior.logits.argsort(-1, descending=True)
    probabilities = posterior.routing_probabilities()
    torch.testing.assert_close(exact.weights, probabilities.gather(1, order).T)
    assert torch.equal(exact.coefficients, posterior.coefficients[order.T])
    for mass in (0.3, 0.8, 0.99):
        found = PosteriorPredictive(mass=mass)(posterior)
        assert found.mass is not None
        for task in range(4):  # the fewest of the likeliest, by hand
            falling = sorted(probabilities[task].tolist(), reverse=True)
            needed = next(k for k in range(1, len(falling) + 1) if sum(falling[:k]) >= mass - 1e-12)
            weights = found.weights[:, task]
            assert int((weights > 0).sum()) == needed
            assert float(found.mass[task]) == pytest.approx(sum(falling[:needed]))
            assert weights[:needed].tolist() == pytest.approx([p / sum(falling[:needed]) for p in falling[:needed]])
            assert len({tuple(row.tolist()) for row in found.coefficients[:, task]}) == needed  # padding is no network
    with pytest.raises(ValueError, match=r"mass is 0; expected a share of the posterior in \(0, 1\]"):
        PosteriorPredictive(mass=0)


def test_rules_of_configs_are_rules_of_python() -> None:
    assert build(choose("decision_rule", {"kind": "ensemble", "num_samples": 3})) == PosteriorPredictive(3)
    assert build(choose("decision_rule", "top-k")) == TopK(k=2)
    assert choose("decision_rule", "top-k").kind == "top_k"
    assert TopK().title == "routed, top-k"


def test_bad_options(make_router: Callable) -> None:
    with pytest.raises(ValueError, match="num_samples is 0; expected at least 1"):
        PosteriorPredictive(0)
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        TopK(0)
    with pytest.raises(ValueError, match="no decision_rule 'gibs'; did you mean 'gibbs'"):
        choose("decision_rule", "gibs")
    with pytest.raises(ValueError, match="'ensemble' has no option 'num_sample'; did you mean 'num_samples'"):
        choose("decision_rule", {"kind": "ensemble", "num_sample": 2})
    with pytest.raises(
        ValueError, match="routing is 'z'; expected one of source 0, prior mean, source0, source1, source2"
    ):
        Fallback(NamedRoutings(make_router().model), "z")
