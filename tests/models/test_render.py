"""pyro.render_model draws every shipped model and guide, and the shipped pictures are of the code as it is."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_smat import EpisodeBatch, guides
from pyro_smat.guides import (
    CatalogGuide,
    ConcreteGuide,
    DirichletGuide,
    HierarchicalGuide,
    LogisticNormalGuide,
    PointGuide,
    PseudoBMAGuide,
    RoutingGuide,
)
from pyro_smat.models import priors
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
    SimplexPrior,
)
from pyro_smat.routing import Catalog

PICTURES = Path(__file__).parents[2] / "docs" / "models"
BLOCKS = {"weights": "weight", "rest": ".*"}
CATALOG = Catalog.k_hot(("a", "b", "c"), experts=2, max_sources=2)
COSTS = torch.arange(1.0, 6.0)
LEARNED: dict[str, Any] = {"learn": True, "hyperprior": dist.Gamma(2.0, 1.0)}

CATALOG_PRIORS: dict[str, RoutingPrior] = {
    "catalog": CatalogPrior(CATALOG),
    "hierarchical": HierarchicalPrior(CATALOG, CATALOG.families(), learn=True),
    "cost-aware": CostAwareCatalogPrior(CATALOG, COSTS, beta=1.0, **LEARNED),
    "mixture of catalogs": MixturePrior([CatalogPrior(CATALOG), CostAwareCatalogPrior(CATALOG, COSTS, beta=2.0)]),
}
SIMPLEX_PRIORS: dict[str, RoutingPrior] = {
    "logistic-normal": LogisticNormalPrior(3, 2),
    "Dirichlet": DirichletPrior(3, 2),
    "concrete": ConcretePrior(3, 2),
    "simplex cost": SimplexCostPrior(3, 2, costs=COSTS, beta=1.0, **LEARNED),
    "mixture": MixturePrior(
        [SimplexCostPrior(3, 2, costs=COSTS, beta=5.0), DirichletPrior(3, 2)],
        learn=True,
        hyperprior=dist.Dirichlet(torch.ones(2)),
    ),
}
BLOCKWISE_PRIORS: dict[str, RoutingPrior] = {
    "blockwise": LogisticNormalPrior(3, 2, num_blocks=2),
    "blockwise catalog": CatalogPrior(Catalog.blockwise([Catalog.k_hot(("a", "b", "c"), 2)] * 2)),
}
HYPERPRIORS = {"cost-aware": "beta", "simplex cost": "beta", "mixture": "weights"}
GUIDES: dict[str, RoutingGuide] = {
    "catalog": CatalogGuide(CATALOG, 3),
    "relaxed catalog": CatalogGuide(CATALOG, 3, estimator="gumbel_softmax"),
    "hierarchical": HierarchicalGuide(CATALOG, 3),
    "logistic-normal": LogisticNormalGuide(3, 2, covariance="full"),
    "concrete": ConcreteGuide(3, 2),
    "Dirichlet": DirichletGuide(3, 2),
    "point": PointGuide(3, 2),
}


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """docs/models/render.py."""
    spec = importlib.util.spec_from_file_location("render", PICTURES / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(program: Callable[[EpisodeBatch], object], batch: EpisodeBatch) -> str:
    options = {"render_distributions": True, "render_deterministic": True}
    return pyro.render_model(program, model_args=(batch,), **options).source


def edges(source: str) -> set[tuple[str, str]]:
    return set(re.findall(r"^\t*(\w+) -> (\w+)$", source, re.MULTILINE))


def nodes(source: str) -> dict[str, tuple[str, ...]]:
    """Name of every site -> the plates around it, from the outermost; the innermost mention counts."""
    found: dict[str, tuple[str, ...]] = {}
    plates: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if opened := re.match(r"(?:subgraph cluster_(\w+)|digraph) {", line):
            plates.append(opened[1])
        elif line == "}":
            plates.pop()
        elif (site := re.match(r"(\w+) \[label=", line)) and "plaintext" not in line:
            found[site[1]] = max(found.get(site[1], ()), tuple(plates[1:]), key=len)
    return found


def drawn(source: str) -> None:
    """Let dot lay it out, where there is one."""
    if shutil.which("dot"):
        svg = subprocess.run(["dot", "-Tsvg"], input=source.encode(), capture_output=True, check=True).stdout
        text = "".join(ElementTree.fromstring(svg).itertext())
        assert all(site in text for site in nodes(source))


def check_model(source: str, prior: RoutingPrior, hyperprior: str | None) -> None:
    latent = prior.site_names
    expected: dict[str, tuple[str, ...]] = dict.fromkeys((*latent, "coefficients"), ("episodes",))
    expected["labels"] = ("episodes", "queries")
    if hyperprior:
        expected[f"{hyperprior}_hyperprior"] = ()
    assert nodes(source) == expected
    dependent = {(latent[0], latent[1])} if isinstance(prior, MixturePrior) and len(latent) > 1 else set()
    assert edges(source) == {(site, "coefficients") for site in latent} | {("coefficients", "labels")} | dependent
    assert re.search(r"\tlabels \[label=labels fillcolor=gray", source)
    assert re.search(r"\tcoefficients \[.*dashed", source)
    assert not any(re.search(rf"\t{site} \[label={site} fillcolor=gray", source) for site in latent)
    drawn(source)


@pytest.mark.parametrize("name", [*CATALOG_PRIORS, *SIMPLEX_PRIORS])
def test_model_with_every_prior(name: str, render: ModuleType) -> None:
    """Routing -> coefficients -> labels inside the plates; hyperpriors outside; mixtures couple their sites."""
    prior = (CATALOG_PRIORS | SIMPLEX_PRIORS)[name]
    model = render.tiny_model(prior)
    check_model(picture(model, render.tiny_batch(model)), prior, HYPERPRIORS.get(name))


@pytest.mark.parametrize("name", BLOCKWISE_PRIORS)
def test_blockwise_model(name: str, render: ModuleType) -> None:
    prior = BLOCKWISE_PRIORS[name]
    model = render.tiny_model(prior, BLOCKS)
    check_model(picture(model, render.tiny_batch(model)), prior, None)


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide(name: str, render: ModuleType) -> None:
    """A guide draws the sites of a prior of its family, independently, inside the episode plate."""
    guide = GUIDES[name]
    prior = CATALOG_PRIORS["catalog"] if isinstance(guide, CatalogGuide) else SIMPLEX_PRIORS["logistic-normal"]
    batch = render.tiny_batch(render.tiny_model(prior))
    source = picture(guide, batch)
    assert nodes(source) == dict.fromkeys(prior.site_names, ("episodes",))
    assert edges(source) == set()
    assert "gray" not in source
    drawn(source)


def test_nothing_shipped_is_left_out() -> None:
    abstract = {RoutingPrior, SimplexPrior, RoutingGuide, PseudoBMAGuide}  # the last has the sites of CatalogGuide

    def shipped(room: ModuleType, base: type) -> set[type]:
        classes = {getattr(room, name) for name in room.__all__}
        return {c for c in classes if isinstance(c, type) and issubclass(c, base)} - abstract

    def seen(*tables: Mapping[str, object]) -> set[type]:
        return {type(made) for table in tables for made in table.values()}

    assert shipped(priors, RoutingPrior) == seen(CATALOG_PRIORS, SIMPLEX_PRIORS)
    assert shipped(guides, RoutingGuide) == seen(GUIDES)


def test_shipped_pictures_are_current(render: ModuleType) -> None:
    """If this fails, run ``python docs/models/render.py`` and look at the pictures."""
    graphs = render.graphs()
    assert {path.stem for path in PICTURES.glob("*.svg")} == set(graphs)
    for name, graph in graphs.items():
        assert (PICTURES / f"{name}.dot").read_text() == graph.source
        text = "".join(ElementTree.parse(PICTURES / f"{name}.svg").getroot().itertext())
        for site in nodes(graph.source):
            assert site in text
