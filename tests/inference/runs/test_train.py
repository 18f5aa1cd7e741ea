"""train_router: catalogs are searched, kept and reread; temperature scaling; what a run folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import predictions, quick_config, reopened, tiny_config, tiny_pool, tiny_router, tiny_sources, trained
from torch import Tensor

from pyro_smat.inference.assembly import RunConfig
from pyro_smat.inference.assembly import router as assembly
from pyro_smat.inference.objective.reference import query_losses
from pyro_smat.inference.runs import train as runs
from pyro_smat.inference.runs.folder import CATALOG
from pyro_smat.inference.training.catalogs import CatalogSearch, greedy_catalog
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import names
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary

CATALOG_GUIDES = ("catalog", "hierarchical")
BLOCKS = 'sources.blocks={weight=".*weight", bias=".*bias"}'
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


@pytest.fixture
def opens_tiny_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "open_library", tiny_sources)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[CatalogSearch]:
    """Every search that a run makes."""
    made: list[CatalogSearch] = []
    real: Callable[..., CatalogSearch] = CatalogSearch

    def counted(*args: Any) -> CatalogSearch:
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(runs, "CatalogSearch", counted)
    return made


@pytest.mark.usefixtures("opens_tiny_sources")
@pytest.mark.parametrize("guide", CATALOG_GUIDES)
@pytest.mark.parametrize("kind", [name for name in names("catalog") if name not in ("given", "wise_ft")])
def test_catalogs_are_built_trained_and_saved_with_the_router(guide: str, kind: str, tmp_path: Path) -> None:
    options = {"k_hot": "", "beam": ", size=5, episodes=6, beam_width=2"}.get(kind, ", size=5, episodes=6")
    search = f"guide.catalog={{kind='{kind}', max_sources=2{options}}}"
    prior = "prior.kind=" + ("hierarchical" if guide == "hierarchical" else "cost_aware")
    classifier = trained(quick_config([f"guide.kind={guide}", search, prior]))
    catalog = classifier.router.catalog
    assert catalog is not None
    mixtures = list(dict.fromkeys(name.split("/")[0] for name in catalog.names))
    assert catalog.names == tuple(f"{name}/expert{m}" for name in mixtures for m in range(2))
    assert all(set(name.split("+")) <= {"a", "b", "c"} for name in mixtures)
    for name, row in zip(catalog.names, catalog.coefficients, strict=True):
        opened, expert = name.removesuffix(name[-8:]).split("+"), int(name[-1])
        expected = [(source in opened) / len(opened) for source in "abc"] + [float(m == expert) for m in range(2)]
        assert row.tolist() == pytest.approx(expected)
    assert len(mixtures) == 6 if kind == "k_hot" else 1 <= len(mixtures) <= 2  # 5 routings are 2 mixtures x 2 experts
    predicts_the_same_when_reopened(classifier, tmp_path)


def predicts_the_same_when_reopened(classifier: Any, folder: Path) -> None:
    catalog, again = classifier.router.catalog, reopened(classifier, folder)
    assert again.router.catalog is not None
    assert again.router.catalog.names == catalog.names
    assert torch.equal(again.router.catalog.coefficients, catalog.coefficients)
    assert torch.equal(predictions(again, "top_k"), predictions(classifier, "top_k"))
    assert torch.equal(predictions(again), predictions(classifier))


@pytest.mark.usefixtures("opens_tiny_sources")
def test_a_catalog_on_the_way_to_the_sources_is_built_trained_and_saved(tmp_path: Path) -> None:
    catalog = "guide.catalog={kind='wise_ft', start='b', parts=[0.25, 1.0]}"
    classifier = trained(quick_config(["guide.kind=catalog", catalog, "prior.kind=cost_aware"]))
    assert classifier.router.catalog is not None
    ways = ("b", "b>a 0.25", "a", "b>c 0.25", "c")
    assert classifier.router.catalog.names == tuple(f"{way}/expert{m}" for way in ways for m in range(2))
    predicts_the_same_when_reopened(classifier, tmp_path)


@pytest.mark.usefixtures("opens_tiny_sources")
def test_what_is_searched_are_mixtures_of_sources_that_serve_the_training_episodes() -> None:
    """Of all catalogs of one mixture, the searched one has the smallest loss on the episodes that it is searched on."""
    search = "guide.catalog={kind='random', max_sources=3, size=1, episodes=8}"  # all 7 mixtures are candidates
    classifier = trained(quick_config(["guide.kind=catalog", "experts.count=0", search]))
    found = classifier.router.catalog
    assert found is not None
    config = quick_config(["guide.kind=point", "experts.count=0"])
    router = tiny_router(config)
    features = router.features(tiny_pool())
    assert features.pool is not None
    sampler = config.episodes.sampler(features.pool, seed=runs.SEARCH_SEED)
    everything = Catalog.k_hot(("a", "b", "c"), max_sources=3)
    router.model.eval()
    losses = torch.zeros(len(everything))
    with torch.no_grad():
        for _ in range(2):
            batch = features.attach(sampler.sample(4))
            for j, row in enumerate(everything.coefficients):
                losses[j] += query_losses(router.model.logits(row.expand(4, -1), batch), batch).sum()
    assert found.names == (everything.names[int(losses.argmin())],)


@pytest.mark.usefixtures("opens_tiny_sources")
@pytest.mark.parametrize("blocks", [[], [BLOCKS]])
def test_a_searched_catalog_does_not_need_a_small_k_hot_one(blocks: list[str]) -> None:
    """7 sets of sources x 90 experts are too many to enumerate, and are not asked for."""
    search = "guide.catalog={kind='greedy', max_sources=3, size=4, episodes=4}"
    classifier = trained(quick_config(["guide.kind=catalog", "experts.count=90", search, *blocks]))
    catalog = classifier.router.catalog
    assert catalog is not None
    assert len(catalog) == 90  # one mixture, with every expert
    assert catalog.coefficients.shape[1:] == ((2, 93) if blocks else (93,))
    assert predictions(classifier).shape == (4, 3)


def test_a_search_over_blocks_does_not_need_every_pair_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 sources in each of 2 blocks would be 289 routings."""

    def many(config: RunConfig) -> tuple[torch.nn.Module, SourceLibrary]:
        network, _ = tiny_sources(config)
        space = ParameterSpace.from_module(network, config.sources.blocks or None)
        basis = 0.25 * torch.randn(17, space.dim, generator=torch.Generator().manual_seed(0))
        return network, SourceLibrary(tuple(f"s{r}" for r in range(17)), basis, space)

    monkeypatch.setattr(assembly, "open_library", many)
    search = "guide.catalog={kind='greedy', max_sources=1, size=3, episodes=4}"
    config = quick_config(["guide.kind=catalog", "experts.count=0", BLOCKS, search])
    catalog = trained(config, opened=many(config)).router.catalog
    assert catalog is not None
    assert 1 <= len(catalog) <= 3


