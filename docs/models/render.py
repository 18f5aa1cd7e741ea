"""Draws the pictures of models and guides that the README shows: ``python docs/models/render.py``.

Writes NAME.dot and NAME.svg beside this file; needs the package "graphviz" and its program ``dot``. The size of the
network does not matter to a picture, so a tiny one is built here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import graphviz
import pyro
import torch
from torch import nn

from pyro_smat import Episode, EpisodeBatch, ParameterSpace, SourceLibrary
from pyro_smat.episodes import Labelled
from pyro_smat.guides import CatalogGuide
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import CatalogPrior, LogisticNormalPrior, RoutingPrior
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.routing import Catalog

FOLDER = Path(__file__).parent
SOURCES, EXPERTS = ("generalist", "birds", "plants"), 2


def tiny_model(prior: RoutingPrior, blocks: Mapping[str, str] | None = None) -> RoutedModel:
    """A model over three sources and two experts of a linear network on 2 x 2 images.

    Args:
        prior: of three sources and two experts, with as many blocks as ``blocks``.
        blocks: as in :meth:`ParameterSpace.from_module`; the tensors are called "1.weight" and "1.bias".
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    space = ParameterSpace.from_module(network, blocks)
    generator = torch.Generator().manual_seed(0)
    library = SourceLibrary(SOURCES, torch.randn(len(SOURCES), space.dim, generator=generator), space)
    bank = ExpertBank(space, EXPERTS, sparsity=0.5, generator=generator)
    return RoutedModel(TaskNetwork(network, space), library, prior=prior, experts=bank)


def tiny_batch(model: RoutedModel) -> EpisodeBatch:
    """Two episodes for a tiny model, with the features that guides look at."""
    images, labels = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 0, 1, 1])
    batch = EpisodeBatch.collate([Episode(Labelled(images, labels), Labelled(images, labels))] * 2)
    return SourceFeatures(model.network, model.source_basis).attach(batch)


def graphs() -> dict[str, graphviz.Digraph]:
    """The shipped pictures by name."""
    catalog = Catalog.k_hot(SOURCES, EXPERTS, max_sources=2)
    over_catalog = tiny_model(CatalogPrior(catalog))
    on_simplex = tiny_model(LogisticNormalPrior(len(SOURCES), EXPERTS))
    guide = CatalogGuide(catalog, len(SOURCES))
    batch = tiny_batch(over_catalog)
    shown = {"routed_catalog": over_catalog, "routed_logistic_normal": on_simplex, "guide_catalog": guide}
    return {
        name: pyro.render_model(program, model_args=(batch,), render_distributions=True, render_deterministic=True)
        for name, program in shown.items()
    }


def main() -> None:
    for name, graph in graphs().items():
        (FOLDER / f"{name}.dot").write_text(graph.source)
        (FOLDER / f"{name}.svg").write_bytes(graph.pipe(format="svg"))


if __name__ == "__main__":
    main()
