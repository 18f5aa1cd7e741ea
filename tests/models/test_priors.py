"""Routing priors: their masses, densities, draws, hyper-parameters and what they refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.models.priors import (
    CatalogPrior,
    ConcretePrior,
    CostAwareCatalogPrior,
    DirichletPrior,
    HierarchicalPrior,
    LogisticNormalPrior,
    MixturePrior,
    RoutingPrior,
    SimplexCostPrior,
)
from pyro_smat.routing import CATALOG_SITE, EXPERT_SITE, SOURCE_SITE, Catalog, ilr_basis
from pyro_smat.routing.distributions import ILRConcrete, ILRDirichlet, ILRNormal, ILRSimplexCost
from pyro_smat.routing.local_module import LocalModule

CATALOG = Catalog.k_hot(("a", "b", "c"), 2, max_sources=2)
COSTS = torch.tensor([0.0, 1.0, 2.5, 0.5, 3.0])
SIMPLEX: dict[str, Callable[[int, int, int], RoutingPrior]] = {
    "logistic_normal": lambda r, m, blocks: LogisticNormalPrior(
        r, m, loc=torch.linspace(-1, 1, r + m), num_blocks=blocks
    ),
    "dirichlet": lambda r, m, blocks: DirichletPrior(
        r, m, concentration=torch.linspace(0.5, 2, r + m), num_blocks=blocks
    ),
    "concrete": lambda r, m, blocks: ConcretePrior(
        r, m, logits=torch.linspace(-1, 1, r + m), temperature=0.8, num_blocks=blocks
    ),
    "cost": lambda r, m, blocks: SimplexCostPrior(r, m, costs=torch.linspace(0, 2, r + m), beta=1.5, num_blocks=blocks),
    "mixture": lambda r, m, blocks: MixturePrior(
        [SIMPLEX[name](r, m, blocks) for name in ("logistic_normal", "dirichlet", "cost")], [1.0, 2.0, 3.0]
    ),
}
FAMILIES = [0] * 6 + [1] * 6
OVER_CATALOG: dict[str, Callable[[Catalog], RoutingPrior]] = {
    "uniform": CatalogPrior,
    "cost": lambda catalog: CostAwareCatalogPrior(catalog, COSTS, beta=0.7),
    "hierarchical": lambda catalog: HierarchicalPrior(catalog, [k % 3 for k in range(len(catalog))]),
    "mixture": lambda catalog: MixturePrior([CatalogPrior(catalog), CostAwareCatalogPrior(catalog, COSTS, beta=0.7)]),
}


def in_blocks(count: int = 2) -> Catalog:
    return Catalog.blockwise([Catalog.k_hot(("a", "b", "c"), 2, max_sources=1)] * count)


def draw(prior: RoutingPrior, episodes: int, seed: int = 0) -> Tensor:
    """Coefficients ``(episodes, ...)`` drawn in the plate of a model."""
    pyro.set_rng_seed(seed)
    with pyro.plate("episodes", episodes, dim=-2):
        return prior()[:, 0]


def probabilities(prior: RoutingPrior) -> Tensor:
    distribution = prior.distribution(CATALOG_SITE, {})
    assert isinstance(distribution, dist.OneHotCategorical)
    assert isinstance(distribution.probs, Tensor)
    return distribution.probs


# --- every prior ------------------------------------------------------------------------------------------------------


def check_in_a_model(prior: RoutingPrior, episodes: int = 5) -> Tensor:
    """Draws in a plate at dim -2: site shapes, and a joint density that is the prior's own."""

    def program() -> Tensor:
        with pyro.plate("episodes", episodes, dim=-2):
            return prior()

    pyro.set_rng_seed(0)
    trace = poutine.trace(program).get_trace()
    values = {name: trace.nodes[name]["value"] for name in prior.site_names}
    assert list(values) == [name for name in trace.stochastic_nodes if name != "episodes"]
    for name, value in values.items():
        assert value.shape[:2] == (episodes, 1)
        assert trace.nodes[name]["fn"].batch_shape == (episodes, 1)
    if values:
        by_pyro = trace.log_prob_sum()
        assert prior.log_prob(values).shape == (episodes, 1)
        torch.testing.assert_close(prior.log_prob(values).sum(), by_pyro)
    coefficients = trace.nodes["_RETURN"]["value"]
    assert torch.equal(coefficients, prior.coefficients_of(values))
    return coefficients


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(("sources", "experts"), [(1, 0), (1, 1), (1, 3), (2, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("name", SIMPLEX)
def test_simplex_priors_in_a_model(name: str, sources: int, experts: int, blocks: int) -> None:
    prior = SIMPLEX[name](sources, experts, blocks)
    assert prior.site_names == (SOURCE_SITE,) * (sources > 1) + (EXPERT_SITE,) * (experts > 1)
    assert prior.num_blocks == blocks
    coefficients = check_in_a_model(prior)
    block_shape = (3,) if blocks > 1 else ()
    assert coefficients.shape == ((5, 1) if prior.site_names else ()) + (*block_shape, sources + experts)
    totals = coefficients.split([sources, experts], dim=-1)
    torch.testing.assert_close(totals[0].sum(-1), torch.ones(coefficients.shape[:-1]))
    torch.testing.assert_close(totals[1].sum(-1), torch.full(coefficients.shape[:-1], float(experts > 0)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", OVER_CATALOG)
def test_catalog_priors_in_a_model(name: str, blocks: int) -> None:
    catalog = CATALOG if blocks == 1 else in_blocks()
    prior = OVER_CATALOG[name](catalog)
    assert prior.site_names == (CATALOG_SITE,)
    assert prior.num_blocks == blocks
    coefficients = check_in_a_model(prior)
    rows = {tuple(row.flatten().tolist()) for row in catalog.coefficients}
    assert all(tuple(row.flatten().tolist()) in rows for row in coefficients.flatten(0, 1))
    torch.testing.assert_close(probabilities(prior).sum(), torch.tensor(1.0))
    drawn = draw(prior, 20_000)
    for row, p in zip(catalog.coefficients, probabilities(prior), strict=True):
        share = (drawn == row).flatten(1).all(-1).float().mean().item()
        assert share == pytest.approx(p.item(), abs=0.015)


@pytest.mark.parametrize("name", OVER_CATALOG)
def test_catalog_priors_compose_enumerated_and_relaxed_values(name: str) -> None:
    prior = OVER_CATALOG[name](in_blocks(3))
    every = torch.eye(len(probabilities(prior))).view(-1, 1, 1, len(probabilities(prior)))
    assert torch.equal(prior.coefficients_of({CATALOG_SITE: every})[:, 0, 0], in_blocks(3).coefficients)
    relaxed = probabilities(prior).double()
    expected = (relaxed.view(-1, 1, 1) * in_blocks(3).coefficients).sum(0)
    torch.testing.assert_close(prior.coefficients_of({CATALOG_SITE: relaxed}), expected.float())


def test_priors_have_no_other_sites() -> None:
    for prior, site in ((LogisticNormalPrior(3), EXPERT_SITE), (CatalogPrior(CATALOG), SOURCE_SITE)):
        with pytest.raises(KeyError, match=f"{type(prior).__name__} has no site '{site}'; its sites are"):
            prior.distribution(site, {})


# --- catalogs ---------------------------------------------------------------------------------------------------------


def test_cost_aware_catalog_is_the_softmax_of_the_costs() -> None:
    """A routing costs the sum of what it opens, whatever the weights; enumerated by hand from the names."""
    price = {"a": 0.0, "b": 1.0, "c": 2.5, "expert0": 0.5, "expert1": 3.0}
    cost = [sum(price[s] for s in name.replace("/", "+").split("+")) for name in CATALOG.names]
    for beta in (0.0, 0.3, 2.0):
        prior = CostAwareCatalogPrior(CATALOG, COSTS, beta=beta)
        weights = [math.exp(-beta * c) for c in cost]
        expected = torch.tensor([w / sum(weights) for w in weights])
        torch.testing.assert_close(probabilities(prior), expected)
        by_hand = sum(p * c for p, c in zip(expected.tolist(), cost, strict=True))
        assert prior.expected_cost().item() == pytest.approx(by_hand, rel=1e-5)


def test_blockwise_routings_pay_for_what_any_block_opens() -> None:
    catalog, beta = in_blocks(), 0.9
    price = {"a": 0.0, "b": 1.0, "c": 2.5, "expert0": 0.5, "expert1": 3.0}
    opened = [set(name.replace(" | ", "/").split("/")) for name in catalog.names]
    weights = torch.tensor([math.exp(-beta * sum(price[s] for s in names)) for names in opened])
    torch.testing.assert_close(probabilities(CostAwareCatalogPrior(catalog, COSTS, beta=beta)), weights / weights.sum())


def test_uniform_and_given_catalogs() -> None:
    torch.testing.assert_close(probabilities(CatalogPrior(CATALOG)), torch.full((12,), 1 / 12))
    logits = torch.arange(12.0) / 3
    logits[3] = -math.inf
    torch.testing.assert_close(probabilities(CatalogPrior(CATALOG, logits=logits)), logits.softmax(-1))


def test_hierarchical_is_the_family_times_the_member() -> None:
    families = [0, 2, 1, 2, 2, 0, 1, 2, 1, 2, 2, 2]
    by_default = probabilities(HierarchicalPrior(CATALOG, families)).tolist()
    assert by_default == pytest.approx([1 / 3 / families.count(f) for f in families])
    family_logits, member_logits = torch.tensor([0.3, -1.0, 2.0]), torch.linspace(-2, 3, 12)
    member_logits[0] = -math.inf
    prior = HierarchicalPrior(CATALOG, families, family_logits=family_logits, member_logits=member_logits)
    of_family = [math.exp(x) for x in family_logits.tolist()]
    of_member = [math.exp(x) for x in member_logits.tolist()]
    for p, family, weight in zip(probabilities(prior).tolist(), families, of_member, strict=True):
        inside = sum(w for w, f in zip(of_member, families, strict=True) if f == family)
        assert p == pytest.approx(of_family[family] / sum(of_family) * weight / inside, rel=1e-5)


def test_hierarchical_with_a_forbidden_family() -> None:
    prior = HierarchicalPrior(CATALOG, FAMILIES, family_logits=torch.tensor([0.0, -math.inf]))
    torch.testing.assert_close(probabilities(prior), torch.cat([torch.full((6,), 1 / 6), torch.zeros(6)]))


def test_mixture_of_catalogs_mixes_probabilities() -> None:
    parts = [
        CatalogPrior(CATALOG),
        CostAwareCatalogPrior(CATALOG, COSTS, beta=2.0),
        HierarchicalPrior(CATALOG, FAMILIES),
    ]
    for kl in ("sampled", "bound"):
        prior = MixturePrior(parts, [0.2, 0.3, 0.5], kl=kl)  # type: ignore[arg-type]
        each = [probabilities(part) for part in parts]
        expected = 0.2 * each[0] + 0.3 * each[1] + 0.5 * each[2]
        torch.testing.assert_close(probabilities(prior), expected)
        q = dist.OneHotCategorical(logits=torch.arange(12.0))
        exact = kl_divergence(q, dist.OneHotCategorical(probs=expected))
        torch.testing.assert_close(kl_divergence(q, prior.distribution(CATALOG_SITE, {})), exact)


# --- the simplex ------------------------------------------------------------------------------------------------------


def test_logistic_normal_draws_are_softmaxes_of_independent_logits() -> None:
    """ILR coordinates of drawn weights have the mean and covariance of those of N(loc, scale^2) logits."""
    loc = torch.tensor([1.0, -0.5, 0.2, 0.7, -0.7], dtype=torch.float64)
    drawn = draw(LogisticNormalPrior(3, 2, loc=loc, scale=0.8).double(), 100_000)
    logits = loc + 0.8 * torch.randn(100_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part in (slice(0, 3), slice(3, 5)):
        v = ilr_basis(len(loc[part]), loc)
        found, expected = drawn[:, part].log() @ v, logits[:, part] @ v
        torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(found.T.cov(), expected.T.cov(), rtol=0.03, atol=0.02)


def test_logistic_normal_treats_all_alike_by_default() -> None:
    drawn = draw(LogisticNormalPrior(4), 50_000)
    torch.testing.assert_close(drawn.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.01)
    assert drawn.min() >= 0


def test_cost_aware_median() -> None:
    """The median of w_r / w_s falls by exp(-beta) for every unit by which r costs more."""
    drawn = draw(LogisticNormalPrior.cost_aware(3, 2, costs=COSTS, beta=0.7, scale=1.0), 50_000)
    ratio = (drawn[:, 2] / drawn[:, 1]).median().item()
    assert ratio == pytest.approx(math.exp(-0.7 * 1.5), rel=0.05)


def test_dirichlet_draws() -> None:
    a = torch.tensor([0.5, 1.0, 2.5, 4.0, 0.3])
    drawn = draw(DirichletPrior(3, 2, concentration=a), 50_000)
    for part in (a[:3], a[3:]):
        found = drawn[:, :3] if len(part) == 3 else drawn[:, 3:]
        mean = part / part.sum()
        torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.01)
        torch.testing.assert_close(found.var(0), mean * (1 - mean) / (part.sum() + 1), rtol=0.05, atol=0)
    even = DirichletPrior(2, 2, concentration=3.0)
    assert even.concentration.tolist() == [3.0] * 4


@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_concrete_draws(temperature: float) -> None:
    """The largest weight is entry k with probability softmax(l)_k; log w_1 - log w_2 is a logistic over T."""
    logits = torch.tensor([1.0, -0.5, 0.2, 0.7, -0.7])
    drawn = draw(ConcretePrior(3, 2, logits=logits, temperature=temperature), 50_000)
    for part, weights in zip(logits.split([3, 2]), drawn.split([3, 2], dim=-1), strict=True):
        shares = torch.nn.functional.one_hot(weights.argmax(-1)).float().mean(0)
        torch.testing.assert_close(shares, part.softmax(-1), rtol=0, atol=0.01)
    difference = temperature * (drawn[:, 3].log() - drawn[:, 4].log())
    assert difference.mean().item() == pytest.approx(1.4, abs=0.03)
    assert difference.var().item() == pytest.approx(math.pi**2 / 3, rel=0.03)


def test_cost_of_draws_is_the_expected_cost() -> None:
    prior = SimplexCostPrior(3, 2, costs=COSTS, beta=1.7)
    assert (draw(prior, 50_000) @ COSTS).mean().item() == pytest.approx(prior.expected_cost().item(), abs=0.015)
    lone = SimplexCostPrior(1, 2, costs=torch.tensor([7.0, 1.0, 2.0]), beta=0.0)
    assert lone.expected_cost().item() == pytest.approx(8.5)
    assert SimplexCostPrior(
        2, 1, costs=torch.tensor([1.0, 2.0, 7.0]), beta=0.0
    ).expected_cost().item() == pytest.approx(8.5)
    assert SimplexCostPrior(2, 0, costs=torch.tensor([1.0, 2.0]), beta=0.0).expected_cost().item() == pytest.approx(1.5)


def test_blocks_are_independent_and_alike() -> None:
    drawn = draw(LogisticNormalPrior(2, scale=1.0, num_blocks=2), 50_000)[..., 0].logit()
    torch.testing.assert_close(drawn.T.corrcoef(), torch.eye(2), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), torch.full((2,), 2.0), rtol=0.03, atol=0)


# --- a wanted expected cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.51, 0.8, 1.5, 2.4])
def test_simplex_prior_at_an_expected_cost(target: float) -> None:
    prior = SimplexCostPrior(3, 2, costs=COSTS, target_cost=target, num_blocks=2)
    assert prior.num_blocks == 2
    assert prior.expected_cost().item() == pytest.approx(target, rel=1e-5)


@pytest.mark.parametrize("target", [0.51, 0.8, 2.0])
def test_catalog_prior_at_an_expected_cost(target: float) -> None:
    prior = CostAwareCatalogPrior(CATALOG, COSTS, target_cost=target)
    assert (probabilities(prior) @ ((CATALOG.coefficients > 0).float() @ COSTS)).item() == pytest.approx(
        target, rel=1e-5
    )


def test_the_even_cost_needs_no_beta() -> None:
    assert SimplexCostPrior(3, 0, costs=COSTS[:3], target_cost=3.5 / 3).beta == 0
    assert SimplexCostPrior(3, 0, costs=torch.full((3,), 2.0), target_cost=2.0).beta == 0
    even = CostAwareCatalogPrior(CATALOG, COSTS, beta=0.0).expected_cost().item()
    assert CostAwareCatalogPrior(CATALOG, COSTS, target_cost=even).beta == 0


@pytest.mark.parametrize("target", [-1.0, 0.5, 2.95, math.nan])
def test_costs_out_of_reach(target: float) -> None:
    simplex = r"target is .*; expected a cost above 0.5 \(only the cheapest\) and at most 2.91667"
    with pytest.raises(ValueError, match=simplex):
        SimplexCostPrior(3, 2, costs=COSTS, target_cost=target)
    with pytest.raises(ValueError, match=r"above 0.5 .* at most 3.5 \(beta = 0\): give one in that range"):
        CostAwareCatalogPrior(CATALOG, COSTS, target_cost=target if target != 2.95 else 4.0)


# --- mixtures on the simplex ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3])
def test_mixture_is_one_mixture_over_both_sites(blocks: int) -> None:
    """The product of its conditionals is the sum over components of the products of theirs."""
    prior = SIMPLEX["mixture"](3, 2, blocks)
    assert isinstance(prior, MixturePrior)
    generator = torch.Generator().manual_seed(0)
    event = (blocks,) if blocks > 1 else ()
    drawn = {
        SOURCE_SITE: torch.randn(7, 4, 1, *event, 2, generator=generator),
        EXPERT_SITE: torch.randn(7, 4, 1, *event, 1, generator=generator),
    }
    each = torch.stack([component.log_prob(drawn) for component in prior.components], dim=-1)
    expected = (torch.tensor([1 / 6, 2 / 6, 3 / 6]).log() + each).logsumexp(-1)
    assert prior.log_prob(drawn).shape == (7, 4, 1)
    torch.testing.assert_close(prior.log_prob(drawn), expected)
    nested = MixturePrior([MixturePrior(prior.components[:2], [1.0, 2.0]), prior.components[2]])
    torch.testing.assert_close(nested.log_prob(drawn), expected)


def test_mixture_draws_sources_and_experts_of_one_component() -> None:
    peaked = [LogisticNormalPrior(2, 2, loc=sign * torch.tensor([9.0, -9.0, 9.0, -9.0]), scale=0.5) for sign in (1, -1)]
    drawn = draw(MixturePrior(peaked, [0.3, 0.7]), 20_000).round()
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    assert drawn[:, 0].mean().item() == pytest.approx(0.3, abs=0.015)


def test_mixture_kl_is_sampled_or_bounded() -> None:
    parts = [DirichletPrior(3, 0, concentration=0.5), SimplexCostPrior(3, 0, costs=COSTS[:3], beta=2.0)]
    q = ILRDirichlet(torch.tensor([[1.0, 2.0, 3.0]]))
    with pytest.raises(NotImplementedError, match="KL to a mixture has no closed form"):
        kl_divergence(q, MixturePrior(parts).distribution(SOURCE_SITE, {}))
    bound = kl_divergence(q, MixturePrior(parts, [0.3, 0.7], kl="bound").distribution(SOURCE_SITE, {}))
    each = torch.stack([kl_divergence(q, part.distribution(SOURCE_SITE, {})) for part in parts])
    torch.testing.assert_close(bound, -(0.3 * (-each[0]).exp() + 0.7 * (-each[1]).exp()).log())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("logistic_normal", ILRNormal),
        ("concrete", ILRConcrete),
        ("dirichlet", ILRDirichlet),
        ("cost", ILRSimplexCost),
    ],
)
def test_sites_have_distributions_whose_kl_is_known(name: str, kind: type) -> None:
    assert isinstance(SIMPLEX[name](3, 2, 1).distribution(EXPERT_SITE, {}), kind)
    assert isinstance(SIMPLEX[name](3, 2, 4).distribution(EXPERT_SITE, {}).base_dist, kind)  # type: ignore[attr-defined]


def guide_sites(name: str) -> dict[str, dist.TorchDistribution]:
    """Posteriors of five episodes over three sources and two experts."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 1, 5, generator=generator)
    make: Callable[[Tensor], dist.TorchDistribution] = {
        "normal": lambda x: ILRNormal.from_logits(x, torch.full_like(x, 0.7)),
        "concrete": lambda x: ILRConcrete(x, 1.2),
        "dirichlet": lambda x: ILRDirichlet((1.0 + 0.5 * x).exp()),
    }[name]
    return {SOURCE_SITE: make(logits[..., :3]), EXPERT_SITE: make(logits[..., 3:])}


@pytest.mark.parametrize("prior", SIMPLEX)
@pytest.mark.parametrize("guide", ["normal", "concrete", "dirichlet"])
def test_every_guide_pairs_with_every_prior(guide: str, prior: str) -> None:
    """Pyro's mean-field ELBO, with a KL where it is known, agrees with the sampled one; particles vectorised."""
    story, sites = Story(SIMPLEX[prior](3, 2, 1)), guide_sites(guide)

    def program() -> None:
        with pyro.plate("episodes", 5, dim=-2):
            for name, distribution in sites.items():
                pyro.sample(name, distribution)

    settings: dict[str, Any] = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 2}
    pyro.set_rng_seed(0)
    sampled = Trace_ELBO(**settings).loss(story, program)
    assert TraceMeanField_ELBO(**settings).loss(story, program) == pytest.approx(sampled, abs=0.25)


# --- hyper-parameters -------------------------------------------------------------------------------------------------


class Story(LocalModule):
    """A model as its authors should write it: the hyperprior outside the plates, the prior inside."""

    def __init__(self, prior: RoutingPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self) -> Tensor:
        self.prior.hyperprior()
        with pyro.plate("episodes", 5, dim=-2):
            return self.prior()


def hyper_factors(prior: RoutingPrior) -> dict[str, float]:
    """The pyro.factor sites of a model, all of them outside the plate, and their log densities."""
    trace = poutine.trace(Story(prior)).get_trace()
    trace.compute_log_prob()
    found: dict[str, Any] = {name: trace.nodes[name] for name in trace.observation_nodes}
    assert all(not node["cond_indep_stack"] for node in found.values())
    assert all(node["log_prob"].shape == () for node in found.values())
    return {name: node["log_prob"].item() for name, node in found.items()}


def test_hyperpriors_are_scored_once_outside_the_plate() -> None:
    gamma = dist.Gamma(2.0, 0.5)
    simplex = SimplexCostPrior(3, 2, costs=COSTS, beta=1.5, learn=True, hyperprior=gamma)
    catalog = CostAwareCatalogPrior(CATALOG, COSTS, beta=1.5, learn=True, hyperprior=gamma)
    expected = 2 * math.log(0.5) + math.log(1.5) - 0.5 * 1.5  # Gamma(2) = 1
    for prior in (simplex, catalog):
        assert hyper_factors(prior) == pytest.approx({"beta_hyperprior": expected}, rel=1e-5)
    dirichlet = dist.Dirichlet(torch.tensor([2.0, 3.0]))
    mixture = MixturePrior([simplex, DirichletPrior(3, 2)], [0.25, 0.75], learn=True, hyperprior=dirichlet)
    density = math.log(12 * 0.25 * 0.75**2)  # Gamma(5) / (Gamma(2) Gamma(3)) = 12
    assert hyper_factors(mixture) == pytest.approx(
        {"component0_beta_hyperprior": expected, "weights_hyperprior": density}, rel=1e-5
    )
    for quiet in (
        LogisticNormalPrior(3),
        DirichletPrior(3),
        CatalogPrior(CATALOG),
        SimplexCostPrior(2, 0, costs=COSTS[:2], beta=1.0),
    ):
        assert hyper_factors(quiet) == {}


LEARNED: dict[str, Callable[[], RoutingPrior]] = {
    "simplex beta": lambda: SimplexCostPrior(3, 2, costs=COSTS, beta=1.5, learn=True),
    "catalog beta": lambda: CostAwareCatalogPrior(CATALOG, COSTS, beta=1.5, learn=True),
    "catalog logits": lambda: CatalogPrior(CATALOG, logits=torch.linspace(0, 1, 12), learn=True),
    "hierarchy": lambda: HierarchicalPrior(CATALOG, FAMILIES, family_logits=torch.tensor([0.2, 0.9]), learn=True),
    "mixture": lambda: MixturePrior(
        [SimplexCostPrior(3, 2, costs=COSTS, beta=beta, learn=True) for beta in (0.5, 6.0)], [0.3, 0.7], learn=True
    ),
    "mixture of catalogs": lambda: MixturePrior(
        [CostAwareCatalogPrior(CATALOG, COSTS, beta=beta, learn=True) for beta in (0.5, 6.0)], learn=True
    ),
}
PARAMETERS = {"hierarchy": 2, "mixture": 3, "mixture of catalogs": 3}


@pytest.mark.parametrize("name", LEARNED)
def test_empirical_bayes_gradient(name: str) -> None:
    """Of the joint log density in every parameter, by finite differences, through sites and conditionals."""
    prior = LEARNED[name]().double()
    parameters = list(prior.parameters())
    assert len(parameters) == PARAMETERS.get(name, 1)
    pyro.set_rng_seed(0)
    trace = poutine.trace(Story(prior)).get_trace()
    drawn = {site: trace.nodes[site]["value"].detach() for site in prior.site_names}
    slopes = torch.autograd.grad(prior.log_prob(drawn).sum(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        for entry in itertools.islice(range(parameter.numel()), 3):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[entry] += step
                    values.append(prior.log_prob(drawn).sum().item())
                    parameter.view(-1)[entry] -= step
            assert slope.reshape(-1)[entry].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_svi_moves_every_parameter(name: str) -> None:
    """Each has a name of its own in Pyro, also inside a mixture of alike components, and none enters the store."""
    story = Story(LEARNED[name]())
    values = {
        SOURCE_SITE: torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0)),
        EXPERT_SITE: torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(1)),
        CATALOG_SITE: torch.eye(12)[:5].unsqueeze(1),
    }

    def guide() -> None:
        with pyro.plate("episodes", 5, dim=-2):
            for site in story.prior.site_names:
                pyro.sample(site, dist.Delta(values[site], event_dim=1))

    before = {key: value.clone() for key, value in story.named_parameters()}
    SVI(story, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()
    assert before
    for key, value in story.named_parameters():
        assert not torch.equal(value, before[key]), key
    assert not list(pyro.get_param_store().keys())


def test_learned_beta_balances_cost() -> None:
    """The slope of the mean log density in beta is the expected cost minus the cost of the data."""
    prior = SimplexCostPrior(3, 2, costs=COSTS, beta=1.5, learn=True)
    assert isinstance(prior.beta, Tensor)
    assert prior.beta.item() == pytest.approx(1.5)
    drawn = {SOURCE_SITE: torch.randn(50, 2), EXPERT_SITE: torch.randn(50, 1)}
    paid = (prior.coefficients_of(drawn) @ COSTS).mean()
    (slope,) = torch.autograd.grad(prior.log_prob(drawn).mean(), list(prior.parameters()))
    torch.testing.assert_close(slope / prior.beta, prior.expected_cost() - paid, rtol=1e-4, atol=1e-5)


def test_state_travels() -> None:
    for name, make in LEARNED.items():
        first, second = make(), make()
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(torch.linspace(0.1, 0.7, parameter.numel()).view_as(parameter))
        second.load_state_dict(first.state_dict())
        trace = poutine.trace(Story(first)).get_trace()
        drawn = {site: trace.nodes[site]["value"] for site in first.site_names}
        assert not torch.equal(make().log_prob(drawn), first.log_prob(drawn)), name
        assert torch.equal(second.log_prob(drawn), first.log_prob(drawn)), name


# --- what is refused --------------------------------------------------------------------------------------------------

GAMMA = dist.Gamma(2.0, 1.0)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: CatalogPrior(CATALOG, logits=torch.zeros(3)),
        r"logits have shape \(3,\); expected \(12,\), one a routing",
    ),
    (lambda: CatalogPrior(CATALOG, logits=torch.full((12,), math.nan)), "logits"),
    (lambda: CatalogPrior(CATALOG, logits=torch.full((12,), -math.inf)), "logits"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, beta=-0.1), r"beta is -0.1; expected a finite number >= 0"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, beta=math.nan), r"beta is nan; expected a finite number >= 0"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS[:3], beta=1.0), r"costs: shape \(3,\); expected \(5,\)"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS / 0, beta=1.0), r"costs are \[nan, inf.*expected finite numbers"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, beta=1.0, hyperprior=GAMMA), "beta is fixed: pass learn=True"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, beta=0.0, learn=True), "beta is 0; expected a start > 0"),
    (lambda: SimplexCostPrior(3, 2, costs=COSTS[:4], beta=1.0), r"costs: shape \(4,\); expected \(5,\)"),
    (lambda: SimplexCostPrior(3, 2, costs=COSTS, beta=math.inf), "beta is inf; expected a finite number >= 0"),
    (lambda: SimplexCostPrior(3, 2, costs=COSTS, beta=1.0, hyperprior=GAMMA), "beta is fixed: pass learn=True"),
    (
        lambda: SimplexCostPrior(3, 2, costs=COSTS, beta=1.0, learn=True, hyperprior=dist.Gamma(torch.ones(3), 1.0)),
        r"hyperprior of beta has batch shape \(3,\) and event shape \(\); expected a distribution of one number",
    ),
    (lambda: SimplexCostPrior(3, 1, costs=COSTS, target_cost=1.0), r"costs: shape \(5,\); expected \(4,\)"),
    (lambda: LogisticNormalPrior(0, 2), r"num_sources is 0 and num_experts 2; expected at least 1 and 0"),
    (lambda: DirichletPrior(2, -1), r"num_sources is 2 and num_experts -1"),
    (
        lambda: DirichletPrior(2, 1, num_blocks=0),
        r"num_blocks is 0; expected at least 1 \(1 mixes whole networks\)",
    ),
    (
        lambda: DirichletPrior(2, 1, concentration=torch.ones(2)),
        r"concentrations: shape \(2,\); expected \(3,\)",
    ),
    (lambda: DirichletPrior(2, 1, concentration=0.0), r"concentration is \[0.0, 0.0, 0.0\]; expected entries > 0"),
    (lambda: LogisticNormalPrior(2, 1, scale=0.0), r"scale is 0.0; expected a standard deviation > 0"),
    (lambda: LogisticNormalPrior(2, 1, scale=math.nan), r"scale is nan"),
    (lambda: LogisticNormalPrior(2, 1, loc=torch.zeros(2)), r"loc: shape \(2,\); expected \(3,\)"),
    (lambda: LogisticNormalPrior.cost_aware(3, 2, costs=COSTS, beta=-1.0), r"beta is -1.0; expected >= 0"),
    (
        lambda: LogisticNormalPrior.cost_aware(3, 2, costs=COSTS[:2], beta=1.0),
        r"costs: shape \(2,\); expected \(5,\)",
    ),
    (lambda: ConcretePrior(2, 1, logits=torch.zeros(2)), r"logits: shape \(2,\); expected \(3,\)"),
    (
        lambda: ConcretePrior(2, 0, logits=torch.tensor([0.0, math.inf])),
        r"logits are \[0.0, inf\]; expected finite numbers",
    ),
    (lambda: ConcretePrior(2, temperature=0.0), r"temperature is 0.0; expected > 0"),
    (lambda: HierarchicalPrior(CATALOG, [0, 1]), "got 2 families; expected 12, one a routing"),
    (
        lambda: HierarchicalPrior(CATALOG, [0] * 6 + [2] * 6),
        r"families are \[0, 2\]; expected every number from 0 to 2",
    ),
    (
        lambda: HierarchicalPrior(CATALOG, FAMILIES, family_logits=torch.zeros(3)),
        r"family_logits have shape \(3,\); expected \(2,\)",
    ),
    (
        lambda: HierarchicalPrior(CATALOG, FAMILIES, member_logits=torch.tensor([0.0] * 6 + [-math.inf] * 6)),
        "member_logits forbid all of family 1; forbid the family itself by a family logit of -inf",
    ),
    (lambda: MixturePrior([]), "got no components"),
    (
        lambda: MixturePrior([DirichletPrior(3), CatalogPrior(CATALOG)]),
        r"component 1 \(CatalogPrior\) is no prior of the same routings as component 0 \(DirichletPrior\)",
    ),
    (lambda: MixturePrior([DirichletPrior(3), DirichletPrior(3, num_blocks=2)]), "same sources, experts and blocks"),
    (lambda: MixturePrior([DirichletPrior(3), DirichletPrior(3, 1)]), "same sources, experts and blocks"),
    (lambda: MixturePrior([CatalogPrior(CATALOG), CatalogPrior(in_blocks())]), "or all over one catalog"),
    (lambda: MixturePrior([DirichletPrior(3)] * 2, [1.0]), r"weights have shape \(1,\); expected \(2,\)"),
    (
        lambda: MixturePrior([DirichletPrior(3)] * 2, [1.0, -1.0]),
        r"weights are \[1.0, -1.0\]; expected finite numbers >= 0",
    ),
    (
        lambda: MixturePrior([DirichletPrior(3)] * 2, [1.0, 0.0], learn=True),
        "expected all > 0, as learned ones are logits",
    ),
    (lambda: MixturePrior([DirichletPrior(3)] * 2, kl="exact"), "kl is 'exact'; expected 'sampled' or 'bound'"),  # type: ignore[arg-type]
    (
        lambda: MixturePrior([DirichletPrior(3)] * 2, hyperprior=dist.Dirichlet(torch.ones(2))),
        "they are fixed: pass learn=True",
    ),
    (
        lambda: MixturePrior([DirichletPrior(3)] * 2, learn=True, hyperprior=dist.Dirichlet(torch.ones(3))),
        r"the hyperprior has concentrations \(3,\); expected \(2,\), one a component",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number: int) -> None:
    make, message = REFUSED[number]
    with pytest.raises(ValueError, match=message):
        make()