@pytest.mark.usefixtures("opens_tiny_sources")
def test_a_resumed_run_reads_its_catalog(tmp_path: Path, searches: list[CatalogSearch]) -> None:
    config = quick_config(["guide.kind=catalog", "guide.catalog={kind='greedy', max_sources=2, size=6, episodes=6}"])
    first = trained(config, folder=tmp_path)
    assert (tmp_path / CATALOG).is_file()
    assert len(searches) == 1
    again = trained(config, folder=tmp_path, resume=True)
    assert len(searches) == 1
    assert first.router.catalog is not None
    assert again.router.catalog is not None
    assert again.router.catalog.names == first.router.catalog.names
    assert torch.equal(again.router.catalog.coefficients, first.router.catalog.coefficients)
    assert torch.equal(predictions(again), predictions(first))
    trained(config, folder=tmp_path)  # a run that starts anew does not take another run's catalog
    assert len(searches) == 2


def test_a_router_that_is_passed_keeps_its_catalog(searches: list[CatalogSearch]) -> None:
    config = quick_config(["guide.kind=catalog", "guide.catalog={kind='greedy', size=4, episodes=4}"])
    stand_in = tiny_router(tiny_config(["guide.kind=point", "experts.count=0"]))
    sampler = config.episodes.sampler(tiny_pool(), seed=5)
    batches = [stand_in.features(tiny_pool()).attach(sampler.sample(4))]
    own = greedy_catalog(CatalogSearch(stand_in.model, lambda episodes: batches), num_experts=2, size=4)
    router = tiny_router(config, catalog=own)
    assert trained(config, router).router.catalog is own
    assert not searches


@pytest.mark.usefixtures("opens_tiny_sources")
def test_temperature_scaling_scales_the_posterior_and_is_saved(tmp_path: Path) -> None:
    configs = (quick_config(["guide.kind=catalog", f"training.temperature_scaling={on}"]) for on in ("false", "true"))
    plain, scaled = (trained(config) for config in configs)
    guide: Any = scaled.router.guide
    temperature = guide.temperature_scale.item()
    assert plain.router.guide.temperature_scale.item() == 1.0  # type: ignore[union-attr,operator]
    assert temperature != 1.0
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits: list[Tensor] = [c.adapt(images, ["a", "b"] * 3).posterior.logits for c in (plain, scaled)]  # type: ignore[attr-defined]
    torch.testing.assert_close(logits[1] * temperature, logits[0])
    again: Any = reopened(scaled, tmp_path).router.guide
    assert again.temperature_scale.item() == temperature
