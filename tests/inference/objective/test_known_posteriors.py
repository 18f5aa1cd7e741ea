"""Tasks whose posterior is known: a trained guide has to find it, and neither collapse to a point nor to the prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_smat.encoders import Encoding, SupportEncoder
from pyro_smat.encoders.encoder import SourceContext
from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.guides import CatalogGuide, HierarchicalGuide, LogisticNormalGuide, RoutingGuide
from pyro_smat.guides.information import posterior_information
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.finite_routes import FiniteRoutes
from pyro_smat.models.priors import CatalogPrior, LogisticNormalPrior
from pyro_smat.routing import Catalog, ilr_basis
from pyro_smat.routing.local_module import LocalModule

ROUTES, SHOTS, EPISODES = 4, 4, 64
CATALOG = Catalog(torch.eye(ROUTES), ("a", "b", "c", "d"))
MEANS = torch.tensor([[1.0, 0.0], [-0.8, 0.9], [-0.2, -1.1], [0.3, 0.6]])
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


class StatisticsEncoder(SupportEncoder):
    """Sufficient statistics of the shots under every source: their number, mean and mean square."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__(hidden)
        self.embed = nn.Sequential(nn.Linear(4, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.start = nn.Linear(2, 1)
        self.context = SourceContext(hidden)

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        shown = mask[:, None, :, None].to(features)
        total = (features * shown).sum((-1, -2))
        squares = (features.square() * shown).sum((-1, -2))
        count = shown.sum((-1, -2)).expand_as(total)
        statistics = torch.stack([total / SHOTS, squares / SHOTS, count / SHOTS, total / count], dim=-1)
        return Encoding(self.embed(statistics), self.start(torch.stack([squares, total], dim=-1)).squeeze(-1))


@dataclass(frozen=True)
class Supports:
    """Shots ``(B, S, f)`` of B episodes, one to S of them shown, and what the sources see of them."""

    shots: Tensor
    batch: EpisodeBatch

    def __len__(self) -> int:
        return len(self.shots)


def supports(shots: Tensor, features: Tensor, generator: torch.Generator) -> Supports:
    """Features are ``(B, R, S, f)``; all shots are of one class, and there are no images."""
    episodes, count = shots.shape[:2]
    blank = torch.zeros(episodes, count, 1, 1, 1)
    labels = torch.zeros(episodes, count, dtype=torch.long)
    mask = torch.arange(count) < torch.randint(1, count + 1, (episodes, 1), generator=generator)
    images = Labelled(blank, labels, mask)
    batch = EpisodeBatch(images, images, torch.ones(episodes, dtype=torch.long))
    return Supports(shots, batch.with_features(features))


class Guided(LocalModule):
    """A routing guide whose batch is inside the supports."""

    def __init__(self, guide: RoutingGuide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, data: Supports) -> dict[str, Tensor]:
        return self.guide(data.batch)


def train(model: LocalModule, guide: RoutingGuide, draw: Callable[[torch.Generator], Supports], steps: int) -> None:
    """Adam on CVaR_ELBO at rho = 1, the plain ELBO."""
    pyro.set_rng_seed(0)
    generator = torch.Generator().manual_seed(0)
    elbo, pair = CVaR_ELBO(rho=1.0, max_plate_nesting=2), Guided(guide)
    optimizer = torch.optim.Adam(guide.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(model, pair, draw(generator)).backward()
        optimizer.step()
        schedule.step()


# --- a finite number of routes ----------------------------------------------------------------------------------------


def routed_supports(generator: torch.Generator, episodes: int = EPISODES) -> Supports:
    route = torch.multinomial(PRIOR.exp(), episodes, replacement=True, generator=generator)
    shots = MEANS[route].unsqueeze(1) + torch.randn(episodes, SHOTS, 2, generator=generator)
    return supports(shots, shots.unsqueeze(1) - MEANS[:, None], generator)


def bayes(data: Supports) -> Tensor:
    """p(A | S) ``(B, J)`` by Bayes' rule."""
    log_p = dist.Normal(MEANS[:, None], 1.0).log_prob(data.shots.unsqueeze(1)).sum(-1)  # (B, J, S)
    return (PRIOR + (log_p * data.batch.support.mask.unsqueeze(1)).sum(-1)).softmax(-1)


class RouteModel(LocalModule):
    """p(A) p(support | A): shots are Gaussian around the mean of their route."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = CatalogPrior(CATALOG, logits=PRIOR)

    def forward(self, data: Supports) -> None:
        with pyro.plate("episodes", len(data), dim=-2):
            means = self.prior() @ MEANS
            with pyro.plate("shots", SHOTS, dim=-1), pyro.poutine.mask(mask=data.batch.support.mask):
                pyro.sample("support", dist.Normal(means, 1.0).to_event(1), obs=data.shots)


class DiscreteSupports(LocalModule):
    """FiniteRoutes on the shots that are shown."""

    def __init__(self, routes: FiniteRoutes) -> None:
        super().__init__()
        self.routes = routes

    def forward(self, data: Supports) -> None:
        self.routes(data.shots.squeeze(-1).long(), data.batch.support.mask)


def test_a_guide_learns_the_posterior_of_finite_routes() -> None:
    laws = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6], [0.34, 0.33, 0.33]])
    routes = FiniteRoutes(PRIOR.exp(), laws)

    def draw(generator: torch.Generator, episodes: int = EPISODES) -> Supports:
        shots = routes.draw(episodes, SHOTS, generator)[1]
        return supports(shots.unsqueeze(-1).float(), laws.log()[:, shots].movedim(0, 1).unsqueeze(-1), generator)

    pyro.set_rng_seed(1)
    guide = CatalogGuide(CATALOG, ROUTES, prior=CatalogPrior(CATALOG, logits=PRIOR), encoder=StatisticsEncoder())
    train(DiscreteSupports(routes), guide, draw, 200)
    data = draw(torch.Generator().manual_seed(9), 2000)
    truth = routes.posterior(data.shots.squeeze(-1).long(), data.batch.support.mask)
    with torch.no_grad():
        q = guide.posterior(data.batch).routing_probabilities()
    assert 0.5 * (q - truth).abs().sum(-1).mean() < 0.03
    doubt = (1 - truth.amax(-1)).mean().item()
    assert (1 - q.amax(-1)).mean().item() == pytest.approx(doubt, abs=0.02)


@pytest.mark.parametrize("cls", [CatalogGuide, HierarchicalGuide])
def test_catalog_posterior_is_bayes_rule(cls: type[CatalogGuide]) -> None:
    families = {"families": [0, 0, 1, 1]} if cls is HierarchicalGuide else {}
    pyro.set_rng_seed(1)
    model = RouteModel()
    guide = cls(CATALOG, ROUTES, prior=model.prior, encoder=StatisticsEncoder(), **families)  # type: ignore[arg-type]
    train(model, guide, routed_supports, 200)
    data = routed_supports(torch.Generator().manual_seed(9), 2000)
    with torch.no_grad():
        posterior = guide.posterior(data.batch)
        q, p = posterior.routing_probabilities(), bayes(data)
        distance = 0.5 * (q - p).abs().sum(-1)
        spread = posterior_information(posterior, num_samples=4)
    assert distance.mean() < 0.03, distance.mean()
    # Neither a point nor the prior: the doubt and the information that there are.
    doubt = torch.special.entr(p).sum(-1).mean().item()
    information = torch.special.entr(p.mean(0)).sum().item() - doubt
    assert 0.3 < doubt < 0.8
    assert spread.entropy == pytest.approx(doubt, abs=0.03)
    assert spread.mutual_information == pytest.approx(information, abs=0.05)


# --- a continuum of routings ------------------------------------------------------------------------------------------

SOURCES, PRIOR_SCALE = 3, 1.5


def mixed_supports(generator: torch.Generator, episodes: int = EPISODES) -> Supports:
    logits = PRIOR_SCALE * torch.randn(episodes, 1, SOURCES, generator=generator)
    logits = logits - logits.mean(-1, keepdim=True)
    shots = logits + torch.randn(episodes, SHOTS, SOURCES, generator=generator)
    return supports(shots, shots.mT.unsqueeze(-1), generator)


class MixtureModel(LocalModule):
    """p(u) p(support | u): a shot is the logits of the routing with unit noise; u are their ILR coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = LogisticNormalPrior(SOURCES, scale=PRIOR_SCALE)

    def forward(self, data: Supports) -> None:
        with pyro.plate("episodes", len(data), dim=-2):
            site, ilr = "source_ilr", self.prior.distribution("source_ilr", {})
            logits = pyro.sample(site, ilr) @ ilr_basis(SOURCES, data.shots).mT
            with pyro.plate("shots", SHOTS, dim=-1), pyro.poutine.mask(mask=data.batch.support.mask):
                pyro.sample("support", dist.Normal(logits, 1.0).to_event(1), obs=data.shots)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_logistic_normal_posterior_is_bayes_rule(covariance: str) -> None:
    torch.manual_seed(1)
    guide = LogisticNormalGuide(SOURCES, encoder=StatisticsEncoder(), covariance=covariance)  # type: ignore[arg-type]
    train(MixtureModel(), guide, mixed_supports, 400)
    data = mixed_supports(torch.Generator().manual_seed(9), 2000)
    basis = ilr_basis(SOURCES, data.shots)
    count = data.batch.support.mask.sum(-1)
    precision = PRIOR_SCALE**-2 + count
    total = (data.shots * data.batch.support.mask.unsqueeze(-1)).sum(1)
    covariance_matrix = torch.eye(SOURCES - 1) / precision.view(-1, 1, 1)
    exact = torch.distributions.MultivariateNormal(total @ basis / precision.unsqueeze(-1), covariance_matrix)
    with torch.no_grad():
        posterior = guide.posterior(data.batch)
        found = posterior.sites()["source_ilr"].expand((2000, 1))
        wide = torch.distributions.MultivariateNormal(exact.mean.unsqueeze(1), exact.covariance_matrix.unsqueeze(1))
        gap = torch.distributions.kl_divergence(found, wide).mean()
        spread = posterior_information(posterior, num_samples=8)
    assert gap < 0.03, gap  # nats; the KL between posterior and prior is a hundred times that
    assert posterior.kl(MixtureModel().prior).mean() > 1.0
    share = (found.covariance_matrix.diagonal(dim1=-2, dim2=-1).mean(-1).squeeze() * precision).mean()
    assert share == pytest.approx(1.0, abs=0.1)
    assert 1.0 < spread.mutual_information < math.log(2000)
