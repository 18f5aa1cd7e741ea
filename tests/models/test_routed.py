"""RoutedModel as a Pyro citizen, and its logits against plain forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.inspect import get_dependencies, get_model_relations
from torch.distributions import Categorical

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.local_module import LocalModule

FAMILIES = ("logistic_normal", "catalog", "point")
SITES = {
    "logistic_normal": ["source_contrasts", "expert_contrasts"],
    "point": ["source_contrasts", "expert_contrasts"],
    "catalog": ["routing"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_relations(family: str, make_router: Callable) -> None:
    """What pyro.render_model draws (without drawing it, which needs graphviz)."""
    router = make_router(family)
    relations = get_model_relations(router.model, model_args=(router.batch,))
    assert relations["sample_sample"] == {**{site: [] for site in SITES[family]}, "labels": SITES[family]}
    assert relations["observed"] == ["labels"]
    plates = relations["plate_sample"]
    assert set(plates["episodes"]) == {*SITES[family], "labels"}
    assert plates["queries"] == ["labels"]
    if family != "catalog":  # a discrete site has no gradient to trace
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
    assert labels.shape[-1] == router.batch.query_labels.shape[1]
    assert (labels < router.batch.way.view(1, 4, 1)).all()
    for i, way in enumerate(router.batch.way.tolist()):
        assert set(labels[:, i].flatten().tolist()) == set(range(way))
    for site in SITES[family]:
        assert drawn[site].shape[0] == 40
        assert drawn[site].reshape(40, 4, -1)[:, 0].float().std(0).min() > 0


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
    site = router.guide.posterior(router.batch).sites()["source_contrasts"]
    found = drawn["source_contrasts"].reshape(-1, 4, 1, 2).mean(0)
    torch.testing.assert_close(found, site.mean, rtol=0, atol=0.1 if parallel else 0.8)
    if parallel:
        shares = (drawn["labels"].reshape(-1, *router.batch.query_labels.shape) == 0).double().mean(0)
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
    log_p = Categorical(logits=logits).log_prob(router.batch.query_labels)
    expected = (log_p * router.batch.query_mask).sum()
    torch.testing.assert_close(trace.nodes["labels"]["log_prob_sum"], expected)
    values = {site: trace.nodes[site]["value"] for site in SITES[family]}
    prior = sum(router.model.prior.distributions()[s].log_prob(v).sum() for s, v in values.items())
    torch.testing.assert_close(trace.log_prob_sum(), expected + prior)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_logits_by_loop_over_networks(leading: tuple[int, ...], make_router: Callable) -> None:
    """Any leading dims; one plain forward pass at a time as the reference; -1e4 at classes that are not there."""
    router = make_router()
    router.model.eval()
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(*leading, 4, 5, generator=generator, dtype=torch.float64)
    coefficients = torch.cat([raw[..., :3].softmax(-1), raw[..., 3:].softmax(-1)], -1)
    logits = router.model.logits(coefficients, router.batch)
    assert logits.shape == (*leading, *router.batch.query_labels.shape, 5)
    flat, rows = logits.reshape(-1, *logits.shape[len(leading) :]), coefficients.reshape(-1, 4, 5)
    for k in range(len(flat)):
        for i in range(4):
            theta = rows[k, i] @ router.model.basis()
            weight, bias = theta[:20].view(5, 4), theta[20:]
            batch, way = router.batch, int(router.batch.way[i])
            shots, queries = batch.support_mask[i], batch.query_mask[i]
            support = torch.tanh(batch.support_images[i][shots].flatten(1) @ weight.T + bias)
            labels = batch.support_labels[i][shots]
            centres = torch.stack([support[labels == c].mean(0) for c in range(way)])
            query = torch.tanh(batch.query_images[i][queries].flatten(1) @ weight.T + bias)
            expected = router.model.scale * torch.cosine_similarity(query[:, None], centres[None], dim=-1)
            torch.testing.assert_close(flat[k, i, queries, :way], expected)
            assert (flat[k, i, :, way:] == -1e4).all()


def test_deployed_masks_keep_the_budget(make_router: Callable) -> None:
    router = make_router()
    bank = router.model.experts
    router.model.train()
    pyro.set_rng_seed(0)
    first, second = router.model.basis(), router.model.basis()
    assert torch.equal(first[:3], router.library.basis)
    assert not torch.equal(first[3:], second[3:])  # gates are drawn anew
    router.model.eval()
    deployed = router.model.basis()
    assert torch.equal(deployed, router.model.basis())
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
    assert torch.equal(other.model.sources, other.library.basis)


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

    class Fixed(LocalModule):
        def forward(self) -> torch.Tensor:
            return raw

    router.model.prior = Fixed()
    logits = router.model(router.batch)
    rows = raw.expand(*shape[:-3], 4, 1, 5)[..., 0, :]
    torch.testing.assert_close(logits, router.model.logits(rows, router.batch))
    assert logits.shape == (*shape[:-3], *router.batch.query_labels.shape, 5)


def test_one_episode_and_one_query(make_router: Callable) -> None:
    for family in FAMILIES:
        router = make_router(family)
        batch = router.batch[:1]
        batch = replace(
            batch,
            query_images=batch.query_images[:, :1],
            query_labels=batch.query_labels[:, :1],
            query_mask=batch.query_mask[:, :1],
        )
        router.model.eval()
        pyro.set_rng_seed(0)
        found = CVaR_ELBO(rho=1.0, kl="sampled", max_plate_nesting=2).loss(router.model, router.guide, batch)
        if family != "catalog":
            pyro.set_rng_seed(0)
            expected = Trace_ELBO(max_plate_nesting=2).loss(router.model, router.guide, batch)
            assert found == pytest.approx(expected, rel=1e-9)
