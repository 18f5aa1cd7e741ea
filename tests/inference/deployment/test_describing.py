"""From a model and a guide that were made in Python to a router that is saved, loaded elsewhere, and the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_world import make_images
from other_process import run_python
from safetensors.torch import save_file
from tiny_run import tiny_pool
from torch import Tensor, nn
from typer.testing import CliRunner

from pyro_smat.encoders import DeepSetsEncoder, DescribedEncoder, EvidenceEncoder
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.guides import (
    CatalogGuide,
    ConcreteGuide,
    DirichletGuide,
    HierarchicalGuide,
    LogisticNormalGuide,
    PointGuide,
    RoutingGuide,
)
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.deployment.changing_sources import add_source, remove_source
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.describing import router_of
from pyro_smat.models import RoutedModel
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
from pyro_smat.networks.build import build_network
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.descriptors import probe_images, source_descriptors
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary

NAMES = ("a", "b", "c")
SHAPE = (1, 8, 8)
BLOCKS = {"weight": ".*weight", "bias": ".*bias"}
PAIRS = Catalog.k_hot(NAMES, 2, max_sources=2)
BY_HAND = Catalog.uniform_mixtures(NAMES, [((0,), 0), ((1, 2), 1), ((0, 1, 2), 0)], 2)


def tiny_module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh())


def library_of(module: nn.Module, blocks: dict[str, str] | None = None, head: tuple[str, ...] = ()) -> SourceLibrary:
    torch.manual_seed(0)
    states = {
        name: {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in module.state_dict().items()}
        for name in NAMES
    }
    return SourceLibrary.from_files(module, states, blocks, head=head)


def pair(
    make_guide: Callable[..., RoutingGuide] = LogisticNormalGuide,
    prior: RoutingPrior | None = None,
    *,
    blocks: dict[str, str] | None = None,
    module: nn.Module | None = None,
    head: tuple[str, ...] = (),
    model_class: type[RoutedModel] = RoutedModel,
    **options: Any,
) -> tuple[RoutedModel, RoutingGuide]:
    """Three sources and two experts, with parameters as if trained."""
    module = module or tiny_module()
    library = library_of(module, blocks, head)
    bank = ExpertBank(library.space, 2, sparsity=0.6, delta_scale=0.5, generator=torch.Generator().manual_seed(1))
    count = len(library.space.block_names)
    prior = LogisticNormalPrior(3, 2, num_blocks=count) if prior is None else prior
    model = model_class(TaskNetwork(module, library.space), library, prior=prior, experts=bank, **options)
    guide = make_guide()
    generator = torch.Generator().manual_seed(2)
    for parameter in (*model.parameters(), *guide.parameters()):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, guide


def support() -> tuple[Tensor, list[str], Tensor]:
    images = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    return images[:6], ["a", "b", "c"] * 2, images[6:]


def predictions(classifier: RoutedClassifier) -> Tensor:
    images, labels, queries = support()
    return classifier.adapt(images, labels).predict_proba(queries)


def same_after_loading(classifier: RoutedClassifier, folder: Path, **options: Any) -> RoutedClassifier:
    if classifier.router.network.__class__ is nn.Sequential:
        options["network"] = tiny_module()
    again = RoutedClassifier.load(classifier.save(folder), **options)
    assert torch.equal(predictions(again), predictions(classifier))
    assert again.router.config == classifier.router.config
    return again


def encoder() -> EvidenceEncoder:
    return EvidenceEncoder(8)


@pytest.mark.parametrize(
    ("make_guide", "prior"),
    [
        (lambda: LogisticNormalGuide(3, 2, encoder=encoder()), None),
        (lambda: LogisticNormalGuide(3, 2, covariance="low_rank", rank=1), LogisticNormalPrior(3, 2, scale=3.0)),
        (lambda: LogisticNormalGuide(3, 2), LogisticNormalPrior.cost_aware(3, 2, beta=2.0)),
        (lambda: LogisticNormalGuide(3, 2), LogisticNormalPrior(3, 2, loc=torch.arange(5.0))),
        (lambda: PointGuide(3, 2, encoder=DeepSetsEncoder(5, 8)), None),
        (
            lambda: ConcreteGuide(3, 2, temperature=0.8, straight_through=True),
            ConcretePrior(3, 2, logits=torch.arange(5.0), temperature=0.5),
        ),
        (lambda: DirichletGuide(3, 2, concentration=0.5), DirichletPrior(3, 2, concentration=torch.arange(1.0, 6.0))),
        (lambda: DirichletGuide(3, 2), SimplexCostPrior(3, 2, beta=2.0, learn=True)),
        (
            lambda: DirichletGuide(3, 2),
            MixturePrior([DirichletPrior(3, 2), SimplexCostPrior(3, 2, beta=5.0)], weights=[0.7, 0.3], learn=True),
        ),
        (lambda: CatalogGuide(PAIRS, 3, encoder=encoder()), CatalogPrior(PAIRS, logits=torch.arange(12.0))),
        (lambda: CatalogGuide(PAIRS, 3, estimator="score_function"), CostAwareCatalogPrior(PAIRS, beta=2.0)),
        (lambda: CatalogGuide(BY_HAND, 3), CatalogPrior(BY_HAND, learn=True)),
        (lambda: HierarchicalGuide(PAIRS, 3), HierarchicalPrior(PAIRS, PAIRS.families())),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RoutingPrior) else "",
)
def test_every_guide_and_prior_is_described(
    make_guide: Callable[[], RoutingGuide], prior: RoutingPrior | None, tmp_path: Path
) -> None:
    model, guide = pair(make_guide, prior)
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=SHAPE)
    again = same_after_loading(classifier, tmp_path)
    assert type(again.router.guide) is type(guide)
    assert again.router.model.prior.base_logits() is not None
    torch.testing.assert_close(again.router.model.prior.base_logits(), model.prior.base_logits())
    for name, value in model.state_dict().items():
        assert torch.equal(again.router.model.state_dict()[name], value), name
    assert again.source_names == NAMES


def test_a_classifier_stays_as_it_was_when_the_pair_is_trained_further() -> None:
    model, guide = pair(lambda: CatalogGuide(PAIRS, 3), CatalogPrior(PAIRS, learn=True))
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=SHAPE)
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = classifier.adapt(images, [0, 1] * 3).predict_proba(images)
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    fresh = RoutedClassifier(classifier.router, classifier.deployment)  # without the tasks that are kept
    assert torch.equal(fresh.adapt(images, [0, 1] * 3).predict_proba(images), before)
    assert classifier.router.model.source_basis is model.source_basis  # the sources are not copied


@pytest.mark.parametrize("gates", ["shared", "separate"])
def test_blocks_and_options_of_the_model_are_described(gates: str, tmp_path: Path) -> None:
    model, guide = pair(
        lambda: LogisticNormalGuide(3, 2, num_blocks=2), blocks=BLOCKS, metric="euclidean", gates=gates, scale=3.0
    )
    again = same_after_loading(RoutedClassifier.from_trained(model, guide, image_shape=SHAPE), tmp_path)
    assert again.router.library.space.block_names == ("weight", "bias")
    assert (again.router.model.metric, again.router.model.gates) == ("euclidean", gates)
    assert again.router.model.experts is not None
    assert again.router.model.experts.sparsity == 0.6


def test_descriptors_are_described(tmp_path: Path) -> None:
    module = tiny_module()
    library = library_of(module)
    descriptors = source_descriptors(TaskNetwork(module, library.space), library.basis, probe_images(1, 8))
    described = DescribedEncoder(encoder(), descriptors)
    model, guide = pair(lambda: LogisticNormalGuide(3, 2, encoder=described), module=module)
    again = same_after_loading(RoutedClassifier.from_trained(model, guide, image_shape=SHAPE), tmp_path)
    assert again.router.descriptors is not None
    assert torch.equal(again.router.descriptors, descriptors)
    assert again.router.config.guide.encoder.to_dict() == {
        "kind": "evidence",
        "hidden": 8,
        "trust": 8.0,
        "total": False,
    }


def test_a_head_of_the_networks_own_is_described(tmp_path: Path) -> None:
    def with_head() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 4))

    model, guide = pair(lambda: LogisticNormalGuide(3, 2), module=with_head(), head=("3.*",))
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=SHAPE)
    other = with_head()
    nn.init.zeros_(other[3].weight)  # type: ignore[index]
    again = RoutedClassifier.load(classifier.save(tmp_path), network=other)
    assert torch.equal(predictions(again), predictions(classifier))


def test_a_network_of_the_registry_need_not_be_passed(tmp_path: Path) -> None:
    module = build_network("conv4", channels=4, image_size=16)
    model, guide = pair(lambda: PointGuide(3, 2), module=module)
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=(1, 16, 16))
    again = RoutedClassifier.load(classifier.save(tmp_path))
    images = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found, expected = (c.adapt(images[:6], ["a", "b"] * 3).predict_proba(images[6:]) for c in (again, classifier))
    assert torch.equal(found, expected)


def test_sources_of_a_described_router_can_be_changed() -> None:
    for make_guide, prior, count in (
        (lambda: LogisticNormalGuide(3, 2), None, None),
        (lambda: CatalogGuide(PAIRS, 3), CatalogPrior(PAIRS), 20),
        (lambda: CatalogGuide(BY_HAND, 3), CatalogPrior(BY_HAND), 5),
    ):
        classifier = RoutedClassifier.from_trained(*pair(make_guide, prior), image_shape=SHAPE)
        more = add_source(classifier, "new", {"1.weight": torch.ones(5, 64), "1.bias": torch.ones(5)})
        assert more.source_names == (*NAMES, "new")
        assert (None if more.router.catalog is None else len(more.router.catalog)) == count
        back = remove_source(more, "new")
        torch.testing.assert_close(predictions(back), predictions(classifier))


class Tempered(RoutedModel):
    def __init__(self, *args: Any, temperature: float = 4.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.temperature = temperature

    def logits(self, *args: Any, **options: Any) -> Tensor:
        return super().logits(*args, **options) / self.temperature


class Wide(LogisticNormalGuide):
    def __init__(self, num_sources: int, *, rank: int = 1, **options: Any) -> None:
        super().__init__(num_sources, rank=2 * rank, **options)


def test_classes_of_ones_own_with_options_that_go_on(tmp_path: Path) -> None:
    wide = lambda: Wide(3, rank=1, num_experts=2, covariance="low_rank")  # noqa: E731
    model, guide = pair(wide, model_class=Tempered, temperature=2.0, metric="euclidean")
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=SHAPE)
    config = classifier.router.config
    assert (config.model.temperature, config.model.metric) == (2.0, "euclidean")
    assert (config.guide.rank, config.guide.covariance) == (1, "low_rank")
    classifier.save(tmp_path)
    with pytest.raises(ValueError, match=r"own={'model': \w+} \(command line: --own model=test_describing.py:"):
        RoutedClassifier.load(tmp_path, network=tiny_module())
    same_after_loading(classifier, tmp_path, own={"model": Tempered, "guide": Wide})


class Noted(LogisticNormalPrior):
    def __init__(self, *args: Any, note: object = None, **options: Any) -> None:
        super().__init__(*args, **options)


def test_what_cannot_be_described_is_said() -> None:
    model, guide = pair(lambda: PointGuide(3, 2))
    with pytest.raises(ValueError, match="got neither image_shape nor validation"):
        RoutedClassifier.from_trained(model, guide)
    for shape in ((1, 8, 9), (2, 8, 8)):
        with pytest.raises(ValueError, match=r"expected 1 or 3 channels and square images"):
            router_of(model, guide, shape)
    with pytest.raises(ValueError, match="does not say how it was made"):
        router_of(model, nn.Linear(2, 2), SHAPE)  # type: ignore[arg-type]


@pytest.mark.parametrize("stands", [True, False])
def test_whether_the_guide_stands_on_the_prior_is_described(stands: bool, tmp_path: Path) -> None:
    """A prior that likes one source far more than the others would move every prediction."""
    prior = LogisticNormalPrior(3, 2, loc=torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]))
    model, guide = pair(lambda: LogisticNormalGuide(3, 2, prior=prior if stands else None), prior)
    classifier = RoutedClassifier.from_trained(model, guide, image_shape=SHAPE)
    again = same_after_loading(classifier, tmp_path)
    assert (again.router.guide.prior is again.router.model.prior) == stands
    weights = [c.adapt(*support()[:2]).posterior.mean[0, 1] for c in (classifier, again)]
    assert torch.equal(weights[0], weights[1])
    alone = RoutedClassifier.from_trained(*pair(lambda: LogisticNormalGuide(3, 2), prior), image_shape=SHAPE)
    assert (weights[0] > 10 * alone.adapt(*support()[:2]).posterior.mean[0, 1]) == stands
    other = LogisticNormalPrior(3, 2, scale=1.0)
    with pytest.raises(ValueError, match="the guide stands on another prior"):
        RoutedClassifier.from_trained(*pair(lambda: LogisticNormalGuide(3, 2, prior=other), prior), image_shape=SHAPE)


def test_validation_chooses_the_deployment() -> None:
    model, guide = pair(lambda: LogisticNormalGuide(3, 2))
    sampler = EpisodeSampler(tiny_pool(), 3, 2, 2, seed=3)
    classifier = RoutedClassifier.from_trained(model, guide, validation=sampler)
    assert classifier.router.config.data.size == 8
    assert classifier.deployment.score.kind != "auto"


OWN_FILE = '''
import torch
from torch import nn

from pyro_smat.guides import LogisticNormalGuide


class Network(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(49 * width, 7))

    def forward(self, images):
        return self.body(images)


def build():
    return Network()


class Guide(LogisticNormalGuide):
    """Its posterior is a little surer."""

    def posterior(self, batch):
        found = super().posterior(batch)
        return type(found)(found.loc, 0.5 * found.scale, num_sources=found.num_sources)
'''
LOADING = """
import sys
import numpy as np, torch
from own import Guide, build
from pyro_smat import RoutedClassifier

