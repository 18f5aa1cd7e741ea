"""Every guide family with every prior: walks the table of docs/families.md, cell by cell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch
from small_posteriors import CATALOG_FAMILIES, FAMILIES, random_posterior, small_catalog
from torch import Tensor

from pyro_smat.guides import ConcretePosterior, PointPosterior, RoutingPosterior
from pyro_smat.inference import CVaR_ELBO
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

COSTS = torch.tensor([0.0, 1.0, 2.5, 0.5, 3.0])
LOC = torch.tensor([1.0, -0.5, 0.2, 0.7, -0.7])
TEMPERATURE = 0.9
DRAWS = 20_000


def of_catalog(make: Callable) -> Callable[[int], RoutingPrior]:
    return lambda blocks: make(small_catalog(3, 2, blocks))


def parts(*makes: Callable[[int], RoutingPrior], kl: str = "bound") -> Callable[[int], RoutingPrior]:
    return lambda blocks: MixturePrior([make(blocks) for make in makes], [0.3, 0.7], kl=kl)  # type: ignore[arg-type]


def normal(shift: float = 0.0) -> Callable[[int], RoutingPrior]:
    return lambda blocks: LogisticNormalPrior(3, 2, loc=LOC + shift * COSTS, scale=1.2, num_blocks=blocks)


def concrete(slope: float, temperature: float) -> Callable[[int], RoutingPrior]:
    return lambda blocks: ConcretePrior(3, 2, logits=slope * LOC, temperature=temperature, num_blocks=blocks)


def dirichlet(blocks: int) -> RoutingPrior:
    return DirichletPrior(3, 2, concentration=LOC.exp(), num_blocks=blocks)


def cost(blocks: int) -> RoutingPrior:
    return SimplexCostPrior(3, 2, costs=COSTS, beta=1.5, num_blocks=blocks)


PRIORS: dict[str, Callable[[int], RoutingPrior]] = {
    "CatalogPrior": of_catalog(lambda catalog: CatalogPrior(catalog, logits=torch.linspace(-1, 1, len(catalog)))),
    "CostAwareCatalogPrior": of_catalog(lambda catalog: CostAwareCatalogPrior(catalog, COSTS, beta=0.7)),
    "HierarchicalPrior": of_catalog(lambda catalog: HierarchicalPrior(catalog, catalog.families())),
    "MixturePrior of catalog priors": of_catalog(
        lambda catalog: MixturePrior([CatalogPrior(catalog), CostAwareCatalogPrior(catalog, COSTS, beta=2.0)])
    ),
    "LogisticNormalPrior": normal(),
    "LogisticNormalPrior.cost_aware": lambda blocks: LogisticNormalPrior.cost_aware(
        3, 2, costs=COSTS, beta=0.7, scale=1.5, num_blocks=blocks
    ),
    "DirichletPrior": dirichlet,
    "SimplexCostPrior": cost,
    "ConcretePrior, the guide's temperature": concrete(1.0, TEMPERATURE),
    "ConcretePrior, another temperature": concrete(1.0, 1.4),
    "MixturePrior, sampled": parts(normal(), cost, kl="sampled"),
    "MixturePrior, bound, of logistic-normals": parts(normal(), normal(-1.0)),
    "MixturePrior, bound, of Concretes": parts(concrete(1.0, TEMPERATURE), concrete(-1.0, TEMPERATURE)),
    "MixturePrior, bound, of Dirichlet and cost": parts(dirichlet, cost),
}


def published() -> dict[tuple[str, str], str]:
    """(family, prior) -> cell of the table."""
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    header, _, *body = rows
    return {(family, row[0]): cell for row in body for family, cell in zip(header[1:], row[1:], strict=True)}


CELLS = published()
ALLOWED = [pair for pair, cell in CELLS.items() if cell != "refused"]
REFUSED = [pair for pair, cell in CELLS.items() if cell == "refused"]


def posterior_of(family: str, blocks: int = 1) -> RoutingPosterior:
    q = random_posterior(family, 3, 2, blocks, episodes=3)
    if isinstance(q, ConcretePosterior):
        temperature = torch.tensor(TEMPERATURE).double().expand(3, 1)  # as the prior rounds it
        return ConcretePosterior(q.logits, temperature, num_sources=3)
    return q


def sampled_kl(q: RoutingPosterior, prior: RoutingPrior, draws: int = DRAWS) -> tuple[Tensor, Tensor]:
    """Mean and standard error of log q - log p, ``(B,)`` each, log q from the drawn coefficients."""
    torch.manual_seed(7)
    sites = q.sites()
    with torch.no_grad():
        drawn = {name: site.sample((draws,)) for name, site in sites.items()}
        coefficients = prior.coefficients_of(drawn).squeeze(2)
        ratio = q.log_prob(coefficients) - prior.log_prob(drawn).squeeze(-1)
    return ratio.mean(0), ratio.std(0) / math.sqrt(draws)


def components_bound(q: RoutingPosterior, prior: MixturePrior) -> Tensor:
    """min_j (KL_j - ln pi_j), ``(B,)``."""
    each = torch.stack([q.kl(component) for component in prior.components], dim=-1)
    return (each - prior.log_weights).amin(-1)


def test_the_table_is_complete() -> None:
    assert set(CELLS) == {(family, prior) for family in FAMILIES for prior in PRIORS}
    assert set(CELLS.values()) == {"exact", "Monte Carlo", "bound", "refused"}


BLOCKWISE = [
    ("catalog", "CostAwareCatalogPrior"),
    ("hierarchical", "HierarchicalPrior"),
    ("logistic_normal", "LogisticNormalPrior"),
    ("logistic_normal", "MixturePrior, bound, of logistic-normals"),
    ("concrete", "ConcretePrior, the guide's temperature"),
    ("concrete", "DirichletPrior"),
    ("dirichlet", "SimplexCostPrior"),
    ("dirichlet", "MixturePrior, sampled"),
    ("point", "MixturePrior, bound, of Dirichlet and cost"),
]


@pytest.mark.parametrize(
    ("family", "name", "blocks"), [(*pair, 1) for pair in ALLOWED] + [(*pair, 2) for pair in BLOCKWISE]
)
def test_kl_is_what_the_table_says(family: str, name: str, blocks: int) -> None:
    q, prior = posterior_of(family, blocks), PRIORS[name](blocks).double()
    cell = CELLS[family, name]
    assert q.kl_method(prior) == cell
    torch.manual_seed(0)
    kl = q.kl(prior)
    assert kl.shape == (3,)
    if isinstance(q, PointPosterior):
        at_point = {site: delta.v for site, delta in q.sites().items()}
        torch.testing.assert_close(kl, -prior.log_prob(at_point).squeeze(-1))
        return
    reference, error = sampled_kl(q, prior)
    assert (error < 0.05 * reference.abs() + 0.02).all()
    if cell == "exact":
        assert torch.equal(kl, q.kl(prior))  # no draws
        assert ((kl - reference).abs() < 5 * error).all()
    elif cell == "bound":
        assert isinstance(prior, MixturePrior)
        assert torch.equal(kl, q.kl(prior))
        assert (kl >= reference - 4 * error).all()
        assert (kl <= components_bound(q, prior) + 1e-9).all()
    else:
        many = q.kl(prior, draws=5_000)
        assert ((many - reference).abs() < 5 * error * math.sqrt(1 + DRAWS / 5_000)).all()
        assert ((kl - reference).abs() < 5 * error * math.sqrt(1 + DRAWS / 256)).all()


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_refused_pairs_name_the_sites(family: str, name: str, make_router: Callable) -> None:
    q, prior = posterior_of(family), PRIORS[name](1).double()
    mine, theirs = (re.escape(str(sorted(names))) for names in (q.sites(), prior.site_names))
    message = f"{type(q).__name__} has sites {mine} and {type(prior).__name__} {theirs}"
    for ask in (q.kl, q.kl_method):
        with pytest.raises(ValueError, match=message):
            ask(prior)
    router = make_router(family, prior=prior)
    with pytest.raises(ValueError, match=f"latent site '{prior.site_names[0]}' of the model is not in the guide"):
        CVaR_ELBO(rho=1.0).loss(router.model, router.guide, router.batch)


@pytest.mark.parametrize(
    ("family", "name", "blocks"), [(*pair, 1) for pair in ALLOWED] + [(*pair, 2) for pair in BLOCKWISE]
)
def test_the_elbo_trains_every_allowed_pair(family: str, name: str, blocks: int, make_router: Callable) -> None:
    options = {"temperature": TEMPERATURE, "final_temperature": TEMPERATURE, "per_episode": False}
    catalog = small_catalog(3, 2, blocks) if family in CATALOG_FAMILIES else None
    router = make_router(
        family,
        prior=PRIORS[name](blocks),
        blocks=blocks,
        catalog=catalog,
        guide_options=options if family == "concrete" else {},
    )
    pyro.set_rng_seed(0)
    terms = CVaR_ELBO(rho=1.0).terms(router.model, router.guide, router.batch)
    terms.loss.backward()
    assert torch.isfinite(terms.loss)
    for key, parameter in router.guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
    assert router.guide.router.source_head.weight.grad.abs().max() > 1e-6
    if CELLS[family, name] == "exact":
        expected = router.guide.posterior(router.batch).kl(router.model.prior)
        torch.testing.assert_close(terms.episode_kl, expected.detach())
