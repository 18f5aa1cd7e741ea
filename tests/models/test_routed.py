"""RoutedModel as a Pyro citizen, and its logits against plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.inspect import get_dependencies, get_model_relations
from torch import Tensor
from torch.distributions import Categorical

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import (
    CostAwareCatalogPrior,
    DirichletPrior,
    LogisticNormalPrior,
    MixturePrior,
    RoutingPrior,
)
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.routing import Catalog

FAMILIES = ("catalog", "hierarchical", "logistic_normal", "concrete", "dirichlet", "point")
CATALOG_FAMILIES = ("catalog", "hierarchical")
SITES = {family: ["routing"] if family in CATALOG_FAMILIES else ["source_ilr", "expert_ilr"] for family in FAMILIES}


class Fixed(RoutingPrior):
    """A prior of one's own without any site: it always returns the same coefficients."""

    site_names = ()

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.fixed = coefficients

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        return self.fixed


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_relations(family: str, blocks: int, make_router: Callable) -> None:
    """What pyro.render_model draws (without drawing it, which needs graphviz)."""
    router = make_router(family, blocks=blocks)
    relations = get_model_relations(router.model, model_args=(router.batch,))
    drawn = relations["sample_sample"]
    assert {site for site in SITES[family] if drawn[site]} == set()
    assert (sorted(drawn["coefficients"]), sorted(drawn["labels"])) == (sorted(SITES[family]),) * 2
    assert set(relations["observed"]) == {"coefficients", "labels"}  # Pyro records what is computed as observed
    plates = relations["plate_sample"]
    assert set(plates["episodes"]) == {*SITES[family], "coefficients", "labels"}
    assert plates["queries"] == ["labels"]
    if family not in CATALOG_FAMILIES:  # a discrete site has no gradient to trace
        dependencies = get_dependencies(router.model, model_args=(router.batch,))["posterior_dependencies"]
        assert set(dependencies) == set(SITES[family])


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_prior_predictive(family: str, parallel: bool, make_router: Callable) -> None:
    """Labels are drawn when the model is unconditioned: always of a class that the episode has."""
    router = make_router(family)
    predictive = Predictive(poutine.uncondition(router.model), num_samples=40, parallel=parallel)
    pyro.set_rng_seed(0)
    drawn = predictive(router.batch)
    labels = drawn["labels"].reshape(40, 4, -1)
    assert labels.shape[-1] == router.batch.query.labels.shape[1]
    assert (labels < router.batch.way.view(1, 4, 1)).all()
    for i, way in enumerate(router.batch.way.tolist()):
        assert set(labels[:, i].flatten().tolist()) == set(range(way))
    for site in SITES[family]:
        assert drawn[site].shape[0] == 40
        assert drawn[site].reshape(40, 4, -1)[:, 0].float().std(0).max() > 0


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive_draws_routings_from_the_guide(parallel: bool, make_router: Callable) -> None:
    router = make_router("logistic_normal")
    router.model.eval()
    predictive = Predictive(poutine.uncondition(router.model), guide=router.guide, num_samples=3000, parallel=parallel)
    if not parallel:
        predictive.num_samples = 50
    pyro.set_rng_seed(0)
    with torch.no_grad():
        drawn = predictive(router.batch)
    site = router.guide.posterior(router.batch).sites()["source_ilr"]
    found = drawn["source_ilr"].reshape(-1, 4, 1, 2).mean(0)
    torch.testing.assert_close(found, site.mean, rtol=0, atol=0.1 if parallel else 0.8)
    if parallel:
        shares = (drawn["labels"].reshape(-1, *router.batch.query.labels.shape) == 0).double().mean(0)
        coefficients = router.guide.posterior(router.batch).sample(3000, torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = router.model.logits(coefficients, router.batch).softmax(-1).mean(0)[..., 0]
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_joint_is_prior_plus_likelihood(family: str, make_router: Callable) -> None:
    router = make_router(family)
    router.model.eval()
    pyro.set_rng_seed(1)
    trace = poutine.trace(router.model).get_trace(router.batch)
    trace.compute_log_prob()
    logits = trace.nodes["_RETURN"]["value"]
    log_p = Categorical(logits=logits).log_prob(router.batch.query.labels)
    expected = (log_p * router.batch.query.mask).sum()
    torch.testing.assert_close(trace.nodes["labels"]["log_prob_sum"], expected)
    values = {site: trace.nodes[site]["value"] for site in SITES[family]}
    torch.testing.assert_close(trace.log_prob_sum(), expected + router.model.prior.log_prob(values).sum())


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_logits_by_loop_over_networks(leading: tuple[int, ...], make_router: Callable) -> None:
    """Any leading dims; one plain forward pass at a time as the reference; -1e4 at classes that are not there."""
    router = make_router()
    router.model.eval()
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(*leading, 4, 5, generator=generator, dtype=torch.float64)
    coefficients = torch.cat([raw[..., :3].softmax(-1), raw[..., 3:].softmax(-1)], -1)
    logits = router.model.logits(coefficients, router.batch)
    assert logits.shape == (*leading, *router.batch.query.labels.shape, 5)
    flat, rows = logits.reshape(-1, *logits.shape[len(leading) :]), coefficients.reshape(-1, 4, 5)
    for k in range(len(flat)):
        for i in range(4):
            theta = rows[k, i] @ router.model.basis().matrix()
            weight, bias = theta[:20].view(5, 4), theta[20:]
            batch, way = router.batch, int(router.batch.way[i])
            shots, queries = batch.support.mask[i], batch.query.mask[i]
            support = torch.tanh(batch.support.images[i][shots].flatten(1) @ weight.T + bias)
            labels = batch.support.labels[i][shots]
            centres = torch.stack([support[labels == c].mean(0) for c in range(way)])
            query = torch.tanh(batch.query.images[i][queries].flatten(1) @ weight.T + bias)
            expected = router.model.scale * torch.cosine_similarity(query[:, None], centres[None], dim=-1)
            torch.testing.assert_close(flat[k, i, queries, :way], expected)
            assert (flat[k, i, :, way:] == -1e4).all()


def test_deployed_masks_keep_the_budget(make_router: Callable) -> None:
    router = make_router()
    bank = router.model.experts
    router.model.train()
    pyro.set_rng_seed(0)
    first, second = router.model.basis().matrix(), router.model.basis().matrix()
    assert torch.equal(first[:3], router.library.basis)
    assert not torch.equal(first[3:], second[3:])  # gates are drawn anew
    router.model.eval()
    deployed = router.model.basis().matrix()
    assert torch.equal(deployed, router.model.basis().matrix())
    assert bank.budget == 10  # (1 - 0.6) 25
    assert ((deployed[3:] != 0).sum(-1) <= bank.budget).all()
    assert (deployed[3:] != 0).any()
    open_ones = deployed[3:] != 0
    assert torch.equal(deployed[3:][open_ones], bank.delta.expand(2, -1)[open_ones])


def test_two_routers_do_not_share_anything(make_router: Callable) -> None:
    """Same class, same site and parameter names, one process, Pyro's default settings."""
    pyro.clear_param_store()
    one, two = make_router(seed=1), make_router(seed=2)
    before = [p.detach().clone() for p in two.parameters()]
    expected = CVaR_ELBO(rho=1.0).terms(two.model.eval(), two.guide, two.batch).episode_kl
    optimizer = torch.optim.Adam(one.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        CVaR_ELBO(rho=1.0).differentiable_loss(one.model, one.guide, one.batch).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, two.parameters(), strict=True))
    torch.testing.assert_close(CVaR_ELBO(rho=1.0).terms(two.model, two.guide, two.batch).episode_kl, expected)
    assert not list(pyro.get_param_store().keys())


