"""Sources that come after training get weight at once; those that go leave a router that still adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import ENCODING_GUIDES, tiny_config, tiny_pool, tiny_sources
from torch import Tensor

from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.deployment.changing_sources import add_source, remove_source
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.catalogs import CatalogSearch, greedy_catalog
from pyro_smat.sources import SourceLibrary

GUIDES = ENCODING_GUIDES
BLOCKS = 'sources.blocks={weight=".*weight", bias=".*bias"}'
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


def good_source() -> dict[str, Tensor]:
    """Averages of the halves of an image, which hold colour and shape: separates the classes."""
    weight = torch.zeros(5, 64)
    for row in range(4):
        for column in range(4):
            weight[2 * (row // 2) + column // 2, 16 * row + 2 * column : 16 * row + 2 * column + 2] = 0.2
    return {"1.weight": weight, "1.bias": torch.full((5,), -0.3)}


def trained(overrides: tuple[str, ...] = (), steps: int = 3) -> RoutedClassifier:
    """A router trained over two sources that see hardly anything: all their features are nearly alike."""
    config = tiny_config([f"training.steps={steps}", "training.episodes=4", "training.validate_every=0", *overrides])
    network, library = tiny_sources(config, 2)
    basis = torch.cat([0.001 * library.basis[:, :320], torch.ones(2, 5)], dim=1)
    poor = SourceLibrary(library.names, basis, library.space)
    router = build_router(config, opened=(network, poor))
    features = {name: router.features(tiny_pool(seed)) for seed, name in enumerate(("train", "validation"))}
    return train_router(config, router=router, features=features, progress=False)[0]


def posterior(classifier: RoutedClassifier) -> RoutingPosterior:
    router = classifier.router
    batch = EpisodeSampler(tiny_pool(5), 3, 4, 2, seed=3).sample(6)
    with torch.no_grad():
        return router.guide.posterior(router.features().attach(batch))


def weights(classifier: RoutedClassifier) -> Tensor:
    mean = posterior(classifier).mean
    return mean.mean(1) if mean.ndim == 3 else mean  # over blocks


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("options", [(), ("experts.count=0",), (BLOCKS, "experts.count=0")])
def test_a_new_source_gets_weight_without_training(guide: str, options: tuple[str, ...]) -> None:
    classifier = trained((f"guide.kind={guide}", *options))
    before = weights(classifier)
    more = add_source(classifier, "new", good_source())
    after = weights(more)
    assert more.source_names == ("a", "b", "new")
    assert after.shape[1] == before.shape[1] + 1
    torch.testing.assert_close(after[:, :3].sum(1), torch.ones(6))
    assert (after[:, 2] > after[:, :2].amax(1)).float().mean() > 0.6  # it explains most supports best
    assert after[:, 2].mean() > 0.4
    assert torch.equal(weights(classifier), before)  # the old router is left as it is


@pytest.mark.parametrize("guide", GUIDES)
def test_removing_what_was_added_gives_the_old_router_back(guide: str, tmp_path: Path) -> None:
    classifier = trained((f"guide.kind={guide}",))
    more = add_source(classifier, "new", good_source())
    torch.testing.assert_close(weights(remove_source(more, "new")), weights(classifier))
    less = remove_source(more, "b")
    rest = weights(less)
    assert less.source_names == ("a", "new")
    torch.testing.assert_close(rest[:, :2].sum(1), torch.ones(6))
    assert (rest[:, 1] >= weights(more)[:, 2] - 0.05).all()  # the weight of the removed source goes to the others
    saved = RoutedClassifier.load(more.save(tmp_path / "router"), network=classifier.router.network)
    torch.testing.assert_close(weights(saved), weights(more))


def test_a_searched_catalog_gets_the_source_alone_and_loses_what_opens_it() -> None:
    options = (
        "guide.kind=catalog",
        'guide.catalog={kind="greedy", size=2, episodes=4, max_sources=2}',
        "experts.count=0",
    )
    config = tiny_config(["training.steps=1", "training.episodes=4", *options])
    network, library = tiny_sources(config, 3)
    stand_in = tiny_config(["experts.count=0"])
    features = build_router(stand_in, opened=(network, library)).features(tiny_pool())
    batches = [features.attach(EpisodeSampler(tiny_pool(), 3, 2, 2, seed=0).sample(4))]
    model = build_router(stand_in, opened=(network, library)).model
    catalog = greedy_catalog(CatalogSearch(model, lambda episodes: batches), size=2, max_sources=2)
    router = build_router(config, opened=(network, library), catalog=catalog)
    more = add_source(RoutedClassifier(router), "new", good_source())
    assert more.router.catalog is not None
    assert more.router.catalog.names == (*catalog.names, "new")
    assert torch.equal(more.router.catalog.coefficients[:-1, :3], catalog.coefficients)
    less = remove_source(more, "c")
    assert less.router.catalog is not None
    assert "new" in less.router.catalog.names
    assert all("c" not in name.split("+") for name in less.router.catalog.names)


def test_prices_follow_the_sources() -> None:
    costs = "prior.costs=[0.0, 2.0, 5.0, 7.0]"  # two sources, two experts
    classifier = trained(("guide.kind=dirichlet", "prior.kind=simplex_cost", costs), steps=1)
    more = add_source(classifier, "new", good_source(), cost=3.0)
    assert more.router.config.prior.costs == (0.0, 2.0, 3.0, 5.0, 7.0)
    assert remove_source(more, "b").router.config.prior.costs == (0.0, 3.0, 5.0, 7.0)


def test_what_cannot_be_changed_is_said() -> None:
    classifier = trained(("guide.kind=hierarchical", "prior.kind=hierarchical", "prior.learn=true"), steps=1)
    with pytest.raises(ValueError, match=r"model\.prior\.\w+ has shape .* one by one"):
        add_source(classifier, "new", good_source())
    with pytest.raises(ValueError, match="'a'"):
        add_source(classifier, "a", good_source())
    with pytest.raises(ValueError, match="theta_pre"):
        remove_source(classifier, "a")
    with pytest.raises(ValueError, match="'z'"):
        remove_source(classifier, "z")
    with pytest.raises(ValueError, match=r"1\.bias"):
        add_source(classifier, "new", {"1.weight": torch.zeros(5, 64)})
