"""Models and guides of the user's own: they train, deploy and reopen; what does not fit is named before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_world import make_world
from pyro import poutine
from tiny_run import tiny_config, tiny_pool, tiny_router
from torch import Tensor
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.inference import RoutedClassifier
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.runs.custom import check_attributes, check_pair, construct, load_class
from pyro_smat.inference.runs.train import train_router

MODEL = '''
from __future__ import annotations

from dataclasses import dataclass

from pyro_smat.models import RoutedModel


@dataclass(frozen=True)
class Options:
    temperature: float = 4.0


class Tempered(RoutedModel):
    """The library's model with a flatter likelihood."""

    def logits(self, coefficients, batch, basis=None):
        return super().logits(coefficients, batch, basis) / Options().temperature


class Named(RoutedModel):
    """Adds an argument; all others go on to the library's."""

    def __init__(self, colour="red", **options):
        super().__init__(**options)
        self.colour = colour


class Silent(RoutedModel):
    def forward(self, batch):
        import pyro

        with pyro.plate("episodes", len(batch), dim=-2):
            return self.prior()


class Restless(RoutedModel):
    def forward(self, batch):
        import pyro, pyro.distributions as dist

        pyro.sample("mood", dist.Normal(0.0, 1.0))
        return super().forward(batch)


class TwoArguments(RoutedModel):
    def forward(self, batch, mood):
        return super().forward(batch)


class Broken(RoutedModel):
    def forward(self, batch):
        return len(3)


class Demanding(RoutedModel):
    def __init__(self, network, library, prior, moon_phase, tide, depth=3):
        super().__init__(network, library, prior)


class Foreign:
    def __init__(self, prior):
        self.prior = prior