def test_source_library_is_not_in_the_state_dict(make_router: Callable) -> None:
    router = make_router()
    assert "sources" not in router.model.state_dict()
    other = make_router(seed=5)
    other.model.load_state_dict(router.model.state_dict())
    for a, b in zip(router.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(other.model.source_basis, other.library.basis)


def test_scale_stays_positive(make_router: Callable) -> None:
    router = make_router()
    assert router.model.scale.item() == pytest.approx(10.0)
    with torch.no_grad():
        router.model.raw_scale.fill_(-50.0)
    assert router.model.scale > 0


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5), (4, 1, 5), (6, 1, 1, 5)])
def test_a_shared_routing_is_expanded_to_the_episodes(shape: tuple[int, ...], make_router: Callable) -> None:
    """A prior of your own may return one routing for all episodes, or draw some in dims further left."""
    router = make_router()
    router.model.eval()
    raw = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    router.model.prior = Fixed(raw)
    logits = router.model(router.batch)
    rows = raw.expand(*shape[:-3], 4, 1, 5)[..., 0, :]
    torch.testing.assert_close(logits, router.model.logits(rows, router.batch))
    assert logits.shape == (*shape[:-3], *router.batch.query.labels.shape, 5)


def test_one_episode_and_one_query(make_router: Callable) -> None:
    for family in FAMILIES:
        router = make_router(family)
        batch = router.batch[:1]
        batch = replace(batch, query=batch.query.select(slice(1)))
        router.model.eval()
        pyro.set_rng_seed(0)
        found = CVaR_ELBO(rho=1.0, kl="sampled", max_plate_nesting=2).loss(router.model, router.guide, batch)
        if family not in CATALOG_FAMILIES:
            pyro.set_rng_seed(0)
            expected = Trace_ELBO(max_plate_nesting=2).loss(router.model, router.guide, batch)
            assert found == pytest.approx(expected, rel=1e-9)


