"""Guides: invariances of every family on every encoder, gradients, and every corner of R and M in one ELBO step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from made_encoders import ENCODERS
from small_posteriors import CATALOG_FAMILIES, FAMILIES, SIMPLEX_FAMILIES
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.guides import CatalogGuide, LogisticNormalGuide, RoutingGuide
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.routing import Catalog

CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
COMMON_SHIFTS = ("score.2.bias", "source_head.bias")  # of logits: their gradient is rounding
PARAMETERS = ("loc", "scale", "logits", "concentration", "temperature")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def outputs(guide: RoutingGuide, batch: EpisodeBatch) -> Tensor:
    """All that the guide says of a batch, ``(B, .)``."""
    posterior = guide.posterior(batch)
    parts = [getattr(posterior, name).flatten(1) for name in PARAMETERS if hasattr(posterior, name)]
    return torch.cat(parts, -1)


def alone(batch: EpisodeBatch, i: int) -> EpisodeBatch:
    """Episode i without any padding of its support."""
    one, shots = batch[i : i + 1], int(batch.support.mask[i].sum())
    assert one.support.features is not None
    return replace(one, support=one.support.select(slice(shots)))


@every_encoder
@every_family
def test_invariant_to_the_order_of_shots(family: str, encoder: str, make_router: Callable) -> None:
    router = make_router(family, encoder=encoder)
    expected = outputs(router.guide, router.batch)
    order = torch.randperm(router.batch.support.labels.shape[1], generator=torch.Generator().manual_seed(0))
    batch = router.batch
    shuffled = replace(batch, support=batch.support.select(order))  # padding moves into the middle, too
    torch.testing.assert_close(outputs(router.guide, shuffled), expected, **CLOSE)


@every_encoder
@every_family
def test_invariant_to_relabelling(family: str, encoder: str, make_router: Callable) -> None:
    router = make_router(family, encoder=encoder)
    expected = outputs(router.guide, router.batch)
    labels = router.batch.support.labels.clone()
    for i, way in enumerate(router.batch.way.tolist()):
        names = torch.arange(way).roll(1 + i % (way - 1))
        shots = router.batch.support.mask[i]
        labels[i, shots] = names[labels[i, shots]]
        assert not torch.equal(labels[i], router.batch.support.labels[i])
    found = outputs(router.guide, replace(router.batch, support=replace(router.batch.support, labels=labels)))
    torch.testing.assert_close(found, expected, **CLOSE)


@every_encoder
@every_family
def test_invariant_to_order_and_names_where_images_repeat(
    family: str, encoder: str, make_router: Callable, make_episode: Callable
) -> None:
    """The same picture under two labels: nearest neighbours tie, and no order of shots may decide."""
    router = make_router(family, encoder=encoder)
    episode = make_episode(3, 3, 2, 0)
    images = episode.support.images.clone()
    images[[3, 4, 6]] = images[0].clone()  # class 0's first picture is also twice in class 1 and once in class 2
    episode = replace(episode, support=replace(episode.support, images=images))
    expected = outputs(router.guide, router.features.attach(EpisodeBatch.collate([episode])))
    for seed in range(4):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        names = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
        other = replace(episode, support=Labelled(images[order], names[episode.support.labels[order]]))
        found = outputs(router.guide, router.features.attach(EpisodeBatch.collate([other])))
        torch.testing.assert_close(found, expected, **CLOSE)


@every_encoder
@every_family
def test_invariant_to_padding_and_company(family: str, encoder: str, make_router: Callable) -> None:
    router = make_router(family, encoder=encoder)
    together = outputs(router.guide, router.batch)
    assert not router.batch.support.mask.all()
    for i in range(4):
        torch.testing.assert_close(outputs(router.guide, alone(router.batch, i))[0], together[i], **CLOSE)
    junk = router.batch.support.features.clone()
    junk[~router.batch.support.mask.unsqueeze(1).expand(junk.shape[:-1])] = 37.0
    found = outputs(router.guide, router.batch.with_features(junk))
    torch.testing.assert_close(found, together, **CLOSE)


@every_encoder
@every_family
def test_the_support_matters(family: str, encoder: str, make_router: Callable) -> None:
    """Invariance alone would also hold for a constant."""
    router = make_router(family, encoder=encoder)
    features = router.batch.support.features
    swapped = outputs(router.guide, router.batch.with_features(features.flip(1)))
    labels = router.batch.support.labels.clone()
    labels[2, :12] = labels[2, :12].roll(1)  # 4-way 3-shot: every class gets a shot of another
    other_labels = replace(router.batch, support=replace(router.batch.support, labels=labels))
    expected = outputs(router.guide, router.batch)
    assert (swapped - expected).abs().max() > 1e-2
    assert (outputs(router.guide, other_labels) - expected)[2].abs().max() > 1e-3
    assert (expected[0] - expected[1]).abs().max() > 1e-2


@pytest.mark.parametrize("blocks", [1, 2])
@every_encoder
@pytest.mark.parametrize("family", SIMPLEX_FAMILIES)
def test_weights_of_sources_are_equivariant(family: str, encoder: str, blocks: int, make_router: Callable) -> None:
    """Permuted sources, permuted posterior; what the whole support decides does not move."""
    order = [1, 2, 0]
    router = make_router(family, encoder=encoder, blocks=blocks)
    permuted = router.batch.with_features(router.batch.support.features[:, order])
    before, after = (router.guide.posterior(batch) for batch in (router.batch, permuted))
    for name in PARAMETERS:
        if not hasattr(before, name):
            continue
        old, new = getattr(before, name), getattr(after, name)
        if name != "temperature":
            old, new = old[..., order], new[..., :3]
        torch.testing.assert_close(new, old, **CLOSE)
    torch.testing.assert_close(after.mode[..., :3], before.mode[..., order], **CLOSE)


@pytest.mark.parametrize("blocks", [1, 2])
@every_encoder
@pytest.mark.parametrize("family", CATALOG_FAMILIES)
def test_routings_of_sources_are_equivariant(family: str, encoder: str, blocks: int, make_router: Callable) -> None:
    """Permuted sources, permuted probabilities of the routings of a catalog of sources."""
    order = [1, 2, 0]
    router = make_router(family, experts=0, encoder=encoder, blocks=blocks)
    probabilities = router.guide.posterior(router.batch).routing_probabilities()
    features = router.batch.support.features[:, order]
    moved = router.guide.posterior(router.batch.with_features(features)).routing_probabilities()
    rows = router.guide.catalog.coefficients
    for j, row in enumerate(rows):
        old = torch.zeros_like(row)
        old[..., order] = row  # new source r is old source order[r]
        (k,) = (rows == old).flatten(1).all(-1).nonzero().flatten().tolist()
        torch.testing.assert_close(moved[:, j], probabilities[:, k], **CLOSE)


@pytest.mark.parametrize("blocks", [1, 2])
@every_encoder
@every_family
def test_all_parameters_get_gradients_in_one_step(
    family: str, encoder: str, blocks: int, make_router: Callable
) -> None:
    router = make_router(family, encoder=encoder, blocks=blocks)
    pyro.set_rng_seed(0)
    CVaR_ELBO(rho=1.0).loss_and_grads(router.model, router.guide, router.batch)
    for module in (router.model, router.guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if not name.endswith(COMMON_SHIFTS):
                assert parameter.grad.abs().max() > 0, name


@pytest.mark.filterwarnings("ignore:rho x B")
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(
    ("sources", "experts", "blocks"),
    [(1, 0, 1), (1, 1, 1), (1, 3, 1), (2, 0, 1), (2, 1, 1), (2, 3, 1), (1, 0, 2), (1, 3, 2), (2, 1, 2)],
)
@every_family
def test_every_corner_of_sources_and_experts(
    family: str, sources: int, experts: int, blocks: int, vectorised: bool, make_router: Callable
) -> None:
    """R = 1 is single-anchor SMAT, M = 0 pure mixing: guide, prior, ELBO and deployment run on all of them."""
    router = make_router(family, sources, experts, blocks=blocks)
    elbo = CVaR_ELBO(rho=0.5, num_particles=2, vectorize_particles=vectorised)
    terms = elbo.terms(router.model, router.guide, router.batch)
    assert torch.isfinite(terms.loss)
    assert terms.episode_losses.shape == terms.episode_kl.shape == (4,)
    posterior = router.guide.posterior(router.batch)
    if posterior.kl_method(router.model.prior) == "exact":
        expected = posterior.kl(router.model.prior).detach()
        torch.testing.assert_close(terms.episode_kl, expected, rtol=1e-9, atol=1e-9)
    if sources == 1 and experts <= 1:
        assert terms.episode_kl.abs().max() < 1e-12
    if terms.loss.requires_grad:
        terms.loss.backward()
    router.model.eval()
    assert router.model.logits(posterior.mean, router.batch).shape[0] == 4


def test_fresh_router_prefers_the_source_that_explains_the_support(make_router: Callable) -> None:
    """Before any training: a source whose features separate the classes against two of pure noise."""
    router = make_router()
    batch = router.batch[2:3]  # 4-way 3-shot
    noise = torch.randn(1, 3, *batch.support.features.shape[2:], generator=torch.Generator().manual_seed(0))
    features = noise.double()
    features[0, 1] = torch.nn.functional.one_hot(batch.support.labels[0], features.shape[-1]).double()
    batch = batch.with_features(features)
    catalog = Catalog.k_hot(("a", "b", "c"))
    for guide in (LogisticNormalGuide(3).double(), CatalogGuide(catalog, 3).double()):
        assert guide.posterior(batch).mean[0, :3].argmax() == 1


def test_construction_is_reproducible_and_leaves_no_global_trace() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    first = LogisticNormalGuide(3, 2)
    torch.manual_seed(0)
    second = LogisticNormalGuide(3, 2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list(pyro.get_param_store().keys())
    assert pyro.settings.get("module_local_params") is False