'''
GUIDE = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_smat.guides import LogisticNormalGuide, LogisticNormalPosterior, RoutingGuide
from pyro_smat.inference.objective.reference import support_losses


class FromLosses(RoutingGuide):
    """Logits from the leave-one-out losses alone: three numbers to learn."""

    def __init__(self, sources, experts):
        super().__init__()
        self.sources = sources
        self.trust = nn.Parameter(torch.tensor(3.0))
        self.of_experts = nn.Parameter(torch.zeros(experts))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def posterior(self, batch):
        losses = support_losses(batch)
        location = torch.cat([-self.trust * losses, self.of_experts.expand(len(losses), -1)], dim=-1)
        return LogisticNormalPosterior(location, self.log_scale.exp().expand(location.shape), self.sources)


class Wide(LogisticNormalGuide):
    def __init__(self, sources, hidden=64, **options):
        super().__init__(sources, hidden=2 * hidden, **options)


class Extra(FromLosses):
    def forward(self, batch):
        pyro.sample("extra", dist.Normal(0.0, 1.0))
        return super().forward(batch)


class Auxiliary(FromLosses):
    def forward(self, batch):
        pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        return super().forward(batch)


class NoExperts(FromLosses):
    def forward(self, batch):
        with pyro.plate("episodes", len(batch), dim=-2):
            name = "source_ilr"
            return {name: pyro.sample(name, self.posterior(batch).sites()[name])}


class NoPosterior(RoutingGuide):
    def __init__(self):
        super().__init__()


class NoArguments(FromLosses):
    def forward(self):
        pass


a_function = len
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_model.py").write_text(MODEL)
    (folder / "my_guide.py").write_text(GUIDE)
    return folder


def own(files: Path, model: str | None = None, guide: str | None = None) -> list[str]:
    overrides = [] if model is None else [f"custom.model={files / 'my_model.py'}:{model}"]
    return overrides if guide is None else [*overrides, f"custom.guide={files / 'my_guide.py'}:{guide}"]


def trained(overrides: Sequence[str]) -> RoutedClassifier:
    config = tiny_config(["training.steps=3", "training.validate_every=0", "objective.rho=1.0", *overrides])
    router = tiny_router(config)
    features = {name: router.features(tiny_pool(seed)) for seed, name in enumerate(("train", "validation"))}
    return train_router(config, torch.device("cpu"), router=router, features=features, progress=False)[0]


def predictions(classifier: RoutedClassifier) -> Tensor:
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return classifier.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:])


# --- in a program -----------------------------------------------------------------------------------------------------


def test_own_classes_train_deploy_and_reopen(files: Path, tmp_path: Path) -> None:
    classifier = trained(own(files, "Tempered", "FromLosses"))
    model, guide = classifier.router.model, classifier.router.guide
    assert (type(model).__name__, type(guide).__name__) == ("Tempered", "FromLosses")
    assert len(list(guide.parameters())) == 3
    assert guide.trust.item() != 3.0  # type: ignore[union-attr]
    classifier.save(tmp_path)
    network = classifier.router.network
    for missing, given in (("model", {"guide_class": type(guide)}), ("guide", {"model_class": type(model)})):
        with pytest.raises(
            ValueError, match=rf"with a {missing} of your own, .*my_{missing}.py:\w+; pass {missing}_cl"
        ):
            RoutedClassifier.load(tmp_path, network=network, **given)  # type: ignore[arg-type]
    again = RoutedClassifier.load(tmp_path, network=network, model_class=type(model), guide_class=type(guide))
    assert torch.equal(predictions(again), predictions(classifier))


def test_the_own_likelihood_is_the_one_that_is_used(files: Path) -> None:
    plain, tempered = tiny_router(tiny_config()), tiny_router(tiny_config(own(files, "Tempered")))
    batch = trial(plain)
    torch.manual_seed(0)
    drawn = poutine.trace(plain.guide).get_trace(batch)
    logits = [poutine.replay(r.model.eval(), trace=drawn)(batch) for r in (plain, tempered)]
    torch.testing.assert_close(logits[1], logits[0] / 4)


def trial(router: Router) -> EpisodeBatch:
    return router.features().attach(EpisodeSampler(tiny_pool(), 3, 3, 2, seed=0).sample(2))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        ("Silent", None, r"model Silent observes nothing; expected a pyro.sample\(..., obs=batch.query.labels\)"),
        ("Restless", None, r"model Restless draws the site 'mood', which guide LogisticNormalGuide does not have"),
        (
            None,
            "NoExperts",
            r"model RoutedModel draws the site 'expert_ilr', which guide NoExperts does not have",
        ),
        (None, "Extra", r"guide Extra draws the site 'extra', which model RoutedModel does not have.*is_auxiliary"),
        (
            "TwoArguments",
            None,
            r"model TwoArguments cannot be called with a batch \(.*'mood'\); expected forward\(self",
        ),
        (None, "NoArguments", r"guide NoArguments cannot be called with a batch"),
    ],
)
def test_pairs_that_do_not_fit_are_named(model: str | None, guide: str | None, message: str, files: Path) -> None:
    router = tiny_router(tiny_config(own(files, model, guide)))
    with pytest.raises(ValueError, match=message):
        check_pair(router.model, router.guide, trial(router))


def test_pairs_that_fit_pass(files: Path) -> None:
    for model, guide in ((None, None), ("Tempered", None), (None, "FromLosses"), (None, "Auxiliary")):
        router = tiny_router(tiny_config(own(files, model, guide)))
        check_pair(router.model, router.guide, trial(router))


def test_a_prior_of_another_family_is_named_by_its_site(files: Path) -> None:
    router = tiny_router(tiny_config(["guide.family=catalog", *own(files, guide="FromLosses")]))
    with pytest.raises(
        ValueError, match=r"model RoutedModel draws the site 'routing', which guide FromLosses does not"
    ):
        check_pair(router.model, router.guide, trial(router))


def test_an_error_inside_a_program_is_not_taken_for_a_wrong_signature(files: Path) -> None:
    router = tiny_router(tiny_config(own(files, "Broken")))
    with pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        check_pair(router.model, router.guide, trial(router))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        ("Demanding", None, r"Demanding asks for 'moon_phase', 'tide', which cannot be had; .* compute_dtype, experts"),
        ("Foreign", None, r"model Foreign has no forward, basis, logits, network.*expected a subclass of the library"),
        (None, "NoPosterior", r"guide NoPosterior has no posterior; expected a subclass"),
        ("Absent", None, r"my_model.py: has no class 'Absent'; its classes are \['Options', 'Tempered', 'Named'"),
        (None, "a_function", r"my_guide.py: has no class 'a_function'; its classes are \['FromLosses'"),
    ],
)
def test_classes_that_cannot_be_used_are_named(model: str | None, guide: str | None, message: str, files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_router(tiny_config(own(files, model, guide)))


@pytest.mark.parametrize("reference", ["my_model.py", "my_model:Tempered", "my_model.txt:Tempered", "Tempered"])
def test_references_of_another_form_are_refused(reference: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form file.py:Class, e.g. my_model.py:MyModel"):
        load_class(reference)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.py: no such file; expected the Python file that defines MyModel"):
        load_class(f"{tmp_path / 'absent.py'}:MyModel")


def test_a_constructor_gets_what_it_asks_for() -> None:
    class Some:
        def __init__(self, sources: int, hidden: int = 3, depth: int = 5, **rest: int) -> None:
            self.values = (sources, hidden, depth, rest)

    assert construct(Some, {"sources": 2, "hidden": 9, "experts": 4}).values == (2, 9, 5, {})
    with pytest.raises(
        ValueError, match=r"Some asks for 'sources', which cannot be had; .* may use experts, hidden, or"
    ):
        construct(Some, {"hidden": 9, "experts": 4})
    with pytest.raises(ValueError, match=r"thing Some has no posterior; .* class with values, posterior"):
        check_attributes(Some(1), ("values", "posterior"), "thing")


def test_options_that_go_on_to_the_base_are_those_of_the_config(files: Path) -> None:
    """A constructor with **options gets what the library's own would: nothing falls back to a default in silence."""
    settings = [
        "head={metric='euclidean', scale=3.0}",
        "experts={count=2, masks='separate'}",
        "guide={covariance='low_rank', rank=1, hidden=6}",
        "prior={kind='logistic_normal', scale=3.0}",
        'sources.blocks={weight=".*weight", bias=".*bias"}',
    ]
    plain = tiny_router(tiny_config(settings))
    router = tiny_router(tiny_config([*settings, *own(files, "Named", "Wide")]))
    model: Any = router.model
    assert (type(model).__name__, model.colour) == ("Named", "red")
    assert (model.metric, model.masks, len(model.experts)) == ("euclidean", "separate", 2)
    assert model.scale.item() == pytest.approx(3.0)
    assert model.prior.num_blocks == 2
    assert model.prior.scale.tolist() == [3.0] * 5
    mine, its = (dict(r.guide.named_parameters()) for r in (router, plain))
    assert mine.keys() == its.keys()  # of a low-rank covariance, of experts, of blocks
    batch = trial(router)
    of_mine, of_its = (type(r.guide.posterior(batch)).__name__ for r in (router, plain))
    assert of_mine == of_its
    assert router.guide.posterior(batch).mean.shape == (2, 2, 5)
    check_pair(router.model, router.guide, batch)


def test_options_end_where_a_base_takes_none() -> None:
    class Base:
        def __init__(self, sources: int, depth: int = 5) -> None:
            self.values = (sources, depth)

    class Middle(Base):
        def __init__(self, sources: int, hidden: int = 1, **options: int) -> None:
            super().__init__(sources + hidden, **options)

    class Leaf(Middle):
        def __init__(self, **options: int) -> None:
            super().__init__(**options)

    class Closed(Middle):
        def __init__(self, sources: int) -> None:
            super().__init__(sources)

    available = {"sources": 2, "hidden": 9, "depth": 3, "experts": 4}
    assert construct(Leaf, available).values == (11, 3)
    assert construct(Closed, available).values == (3, 5)
    with pytest.raises(ValueError, match=r"Leaf asks for 'sources', which cannot be had"):
        construct(Leaf, {"depth": 3})


def test_own_classes_in_a_file_are_relative_to_it(files: Path) -> None:
    path = files / "config.toml"
    path.write_text('[custom]\nmodel = "my_model.py:Tempered"\n')
    assert load_config(path).custom.model == f"{files / 'my_model.py'}:Tempered"


# --- on the command line ----------------------------------------------------------------------------------------------


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_command_line(files: Path, tmp_path: Path) -> None:
    """Train with both files; every other command needs them too, and says so."""
    config, run = make_world(tmp_path), tmp_path / "run"
    classes = ["--model", f"{files / 'my_model.py'}:Tempered", "--guide", f"{files / 'my_guide.py'}:FromLosses"]
    quick = ["--set", "training.steps=2", "--set", "training.validate_every=0"]
    result = call("train", config, "--output", run, "--no-progress", "--device", "cpu", *classes, *quick)
    assert result.exit_code == 0, (result.output, result.exception)
    described = json.loads((run / "config.json").read_text())["custom"]
    assert described == {"model": classes[1], "guide": classes[3]}

    support = tmp_path / "support"
    for name in ("stripe0", "stripe2"):
        (support / name).mkdir(parents=True)
        for n in range(2):
            shutil.copy(tmp_path / "images" / "test" / name / f"{n}.png", support / name)
    images = tmp_path / "images" / "test" / "stripe2"
    commands: list[list[object]] = [
        ["evaluate", run, "--episodes", 4, "--no-progress", "--output", tmp_path / "out"],
        ["adapt", run, support],
        ["predict", run, support, images],
    ]
    for command in commands:
        refused = call(*command)
        assert refused.exit_code == 2, refused.output
        assert f"pass model_class= that class (command line: --model {classes[1]})" in refused.stderr
        refused = call(*command, *classes[:2])
        assert refused.exit_code == 2, refused.output
        assert f"(command line: --guide {classes[3]})" in refused.stderr
        result = call(*command, *classes)
        assert result.exit_code == 0, (result.output, result.exception)
    assert len(pd.read_csv(tmp_path / "out" / "episodes.csv")) == 4

    wrong = ["--model", f"{files / 'my_model.py'}:Silent"]
    refused = call("train", config, "--output", tmp_path / "other", "--no-progress", *wrong)
    assert refused.exit_code == 2
    assert "error: model Silent observes nothing" in refused.stderr
    assert "another config" in call("train", config, "--output", run, "--resume", *quick).stderr
