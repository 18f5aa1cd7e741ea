"""Distillation terms against hand computation; guides that learn from them alone arrive at the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.candidates import candidate_losses, support_candidate_losses
from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
from pyro_smat.routing import CATALOG_SITE, EXPERT_SITE, SOURCE_SITE, Catalog, softmax_of_ilr
from pyro_smat.routing.distributions.catalog import CatalogCategorical, RelaxedCatalog
from pyro_smat.routing.distributions.ilr import log_weights

pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


def catalog_of(router: Any) -> Catalog:
    return Catalog.k_hot(router.library.names, 2, max_sources=2)


def teacher_of(router: Any, **options: Any) -> CandidateTeacher:
    catalog = getattr(router.guide, "catalog", None) or catalog_of(router)
    return CandidateTeacher(router.model, catalog, **options)


def terms_of(router: Any, penalties: dict[str, Any], particles: int = 1, **options: Any) -> Any:
    nesting = {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 3}
    torch.manual_seed(0)
    elbo = CVaR_ELBO(rho=1.0, penalties=penalties, **nesting, **options)  # type: ignore[arg-type]
    return elbo.terms(router.model, router.guide, router.batch)


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["support", "queries"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_teacher_is_a_softmax_of_summed_losses(on: str, temperature: float, make_router: Callable) -> None:
    router = make_router("catalog")
    teacher = teacher_of(router, temperature=temperature, on=on)
    found = teacher(router.batch)
    assert not found.requires_grad
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, dtype=found.dtype))
    rows = router.guide.catalog.coefficients.double()
    means = (support_candidate_losses if on == "support" else candidate_losses)(router.model, router.batch, rows)
    for i in range(4):
        count = int((router.batch.support.mask if on == "support" else router.batch.query.mask)[i].sum())
        weights = [torch.exp(-count * means[j, i] / temperature) for j in range(len(rows))]
        expected = torch.stack(weights) / torch.stack(weights).sum()
        torch.testing.assert_close(found[i].exp().double(), expected.double())


def test_limits_of_the_temperature(make_router: Callable) -> None:
    router = make_router("catalog")
    losses = support_candidate_losses(router.model, router.batch, router.guide.catalog.coefficients.double())
    cold = teacher_of(router, temperature=1e-4)(router.batch).exp()
    assert torch.equal(cold.argmax(-1), losses.argmin(0))
    torch.testing.assert_close(cold.amax(-1), torch.ones_like(cold[:, 0]))
    hot = teacher_of(router, temperature=1e6)(router.batch).exp()
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / hot.shape[-1]), atol=1e-4, rtol=0)


def test_oracle_prefers_the_best_routing_of_the_queries(make_router: Callable) -> None:
    router = make_router("catalog")
    losses = candidate_losses(router.model, router.batch, router.guide.catalog.coefficients.double())
    oracle = teacher_of(router, on="queries")
    assert torch.equal(oracle(router.batch).argmax(-1), losses.argmin(0))
    by_support = teacher_of(router)(router.batch).exp()
    assert (oracle(router.batch).exp() * losses.mT).sum() < (by_support * losses.mT).sum()


def test_teacher_runs_as_deployed(make_router: Callable) -> None:
    """Gates are not sampled for it, no random number is drawn, and the model's mode stays."""
    router = make_router("catalog")
    router.model.train()
    state = torch.get_rng_state()
    teacher = teacher_of(router)
    found = teacher(router.batch), teacher.coefficients(router.batch), teacher.predictions(router.batch)
    assert router.model.training
    assert torch.equal(torch.get_rng_state(), state)
    router.model.eval()
    again = teacher(router.batch), teacher.coefficients(router.batch), teacher.predictions(router.batch)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_teacher_mean_and_ensemble_by_loop(make_router: Callable) -> None:
    router = make_router("catalog")
    router.model.eval()
    teacher = teacher_of(router)
    weights, rows = teacher(router.batch).exp(), router.guide.catalog.coefficients.double()
    torch.testing.assert_close(
        teacher.coefficients(router.batch),
        torch.stack([torch.stack([q[j] * row for j, row in enumerate(rows)]).sum(0) for q in weights]),
    )
    expected = sum(
        weights[:, j, None, None] * router.model.logits(row.expand(4, -1), router.batch).softmax(-1)
        for j, row in enumerate(rows)
    )
    found = teacher.predictions(router.batch)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert (found[1, :, 3:] == 0).all()  # episode 1 has 3 classes of 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected > 0"),
        ({"on": "tests"}, "on is 'tests'; expected 'support' or 'queries'"),
    ],
)
def test_bad_teachers(options: dict[str, Any], message: str, make_router: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_of(make_router("catalog"), **options)


# --- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ["enumerate", "gumbel_softmax", "straight_through", "score_function"])
def test_routing_kl_by_hand(estimator: str, particles: int, make_router: Callable) -> None:
    """Whatever the estimator draws, the term is the exact KL of the categorical, and adds weight x B x its mean."""
    router = make_router("catalog", guide_options={"estimator": estimator})
    term = RoutingDistillation(teacher_of(router), weight=0.3)
    q, teacher = router.guide.posterior(router.batch).routing_probabilities(), term.teacher(router.batch).exp()
    expected = sum((q[i] * (q[i] / teacher[i]).log()).sum() for i in range(4)) / 4
    found = terms_of(router, {"routing": term}, particles)
    torch.testing.assert_close(found.penalties["routing"], expected.detach())
    without = terms_of(router, {}, particles)
    torch.testing.assert_close(found.loss - without.loss, 0.3 * 4 * expected)


def test_routing_kl_has_the_gradient_of_the_hand_computation(make_router: Callable) -> None:
    router = make_router("catalog")
    term = RoutingDistillation(teacher_of(router))
    parameters = list(router.guide.parameters())
    q = router.guide.posterior(router.batch).routing_probabilities()
    by_hand = (q * (q.log() - term.teacher(router.batch))).sum()
    expected = torch.autograd.grad(by_hand, parameters, allow_unused=True)
    difference = terms_of(router, {"routing": term}).loss - terms_of(router, {}).loss
    found = torch.autograd.grad(difference, parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            assert a is not None
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


class Remembering(CandidateTeacher):
    """Tries its candidates once: the tests below have one batch."""

    seen: Tensor | None = None

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        self.seen = super().__call__(batch) if self.seen is None else self.seen
        return self.seen


class FreeGuide(nn.Module):
    """Not amortised: parameters of its own for each of 4 episodes."""

    def __init__(self, site: str, width: int, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.site, self.make = site, make
        self.values = nn.Parameter(torch.zeros(4, 1, width, dtype=torch.float64))

    def forward(self, batch: EpisodeBatch) -> None:
        with pyro.plate("episodes", 4, dim=-2):
            pyro.sample(self.site, self.make(self.values))


def train_on(term: RoutingDistillation, guide: FreeGuide, batch: EpisodeBatch) -> None:
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    for _ in range(250):
        trace = poutine.trace(guide).get_trace(batch)
        loss = term(trace, trace, batch)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_guide_that_learns_from_the_term_alone_becomes_the_teacher(make_router: Callable) -> None:
    router = make_router("catalog")
    teacher = Remembering(router.model, router.guide.catalog, temperature=2.0)
    guide = FreeGuide(CATALOG_SITE, 12, CatalogCategorical)

    def distance() -> float:
        q = guide.values.squeeze(1).softmax(-1)
        return (0.5 * (q - teacher(router.batch).exp()).abs().sum(-1)).max().item()

    assert distance() > 0.3
    train_on(RoutingDistillation(teacher), guide, router.batch)
    assert distance() < 0.02


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_guide_that_forbids_a_routing_has_a_finite_term(relaxed: bool, make_router: Callable) -> None:
    """0 log 0 is 0, in the gradient too."""
    router = make_router("catalog")
    term = RoutingDistillation(teacher_of(router))
    forbidden = torch.zeros(12, dtype=torch.float64).index_fill(0, torch.tensor([2, 7]), -torch.inf)

    def make(values: Tensor) -> CatalogCategorical | RelaxedCatalog:
        return RelaxedCatalog(values + forbidden, 0.5) if relaxed else CatalogCategorical(values + forbidden)

    guide = FreeGuide(CATALOG_SITE, 12, make)
    guide.values.data.normal_(generator=torch.Generator().manual_seed(0))
    trace = poutine.trace(guide).get_trace(router.batch)
    _, found = term(trace, trace, router.batch)
    allowed = forbidden.isfinite()
    q = guide.values.squeeze(1)[:, allowed].softmax(-1)
    by_hand = (q * (q.log() - term.teacher(router.batch)[:, allowed])).sum(-1)
    torch.testing.assert_close(found.squeeze(-1), by_hand)
    gradients = [torch.autograd.grad(value.sum(), guide.values)[0] for value in (found, by_hand)]
    torch.testing.assert_close(*gradients)


def test_simplex_term_is_the_cross_entropy_of_the_mean_weights(make_router: Callable) -> None:
    router = make_router("logistic_normal")
    term = RoutingDistillation(teacher_of(router))
    torch.manual_seed(0)
    trace = poutine.trace(router.guide).get_trace(router.batch)
    _, found = term(trace, trace, router.batch)
    mean = term.teacher.coefficients(router.batch)
    drawn = [log_weights(trace.nodes[name]["value"]).squeeze(1) for name in (SOURCE_SITE, EXPERT_SITE)]
    for i in range(4):
        expected = -(mean[i, :3] @ drawn[0][i]) - (mean[i, 3:] @ drawn[1][i])
        torch.testing.assert_close(found[i, 0], expected)


def test_simplex_term_is_smallest_at_the_teachers_mean(make_router: Callable) -> None:
    router = make_router("point", experts=0)
    teacher = Remembering(router.model, Catalog.k_hot(router.library.names), temperature=4.0)
    guide = FreeGuide(SOURCE_SITE, 2, lambda ilr: dist.Delta(ilr, event_dim=1))
    train_on(RoutingDistillation(teacher), guide, router.batch)
    found = softmax_of_ilr(guide.values.detach().squeeze(1))
    assert teacher(router.batch).exp().std(0).min() > 0.01  # it has something to say of every source
    torch.testing.assert_close(found, teacher.coefficients(router.batch), atol=0.01, rtol=0)


@pytest.mark.parametrize("family", ["point", "logistic_normal", "concrete", "dirichlet"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_simplex_family_and_blocks_can_be_taught(family: str, blocks: int, make_router: Callable) -> None:
    router = make_router(family, blocks=blocks)
    one = Catalog.k_hot(router.library.names, 2)
    catalog = one if blocks == 1 else Catalog.blockwise([one, one])
    term = RoutingDistillation(CandidateTeacher(router.model, catalog))
    terms = terms_of(router, {"routing": term}, particles=3)
    terms.loss.backward()
    entropy = term.teacher.coefficients(router.batch).flatten(1)
    least = torch.special.entr(entropy).sum(-1).mean() / blocks  # no weights have a smaller cross-entropy
    assert terms.penalties["routing"] >= least - 1e-9
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in router.guide.parameters())


def test_teacher_over_another_catalog_is_refused(make_router: Callable) -> None:
    router = make_router("catalog")
    term = RoutingDistillation(CandidateTeacher(router.model, Catalog.k_hot(router.library.names, 2)))
    with pytest.raises(ValueError, match=r"teacher is over 6 routings and the guide over 12; expected the guide's"):
        terms_of(router, {"routing": term})


def test_guide_without_a_routing_is_refused(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=1, experts=0)
    with pytest.raises(ValueError, match=r"the guide has sites .*; expected 'routing', 'source_ilr'"):
        terms_of(router, {"routing": RoutingDistillation(teacher_of(make_router("catalog")))})


@pytest.mark.parametrize("make", [RoutingDistillation, PredictionDistillation])
def test_negative_weights_are_refused(make: Callable) -> None:
    with pytest.raises(ValueError, match=r"weight is -1; expected >= 0"):
        make(None, -1)


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["point", "catalog"])
@pytest.mark.parametrize("particles", [1, 2])
def test_prediction_term_by_hand(family: str, particles: int, make_router: Callable) -> None:
    """Cross-entropy with a teacher's probabilities, query by query, over real queries and classes; expected over q."""
    router = make_router(family, experts=0)
    teacher = teacher_of(make_router("catalog", experts=0, seed=3))
    term = PredictionDistillation(teacher.predictions, weight=0.7)
    taught = teacher.predictions(router.batch)
    posterior = router.guide.posterior(router.batch)
    rows, weights = posterior.top(1000)  # all of the catalog; the one point
    expected = []
    for i in range(4):
        real, way = router.batch.query.mask[i], int(router.batch.way[i])
        total = 0.0
        for row, weight in zip(rows, weights, strict=True):
            logits = router.model.logits(row, router.batch)[i, real, :way]
            total += weight[i] * F.cross_entropy(logits, taught[i, real, :way])
        expected.append(total)
    mean = torch.stack([torch.as_tensor(e) for e in expected]).mean()
    found = terms_of(router, {"prediction": term}, particles)
    torch.testing.assert_close(found.penalties["prediction"], mean.detach())
    torch.testing.assert_close(found.loss - terms_of(router, {}, particles).loss, 0.7 * 4 * mean)


def test_teaching_predictions_brings_them_nearer(make_router: Callable) -> None:
    router = make_router("point")
    teacher = teacher_of(make_router("catalog", seed=5))
    term = PredictionDistillation(teacher.predictions, weight=100.0)
    parameters = [p for p in (*router.guide.parameters(), *router.model.parameters())]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    values = []
    for _ in range(15):
        terms = terms_of(router, {"prediction": term}, kl_weight=0.0)
        values.append(terms.penalties["prediction"].item())
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    assert values[-1] < 0.95 * values[0]