# --- shared routings and enumeration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_shared_routings_are_expanded_ones(leading: tuple[int, ...], blocks: int, make_router: Callable) -> None:
    """Routings with 1 at the episodes' dim run once on all images: same logits, same gradient."""
    router = make_router(blocks=blocks)
    router.model.eval()
    shape = (*leading, 1, *(blocks,) * (blocks > 1), 5)
    coefficients = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients.requires_grad_()
    episode_dim = len(leading)
    wide = coefficients.expand(*leading, 4, *shape[episode_dim + 1 :])
    weight = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for c in (coefficients, wide):
        logits = router.model.logits(c, router.batch)
        results.append((logits, torch.autograd.grad((logits.softmax(-1) @ weight).sum(), coefficients)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-10)
    assert results[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("recompute", [False, True])
def test_enumerating_256_routings_in_chunks(
    recompute: bool, make_router: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"source{r}" for r in range(4))
    catalog = Catalog.blockwise([Catalog.k_hot(names, 4)] * 2)
    assert len(catalog) == 256
    router = make_router("catalog", 4, 4, blocks=2, catalog=catalog)
    router.model.eval()
    chunks: list[int] = []
    forward = TaskNetwork._forward

    def spy(self: TaskNetwork, theta: Tensor, x: Tensor) -> Tensor:
        chunks.append(len(theta))
        return forward(self, theta, x)

    monkeypatch.setattr(TaskNetwork, "_forward", spy)
    results = []
    for limit in (None, 60_000):
        router.model.network.memory_limit, router.model.network.recompute = limit, recompute
        chunks.clear()
        terms = CVaR_ELBO(rho=1.0).terms(router.model, router.guide, router.batch)
        gradient = torch.autograd.grad(terms.loss, [*router.guide.parameters(), router.model.raw_scale])
        results.append((terms.episode_losses, gradient, max(chunks)))
    assert results[0][2] == 256
    assert results[1][2] < 64
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-10)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


# --- masks ------------------------------------------------------------------------------------------------------------


def logits_of_particles(router: Any, particles: int) -> Tensor:
    """Logits of the same routing of all particles, ``(K, B, Q, W)``."""
    row = torch.tensor([0.2, 0.5, 0.3, 0.6, 0.4], dtype=torch.float64)
    router.model.prior = Fixed(row.expand(particles, 4, 1, 5))
    pyro.set_rng_seed(0)
    return router.model(router.batch)


def test_masks_are_shared_or_separate(make_router: Callable) -> None:
    shared = make_router()
    same = logits_of_particles(shared, 3)
    torch.testing.assert_close(same, same[:1].expand_as(same))
    separate = make_router(model_options={"gates": "separate"})
    apart = logits_of_particles(separate, 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (apart[i] - apart[j]).abs().max() > 1e-3
    pyro.set_rng_seed(0)
    bases = separate.model.basis(3)
    assert torch.equal(bases.sources, separate.library.basis.expand(3, -1, -1))
    for k in range(3):
        row = separate.model.prior.fixed[k, :, 0]
        torch.testing.assert_close(separate.model.logits(row, separate.batch, bases[k]), apart[k])
    separate.model.eval()
    deployed = logits_of_particles(separate, 3)
    torch.testing.assert_close(deployed, deployed[:1].expand_as(deployed))


def test_separate_masks_train(make_router: Callable) -> None:
    """With enumeration, every routing has masks of its own."""
    for family in ("logistic_normal", "dirichlet", "catalog"):
        for blocks in (1, 2):
            router = make_router(family, blocks=blocks, model_options={"gates": "separate"})
            elbo = CVaR_ELBO(rho=1.0, num_particles=3, vectorize_particles=True, max_plate_nesting=2)
            pyro.set_rng_seed(0)
            elbo.loss_and_grads(router.model, router.guide, router.batch)
            gradient = router.model.experts.log_alpha.grad
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0


# --- priors that join a model -----------------------------------------------------------------------------------------


def test_mismatched_blocks_and_masks_are_refused(make_router: Callable) -> None:
    with pytest.raises(ValueError, match=r"the prior routes 1 blocks and the network's space has 2: .*blocks=2"):
        make_router(blocks=2, prior=LogisticNormalPrior(3, 2))
    with pytest.raises(ValueError, match=r"the prior routes 2 blocks and the network's space has 1: .*blocks=1"):
        make_router(prior=LogisticNormalPrior(3, 2, num_blocks=2))
    with pytest.raises(ValueError, match="gates is 'own'; expected 'shared' or 'separate'"):
        make_router(model_options={"gates": "own"})


def test_hyperprior_is_one_global_factor(make_router: Callable) -> None:
    """Outside all plates, whatever the number of episodes; the ELBO learns beta under it."""
    catalog = Catalog.k_hot(tuple(f"source{r}" for r in range(3)), 2, max_sources=2)
    gamma = dist.Gamma(torch.tensor(2.0).double(), torch.tensor(0.5).double())
    prior = CostAwareCatalogPrior(catalog, torch.arange(5.0), beta=1.5, learn=True, hyperprior=gamma)
    router = make_router("catalog", prior=prior)
    trace = poutine.trace(router.model).get_trace(router.batch)
    trace.compute_log_prob()
    site = trace.nodes["beta_hyperprior"]
    assert site["cond_indep_stack"] == ()
    torch.testing.assert_close(site["log_prob"], gamma.log_prob(prior.beta))
    terms = CVaR_ELBO(rho=1.0).terms(router.model, router.guide, router.batch)
    torch.testing.assert_close(terms.global_kl, -gamma.log_prob(prior.beta).detach())
    (slope,) = torch.autograd.grad(terms.loss, prior.cost_weight.log_beta)
    q = router.guide.posterior(router.batch)
    paid = q.routing_probabilities().detach() @ prior.costs_of_routings
    beta = prior.beta.detach()
    by_hand = beta * (paid - prior.expected_cost().detach()).sum() - (1.0 - 0.5 * beta)  # (a - 1) - rate beta
    torch.testing.assert_close(slope, by_hand)


@pytest.mark.parametrize("experts", [0, 2])
def test_a_mixture_prior_in_a_model(experts: int, make_router: Callable) -> None:
    """The expert site depends on the source site; the joint density is the mixture of joints."""
    prior = MixturePrior([LogisticNormalPrior(3, experts), DirichletPrior(3, experts, concentration=0.5)], [0.3, 0.7])
    router = make_router("dirichlet", experts=experts, prior=prior)
    router.model.eval()
    pyro.set_rng_seed(0)
    trace = poutine.trace(router.model).get_trace(router.batch)
    values = {site: trace.nodes[site]["value"] for site in prior.site_names}
    each = torch.stack([component.log_prob(values) for component in prior.components], -1)
    expected = (prior.log_weights + each).logsumexp(-1).sum()
    trace.compute_log_prob()
    found = sum(trace.nodes[site]["log_prob"].sum() for site in prior.site_names)
    torch.testing.assert_close(found, expected)


def test_a_prior_may_be_used_before_it_joins_a_model(make_router: Callable) -> None:
    pyro.clear_param_store()
    prior = MixturePrior([LogisticNormalPrior(3, 2), DirichletPrior(3, 2)], learn=True)
    with pyro.plate("episodes", 7, dim=-2):
        assert prior().shape == (7, 1, 5)
    first, second = make_router(prior=prior), make_router(seed=1, prior=prior)  # and two models may share it
    for router in (first, second):
        assert isinstance(router.model, RoutedModel)
        pyro.set_rng_seed(0)
        CVaR_ELBO(rho=1.0).loss_and_grads(router.model, router.guide, router.batch)
        assert prior.raw_log_weights.grad.abs().max() > 0
    assert not list(pyro.get_param_store().keys())
