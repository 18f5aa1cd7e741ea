"""A catalog over fixed sources: losses and training from looked-up features are those of running the networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.glyphs import glyph_pool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.evaluation import EvaluationSettings, evaluate
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.networks.composition import TaskNetwork

CORRUPTED = ({"kind": "label_noise", "fraction": 0.5}, {"kind": "gaussian_blur", "probability": 0.3})


@pytest.fixture
def router() -> Router:
    guide = {"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": 2}}
    return build_router(
        RunConfig(
            guide=guide,
            experts={"count": 0},
            episodes={"way": 3, "query": 2, "attributes": ("letter",), "corruptions": CORRUPTED},
        )
    )


def small_pool() -> ImagePool:
    """Some images of some letters."""
    pool = glyph_pool("validation")
    letters = pool.labels[:, 0].unique()[:5]
    rows = torch.cat([(pool.labels[:, 0] == letter).nonzero().flatten()[:24] for letter in letters])
    return replace(pool, images=pool.images[rows], labels=pool.labels[rows], domain=pool.domain[rows])


def no_network(*arguments: object) -> Tensor:
    raise AssertionError("a network was run")


def test_losses_and_gradients_are_those_of_the_networks(router: Router) -> None:
    pool = small_pool()
    batch = router.config.episodes.sampler(pool, seed=3).sample(6)
    known = router.features(pool, of_catalog=True).attach(batch)
    assert (known.support.rows[known.support.mask] < 0).any()  # some images are blurred, so not the pool's
    elbo = CVaR_ELBO(rho=0.9, kl_weight=0.1)
    found = []
    for one in (known, replace(known, known=None)):
        terms = elbo.terms(router.model.train(), router.guide.train(), one)
        parameters = [p for part in (router.model, router.guide) for p in part.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(terms.loss, parameters, allow_unused=True)
        found.append((terms.episode_losses, [g for g in gradients if g is not None]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][1]
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_training_runs_no_network_once_the_pool_is_embedded(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = small_pool()
    features = router.features(pool, of_catalog=True)
    drawn = router.config.episodes.sampler(pool, seed=1, corruptions=("label_noise",))
    features.attach(drawn.sample(1))  # embeds the pool
    trainer = MetaTrainer(
        router.model,
        router.guide,
        elbo=CVaR_ELBO(rho=1.0),
        sampler=drawn,
        features=features,
        settings=TrainingSettings(steps=3, episodes=4, warmup=1),
    )
    monkeypatch.setattr(TaskNetwork, "__call__", no_network)
    monkeypatch.setattr(TaskNetwork, "shared", no_network)
    history = trainer.fit(progress=False)
    assert history["loss"].notna().all()
    evaluation = evaluate(router.model, router.guide, drawn, features, settings=EvaluationSettings.bare(), episodes=4)
    assert evaluation.accuracy("posterior_predictive").shape == (4,)


def test_experts_are_known_as_deployed_and_run_where_they_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    router = build_router(RunConfig(guide={"kind": "catalog"}, experts={"count": 2, "gates": "top_k"}))
    model, pool = router.model, small_pool()
    assert model.experts is not None
    with torch.no_grad():
        model.experts.delta.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    features, batch = (
        router.features(pool, of_catalog=True),
        EpisodeSampler(pool, 3, 2, 2, attributes=("letter",), seed=3).sample(4),
    )
    known = features.attach(batch)
    coefficients = router.catalog.coefficients[:, None]
    with torch.no_grad():
        run = model.eval().logits(coefficients, batch)
    assert (run[0] - run[1]).abs().max() > 1e-3  # the experts differ
    leaf = model.logits(coefficients, known)
    assert leaf.requires_grad  # a gradient is wanted: networks are run
    torch.testing.assert_close(leaf.detach(), run, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.experts.delta[:] *= 2
        changed = model.logits(coefficients, known)
        torch.testing.assert_close(changed, model.logits(coefficients, batch), rtol=1e-4, atol=1e-4)
        assert (changed - run).abs().max() > 1e-3  # other experts: what is known of the old ones is not used
        model.experts.delta[:] /= 2
        monkeypatch.setattr(TaskNetwork, "__call__", no_network)
        monkeypatch.setattr(TaskNetwork, "shared", no_network)
        torch.testing.assert_close(model.logits(coefficients, known), run, rtol=1e-4, atol=1e-4)
        sources = model.logits(coefficients[..., : len(router.library)], known, model.source_basis)  # without experts
    monkeypatch.undo()
    alone = model.logits(coefficients[..., : len(router.library)], batch, model.source_basis)
    torch.testing.assert_close(sources, alone.detach(), rtol=1e-4, atol=1e-4)