classifier = RoutedClassifier.load("router", own={"guide": Guide}, network=build())
images = torch.from_numpy(np.load("images.npy"))
np.save("found.npy", classifier.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:]).numpy())
"""


@pytest.mark.parametrize("trainer", ["SVI", "MetaTrainer"])
def test_python_objects_to_another_process_and_the_command_line(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own network, own checkpoint files, own guide: trained, saved, loaded elsewhere, and used by commands."""
    import pyro

    from pyro_smat.inference import MetaTrainer
    from pyro_smat.inference.training.settings import TrainingSettings

    (tmp_path / "own.py").write_text(OWN_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own", None)
    import own  # type: ignore[import-not-found]

    torch.manual_seed(0)
    files: dict[str, Path] = {}
    for name in ("base", "other"):
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(own.build().state_dict(), files[name])
    network = own.build()
    library = SourceLibrary.from_files(network, files)
    task_network = TaskNetwork(network, library.space)
    model = RoutedModel(task_network, library, prior=LogisticNormalPrior(2))
    guide = own.Guide(2)
    make_images(tmp_path / "images", 5, 8, seed=0)
    from pyro_smat.episodes.readers.folders import read_folder

    pool = read_folder(tmp_path / "images", size=16, channels=1)
    features = SourceFeatures(task_network, library.basis, pool)
    sampler = EpisodeSampler(pool, 3, 2, 2, seed=0)
    if trainer == "SVI":
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), CVaR_ELBO(rho=1.0))
        for _ in range(3):
            svi.step(features.attach(sampler.sample(4)))
    else:
        settings = TrainingSettings(steps=3, episodes=4, warmup=1, validate_every=0)
        elbo = CVaR_ELBO(rho=1.0)
        MetaTrainer(model, guide, elbo=elbo, sampler=sampler, features=features, settings=settings).fit(progress=False)
    validation = EpisodeSampler(pool, 3, 2, 2, seed=1)
    classifier = RoutedClassifier.from_trained(model, guide, validation=validation)
    classifier.save(tmp_path / "router")
    images = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "images.npy", images.numpy())
    expected = classifier.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:])
    if trainer == "SVI":  # from the file on it is the same
        again = RoutedClassifier.load(tmp_path / "router", own={"guide": own.Guide}, network=own.build())
        found = again.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        return
    run_python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{LOADING}", cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.numpy(), rtol=1e-5, atol=1e-7)

    from pyro_smat.cli.app import app

    parts = ["--guide", f"{tmp_path / 'own.py'}:Guide", "--network", f"{tmp_path / 'own.py'}:build", "--device", "cpu"]
    run, data = tmp_path / "router", tmp_path / "images"
    commands: dict[str, list[object]] = {
        "evaluate": [
            "evaluate",
            run,
            "--data",
            data,
            "--episodes",
            3,
            "--way",
            3,
            "--shot",
            2,
            "--query",
            2,
            "--no-progress",
        ],
        "adapt": ["adapt", run, data],
        "predict": ["predict", run, data, data / "stripe0"],
    }
    for name, words in commands.items():
        result = CliRunner().invoke(app, [str(word) for word in [*words, *parts]])
        assert result.exit_code == 0, (name, result.output, result.exception)
    refused = CliRunner().invoke(app, [str(word) for word in commands["adapt"]])
    assert refused.exit_code == 2
    assert "own.py:Guide" in refused.stderr
