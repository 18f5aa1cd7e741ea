"""Hierarchical posteriors: the chain rule over families, and all that they share with flat catalogs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_posteriors import random_posterior, small_catalog

from pyro_smat.encoders import EvidenceEncoder
from pyro_smat.guides import CatalogGuide, CatalogPosterior, HierarchicalGuide, HierarchicalPosterior
from pyro_smat.models.priors import CostAwareCatalogPrior, HierarchicalPrior


@pytest.mark.parametrize("blocks", [1, 2])
def test_logits_are_the_chain_rule(blocks: int, make_router: Callable) -> None:
    """ln q(family) + ln q(member | family), families one at a time."""
    router = make_router("hierarchical", blocks=blocks)
    guide, batch = router.guide, router.batch
    embeddings, locations = guide.member_views(batch)
    members = guide.score(embeddings).squeeze(-1) + locations
    q = guide.posterior(batch)
    groups = [(guide.families == f).nonzero().flatten() for f in range(int(guide.families.max()) + 1)]
    assert len(groups) > 1
    of_family = torch.stack(
        [guide.family_score(embeddings[:, rows].mean(1)).squeeze(-1) + locations[:, rows].mean(1) for rows in groups],
        dim=-1,
    ).softmax(-1)
    torch.testing.assert_close(q.family_probabilities(), of_family)
    for f, rows in enumerate(groups):
        torch.testing.assert_close(
            q.routing_probabilities()[:, rows], of_family[:, f, None] * members[:, rows].softmax(-1)
        )


@pytest.mark.parametrize("blocks", [1, 2])
def test_entropy_decomposes(blocks: int) -> None:
    """H(A) = H(f) + sum_f q(f) H(A | f)."""
    q = random_posterior("hierarchical", 3, 2, blocks)
    assert isinstance(q, HierarchicalPosterior)
    families = q.family_probabilities()
    torch.testing.assert_close(families.sum(-1), torch.ones(2, dtype=torch.float64))
    total = torch.special.entr(families).sum(-1)
    for f in range(families.shape[1]):
        inside = q.routing_probabilities()[:, q.families == f]
        torch.testing.assert_close(inside.sum(-1), families[:, f])
        total = total + families[:, f] * torch.special.entr(inside / families[:, f, None]).sum(-1)
    torch.testing.assert_close(q.entropy(), total)


def test_kl_to_a_hierarchical_prior_decomposes() -> None:
    """KL(q(A) || p(A)) = KL(q(f) || p(f)) + sum_f q(f) KL(q(A | f) || p(A | f))."""
    q = random_posterior("hierarchical", 3, 2)
    assert isinstance(q, HierarchicalPosterior)
    catalog = small_catalog(3, 2)
    family_logits, member_logits = torch.linspace(-1, 1, 6), torch.linspace(1, -2, 12)
    prior = HierarchicalPrior(
        catalog, catalog.families(), family_logits=family_logits, member_logits=member_logits
    ).double()
    mine, theirs = q.family_probabilities(), family_logits.double().softmax(-1)
    total = (mine * (mine.log() - theirs.log())).sum(-1)
    for f in range(6):
        inside = q.routing_probabilities()[:, q.families == f] / mine[:, f, None]
        other = member_logits.double()[q.families == f].softmax(-1)
        total = total + mine[:, f] * (inside * (inside.log() - other.log())).sum(-1)
    torch.testing.assert_close(q.kl(prior), total, rtol=1e-6, atol=1e-6)


def test_it_is_the_flat_posterior_of_its_logits() -> None:
    q = random_posterior("hierarchical", 3, 2)
    assert isinstance(q, HierarchicalPosterior)
    catalog = small_catalog(3, 2)
    flat = CatalogPosterior(q.logits, catalog, num_sources=3)
    prior = CostAwareCatalogPrior(catalog, torch.arange(5.0), beta=0.4)
    for a, b in (
        (q.mean, flat.mean),
        (q.mode, flat.mode),
        (q.kl(prior), flat.kl(prior)),
        (q.top(3)[0], flat.top(3)[0]),
    ):
        assert torch.equal(a, b)
    draws = q.sample(5, torch.Generator().manual_seed(0))
    assert torch.equal(draws, flat.sample(5, torch.Generator().manual_seed(0)))
    assert torch.equal(q.log_prob(draws), flat.log_prob(draws))


def test_one_family_is_the_catalog_guide(make_router: Callable) -> None:
    """And families of one member each leave all to the family network."""
    batch = make_router("catalog").batch
    catalog = small_catalog(3, 2)
    torch.manual_seed(0)
    single = HierarchicalGuide(catalog, 3, families=[0] * 12, encoder=EvidenceEncoder(8)).double()
    flat = CatalogGuide(catalog, 3, encoder=EvidenceEncoder(8)).double()
    flat.load_state_dict({k: v for k, v in single.state_dict().items() if not k.startswith("family_score")})
    torch.testing.assert_close(
        single.posterior(batch).routing_probabilities(), flat.posterior(batch).routing_probabilities()
    )
    apart = HierarchicalGuide(catalog, 3, families=range(12), encoder=EvidenceEncoder(8)).double()
    apart.load_state_dict(single.state_dict())
    flat.score.load_state_dict(single.family_score.state_dict())
    torch.testing.assert_close(
        apart.posterior(batch).routing_probabilities(), flat.posterior(batch).routing_probabilities()
    )
    assert (
        apart.posterior(batch).routing_probabilities() - single.posterior(batch).routing_probabilities()
    ).abs().max() > 1e-3


def test_temperature_scale_divides_the_logits(make_router: Callable) -> None:
    for family in ("catalog", "hierarchical"):
        router = make_router(family)
        before = router.guide.posterior(router.batch)
        router.guide.temperature_scale.fill_(2.5)
        after = router.guide.posterior(router.batch)
        torch.testing.assert_close(
            after.routing_probabilities(), (before.routing_probabilities().log() / 2.5).softmax(-1)
        )
        assert torch.equal(after.mode, before.mode)
        assert router.guide.state_dict()["temperature_scale"] == 2.5


def test_families_by_default_are_the_opened_sources(make_router: Callable) -> None:
    guide = make_router("hierarchical").guide
    names = [name.split("/")[0] for name in guide.catalog.names]
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            assert (guide.families[i] == guide.families[j]).item() == (first == second)


@pytest.mark.parametrize("families", [[0, 1], [0] * 6 + [2] * 6, [1] * 12])
def test_refused(families: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected 12 numbers 0\.\.F-1, one a routing, none left out"):
        HierarchicalGuide(small_catalog(3, 2), 3, families=families)
